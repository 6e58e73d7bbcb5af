"""Confidence intervals: Wilson's for shares, DeLong's for the AUROC, a bootstrap of patients for other metrics.

Studies of one patient resemble each other. Therefore the bootstrap resamples patients with all of their studies, and
DeLong's variance is the one for clustered data.

Sources: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3); Obuchowski 1997, Biometrics 53(2) (clustered data).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata
from scipy.stats import t as student

from chexpert_hf.evaluation.metrics import NAN, FloatArray

LEVEL = 0.95  # confidence of the intervals; source: Irvin et al. 2019, section 4
BLOCK = 64  # resamples computed at once: enough to keep the processor busy, few enough to fit its cache
_TAIL = (1 - LEVEL) / 2
_ROUNDING = 1e-12  # by less than this, equal values differ on resamples that sum them in another order
_Z = float(norm.isf(_TAIL))

Patients: TypeAlias = Sequence[str] | NDArray[np.int_] | None
"""The patient of each study `(num_studies,)`, by name or number; None if no patient has several studies."""


@dataclass(frozen=True)
class Estimate:
    """A metric and the ends of its 95 % confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(NAN, NAN, NAN)


@dataclass(frozen=True)
class BootstrapEstimate(Estimate):
    """An estimate whose interval comes from bootstrap resamples."""

    left_out: int  # resamples in which the metric was undefined


@dataclass(frozen=True)
class PairedTest:
    """The difference of two AUROCs on the same studies, and the two-sided p-value for no difference."""

    difference: Estimate  # the first AUROC minus the second
    p_value: float


def wilson_interval(successes: int, trials: int) -> Estimate:
    """Return successes / trials with Wilson's score interval; NaN if there are no trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"Expected 0 <= successes <= trials, got {successes} successes in {trials} trials.")
    if trials == 0:
        return UNDEFINED
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class PatientBootstrap:
    """Bootstrap resamples of studies: patients are drawn with replacement, each with all of their studies.

    The seed fixes the resamples, so that metrics of two models or groups can be subtracted resample by resample.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentiles).
    """

    patients: Sequence[str]  # the patient of each study
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.patients) or self.replicates < 1:
            raise ValueError(
                f"Expected patients and at least 1 replicate, got {len(self.patients)} studies and {self.replicates} "
                "replicates."
            )

    def weights(self) -> Iterator[FloatArray]:
        """Yield how often each study is in each resample, as blocks `(num_studies, n)` of up to `BLOCK` resamples."""
        names, patient = np.unique(np.asarray(self.patients, dtype=str), return_inverse=True)
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.replicates, BLOCK):
            size = min(BLOCK, self.replicates - start)
            drawn = rng.integers(len(names), size=(size, len(names)))
            drawn += np.arange(size)[:, None] * len(names)
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(size, len(names))
            yield times.T[patient].astype(float)

    def replicate(self, metrics: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Compute metrics on all resamples; return them with the resamples as last axis.

        `metrics` is called with the weights `(num_studies, n)` of the studies in n of the resamples. It returns an
        array with n as last axis, such as `(num_metrics, n)`.
        """
        return np.concatenate([metrics(weights) for weights in self.weights()], axis=-1)


def percentile_interval(value: float, replicates: FloatArray) -> BootstrapEstimate:
    """Return `value` with an interval: the 2.5 and 97.5 % quantiles of `replicates`.

    `replicates` `(num_replicates,)` are values of the same metric on resamples. NaN among them are left out, and
    counted in the result's `left_out`. If all other replicates are equal, the ends of the interval are NaN, since
    equal replicates do not show how uncertain `value` is. This happens if the scores are perfect, if all scores are
    equal, or if there is one patient.
    """
    defined = replicates[~np.isnan(replicates)]
    low, high = NAN, NAN
    if len(defined) and not np.isnan(value) and np.ptp(defined) > _ROUNDING:
        low, high = np.quantile(defined, [_TAIL, (1 + LEVEL) / 2]).tolist()
    return BootstrapEstimate(value, low, high, len(replicates) - len(defined))


def ratio_interval(
    value: float, above: FloatArray, below: FloatArray, patients: Sequence[str], replicates: int = 1000
) -> BootstrapEstimate:
    """Return `value`, which is sum(above) / sum(below), with the interval of that ratio over resampled patients.

    `above` and `below` are `(num_studies,)`. Where `below` is 0, `above` must be 0, too. Resamples in which all of
    `below` is 0 are left out.
    """
    with np.errstate(invalid="ignore"):
        ratios = PatientBootstrap(patients, replicates).replicate(lambda weights: (above @ weights) / (below @ weights))
    return percentile_interval(value, ratios)


def bootstrap_p_value(differences: FloatArray) -> float:
    """Return the two-sided p-value for no difference, from the differences on resamples; NaN if all are NaN.

    It is 2 (k + 1) / (n + 1), at most 1, for n differences that are not NaN, of which k are on the side of 0 that has
    fewer; those equal to 0 are on both sides. The added 1 keeps it above 0.
    """
    defined = differences[~np.isnan(differences)]
    rarer = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, float(2 * (rarer + 1) / (len(defined) + 1))) if len(defined) else NAN


