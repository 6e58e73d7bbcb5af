"""Runs the command line: `python -m chexpert_hf.cli`."""

from chexpert_hf.cli.app import main

main()
