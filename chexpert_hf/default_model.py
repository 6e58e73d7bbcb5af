"""The bundled model: it comes with the package, and is used where no model is named."""

import warnings
from pathlib import Path

DEFAULT_NAME = "nih"

DEFAULT_MODEL = Path(__file__).with_name("nih")
"""A DenseNet121 trained on 1,679 radiographs of ChestX-ray14; see `train/bundled_model.py`."""


def resolve_model(model: str | Path) -> str | Path:
    """Translates the name of the bundled model into its folder; anything else is returned unchanged.

    A folder of that name in the current folder takes precedence, with a warning.
    """
    if str(model) != DEFAULT_NAME:
        return model
    if not Path(DEFAULT_NAME).is_dir():
        return DEFAULT_MODEL
    folder = Path(DEFAULT_NAME).resolve()
    warnings.warn(f"Using the folder {folder}, not the bundled model of the same name.", stacklevel=2)
    return folder
