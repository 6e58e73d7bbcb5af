import itertools
from math import sqrt

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from chexpert_hf.evaluation.intervals import (
    PatientBootstrap,
    bootstrap_p_value,
    delong_interval,
    delong_test,
    delong_variance,
    percentile_interval,
    placements,
    wilson_interval,
)
from chexpert_hf.evaluation.metrics import WeightedMetrics, auroc
from tests.benchmarks.delong_coverage import coverage
from tests.evaluation.figures import FIGURES

NAN = float("nan")


def tied_case(seed, num_studies=30, levels=8):
    """Scores with ties and labels with both classes (at least two studies of each) and some unknown."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_studies).astype(float)
    labels[:7] = 0, 1, 0, 1, NAN, NAN, NAN
    return rng.integers(0, levels + 1, num_studies) / levels, labels


def kernel(scores, labels):
    """`(num_positive, num_negative)`: 1 where the positive is above, half for ties; pair by pair."""
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    values = [1.0 if positive > negative else 0.5 if positive == negative else 0.0 for positive, negative in pairs]
    return np.reshape(values, ((labels == 1).sum(), (labels == 0).sum()))


def brute_force_covariance(labels, *scores):
    kernels = [kernel(item, labels) for item in scores]
    below = np.atleast_2d(np.cov([item.mean(axis=1) for item in kernels]))
    above = np.atleast_2d(np.cov([item.mean(axis=0) for item in kernels]))
    return below / kernels[0].shape[0] + above / kernels[0].shape[1]


def test_placements_and_variance_equal_those_of_comparing_every_pair():
    for seed in range(200):
        scores, labels = tied_case(seed)
        pairs = kernel(scores, labels)
        below, above = placements(scores, labels)
        np.testing.assert_allclose(below, pairs.mean(axis=1), atol=1e-12)
        np.testing.assert_allclose(above, pairs.mean(axis=0), atol=1e-12)
        assert delong_variance(scores, labels) == pytest.approx(brute_force_covariance(labels, scores)[0, 0], abs=1e-10)


def test_the_paired_test_equals_that_of_the_covariance_of_every_pair():
    for seed in range(100):
        scores_a, labels = tied_case(seed)
        scores_b = np.clip(scores_a + np.random.default_rng(seed).normal(size=30).round(1) / 4, 0, 1)
        covariance = brute_force_covariance(labels, scores_a, scores_b)
        error = sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        difference = auroc(scores_a, labels) - auroc(scores_b, labels)
        test = delong_test(scores_a, scores_b, labels)
        assert test.difference.value == pytest.approx(difference, abs=1e-12)
        assert test.difference.high == pytest.approx(min(1, difference + 1.959963985 * error), abs=1e-8)
        assert test.difference.low == pytest.approx(max(-1, difference - 1.959963985 * error), abs=1e-8)
        assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / error), abs=1e-9)


def test_a_model_does_not_differ_from_itself():
    scores, labels = tied_case(0)
    test = delong_test(scores, scores, labels)
    assert (test.difference.value, test.p_value) == (0, 1)
    assert np.isnan(test.difference.low)


def test_the_interval_is_symmetric_on_the_logit_scale_with_the_t_of_the_smaller_class():
    scores, labels = tied_case(3)
    estimate = delong_interval(scores, labels)
    value = auroc(scores, labels)
    error = sqrt(brute_force_covariance(labels, scores)[0, 0]) / (value * (1 - value))
    width = stats.t.ppf(0.975, min((labels == 1).sum(), (labels == 0).sum()) - 1) * error
    middle = np.log(value / (1 - value))
    assert estimate.value == pytest.approx(value)
    assert estimate.low == pytest.approx(1 / (1 + np.exp(-(middle - width))))
    assert estimate.high == pytest.approx(1 / (1 + np.exp(-(middle + width))))


def test_the_interval_turns_with_the_labels():
    scores, labels = tied_case(5)
    estimate, turned = delong_interval(scores, labels), delong_interval(-scores, labels)
    assert (turned.low, turned.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3, 0.7, 0.8], [0.9, 0.8, 0.7, 0.2, 0.1], [0.5] * 5])
def test_an_interval_has_a_width_where_the_variance_is_zero(scores):
    estimate = delong_interval(np.array(scores), np.array([0.0, 0, 0, 1, 1]))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.3


def test_newcombes_interval_solves_his_equation():
    # Perfect separation of 20 from 30: the low end is where (1 - theta)^2 = z^2 V(theta), V from Hanley & McNeil.
    labels = np.repeat([0.0, 1.0], [30, 20])
    low = delong_interval(labels * 0.5, labels).low
    first, second = low / (2 - low), 2 * low**2 / (1 + low)
    equal_halves = 25 - 1
    variance = (low * (1 - low) + equal_halves * (first - low**2) + equal_halves * (second - low**2)) / (20 * 30)
    assert 1 - low == pytest.approx(1.959963985 * sqrt(variance), rel=1e-6)


def test_one_class_has_no_interval():
    estimate = delong_interval(np.array([0.1, 0.2]), np.array([1.0, NAN]))
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    assert np.isnan(delong_test(np.ones(2), np.ones(2), np.ones(2)).p_value)
    assert np.isnan(delong_variance(np.array([0.1, 0.2]), np.array([1.0, 0.0])))


@pytest.mark.parametrize(("true_auroc", "prevalence"), [(0.85, 0.3), (0.95, 0.1), (0.95, 0.4)])
def test_the_interval_holds_the_true_auroc_as_often_as_it_says(true_auroc, prevalence):
    share = coverage(true_auroc, prevalence, num_studies=200, num_sets=800, seed=1)["ours"]
    assert 0.91 <= share <= 0.98  # three standard errors below .93, what the benchmark finds in the worst of these


def test_wilson_solves_his_equation_and_ends_at_no_and_all_successes():
    for trials in (1, 2, 7, 50, 1000):
        for successes in {0, 1, trials // 3, trials - 1, trials}:
            estimate = wilson_interval(successes, trials)
            assert estimate.value == successes / trials
            assert estimate.low == 0 if successes == 0 else estimate.low > 0
            assert estimate.high == 1 if successes == trials else estimate.high < 1
            for end in {estimate.low, estimate.high} - {0.0, 1.0}:  # |share - end| = z standard errors at the end
                error = sqrt(end * (1 - end) / trials)
                assert abs(estimate.value - end) == pytest.approx(1.959963985 * error, abs=1e-9)


def test_wilson_of_nothing_is_undefined_and_of_the_impossible_refused():
    assert np.isnan(wilson_interval(0, 0).low)
    with pytest.raises(ValueError, match="got 3 successes in 2 trials"):
        wilson_interval(3, 2)


def test_figures_with_all_weights_one_are_the_plain_figures():
    for seed in range(50):
        scores, labels = tied_case(seed)
        values = WeightedMetrics(scores, labels)(np.ones((30, 1)))[:, 0]
        for value, figure in zip(values, FIGURES.values(), strict=True):
            assert value == pytest.approx(figure(scores, labels), abs=1e-12)


def test_counting_a_study_twice_is_the_same_as_having_it_twice():
    for seed in range(50):
        scores, labels = tied_case(seed, levels=8 if seed % 2 else 10_000)
        weights = np.random.default_rng(seed).integers(0, 4, (30, 3)).astype(float)
        weights[:2] += 1  # both classes
        weighted = WeightedMetrics(scores, labels)(weights)
        for column in range(3):
            times = weights[:, column].astype(int)
            for value, figure in zip(weighted[:, column], FIGURES.values(), strict=True):
                assert value == pytest.approx(figure(np.repeat(scores, times), np.repeat(labels, times)), abs=1e-12)


def test_weighted_figures_equal_scikit_learns():
    for seed in range(50):
        scores, labels = tied_case(seed)
        weights = np.random.default_rng(seed).random((30, 1))
        is_known = ~np.isnan(labels)
        data, weight = (labels[is_known], scores[is_known]), weights[is_known, 0]
        figures = WeightedMetrics(scores, labels)
        values = figures(weights)[:, 0]
        assert values[0] == pytest.approx(roc_auc_score(*data, sample_weight=weight), abs=1e-12)
        assert values[1] == pytest.approx(average_precision_score(*data, sample_weight=weight), abs=1e-12)
        assert values[2] == pytest.approx(brier_score_loss(*data, sample_weight=weight), abs=1e-12)
        assert figures.auroc(weights)[0] == values[0]


def test_a_weighting_without_a_class_is_undefined_where_it_must_be():
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    values = WeightedMetrics(np.array([0.2, 0.7]), np.array([0.0, 1.0]))(weights)
    assert np.isnan(values[[0, 1, 3]]).all()
    np.testing.assert_allclose(values[2], [0.04, 0.09, NAN])
    np.testing.assert_allclose(values[4], [0.2, 0.3, NAN])
    assert np.isnan(WeightedMetrics(np.array([0.2, 0.7]), np.array([NAN, NAN]))(weights)).all()


def test_the_bootstrap_draws_whole_patients_and_as_many_as_there_are():
    patients = ["b", "a", "b", "c", "a", "b"]
    blocks = list(PatientBootstrap(patients, replicates=100, seed=3).weights())
    weights = np.concatenate(blocks, axis=1)
    assert weights.shape == (6, 100)
    assert (weights[0] == weights[2]).all()
    assert (weights[0] == weights[5]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()
    assert len(np.unique(weights, axis=1).T) == 10  # every multiset of three patients comes up
    np.testing.assert_array_equal(next(PatientBootstrap(patients, 100, seed=3).weights()), blocks[0])
    assert (next(PatientBootstrap(patients, 100, seed=4).weights()) != blocks[0]).any()


@pytest.mark.parametrize(("patients", "replicates"), [([], 10), (["a"], 0)])
def test_a_bootstrap_of_nothing_is_refused(patients, replicates):
    with pytest.raises(ValueError, match="Expected patients and at least 1 replicate"):
        PatientBootstrap(patients, replicates)


def bootstrapped(scores, labels, patients, replicates=4000, seed=0):
    figures = WeightedMetrics(scores, labels)
    values = PatientBootstrap(patients, replicates, seed).replicate(figures)
    return [percentile_interval(0.0, row) for row in values]


def mann_whitney(scores, labels):
    """The AUROC from the ranks: in a tenth of scikit-learn's time."""
    num_positive = labels.sum()
    surplus = stats.rankdata(scores)[labels == 1].sum() - num_positive * (num_positive + 1) / 2
    return surplus / (num_positive * (len(labels) - num_positive))


