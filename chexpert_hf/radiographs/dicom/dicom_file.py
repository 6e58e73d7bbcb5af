"""Opens a DICOM file's data set: finds out its transfer syntax, and limits the length of its header."""

import os
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, cast

from pydicom import Dataset, uid
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from chexpert_hf.radiographs.grey_levels import RadiographError

_PREAMBLE_BYTES = 132
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # floating point, double, whole numbers

_MAX_HEADER_READS = 10_000  # a radiograph's header takes hundreds; pydicom would read a million tiny items for a minute
_MAX_HEADER_BYTES = 16_000_000  # read, not skipped; a lookup table has at most 128 kB
_MAX_INFLATED_HEADER_BYTES = 8_000_000  # read or skipped
_MAX_REST_BYTES = 1_000_000


class InflatedStream(BytesIO):
    """Decompresses a deflated data set: first `read` reads the header, then `read_last` reads the pixels.

    The header may have up to 8 MB, or `read` raises RadiographError. The pixels may have any size.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        super().__init__(self._inflater.decompress(stream.read(), _MAX_INFLATED_HEADER_BYTES))

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size and len(data) < size and self._inflater.unconsumed_tail:
            raise RadiographError(
                f"Expected at most {_MAX_INFLATED_HEADER_BYTES:,} bytes in the deflated DICOM data before the pixels, "
                "got more; convert the file to uncompressed."
            )
        return data

    def read_last(self, size: int) -> bytes:
        """Read the pixels, `size` bytes, as the last read of the stream.

        Up to 1 MB of the data after the pixels is decompressed, too, to find out whether the file was cut short.
        Raises EOFError if the compressed data stop before their end mark, among the pixels or in this megabyte.
        """
        data = super().read(size)
        rest = self._inflater.decompress(self._inflater.unconsumed_tail, size - len(data) + _MAX_REST_BYTES)
        if not self._inflater.eof and len(rest) < size - len(data) + _MAX_REST_BYTES:
            raise EOFError
        return data + rest[: size - len(data)]


class _MeteredStream:
    """A stream that raises RadiographError after too many reads or bytes, since pydicom does not limit headers."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read
        self._num_reads, self._num_bytes = _MAX_HEADER_READS, _MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        self._num_reads -= 1
        self._num_bytes -= max(size, 0)
        if size < 0 or self._num_reads < 0 or self._num_bytes < 0:
            raise RadiographError(
                f"Expected a DICOM header of at most {_MAX_HEADER_READS:,} parts and "
                f"{_MAX_HEADER_BYTES // 1_000_000} MB, got more; export the image again."
            )
        return self._read(size)


def read_meta(stream: BinaryIO, last: int = 0x0002FFFF) -> Dataset:
    """Read a file's meta information, the elements of group 2; empty if the file has none.

    `last` is the last tag to read; by default, the whole group is read. The file may lack the preamble of 128 bytes.
    """
    stream.seek(0)
    has_preamble = stream.read(_PREAMBLE_BYTES)[128:] == b"DICM"
    stream.seek(_PREAMBLE_BYTES if has_preamble else 0)
    return read_dataset(
        cast(BinaryIO, _MeteredStream(stream)),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: not 0x00020000 <= tag <= last,
    )


def open_dataset(stream: BinaryIO, notes: list[str]) -> tuple[BinaryIO, UID]:
    """Read the file meta information; return a stream positioned at the data set, and the transfer syntax.

    The stream is decompressed if the data set is deflated. A missing transfer syntax is guessed from the data set's
    first bytes, with a line in `notes`. Raises RadiographError if the transfer syntax is not a standard one.
    """
    syntax = UID(read_meta(stream).get("TransferSyntaxUID") or "")
    if not syntax:
        syntax = _likely_syntax(stream)
        notes.append(f"TransferSyntaxUID is missing; the file was read as {syntax.name}.")
    if syntax not in uid.AllTransferSyntaxes:
        raise RadiographError("Expected a standard DICOM transfer syntax, got another; export the image again.")
    return InflatedStream(stream) if syntax == uid.DeflatedExplicitVRLittleEndian else stream, syntax


def read_elements(stream: BinaryIO, syntax: UID, tags: Sequence[int]) -> Dataset:
    """Read the elements with these tags that come before the pixels; leave the stream at the pixels, or at its end."""
    return read_dataset(
        cast(BinaryIO, _MeteredStream(stream)),
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, *_: tag in _PIXELS,
        specific_tags=[*tags],
    )


def _likely_syntax(stream: BinaryIO) -> UID:
    """Guess which uncompressed transfer syntax the next 8 bytes are in, without moving the stream."""
    head = stream.read(8)
    stream.seek(-len(head), os.SEEK_CUR)
    if len(head) < 8:
        raise EOFError
    if not head[4:6].isalpha():
        return uid.ImplicitVRLittleEndian
    (group,) = struct.unpack("<H", head[:2])
    return uid.ExplicitVRLittleEndian if group < 1 << 8 else uid.ExplicitVRBigEndian
