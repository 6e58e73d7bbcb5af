import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from chexpert_hf.evaluation.calibration.calibration import (
    CalibrationError,
    Criterion,
    OperatingRule,
    Platt,
    choose_operating_point,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    fit_temperature,
)
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS, auroc

NAN = float("nan")


def studies(num: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn with the probability sigmoid(slope * logit + intercept)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, num)
    return logits, (rng.random(num) < expit(slope * logits + intercept)).astype(float)


def platt_loss(line: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> float:
    """The negative log likelihood of Platt 1999, equations 1 and 2, term by term."""
    num_positive, num_negative = sum(labels == 1), sum(labels == 0)
    total = 0.0
    for z, y in zip(logits, labels, strict=True):
        target = (num_positive + 1) / (num_positive + 2) if y == 1 else 1 / (num_negative + 2)
        p = 1 / (1 + np.exp(-line[0] * z - line[1]))
        total -= target * np.log(p) + (1 - target) * np.log(1 - p)
    return total


def test_platt_scaling_recovers_the_line_that_the_labels_were_drawn_by():
    logits, labels = studies(200_000, slope=0.6, intercept=-0.8)
    line = fit_platt(logits, labels)
    assert line.slope == pytest.approx(0.6, abs=0.02)
    assert line.intercept == pytest.approx(-0.8, abs=0.02)


@pytest.mark.parametrize(("num", "slope", "intercept"), [(40, 1.0, 0.0), (200, 0.3, 0.5), (300, 3.0, -4.0)])
def test_platt_scaling_equals_another_minimisers_answer_for_the_same_likelihood(num, slope, intercept):
    logits, labels = studies(num, slope, intercept, seed=num)
    start = minimize(platt_loss, [1, 0], args=(logits, labels), method="Nelder-Mead", options={"xatol": 1e-6})
    best = minimize(platt_loss, start.x, args=(logits, labels), method="Powell", options={"xtol": 1e-12, "ftol": 1e-15})
    line = fit_platt(logits, labels)
    np.testing.assert_allclose([line.slope, line.intercept], best.x, atol=1e-6)


def test_platt_scaling_of_separated_classes_gives_platts_targets_and_not_certainty():
    labels = np.repeat([0.0, 1.0], [8, 10])
    p = fit_platt(labels * 3, labels).probabilities(np.array([0.0, 3.0]))
    np.testing.assert_allclose(p, [1 / 10, 11 / 12], atol=1e-9)  # two points: the line goes through both targets


def test_platt_scaling_of_shifted_and_scaled_logits_gives_the_same_probabilities():
    logits, labels = studies(300, 1.0, 0.0)
    expected = fit_platt(logits, labels).probabilities(logits)
    for moved in (logits + 1000, logits * 1e-4 - 5, logits * 1e4):
        np.testing.assert_allclose(fit_platt(moved, labels).probabilities(moved), expected, atol=1e-7)


def test_the_mean_of_calibrated_probabilities_is_the_mean_of_the_targets():
    logits, labels = studies(500, 0.5, 1.0)
    num_positive, num_negative = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    assert fit_platt(logits, labels).probabilities(logits).mean() == pytest.approx(targets.mean(), abs=1e-9)


def test_unknown_labels_take_no_part_in_any_fit():
    logits, labels = studies(100, 1.0, 0.0)
    more, unknown = np.append(logits, [50.0, -70.0, NAN]), np.append(labels, [NAN, NAN, NAN])
    assert fit_platt(more, unknown) == fit_platt(logits, labels)
    assert fit_temperature(more[:, None], unknown[:, None]) == fit_temperature(logits[:, None], labels[:, None])
    np.testing.assert_array_equal(fit_isotonic(more, unknown)(logits), fit_isotonic(logits, labels)(logits))


def test_a_slope_that_would_turn_the_order_around_is_refused():
    logits, labels = studies(200, -1.0, 0.0)
    with pytest.raises(CalibrationError, match=r"the best slope is -[\d.]+, not above 0"):
        fit_platt(logits, labels)


def test_logits_that_are_all_the_same_are_refused():
    with pytest.raises(CalibrationError, match="20 studies are all the same"):
        fit_platt(np.full(20, 0.1), np.tile([0.0, 1.0], 10))


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_few_studies_of_a_class_are_refused(fit):
    labels = np.zeros(50)
    labels[: MIN_STUDIES_PER_CLASS - 1] = 1
    with pytest.raises(CalibrationError, match="4 positive and 46 negative studies, expected at least 5"):
        fit(np.arange(50.0), labels)
    with pytest.raises(CalibrationError, match="46 positive and 4 negative"):
        fit(np.arange(50.0), 1 - labels)


def test_arrays_that_do_not_fit_or_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"one label per score, got shapes \(3,\) and \(2,\)"):
        fit_platt(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="1 scores are not finite"):
        fit_platt(np.array([0.0, np.inf]), np.zeros(2))
    with pytest.raises(ValueError, match="a label per logit"):
        fit_temperature(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"shape \(studies, 1\)"):
        fit_calibration(np.zeros((3, 2)), np.zeros((3, 2)), ["Edema"], "platt")


