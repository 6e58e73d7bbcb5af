"""Metrics of a model with confidence intervals, reports, calibration, and evaluations of its maps."""
