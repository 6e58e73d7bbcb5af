"""Shared by all readers of radiographs: `RadiographError`, the size limit, and scaling from 16 to 8 bits."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.errors import InputError, printable

WHITE = 255  # the brightest grey level of an 8-bit image

# Exceptions of Pillow, pydicom and their codecs on malformed files; warnings under `-W error`.
MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, Warning, struct.error, zipfile.BadZipFile),
    zlib.error,
)

MAX_PIXELS = 50_000_000
"""Largest accepted image, width times height; a digital radiograph of 43 x 43 cm at .1 mm has 18.5 million pixels."""

_BAND_PIXELS = 1 << 16


class RadiographError(InputError):
    """The input cannot be read as one radiograph.

    Attributes:
        reason: One line of at most 200 characters: what was expected, what was given and what to do. It never holds a
            path, a file name or text from the input, so that it can be shown and logged.
        name: Name of the input, such as its path; empty until the context manager `naming` sets it.

    `str()` gives "name: reason", or the reason alone if there is no name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = ""  # not in the reason, since a file's name may be a patient's

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.name else self.reason


class NotFetchedError(RadiographError):
    """The file is a broken link, or a pointer to content elsewhere (Git LFS, git-annex), that has not been fetched."""


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Context manager that sets `name`, such as a path, on any RadiographError raised in its block."""
    try:
        yield
    except RadiographError as error:
        error.name = printable(name)
        raise


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Context manager that turns errors of decoders on malformed files (`MALFORMED`) into RadiographError(reason)."""
    try:
        yield
    except RadiographError:
        raise
    except MALFORMED:
        raise RadiographError(reason) from None


def check_size(width: int, height: int) -> None:
    """Raise RadiographError if an image has no pixels or more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise RadiographError(f"Expected an image with pixels, got {width} x {height}; export the image again.")
    if width * height > MAX_PIXELS:
        raise RadiographError(f"Expected at most {MAX_PIXELS:,} pixels, got {width} x {height}; scale the image down.")


def bit_depth(maximum: int) -> int:
    """Return the smallest of 8, 10, 12, 14, 15 and 16 bits that can hold `maximum`, which is in 0..65535."""
    return next(bits for bits in (8, 10, 12, 14, 15, 16) if maximum < 1 << bits)


def to_8_bit(pixels: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Scale grey levels `(height, width)` of up to 16 bits to 8 bits without clipping.

    The file does not say how many of the 16 bits are in use, and radiographs of 10 to 15 bits are common. Divided by
    65535, a 12-bit image would be nearly black. So the bit depth is guessed from the brightest pixel: it is the
    smallest common depth that holds it (see `bit_depth`), and `2**bits - 1` becomes white.

    8-bit values come back unchanged. The guess is too low if an image does not use the upper part of its range, and the
    image then becomes too bright: a 16-bit image by a factor of 2 if its brightest pixel is below 32768, of 4 below
    16384, of 16 below 4096.
    """
    full_scale = (1 << bit_depth(int(pixels.max()))) - 1
    levels = np.arange(full_scale + 1, dtype=np.int64)
    table = (2 * WHITE * levels + full_scale) // (2 * full_scale)  # rounds half up, in whole numbers
    return look_up(pixels, table.astype(np.uint8))


def look_up(pixels: NDArray[np.integer], table: NDArray[np.uint8], lowest: int = 0) -> NDArray[np.uint8]:
    """Return `table[pixels - lowest]`, computed in bands of rows, since numpy's indices take 8 bytes per pixel."""
    grey = np.empty(pixels.shape, dtype=np.uint8)
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        band = pixels[top : top + rows]
        grey[top : top + rows] = table[np.subtract(band, lowest, dtype=np.intp)]
    return grey
