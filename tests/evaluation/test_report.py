import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf.evaluation import plots
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import evaluate_probabilities, per_study
from chexpert_hf.evaluation.published import RADIOLOGISTS, is_chexpert_valid
from chexpert_hf.evaluation.report.report import ReportData, as_table, write_report
from chexpert_hf.evaluation.tables import as_estimate

OBSERVATIONS = ["Edema", "Atelectasis", "Fracture"]


@pytest.fixture(scope="module")
def data() -> ReportData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (90, 3)).astype(float)
    labels[:, 2] = 0  # Fracture never occurs
    studies = [f"patient{i // 3:05d}/study{i % 3 // 2}" for i in range(90)]
    patients = [study.split("/")[0] for study in studies]
    labels = per_study(labels, studies)[0][[sorted(set(studies), key=studies.index).index(study) for study in studies]]
    probabilities = {
        name: np.clip(labels * strength + rng.random((90, 3)) * (1 - strength), 0, 1)
        for name, strength in (("good", 0.4), ("poor <b>", 0.1))
    }
    points = dict.fromkeys(OBSERVATIONS, 0.5)
    metrics = assess(
        [ModelScores(name, values, points) for name, values in probabilities.items()],
        labels, studies, patients, OBSERVATIONS,
        subgroups={"sex": ["Male" if int(patient[-1]) % 2 else "Female" for patient in patients]}, replicates=100,
    )  # fmt: skip
    truth, names = per_study(labels, studies)
    return ReportData(
        metrics=metrics,
        title="made up, valid",
        observations=OBSERVATIONS,
        truth=truth,
        scores={name: per_study(values, studies)[0] for name, values in probabilities.items()},
        studies=names,
        paths=[f"valid/{study}/view1_frontal.jpg" for study in studies],
        view_scores=probabilities,
        warnings=["Calibrated on these same patients."],
    )


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, data)
    return folder


def test_no_plot_of_an_earlier_report_is_left(data, tmp_path):
    write_report(tmp_path, data)
    (tmp_path / "mine.png").touch()
    with (tmp_path / "report.md").open("ab") as report:
        report.write(b"\n![x](mine.png) \xff\n")  # added by hand, in no encoding
    assert len(list(tmp_path.glob("*.png"))) > 1
    write_report(tmp_path, replace(data, truth=np.full_like(data.truth, np.nan)))
    assert [path.name for path in tmp_path.glob("*.png")] == ["mine.png"]


def test_a_report_is_one_folder(folder):
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "report.md", "report.html", "predictions_views.csv", "predictions_studies.csv",
        "roc.png", "precision_recall.png", "reliability.png", "histograms.png", "subgroups.png",
    }  # fmt: skip


def test_warnings_come_before_any_figure(folder):
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert text.index("Calibrated on these same patients.") < text.index("AUROC")
        assert "not a medical device" in text


def test_the_page_loads_nothing_from_elsewhere_and_escapes_names(folder):
    html = (folder / "report.html").read_text()
    assert "http" not in html
    assert html.count("data:image/png;base64,") == 5
    assert "poor <b>" not in html
    assert "poor &lt;b&gt;" in html