def squared_error(scores, labels):
    return np.mean((scores - labels) ** 2)


@pytest.mark.slow
def test_with_one_study_per_patient_the_interval_is_scipys():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0.0, 1.0], [90, 60]))
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    intervals = bootstrapped(scores, labels, [str(i) for i in range(150)])
    fast = FIGURES | {"auroc": mann_whitney, "brier": squared_error}
    for (name, figure), interval in zip(fast.items(), intervals, strict=True):
        assert figure(scores, labels) == pytest.approx(FIGURES[name](scores, labels), abs=1e-12)
        expected = stats.bootstrap(
            (scores, labels),
            figure,
            paired=True,
            vectorized=False,
            method="percentile",
            n_resamples=4000,
            random_state=1,
        ).confidence_interval
        # Each end is a percentile of 4,000 draws: its Monte-Carlo error is about 1 % of the interval's width.
        tolerance = 0.06 * (expected.high - expected.low)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=tolerance)


def test_duplicated_studies_of_a_patient_add_no_certainty():
    scores, labels = tied_case(1, num_studies=40)
    patients = [f"patient{i}" for i in range(40)]
    single = bootstrapped(scores, labels, patients)
    double = bootstrapped(np.tile(scores, 2), np.tile(labels, 2), patients * 2)
    apart = bootstrapped(np.tile(scores, 2), np.tile(labels, 2), [f"patient{i}" for i in range(80)])
    for one, two, other in zip(single, double, apart, strict=True):
        assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=1e-12)
        assert other.high - other.low < 0.9 * (one.high - one.low)


