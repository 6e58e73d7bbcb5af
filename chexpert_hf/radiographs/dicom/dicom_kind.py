"""Whether a DICOM file holds an image at all: reports, presentation states and directories hold none.

Source: DICOM PS3.4, B.5 (storage classes), PS3.10, 7.1 (file meta information).
"""

import os
from io import BytesIO
from typing import BinaryIO, cast

from pydicom.filereader import read_dataset
from pydicom.uid import UID

from chexpert_hf.radiographs.dicom.dicom import _silence
from chexpert_hf.radiographs.dicom.dicom_file import _MeteredStream, open_dataset, read_elements
from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError

_PREAMBLE_BYTES = 132
_STORAGE_CLASS = 0x00020002
_ROWS = 0x00280010


def names_an_image(head: bytes) -> bool | None:
    """Whether the storage class that a file's head names is one of images.

    Args:
        head: The first 512 bytes or more; the class is the second element of the file meta information.

    Returns:
        None if the class is private, unknown, none of storage, or not named.
    """
    stream = BytesIO(head)
    stream.seek(_PREAMBLE_BYTES if head[128:132] == b"DICM" else 0)
    try:
        with _silence():
            meta = read_dataset(
                cast(BinaryIO, _MeteredStream(stream)),
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=lambda tag, *_: tag > _STORAGE_CLASS,
                specific_tags=[_STORAGE_CLASS],
            )
            name = UID(str(meta[_STORAGE_CLASS].value)).name
    except (RadiographError, *MALFORMED):
        return None
    return "Image" in name if "Storage" in name else None


def describes_an_image(stream: BinaryIO) -> bool:
    """Whether a DICOM file has pixels or their size, or is too damaged to tell.

    Args:
        stream: The whole file, seekable.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    try:
        with _silence():
            data, syntax = open_dataset(stream, [])
            header = read_elements(data, syntax, [_ROWS])
            is_cut = data is stream and data.tell() > num_bytes
            return is_cut or bool(data.read(1)) or _ROWS in header
    except (RadiographError, *MALFORMED):
        return True  # the reader says what is wrong with it
