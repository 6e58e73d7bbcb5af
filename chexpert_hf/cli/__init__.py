"""The command line: one thin command per capability. Heavy imports happen inside the commands."""

from chexpert_hf.cli import (  # noqa: F401 - each adds its commands to the application
    converting,
    evaluating,
    localizing,
    predicting,
    publishing,
    training,
)
from chexpert_hf.cli.app import app, main

__all__ = ["app", "main"]
