"""Headers of JPEG and TIFF data: size, precision and compression, read without decoding anything."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

_JPEG_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0 to SOF15, and JPEG-LS
_JPEG_COMMON = (0xC0, 0xC1, 0xC2)
_JPEG_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_JPEG_ARITHMETIC = (0xC9, 0xCA, 0xCD, 0xCE)
_JPEG_LS = 0xF7
_FILL = 0xFF

_TIFF_BITS, _TIFF_COMPRESSION = 258, 259
_TIFF_SHORT, _TIFF_LONG = 3, 4
_BIG_TIFF = 43

TIFF_COMPRESSIONS = {
    32908: "PixarFilm",
    32909: "PixarLog",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34712: "JPEG 2000",
    34887: "LERC",
    34933: "PNG",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Names of compressions that Pillow does not know. Source: tag 259 in libtiff's tiff.h and tifffile's list."""


@dataclass(frozen=True)
class FrameHeader:
    """Description of a compressed image in its own header.

    Attributes:
        width: In pixels.
        height: In pixels.
        num_samples: Per pixel.
        precision: Bits per sample.
        rare_compression: Name of the compression where ordinary JPEG decoders do not have it.
    """

    width: int
    height: int
    num_samples: int
    precision: int
    rare_compression: str | None = None


def read_jpeg_header(stream: BinaryIO) -> FrameHeader:
    """Reads the frame header of JPEG or JPEG-LS data.

    Args:
        stream: Seekable, with the data from its beginning.

    Raises:
        EOFError: If there is no frame header where one belongs.
        struct.error: If the data end before the frame header.

    Source: ISO/IEC 10918-1 annex B.2.2 (SOF), ISO/IEC 14495-1 annex C.2.2.
    """
    position = 2
    while True:
        stream.seek(position)
        prefix, marker, length = struct.unpack(">BBH", stream.read(4))
        if prefix != _FILL:
            raise EOFError
        if marker in _JPEG_FRAME_HEADERS:
            precision, height, width, num_samples = struct.unpack(">BHHB", stream.read(6))
            return FrameHeader(width, height, num_samples, precision, _rare_jpeg(marker, precision))
        position += 1 if marker == _FILL else 2 + length


def _rare_jpeg(marker: int, precision: int) -> str | None:
    if marker == _JPEG_LS:
        return "JPEG-LS"
    if marker in _JPEG_LOSSLESS:
        return "lossless JPEG"
    if marker in _JPEG_ARITHMETIC:
        return "JPEG with arithmetic coding"
    if marker not in _JPEG_COMMON:
        return "hierarchical JPEG"
    return None if precision == 8 else f"{precision}-bit JPEG"


@dataclass(frozen=True)
class TiffHeader:
    """Description of the first image of a TIFF or BigTIFF file.

    Attributes:
        bits: Per sample; None if not stated.
        compression: The code in tag 259; 1 is none.
        is_big: Whether it is a BigTIFF file, with addresses of 64 bits.
    """

    bits: int | None
    compression: int
    is_big: bool


def read_tiff_header(stream: BinaryIO) -> TiffHeader:
    """Reads the first directory of a TIFF or BigTIFF file.

    Args:
        stream: The whole file, seekable; it is rewound.

    Raises:
        EOFError: If the directory does not end within the file; Pillow would take the entries that are left of it.
        struct.error: If the file ends before the directory.

    Source: TIFF Revision 6.0, Adobe 1992, section 2; the BigTIFF design, AWare Systems 2004.
    """
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    is_big = struct.unpack(f"{order}H", stream.read(2))[0] == _BIG_TIFF
    if is_big:
        stream.seek(8)
    count, address, entry = ("Q", "Q", 20) if is_big else ("H", "L", 12)
    start = struct.unpack(f"{order}{address}", stream.read(8 if is_big else 4))[0]
    if start > stream.seek(0, os.SEEK_END):
        raise EOFError
    stream.seek(start)
    num_entries = struct.unpack(f"{order}{count}", stream.read(8 if is_big else 2))[0]
    first = stream.tell()
    if first + entry * num_entries + struct.calcsize(f"<{address}") > stream.seek(0, os.SEEK_END):
        raise EOFError
    stream.seek(first)
    tags = dict(_tiff_entry(stream.read(entry), order) for _ in range(min(num_entries, 1 << 16)))
    stream.seek(0)
    return TiffHeader(tags.get(_TIFF_BITS), tags.get(_TIFF_COMPRESSION) or 1, is_big)


def _tiff_entry(entry: bytes, order: str) -> tuple[int, int | None]:
    """Tag and value; None where the value is no single whole number."""
    tag, kind = struct.unpack(f"{order}HH", entry[:4])
    count, value = (entry[4:8], entry[8:]) if len(entry) == 12 else (entry[4:12], entry[12:])
    if kind not in (_TIFF_SHORT, _TIFF_LONG) or int.from_bytes(count, "little" if order == "<" else "big") != 1:
        return tag, None
    return tag, struct.unpack_from(f"{order}{'H' if kind == _TIFF_SHORT else 'L'}", value)[0]
