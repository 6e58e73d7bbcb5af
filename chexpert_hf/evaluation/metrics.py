"""Metrics of probabilities against labels, per study and observation, as in the CheXpert paper.

Unknown labels are NaN and are ignored. A metric that is undefined, such as an AUROC with one class only, is NaN.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study, AUROC per observation, mean
over the five competition observations). The metric `scaled_brier` is not comparable with the "scaled" Brier scores in
that paper, which are as small as plain Brier scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import roc_auc_score

from chexpert_hf.labels import CHEXPERT, IGNORED, NEGATIVE, POSITIVE, UNCERTAIN, BlankPolicy

if TYPE_CHECKING:
    import datasets

FloatArray = NDArray[np.floating]
NAN = float("nan")

MIN_STUDIES_PER_CLASS = 5  # with fewer, one study would move an observation's AUROC by a fifth
CALIBRATION_BINS = 15  # source: Guo et al. 2017, arXiv:1706.04599
AGGREGATIONS = ("maximum", "mean")  # how the views of a study are combined; the paper takes the maximum


@dataclass(frozen=True)
class ObservationResult:
    """The AUROC of one observation, and the numbers of studies behind it."""

    observation: str
    num_positive: int
    num_negative: int
    auroc: float  # in [0, 1]; NaN unless both classes occur


@dataclass(frozen=True)
class Evaluation:
    """The AUROC of a model on a data set, for each observation and as a mean."""

    observations: tuple[ObservationResult, ...]  # in the model's order
    num_studies: int
    mean_over: tuple[str, ...]  # the observations in the mean; see `averaged_observations`
    mean_auroc: float  # in [0, 1]; NaN if no observation has enough studies

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain types for JSON, with None for NaN."""
        values: dict[str, Any] = plain(self)
        return values


def plain(value: Any) -> Any:
    """Convert dataclasses, containers and arrays to plain types for JSON, with None for NaN.

    Values of arrays are rounded to six places.
    """
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
    """Convert the labels of a data set to those that an evaluation compares with: 0, 1, or NaN (unknown).

    Input labels are 1, 0, -1 (uncertain), NaN (blank), -100 (not stated by this data set), or the share of readers who
    called the observation positive. Uncertain and -100 become NaN. A blank becomes 0, as in the paper, or NaN, as
    `blank` says. A share above .5 becomes 1, any other 0.
    """
    labels = np.where((labels > NEGATIVE) & (labels < POSITIVE), labels > 0.5, labels)
    if BlankPolicy(blank) is BlankPolicy.NEGATIVE:
        labels = np.where(np.isnan(labels), NEGATIVE, labels)
    return np.where((labels == UNCERTAIN) | (labels == IGNORED), np.nan, labels)


def split_labels(dataset: "datasets.Dataset", blank: BlankPolicy | str) -> FloatArray:
    """Return the labels `(num_views, num_labels)` of a split from `load_dataset` as 0, 1 or NaN (unknown).

    `blank` says whether a blank label becomes 0 or NaN. See `evaluation_labels` for the other labels.

    If an observation is uncertain in one view of a study, its labels of 0 in the study's other views become NaN.
    Thus a study with an uncertain and a negative view is unknown, not negative.
    """
    raw = np.asarray(dataset["labels"][:], dtype=float)
    return without_uncertain(evaluation_labels(raw, blank), raw == UNCERTAIN, dataset["study"][:])


def without_uncertain(labels: FloatArray, is_uncertain: NDArray[np.bool_], studies: Sequence[str]) -> FloatArray:
    """Replace a label 0 by NaN if the same observation is uncertain in a view of the same study.

    `labels`, in {0, 1, NaN}, and `is_uncertain` are `(num_views, num_labels)`; `studies` names the study of each view.
    Without this, `per_study` would call a study negative if one view is uncertain and another is negative or blank.
    """
    uncertain, names = per_study(is_uncertain.astype(float), studies)
    rows = pd.Index(names).get_indexer(pd.Index(studies))
    return np.where((uncertain[rows] == 1) & (labels == NEGATIVE), np.nan, labels)


