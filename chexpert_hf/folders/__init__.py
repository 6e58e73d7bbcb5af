"""Folders of radiographs, of any size, to tables of scores."""
