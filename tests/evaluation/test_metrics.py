import itertools

import numpy as np
import pytest
from datasets import Dataset

from chexpert_hf.evaluation.metrics import (
    MIN_STUDIES_PER_CLASS,
    auroc,
    averaged_observations,
    evaluate_probabilities,
    evaluation_labels,
    judged_observations,
    observation_metrics,
    per_study,
    split_labels,
)
from chexpert_hf.evaluation.report.report import as_table
from tests.evaluation.figures import FIGURES

NAN = float("nan")


def test_a_study_with_an_uncertain_view_is_positive_or_unknown_and_never_negative():
    views = [
        ("a", -1),
        ("a", 0),
        ("b", -1),
        ("b", NAN),
        ("c", -1),
        ("c", 1),
        ("d", 0),
        ("d", NAN),
        ("e", -100),
        ("e", -1),
    ]
    dataset = Dataset.from_dict({"study": [name for name, _ in views], "labels": [[value] for _, value in views]})
    for blank in ("negative", "unknown"):
        studies, names = per_study(split_labels(dataset, blank), dataset["study"][:])
        assert names == [*"abcde"]
        np.testing.assert_array_equal(studies[:, 0], [NAN, NAN, 1, 0, NAN])


def test_auroc_equals_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(0, 2, 30).astype(float)
        labels[:2] = 0, 1
        scores = rng.integers(0, 8, 30) / 8  # with ties
        pairs = [
            1.0 if positive > negative else 0.5 if positive == negative else 0.0
            for positive, negative in itertools.product(scores[labels == 1], scores[labels == 0])
        ]
        assert auroc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_unknown_labels_take_no_part_in_auroc():
    assert auroc(np.array([0.1, 0.9, 0.5, 0.99]), np.array([0, 1, 1, NAN])) == 1.0


def test_auroc_of_one_class_is_undefined_and_not_a_half():
    assert np.isnan(auroc(np.array([0.1, 0.9]), np.array([1.0, 1.0])))


def test_a_studys_score_is_the_maximum_over_its_views():
    values = np.array([[0.1, 0.8], [0.7, 0.2], [0.4, NAN], [0.3, NAN]])
    result, studies = per_study(values, ["b", "a", "b", "b"])
    assert studies == ["b", "a"]
    np.testing.assert_array_equal(result, [[0.4, 0.8], [0.7, 0.2]])


def test_a_study_of_unknown_labels_stays_unknown():
    result, _ = per_study(np.array([[NAN], [NAN]]), ["a", "a"])
    assert np.isnan(result).all()


def test_uncertain_is_unknown_and_blank_is_negative_unless_told_otherwise():
    raw = np.array([1, 0, -1, NAN])
    np.testing.assert_array_equal(evaluation_labels(raw), [1, 0, NAN, 0])
    np.testing.assert_array_equal(evaluation_labels(raw, "unknown"), [1, 0, NAN, NAN])
    # A blank is None, as pandas gives it back.
    nulls = Dataset.from_dict({"labels": [[1.0, None], [-1.0, 0.0]], "study": ["a", "b"]})
    np.testing.assert_array_equal(split_labels(nulls, "negative"), [[1, 0], [NAN, 0]])


def test_an_observation_with_few_studies_of_a_class_is_not_judged():
    labels = np.zeros((20, 2))
    labels[:MIN_STUDIES_PER_CLASS, 0] = 1
    labels[: MIN_STUDIES_PER_CLASS - 1, 1] = 1
    assert judged_observations(labels, ["Edema", "Fracture"]) == ("Edema",)


def competition_like(num_studies=40):
    rng = np.random.default_rng(0)
    observations = ["Edema", "Atelectasis", "Pneumonia", "Consolidation"]
    labels = rng.integers(0, 2, (num_studies, 4)).astype(float)
    labels[:, 3] = 0  # Consolidation never occurs
    probabilities = np.clip(labels * 0.2 + rng.random((num_studies, 4)) * 0.8, 0, 1)
    return probabilities, labels, [f"study{i}" for i in range(num_studies)], observations


def test_the_mean_is_over_the_competition_observations_that_can_be_judged():
    probabilities, labels, studies, observations = competition_like()
    evaluation = evaluate_probabilities(probabilities, labels, studies, observations)
    by_name = {item.observation: item for item in evaluation.observations}
    assert evaluation.mean_over == ("Edema", "Atelectasis")
    assert evaluation.mean_auroc == pytest.approx((by_name["Edema"].auroc + by_name["Atelectasis"].auroc) / 2)
    assert np.isnan(by_name["Consolidation"].auroc)
    assert by_name["Edema"].num_positive + by_name["Edema"].num_negative == 40
    assert evaluation.to_dict()["observations"][3]["auroc"] is None


def test_without_competition_observations_the_mean_is_over_all_that_can_be_judged():
    probabilities, labels, studies, _ = competition_like()
    evaluation = evaluate_probabilities(
        probabilities, labels, studies, ["Fracture", "Pneumonia", "Lung Lesion", "Pneumothorax"]
    )
    assert evaluation.mean_over == ("Fracture", "Pneumonia", "Lung Lesion")


