"""Evaluation of models: metrics with confidence intervals, reports, calibration, and checks of saliency maps."""
