"""How well probabilities agree with labels, per study and observation, as the CheXpert paper measures it.

Unknown labels are NaN and take no part; what the data cannot judge is NaN and named, never .5.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study, AUROC per observation, mean
over the five competition observations).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from chexpert_hf.labels import COMPETITION_OBSERVATIONS, NEGATIVE, UNCERTAIN, BlankPolicy

FloatArray = NDArray[np.floating]

MIN_STUDIES_PER_CLASS = 5
"""Fewer positive or negative studies cannot judge an observation: one study would move its AUROC by a fifth."""


@dataclass(frozen=True)
class ObservationResult:
    """What the data say about one observation.

    Attributes:
        observation: Its name.
        num_positive: Studies that are positive.
        num_negative: Studies that are negative.
        auroc: In [0, 1]; NaN unless there are positive and negative studies.
    """

    observation: str
    num_positive: int
    num_negative: int
    auroc: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a data set.

    Attributes:
        observations: One result per observation, in the model's order.
        num_studies: Studies that were scored.
        mean_over: The observations that `mean_auroc` covers: those of the competition of which there are at least
            `MIN_STUDIES_PER_CLASS` positive and negative studies, or all such if there is none of the competition's.
        mean_auroc: In [0, 1]; NaN if the data can judge nothing.
    """

    observations: tuple[ObservationResult, ...]
    num_studies: int
    mean_over: tuple[str, ...]
    mean_auroc: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with None for NaN."""
        values = asdict(self)
        for entry in (values, *values["observations"]):
            entry.update({name: None for name, value in entry.items() if isinstance(value, float) and isnan(value)})
        return values


def evaluation_labels(labels: FloatArray, blank: BlankPolicy | str = BlankPolicy.NEGATIVE) -> FloatArray:
    """Labels of the CSV files as the truth of an evaluation.

    Args:
        labels: Of any shape: 1, 0, -1 (uncertain), NaN (blank).
        blank: Whether a blank is negative, as in the paper, or unknown.

    Returns:
        A copy in {0, 1, NaN}: what is uncertain is unknown.
    """
    if BlankPolicy(blank) is BlankPolicy.NEGATIVE:
        labels = np.where(np.isnan(labels), NEGATIVE, labels)
    return np.where(labels == UNCERTAIN, np.nan, labels)


def maximum_per_study(values: FloatArray, studies: Sequence[str]) -> tuple[FloatArray, list[str]]:
    """Takes the maximum over the views of each study; NaN only where every view is NaN.

    Args:
        values: `(num_views, num_labels)`: probabilities, or labels.
        studies: The study of each view.

    Returns:
        `(num_studies, num_labels)`, and the studies in the order of their first view.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(values) != len(studies):
        raise ValueError(f"Expected one study per view, got {len(values)} views and {len(studies)} studies.")
    position: dict[str, int] = {}
    rows = [position.setdefault(study, len(position)) for study in studies]
    result = np.full((len(position), *values.shape[1:]), np.nan)
    np.fmax.at(result, rows, values)
    return result, list(position)


def auroc(probabilities: FloatArray, labels: FloatArray) -> float:
    """Area under the receiver operating characteristic of one observation.

    Args:
        probabilities: `(num_studies,)`; any score that rises with the probability will do.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        In [0, 1]; NaN unless both classes occur.
    """
    is_known = ~np.isnan(labels)
    if len(np.unique(labels[is_known])) < 2:
        return float("nan")
    return float(roc_auc_score(labels[is_known], probabilities[is_known]))


def judged_observations(labels: FloatArray, observations: Sequence[str]) -> tuple[str, ...]:
    """The observations that the labels `(num_studies, num_labels)` can judge: enough studies of both classes."""
    has_both = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)) >= MIN_STUDIES_PER_CLASS
    return tuple(name for name, both in zip(observations, has_both, strict=True) if both)


def evaluate_probabilities(
    probabilities: FloatArray, labels: FloatArray, studies: Sequence[str], observations: Sequence[str]
) -> Evaluation:
    """Evaluates the views of a data set per study.

    Args:
        probabilities: `(num_views, num_labels)`.
        labels: `(num_views, num_labels)` in {0, 1, NaN}; see `evaluation_labels`.
        studies: The study of each view.
        observations: The names of the columns.

    Raises:
        ValueError: If the shapes do not fit each other or a probability is not a number.
    """
    if probabilities.shape != labels.shape or probabilities.shape[1:] != (len(observations),):
        raise ValueError(
            f"Expected probabilities and labels of shape (views, {len(observations)}), got {probabilities.shape} and "
            f"{labels.shape}."
        )
    if np.isnan(probabilities).any():
        raise ValueError(f"{int(np.isnan(probabilities).any(axis=1).sum())} views have probabilities that are NaN.")
    scores, names = maximum_per_study(probabilities, studies)
    truth, _ = maximum_per_study(labels, studies)
    results = tuple(
        ObservationResult(
            observation=observation,
            num_positive=int((truth[:, column] == 1).sum()),
            num_negative=int((truth[:, column] == 0).sum()),
            auroc=auroc(scores[:, column], truth[:, column]),
        )
        for column, observation in enumerate(observations)
    )
    judged = judged_observations(truth, observations)
    mean_over = tuple(name for name in judged if name in COMPETITION_OBSERVATIONS) or judged
    values = [result.auroc for result in results if result.observation in mean_over]
    return Evaluation(results, len(names), mean_over, float(np.mean(values)) if values else float("nan"))
