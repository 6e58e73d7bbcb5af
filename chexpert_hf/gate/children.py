"""Tells frontal radiographs of children from those of adults, by a linear discriminant of the gate's features.

Its weights are in `children.json`; `python -m train.child_discriminant` makes that file.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np

from chexpert_hf.files import write_json
from chexpert_hf.gate.features import Floats

CHILD_AGE = 12
"""Patients below this age, in years, count as children."""

CHILD_QUANTILE = 0.995
"""Fraction of adults whose radiographs are not taken for a child's."""

FILE = Path(__file__).with_name("children.json")


def child_scores(features: Floats) -> Floats:
    """Return scores `(batch,)` of features `(batch, NUM_FEATURES)`: the higher, the more like a child's radiograph."""
    return features @ _discriminant()[0]


def lowest_child_limit() -> float:
    """Return the smallest value that a gate's `child_limit` may have.

    A gate warns that a radiograph may be a child's if its score from `child_scores` exceeds `child_limit`. The value
    returned here was found by cross-validation when the weights were fitted: a fraction `CHILD_QUANTILE` of the adults
    scored below it.
    """
    return _discriminant()[1]


@cache
def _discriminant() -> tuple[Floats, float]:
    record = json.loads(FILE.read_text(encoding="utf-8"))
    return np.array(record["weights"]), record["limit"]


def save_discriminant(file: Path, weights: Floats, limit: float, data: str) -> None:
    """Write a JSON file with the linear discriminant that tells children's radiographs from adults'.

    `weights` `(NUM_FEATURES,)` give a radiograph's score. A score above `limit` means a child, unless a gate sets a
    higher limit. `data` is a text that names the data that the weights were fitted on.
    """
    write_json(file, {"data": data, "limit": limit, "weights": [float(f"{weight:.7g}") for weight in weights]})