def test_the_table_says_what_was_not_judged_and_what_the_mean_covers():
    table = as_table(evaluate_probabilities(*competition_like()))
    assert "Consolidation" in table
    assert "not judged: one class only" in table
    assert "over Edema, Atelectasis" in table
    unknown = as_table(evaluate_probabilities(np.array([[0.1], [0.2]]), np.full((2, 1), np.nan), ["a", "b"], ["Edema"]))
    assert unknown.splitlines()[1].split(maxsplit=3) == ["Edema", "0", "0", "not judged: no known label"]


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 2), "Expected probabilities and labels of shape"), ((4, 3), "Expected probabilities")]
)
def test_probabilities_and_labels_of_different_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        evaluate_probabilities(np.zeros(shape), np.zeros((4, 2)), ["a"] * 4, ["Edema", "Fracture"])


def test_probabilities_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="1 views have probabilities that are NaN"):
        evaluate_probabilities(np.array([[NAN], [0.5]]), np.zeros((2, 1)), ["a", "b"], ["Edema"])


def with_unknowns(seed, num_studies=60):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_studies).astype(float)
    labels[:2] = 0, 1
    labels[2:10] = NAN
    return rng.integers(0, 9, num_studies) / 8, labels  # with ties


def test_figures_equal_scikit_learns_and_plain_formulas_on_the_known_labels():
    for seed in range(50):
        scores, labels = with_unknowns(seed)
        assert auroc(scores, labels) == pytest.approx(FIGURES["auroc"](scores, labels), abs=1e-12)
        expected = {name: figure(scores, labels) for name, figure in FIGURES.items()}
        assert observation_metrics(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    # Called in turn: positive (1 of 1), negative, positive (2 of 3); each positive is half of the recall.
    figures = observation_metrics(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1.0, 0, 1, 0]))
    assert figures["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_always_answering_the_prevalence_has_a_relative_brier_score_of_one():
    labels = np.array([1.0, 0, 0, 0, NAN])
    assert observation_metrics(np.full(5, 0.25), labels)["scaled_brier"] == pytest.approx(1)
    assert observation_metrics(labels.copy(), labels)["scaled_brier"] == 0
    # Brier (.01 + 3 * .04) / 4 = .0325 against .25 * .75 = .1875
    assert observation_metrics(np.array([0.9, 0.2, 0.2, 0.2, 0.5]), labels)["scaled_brier"] == pytest.approx(
        0.0325 / 0.1875
    )


def test_calibration_error_by_hand():
    probabilities, labels = np.array([0.1, 0.3, 0.5, 1.0, 0.9]), np.array([0, 0, 1, 1, NAN])
    # Fifteen bins part .1 (bin 1) from .3 (bin 4): |.1 - 0|, |.3 - 0|, |.5 - 1|, |1 - 1|.
    assert observation_metrics(probabilities, labels)["ece"] == pytest.approx((0.1 + 0.3 + 0.5 + 0) / 4)
    # Both of {.94, 1} are in the last bin, one of them positive: |.97 - .5|.
    assert observation_metrics(np.array([0.94, 1.0]), np.array([0.0, 1.0]))["ece"] == pytest.approx(0.47)


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.0, NAN]])
def test_what_one_class_cannot_judge_is_undefined(labels):
    figures = observation_metrics(np.array([0.1, 0.9]), np.array(labels))
    assert {name for name, value in figures.items() if np.isnan(value)} == {"auroc", "auprc", "scaled_brier"}


def test_without_known_labels_every_figure_is_undefined():
    assert np.isnan(auroc(np.array([0.1, 0.9]), np.array([NAN, NAN])))
    assert np.isnan(list(observation_metrics(np.array([0.1, 0.9]), np.array([NAN, NAN])).values())).all()


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(ValueError, match="are they logits"):
        observation_metrics(np.array([-2.0, 3.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="Expected one label per probability"):
        observation_metrics(np.array([0.5]), np.array([0.0, 1.0]))


def test_a_studys_score_may_be_the_mean_over_its_views():
    values = np.array([[0.1, 0.8], [0.7, NAN], [0.4, NAN], [0.4, 0.2]])
    result, studies = per_study(values, ["b", "a", "b", "b"], "mean")
    assert studies == ["b", "a"]
    np.testing.assert_allclose(result, [[0.3, 0.5], [0.7, NAN]])


def test_views_are_aggregated_by_the_maximum_unless_told_otherwise():
    values, studies = np.array([[0.1], [0.7], [0.4]]), ["a", "b", "a"]
    np.testing.assert_array_equal(per_study(values, studies)[0], [[0.4], [0.7]])
    with pytest.raises(ValueError, match="one of maximum, mean, got 'median'"):
        per_study(values, studies, "median")
    with pytest.raises(ValueError, match="one study per view, got 3 views and 2 studies"):
        per_study(values, studies[:2], "mean")


def test_a_mean_covers_the_competition_or_else_all_that_can_be_judged():
    labels = np.tile([[0.0], [1.0]], (MIN_STUDIES_PER_CLASS, 2))
    assert averaged_observations(labels, ["Fracture", "Edema"]) == ("Edema",)
    assert averaged_observations(labels, ["Fracture", "Pneumonia"]) == ("Fracture", "Pneumonia")
    assert averaged_observations(labels[:2], ["Fracture", "Edema"]) == ()


def test_the_mean_is_over_the_headline_of_the_label_set():
    labels = np.array([[0, 1], [1, 0]] * 20, dtype=float)
    probabilities = np.array([[0.2, 0.4], [0.7, 0.6]] * 20)
    studies = [f"s{number}" for number in range(40)]
    result = evaluate_probabilities(probabilities, labels, studies, ["TB", "Normal"], ["Normal"])
    assert (result.mean_over, result.mean_auroc) == (("Normal",), 0.0)
    assert evaluate_probabilities(probabilities, labels, studies, ["TB", "Normal"]).mean_over == ("TB", "Normal")
