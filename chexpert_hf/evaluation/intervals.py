"""Confidence intervals of metrics: Wilson's for shares, percentiles of a bootstrap of patients for everything else.

The bootstrap resamples patients, each with all of their studies, since these resemble each other. For the AUROC see
`delong.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from chexpert_hf.evaluation.metrics import NAN, FloatArray

LEVEL = 0.95  # confidence of the intervals; source: Irvin et al. 2019, section 4
BLOCK = 64  # resamples that are computed at once: enough to keep the processor busy, few enough for its memory


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
    """A share with Wilson's score interval; NaN without trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"Expected 0 <= successes <= trials, got {successes} successes in {trials} trials.")
    if trials == 0:
        return UNDEFINED
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


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
        """Counts of each study in each resample, in blocks of `(num_studies, up to BLOCK)`."""
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
