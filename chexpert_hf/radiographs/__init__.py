"""Radiographs: any file or array to an 8-bit grayscale image, and finding files in folders and archives."""
