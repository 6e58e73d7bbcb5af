"""The command line `chexpert-hf`, one thin command per capability. Heavy imports happen inside the commands."""

# Each adds its commands to the application; `--help` shows them in this order.
from chexpert_hf.cli import predicting, quickstart, training, evaluating, localizing, publishing, converting  # noqa: F401, I001
from chexpert_hf.cli.app import app, main

__all__ = ["app", "main"]
