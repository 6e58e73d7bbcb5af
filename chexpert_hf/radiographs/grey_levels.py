"""The error, the size limit and the scaling from 16 to 8 bits that the radiograph readers share."""

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
"""Largest accepted image; a digital radiograph of 43 x 43 cm at .1 mm has 18.5 million pixels."""

_BAND_PIXELS = 1 << 16


class RadiographError(InputError):
    """The input cannot be read as one radiograph.

    `reason` is one line of at most 200 characters: what was expected, what was given and what to do. It never holds a
    path, a file name or any of the input's text, so that it can be shown and logged.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = ""  # set by `naming`, since a file's name may be a patient's

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.name else self.reason


class NotFetchedError(RadiographError):
    """The file is a link or pointer to content that has not been fetched."""


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Names the input, such as a file's path, in a RadiographError that leaves the block."""
    try:
        yield
    except RadiographError as error:
        error.name = printable(name)
        raise


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Turns what a decoder raises on malformed files into a RadiographError with this reason."""
    try:
        yield
    except RadiographError:
        raise
    except MALFORMED:
        raise RadiographError(reason) from None


def check_size(width: int, height: int) -> None:
    """Refuses images without pixels and images above `MAX_PIXELS`, by the size in their header."""
    if width < 1 or height < 1:
        raise RadiographError(f"Expected an image with pixels, got {width} x {height}; export the image again.")
    if width * height > MAX_PIXELS:
        raise RadiographError(f"Expected at most {MAX_PIXELS:,} pixels, got {width} x {height}; scale the image down.")


def bit_depth(maximum: int) -> int:
    """The smallest number of bits in use in digital radiography that holds `maximum`, which is in 0..65535."""
    return next(bits for bits in (8, 10, 12, 14, 15, 16) if maximum < 1 << bits)


def to_8_bit(pixels: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Scales 16-bit grey levels `(height, width)` to 8 bits without clipping.

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
    """Replaces each pixel by the table's entry `pixel - lowest`; in bands, since numpy indexes through 8 bytes each."""
    grey = np.empty(pixels.shape, dtype=np.uint8)
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        band = pixels[top : top + rows]
        grey[top : top + rows] = table[np.subtract(band, lowest, dtype=np.intp)]
    return grey
