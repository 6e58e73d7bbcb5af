"""How well probabilities agree with labels, per study and observation, as the CheXpert paper measures it.

Unknown labels are NaN and are ignored. A metric that the data cannot define is NaN, never .5.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study, AUROC per observation, mean
over the five competition observations). The "scaled" Brier scores of that paper have the size of `brier_score`, not of
`scaled_brier_score` as Steyerberg defines it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from chexpert_hf.labels import COMPETITION_OBSERVATIONS, NEGATIVE, UNCERTAIN, BlankPolicy

FloatArray = NDArray[np.floating]

NAN = float("nan")

MIN_STUDIES_PER_CLASS = 5
"""Fewer positive or negative studies cannot judge an observation: one study would move its AUROC by a fifth."""

CALIBRATION_BINS = 15
"""Bins of the expected calibration error. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"."""

AGGREGATIONS = ("maximum", "mean")
"""How the views of a study become one value; the paper takes the maximum."""


@dataclass(frozen=True)
class ObservationResult:
    """Numbers of positive and negative studies of one observation, and its AUROC in [0, 1], NaN without both."""

    observation: str
    num_positive: int
    num_negative: int
    auroc: float


@dataclass(frozen=True)
class Evaluation:
    """AUROC of a model on a data set."""

    observations: tuple[ObservationResult, ...]  # in the model's order
    num_studies: int
    mean_over: tuple[str, ...]  # see `averaged_observations`
    mean_auroc: float  # in [0, 1]; NaN if the data can judge nothing

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with None for NaN."""
        values: dict[str, Any] = plain(self)
        return values


def plain(value: Any) -> Any:
    """Dataclasses, containers and arrays, rounded to six places, as plain types for JSON, with None for NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, np.ndarray):
        value = value.astype(float).round(6).tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def evaluation_labels(labels: FloatArray, blank: BlankPolicy | str = BlankPolicy.NEGATIVE) -> FloatArray:
    """Labels of the CSV files, 1, 0, -1 (uncertain) and NaN (blank), as the truth of an evaluation, in {0, 1, NaN}.

    What is uncertain is unknown. A blank is negative, as in the paper, or unknown.
    """
    if BlankPolicy(blank) is BlankPolicy.NEGATIVE:
        labels = np.where(np.isnan(labels), NEGATIVE, labels)
    return np.where(labels == UNCERTAIN, np.nan, labels)


def per_study(values: FloatArray, studies: Sequence[str], how: str = "maximum") -> tuple[FloatArray, list[str]]:
    """Aggregates values `(num_views, num_labels)` over the views of each study; NaN only where every view is NaN.

    Returns:
        `(num_studies, num_labels)`, and the studies in the order of their first view.

    Raises:
        ValueError: If the lengths differ or `how` is another word.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"Views of a study are aggregated by one of {', '.join(AGGREGATIONS)}, got {how!r}.")
    if len(values) != len(studies):
        raise ValueError(f"Expected one study per view, got {len(values)} views and {len(studies)} studies.")
    groups = pd.DataFrame(np.asarray(values, dtype=float)).groupby(np.asarray(studies, dtype=object), sort=False)
    result = groups.max() if how == "maximum" else groups.mean()
    return result.to_numpy(), result.index.tolist()


def auroc(probabilities: FloatArray, labels: FloatArray) -> float:
    """Area under the receiver operating characteristic of one observation, in [0, 1]; NaN unless both classes occur.

    Args:
        probabilities: `(num_studies,)`; any score that rises with the probability will do.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
    """
    return _of_both_classes(roc_auc_score, probabilities, labels)


def auprc(probabilities: FloatArray, labels: FloatArray) -> float:
    """Area under the precision-recall curve as average precision, without interpolation; arguments as for `auroc`."""
    return _of_both_classes(average_precision_score, probabilities, labels)


def _of_both_classes(metric: Callable[..., float], probabilities: FloatArray, labels: FloatArray) -> float:
    is_known = ~np.isnan(labels)
    has_both = len(np.unique(labels[is_known])) == 2
    return float(metric(labels[is_known], probabilities[is_known])) if has_both else NAN


def brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Mean squared difference between the probability of one observation and its label; NaN without known labels.

    Args:
        probabilities: `(num_studies,)`, in [0, 1].
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Raises:
        ValueError: If the shapes differ or a probability is outside [0, 1].

    Source: Brier 1950, Monthly Weather Review 78(1).
    """
    probabilities, labels = _known(probabilities, labels)
    return float(np.mean((probabilities - labels) ** 2)) if len(labels) else NAN


def scaled_brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Brier score of one observation, divided by that of always answering its prevalence; NaN without both classes.

    Source: Steyerberg et al. 2010, Epidemiology 21(1), who report 1 minus this.
    """
    _, known = _known(probabilities, labels)
    prevalence = np.mean(known) if len(known) else 0.0
    reference = prevalence * (1 - prevalence)
    return brier_score(probabilities, labels) / float(reference) if reference > 0 else NAN


def calibration_bins(probabilities: FloatArray) -> NDArray[np.intp]:
    """The bin of each probability among bins of equal width, each with its lower edge; 1 belongs to the last."""
    return np.digitize(probabilities, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])


def expected_calibration_error(probabilities: FloatArray, labels: FloatArray) -> float:
    """Mean distance between the probability of one observation and its observed frequency, over bins of probability.

    The bins have equal widths and are weighted by the studies in them. On few studies the error of a calibrated model
    is above 0 by chance. Arguments and errors are as for `brier_score`.

    Source: Naeini et al. 2015, AAAI-15; Guo et al. 2017, arXiv:1706.04599.
    """
    probabilities, labels = _known(probabilities, labels)
    if not len(labels):
        return NAN
    surplus = np.bincount(calibration_bins(probabilities), probabilities - labels)
    return float(np.abs(surplus).sum() / len(labels))


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
    """The observations in a mean: the judged ones of the competition, or all judged ones if there is none."""
    judged = judged_observations(labels, observations)
    return tuple(name for name in judged if name in COMPETITION_OBSERVATIONS) or judged


def evaluate_probabilities(
    probabilities: FloatArray, labels: FloatArray, studies: Sequence[str], observations: Sequence[str]
) -> Evaluation:
    """Evaluates probabilities and labels from `evaluation_labels`, both `(num_views, num_labels)`, per study.

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
    scores, names = per_study(probabilities, studies)
    truth, _ = per_study(labels, studies)
    results = tuple(
        ObservationResult(observation, int((known == 1).sum()), int((known == 0).sum()), auroc(score, known))
        for observation, score, known in zip(observations, scores.T, truth.T, strict=True)
    )
    mean_over = averaged_observations(truth, observations)
    values = [result.auroc for result in results if result.observation in mean_over]
    return Evaluation(results, len(names), mean_over, float(np.mean(values)) if values else NAN)
