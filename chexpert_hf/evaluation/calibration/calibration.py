"""Probabilities that mean what they say: Platt scaling and temperature, fitted on logits and labels per study.

All of it is fitted on studies, that is on the largest logit over a study's views, since that is the score which every
figure is about. A rising line commutes with the maximum, so the same line may be applied to each view: the largest
calibrated probability of a study is the calibrated probability of the study. A view that belongs to a study of several
is thereby scored as a study of its own.

Sources: Platt 1999, "Probabilistic outputs for support vector machines"; Lin, Lin & Weng 2007, Machine Learning 68(3);
Guo et al. 2017, arXiv:1706.04599 (temperature); Saerens, Latinne & Decaestecker 2002, Neural Computation 14(1) (another
prevalence).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS, FloatArray

_MAX_NEWTON_STEPS = 100
_STEP_TOLERANCE = 1e-10
_ROUNDING = 1e-12
"""How much a sum of losses may rise by rounding alone, relative to itself."""


class CalibrationError(InputError):
    """Data or a model that cannot be calibrated, or an operating point that cannot be had, with the reason."""


class Method(str, Enum):
    """How a model is calibrated."""

    PLATT = "platt"
    """A line for each observation's logit."""
    TEMPERATURE = "temperature"
    """One divisor for the logits of all observations."""


@dataclass(frozen=True)
class Platt:
    """The line that makes a logit a calibrated one.

    Attributes:
        slope: Above 0, so the order of the scores, and with it the AUROC, is untouched.
        intercept: What is added afterwards, in logits.
    """

    slope: float
    intercept: float

    def probabilities(self, logits: FloatArray) -> NDArray[np.float64]:
        """Calibrated probabilities, in [0, 1], of logits of any shape."""
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def at_prevalence(self, wanted: float, fitted: float) -> "Platt":
        """The line for a place where the observation is more or less frequent, and looks the same.

        Args:
            wanted: Prevalence there, in (0, 1).
            fitted: Prevalence among the studies of the fit, in (0, 1).

        Raises:
            CalibrationError: If one is not inside (0, 1).

        Source: Saerens, Latinne & Decaestecker 2002, equation 2.4: the odds change by the ratio of the prior odds.
        """
        for prevalence in (wanted, fitted):
            if not 0 < prevalence < 1:
                raise CalibrationError(f"Expected a prevalence above 0 and below 1, got {prevalence:g}.")
        return Platt(self.slope, self.intercept + float(logit(wanted) - logit(fitted)))


@dataclass(frozen=True)
class Calibration:
    """What was fitted on a data set.

    Attributes:
        method: How.
        lines: Of each observation that was calibrated; of a temperature T the slope is 1 / T and the intercept 0.
        left_out: The other observations, and why each stays as it is.
    """

    method: Method
    lines: Mapping[str, Platt]
    left_out: Mapping[str, str]


def fit_platt(logits: FloatArray, labels: FloatArray) -> Platt:
    """Fits Platt scaling to one observation, by maximum likelihood with Platt's targets.

    The targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2) rather than 1 and 0, so that the fit is finite also where the
    logits separate the classes.

    Args:
        logits: `(num_studies,)`.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Raises:
        CalibrationError: If there are fewer than `MIN_STUDIES_PER_CLASS` studies of a class, the logits are all the
            same, or the best slope is not above 0: higher logits would mean lower probabilities.
        ValueError: If the shapes differ or a logit is not finite.

    Source: Platt 1999; Lin, Lin & Weng 2007.
    """
    logits, labels = known_studies(logits, labels)
    refuse_few_studies(labels)
    center, spread = float(logits.mean()), float(logits.std())
    if np.ptp(logits) == 0:
        raise CalibrationError(f"the logits of its {len(logits)} studies are all the same")
    # Standardised, since Newton's steps go astray where the logits are far from 0.
    design = np.stack([(logits - center) / spread, np.ones_like(logits)], axis=1)
    steepness, level = _maximum_likelihood(design, _smoothed_targets(labels))
    if steepness <= 0:
        raise CalibrationError(
            f"the best slope is {steepness / spread:.3g}, not above 0: its scores do not rise with the truth"
        )
    slope = steepness / spread
    return Platt(float(slope), float(level - slope * center))


