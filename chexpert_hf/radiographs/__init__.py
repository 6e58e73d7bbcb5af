"""Reads any file or array as an 8-bit grayscale radiograph, and finds radiographs in folders and archives."""
