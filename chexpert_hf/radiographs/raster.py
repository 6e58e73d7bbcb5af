"""Decodes JPEG, PNG, TIFF, BMP and WebP files, and Pillow images, to 8-bit grayscale.

Pillow decodes; what is here chooses the format by content, refuses before decoding what is too large, and after it what
Pillow would let pass: parts that are missing, several frames, colours whose lower 8 bits it would drop.
"""

import math
import os
import struct
import zlib
from typing import BinaryIO, cast

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from chexpert_hf.radiographs.grey_levels import MALFORMED, NotFetchedError, RadiographError, check_size, to_8_bit
from chexpert_hf.radiographs.image_headers import TIFF_COMPRESSIONS, read_jpeg_header, read_tiff_header
from chexpert_hf.radiographs.unfetched import pointer_of

DRAFT_MARGIN = 1.75
"""A JPEG decoder may scale down while both sides keep this many times the target size.

Measured on 12 radiographs of ChestX-ray14, enlarged to 2320 x 2828 and then resized to 320 x 320: against full decoding
.20 grey levels on average, single pixels up to 13. A margin of 2 gives .10 and 3, and takes half as long again for
reading and resizing together; a margin of 1 gives .66 on average.
"""

_MAX_PNG_CHUNKS = 1 << 16
_MAX_PNG_TEXTS = 16
"""Pillow inflates each compressed text of a PNG to up to 1 MB before it looks at the image."""

_EXIF_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation (CIPA DC-008, tag 0x0112)."""

_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_MAX_FIRST_ELEMENT = 256
"""Bytes: the first element of a data set is a group's length, a character set, an image type or a UID."""

_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0


def format_of(head: bytes) -> str:
    """Names the format that a file's first bytes announce.

    Args:
        head: At least 132 bytes, or the whole file.

    Returns:
        "JPEG", "PNG", "TIFF" (BigTIFF, too), "BMP", "WebP" or "DICOM".

    Raises:
        RadiographError: If it is none of these.
        NotFetchedError: If it is a pointer to content elsewhere.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if _begins_with_element(head):
        return "DICOM"
    if pointer := pointer_of(head):
        raise NotFetchedError(f"Expected an image, the content has not been fetched: this is {pointer}")
    raise RadiographError(
        "Expected a JPEG, PNG, TIFF, BMP, WebP or DICOM file, the content is none of these; "
        "export the radiograph in one of them."
    )


def _begins_with_element(head: bytes) -> bool:
    """Whether a file begins with a DICOM element, without a preamble: of group 2 or 8, explicit or implicit."""
    if len(head) < 8 or head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    if head[4:6].isalpha():
        return head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return head[:2] == b"\x08\0" and head[3] == 0 and length % 2 == 0 and length <= _MAX_FIRST_ELEMENT


def read_raster(
    stream: BinaryIO, file_format: str, max_pixels: int, target_size: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes one image file.

    Args:
        stream: The whole file, seekable.
        file_format: As `format_of` named it.
        max_pixels: The size in the header is checked against it before decoding.
        target_size: As in `radiograph.read_radiograph`.

    Returns:
        The upright image in mode L, and the full image's `(width, height)` when upright.

    Raises:
        RadiographError: If the file is damaged, cut short, too large, or not one image with clear grey levels.
    """
    try:
        if file_format == "PNG":
            _check_png_chunks(stream)
        if file_format == "TIFF":
            read_tiff_header(stream)
        image = _open(stream, file_format)
        check_size(*image.size, max_pixels)
        _check_is_whole(image, stream)
        width, height = image.size
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            _draft(image, target_size)
        gray, sides_swap = _upright_gray(image)
    except RadiographError:
        raise
    except MALFORMED as error:
        raise RadiographError(_why_unreadable(stream, file_format, error)) from None
    return gray, (height, width) if sides_swap else (width, height)


