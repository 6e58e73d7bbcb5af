"""DICOM files to gray levels."""
