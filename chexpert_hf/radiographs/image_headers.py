"""Headers of JPEG and TIFF data: size, precision and compression, read without decoding anything."""

import os
import struct
from typing import BinaryIO, NamedTuple

from PIL import TiffImagePlugin, TiffTags

_JPEG_COMMON = (0xC0, 0xC1, 0xC2)
_JPEG_RARE = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC9, 0xCA, 0xCD, 0xCE), "JPEG with arithmetic coding"),
    **dict.fromkeys((0xC5, 0xC6), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
"""Compressions that ordinary decoders lack, by the marker of the frame header."""

_BIG_TIFF = 43

_TIFF_COMPRESSIONS = {
    **{32908: "PixarFilm", 32909: "PixarLog", 34661: "JBIG", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR"},
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
}
"""Names of compressions that Pillow does not know. Source: tag 259 in libtiff's tiff.h and tifffile's list."""


class FrameHeader(NamedTuple):
    """Size and encoding of a compressed image (JPEG, JPEG-LS or JPEG 2000), as its own header states them."""

    width: int
    height: int
    num_samples: int  # per pixel
    precision: int  # bits per sample
    rare_compression: str | None = None  # name of a compression that ordinary JPEG decoders lack, such as "JPEG-LS"


def read_jpeg_header(stream: BinaryIO) -> FrameHeader:
    """Read the frame header of JPEG or JPEG-LS data that begin at position 0 of the stream.

    Raises EOFError or struct.error if it is missing or cut short. Source: ISO/IEC 10918-1 annex B.2.2 (SOF), ISO/IEC
    14495-1 annex C.2.2.
    """
    position = 2
    while True:
        stream.seek(position)
        prefix, marker, length = struct.unpack(">BBH", stream.read(4))
        if prefix != 0xFF:
            raise EOFError
        if marker in _JPEG_COMMON or marker in _JPEG_RARE:
            precision, height, width, num_samples = struct.unpack(">BHHB", stream.read(6))
            rare = _JPEG_RARE.get(marker, None if precision == 8 else f"{precision}-bit JPEG")
            return FrameHeader(width, height, num_samples, precision, rare)
        position += 1 if marker == 0xFF else 2 + length  # 0xFF: a fill byte


def read_tiff_header(stream: BinaryIO) -> tuple[str, int | None, str | None]:
    """Return a TIFF file's kind, its bits per sample, and the name of its compression.

    The kind is "TIFF" or "BigTIFF". The bits are None unless the file states a single number for them; a colour image
    may state one for each channel. The compression is named, such as "JPEG 2000", only if Pillow cannot decode it, else
    None.

    Raises EOFError or struct.error if the directory of the first image is cut short; Pillow does not check this.
    Source: TIFF Revision 6.0, section 2; the BigTIFF design.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head.startswith(b"II") else ">"
    is_big = struct.unpack_from(f"{order}H", head, 2)[0] == _BIG_TIFF
    first, count, address = (8, "Q", "Q") if is_big else (4, "H", "L")
    (start,) = struct.unpack_from(f"{order}{address}", head, first)
    if start > num_bytes:
        raise EOFError
    stream.seek(start)
    (num_entries,) = struct.unpack(f"{order}{count}", stream.read(8 if is_big else 2))
    entry = struct.Struct(f"{order}HH{address}{first}s")  # an address is as long as the part before the first one
    if stream.tell() + entry.size * num_entries + first > num_bytes:
        raise EOFError
    tags: dict[int, int] = {}  # those with one whole number as value
    for tag, kind, number, value in entry.iter_unpack(stream.read(entry.size * min(num_entries, 1 << 16))):
        if kind in (TiffTags.SHORT, TiffTags.LONG) and number == 1:
            (tags[tag],) = struct.unpack_from(f"{order}{'H' if kind == TiffTags.SHORT else 'L'}", value)
    stream.seek(0)
    compression = tags.get(TiffImagePlugin.COMPRESSION) or 1
    rare = _TIFF_COMPRESSIONS.get(compression, f"unknown ({compression})")
    is_rare = compression not in TiffImagePlugin.COMPRESSION_INFO
    return "BigTIFF" if is_big else "TIFF", tags.get(TiffImagePlugin.BITSPERSAMPLE), rare if is_rare else None
