"""Reads a radiograph from a file, bytes, a Pillow image or an array, without trusting the input.

The first bytes of a file decide its format, never its name. Sizes are checked before anything is decoded, and damaged
or truncated files are refused. The result holds pixels and a few properties: no EXIF, no text, no patient's name.
"""

import io
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from chexpert_hf.radiographs.grey_levels import (
    MAX_PIXELS,
    NotFetchedError,
    RadiographError,
    check_size,
    refusing,
    to_8_bit,
)
from chexpert_hf.radiographs.raster import HEAD_BYTES, format_of, read_pillow, read_raster
from chexpert_hf.radiographs.unfetched import why_missing

_MAX_FILE_BYTES = 10 * MAX_PIXELS  # five times the largest image of 16 bits


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph, and what its file says about view, body part and colour."""

    image: Image.Image  # mode L, upright; possibly scaled down while it was decoded
    original_size: tuple[int, int]  # the full image's (width, height) when upright
    is_colour: bool = False  # also False if it was not checked: for DICOM, and without `with_colour`
    is_lateral: bool | None = None  # by the DICOM header; None if that does not say, and for other formats
    other_subject: str = ""  # the DICOM element that rules out a chest radiograph, such as "BodyPartExamined is HIP"
    notes: tuple[str, ...] = ()  # a line for each DICOM element that was missing and derived, or unusable and ignored


RadiographSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Radiograph


def read_radiograph(source: RadiographSource, *, target_size: int | None = None) -> Image.Image:
    """Read one radiograph and return its image: upright, in mode L.

    `source` may be a path, bytes, a binary file, a Pillow image or an array; if the caller will resize to `target_size`
    pixels, large JPEGs are decoded at a smaller size (see `open_radiograph`). The image's `info` has the (width,
    height) before scaling as `original_size`, and `notes` if there are any. Raises RadiographError if the source cannot
    be read, ValueError if `target_size` is not positive.
    """
    return open_radiograph(source, target_size=target_size, with_colour=False).image


def open_radiograph(
    source: RadiographSource, *, target_size: int | None = None, with_colour: bool = True
) -> Radiograph:
    """Read one radiograph with its properties.

    JPEG, PNG, TIFF, BMP, WebP and DICOM are distinguished by content. Colour becomes luma, transparent parts become
    black, and the EXIF orientation is applied. `grey_levels.to_8_bit` scales 16-bit images to 8 bits, and
    `windowing.render` renders DICOM. The same source with the same `target_size` always gives the same pixels.

    Args:
        source: A path, a file's bytes, a binary file object (read from its position to its end), a Pillow image in mode
            1, L, LA, P, RGB, RGBA, CMYK, I;16 or I, or an array: `(height, width)` or `(height, width, 1)` in uint8 or
            uint16, `(height, width, 3)` or `(height, width, 4)` in uint8. A Radiograph is returned as it is.
        target_size: The side in pixels that the caller will resize the image to, if known. A JPEG is then scaled down
            by 2, 4 or 8 while it is decoded, as long as both sides keep `raster.DRAFT_MARGIN` times this size.
        with_colour: Whether to find out `is_colour`, for which a colour JPEG is decoded twice.

    Raises:
        RadiographError: If the source is missing, damaged, cut short, too large, not one image of a known format, or
            its grey levels are ambiguous (floating point, 16-bit colour).
        ValueError: If `target_size` is below 1.
    """
    if target_size is not None and target_size < 1:
        raise ValueError(f"Expected a target_size of at least 1 pixel, got {target_size}.")
    if isinstance(source, Radiograph):
        return source
    if isinstance(source, np.ndarray):
        source = _image_of(source)
    if isinstance(source, Image.Image):
        gray, is_colour = read_pillow(source, with_colour=with_colour)
        radiograph = Radiograph(gray, gray.size, is_colour)
    else:
        with _open_stream(source) as stream:
            radiograph = _read_stream(stream, target_size, with_colour)
    radiograph.image.info = {"original_size": radiograph.original_size}
    if radiograph.notes:
        radiograph.image.info["notes"] = radiograph.notes
    return radiograph


def _open_stream(source: str | os.PathLike[str] | bytes | BinaryIO) -> BinaryIO:
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source)
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not hasattr(source, "read"):
        raise RadiographError(
            "Expected a path, bytes, a binary file object, a Pillow image or a numpy array, "
            f"got {type(source).__name__[:40]}; open the file or convert it to one of these, several to a list."
        )
    with refusing("The file object cannot be read, expected an open one; open it in mode 'rb'."):
        data = source.read(_MAX_FILE_BYTES + 1)  # copied, since Pillow rewinds a stream
    if not isinstance(data, bytes):
        raise RadiographError("Expected a binary file object, this one does not give bytes; open it in mode 'rb'.")
    return io.BytesIO(data)


def _open_path(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            return open(path, "rb")
    except FileNotFoundError:
        if reason := why_missing(path):
            raise NotFetchedError(reason) from None
        raise RadiographError("File not found, expected an image file; check the path.") from None
    except PermissionError:
        raise RadiographError("The file may not be read, expected an image file; check its permissions.") from None
    except (OSError, ValueError):  # name too long, a NUL in it, a circle of links
        raise RadiographError("The file cannot be opened, expected the path of an image file; check it.") from None
    raise RadiographError("Expected a file, got a folder or device; name the image file itself.")


def _read_stream(stream: BinaryIO, target_size: int | None, with_colour: bool) -> Radiograph:
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if num_bytes == 0:
        raise RadiographError("Expected an image, the file is empty (0 bytes); copy or export it again.")
    if num_bytes > _MAX_FILE_BYTES:
        raise RadiographError(
            f"Expected a file of at most {_MAX_FILE_BYTES // 1_000_000} MB, got {num_bytes // 1_000_000} MB; "
            "export the radiograph alone."
        )
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if (file_format := format_of(head)) != "DICOM":
        return Radiograph(*read_raster(stream, file_format, target_size, with_colour=with_colour))
    from chexpert_hf.radiographs.dicom.dicom import read_dicom  # pydicom takes .2 s to import

    pixels, is_lateral, other_subject, notes = read_dicom(stream)
    gray = Image.fromarray(pixels).convert("L")
    return Radiograph(gray, gray.size, is_lateral=is_lateral, other_subject=other_subject, notes=notes)


def _image_of(array: np.ndarray) -> Image.Image:
    bits = array.dtype.itemsize * 8
    if array.dtype.kind != "u" or bits not in (8, 16):
        raise RadiographError(f"Expected uint8 or uint16, got {array.dtype.name[:20]}, of ambiguous scale; convert it.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4) and bits == 8
    if array.ndim != 2 and not is_colour:
        raise RadiographError(
            "Expected an array (height, width), or (height, width, 3 or 4) in uint8, "
            f"got {str(array.shape)[:40]} in uint{bits}; pass one image, channels last."
        )
    check_size(array.shape[1], array.shape[0])
    return Image.fromarray(to_8_bit(array) if bits == 16 else array)