def several(num: int, slopes: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    columns = [studies(num, slope, 0.0, seed=seed + place) for place, slope in enumerate(slopes)]
    return np.stack([logits for logits, _ in columns], axis=1), np.stack([labels for _, labels in columns], axis=1)


def test_a_temperature_recovers_what_the_logits_were_divided_by():
    logits, labels = several(100_000, [0.4, 0.4, 0.4])
    assert fit_temperature(logits, labels) == pytest.approx(2.5, abs=0.05)


def test_a_temperature_equals_another_minimisers_answer_for_the_same_likelihood():
    logits, labels = several(80, [0.4, 1.3])
    labels[:7, 1] = NAN

    def loss(temperature: np.ndarray) -> float:
        known = [~np.isnan(labels[:, column]) for column in range(2)]
        line = np.array([1 / temperature[0], 0.0])
        return sum(platt_loss(line, logits[known[c], c], labels[known[c], c]) for c in range(2))

    best = minimize(loss, [1.0], method="Powell", options={"xtol": 1e-12, "ftol": 1e-15})
    assert fit_temperature(logits, labels) == pytest.approx(best.x[0], abs=1e-6)


def test_a_temperature_below_0_is_refused_and_one_of_separated_classes_is_finite():
    logits, labels = several(100, [-1.0])
    with pytest.raises(CalibrationError, match="upside down"):
        fit_temperature(logits, labels)
    with pytest.raises(CalibrationError, match="all 0"):
        fit_temperature(np.zeros((20, 1)), np.tile([0.0, 1.0], 10)[:, None])
    signs = np.tile([-1.0, 1.0], 10)[:, None]
    assert 0.1 < fit_temperature(signs, (signs + 1) / 2) < 1


def test_isotonic_probabilities_are_the_frequencies_of_pooled_studies():
    logits = np.arange(12.0)
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1.0])
    expected = [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1]  # by hand: pool adjacent violators
    np.testing.assert_allclose(fit_isotonic(logits, labels)(logits), expected, atol=1e-12)


def test_every_observation_has_a_line_or_a_reason():
    logits, labels = several(200, [1.0, -1.0, 1.0, 0.5])
    labels[:, 2] = 0
    names = ["Edema", "Fracture", "Pneumonia", "Atelectasis"]
    calibration = fit_calibration(logits, labels, names, "platt")
    assert calibration.lines == {
        "Edema": fit_platt(logits[:, 0], labels[:, 0]),
        "Atelectasis": fit_platt(logits[:, 3], labels[:, 3]),
    }
    assert set(calibration.left_out) == {"Fracture", "Pneumonia"}
    assert "not above 0" in calibration.left_out["Fracture"]
    assert "0 positive and 200 negative" in calibration.left_out["Pneumonia"]


def test_one_temperature_serves_every_observation_that_has_the_studies_for_it():
    logits, labels = several(200, [1.0, 0.5, 1.0])
    labels[:, 2] = 0
    calibration = fit_calibration(logits, labels, ["Edema", "Fracture", "Pneumonia"], "temperature")
    line = Platt(1 / fit_temperature(logits[:, :2], labels[:, :2]), 0.0)
    assert calibration.lines == {"Edema": line, "Fracture": line}
    assert "0 positive" in calibration.left_out["Pneumonia"]
    upside_down = fit_calibration(*several(200, [-1.0]), ["Edema"], "temperature")
    assert not upside_down.lines
    assert "upside down" in upside_down.left_out["Edema"]


def test_calibration_leaves_the_auroc_as_it_is():
    logits, labels = studies(300, 0.4, -2.0)
    assert auroc(fit_platt(logits, labels).probabilities(logits), labels) == auroc(logits, labels)


def counts(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[int, int]:
    """True and false positives."""
    called = probabilities >= threshold
    return int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())


