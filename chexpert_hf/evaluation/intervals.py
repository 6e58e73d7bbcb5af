"""Confidence intervals of metrics: Wilson's for shares, percentiles of a bootstrap of patients for everything else.

The bootstrap resamples patients, each with all of their studies, since these resemble each other. For the AUROC see
`delong.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binomtest

from chexpert_hf.evaluation.metrics import CALIBRATION_BINS, NAN, FloatArray, calibration_bins

LEVEL = 0.95
"""Confidence of the intervals. Source: Irvin et al. 2019, section 4."""

BLOCK = 64
"""Resamples that are computed at once: enough to keep the processor busy, few enough for its memory."""


@dataclass(frozen=True)
class Estimate:
    """A metric with the ends of its confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(NAN, NAN, NAN)


@dataclass(frozen=True)
class BootstrapEstimate(Estimate):
    """An interval from resampling, and the number of resamples in which the metric was undefined."""

    left_out: int


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval; NaN without trials.

    Raises:
        ValueError: If there are more successes than trials, or negative counts.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"Expected 0 <= successes <= trials, got {successes} successes in {trials} trials.")
    if trials == 0:
        return UNDEFINED
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


class WeightedFigures:
    """The metrics of one observation, in the order of `NAMES`, as functions of how often each study counts.

    Sorting is done once. Each metric is then made of sums of weights over fixed sets of studies, which one product
    with a sparse matrix gives for a block of weightings.
    """

    NAMES = ("auroc", "auprc", "brier", "scaled_brier", "ece")

    def __init__(self, probabilities: FloatArray, labels: FloatArray) -> None:
        """Prepares the sums for probabilities `(num_studies,)` and labels in {0, 1}, NaN where unknown."""
        known = np.flatnonzero(~np.isnan(labels))
        p, y = probabilities[known], labels[known] == 1
        # Of the scores in descending order only those matter at which recall rises: the steps.
        _, rank = np.unique(-p, return_inverse=True)
        has_positive = np.bincount(rank, y) > 0
        step = np.cumsum(has_positive)[rank] - 1
        is_tied = ~y & has_positive[rank]
        num_steps = int(has_positive.sum())
        self._tied_steps, tie = np.unique(step[is_tied], return_inverse=True)
        # A negative between two steps counts from the lower one on, and below the last one only among all.
        enters = step + ~has_positive[rank]
        counts = ~y & (enters < num_steps)
        # Each part: the number of sums, and of each term the sum it belongs to, its study and its value.
        parts: list[tuple[int, NDArray, NDArray, NDArray]] = [
            (num_steps, step[y], known[y], np.ones(y.sum())),
            (num_steps, enters[counts], known[counts], np.ones(counts.sum())),
            (len(self._tied_steps), tie, known[is_tied], np.ones(is_tied.sum())),
            (1, np.zeros((~y).sum(), int), known[~y], np.ones((~y).sum())),
            (1, np.zeros(len(known), int), known, (p - y) ** 2),
            (CALIBRATION_BINS, calibration_bins(p), known, p - y),
        ]
        heights, rows, columns, values = zip(*parts, strict=True)
        self._starts = np.cumsum(heights)
        rows = [row + start - height for row, start, height in zip(rows, self._starts, heights, strict=True)]
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        self._sums = sparse.csr_array(entries, shape=(int(self._starts[-1]), len(labels)))

    def auroc(self, weights: FloatArray) -> FloatArray:
        """The AUROC alone, in half the time: `(num_weightings,)` for weights `(num_studies, num_weightings)`."""
        positive, negative, tied, num_negative, *_ = self._sums_of(weights)
        return self._area(positive, np.cumsum(negative, axis=0), tied, num_negative[0])

    def __call__(self, weights: FloatArray) -> FloatArray:
        """The metrics `(num_metrics, num_weightings)` for weights `(num_studies, num_weightings)`; NaN if undefined."""
        positive, negative, tied, num_negative, squares, surplus = self._sums_of(weights)
        num_positive = positive.sum(axis=0)
        pairs, total = num_positive * num_negative[0], num_positive + num_negative[0]
        called = np.cumsum(negative, axis=0)  # (num_steps, num_weightings): so far the false positives
        area = self._area(positive, called, tied, num_negative[0])
        true_positives = np.cumsum(positive, axis=0)
        called += true_positives  # in place, for memory is what limits the speed
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

    def _area(
        self, positive: FloatArray, false_positives: FloatArray, tied: FloatArray, num_negative: FloatArray
    ) -> FloatArray:
        """The share of pairs in the right order: all pairs but those with the negative above, and half of the ties."""
        pairs = positive.sum(axis=0) * num_negative
        wrong = np.einsum("sw,sw->w", positive, false_positives)
        wrong -= np.einsum("sw,sw->w", positive[self._tied_steps], tied) / 2
        return np.divide(pairs - wrong, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


@dataclass(frozen=True)
class PatientBootstrap:
    """Draws patients with replacement, each with all of their studies.

    Each use makes the same draws, so that metrics of two models or groups can be subtracted draw by draw.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentiles).
    """

    patients: Sequence[str]  # of each study
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.patients) or self.replicates < 1:
            raise ValueError(
                f"Expected patients and at least 1 replicate, got {len(self.patients)} studies and {self.replicates} "
                "replicates."
            )

    def weights(self) -> Iterator[FloatArray]:
        """How often each study occurs in each resample, in blocks of `(num_studies, up to BLOCK)`."""
        names, patient = np.unique(np.asarray(self.patients, dtype=str), return_inverse=True)
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.replicates, BLOCK):
            size = min(BLOCK, self.replicates - start)
            drawn = rng.integers(len(names), size=(size, len(names)))
            drawn += np.arange(size)[:, None] * len(names)
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(size, len(names))
            yield times.T[patient].astype(float)

    def replicate(self, figures: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Metrics `(..., replicates)` on each resample, by a function from weights `(num_studies, n)` to `(..., n)`."""
        return np.concatenate([figures(weights) for weights in self.weights()], axis=-1)


def percentile_interval(value: float, replicates: FloatArray) -> BootstrapEstimate:
    """A metric with the percentiles of its value on each resample `(num_replicates,)`, where that is not NaN."""
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or not len(defined):
        return BootstrapEstimate(value, NAN, NAN, len(replicates) - len(defined))
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return BootstrapEstimate(value, float(low), float(high), len(replicates) - len(defined))


def bootstrap_p_value(differences: FloatArray) -> float:
    """Two-sided p-value of there being no difference, from bootstrapped differences; NaN without any.

    Twice the share of resamples on the rarer side of 0, with one added, so that it is never 0.
    """
    defined = differences[~np.isnan(differences)]
    rarer = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, float(2 * (rarer + 1) / (len(defined) + 1))) if len(defined) else NAN
