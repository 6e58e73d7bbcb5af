"""Data sets of radiographs with labels."""
