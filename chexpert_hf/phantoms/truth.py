"""What is true of a phantom study, and what its made-up report says about it in CheXpert's four cell values."""

import math

import numpy as np

from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, PARENTS, POSITIVE, UNCERTAIN, ancestors

CHILDREN: dict[str, tuple[str, ...]] = {
    parent: tuple(name for name in OBSERVATIONS if parent in ancestors(name))
    for parent in sorted(set(PARENTS.values()))
}
"""Observations that are positive whenever one of these is: all that stand below them in the label hierarchy."""

_CHEXPERT_STUDIES = 187_641
_UNCERTAIN_STUDIES = {
    "No Finding": 0,
    "Enlarged Cardiomediastinum": 10_148,
    "Cardiomegaly": 6_597,
    "Lung Opacity": 4_341,
    "Lung Lesion": 1_071,
    "Edema": 11_571,
    "Consolidation": 23_976,
    "Pneumonia": 15_658,
    "Atelectasis": 29_377,
    "Pneumothorax": 2_663,
    "Pleural Effusion": 9_419,
    "Pleural Other": 1_771,
    "Fracture": 484,
    "Support Devices": 898,
}
UNCERTAIN_RATES: dict[str, float] = {name: count / _CHEXPERT_STUDIES for name, count in _UNCERTAIN_STUDIES.items()}
"""Share of studies whose report is uncertain about the observation. Source: Irvin et al. 2019, Table 1."""

UNCERTAIN_ODDS = 2.0
"""How much more often a present finding is called uncertain than an absent one. An assumption; the paper is silent."""

EXPLICIT_NEGATIVES = 0.25
"""Share of the absent and not uncertain findings that the report denies; it passes over the others. An assumption."""

PREVALENCES: dict[str, float] = {
    "Enlarged Cardiomediastinum": 0.10,
    "Cardiomegaly": 0.12,
    "Lung Opacity": 0.10,
    "Lung Lesion": 0.10,
    "Edema": 0.10,
    "Consolidation": 0.10,
    "Pneumonia": 0.10,
    "Atelectasis": 0.12,
    "Pneumothorax": 0.10,
    "Pleural Effusion": 0.14,
    "Pleural Other": 0.10,
    "Fracture": 0.10,
    "Support Devices": 0.35,
}
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
    """Draws one cell per observation of what an automatic labeler reads in the report; `None` is a blank.

    A study of No Finding has no uncertain cell besides Support Devices, as in CheXpert, so those with findings have
    more of them: over all studies the rates are `UNCERTAIN_RATES`. No Finding itself is positive or blank.
    """
    cells: dict[str, float | None] = {}
    for name in OBSERVATIONS:
        is_positive = name in truth
        is_uncertain = rng.random() < _chance_of_uncertain(name, is_positive, "No Finding" in truth)
        is_denied = rng.random() < EXPLICIT_NEGATIVES and name != "No Finding"
        if is_uncertain:
            cells[name] = UNCERTAIN
        elif is_positive:
            cells[name] = POSITIVE
        else:
            cells[name] = NEGATIVE if is_denied else None
    return cells


def _chance_of_uncertain(name: str, is_positive: bool, is_normal: bool) -> float:
    if name == "No Finding" or (is_normal and name != "Support Devices"):
        return 0.0
    normal = 0.0 if name == "Support Devices" else _prevalence_of_no_finding()
    positive = _prevalence(name)
    negative = 1 - positive - normal
    when_negative = UNCERTAIN_RATES[name] / (UNCERTAIN_ODDS * positive + negative)
    return UNCERTAIN_ODDS * when_negative if is_positive else when_negative


def _prevalence(name: str) -> float:
    return 1 - math.prod(1 - PREVALENCES[each] for each in (name, *CHILDREN.get(name, ())))


def _prevalence_of_no_finding() -> float:
    return math.prod(1 - chance for name, chance in PREVALENCES.items() if name != "Support Devices")