def scored(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """40 studies with ties, and some of unknown label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 40).astype(float)
    labels[:10] = np.tile([0.0, 1.0], 5)
    probabilities = np.round(np.clip(labels * 0.3 + rng.random(40) * 0.7, 0, 1), 1 + seed % 3)
    labels[rng.integers(10, 40, 4)] = NAN
    return probabilities, labels


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("text", ["youden", "sensitivity=.9", "sensitivity=1", "sensitivity=.55", "ppv=.7", "ppv=.8"])
def test_operating_points_are_the_best_of_all_thresholds(seed, text):
    probabilities, labels = scored(seed)
    num_positive, num_negative = (labels == 1).sum(), (labels == 0).sum()
    point = choose_operating_point(probabilities, labels, OperatingRule.parse(text))
    known = probabilities[~np.isnan(labels)]
    candidates = sorted({counts(probabilities, labels, threshold) for threshold in np.unique(known)})
    wanted = float(text.partition("=")[2] or 0)
    if text == "youden":
        best = max(candidates, key=lambda c: (round(c[0] / num_positive - c[1] / num_negative, 9), c))
    elif text.startswith("sensitivity"):
        best = min(c for c in candidates if c[0] / num_positive >= wanted)
    else:
        best = max(c for c in candidates if c[0] / sum(c) >= wanted)
    assert counts(probabilities, labels, point.threshold) == best
    assert counts(probabilities, labels, point.threshold - 1e-6) == best
    assert counts(probabilities, labels, point.threshold + 1e-6) == best
    assert point.sensitivity == pytest.approx(best[0] / num_positive)
    assert point.specificity == pytest.approx(1 - best[1] / num_negative)
    assert point.ppv == pytest.approx(best[0] / sum(best))


def test_operating_points_worked_out_by_hand():
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    labels = np.array([1, 1, 0, 1, 1, 0, 0, 1, 0, 0.0])
    expected = {"youden": 0.45, "sensitivity=.8": 0.45, "sensitivity=.81": 0.15, "ppv=.75": 0.45, "ppv=.9": 0.75}
    for text, threshold in expected.items():
        point = choose_operating_point(probabilities, labels, OperatingRule.parse(text))
        assert point.threshold == pytest.approx(threshold), text


def test_between_neighbouring_numbers_the_threshold_is_the_upper_one():
    lower = 0.5
    upper = np.nextafter(lower, 1)
    assert (lower + upper) / 2 == lower
    labels = np.array([1.0] * 5 + [0.0] * 5)
    point = choose_operating_point(np.where(labels == 1, upper, lower), labels, OperatingRule(Criterion.YOUDEN))
    assert point.threshold == upper


def test_a_predictive_value_that_is_reached_nowhere_is_said():
    labels = np.array([0.0] * 5 + [1.0] * 5)
    probabilities = np.array([0.9, 0.2, 0.3, 0.4, 0.1, 0.5, 0.6, 0.7, 0.8, 0.15])
    rule = OperatingRule.parse("ppv=.99")
    with pytest.raises(CalibrationError, match=r"0\.99 is reached at no threshold; the highest is 0\.800"):
        choose_operating_point(probabilities, labels, rule)


def test_scores_that_are_upside_down_have_no_operating_point_by_youden():
    labels = np.array([0.0] * 5 + [1.0] * 5)
    with pytest.raises(CalibrationError, match="no threshold does better than chance"):
        choose_operating_point(1 - labels, labels, OperatingRule.parse("youden"))
    with pytest.raises(CalibrationError, match="0 positive and 5 negative"):
        choose_operating_point(np.zeros(5), np.zeros(5), OperatingRule.parse("youden"))


def test_rules_are_read_as_they_are_written():
    assert OperatingRule.parse(" Youden ") == OperatingRule(Criterion.YOUDEN)
    assert OperatingRule.parse("sensitivity=.9") == OperatingRule(Criterion.SENSITIVITY, 0.9)
    assert OperatingRule.parse("PPV=1") == OperatingRule(Criterion.PPV, 1.0)


@pytest.mark.parametrize(
    "text", ["", "best", "youden=.5", "sensitivity", "ppv=", "ppv=0", "ppv=90", "ppv=nan", "ppv=x"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(CalibrationError, match=rf"above 0, at most 1\), got '{text}'"):
        OperatingRule.parse(text)


def test_another_prevalence_changes_the_odds_as_bayes_says():
    line, logits = Platt(1.3, -0.4), np.linspace(-6, 6, 25)
    p = line.probabilities(logits)
    positive, negative = p * 0.1 / 0.4, (1 - p) * 0.9 / 0.6
    moved = line.at_prevalence(wanted=0.1, fitted=0.4)
    np.testing.assert_allclose(moved.probabilities(logits), positive / (positive + negative), atol=1e-12)
    assert moved.slope == line.slope
    assert line.at_prevalence(0.4, 0.4) == line


@pytest.mark.parametrize("seed", range(4))
def test_predictive_values_at_another_prevalence_are_those_of_studies_with_that_prevalence(seed):
    probabilities, labels = scored(seed)
    repeats = np.where(labels == 0, 3, 1)  # each negative study three times
    more_p, more_labels = np.repeat(probabilities, repeats), np.repeat(labels, repeats)
    prevalence = float(np.nanmean(more_labels))
    rule = OperatingRule.parse("ppv=.5")
    point = choose_operating_point(probabilities, labels, rule, prevalence)
    expected = choose_operating_point(more_p, more_labels, rule)
    assert point.threshold == expected.threshold
    assert point.ppv == pytest.approx(expected.ppv, abs=1e-12)
