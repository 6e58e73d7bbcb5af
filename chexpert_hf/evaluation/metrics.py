"""How well probabilities agree with labels, per study and observation, as the CheXpert paper measures it.

Unknown labels are NaN and take no part; what the data cannot judge is NaN and named, never .5.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study, AUROC per observation, mean
over the five competition observations). The paper's Brier scores of .110, .107 (isotonic) and .101 (Platt) are called
scaled there; at its AUROC of .91 they have the size of `brier_score`, and `scaled_brier_score` as Steyerberg defines it
would be several times as large.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from chexpert_hf.labels import COMPETITION_OBSERVATIONS, NEGATIVE, UNCERTAIN, BlankPolicy

FloatArray = NDArray[np.floating]

MIN_STUDIES_PER_CLASS = 5
"""Fewer positive or negative studies cannot judge an observation: one study would move its AUROC by a fifth."""

CALIBRATION_BINS = 15
"""Bins of the expected calibration error. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"."""

AGGREGATIONS = ("maximum", "mean")
"""How the views of a study become one value; the paper takes the maximum."""


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
    rows, names = _rows_of_studies(values, studies)
    result = np.full((len(names), *values.shape[1:]), np.nan)
    np.fmax.at(result, rows, values)
    return result, names


def per_study(values: FloatArray, studies: Sequence[str], how: str = "maximum") -> tuple[FloatArray, list[str]]:
    """Takes the maximum or the mean over the views of each study; NaN only where every view is NaN.

    Args:
        values: `(num_views, num_labels)`.
        studies: The study of each view.
        how: One of `AGGREGATIONS`.

    Returns:
        `(num_studies, num_labels)`, and the studies in the order of their first view.

    Raises:
        ValueError: If the lengths differ or `how` is another word.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"Views of a study are aggregated by one of {', '.join(AGGREGATIONS)}, got {how!r}.")
    if how == "maximum":
        return maximum_per_study(values, studies)
    rows, names = _rows_of_studies(values, studies)
    totals, counts = np.zeros((2, len(names), *values.shape[1:]))
    np.add.at(totals, rows, np.nan_to_num(values))
    np.add.at(counts, rows, ~np.isnan(values))
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0), names


def _rows_of_studies(values: FloatArray, studies: Sequence[str]) -> tuple[list[int], list[str]]:
    if len(values) != len(studies):
        raise ValueError(f"Expected one study per view, got {len(values)} views and {len(studies)} studies.")
    position: dict[str, int] = {}
    rows = [position.setdefault(study, len(position)) for study in studies]
    return rows, list(position)


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


def auprc(probabilities: FloatArray, labels: FloatArray) -> float:
    """Area under the precision-recall curve of one observation, as average precision.

    Precision is summed at each step of recall, without interpolation between the steps, which would be optimistic.

    Args:
        probabilities: `(num_studies,)`; any score that rises with the probability will do.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        In [0, 1], where the prevalence is what chance reaches; NaN unless both classes occur.
    """
    is_known = ~np.isnan(labels)
    if len(np.unique(labels[is_known])) < 2:
        return float("nan")
    return float(average_precision_score(labels[is_known], probabilities[is_known]))


def brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Mean squared difference between the probability of one observation and its label.

    Args:
        probabilities: `(num_studies,)`, in [0, 1].
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        In [0, 1]; 0 is a perfect forecast, NaN where no label is known.

    Raises:
        ValueError: If the shapes differ or a probability is outside [0, 1].

    Source: Brier 1950, Monthly Weather Review 78(1).
    """
    probabilities, labels = _known(probabilities, labels)
    return float(np.mean((probabilities - labels) ** 2)) if len(labels) else float("nan")


def scaled_brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Brier score of one observation, scaled by that of always answering its prevalence.

    Args:
        probabilities: `(num_studies,)`, in [0, 1].
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        0 is a perfect forecast, 1 is no better than the prevalence, NaN unless both classes occur.

    Raises:
        ValueError: If the shapes differ or a probability is outside [0, 1].

    Source: Steyerberg et al. 2010, Epidemiology 21(1), who report 1 minus this.
    """
    _, known = _known(probabilities, labels)
    prevalence = np.mean(known) if len(known) else 0.0
    reference = prevalence * (1 - prevalence)
    return brier_score(probabilities, labels) / float(reference) if reference > 0 else float("nan")


def calibration_bins(probabilities: FloatArray, num_bins: int = CALIBRATION_BINS) -> NDArray[np.intp]:
    """The bin of each probability among bins of equal width, each with its lower edge; 1 belongs to the last."""
    return np.digitize(probabilities, np.linspace(0, 1, num_bins + 1)[1:-1])


def expected_calibration_error(
    probabilities: FloatArray, labels: FloatArray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance between the probability of one observation and how often it is there, over bins of probability.

    The bins have equal widths on [0, 1] and count by the studies in them. What is binned is the probability of the
    observation, not the confidence in the likelier answer. A few studies per bin differ from their probability by
    chance, so that the error of a calibrated model is above 0 on few studies.

    Args:
        probabilities: `(num_studies,)`, in [0, 1].
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
        num_bins: How many bins.

    Returns:
        In [0, 1]; NaN where no label is known.

    Raises:
        ValueError: If the shapes differ or a probability is outside [0, 1].

    Source: Naeini et al. 2015, AAAI-15; Guo et al. 2017, arXiv:1706.04599.
    """
    probabilities, labels = _known(probabilities, labels)
    if not len(labels):
        return float("nan")
    surplus = np.bincount(calibration_bins(probabilities, num_bins), probabilities - labels)
    return float(np.abs(surplus).sum() / len(labels))


@dataclass(frozen=True)
class Confusion:
    """Studies by what is said of them at an operating point and what is true."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


def confusion(probabilities: FloatArray, labels: FloatArray, threshold: float) -> Confusion:
    """Counts the studies of one observation at an operating point: a probability of at least `threshold` is positive.

    Args:
        probabilities: `(num_studies,)`.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
        threshold: The operating point.
    """
    is_called = probabilities >= threshold
    return Confusion(
        true_positives=int((is_called & (labels == 1)).sum()),
        false_positives=int((is_called & (labels == 0)).sum()),
        true_negatives=int((~is_called & (labels == 0)).sum()),
        false_negatives=int((~is_called & (labels == 1)).sum()),
    )


def _known(probabilities: FloatArray, labels: FloatArray) -> tuple[FloatArray, FloatArray]:
    if probabilities.shape != labels.shape:
        raise ValueError(f"Expected one label per probability, got shapes {probabilities.shape} and {labels.shape}.")
    is_known = ~np.isnan(labels)
    probabilities = probabilities[is_known]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("Expected probabilities in [0, 1], got others; are they logits? Take the sigmoid of those.")
    return probabilities, labels[is_known]


def judged_observations(labels: FloatArray, observations: Sequence[str]) -> tuple[str, ...]:
    """The observations that the labels `(num_studies, num_labels)` can judge: enough studies of both classes."""
    has_both = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)) >= MIN_STUDIES_PER_CLASS
    return tuple(name for name, both in zip(observations, has_both, strict=True) if both)


def averaged_observations(labels: FloatArray, observations: Sequence[str]) -> tuple[str, ...]:
    """What a mean covers: the judged observations of the competition, or all that are judged if there is none."""
    judged = judged_observations(labels, observations)
    return tuple(name for name in judged if name in COMPETITION_OBSERVATIONS) or judged


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
    mean_over = averaged_observations(truth, observations)
    values = [result.auroc for result in results if result.observation in mean_over]
    return Evaluation(results, len(names), mean_over, float(np.mean(values)) if values else float("nan"))
