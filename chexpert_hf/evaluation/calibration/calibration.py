"""Platt scaling, temperature scaling and operating points: fitted per study, and cross-validated by patient.

All functions take one score (logit or probability) per study and observation: the largest over the study's views. As
slopes are positive, the same view stays the largest, so a calibration fitted to studies may be applied to each view.

Sources: Platt 1999, "Probabilistic outputs for support vector machines"; Lin, Lin & Weng 2007, Machine Learning 68(3);
Guo et al. 2017, arXiv:1706.04599 (temperature); Saerens, Latinne & Decaestecker 2002, Neural Computation 14(1) (another
prevalence); Irvin et al. 2019, arXiv:1901.07031, section 6 (comparison of raw, isotonic and Platt); Youden 1950, Cancer
3(1) (operating points).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS, FloatArray, observation_metrics
from chexpert_hf.evaluation.tables import aligned

METHODS = ("raw", "platt", "temperature", "isotonic")  # isotonic regression cannot be folded into a linear layer
FOLDS = 5

_MAX_NEWTON_STEPS = 100
_STEP_TOLERANCE = 1e-10
_ROUNDING = 1e-12  # how much a sum of losses may rise by rounding alone, relative to itself


class CalibrationError(InputError):
    """The data or the model do not allow a calibration or an operating point; the message says why."""


class Method(str, Enum):
    """The methods by which a model can be calibrated."""

    PLATT = "platt"  # a slope and an intercept for the logit of each observation
    TEMPERATURE = "temperature"  # one divisor for the logits of all observations together


@dataclass(frozen=True)
class Platt:
    """The calibration of one observation: its logit z becomes slope * z + intercept."""

    slope: float  # above 0, so that the order of the scores, and with it the AUROC, stays
    intercept: float

    def probabilities(self, logits: FloatArray) -> NDArray[np.float64]:
        """Return calibrated probabilities, in [0, 1], in the shape of the uncalibrated logits."""
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def at_prevalence(self, wanted: float, fitted: float) -> "Platt":
        """Return this calibration, adapted to data in which the observation has another prevalence.

        `wanted` is that prevalence, and `fitted` that of the data of the fit; both are in (0, 1).

        Source: Saerens et al. 2002, equation 2.4.
        """
        return Platt(self.slope, self.intercept + float(logit(wanted) - logit(fitted)))


@dataclass(frozen=True)
class Calibration:
    """The result of `fit_calibration`: a slope and an intercept for each observation that can be calibrated."""

    method: Method
    lines: Mapping[str, Platt]  # observation -> slope and intercept; for a temperature T: 1 / T and 0
    left_out: Mapping[str, str]  # observation -> why it could not be calibrated


class Criterion(str, Enum):
    """The criteria by which the threshold of an operating point is chosen."""

    YOUDEN = "youden"  # the largest sensitivity + specificity
    SENSITIVITY = "sensitivity"  # the largest threshold that has the wanted sensitivity
    PPV = "ppv"  # the smallest threshold that has the wanted positive predictive value


@dataclass(frozen=True)
class OperatingRule:
    """How to choose operating points: a criterion, and the value to reach."""

    criterion: Criterion
    wanted: float | None = None  # sensitivity or PPV, in (0, 1]; None for Youden's

    @classmethod
    def parse(cls, text: str) -> "OperatingRule":
        """Parse "youden", "sensitivity=.9" or "ppv=.5"; raise CalibrationError for any other text."""
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
    """The threshold of one observation, and its metrics on the studies on which it was chosen.

    Expect lower metrics on other studies: the threshold was chosen to be good on these ones.
    """

    threshold: float  # in [0, 1]: a probability of this or more is positive
    sensitivity: float
    specificity: float
    ppv: float  # precision, for the prevalence that the user gave, or else for that of these studies


def fit_platt(logits: FloatArray, labels: FloatArray) -> Platt:
    """Fit Platt scaling to one observation by maximum likelihood.

    Logits and labels are `(num_studies,)`. Labels are in {0, 1}, NaN where unknown. As in Platt's paper, the targets
    are smoothed, so that the fit is finite even if the logits separate the classes. Of P positive and N negative
    studies, the positive ones have the target (P + 1) / (P + 2), the negative ones 1 / (N + 2).

    Raises:
        CalibrationError: If all logits are equal, the best slope is not above 0, or a class has too few studies (see
            `known_studies`).
    """
    logits, labels = known_studies(logits, labels)
    center, spread = float(logits.mean()), float(logits.std())
    if np.ptp(logits) == 0:
        raise CalibrationError(f"the logits of its {len(logits)} studies are all the same")
    # Standardised, since Newton's method may fail if the logits are far from 0.
    design = np.stack([(logits - center) / spread, np.ones_like(logits)], axis=1)
    steepness, level = _maximum_likelihood(design, _smoothed_targets(labels))
    slope = steepness / spread
    if slope <= 0:
        raise CalibrationError(f"the best slope is {slope:.3g}, not above 0: its scores do not rise with the truth")
    return Platt(float(slope), float(level - slope * center))


def fit_temperature(logits: FloatArray, labels: FloatArray) -> float:
    """Fit, by maximum likelihood, one temperature: the number that divides the logits of all observations.

    Logits and labels are `(num_studies, num_labels)`, NaN where a label is unknown. Targets are smoothed as in
    `fit_platt`, while Guo et al. use 1 and 0. Raises CalibrationError if an observation has too few studies (see
    `known_studies`), all logits are 0, or the best temperature is not above 0.
    """
    if np.shape(logits) != np.shape(labels):
        raise ValueError(f"Expected a label per logit, got shapes {np.shape(logits)} and {np.shape(labels)}.")
    columns = [known_studies(*pair) for pair in zip(logits.T, labels.T, strict=True)]
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
    """Fit isotonic regression to one observation; return a function from logits to probabilities.

    Logits and labels are `(num_studies,)`, labels in {0, 1}, NaN where unknown. Raises CalibrationError if a class has
    too few studies.
    """
    logits, labels = known_studies(logits, labels)
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits, labels).predict


def fit_calibration(
    logits: FloatArray, labels: FloatArray, observations: Sequence[str], method: Method | str
) -> Calibration:
    """Fit `method` to each observation where that is possible; `left_out` of the result says why not for the others.

    Logits and labels are `(num_studies, num_labels)`, NaN where a label is unknown.
    """
    if np.shape(logits) != np.shape(labels) or np.shape(logits)[1:] != (len(observations),):
        raise ValueError(
            f"Expected logits and labels of shape (studies, {len(observations)}), got {np.shape(logits)} and "
            f"{np.shape(labels)}."
        )
    lines, left_out = {}, {}
    for column, name in enumerate(observations):
        try:
            if method == Method.PLATT:
                lines[name] = fit_platt(logits[:, column], labels[:, column])
            else:
                known_studies(logits[:, column], labels[:, column])
                lines[name] = Platt(1.0, 0.0)  # until the temperature is known
        except CalibrationError as error:
            left_out[name] = str(error)
    if method == Method.TEMPERATURE and lines:
        columns = [observations.index(name) for name in lines]
        try:
            temperature = fit_temperature(logits[:, columns], labels[:, columns])
            lines = dict.fromkeys(lines, Platt(1 / temperature, 0.0))
        except CalibrationError as error:
            lines, left_out = {}, left_out | dict.fromkeys(lines, str(error))
    return Calibration(Method(method), lines, left_out)


@dataclass(frozen=True)
class CalibrationCheck:
    """Cross-validated metrics of each of `METHODS`, as means over observations.

    The methods are "raw" (no calibration), those of `Method`, and "isotonic" (regression, only for comparison).
    """

    observations: tuple[str, ...]  # those to which every method could be fitted in every fold
    folds: int  # number of folds, by patient
    scaled_brier: dict[str, float]  # method -> relative Brier score: 0 is perfect, 1 always answering the prevalence
    calibration_error: dict[str, float]  # method -> expected calibration error, in [0, 1]

    def as_table(self) -> str:
        """Format a table with a line per method."""
        rows = [[name, f"{self.scaled_brier[name]:.3f}", f"{self.calibration_error[name]:.3f}"] for name in METHODS]
        return aligned([["held out", "relative Brier", "calibration error"], *rows], right=(1, 2))


def check_calibration(
    logits: FloatArray, labels: FloatArray, patients: Sequence[str], observations: Sequence[str]
) -> CalibrationCheck | None:
    """Cross-validate each of `METHODS` by patient: each fold is calibrated by a fit to all the other folds.

    Logits and labels are `(num_studies, num_labels)`, NaN where a label is unknown; `patients` names the patient of
    each study. Returns None if there is no observation for which each method can be fitted for every fold.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    fold_of = np.random.default_rng(0).permutation(len(names))[patient] % FOLDS  # (num_studies,)
    scores = {method: np.full(np.shape(logits), np.nan) for method in METHODS}
    scores["raw"] = expit(np.asarray(logits, dtype=np.float64))
    for fold in np.unique(fold_of):
        is_held = fold_of == fold
        x, y = logits[~is_held], labels[~is_held]
        for method in (Method.PLATT, Method.TEMPERATURE):
            for name, line in fit_calibration(x, y, observations, method).lines.items():
                column = observations.index(name)
                scores[method.value][is_held, column] = line.probabilities(logits[is_held, column])
        for column in range(len(observations)):
            with suppress(CalibrationError):  # the column stays NaN
                isotonic = fit_isotonic(x[:, column], y[:, column])
                scores["isotonic"][is_held, column] = isotonic(logits[is_held, column])
    columns = np.flatnonzero(np.all([np.isfinite(p).all(axis=0) for p in scores.values()], axis=0)).tolist()
    if not columns:
        return None
    means: dict[str, dict[str, float]] = {"scaled_brier": {}, "ece": {}}
    for key, p in scores.items():
        results = [observation_metrics(p[:, column], labels[:, column]) for column in columns]
        for name, values in means.items():
            values[key] = float(np.mean([item[name] for item in results]))
    return CalibrationCheck(tuple(observations[column] for column in columns), FOLDS, *means.values())


