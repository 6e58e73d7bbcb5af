"""Data sets of radiographs with labels: reading them in many layouts, and checking their files."""