def test_resamples_without_both_classes_are_left_out_and_counted():
    values = np.array([0.5, NAN, 0.6, 0.7, NAN])
    estimate = percentile_interval(0.6, values)
    assert estimate.left_out == 2
    assert (estimate.low, estimate.high) == pytest.approx((0.505, 0.695))  # a fortieth of the way from end to end
    labels = np.array([1.0, 0, 0, 0])
    interval = bootstrapped(np.array([0.9, 0.1, 0.2, 0.95]), labels, list("abcd"))[0]
    # The positive is missing from (3/4)^4 = .316 of the resamples, and alone in (1/4)^4 = .004.
    assert interval.left_out / 4000 == pytest.approx(0.320, abs=0.025)


def test_an_interval_from_nothing_is_undefined():
    estimate = percentile_interval(NAN, np.full(3, NAN))
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.left_out == 3


def test_the_p_value_of_a_bootstrap_is_twice_the_rarer_side():
    differences = np.concatenate([np.full(9, -1.0), np.full(90, 1.0), [NAN]])
    assert bootstrap_p_value(differences) == pytest.approx(2 * 10 / 100)
    assert bootstrap_p_value(-differences) == pytest.approx(2 * 10 / 100)
    assert bootstrap_p_value(np.zeros(5)) == 1
    assert np.isnan(bootstrap_p_value(np.array([NAN])))


