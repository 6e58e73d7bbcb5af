import json

import numpy as np
import pytest

from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.intervals import delong_interval, delong_test, wilson_interval
from chexpert_hf.evaluation.metrics import auroc, evaluate_probabilities, per_study
from tests.evaluation.figures import FIGURES

NAN = float("nan")
OBSERVATIONS = ("Edema", "Fracture", "Atelectasis", "Pneumonia", "Consolidation")
NUM_STUDIES = 120
PATIENTS = np.arange(NUM_STUDIES) // 4
INTERVAL = {"value", "low", "high", "method"}
BOOTSTRAPPED = INTERVAL | {"left_out"}


def views():
    """Two views (frontal, lateral) of each study, four studies per patient; Pneumonia never, Consolidation thrice."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (NUM_STUDIES, 5)).astype(float)
    labels[:, 3] = 0
    labels[:, 4] = np.arange(NUM_STUDIES) < 3
    labels[:10, 1] = NAN
    labels = np.repeat(labels, 2, axis=0)
    signal = np.nan_to_num(labels)
    good = np.clip(rng.normal(0.4 + 0.2 * signal, 0.15), 0, 1)
    # On women the model is better than on men.
    is_woman = np.repeat(np.arange(NUM_STUDIES) % 2 == 0, 2)
    good[is_woman] = np.clip(good[is_woman] + 0.1 * signal[is_woman] - 0.05, 0, 1)
    poor = np.clip(rng.normal(0.4 + 0.05 * signal, 0.2), 0, 1)
    return good, poor, labels, is_woman


def arguments(**changes):
    good, poor, labels, is_woman = views()
    study = np.repeat(np.arange(NUM_STUDIES), 2)
    values = {
        "models": [
            ModelScores("poor", poor),
            ModelScores("good", good, {"Edema": 0.55}, {"Edema": "Youden's index on the validation studies"}),
        ],
        "labels": labels,
        "studies": [f"study{index}" for index in study],
        "patients": [f"patient{index // 4}" for index in study],
        "observations": OBSERVATIONS,
        "subgroups": {
            "sex": np.where(is_woman, "F", "M").tolist(),
            "view": ["frontal", "lateral"] * NUM_STUDIES,
            "age": ["0-39" if index < 3 else None if index < 20 else "40-79" for index in study],
        },
        "replicates": 100,
    }
    return values | changes


@pytest.fixture(scope="module")
def result():
    return assess(**arguments())


def entry(entries, **wanted):
    return next(item for item in entries if all(item[key] == value for key, value in wanted.items()))


def per_study_of_views(probabilities, labels, is_in):
    studies = np.repeat([f"study{index}" for index in range(NUM_STUDIES)], 2)[is_in].tolist()
    return per_study(probabilities[is_in], studies)[0], per_study(labels[is_in], studies)[0]


def test_an_assessment_is_json_and_says_what_it_is_of(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1
    assert result["data"] == {"views": 240, "studies": 120, "patients": 30, "aggregation": "maximum"}
    assert (result["replicates"], result["seed"]) == (100, 0)
    assert set(result) == {"schema", "data", "replicates", "seed", "models", "comparisons"}


def test_every_entry_has_every_key(result):
    for model in result["models"]:
        assert set(model) == {"name", "mean_over", "mean_auroc", "observations", "subgroups", "gaps"}
        assert set(model["mean_auroc"]) == BOOTSTRAPPED
        assert [item["observation"] for item in model["observations"]] == list(OBSERVATIONS)
        for item in model["observations"]:
            assert set(item) == {
                *("observation", "num_positive", "num_negative", "num_unknown", "undefined", "operating_point"),
                *("auroc", "auprc", "brier", "scaled_brier", "ece"),
            }
            assert set(item["auroc"]) == INTERVAL
            assert all(set(item[name]) == BOOTSTRAPPED for name in ("auprc", "brier", "scaled_brier", "ece"))
        for item in model["subgroups"]:
            assert set(item) == {
                *("column", "group", "observation", "num_positive", "num_negative", "auroc", "too_small"),
            }
        for item in model["gaps"]:
            assert set(item) == {"column", "observation", "highest", "lowest", "difference"}
            assert set(item["difference"]) == BOOTSTRAPPED
    for item in result["comparisons"]:
        assert set(item) == {"models", "observation", "difference", "p_value", "method"}
        assert {"value", "low", "high"} <= set(item["difference"])


def test_figures_are_those_of_the_studies(result):
    good, _, labels, _ = views()
    scores, truth = per_study_of_views(good, labels, np.full(240, True))
    for column, item in enumerate(entry(result["models"], name="good")["observations"]):
        if item["undefined"]:
            continue
        pair = scores[:, column], truth[:, column]
        expected = delong_interval(*pair, PATIENTS)
        assert (item["auroc"]["low"], item["auroc"]["high"]) == pytest.approx((expected.low, expected.high))
        for name, figure in FIGURES.items():
            assert item[name]["value"] == pytest.approx(figure(*pair)), name
            assert item[name]["low"] < item[name]["high"]
        assert item["num_positive"] + item["num_negative"] + item["num_unknown"] == NUM_STUDIES
    assert entry(entry(result["models"], name="good")["observations"], observation="Fracture")["num_unknown"] == 10


def test_the_mean_is_that_of_evaluate_probabilities(result):
    values = arguments()
    for model, scores in zip(result["models"], values["models"], strict=True):
        expected = evaluate_probabilities(scores.probabilities, values["labels"], values["studies"], OBSERVATIONS)
        assert tuple(model["mean_over"]) == expected.mean_over == ("Edema", "Atelectasis")
        assert model["mean_auroc"]["value"] == pytest.approx(expected.mean_auroc)
        assert model["mean_auroc"]["low"] < expected.mean_auroc < model["mean_auroc"]["high"]
        assert model["mean_auroc"]["method"] == "patient bootstrap"


def test_what_the_data_cannot_judge_is_none_with_the_reason(result):
    item = entry(result["models"][0]["observations"], observation="Pneumonia")
    assert item["undefined"] == "Each of the 120 studies with a known label is negative."
    assert item["auroc"] == {"value": None, "low": None, "high": None, "method": "DeLong"}
    assert item["auprc"]["value"] is None
    assert item["auprc"]["left_out"] == 100
    assert item["brier"]["low"] is not None
    assert entry(result["models"][0]["observations"], observation="Edema")["undefined"] is None
    unknown = assess(**arguments(labels=np.full((240, 5), NAN)))
    assert unknown["models"][0]["observations"][0]["undefined"] == "No study has a known label."
    assert unknown["models"][0]["mean_auroc"]["value"] is None
    assert unknown["comparisons"][-1]["p_value"] is None
    assert json.dumps(unknown, allow_nan=False)


def test_resamples_without_the_rare_class_are_counted(result):
    item = entry(result["models"][0]["observations"], observation="Consolidation")
    # Its three studies belong to one of the 30 patients, who is missing from (29/30)^30 = .36 of the resamples.
    assert 22 <= item["auprc"]["left_out"] <= 50
    assert item["brier"]["left_out"] == 0


def test_a_probability_at_the_operating_point_is_positive():
    scores, labels = np.array([[0.5], [0.4], [0.5], [0.6], [0.1], [0.2], [0.9]]), [1, 1, 0, 1, 0, 0, NAN]
    names = list("abcdefg")
    truth = np.array(labels)[:, None]
    result = assess([ModelScores("m", scores, {"Edema": 0.5})], truth, names, names, ["Edema"], replicates=10)
    point = result["models"][0]["observations"][0]["operating_point"]
    assert (point["true_positives"], point["false_negatives"]) == (2, 1)
    assert (point["false_positives"], point["true_negatives"]) == (1, 2)


def test_operating_points_count_studies_with_wilson_intervals(result):
    good, _, labels, _ = views()
    scores, truth = per_study_of_views(good, labels, np.full(240, True))
    point = entry(entry(result["models"], name="good")["observations"], observation="Edema")["operating_point"]
    is_called, is_true = scores[:, 0] >= 0.55, truth[:, 0] == 1
    assert (point["threshold"], point["chosen_by"]) == (0.55, "Youden's index on the validation studies")
    assert point["true_positives"] == (is_called & is_true).sum()
    assert point["false_negatives"] == (~is_called & is_true).sum()
    for name, success, trial in [
        ("sensitivity", is_called & is_true, is_true),
        ("specificity", ~is_called & ~is_true, ~is_true),
        ("ppv", is_called & is_true, is_called),
        ("npv", ~is_called & ~is_true, ~is_called),
    ]:
        expected = wilson_interval(int(success.sum()), int(trial.sum()))
        assert point[name] == {
            "value": expected.value,
            "low": expected.low,
            "high": expected.high,
            "method": "Wilson",
        }
    assert entry(result["models"], name="poor")["observations"][0]["operating_point"] is None


def test_a_group_is_scored_on_its_own_views(result):
    good, _, labels, is_woman = views()
    subgroups = entry(result["models"], name="good")["subgroups"]
    for column, group, is_in in [
        ("sex", "F", is_woman),
        ("view", "lateral", np.arange(240) % 2 == 1),
        ("age", "40-79", np.arange(240) >= 40),
    ]:
        scores, truth = per_study_of_views(good, labels, is_in)
        item = entry(subgroups, column=column, group=group, observation="Fracture")
        assert item["auroc"]["value"] == pytest.approx(auroc(scores[:, 1], truth[:, 1]))
        assert item["num_positive"] == (truth[:, 1] == 1).sum()
        assert item["num_negative"] == (truth[:, 1] == 0).sum()
    assert {item["group"] for item in subgroups if item["column"] == "age"} == {"0-39", "40-79"}


def test_groups_with_few_studies_are_named_and_not_scored(result):
    subgroups = result["models"][0]["subgroups"]
    item = entry(subgroups, column="age", group="0-39", observation="Consolidation")
    assert item["auroc"] is None
    assert item["too_small"] == "3 positive and 0 negative studies; 5 of each are needed."
    assert entry(subgroups, column="sex", group="F", observation="Edema")["too_small"] is None


def test_a_gap_is_the_highest_group_minus_the_lowest(result):
    model = entry(result["models"], name="good")
    for gap in model["gaps"]:
        of_groups = {
            item["group"]: item["auroc"]["value"]
            for item in model["subgroups"]
            if item["column"] == gap["column"] and item["observation"] == gap["observation"]
        }
        assert gap["difference"]["value"] == pytest.approx(of_groups[gap["highest"]] - of_groups[gap["lowest"]])
        assert gap["difference"]["value"] >= 0
        assert gap["difference"]["low"] < gap["difference"]["value"] < gap["difference"]["high"]
    gap = entry(model["gaps"], column="sex", observation="Edema")
    assert (gap["highest"], gap["lowest"]) == ("F", "M")
    # One age group is too small everywhere, and two observations have too few studies of a class.
    assert {(item["column"], item["observation"]) for item in model["gaps"]} == {
        (column, name) for column in ("sex", "view") for name in ("Edema", "Fracture", "Atelectasis")
    }


def test_a_model_is_compared_with_the_first_one(result):
    good, poor, labels, _ = views()
    assert [item["observation"] for item in result["comparisons"]] == [*OBSERVATIONS, "mean"]
    scores, truth = per_study_of_views(good, labels, np.full(240, True))
    first, _ = per_study_of_views(poor, labels, np.full(240, True))
    edema = entry(result["comparisons"], observation="Edema")
    expected = delong_test(scores[:, 0], first[:, 0], truth[:, 0], PATIENTS)
    assert edema["models"] == ["good", "poor"]
    assert edema["method"] == "DeLong"
    assert edema["difference"]["value"] == pytest.approx(expected.difference.value)
    assert edema["p_value"] == pytest.approx(expected.p_value)
    mean = entry(result["comparisons"], observation="mean")
    values = {model["name"]: model["mean_auroc"]["value"] for model in result["models"]}
    assert mean["difference"]["value"] == pytest.approx(values["good"] - values["poor"])
    assert 0 < mean["difference"]["low"] < mean["difference"]["high"]
    assert mean["p_value"] < 0.05
    assert mean["method"] == "patient bootstrap"


def test_resamples_that_are_all_equal_give_no_interval_of_no_width():
    given = arguments()
    labels = np.where(np.isnan(given["labels"]), 0.0, given["labels"])
    equal = np.full_like(labels, 0.3)
    perfect, same = assess(
        **given | {"labels": labels, "models": [ModelScores("perfect", labels), ModelScores("same", equal)]}
    )["models"]
    for model, value in ((perfect, 1), (same, 0.5)):
        assert model["mean_auroc"] == {
            "value": value,
            "low": None,
            "high": None,
            "method": "patient bootstrap",
            "left_out": 0,
        }
    item = entry(perfect["observations"], observation="Edema")
    assert item["auroc"]["low"] < item["auroc"]["value"] == item["auprc"]["value"] == 1
    assert item["auprc"]["low"] is None
    of_one = assess(**given | {"patients": ["a"] * len(labels)})["models"][0]
    item = entry(of_one["observations"], observation="Edema")
    assert {(item[name]["low"], item[name]["high"]) for name in ("auprc", "brier", "scaled_brier", "ece")} == {
        (None, None)
    }


def test_a_model_does_not_differ_from_its_copy():
    good, *_ = views()
    comparison = assess(**arguments(models=[ModelScores("a", good), ModelScores("b", good)]))["comparisons"][-1]
    assert comparison["difference"] == {"value": 0, "low": None, "high": None, "left_out": 0}
    assert comparison["p_value"] == 1


def test_the_mean_over_views_is_an_option():
    values = arguments(aggregation="mean", subgroups={"of": ["all"] * 240}, replicates=2)
    good, _, labels, _ = views()
    result = assess(**values)
    expected = auroc(good[:, 0].reshape(-1, 2).mean(axis=1), labels[::2, 0])
    assert result["data"]["aggregation"] == "mean"
    assert result["models"][1]["observations"][0]["auroc"]["value"] == pytest.approx(expected)
    assert result["models"][1]["subgroups"][0]["auroc"]["value"] == pytest.approx(expected)
    assert result["models"][1]["gaps"] == []  # one group has no gap


def test_the_order_of_the_views_does_not_matter(result):
    order = np.random.default_rng(1).permutation(240)
    values = arguments()
    shuffled = {
        "models": [
            ModelScores(model.name, model.probabilities[order], model.operating_points, model.chosen_by)
            for model in values["models"]
        ],
        "labels": values["labels"][order],
        "studies": [values["studies"][index] for index in order],
        "patients": [values["patients"][index] for index in order],
        "subgroups": {name: [column[index] for index in order] for name, column in values["subgroups"].items()},
    }
    other = assess(**{**values, **shuffled})
    for model, expected in zip(other["models"], result["models"], strict=True):
        for kind in ("observations", "subgroups", "gaps"):
            for item, wanted in zip(model[kind], expected[kind], strict=True):
                for key, value in wanted.items():
                    if isinstance(value, dict) and "threshold" not in value:
                        assert item[key] == pytest.approx(value)
                    else:
                        assert item[key] == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": [ModelScores("a", views()[0])] * 2}, "a name of its own, got: a, a"),
        ({"models": [ModelScores("a", views()[0][:, :4])]}, r"a: expected probabilities and labels of shape"),
        ({"models": [ModelScores("a", views()[0] * 9 - 4)]}, r"a: expected probabilities in \[0, 1\]"),
        ({"models": [ModelScores("a", views()[0] * NAN)]}, r"a: expected probabilities in \[0, 1\], got others or NaN"),
        ({"models": [ModelScores("a", views()[0], {"Hernia": 0.5})]}, "a: operating points for Hernia"),
        ({"labels": views()[2] - 1}, "evaluation_labels makes them"),
        ({"studies": ["a"]}, "one study per view, got 240 views and 1 entries"),
        ({"studies": ["study1"] * 240}, "Study 'study1' belongs to patients 'patient0' and 'patient1'"),
        ({"subgroups": {"sex": ["F"]}}, "one sex per view"),
        ({"aggregation": "median"}, "one of maximum, mean"),
        ({"replicates": 0}, "at least 1 replicate"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        assess(**arguments(**changes))
