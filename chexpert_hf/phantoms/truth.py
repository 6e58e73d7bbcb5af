"""The hidden truth of a phantom study, and its labels in CheXpert's four cell values as if mined from a report."""

import math

import numpy as np

from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, PARENTS, POSITIVE, UNCERTAIN, ancestors

CHILDREN: dict[str, tuple[str, ...]] = {
    parent: tuple(name for name in OBSERVATIONS if parent in ancestors(name))
    for parent in sorted(set(PARENTS.values()))
}
"""Parent -> all observations below it in the label hierarchy; it is positive whenever one of them is."""

_CHEXPERT_STUDIES = 187_641
# In the order of the observations.
_UNCERTAIN_STUDIES = (
    0, 10_148, 6_597, 4_341, 1_071, 11_571, 23_976, 15_658, 29_377, 2_663, 9_419, 1_771, 484, 898
)  # fmt: skip
UNCERTAIN_RATES: dict[str, float] = {
    name: count / _CHEXPERT_STUDIES for name, count in zip(OBSERVATIONS, _UNCERTAIN_STUDIES, strict=True)
}
"""Share of studies whose report is uncertain about the observation. Source: Irvin et al. 2019, Table 1."""

UNCERTAIN_ODDS = 2.0
"""How much more often a present finding is called uncertain than an absent one. An assumption; the paper is silent."""

EXPLICIT_NEGATIVES = 0.25
"""Share of the absent and not uncertain findings that the report denies; it passes over the others. An assumption."""

PREVALENCES: dict[str, float] = dict.fromkeys(OBSERVATIONS[1:], 0.1) | {
    "Cardiomegaly": 0.12, "Atelectasis": 0.12, "Pleural Effusion": 0.14, "Support Devices": 0.35
}  # fmt: skip
"""Chance that each is planted in a study, independently. Not CheXpert's prevalences: those of its rare observations
would leave a small folder without a single positive."""


def implied(observations: set[str]) -> set[str]:
    """The observations and all their parents in the hierarchy."""
    return observations | {parent for parent, children in CHILDREN.items() if observations & set(children)}


def sample_truth(rng: np.random.Generator) -> set[str]:
    """Draws what is positive in a study, parents and No Finding included."""
    planted = {name for name, prevalence in PREVALENCES.items() if rng.random() < prevalence}
    return implied(planted) if planted - {"Support Devices"} else planted | {"No Finding"}


def report_cells(truth: set[str], rng: np.random.Generator) -> dict[str, float | None]:
    """Draws one cell per observation, as an automatic labeler reads it in the report; `None` is a blank.

    A study of No Finding has no uncertain cell besides Support Devices, as in CheXpert, so those with findings have
    more of them: over all studies the rates are `UNCERTAIN_RATES`. No Finding itself is positive or blank.
    """
    cells: dict[str, float | None] = {}
    for name in OBSERVATIONS:
        is_uncertain = rng.random() < _chance_of_uncertain(name, name in truth, "No Finding" in truth)
        is_denied = rng.random() < EXPLICIT_NEGATIVES and name != "No Finding"
        certain = POSITIVE if name in truth else NEGATIVE if is_denied else None
        cells[name] = UNCERTAIN if is_uncertain else certain
    return cells


def _chance_of_uncertain(name: str, is_positive: bool, is_normal: bool) -> float:
    if name == "No Finding" or (is_normal and name != "Support Devices"):
        return 0.0
    normal = 0.0 if name == "Support Devices" else _chance_of_none(set(PREVALENCES) - {"Support Devices"})
    positive = 1 - _chance_of_none({name, *CHILDREN.get(name, ())})
    when_negative = UNCERTAIN_RATES[name] / (UNCERTAIN_ODDS * positive + (1 - positive - normal))
    return UNCERTAIN_ODDS * when_negative if is_positive else when_negative


def _chance_of_none(names: set[str]) -> float:
    """Chance that none of these observations is planted."""
    return math.prod(1 - chance for name, chance in PREVALENCES.items() if name in names)
