"""The view of a DICOM radiograph, from two elements of its header; no other element is ever turned into a value."""

from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from chexpert_hf.radiographs.dicom.dicom import _silence
from chexpert_hf.radiographs.dicom.dicom_file import open_dataset, read_elements
from chexpert_hf.radiographs.dicom.dicom_values import read_text, read_texts
from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError

_TAGS = [cast(int, tag_for_keyword(keyword)) for keyword in ("ViewPosition", "PatientOrientation")]

_IS_LATERAL = {"AP": False, "PA": False, "LL": True, "RL": True, "LAT": True, "LATERAL": True}
"""By View Position. Source: DICOM PS3.3, C.8.1.1; the last two are written by some machines."""


def read_is_lateral(stream: BinaryIO) -> bool | None:
    """Whether a DICOM file is a lateral view.

    Args:
        stream: The whole file, seekable; `dicom.read_dicom` has read it without an error.

    Returns:
        None where the header does not say, or says something else than frontal or lateral.
    """
    try:
        with _silence():
            return _is_lateral(read_elements(*open_dataset(stream, []), _TAGS))
    except (RadiographError, *MALFORMED):
        return None  # the reader has refused what it cannot read


def _is_lateral(header: Dataset) -> bool | None:
    view = read_text(header, "ViewPosition")
    if view in _IS_LATERAL:
        return _IS_LATERAL[view]
    # Which way rows and columns go: in a lateral view, and in no other, rows go forwards or backwards and columns down.
    orientation = read_texts(header, "PatientOrientation")
    rows, columns = (way[:1] for way in orientation) if len(orientation) == 2 else ("", "")
    if columns != "F" or rows not in ("A", "P", "L", "R"):
        return None
    return rows in ("A", "P")
