"""What calibration is worth on studies that it was not fitted on: raw, Platt, temperature and isotonic, side by side.

Source: Irvin et al. 2019, arXiv:1901.07031, section 6, who compare raw, isotonic and Platt by the Brier score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from chexpert_hf.evaluation.calibration.calibration import CalibrationError, Method, fit_calibration, fit_isotonic
from chexpert_hf.evaluation.metrics import FloatArray, expected_calibration_error, scaled_brier_score

METHODS = ("raw", "platt", "temperature", "isotonic")
FOLDS = 5


@dataclass(frozen=True)
class CalibrationCheck:
    """Figures of each method on studies left out of its fit, as means over observations.

    Attributes:
        observations: Those that every fold can fit.
        folds: How many, of patients.
        scaled_brier: By method of `METHODS`; 0 is perfect, 1 is always answering the prevalence.
        calibration_error: By method, in [0, 1].
    """

    observations: tuple[str, ...]
    folds: int
    scaled_brier: dict[str, float]
    calibration_error: dict[str, float]

    def as_table(self) -> str:
        """A line per method."""
        lines = [f"{'held out':<12} scaled Brier  calibration error"]
        lines += [
            f"{method:<12} {self.scaled_brier[method]:12.3f}  {self.calibration_error[method]:17.3f}"
            for method in METHODS
        ]
        return "\n".join(lines)


def check_calibration(
    logits: FloatArray, labels: FloatArray, patients: Sequence[str], observations: Sequence[str], folds: int = FOLDS
) -> CalibrationCheck | None:
    """Cross-validates the methods: each fold of patients is scored by lines that were fitted on the other folds.

    Args:
        logits: `(num_studies, num_labels)`, finite.
        labels: `(num_studies, num_labels)` in {0, 1}, NaN where unknown.
        patients: Of each study; all studies of a patient are in one fold.
        observations: The names of the columns.
        folds: How many.

    Returns:
        The figures, or None where no observation has the studies for it in every fold.
    """
    held_out = _held_out(logits, labels, _folds(patients, folds), observations)  # method -> (num_studies, num_labels)
    is_fitted = np.all([np.isfinite(p).all(axis=0) for p in held_out.values()], axis=0)  # (num_labels,)
    columns = [column for column in range(len(observations)) if is_fitted[column]]
    if not columns:
        return None

    def mean(figure: Callable[[FloatArray, FloatArray], float], p: FloatArray) -> float:
        return float(np.mean([figure(p[:, column], labels[:, column]) for column in columns]))

    return CalibrationCheck(
        observations=tuple(observations[column] for column in columns),
        folds=folds,
        scaled_brier={method: mean(scaled_brier_score, p) for method, p in held_out.items()},
        calibration_error={method: mean(expected_calibration_error, p) for method, p in held_out.items()},
    )


def _folds(patients: Sequence[str], folds: int) -> NDArray[np.int_]:
    """`(num_studies,)`: the fold of each study, by a shuffle of the patients that is always the same."""
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[patient] % folds


def _held_out(
    logits: FloatArray, labels: FloatArray, fold_of: NDArray[np.int_], observations: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Probabilities `(num_studies, num_labels)` by each method, fitted on the other folds; NaN where it cannot be."""
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
            try:
                isotonic = fit_isotonic(x[:, column], y[:, column])
            except CalibrationError:
                continue  # stays NaN
            scores["isotonic"][is_held, column] = isotonic(logits[is_held, column])
    return scores