def per_study(values: FloatArray, studies: Sequence[str], how: str = "maximum") -> tuple[FloatArray, list[str]]:
    """Combine values `(num_views, num_labels)` over the views of each study by their maximum or mean, ignoring NaN.

    Returns the values `(num_studies, num_labels)`, NaN where every view is NaN, and the studies in the order of first
    views.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"Views of a study are aggregated by one of {', '.join(AGGREGATIONS)}, got {how!r}.")
    if len(values) != len(studies):
        raise ValueError(f"Expected one study per view, got {len(values)} views and {len(studies)} studies.")
    groups = pd.DataFrame(np.asarray(values, dtype=float)).groupby(np.asarray(studies, dtype=object), sort=False)
    result = groups.max() if how == "maximum" else groups.mean()
    return result.to_numpy(), result.index.tolist()


def auroc(probabilities: FloatArray, labels: FloatArray) -> float:
    """Return the area under the ROC curve of one observation, in [0, 1]; NaN unless both classes occur.

    Labels `(num_studies,)` are in {0, 1}, NaN where unknown. `probabilities` may be any scores: only their order
    matters.
    """
    is_known = ~np.isnan(labels)
    has_both = len(np.unique(labels[is_known])) == 2
    return float(roc_auc_score(labels[is_known], probabilities[is_known])) if has_both else NAN


def observation_metrics(probabilities: FloatArray, labels: FloatArray) -> dict[str, float]:
    """Compute the metrics in `WeightedMetrics.NAMES` for one observation: name -> value, NaN where undefined.

    Both arguments are `(num_studies,)`. Labels are in {0, 1}, NaN where unknown.

    Raises:
        ValueError: If the shapes differ or a probability is outside [0, 1].
    """
    if probabilities.shape != labels.shape:
        raise ValueError(f"Expected one label per probability, got shapes {probabilities.shape} and {labels.shape}.")
    known = probabilities[~np.isnan(labels)]
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError("Expected probabilities in [0, 1], got others; are they logits? Take the sigmoid of those.")
    values = WeightedMetrics(probabilities, labels)(np.ones((len(labels), 1)))[:, 0]
    return dict(zip(WeightedMetrics.NAMES, values.tolist(), strict=True))


class WeightedMetrics:
    """Computes the metrics of one observation if each study has a weight, such as its count in a bootstrap resample.

    Many weightings (resamples) are computed at once: `weights` is `(num_studies, num_weightings)`.

    `NAMES` are the AUROC, the average precision (without interpolation), the Brier score, the relative Brier score
    (divided by that of always answering the prevalence), and the calibration error over bins of equal width.

    Each metric is computed from sums of weights, such as that of all positives with a certain score. The studies in
    each sum are found once, by sorting the scores. One product with a sparse matrix then gives the sums for all
    weightings.

    Sources: Brier 1950, Monthly Weather Review 78(1); Steyerberg et al. 2010, Epidemiology 21(1), whose scaled Brier
    score is 1 minus the relative one; Naeini et al. 2015, AAAI-15; Guo et al. 2017, arXiv:1706.04599.
    """

    NAMES = ("auroc", "auprc", "brier", "scaled_brier", "ece")

    def __init__(self, probabilities: FloatArray, labels: FloatArray) -> None:
        """Prepare for probabilities `(num_studies,)` and labels in {0, 1}, NaN where unknown."""
        known = np.flatnonzero(~np.isnan(labels))
        p, y = probabilities[known], labels[known] == 1
        # In descending order of the scores, recall rises only at some of them: the steps.
        _, rank = np.unique(-p, return_inverse=True)
        has_positive = np.bincount(rank, y) > 0
        step = np.cumsum(has_positive)[rank] - 1
        is_tied = ~y & has_positive[rank]
        num_steps = int(has_positive.sum())
        self._tied_steps, tie = np.unique(step[is_tied], return_inverse=True)
        # A negative between two steps is a false positive from the lower step on; one below the last step never is.
        enters = step + ~has_positive[rank]
        counts = ~y & (enters < num_steps)
        # Each part: the number of sums; then, for each term, the index of its sum, its study and its value.
        parts: list[tuple[int, NDArray, NDArray, NDArray]] = [
            (num_steps, step[y], known[y], np.ones(y.sum())),
            (num_steps, enters[counts], known[counts], np.ones(counts.sum())),
            (len(self._tied_steps), tie, known[is_tied], np.ones(is_tied.sum())),
            (1, np.zeros((~y).sum(), int), known[~y], np.ones((~y).sum())),
            (1, np.zeros(len(known), int), known, (p - y) ** 2),
            # Bins have equal width, each with its lower edge; 1 belongs to the last.
            (CALIBRATION_BINS, np.digitize(p, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]), known, p - y),
        ]
        heights, rows, columns, values = zip(*parts, strict=True)
        self._starts = np.cumsum(heights)
        rows = [row + start - height for row, start, height in zip(rows, self._starts, heights, strict=True)]
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        self._sums = sparse.csr_array(entries, shape=(int(self._starts[-1]), len(labels)))

    def auroc(self, weights: FloatArray) -> FloatArray:
        """Return only the AUROC for each column of `weights`, which takes half the time of all metrics.

        `weights` is `(num_studies, num_weightings)`, with a column per bootstrap resample, for example. The result is
        `(num_weightings,)`.
        """
        positive, negative, tied, num_negative, *_ = self._sums_of(weights)
        return self._area(positive, np.cumsum(negative, axis=0), tied, num_negative[0])

    def __call__(self, weights: FloatArray) -> FloatArray:
        """Return the metrics `NAMES` for each column of `weights`, as `(num_metrics, num_weightings)`.

        `weights` is `(num_studies, num_weightings)`, with a column per bootstrap resample, for example.
        """
        positive, negative, tied, num_negative, squares, surplus = self._sums_of(weights)
        num_positive = positive.sum(axis=0)
        pairs, total = num_positive * num_negative[0], num_positive + num_negative[0]
        called = np.cumsum(negative, axis=0)  # (num_steps, num_weightings): first the false positives alone
        area = self._area(positive, called, tied, num_negative[0])
        true_positives = np.cumsum(positive, axis=0)
        called += true_positives  # in place, since memory limits the speed
        np.maximum(called, np.finfo(float).tiny, out=called)  # where nothing is called yet: 0 / tiny
        precision = np.divide(true_positives, called, out=true_positives)
        area_of_precision = np.einsum("sw,sw->w", positive, precision)
        with np.errstate(divide="ignore", invalid="ignore"):
            brier, has_both = squares[0] / total, np.where(pairs > 0, 1.0, np.nan)
            return np.stack(
                [
                    area,
                    has_both * area_of_precision / num_positive,
                    brier,
                    has_both * brier * total**2 / pairs,  # pairs / total**2 is the Brier score of the prevalence
                    np.abs(surplus).sum(axis=0) / total,
                ]
            )

    def _sums_of(self, weights: FloatArray) -> list[FloatArray]:
        return np.split(self._sums @ weights, self._starts[:-1])

    def _area(self, positive: FloatArray, false: FloatArray, tied: FloatArray, num_negative: FloatArray) -> FloatArray:
        """Return the AUROC: the share of (positive, negative) pairs in which the positive scores higher.

        Ties count half. Studies are weighted in several ways at once, such as by their counts in each bootstrap
        resample. All arguments are sums of weights, with one column per weighting.

        Args:
            positive: A row for each distinct score of the positives: the sum over the positives with that score.
            false: A row for each of these scores: the sum over the negatives with that score or a higher one.
            tied: A row for each of these scores that negatives have, too: the sum over the negatives with that score.
                `_tied_steps` are the rows of `positive` with the same scores.
            num_negative: `(num_weightings,)`: the sum over all negatives.
        """
        pairs = positive.sum(axis=0) * num_negative
        wrong = np.einsum("sw,sw->w", positive, false)
        wrong -= np.einsum("sw,sw->w", positive[self._tied_steps], tied) / 2
        return np.divide(pairs - wrong, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def judged_observations(labels: FloatArray, observations: Sequence[str]) -> tuple[str, ...]:
    """Return the observations that have enough studies to evaluate: `MIN_STUDIES_PER_CLASS` of each class."""
    has_both = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)) >= MIN_STUDIES_PER_CLASS
    return tuple(name for name, both in zip(observations, has_both, strict=True) if both)


def averaged_observations(
    labels: FloatArray, observations: Sequence[str], headline: Sequence[str] = CHEXPERT.headline
) -> tuple[str, ...]:
    """Return the observations of `headline` with enough studies of both classes, over which a mean is taken.

    `labels` are `(num_studies, num_labels)`. If no observation of `headline` has enough studies, return all that have
    enough.
    """
    judged = judged_observations(labels, observations)
    return tuple(name for name in judged if name in headline) or judged


def evaluate_probabilities(
    probabilities: FloatArray,
    labels: FloatArray,
    studies: Sequence[str],
    observations: Sequence[str],
    headline: Sequence[str] = CHEXPERT.headline,
    aggregation: str = "maximum",
) -> Evaluation:
    """Compute AUROCs per study from probabilities `(num_views, num_labels)` and labels from `evaluation_labels`.

    `studies` names the study of each view. `aggregation`, "maximum" or "mean", combines the probabilities of a study's
    views. The mean AUROC is over the observations in `headline` that have enough studies of both classes. If none of
    them has enough, it is over all observations that have.

    Raises ValueError if the shapes do not fit or a probability is NaN.
    """
    if probabilities.shape != labels.shape or probabilities.shape[1:] != (len(observations),):
        raise ValueError(
            f"Expected probabilities and labels of shape (views, {len(observations)}), got {probabilities.shape} and "
            f"{labels.shape}."
        )
    if np.isnan(probabilities).any():
        raise ValueError(f"{int(np.isnan(probabilities).any(axis=1).sum())} views have probabilities that are NaN.")
    scores, names = per_study(probabilities, studies, aggregation)
    truth, _ = per_study(labels, studies)
    results = tuple(
        ObservationResult(observation, int((known == 1).sum()), int((known == 0).sum()), auroc(score, known))
        for observation, score, known in zip(observations, scores.T, truth.T, strict=True)
    )
    mean_over = averaged_observations(truth, observations, headline)
    values = [result.auroc for result in results if result.observation in mean_over]
    return Evaluation(results, len(names), mean_over, float(np.mean(values)) if values else NAN)