def test_the_tables_hold_the_figures_of_metrics_json(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    edema = metrics["models"][0]["observations"][0]
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert as_estimate(edema["auroc"]) in text
        assert as_estimate(metrics["comparisons"][0]["difference"]) in text
        assert metrics["models"][0]["observations"][2]["undefined"] in text
    assert metrics["warnings"] == ["Calibrated on these same patients."]


def test_the_published_mean_is_said_to_be_that_of_five_observations_where_fewer_are_listed(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    listed = next(line for line in text.splitlines() if line.startswith("Published"))
    assert ("Edema .920" in listed, "Cardiomegaly" in listed) == (True, False)
    assert listed.endswith("; mean of the five .908.")


def test_a_paired_difference_is_named_in_the_order_it_was_taken(folder):
    row = next(line for line in (folder / "report.md").read_text().splitlines() if "−" in line and "Edema" in line)
    assert "poor <b> − good | Edema | -" in row  # the poor one less the good one is below 0


def test_predictions_are_there_per_view_and_per_study(folder, data):
    views = pd.read_csv(folder / "predictions_views.csv")
    studies = pd.read_csv(folder / "predictions_studies.csv")
    assert len(views) == 90
    assert list(studies["study"]) == list(data.studies)
    np.testing.assert_allclose(studies["good/Edema"], data.scores["good"][:, 0], rtol=1e-8)
    np.testing.assert_allclose(studies["truth/Edema"], data.truth[:, 0])


def test_an_auroc_can_be_computed_again_from_the_tables_of_a_model_that_is_sure(data, tmp_path):
    scores = {"sure": (data.scores["good"] * 1e-7).astype(np.float32)}
    views = {"sure": (data.view_scores["good"] * 1e-7).astype(np.float32)}
    metrics = data.metrics | {"models": [data.metrics["models"][0] | {"name": "sure"}], "comparisons": []}
    write_report(tmp_path, replace(data, scores=scores, view_scores=views, metrics=metrics))
    table = pd.read_csv(tmp_path / "predictions_studies.csv")
    np.testing.assert_array_equal(table["sure/Edema"].astype(np.float32), scores["sure"][:, 0])


def test_plots_are_pictures_with_something_in_them(folder):
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_report_on_data_that_judge_nothing_says_so(data, tmp_path):
    studies = [path.split("/view")[0].removeprefix("valid/") for path in data.paths]
    labels = np.zeros((90, 3))
    metrics = assess(
        [ModelScores("good", data.view_scores["good"], dict.fromkeys(OBSERVATIONS, 0.5))],
        labels, studies, [study.split("/")[0] for study in studies], OBSERVATIONS, subgroups={}, replicates=100,
    )  # fmt: skip
    write_report(
        tmp_path, replace(data, metrics=metrics, truth=np.zeros_like(data.truth), scores={"good": data.scores["good"]})
    )
    assert "there is no mean" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_few_positive_studies_are_not_judged_and_the_summary_names_best_worst_and_missed(tmp_path):
    # 40 studies. Edema: all pairs in order, none of its 10 positives reaches .95. Atelectasis: 10 positives of equal
    # scores, AUROC .5. Fracture: 4 positives.
    scores = np.stack([np.linspace(0.9, 0, 40), np.full(40, 0.5), np.linspace(0.9, 0, 40)], axis=1)
    labels = np.zeros((40, 3))
    labels[:10, :2], labels[:4, 2] = 1, 1
    studies = [f"patient{number:05d}/study1" for number in range(40)]
    points = {"Edema": 0.95, "Atelectasis": 0.5, "Fracture": 0.5}
    metrics = assess(
        [ModelScores("m", scores, points)], labels, studies, studies, OBSERVATIONS,
        subgroups={"view": ["frontal"] * 40}, replicates=100,
    )  # fmt: skip
    report = ReportData(metrics, "t", OBSERVATIONS, labels, {"m": scores}, studies, studies, {"m": scores})
    write_report(tmp_path, report)
    few = "not judged: fewer than 5 studies of a class"
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Best separated: Edema (AUROC 1.000); worst: Atelectasis (.500)." in text
        assert "Fewer than one in ten positive studies reach the operating points of Edema; chexpert-hf cal" in text
        assert few in text
        assert "subgroups.png" not in text
        assert "elative Brier: the Brier score divided by that of always answering the prevalence" in text
    assert f"| Fracture | 4 | 36 | {few} |" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "subgroups.png").exists()  # all are frontal
    table = as_table(evaluate_probabilities(scores, labels, studies, OBSERVATIONS))
    assert re.search(rf"Fracture +4 +36 +{few}", table)


def test_equal_scores_are_one_point_of_the_reliability_plot_and_others_fill_bins_evenly():
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 2, 100)).astype(float)[:, None]  # in an order that tells them apart
    for values, count in (
        (np.full((100, 1), 0.3), 1),
        (rng.random((100, 1)), 10),
        (np.repeat([[0.1], [0.9]], 50, 0), 2),
    ):
        (axes,) = plots.reliability_figure(plots.StudyScores({"m": values}, labels, ["Edema"], ["Edema"])).axes
        x, y = axes.lines[1].get_data()
        assert len(x) == count
        if count == 1:
            assert (x[0], y[0]) == pytest.approx((0.3, labels.mean()))
        if count == 10:
            assert np.mean(y) == pytest.approx(labels.mean())  # ten bins of ten


