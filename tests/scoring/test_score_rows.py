"""Columns for the gate and for calls: what stands in them, in every format, and whatever interrupts the run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
from chexpert_hf.folders.score_output import Existing, ScoreOutput
from chexpert_hf.folders.score_rows import RowFormat
from chexpert_hf.folders.score_run import Shard, score_to_file
from chexpert_hf.folders.score_table import GateMode
from chexpert_hf.gate import Verdict

REASON = "This does not look like a chest radiograph: it is white."
WARNING = "It looks inverted."
STATES = {"bright": "flagged", "corner": "warning", "plain": "pass"}

pytestmark = pytest.mark.usefixtures("one_thread")


class StubGate:
    """Takes bright images for no radiographs, and warns of a white corner."""

    def prepare(self, radiograph):
        return np.asarray(radiograph.image)

    def judge_batch(self, inputs):
        return [
            Verdict(False, REASON, (), 2.0) if pixels.mean() > 200 else Verdict(True, "", self._warnings(pixels), 0.5)
            for pixels in inputs
        ]

    def _warnings(self, pixels):
        return (WARNING,) if pixels[0, 0] == 255 else ()


@pytest.fixture
def classifier(tiny_folder):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    classifier.gate = StubGate()
    return classifier


@pytest.fixture
def files(tmp_path):
    """Studies of three views, `plain`, `bright` and `corner`; in the second study the first view is no image."""
    rng = np.random.default_rng(0)
    files = []
    for study in range(1, 4):
        for number, kind in enumerate(("plain", "bright", "corner")):
            path = tmp_path / "data" / "patient00001" / f"study{study}" / f"view{number}_{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(220 if kind == "bright" else 0, 250, (60, 60), dtype=np.uint8)
            pixels[0, 0] = 255 if kind == "corner" else 0
            Image.fromarray(pixels).save(path)
            files.append(str(path))
    Path(files[3]).write_text("no image")
    return files


def run(classifier, files, path, **options):
    output = {key: options.pop(key) for key in ("existing", "by_study", "gate", "positives") if key in options}
    return score_to_file(classifier, files, ScoreOutput(path, **output), **{"batch_size": 2, **options})


def kinds(files):
    return [Path(file).stem.split("_")[1] for file in files]


def test_the_gate_flags_and_leaves_the_scores_as_they_are(classifier, files, tmp_path):
    expected = ["" if number == 3 else STATES[kind] for number, kind in enumerate(kinds(files))]
    off = run(classifier, files, tmp_path / "off.csv")
    flag = run(classifier, files, tmp_path / "flag.csv", gate=GateMode.FLAG)
    assert (off.failed, off.not_radiographs, off.with_warning) == (1, 0, 0)
    assert (flag.failed, flag.not_radiographs) == (1, 3)
    assert flag.with_warning == expected.count("warning") > 0
    table = pd.read_csv(tmp_path / "flag.csv", dtype=str, keep_default_na=False)
    plain = pd.read_csv(tmp_path / "off.csv", dtype=str, keep_default_na=False)
    assert list(table) == ["path", *classifier.observations, "gate", "gate_reason", "note", "error"]
    pd.testing.assert_frame_equal(table[list(plain)], plain)
    assert table["gate"].tolist() == expected
    reasons = {"flagged": REASON, "warning": WARNING, "pass": "", "": ""}
    assert table["gate_reason"].tolist() == [reasons[state] for state in expected]


def test_what_the_gate_refuses_has_a_reason_and_no_scores(classifier, files, tmp_path):
    summary = run(classifier, files, tmp_path / "a.jsonl", gate=GateMode.REFUSE, positives=True)
    assert (summary.radiographs, summary.failed, summary.not_radiographs) == (9, 4, 3)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row, kind in zip(rows, kinds(files), strict=True):
        if kind == "bright":
            assert (row["gate"], row["gate_reason"], row["error"]) == ("refused", REASON, REASON)
            assert row["Edema"] is row["Edema positive"] is None
        elif row["error"] is None:
            assert row["gate"] == STATES[kind]
            assert row["Edema"] is not None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_calls_are_those_of_the_prediction_in_every_format(classifier, files, tmp_path, suffix):
    good = files[:3]
    scores = sorted(one.probabilities["Edema"] for one in classifier.predict(good, batch_size=2))
    classifier.model.config.operating_points |= {"Edema": float(np.mean(scores[1:])), "Fracture": 0.0, "Pneumonia": 1.0}
    path = tmp_path / f"a{suffix}"
    run(classifier, good, path, positives=True)
    read = {".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True), ".parquet": pd.read_parquet}
    table = read[suffix](path)
    calls = [f"{name} positive" for name in classifier.observations]
    assert list(table) == ["path", *classifier.observations, *calls, "note", "error"]
    assert (table["Edema positive"].tolist(), sorted(table["Edema"])) == (
        [int(value == max(table["Edema"])) for value in table["Edema"]],
        pytest.approx(scores, abs=1e-6),
    )
    assert set(table["Fracture positive"]) == {1}
    assert set(table["Pneumonia positive"]) == {0}
    if suffix == ".parquet":
        assert str(pq.read_schema(path).field("Edema positive").type) == "int8"
    record = json.loads((tmp_path / f"a{suffix}.run.json").read_text())
    assert record["operating_points"] == classifier.operating_points


def test_resumed_and_divided_the_columns_and_rows_are_those_of_one_run(classifier, files, tmp_path):
    options = {"gate": GateMode.FLAG, "positives": True}
    whole, path = tmp_path / "whole.csv", tmp_path / "a.csv"
    expected = run(classifier, files, whole, **options)
    run(classifier, files, path, **options)
    os.truncate(path, path.stat().st_size - 300)
    resumed = run(classifier, files, path, existing=Existing.RESUME, **options)
    assert path.read_bytes() == whole.read_bytes()
    assert 0 < resumed.resumed < 9
    again = run(classifier, files, path, existing=Existing.RESUME, **options)
    for summary in (resumed, again):
        assert replace(summary, resumed=0) == expected
    header, *rows = whole.read_text().splitlines()
    parts = []
    for index in range(2):
        run(classifier, files, tmp_path / f"{index}.csv", shard=Shard(index, 2), **options)
        first, *part = (tmp_path / f"{index}.csv").read_text().splitlines()
        assert first == header
        parts += part
    assert sorted(parts) == sorted(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_run_with_other_columns_or_operating_points_is_not_gone_on_with(classifier, files, tmp_path, name):
    path = tmp_path / name
    run(classifier, files, path, gate=GateMode.FLAG, positives=True)
    before = path.read_bytes()
    with pytest.raises(InputError, match="with gate flag, this run has refuse; use the same"):
        run(classifier, files, path, existing=Existing.RESUME, gate=GateMode.REFUSE, positives=True)
    with pytest.raises(InputError, match="with positives True, this run has False"):
        run(classifier, files, path, existing=Existing.RESUME, gate=GateMode.FLAG)
    classifier.model.config.operating_points |= {"Edema": 0.123}
    with pytest.raises(InputError, match="was started with other operating points than the model has now"):
        run(classifier, files, path, existing=Existing.RESUME, gate=GateMode.FLAG, positives=True)
    assert path.read_bytes() == before


def test_a_record_that_says_nothing_of_a_gate_is_of_a_run_without_one(classifier, files, tmp_path):
    path, record = tmp_path / "a.csv", tmp_path / "a.csv.run.json"
    run(classifier, files, path)
    old = json.loads(record.read_text())
    for key in ("gate", "positives", "operating_points"):
        del old[key]
    record.write_text(json.dumps(old))
    assert run(classifier, files, path, existing=Existing.RESUME).resumed == 9
    with pytest.raises(InputError, match="with gate off, this run has flag"):
        run(classifier, files, path, existing=Existing.RESUME, gate=GateMode.FLAG)


def test_a_study_tells_which_view_is_no_radiograph(classifier, files, tmp_path):
    run(classifier, files, tmp_path / "views.csv", gate=GateMode.FLAG, positives=True)
    run(classifier, files, tmp_path / "flag.parquet", by_study=True, gate=GateMode.FLAG, positives=True)
    run(classifier, files, tmp_path / "refuse.csv", by_study=True, gate=GateMode.REFUSE)
    views, flagged = pd.read_csv(tmp_path / "views.csv"), pd.read_parquet(tmp_path / "flag.parquet")
    names = [str(Path(path).parent) for path in views["path"]]
    for column in ("Edema", "Edema positive"):
        assert flagged[column].tolist() == views[column].groupby(names).max().tolist()
    assert flagged["gate"].tolist() == ["flagged"] * 3
    assert flagged["gate_reason"][0] == f"view1_bright.png: {REASON}; view2_corner.png: {WARNING}"
    refused = pd.read_csv(tmp_path / "refuse.csv")
    assert refused["gate"].tolist() == ["refused"] * 3
    assert refused["views"].tolist() == [2, 1, 2]
    assert refused["error"][0] == f"1 of 3 views failed: view1_bright.png ({REASON})"
    without_bright = views[~views["path"].str.contains("bright")]
    expected = without_bright["Edema"].groupby([str(Path(path).parent) for path in without_bright["path"]]).max()
    assert refused["Edema"].tolist() == expected.tolist()


@pytest.mark.parametrize(("names", "positives"), [(("TB", "error"), False), (("TB", "TB positive"), True)])
def test_an_observation_with_the_name_of_another_column_is_refused(names, positives):
    with pytest.raises(InputError, match=f"{names[1]!r} is an observation of the model and another column"):
        RowFormat(names, positives=positives)


def test_no_finding_of_a_study_holds_only_if_every_view_says_so():
    study = "p/patient1/study1"
    views = [
        [f"{study}/a.png", 0.9, 0.1, 1, 0, None, None],
        [f"{study}/b.png", 0.3, 0.8, 0, 1, None, None],
    ]
    rows = RowFormat(("No Finding", "Edema"), positives=True, none_of_these="No Finding").study_rows(views)
    assert list(rows) == [[study, 2, 0.3, 0.8, 0, 1, None, None]]


def test_a_call_is_positive_if_any_view_is_and_the_gate_says_the_worst():
    study = "p/patient1/study1"
    views = [
        [f"{study}/a.png", 0.2, 0.9, 0, 1, "pass", None, "window ignored", None],
        [f"{study}/b.png", 0.3, 0.1, 1, 0, "warning", "turned", None, None],
        [f"{study}/c.png", None, None, None, None, None, None, None, "damaged"],
        ["gone.png", None, None, None, None, None, None, None, "why"],
    ]
    notes, failures = "a.png (window ignored)", "1 of 3 views failed: c.png (damaged)"
    rows = RowFormat(("Edema", "Fracture"), GateMode.FLAG, positives=True).study_rows(views)
    assert list(rows) == [
        [study, 2, 0.3, 0.9, 1, 1, "warning", "b.png: turned", notes, failures],
        ["gone.png", 0, None, None, None, None, None, None, None, "1 of 1 views failed: gone.png (why)"],
    ]
