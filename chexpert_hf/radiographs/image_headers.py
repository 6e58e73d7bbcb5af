"""Headers of JPEG and TIFF data: size, precision and compression, read without decoding anything."""

import os
import struct
from typing import BinaryIO, NamedTuple

from PIL import TiffImagePlugin

_JPEG_COMMON = (0xC0, 0xC1, 0xC2)
_JPEG_RARE = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC9, 0xCA, 0xCD, 0xCE), "JPEG with arithmetic coding"),
    **dict.fromkeys((0xC5, 0xC6), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
"""Compressions that ordinary decoders lack, by the marker of the frame header."""

_TIFF_BITS, _TIFF_COMPRESSION = 258, 259
_TIFF_SHORT, _TIFF_LONG = 3, 4
_BIG_TIFF = 43

_TIFF_COMPRESSIONS = {
    **{32908: "PixarFilm", 32909: "PixarLog", 34661: "JBIG", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR"},
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
}
"""Names of compressions that Pillow does not know. Source: tag 259 in libtiff's tiff.h and tifffile's list."""


class FrameHeader(NamedTuple):
    """Description of a compressed image in its own header."""

    width: int
    height: int
    num_samples: int  # per pixel
    precision: int  # bits per sample
    rare_compression: str | None = None  # its name, where ordinary JPEG decoders do not have it


def read_jpeg_header(stream: BinaryIO) -> FrameHeader:
    """Reads the frame header of JPEG or JPEG-LS data, from the stream's beginning.

    Raises EOFError or struct.error if there is no complete one. Source: ISO/IEC 10918-1 annex B.2.2 (SOF), ISO/IEC
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
    """Kind ("TIFF" or "BigTIFF"), bits per sample if stated, and the compression's name if Pillow does not know it.

    Raises EOFError or struct.error if the first directory does not end within the file, which Pillow would let pass.
    Source: TIFF Revision 6.0, section 2; the BigTIFF design.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    is_big = struct.unpack(f"{order}H", stream.read(2))[0] == _BIG_TIFF
    if is_big:
        stream.seek(8)
    count, address, entry = ("Q", "Q", 20) if is_big else ("H", "L", 12)
    start = struct.unpack(f"{order}{address}", stream.read(8 if is_big else 4))[0]
    if start > num_bytes:
        raise EOFError
    stream.seek(start)
    num_entries = struct.unpack(f"{order}{count}", stream.read(8 if is_big else 2))[0]
    if stream.tell() + entry * num_entries + struct.calcsize(f"<{address}") > num_bytes:
        raise EOFError
    tags: dict[int, int | None] = {}
    for _ in range(min(num_entries, 1 << 16)):
        tag, kind, number = struct.unpack(f"{order}HH{address}", stream.read(entry - struct.calcsize(f"<{address}")))
        value = stream.read(struct.calcsize(f"<{address}"))
        is_number = kind in (_TIFF_SHORT, _TIFF_LONG) and number == 1
        tags[tag] = struct.unpack_from(f"{order}{'H' if kind == _TIFF_SHORT else 'L'}", value)[0] if is_number else None
    stream.seek(0)
    compression = tags.get(_TIFF_COMPRESSION) or 1
    rare = _TIFF_COMPRESSIONS.get(compression, f"unknown ({compression})")
    is_rare = compression not in TiffImagePlugin.COMPRESSION_INFO
    return "BigTIFF" if is_big else "TIFF", tags.get(_TIFF_BITS), rare if is_rare else None