def several_per_patient(seed, num_patients=25):
    """Scores with ties, labels and patients; the studies of a patient resemble each other."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    labels = (rng.random(len(patients)) < rng.random(num_patients)[patients]).astype(float)
    labels[rng.random(len(patients)) < 0.1] = NAN
    scores = np.round(rng.normal(size=num_patients)[patients] + rng.normal(size=len(patients)) + labels, 1)
    return np.nan_to_num(scores), labels, patients


def obuchowski(scores, labels, patients):
    """Her formulas, patient by patient."""
    pairs = kernel(scores, labels)
    below, above, value = pairs.mean(axis=1), pairs.mean(axis=0), pairs.mean()
    positive, negative = patients[labels == 1], patients[labels == 0]
    everyone = set(positive) | set(negative)
    m = {p: below[positive == p].sum() - (positive == p).sum() * value for p in everyone}
    n = {p: above[negative == p].sum() - (negative == p).sum() * value for p in everyone}
    counts = len(set(positive)), len(set(negative)), len(everyone)
    s10 = counts[0] / ((counts[0] - 1) * len(positive)) * sum(item**2 for item in m.values())
    s01 = counts[1] / ((counts[1] - 1) * len(negative)) * sum(item**2 for item in n.values())
    s11 = counts[2] / (counts[2] - 1) * sum(m[p] * n[p] for p in everyone)
    return s10 / len(positive) + s01 / len(negative) + 2 * s11 / (len(positive) * len(negative))


@pytest.mark.parametrize("seed", range(20))
def test_the_variance_with_several_studies_per_patient_is_obuchowskis(seed):
    scores, labels, patients = several_per_patient(seed)
    names = [f"patient{number:05d}" for number in patients]
    assert delong_variance(scores, labels, names) == pytest.approx(obuchowski(scores, labels, patients), abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_a_study_that_is_there_twice_makes_no_interval_or_test_narrower(seed):
    scores, labels = tied_case(seed)
    others = np.random.default_rng(seed).normal(size=len(scores))
    patients = np.arange(len(scores))
    twice = [np.concatenate([item, item]) for item in (scores, others, labels, patients)]
    once = delong_interval(scores, labels), delong_test(scores, others, labels)
    again = delong_interval(twice[0], *twice[2:]), delong_test(*twice)
    assert again[0].low == pytest.approx(once[0].low, abs=1e-12)
    assert again[0].high == pytest.approx(once[0].high, abs=1e-12)
    assert again[1].p_value == pytest.approx(once[1].p_value, abs=1e-12)
    assert delong_interval(twice[0], twice[2]).low > once[0].low


def test_a_variance_that_rounding_takes_below_0_is_0():
    names = np.repeat(np.arange(12), 2)
    for seed in range(300):  # each patient has a positive and a negative study of the same score
        scores, labels = np.repeat(np.random.default_rng(seed).normal(size=12), 2), np.tile([1.0, 0.0], 12)
        assert delong_variance(scores, labels, names) >= 0
        delong_test(scores, -scores, labels, names)


def test_one_study_per_patient_is_plain_delong_and_one_patient_has_no_variance():
    scores, labels = tied_case(3)
    assert delong_variance(scores, labels, list("abcdefghijklmnopqrstuvwxyz0123")) == delong_variance(scores, labels)
    assert np.isnan(delong_variance(scores, labels, ["a"] * len(scores)))
