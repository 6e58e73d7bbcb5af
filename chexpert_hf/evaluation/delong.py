"""Intervals and paired tests of AUROCs from placements, for studies of which several may be of one patient.

Sources: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3); Obuchowski 1997, Biometrics 53(2) (clustered data).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from chexpert_hf.evaluation.intervals import LEVEL, NAN, Estimate
from chexpert_hf.evaluation.metrics import FloatArray

Patients: TypeAlias = Sequence[str] | NDArray[np.int_]
"""`(num_studies,)`: a name or number of each study's patient."""


@dataclass(frozen=True)
class PairedTest:
    """The difference between two AUROCs on the same studies, and the two-sided p-value of there being none."""

    difference: Estimate
    p_value: float


def placements(scores: FloatArray, labels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of each positive, the share of negatives below it; of each negative, the share of positives above it.

    Ties count half. Midranks give them in O(n log n) instead of one comparison per pair.

    Args:
        scores: `(num_studies,)`.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        `(num_positive,)` and `(num_negative,)`; the mean of either is the AUROC.

    Source: Sun & Xu 2014, IEEE Signal Processing Letters 21(11).
    """
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return np.full(len(positive), np.nan), np.full(len(negative), np.nan)
    ranks = rankdata(np.concatenate([positive, negative]))
    below = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    above = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return below, above


def delong_variance(scores: FloatArray, labels: FloatArray, patients: Patients | None = None) -> float:
    """Variance of the AUROC of one observation.

    Args:
        scores: `(num_studies,)`; rising with the probability.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
        patients: The patient of each study, whose studies may then depend on each other; if None, each study is of
            another patient.

    Returns:
        NaN unless both classes have studies of two patients.

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3); with several studies per patient Obuchowski 1997,
    Biometrics 53(2), which is the same where each has one.
    """
    return _clusters(labels, patients).variance(*placements(scores, labels))


def delong_interval(
    scores: FloatArray, labels: FloatArray, patients: Patients | None = None, level: float = LEVEL
) -> Estimate:
    """AUROC of one observation with an interval from DeLong's variance, on the logit scale, with Student's t.

    On the scale of the AUROC itself an interval passes 1 and covers too rarely when the AUROC is high. The variance is
    estimated from few studies where a class is rare, which the t distribution with the degrees of freedom of the
    class with fewer patients allows for. `python -m tests.benchmarks.delong_coverage` prints what either is worth.
    Where the variance is 0 or undefined, as when the classes are separated perfectly, the interval is Newcombe's.

    Args:
        scores: `(num_studies,)`; rising with the probability.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
        patients: The patient of each study; if None, each is of another.
        level: Confidence, in (0, 1).

    Returns:
        Within [0, 1]; NaN unless both classes occur.

    Source: DeLong et al. 1988; Qin & Hotilovac 2008, Statistical Methods in Medical Research 17(2), for the logit.
    """
    below, above = placements(scores, labels)
    if not len(below) or not len(above):
        return Estimate(NAN, NAN, NAN)
    value, tail = float(np.mean(below)), (1 - level) / 2
    clusters = _clusters(labels, patients)
    variance = clusters.variance(below, above)
    if not variance > 0:
        return newcombe_interval(value, clusters.num_positive, clusters.num_negative, level)
    quantile = float(student.isf(tail, min(clusters.num_positive, clusters.num_negative) - 1))
    width = quantile * sqrt(variance) / (value * (1 - value))
    return Estimate(value, float(expit(logit(value) - width)), float(expit(logit(value) + width)))


def newcombe_interval(auroc: float, num_positive: int, num_negative: int, level: float = LEVEL) -> Estimate:
    """An AUROC with an interval from the numbers of studies alone, for when their scores are not at hand.

    Args:
        auroc: In [0, 1].
        num_positive: At least 1.
        num_negative: At least 1.
        level: Confidence, in (0, 1).

    Source: Newcombe 2006, Statistics in Medicine 25(4), part 2, method 5.
    """
    counts_and_z = num_positive, num_negative, float(norm.isf((1 - level) / 2))
    return Estimate(auroc, _newcombe_low(auroc, *counts_and_z), 1 - _newcombe_low(1 - auroc, *counts_and_z))


def delong_test(
    scores_a: FloatArray,
    scores_b: FloatArray,
    labels: FloatArray,
    patients: Patients | None = None,
    level: float = LEVEL,
) -> PairedTest:
    """Compares the AUROCs of two models on the same studies.

    Args:
        scores_a: `(num_studies,)` of one model.
        scores_b: `(num_studies,)` of the other.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.
        patients: The patient of each study; if None, each is of another.
        level: Confidence of the interval, in (0, 1).

    Returns:
        AUROC of `a` minus that of `b`. Where no study moves the difference, its interval is NaN and p is 1 for equal
        AUROCs and NaN for others; all is NaN unless both classes occur.

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3); Obuchowski 1997, Biometrics 53(2).
    """
    below, above = (a - b for a, b in zip(placements(scores_a, labels), placements(scores_b, labels), strict=True))
    if not len(below) or not len(above):
        return PairedTest(Estimate(NAN, NAN, NAN), NAN)
    difference = float(np.mean(below))
    error = sqrt(_clusters(labels, patients).variance(below, above))
    if not error > 0:
        return PairedTest(Estimate(difference, NAN, NAN), 1.0 if difference == 0 else NAN)
    width = float(norm.isf((1 - level) / 2)) * error
    interval = Estimate(difference, max(difference - width, -1.0), min(difference + width, 1.0))
    return PairedTest(interval, float(2 * norm.sf(abs(difference) / error)))


@dataclass(frozen=True)
class _Clusters:
    """The patients of the positive and of the negative studies of one observation, numbered from 0."""

    of_positives: NDArray[np.int_]  # (num_positive studies,)
    of_negatives: NDArray[np.int_]  # (num_negative studies,)
    count: int

    @property
    def num_positive(self) -> int:
        """Patients with a positive study."""
        return len(np.unique(self.of_positives))

    @property
    def num_negative(self) -> int:
        """Patients with a negative study."""
        return len(np.unique(self.of_negatives))

    def variance(self, below: FloatArray, above: FloatArray) -> float:
        """Variance of the mean of placements (or of differences of them), from their sums over each patient."""
        if self.num_positive < 2 or self.num_negative < 2:
            return NAN
        positive = np.bincount(self.of_positives, below - np.mean(below), self.count) / len(below)
        negative = np.bincount(self.of_negatives, above - np.mean(above), self.count) / len(above)
        return float(
            self.num_positive / (self.num_positive - 1) * (positive @ positive)
            + self.num_negative / (self.num_negative - 1) * (negative @ negative)
            + 2 * self.count / (self.count - 1) * (positive @ negative)
        )


def _clusters(labels: FloatArray, patients: Patients | None) -> _Clusters:
    known = ~np.isnan(labels)
    names = np.arange(len(labels)) if patients is None else np.asarray(patients)
    unique, number = np.unique(names[known], return_inverse=True)
    return _Clusters(number[labels[known] == 1], number[labels[known] == 0], len(unique))


def _newcombe_low(value: float, num_positive: int, num_negative: int, z: float) -> float:
    """Lower end by Newcombe 2006, Statistics in Medicine 25(4), part 2, method 5: a score interval for an AUROC."""
    if value == 0:
        return 0.0
    extra = (num_positive + num_negative) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return value - theta - z * sqrt(theta * (1 - theta) * spread / (num_positive * num_negative))

    return float(brentq(excess, 0, value * (1 - 1e-9)))
