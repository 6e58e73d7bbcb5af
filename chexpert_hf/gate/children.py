"""Tells frontal radiographs of children from those of adults, by a linear discriminant of the gate's features.

Its weights are in `children.safetensors`; `python -m train.child_discriminant` makes that file.
"""

from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from chexpert_hf.files import make_readable
from chexpert_hf.gate.features import Floats

CHILD_AGE = 12
"""Patients below this age, in years, count as children."""

CHILD_QUANTILE = 0.995
"""Fraction of adults whose radiographs are not taken for a child's."""

FILE = Path(__file__).with_name("children.safetensors")


def child_scores(features: Floats) -> Floats:
    """Return scores `(batch,)` of features `(batch, NUM_FEATURES)`: the higher, the more like a child's radiograph."""
    return features @ _discriminant()[0]


def least_child_limit() -> float:
    """Return the `CHILD_QUANTILE` of the scores of adults in the cross-validation of the discriminant."""
    return _discriminant()[1]


@cache
def _discriminant() -> tuple[Floats, float]:
    with safe_open(FILE, framework="pt") as opened:
        return opened.get_tensor("weights").double().numpy(), float(opened.metadata()["limit"])


def save_discriminant(file: Path, weights: Floats, limit: float, data: str) -> None:
    """Write the weights `(NUM_FEATURES,)`, the limit and a line on the data that they were fitted on."""
    save_file({"weights": torch.from_numpy(weights).float()}, file, metadata={"limit": repr(limit), "data": data})
    make_readable(file)
