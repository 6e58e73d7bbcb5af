"""Reads the pixels of a DICOM file with one frame, such as a CR or DX radiograph, without trusting the file.

pydicom parses and its plugins decode. What is here decides in which order things are looked at, so that nothing is
inflated, allocated or decoded on the word of a header alone: the transfer syntax, then the few elements that describe
pixels (no other element is ever turned into a value), then sizes against each other, then the compressed image's own
header, then the pixels.
"""

import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, RLELossless

from chexpert_hf.data.codestreams import check_codestream, choose_plugin
from chexpert_hf.data.grey_levels import MALFORMED, RadiographError, check_size
from chexpert_hf.data.windowing import render

_KEYWORDS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
)
_TAGS = [cast(int, tag_for_keyword(keyword)) for keyword in _KEYWORDS]
_FILE_META_GROUP = 2
_PIXEL_DATA = 0x7FE00010
_FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
_GRAYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_MAX_HEADER_READS = 10_000
"""A radiograph's header takes some hundreds; a file of a million tiny items would keep pydicom busy for a minute."""

_MAX_HEADER_BYTES = 16_000_000
"""What may be read, not skipped, before the pixels: lookup tables, at most 128 kB each."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_QUIET = threading.Lock()


def read_dicom(stream: BinaryIO, max_pixels: int) -> NDArray[np.uint8]:
    """Reads and renders a DICOM file's one frame.

    Args:
        stream: The whole file, seekable, with "DICM" at byte 128.
        max_pixels: The header's rows x columns is checked against it before decoding.

    Returns:
        `(rows, columns)`, rendered as `windowing.render` says; `(rows, columns, 3)` in RGB for colour images.

    Raises:
        RadiographError: If the file is damaged, cut short, too large, or not one frame of at most 16 bits, or if no
            decoder for its compression is installed.
    """
    try:
        with _silence():
            return _read(stream, max_pixels)
    except RadiographError:
        raise
    except MALFORMED:
        raise RadiographError(
            "The DICOM file is damaged or cut short, expected a complete one; copy or export it again."
        ) from None
    except BaseException as error:
        # The RLE decoder is written in Rust; where damaged data lead it out of bounds it panics, which is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise RadiographError("The RLE data in the DICOM file are damaged; copy or export it again.") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what pydicom warns of and logs to itself, since it quotes values. One thread at a time: both are global."""
    logger = logging.getLogger("pydicom")
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        propagates, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagates


def _read(stream: BinaryIO, max_pixels: int) -> NDArray[np.uint8]:
    stream.seek(132)
    syntax = _read_transfer_syntax(stream)
    header = _read_header(stream, syntax)
    vr, length = _read_pixel_element(stream, header)
    _check_image(header, max_pixels)
    if syntax.is_encapsulated:
        plugin = choose_plugin(syntax, header.BitsStored)
        codestream = _read_fragments(stream, length, max_bytes=2 * _num_bytes(header) + 1_000_000)
        check_codestream(codestream, syntax, header.Columns, header.Rows, header.SamplesPerPixel)
        pixels = _decode(encapsulate([codestream]), header, syntax, plugin, vr)
    else:
        pixels = _decode(_read_native(stream, length, header), header, syntax, "", vr)
    return pixels.astype(np.uint8, copy=False) if header.SamplesPerPixel == 3 else render(pixels, header)