def _why_unreadable(stream: BinaryIO, file_format: str, error: BaseException) -> str:
    """One line: a compression or layout that Pillow does not decode, or damage."""
    try:
        if file_format == "JPEG" and (rare := read_jpeg_header(stream).rare_compression):
            return _expected_common(f"{rare} in a JPEG file")
        if file_format == "TIFF":
            header = read_tiff_header(stream)
            kind = "BigTIFF" if header.is_big else "TIFF"
            if header.compression not in TiffImagePlugin.COMPRESSION_INFO:
                name = TIFF_COMPRESSIONS.get(header.compression, f"unknown ({header.compression})")
                return _expected_common(f"a {kind} image with {name} compression")
            if isinstance(error, SyntaxError):  # before anything is decoded
                return _expected_common(f"a {kind} image of another layout, {header.bits or 'several'} bits per sample")
    except MALFORMED:
        pass
    return f"The {file_format} image is damaged or cut short, expected a complete file; copy or export it again."


def _expected_common(found: str) -> str:
    return (
        f"Expected an image of 8 or 16 bits in a common compression, got {found}; convert it to a 16-bit PNG, for "
        "example with the package imagecodecs."
    )


def read_pillow(image: Image.Image, max_pixels: int) -> Image.Image:
    """Converts a Pillow image, decoded or only opened, to an upright one in mode L.

    Raises:
        RadiographError: If it cannot be decoded, is too large, or has no clear grey levels.
    """
    check_size(*image.size, max_pixels)
    try:
        gray, _ = _upright_gray(image)
    except RadiographError:
        raise
    except MALFORMED:
        raise RadiographError(
            "The Pillow image cannot be decoded, it is damaged, cut short or closed; open it again."
        ) from None
    return gray


def _open(stream: BinaryIO, file_format: str) -> ImageFile.ImageFile:
    # The format's own class instead of Image.open: no other format can take the file, and no warning about its size is
    # given before `check_size` has refused it.
    if file_format == "JPEG":
        return JpegImagePlugin.jpeg_factory(stream, "")
    classes: dict[str, type[ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
    }
    return classes[file_format](stream)


def _check_png_chunks(stream: BinaryIO) -> None:
    """Checks lengths, checksums and the end mark, since Pillow reads past a wrong checksum and a missing end.

    Source: PNG (Third Edition), W3C 2025, section 5.
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


def _check_is_whole(image: ImageFile.ImageFile, stream: BinaryIO) -> None:
    """Refuses further frames, and ends of file that Pillow does not miss."""
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with further pictures behind it
        raise RadiographError("Expected one radiograph per file, got several frames or pages; export one of them.")
    tile = image.tile[0] if image.tile else None
    if isinstance(image, BmpImagePlugin.BmpImageFile) and tile and tile.codec_name == "raw":
        _, bytes_per_row, _ = cast("tuple[str, int, int]", tile.args)
        if tile.offset + bytes_per_row * image.height > stream.seek(0, os.SEEK_END):
            raise EOFError


def _draft(image: JpegImagePlugin.JpegImageFile, target_size: int | None) -> None:
    side = None if target_size is None else math.ceil(DRAFT_MARGIN * target_size)
    image.draft("L", None if side is None else (side, side))


def _upright_gray(image: Image.Image) -> tuple[Image.Image, bool]:
    """A new image in mode L, turned by the EXIF orientation, and whether that swapped its sides."""
    gray = _gray_16_bit(image) if image.mode in _MODES_16_BIT else _gray_8_bit(image)
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    if orientation not in _TRANSPOSITIONS:
        return gray, False
    return gray.transpose(_TRANSPOSITIONS[orientation]), orientation >= 5


def _gray_16_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise RadiographError("Expected grey levels in 0..65535, got levels outside; save the image as 16-bit gray.")
    gray = Image.fromarray(to_8_bit(levels))
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO:
        return ImageChops.invert(gray)  # Pillow does so up to 8 bits and leaves 16 bits as they are
    return gray


def _gray_8_bit(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES_8_BIT:
        raise RadiographError(
            f"Expected 8-bit gray or colour or 16-bit gray, got mode {image.mode[:8]}; save as 8- or 16-bit gray."
        )
    if any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):  # Pillow would drop the lower 8 bits
        raise RadiographError("Expected 8-bit colour or 16-bit gray, got 16-bit colour; save the image as grayscale.")
    image.load()  # a PNG's transparency is known only now
    if not image.has_transparency_data:
        return image.convert("L")
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    return ImageChops.multiply(image.convert("L"), image.getchannel("A"))  # over black
