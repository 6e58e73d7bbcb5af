"""The bundled model: it comes with the package, and is used where no model is named."""

import warnings
from pathlib import Path

DEFAULT_NAME = "nih"

DEFAULT_MODEL = Path(__file__).with_name("nih")
"""A DenseNet121 trained on 1,679 radiographs of ChestX-ray14; see `train/bundled_model.py`."""


def resolve_model(model: str | Path) -> str | Path:
    """Return the bundled model's folder for its name "nih"; any other path or repository id is returned unchanged.

    If the current folder contains a folder "nih", return that one, with a warning.
    """
    if str(model) != DEFAULT_NAME:
        return model
    if not Path(DEFAULT_NAME).is_dir():
        return DEFAULT_MODEL
    folder = Path(DEFAULT_NAME).resolve()
    warnings.warn(f"Using the folder {folder}, not the bundled model of the same name.", stacklevel=2)
    return folder