class _MeteredStream:
    """A stream that ends the patience with a header: pydicom's parser stops at nothing but the end of the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read
        self._num_reads = _MAX_HEADER_READS
        self._num_bytes = _MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        self._num_reads -= 1
        self._num_bytes -= max(size, 0)
        if size < 0 or self._num_reads < 0 or self._num_bytes < 0:
            raise RadiographError(
                f"Expected a DICOM header of at most {_MAX_HEADER_READS:,} parts and "
                f"{_MAX_HEADER_BYTES // 1_000_000} MB, got more; export the image again."
            )
        return self._read(size)


def _read_transfer_syntax(stream: BinaryIO) -> UID:
    file_meta = read_dataset(
        cast(BinaryIO, _MeteredStream(stream)),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: tag >> 16 != _FILE_META_GROUP,
    )
    syntax = UID(file_meta.get("TransferSyntaxUID") or "")
    if syntax not in AllTransferSyntaxes:
        raise RadiographError("Expected a standard DICOM transfer syntax, got none or another; export the image again.")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise RadiographError(
            f"Expected a DICOM file whose header is readable, got {syntax.name}; convert it to uncompressed."
        )
    return syntax


def _read_header(stream: BinaryIO, syntax: UID) -> Dataset:
    """The elements of `_KEYWORDS`; the stream then stands at the pixel element, or at its end."""
    return read_dataset(
        cast(BinaryIO, _MeteredStream(stream)),
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, *_: tag in (_PIXEL_DATA, *_FLOAT_PIXEL_DATA),
        specific_tags=_TAGS,
    )


def _read_pixel_element(stream: BinaryIO, header: Dataset) -> tuple[str, int]:
    """Value representation and length of the pixel element, at whose value the stream then stands."""
    start = stream.read(8)
    if len(start) < 8:
        raise RadiographError("Expected an image, the DICOM file holds no pixels or is cut short; choose another file.")
    is_implicit, is_little = header.original_encoding  # as found, which may differ from the transfer syntax
    byte_order = "<" if is_little else ">"
    group, element = struct.unpack_from(f"{byte_order}HH", start)
    if (group << 16) + element != _PIXEL_DATA:
        raise RadiographError("Expected whole-number DICOM pixels, got floating point ones; choose another file.")
    if is_implicit:
        return "OW", struct.unpack_from(f"{byte_order}L", start, 4)[0]
    return start[4:6].decode("ascii"), struct.unpack(f"{byte_order}L", stream.read(4))[0]


def _check_image(header: Dataset, max_pixels: int) -> None:
    num_frames = int(header.get("NumberOfFrames") or 1)
    if num_frames != 1:
        raise RadiographError(f"Expected a radiograph, the DICOM file has {num_frames} frames; export one of them.")
    check_size(header.Columns, header.Rows, max_pixels)
    num_samples, photometric = header.SamplesPerPixel, header.PhotometricInterpretation
    is_gray = num_samples == 1 and photometric in _GRAYS and header.BitsAllocated in (8, 16)
    is_colour = num_samples == 3 and photometric in _COLOURS and header.BitsAllocated == 8
    if not is_gray and not is_colour:
        raise RadiographError(
            "Expected DICOM pixels in MONOCHROME1 or 2 of 8 or 16 bits, or in 8-bit RGB or YBR, got another kind; "
            "export the image as one of these."
        )
    if not 0 <= header.BitsStored - 1 <= _high_bit(header) < header.BitsAllocated:
        raise RadiographError("Expected a DICOM high bit that fits the bits stored, got another; export it again.")


def _high_bit(header: Dataset) -> int:
    return cast(int, header.get("HighBit", header.BitsStored - 1))


def _num_bytes(header: Dataset) -> int:
    """The decoded image's size in memory."""
    return cast(int, header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8)


def _read_native(stream: BinaryIO, length: int, header: Dataset) -> bytes:
    start = stream.tell()
    num_bytes = _num_bytes(header)
    if header.PhotometricInterpretation == "YBR_FULL_422":  # two pixels share their colour
        num_bytes = num_bytes // 3 * 2
    if not num_bytes <= length < 2 * num_bytes + num_bytes % 2:
        raise RadiographError(
            f"Expected {num_bytes:,} bytes of pixels by the DICOM header, got {length:,}; export the image again."
        )
    data = stream.read(num_bytes + num_bytes % 2)
    if stream.seek(0, os.SEEK_END) < start + length:
        raise EOFError
    return data


def _read_fragments(stream: BinaryIO, length: int, max_bytes: int) -> bytes:
    """Joins the fragments of one frame. Source: DICOM PS3.5, A.4."""
    if length != _UNDEFINED_LENGTH:
        raise EOFError
    fragments: list[bytes] = []
    while True:
        *tag, length = struct.unpack("<HHL", stream.read(8))
        if tuple(tag) == _SEQUENCE_END:
            return b"".join(fragments[1:])  # the first holds offsets of frames
        max_bytes -= 8 + length
        if tuple(tag) != _ITEM or max_bytes < 0:
            raise EOFError
        fragments.append(stream.read(length))  # where it is cut short, the next item's header is missing


def _decode(data: bytes, header: Dataset, syntax: UID, plugin: str, vr: str) -> NDArray[np.integer]:
    options: dict[str, Any] = as_pixel_options(header, pixel_keyword="PixelData", pixel_vr=vr)
    unused_low_bits = 0
    if not syntax.is_encapsulated or syntax == RLELossless:  # other compressions do not keep where in the word bits lay
        unused_low_bits = _high_bit(header) + 1 - header.BitsStored
        options["bits_stored"] = _high_bit(header) + 1
    pixels, _ = get_decoder(syntax).as_array(data, index=0, decoding_plugin=plugin, **options)
    if pixels.shape[:2] != (header.Rows, header.Columns):
        raise EOFError
    return pixels >> unused_low_bits if unused_low_bits else pixels