def known_studies(scores: FloatArray, labels: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores and labels `(num_studies,)` of one observation without the studies whose label is unknown (NaN).

    Raises:
        CalibrationError: If there are fewer than `MIN_STUDIES_PER_CLASS` positive studies, or fewer negative ones.
        ValueError: If the shapes differ or a score is not finite.
    """
    if np.shape(scores) != np.shape(labels) or np.ndim(scores) != 1:
        raise ValueError(f"Expected one label per score, got shapes {np.shape(scores)} and {np.shape(labels)}.")
    is_known = ~np.isnan(labels)
    known = np.asarray(scores, dtype=np.float64)[is_known]
    if not np.isfinite(known).all():
        raise ValueError(f"{int((~np.isfinite(known)).sum())} scores are not finite.")
    num_positive, num_negative = int((labels == 1).sum()), int((labels == 0).sum())
    if min(num_positive, num_negative) < MIN_STUDIES_PER_CLASS:
        raise CalibrationError(
            f"{num_positive} positive and {num_negative} negative studies, expected at least {MIN_STUDIES_PER_CLASS} "
            "of each"
        )
    return known, np.asarray(labels, dtype=np.float64)[is_known]


def choose_operating_point(
    probabilities: FloatArray, labels: FloatArray, rule: OperatingRule, prevalence: float | None = None
) -> OperatingPoint:
    """Choose the threshold of one observation, and compute its metrics on these studies.

    Probabilities and labels are `(num_studies,)`, NaN where a label is unknown. The threshold lies halfway between two
    neighbouring probabilities, or between the lowest and 0, so that small differences between machines do not change
    the counts. If several are equally good by Youden, the most sensitive is taken. The PPV is computed for
    `prevalence`; if None, for the prevalence in these studies.

    Raises:
        CalibrationError: If no threshold reaches the wanted PPV, or (by Youden) none beats chance, or a class has too
            few studies (see `known_studies`).
    """
    probabilities, labels = known_studies(probabilities, labels)
    descending, cut = np.unique(-probabilities, return_inverse=True)
    called = np.bincount(cut).cumsum()  # (num_cuts,): studies with at least each probability, highest first
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
        index = np.flatnonzero(youden == youden.max())[-1]
    elif rule.criterion is Criterion.SENSITIVITY:
        index = np.argmax(true / num_positive >= wanted)
    else:
        reached = np.flatnonzero(ppv >= wanted)
        if not len(reached):
            raise CalibrationError(
                f"a positive predictive value of {wanted:g} is reached at no threshold; the highest is {ppv.max():.3f}"
            )
        index = reached[-1]
    upper, lower = np.append(-descending, 0.0)[index : index + 2]
    halfway = (upper + lower) / 2
    return OperatingPoint(
        # Two neighbouring floating-point numbers have no number between them.
        threshold=float(halfway if halfway > lower else upper),
        sensitivity=float(true[index] / num_positive),
        specificity=float(1 - (called[index] - true[index]) / num_negative),
        ppv=float(ppv[index]),
    )


def _smoothed_targets(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    num_positive, num_negative = (labels == 1).sum(), (labels == 0).sum()
    return np.where(labels == 1, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))


def _maximum_likelihood(design: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights `(k,)` of a logistic regression of `targets` `(n,)`, in (0, 1), on `design` `(n, k)`.

    Newton's method with halved steps. The likelihood is strictly concave for a design of full rank, and targets inside
    (0, 1) make its maximum finite.
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
