"""Calibration of probabilities, and choice of operating points."""
