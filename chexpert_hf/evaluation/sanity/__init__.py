"""Sanity checks of saliency maps."""