def fit_temperature(logits: FloatArray, labels: FloatArray) -> float:
    """Fits one temperature, by which all logits are divided, by maximum likelihood over all known cells.

    The targets are Platt's, observation by observation, for the same reason as in `fit_platt`; Guo et al. use 1 and 0.

    Args:
        logits: `(num_studies, num_labels)`.
        labels: `(num_studies, num_labels)` in {0, 1}, NaN where unknown.

    Raises:
        CalibrationError: If an observation has fewer than `MIN_STUDIES_PER_CLASS` studies of a class, or no temperature
            above 0 is best: on the whole, positive logits are those of negative studies.
        ValueError: If the shapes differ or a logit is not finite.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    if np.shape(logits) != np.shape(labels):
        raise ValueError(f"Expected a label per logit, got shapes {np.shape(logits)} and {np.shape(labels)}.")
    columns = [known_studies(logits[:, column], labels[:, column]) for column in range(logits.shape[1])]
    for _, known in columns:
        refuse_few_studies(known)
    values = np.concatenate([column for column, _ in columns])
    targets = np.concatenate([_smoothed_targets(known) for _, known in columns])
    scale = float(np.abs(values).max())
    if scale == 0:
        raise CalibrationError("the logits are all 0")
    inverse = _maximum_likelihood(values[:, None] / scale, targets)[0] / scale
    if inverse <= 0:
        raise CalibrationError(f"the best temperature is {1 / inverse:.3g}, not above 0: its scores are upside down")
    return float(1 / inverse)


def fit_isotonic(logits: FloatArray, labels: FloatArray) -> Callable[[FloatArray], NDArray[np.float64]]:
    """Fits isotonic regression to one observation, for comparison only.

    It cannot be folded into a linear layer, and where it is flat it ties scores that were in order.

    Args:
        logits: `(num_studies,)`.
        labels: `(num_studies,)` in {0, 1}, NaN where unknown.

    Returns:
        A function from logits `(n,)` to probabilities `(n,)`.

    Raises:
        CalibrationError: If there are fewer than `MIN_STUDIES_PER_CLASS` studies of a class.

    Source: Zadrozny & Elkan 2002, KDD; scikit-learn's implementation.
    """
    logits, labels = known_studies(logits, labels)
    refuse_few_studies(labels)
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels).predict


def fit_calibration(
    logits: FloatArray, labels: FloatArray, observations: Sequence[str], method: Method | str
) -> Calibration:
    """Calibrates every observation that the data allow.

    Args:
        logits: `(num_studies, num_labels)`: the largest over the views of each study.
        labels: `(num_studies, num_labels)` in {0, 1}, NaN where unknown.
        observations: The names of the columns.
        method: With a temperature, too, observations with few studies are left as they are: nothing in the data says
            that it does them good.

    Returns:
        The lines, and the observations left out with the reason of each; possibly all of them.

    Raises:
        ValueError: If the shapes do not fit each other or a logit is not finite.
    """
    if np.shape(logits) != np.shape(labels) or np.shape(logits)[1:] != (len(observations),):
        raise ValueError(
            f"Expected logits and labels of shape (studies, {len(observations)}), got {np.shape(logits)} and "
            f"{np.shape(labels)}."
        )
    lines, left_out = {}, {}
    for column, name in enumerate(observations):
        try:
            if Method(method) is Method.PLATT:
                lines[name] = fit_platt(logits[:, column], labels[:, column])
            else:
                refuse_few_studies(labels[:, column])
                lines[name] = Platt(1.0, 0.0)  # until the temperature is known
        except CalibrationError as error:
            left_out[name] = str(error)
    if Method(method) is Method.TEMPERATURE and lines:
        columns = [observations.index(name) for name in lines]
        try:
            temperature = fit_temperature(logits[:, columns], labels[:, columns])
            lines = dict.fromkeys(lines, Platt(1 / temperature, 0.0))
        except CalibrationError as error:
            lines, left_out = {}, left_out | dict.fromkeys(lines, str(error))
    return Calibration(Method(method), lines, left_out)


def known_studies(scores: FloatArray, labels: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores and labels `(n,)` of the studies whose label is known.

    Raises:
        ValueError: If the shapes differ or a score is not finite.
    """
    if np.shape(scores) != np.shape(labels) or np.ndim(scores) != 1:
        raise ValueError(f"Expected one label per score, got shapes {np.shape(scores)} and {np.shape(labels)}.")
    is_known = ~np.isnan(labels)
    known = np.asarray(scores, dtype=np.float64)[is_known]
    if not np.isfinite(known).all():
        raise ValueError(f"{int((~np.isfinite(known)).sum())} scores are not finite.")
    return known, np.asarray(labels, dtype=np.float64)[is_known]


def refuse_few_studies(labels: FloatArray) -> None:
    """Raises CalibrationError unless there are `MIN_STUDIES_PER_CLASS` positive and as many negative labels."""
    num_positive, num_negative = int((labels == 1).sum()), int((labels == 0).sum())
    if min(num_positive, num_negative) < MIN_STUDIES_PER_CLASS:
        raise CalibrationError(
            f"{num_positive} positive and {num_negative} negative studies, expected at least {MIN_STUDIES_PER_CLASS} "
            "of each"
        )


def _smoothed_targets(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    num_positive, num_negative = (labels == 1).sum(), (labels == 0).sum()
    return np.where(labels == 1, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))


def _maximum_likelihood(design: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's method with halved steps: the weights `(k,)` of a logistic regression of targets `(n,)` on `(n, k)`.

    The likelihood is strictly concave for a design of full rank, and targets inside (0, 1) make its maximum finite.
    """

    def loss(weights: NDArray[np.float64]) -> float:
        scores = design @ weights
        return float((np.logaddexp(0, scores) - targets * scores).sum())

    weights = np.zeros(design.shape[1])
    for _ in range(_MAX_NEWTON_STEPS):
        p = expit(design @ weights)
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design, design.T @ (p - targets))
        while loss(weights - step) > loss(weights) * (1 + _ROUNDING) and np.abs(step).max() > _STEP_TOLERANCE:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() <= _STEP_TOLERANCE:
            return weights
    raise CalibrationError(f"the fit did not converge in {_MAX_NEWTON_STEPS} steps")
