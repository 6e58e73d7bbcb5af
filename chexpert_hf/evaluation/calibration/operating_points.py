"""Operating points: the probability from which on an observation is called positive, chosen on studies with labels.

Source: Youden 1950, Cancer 3(1).
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from chexpert_hf.evaluation.calibration.calibration import CalibrationError, known_studies
from chexpert_hf.evaluation.metrics import FloatArray


class Criterion(str, Enum):
    """The criteria to choose an operating point by."""

    YOUDEN = "youden"  # the largest sensitivity + specificity
    SENSITIVITY = "sensitivity"  # the largest threshold that has the wanted sensitivity
    PPV = "ppv"  # the smallest threshold that has the wanted positive predictive value


@dataclass(frozen=True)
class OperatingRule:
    """A criterion, and the sensitivity or positive predictive value to reach, in (0, 1]; None for Youden's."""

    criterion: Criterion
    wanted: float | None = None

    @classmethod
    def parse(cls, text: str) -> "OperatingRule":
        """Reads "youden", "sensitivity=.9" or "ppv=.5", or raises CalibrationError."""
        name, equals, value = text.strip().lower().partition("=")
        try:
            rule = cls(Criterion(name), float(value) if equals else None)
            is_valid = rule.wanted is None if name == "youden" else 0 < (rule.wanted or 0) <= 1
        except ValueError:
            is_valid = False
        if not is_valid:
            expected = "'youden', 'sensitivity=.9' or 'ppv=.5' (above 0, at most 1)"
            raise CalibrationError(f"Expected operating points by {expected}, got {text!r}.")
        return rule


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and its metrics on the studies that it was chosen on, which are optimistic."""

    threshold: float  # in [0, 1]: a probability from this value on is positive
    sensitivity: float
    specificity: float
    ppv: float  # at the prevalence of these studies, or the one that was asked for


def choose_operating_point(
    probabilities: FloatArray, labels: FloatArray, rule: OperatingRule, prevalence: float | None = None
) -> OperatingPoint:
    """Chooses an observation's operating point.

    The threshold lies halfway between two neighbouring probabilities, or between the lowest and 0, so that the counts
    stay where another machine's scores differ in the last digits. Where several thresholds are equally good by Youden,
    it is the most sensitive of them. Predictive values are at the given prevalence, or that of these studies.

    Raises:
        CalibrationError: If no threshold reaches the wanted predictive value, or is better than chance by Youden; and
            as `known_studies`.
    """
    probabilities, labels = known_studies(probabilities, labels)
    descending, cut = np.unique(-probabilities, return_inverse=True)
    called = np.bincount(cut).cumsum()  # (num_cuts,): studies from each distinct probability on, the highest first
    true = np.bincount(cut, weights=labels).astype(np.int64).cumsum()
    num_positive = int(true[-1])
    num_negative = len(labels) - num_positive
    # The weight of a negative study, relative to a positive one.
    weight = 1.0 if prevalence is None else (1 - prevalence) / prevalence * num_positive / num_negative
    ppv = true / (true + weight * (called - true))
    wanted = rule.wanted or 0.0
    if rule.criterion is Criterion.YOUDEN:
        # In whole numbers, so that ties are ties: J times the positive times the negative studies.
        youden = true * num_negative - (called - true) * num_positive
        if youden.max() <= 0:
            raise CalibrationError("no threshold does better than chance")
        place = np.flatnonzero(youden == youden.max())[-1]
    elif rule.criterion is Criterion.SENSITIVITY:
        place = np.argmax(true / num_positive >= wanted)
    else:
        reached = np.flatnonzero(ppv >= wanted)
        if not len(reached):
            raise CalibrationError(
                f"a positive predictive value of {wanted:g} is reached at no threshold; the highest is {ppv.max():.3f}"
            )
        place = reached[-1]
    upper, lower = np.append(-descending, 0.0)[place : place + 2]
    halfway = (upper + lower) / 2
    return OperatingPoint(
        # Between neighbouring numbers there is no halfway.
        threshold=float(halfway if halfway > lower else upper),
        sensitivity=float(true[place] / num_positive),
        specificity=float(1 - (called[place] - true[place]) / num_negative),
        ppv=float(ppv[place]),
    )