def test_the_legend_of_the_histograms_is_above_the_panels(data):
    scores = plots.StudyScores(data.scores, data.truth, OBSERVATIONS, OBSERVATIONS[:2])
    figure = plots.histogram_figure(scores, dict.fromkeys(OBSERVATIONS, 0.5))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["negative", "positive"]
    assert not any(axes.get_legend() for axes in figure.axes)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ({"value": 0.8917, "low": 0.8312, "high": 1.0}, ".892 (.831 to 1.000)"),
        ({"value": -0.02, "low": -0.1, "high": 0.06}, "-.020 (-.100 to .060)"),
        ({"value": 0.5, "low": None, "high": None}, ".500"),
        ({"value": None, "low": None, "high": None}, "–"),
        (None, "–"),
    ],
)
def test_an_estimate_is_written_with_its_interval(estimate, text):
    assert as_estimate(estimate) == text


def test_radiologists_operating_points_are_those_of_the_papers_figure_3():
    # Irvin et al. 2019, figure 3: Rad1 on Edema .09, .63; the majority on Pleural Effusion .10, .89
    assert RADIOLOGISTS["Edema"]["1"] == [0.09, 0.63]
    assert RADIOLOGISTS["Pleural Effusion"]["majority"] == [0.10, 0.89]


def test_chexperts_validation_set_is_known_by_its_patients():
    patients = [f"patient{64541 + i % 200}" for i in range(234)]
    assert is_chexpert_valid(patients, 234)
    assert not is_chexpert_valid(patients, 235)
    assert not is_chexpert_valid(patients[:-40], 234)


def test_small_subgroups_are_named_in_a_line_and_columns_of_one_group_are_not_compared(data, tmp_path):
    probabilities = data.view_scores["good"]
    studies = [path.removeprefix("valid/").rsplit("/", 1)[0] for path in data.paths]
    labels = np.full((90, 3), np.nan)
    for row, study in enumerate(studies):
        labels[row] = data.truth[list(data.studies).index(study)]
    metrics = assess(
        [ModelScores("good", probabilities, dict.fromkeys(OBSERVATIONS, 0.5), {"Edema": "youden"})],
        labels, studies, [study.split("/")[0] for study in studies], OBSERVATIONS,
        subgroups={"sex": ["Male"] * 84 + ["Female"] * 6, "view": ["frontal"] * 90}, replicates=100,
    )  # fmt: skip
    write_report(tmp_path, replace(data, metrics=metrics, scores={"good": data.scores["good"]}))
    text = (tmp_path / "report.md").read_text()
    few = next(item for item in metrics["models"][0]["subgroups"] if item["group"] == "Female")
    assert f"- sex Female: {few['observation']} ({few['num_positive']} : {few['num_negative']})" in text
    assert "| sex | Male | Edema |" in text
    assert "| sex | Female |" not in text
    assert "| view |" not in text
    assert "view: all frontal" in (tmp_path / "report.html").read_text()
    chosen = {
        line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if "| .500 |" in line
    }
    assert chosen["Edema"] == "youden"
    assert chosen["Atelectasis"] == "default"
