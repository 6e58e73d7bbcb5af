"""The command line: one thin command per capability. Heavy imports happen inside the commands."""

from chexpert_hf.cli import evaluating, exporting, localizing, predicting, training  # noqa: F401 - each adds commands
from chexpert_hf.cli.app import app, main

__all__ = ["app", "main"]
