"""Scores folders of radiographs, of any size, and writes the scores to tables."""
