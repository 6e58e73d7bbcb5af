"""Whether a DICOM file holds an image at all: reports, presentation states and directories hold none.

Source: DICOM PS3.4, B.5 (storage classes), PS3.10, 7.1 (file meta information).
"""

import os
from io import BytesIO
from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from chexpert_hf.data.dicom import _MeteredStream, _read_transfer_syntax, _silence
from chexpert_hf.data.grey_levels import MALFORMED, RadiographError

_PREAMBLE_BYTES = 132
_STORAGE_CLASS = 0x00020002
_ROWS = 0x00280010
_FIRST_PIXEL_ELEMENT = 0x7FE00008


def names_an_image(head: bytes) -> bool | None:
    """Whether the storage class that a file's head names is one of images.

    Args:
        head: The first 512 bytes or more, with "DICM" at byte 128; the class is the second element after that.

    Returns:
        None if the class is private, unknown, none of storage, or not named.
    """
    stream = BytesIO(head)
    stream.seek(_PREAMBLE_BYTES)
    try:
        with _silence():
            meta = _read_until(stream, _STORAGE_CLASS + 1, is_implicit=False, is_little_endian=True)
            name = UID(str(meta[_STORAGE_CLASS].value)).name
    except (RadiographError, *MALFORMED):
        return None
    return "Image" in name if "Storage" in name else None


def describes_an_image(stream: BinaryIO) -> bool:
    """Whether a DICOM file has pixels or their size, or is too damaged to tell.

    Args:
        stream: The whole file, seekable, with "DICM" at byte 128.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(_PREAMBLE_BYTES)
    try:
        with _silence():
            syntax = _read_transfer_syntax(stream)
            header = _read_until(stream, _FIRST_PIXEL_ELEMENT, syntax.is_implicit_VR, syntax.is_little_endian)
    except (RadiographError, *MALFORMED):
        return True  # the reader says what is wrong with it
    # In front of the pixels, or behind the end: the file is cut short.
    return stream.tell() != num_bytes or _ROWS in header


def _read_until(stream: BinaryIO, end: int, is_implicit: bool, is_little_endian: bool) -> Dataset:
    """Storage class and rows, if they come before the element `end`; the stream then stands there, or at its end."""
    return read_dataset(
        cast(BinaryIO, _MeteredStream(stream)),
        is_implicit,
        is_little_endian,
        stop_when=lambda tag, *_: tag >= end,
        specific_tags=[_STORAGE_CLASS, _ROWS],
    )
