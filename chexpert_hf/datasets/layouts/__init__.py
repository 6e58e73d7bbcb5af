"""Layouts of public data sets, of any CSV file and of image folders, one module each."""