def placements(scores: FloatArray, labels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return two arrays, the placements of the positive and of the negative studies; the mean of either is the AUROC.

    The first, `(num_positive,)`, has for each positive study the share of negatives that score lower. The second,
    `(num_negative,)`, has for each negative study the share of positives that score higher. Ties count half. If there
    are no positives or no negatives, all values are NaN. The arguments are `(num_studies,)`; labels are in {0, 1}, NaN
    where unknown.

    Source: Sun & Xu 2014, IEEE Signal Processing Letters 21(11): midranks, in O(n log n).
    """
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return np.full(len(positive), np.nan), np.full(len(negative), np.nan)
    ranks = rankdata(np.concatenate([positive, negative]))
    below = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    above = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return below, above


def delong_variance(scores: FloatArray, labels: FloatArray, patients: Patients = None) -> float:
    """Return DeLong's variance of one observation's AUROC; NaN if a class has studies of fewer than two patients.

    Scores and labels are `(num_studies,)`. Labels are in {0, 1}, NaN where unknown. `patients` has the patient of each
    study; None if no patient has several.
    """
    return _variance(*placements(scores, labels), labels, patients)[0]


def delong_interval(scores: FloatArray, labels: FloatArray, patients: Patients = None) -> Estimate:
    """Return the AUROC of one observation with DeLong's interval, on the logit scale and with Student's t.

    Scores `(num_studies,)` are higher where a positive is likelier; labels are in {0, 1}, NaN where unknown.
    `patients` has the patient of each study; None if no patient has several. All values are NaN unless both classes
    occur. The interval is within [0, 1]. If the variance is 0 or undefined, such as when the scores separate the
    classes perfectly, the interval is Newcombe's.

    Without the logit scale, the interval of a high AUROC would exceed 1 and contain the true value too rarely. The
    degrees of freedom of t are the number of patients of the rarer class minus 1. `python -m
    tests.benchmarks.delong_coverage` measures the effect of both choices.

    Source: Qin & Hotilovac 2008, Statistical Methods in Medical Research 17(2), for the logit.
    """
    below, above = placements(scores, labels)
    if not len(below) or not len(above):
        return UNDEFINED
    value = float(np.mean(below))
    variance, num_positive, num_negative = _variance(below, above, labels, patients)
    if not variance > 0:
        return newcombe_interval(value, num_positive, num_negative)
    quantile = float(student.isf(_TAIL, min(num_positive, num_negative) - 1))
    width = quantile * sqrt(variance) / (value * (1 - value))
    return Estimate(value, float(expit(logit(value) - width)), float(expit(logit(value) + width)))


def newcombe_interval(auroc: float, num_positive: int, num_negative: int) -> Estimate:
    """Return an AUROC with an interval from the numbers (1 or more) of positive and negative studies, or patients.

    Source: Newcombe 2006, Statistics in Medicine 25(4), part 2, method 5: a score interval.
    """
    extra = (num_positive + num_negative) / 2 - 1

    def low(value: float) -> float:
        def excess(theta: float) -> float:
            spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            return value - theta - _Z * sqrt(theta * (1 - theta) * spread / (num_positive * num_negative))

        return float(brentq(excess, 0, value * (1 - 1e-9))) if value else 0.0

    return Estimate(auroc, low(auroc), 1 - low(1 - auroc))


def delong_test(first: FloatArray, second: FloatArray, labels: FloatArray, patients: Patients = None) -> PairedTest:
    """Compare two models: AUROC of `first` minus that of `second` on the same studies.

    `first` and `second` `(num_studies,)` are the scores of the two models. Labels are 1, 0, or NaN where unknown.
    `patients` has the patient of each study; None if no patient has several. If the variance is 0 or undefined, the
    interval is NaN, and p is 1 for equal AUROCs, else NaN. All values are NaN unless both classes occur.
    """
    below, above = (a - b for a, b in zip(placements(first, labels), placements(second, labels), strict=True))
    if not len(below) or not len(above):
        return PairedTest(UNDEFINED, NAN)
    difference = float(np.mean(below))
    error = sqrt(_variance(below, above, labels, patients)[0])
    if not error > 0:
        return PairedTest(Estimate(difference, NAN, NAN), 1.0 if difference == 0 else NAN)
    low, high = max(difference - _Z * error, -1.0), min(difference + _Z * error, 1.0)
    return PairedTest(Estimate(difference, low, high), float(2 * norm.sf(abs(difference) / error)))


def _variance(below: FloatArray, above: FloatArray, labels: FloatArray, patients: Patients) -> tuple[float, int, int]:
    """Return the variance of an AUROC, and the numbers of positive and of negative patients.

    `below` has for each positive study the share of negative studies that score lower. `above` has for each negative
    study the share of positive studies that score higher. Ties count half. If both arrays are instead those of one
    model minus those of another, the variance is that of the difference of the two AUROCs. The variance is NaN unless
    there are two or more positive and two or more negative patients.
    """
    known = ~np.isnan(labels)
    names = np.arange(len(labels)) if patients is None else np.asarray(patients)
    unique, number = np.unique(names[known], return_inverse=True)
    of_positives, of_negatives, count = number[labels[known] == 1], number[labels[known] == 0], len(unique)
    num_positive, num_negative = len(np.unique(of_positives)), len(np.unique(of_negatives))
    if num_positive < 2 or num_negative < 2:
        return NAN, num_positive, num_negative
    positive = np.bincount(of_positives, below - np.mean(below), count) / len(below)
    negative = np.bincount(of_negatives, above - np.mean(above), count) / len(above)
    variance = (
        num_positive / (num_positive - 1) * (positive @ positive)
        + num_negative / (num_negative - 1) * (negative @ negative)
        + 2 * count / (count - 1) * (positive @ negative)
    )
    return max(float(variance), 0.0), num_positive, num_negative  # rounding may give a negative variance
