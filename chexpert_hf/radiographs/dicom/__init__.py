"""Reads DICOM files as 8-bit grey levels."""
