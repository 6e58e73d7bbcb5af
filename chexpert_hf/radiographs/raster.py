"""Decodes JPEG, PNG, TIFF, BMP and WebP files, and Pillow images, to 8-bit grayscale.

Pillow decodes. This module chooses the format by content, refuses images that are too large before they are decoded,
and refuses what Pillow would accept: truncated files, several frames, and 16-bit colours, whose lower 8 bits it drops.
"""

import math
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageChops, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError, check_size, refusing, to_8_bit
from chexpert_hf.radiographs.image_headers import read_jpeg_header, read_tiff_header
from chexpert_hf.radiographs.unfetched import refuse_pointer

# A JPEG decoder may scale down while both sides keep this many times the target size: .2 grey levels on average.
DRAFT_MARGIN = 1.75

_COLOURFUL_SHARE = 0.1  # of colourful pixels, above which an image is in colour; side marks may be colourful
_COLOURFUL_SPREAD = 32  # range of red, green and blue, above which a pixel is colourful; film is tinted faintly
_COLOUR_SIDE = 64
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

HEAD_BYTES = 512  # of a file: enough to tell its format and, in a DICOM file, the storage class

_MAX_PNG_CHUNKS = 1 << 16
_MAX_PNG_TEXTS = 16  # Pillow inflates each compressed one to up to 1 MB before it looks at the image

_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_MAX_FIRST_ELEMENT = 256  # bytes: a data set begins with a group's length, a character set, an image type or a UID
_TIFF_WHITE_IS_ZERO = 0

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    b"BM": "BMP",
}

# The format's own class instead of Image.open: no other format can take the file, and no warning about its size is
# given before `check_size` has refused it.
_OPENERS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "WebP": WebPImageFile,
}


