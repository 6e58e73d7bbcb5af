"""DICOM files for tests of what is found in folders and archives."""

import io

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def dicom_without_pixels(storage_class: str | None, **elements: object) -> bytes:
    """A DICOM file of a storage class, or of none; `elements` are added."""
    dataset = Dataset()
    dataset.preamble = bytes(128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if storage_class is not None:
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage_class
    dataset.PatientID = "1"
    dataset.ContentSequence = [Dataset()]
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()
