"""Small DICOM files for tests of what is found in folders, archives and data sets."""

import io

import numpy as np
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


def dicom_of(grey: np.ndarray) -> bytes:
    """A DICOM file of an 8-bit radiograph `(height, width)`."""
    height, width = grey.shape
    pixels = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": height, "Columns": width}
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    storage_class = "1.2.840.10008.5.1.4.1.1.1"  # computed radiography
    return dicom_without_pixels(storage_class, Modality="CR", **pixels, **depth, PixelData=grey.tobytes())
