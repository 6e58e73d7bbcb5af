import numpy as np
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from chexpert_hf.evaluation.calibration.calibration import METHODS, check_calibration, fit_platt
from tests.evaluation.figures import FIGURES

NAMES = ("Edema", "Fracture")


def studies(num: int = 400, sharpness: float = 4.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits that are `sharpness` times too far from 0, labels, and two studies of each patient."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(num, 2)) * 1.5
    labels = (rng.random((num, 2)) < expit(true)).astype(float)
    return sharpness * true, labels, [f"patient{number // 2:05d}" for number in range(num)]


def test_what_is_overconfident_is_repaired_on_patients_that_the_fit_has_not_seen():
    check = check_calibration(*studies(), NAMES)
    assert check.observations == NAMES
    assert check.scaled_brier["platt"] < check.scaled_brier["raw"] - 0.05
    assert check.calibration_error["temperature"] < check.calibration_error["raw"] / 2
    logits, labels, _ = studies()
    raw = [FIGURES["scaled_brier"](expit(logits[:, c]), labels[:, c]) for c in (0, 1)]
    assert check.scaled_brier["raw"] == pytest.approx(np.mean(raw), abs=1e-12)


def test_each_study_is_scored_by_a_fit_without_its_patient():
    logits, labels, _ = studies(60)
    logits, labels = logits[:, :1], labels[:, :1]
    # With as many patients as folds the folds are known: leave one patient out.
    patients = [f"patient{number // 12}" for number in range(60)]
    check = check_calibration(logits, labels, patients, NAMES[:1])
    assert check.folds == 5
    platt, isotonic = np.empty(60), np.empty(60)
    for first in range(0, 60, 12):
        held, rest = slice(first, first + 12), np.r_[0:first, first + 12 : 60]
        platt[held] = fit_platt(logits[rest, 0], labels[rest, 0]).probabilities(logits[held, 0])
        fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits[rest, 0], labels[rest, 0])
        isotonic[held] = fit.predict(logits[held, 0])
    for method, p in (("platt", platt), ("isotonic", isotonic)):
        assert check.scaled_brier[method] == pytest.approx(FIGURES["scaled_brier"](p, labels[:, 0]), abs=1e-12)
        assert check.calibration_error[method] == pytest.approx(FIGURES["ece"](p, labels[:, 0]), abs=1e-12)


def test_an_observation_with_few_studies_is_left_out_and_none_means_no_check():
    logits, labels, patients = studies(100)
    labels[:, 1] = 0
    labels[:5, 1] = 1
    assert check_calibration(logits, labels, patients, NAMES).observations == ("Edema",)
    assert check_calibration(logits, np.zeros_like(labels), patients, NAMES) is None


def test_the_table_has_a_line_for_each_method():
    check = check_calibration(*studies(), NAMES)
    lines = check.as_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    assert f"{check.scaled_brier['isotonic']:.3f}" in lines[4]