def format_of(head: bytes) -> str:
    """Return the format that a file's first `HEAD_BYTES` bytes show: "JPEG", "PNG", "TIFF", "BMP", "WebP" or "DICOM".

    Raises RadiographError if it is none of these, and NotFetchedError if the file is a pointer of Git LFS or git-annex.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    if found := next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None):
        return found
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if _begins_with_element(head):
        return "DICOM"
    refuse_pointer(head)
    raise RadiographError(
        "Expected a JPEG, PNG, TIFF, BMP, WebP or DICOM file, the content is none of these; "
        "export the radiograph in one of them."
    )


def _begins_with_element(head: bytes) -> bool:
    """Return whether data begin with a DICOM element of group 2 or 8, as a DICOM file without a preamble does."""
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    if head[4:6].isalpha():
        return head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return head[:2] == b"\x08\0" and head[3] == 0 and length % 2 == 0 and length <= _MAX_FIRST_ELEMENT


def read_raster(
    stream: BinaryIO, file_format: str, target_size: int | None, *, with_colour: bool
) -> tuple[Image.Image, tuple[int, int], bool]:
    """Decode an image file, whose format is one from `format_of`; RadiographError if the file is damaged.

    Returns the upright image in mode L, the full image's `(width, height)` when upright, and whether it was in colour.
    If the caller will resize the image to `target_size` pixels, a large JPEG is scaled down while it is decoded, but
    its sides stay well above `target_size`. Without `with_colour`, colour is not checked, and the last returned value
    is always False. Checking costs time, since a colour JPEG has to be decoded a second time for it.
    """
    try:
        if file_format == "PNG":
            _check_png_chunks(stream)
        if file_format == "TIFF":
            read_tiff_header(stream)
        image = _OPENERS[file_format](stream)
        check_size(*image.size)
        _check_is_whole(image, stream)
        (width, height), is_gray = image.size, image.mode == "L"
        if isinstance(image, JpegImageFile):
            side = None if target_size is None else math.ceil(DRAFT_MARGIN * target_size)
            image.draft("L", None if side is None else (side, side))
        gray, sides_swap = _upright_gray(image)
    except MALFORMED as error:
        raise _unreadable(stream, file_format, error) from None
    if with_colour and file_format == "JPEG" and not is_gray:  # only its luma was decoded
        stream.seek(0)
        image = _OPENERS[file_format](stream)
        image.draft("RGB", (_COLOUR_SIDE, _COLOUR_SIDE))
    return gray, (height, width) if sides_swap else (width, height), with_colour and _is_colourful(image)


def _unreadable(stream: BinaryIO, file_format: str, error: Exception) -> RadiographError:
    """Return the error for an image that Pillow cannot decode: an unsupported compression or layout, else damage."""
    if isinstance(error, RadiographError):
        return error
    found = None
    with suppress(*MALFORMED):
        if file_format == "JPEG" and (rare := read_jpeg_header(stream).rare_compression):
            found = f"{rare} in a JPEG file"
        if file_format == "TIFF":
            kind, bits, rare = read_tiff_header(stream)
            if rare:
                found = f"a {kind} image with {rare} compression"
            elif isinstance(error, SyntaxError):  # before anything is decoded
                found = f"a {kind} image of another layout" + (f", {bits} bits per sample" if bits else "")
    if found is None:
        return RadiographError(
            f"The {file_format} image is damaged or cut short, expected a complete file; copy or export it again."
        )
    return RadiographError(
        f"Expected an image of 8 or 16 bits in a common compression, got {found}; convert it to a 16-bit PNG, for "
        "example with the package imagecodecs."
    )


def read_pillow(image: Image.Image, *, with_colour: bool) -> tuple[Image.Image, bool]:
    """Convert a Pillow image to upright mode L. Also return whether it was in colour, always False if not checked."""
    check_size(*image.size)
    with refusing("The Pillow image cannot be decoded, it is damaged, cut short or closed; open it again."):
        gray, _ = _upright_gray(image)
    return gray, with_colour and _is_colourful(image)


def _check_png_chunks(stream: BinaryIO) -> None:
    """Check a PNG file's chunks: their lengths, checksums, number and end mark. Pillow accepts files that fail here.

    Raise EOFError or struct.error for damage, RadiographError for too many chunks or text chunks. Source: PNG (Third
    Edition), section 5.
    """
    num_texts = 0
    stream.seek(8)
    for _ in range(_MAX_PNG_CHUNKS):
        length, kind = struct.unpack(">I4s", stream.read(8))
        checksum = zlib.crc32(kind)
        for start in range(0, length, 1 << 20):
            data = stream.read(min(1 << 20, length - start))
            if not data:
                raise EOFError
            checksum = zlib.crc32(data, checksum)
        if struct.unpack(">I", stream.read(4)) != (checksum,):
            raise EOFError
        num_texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if num_texts > _MAX_PNG_TEXTS:
            raise RadiographError(f"Expected at most {_MAX_PNG_TEXTS} texts in a PNG image, got more; save it again.")
        if kind == b"IEND":
            stream.seek(0)
            return
    raise RadiographError(f"Expected at most {_MAX_PNG_CHUNKS:,} parts in a PNG image, got more; save it again.")


def _check_is_whole(image: Image.Image, stream: BinaryIO) -> None:
    """Raise RadiographError for several frames, EOFError for a truncated BMP file; Pillow would accept both."""
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with further pictures behind it
        raise RadiographError("Expected one radiograph per file, got several frames or pages; export one of them.")
    for tile in image.tile if isinstance(image, BmpImageFile) else ():
        bytes_per_row = cast("tuple[str, int, int]", tile.args)[1] if tile.codec_name == "raw" else 0
        if tile.offset + bytes_per_row * image.height > stream.seek(0, os.SEEK_END):
            raise EOFError


def _upright_gray(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return a new image in mode L, turned by the EXIF orientation, and whether that swapped its width and height."""
    gray = _gray_16_bit(image) if image.mode in _MODES_16_BIT else _gray_8_bit(image)
    orientation = image.getexif().get(ExifTag.Orientation)
    gray.info = {}  # else damaged EXIF data in it would be written back
    if orientation in range(2, 9):
        gray.getexif()[ExifTag.Orientation] = orientation
        ImageOps.exif_transpose(gray, in_place=True)
    return gray, orientation in (5, 6, 7, 8)


def _gray_16_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise RadiographError("Expected grey levels in 0..65535, got levels outside; save the image as 16-bit gray.")
    gray = Image.fromarray(to_8_bit(levels))
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    # Pillow inverts up to 8 bits and leaves 16 bits as they are.
    return ImageChops.invert(gray) if tags.get(PHOTOMETRIC_INTERPRETATION) == _TIFF_WHITE_IS_ZERO else gray


def _gray_8_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES_8_BIT:
        raise RadiographError(f"Expected 8-bit gray or colour or 16-bit gray, got mode {image.mode[:8]}; convert it.")
    if any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):  # Pillow would drop the lower 8 bits
        raise RadiographError("Expected 8-bit colour or 16-bit gray, got 16-bit colour; save the image as grayscale.")
    image.load()  # a PNG's transparency is known only now
    if not image.has_transparency_data:
        return image.convert("L")
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    return ImageChops.multiply(image.convert("L"), image.getchannel("A"))  # over black


def _is_colourful(image: Image.Image) -> bool:
    if image.mode not in _COLOUR_MODES:
        return False
    side = (_COLOUR_SIDE, _COLOUR_SIDE)
    try:
        source = image if "R" in image.getbands() else image.convert("RGB")
        # Band by band, for a quarter of the memory.
        small = [source.getchannel(band).resize(side, Image.Resampling.BOX, reducing_gap=1.0) for band in "RGB"]
    except MALFORMED:
        return False
    spread = np.ptp(np.array([np.asarray(band, dtype=int) for band in small]), axis=0)  # (_COLOUR_SIDE, _COLOUR_SIDE)
    return float((spread > _COLOURFUL_SPREAD).mean()) > _COLOURFUL_SHARE
