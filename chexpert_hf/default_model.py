"""The model that comes with the package, for when none is named: it works, and it is not a clinical one."""

from pathlib import Path

DEFAULT_MODEL = Path(__file__).with_name("nih_mini")
"""A DenseNet121 trained on 582 radiographs of ChestX-ray14; see `train/model_in_the_box.py`."""

ABOUT_DEFAULT_MODEL = (
    "No --model: this is the one in the box, trained on 582 radiographs to show that everything works, not for "
    f"clinical use. Its card: {DEFAULT_MODEL / 'README.md'}"
)
