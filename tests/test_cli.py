"""In-process, since importing torch costs a second or two a time."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from typer.main import get_command
from typer.testing import CliRunner

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.cli import app, predicting
from chexpert_hf.errors import InputError
from chexpert_hf.gate.fit import fit_gate
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import render_phantom, write_phantoms
from tests.commands import run
from tests.conftest import TINY
from tests.linked_folders import LAYOUTS, as_datalad


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=30, seed=2, valid_fraction=0.5)
    return root


@pytest.fixture
def radiographs(tmp_path):
    folder = tmp_path / "radiographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_help_cuts_nothing(columns):
    for command in get_command(app).commands.values():
        shown = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [command.name, "--help"]).output
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= columns
        text = " ".join(" ".join(line.strip(" │") for line in shown.splitlines()).split())
        for parameter in command.params:
            for name in (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ():
                assert re.search(rf"(?<![\w-]){name}(?![\w-])", shown), name
        words = {word.replace("\\[", "[") for each in command.params for word in (each.help or "").split()}
        assert [word for word in words if word not in text] == []
        panels = {getattr(each, "rich_help_panel", None) for each in command.params} - {None}
        assert [panel for panel in panels if f"─ {panel} ─" not in shown] == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict", "repository id on the Hub, or nih, the bundled model; several make an ensemble."),
        ("evaluate", "repository id on the Hub, or nih, the bundled model; several are compared with the first."),
        ("calibrate", "repository id on the Hub, or nih, the bundled model; it is not changed."),
    ],
)
def test_the_help_says_what_becomes_of_the_models(command, words):
    (option,) = (each for each in get_command(app).commands[command].params if each.name == "model")
    assert option.help.endswith(words)


def test_every_command_has_a_help_text_that_imports_nothing_heavy():
    code = (
        "import re, sys; from typer.testing import CliRunner; from chexpert_hf.cli import app\n"
        "names = [command.name or command.callback.__name__ for command in app.registered_commands]\n"
        "for name in names:\n"
        "    result = CliRunner().invoke(app, [name, '--help'])\n"
        "    assert result.exit_code == 0, name\n"
        "    usage = result.output.split('Usage:')[1].splitlines()[0]\n"
        "    assert not re.search('[{[][a-z]', usage), usage\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(len(names), *{'torch', 'transformers', 'gradio', 'datasets', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *heavy = answer.stdout.split()
    assert int(count) >= 11
    assert heavy == []


@pytest.mark.slow
def test_scoring_imports_nothing_that_only_tables_pictures_and_the_page_need():
    unneeded = {"datasets", "pandas", "pyarrow", "matplotlib", "sklearn", "gradio"}
    # Earlier releases of transformers import some of them themselves.
    code = (
        "import sys, transformers.models.auto.auto_factory; before = set(sys.modules); "
        f"import chexpert_hf.folders.score_run; print(*{unneeded} & (set(sys.modules) - before))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_the_package_lists_its_public_names_before_they_are_imported():
    code = "import chexpert_hf, sys; print(set(chexpert_hf.__all__) <= set(dir(chexpert_hf)), 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "False"]


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, "chexpert-hf 0.1.0\n", "")


def test_phantom_writes_a_folder_and_says_where(monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, "phantom", "--output", tmp_path / "p", "--studies", 3, "--seed", 4)
    assert code == 0
    assert str(tmp_path / "p") in out
    assert (tmp_path / "p" / "train.csv").exists()
    code, _, err = run(monkeypatch, capsys, "phantom", "--output", tmp_path / "p")
    assert code == 2
    assert "new or empty folder" in err
    assert len(err.splitlines()) == 1


def test_predict_writes_every_radiographs_scores(monkeypatch, capsys, radiographs, tiny_folder, tmp_path):
    scores = tmp_path / "scores.csv"
    code, out, err = run(
        monkeypatch, capsys, "predict", radiographs, "--model", tiny_folder, "--output", scores, "--batch-size", 1
    )
    assert code == 0
    assert out == ""
    assert "2 of 2 radiographs scored" in err
    assert "not a medical device" in err
    with scores.open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", *OBSERVATIONS, "note", "error"]
    assert [row["path"] for row in rows] == [str(radiographs / "a.png"), str(radiographs / "b.jpg")]
    expected = CheXpertClassifier.from_pretrained(tiny_folder).predict(radiographs / "a.png").probabilities
    assert {name: float(rows[0][name]) for name in OBSERVATIONS} == pytest.approx(expected, abs=1e-6)


def test_predict_goes_on_after_a_bad_file_and_exits_with_1(monkeypatch, capsys, radiographs, tiny_folder, tmp_path):
    (radiographs / "aa.png").write_text("text renamed")
    scores = tmp_path / "scores.csv"
    arguments = ["predict", radiographs, "--model", tiny_folder, "--output", scores, "--json"]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert [line for line in err.splitlines() if "aa.png" in line and "Traceback" not in line]
    assert "2 of 3 radiographs scored" in err
    summary = json.loads(out)
    assert {key: summary[key] for key in ("output", "radiographs", "scored", "failed", "resumed")} == {
        "output": str(scores), "radiographs": 3, "scored": 2, "failed": 1, "resumed": 0
    }  # fmt: skip
    with scores.open() as stream:
        rows = list(csv.DictReader(stream))
    assert ["content is none of these" in row["error"] for row in rows] == [False, True, False]
    assert rows[1]["Edema"] == ""
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert "exists already; --resume goes on with it, --overwrite scores again" in err
    code, out, err = run(monkeypatch, capsys, *arguments, "--resume")
    assert code == 1  # the row with an error is still there
    assert "3 of 3 radiographs are there already" in err
    assert json.loads(out)["resumed"] == 3
    assert run(monkeypatch, capsys, *arguments, "--overwrite")[0] == 1


def test_a_resumed_run_keeps_the_runtime_that_auto_was_at_its_start(
    monkeypatch, capsys, radiographs, tiny_folder, tmp_path
):
    scores = tmp_path / "scores.csv"
    arguments = ["predict", radiographs, "--model", tiny_folder, "--output", scores]
    assert run(monkeypatch, capsys, *arguments, "--runtime", "torch", "--precision", "bf16")[0] == 0
    written = scores.read_bytes()
    scores.write_bytes(b"".join(written.splitlines(keepends=True)[:2]))
    resumed = [*arguments, "--runtime", "auto", "--precision", "auto", "--resume"]
    code, _, err = run(monkeypatch, capsys, *resumed)
    assert code == 0, err
    assert "Computing with PyTorch in bf16 on cpu." in err
    assert scores.read_bytes() == written
    code, _, err = run(monkeypatch, capsys, *resumed, "--precision", "fp32")
    assert code == 2
    assert "was started with runtime ['torch bf16'], this run has ['torch fp32']" in err


def test_demo_says_that_it_starts_before_it_loads_the_model(monkeypatch, capsys, tiny_folder):
    def load(*_, **__):
        raise InputError("loading")

    monkeypatch.setattr(predicting, "load_classifier", load)
    _, _, err = run(monkeypatch, capsys, "demo", "--model", tiny_folder)
    assert err.splitlines()[-2:] == ["Starting the app ...", "Error: loading"]


@pytest.fixture
def gated_folder(tiny_folder):
    """A model whose gate knows clouds of 70 x 80 pixels."""
    fit_gate([cloud(seed) for seed in range(30)], data_name="clouds", date="2026-01-01").save(tiny_folder)
    return tiny_folder


def cloud(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (80, 70), dtype=np.uint8)
    return ImageOps.autocontrast(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))


def test_predict_flags_what_is_no_radiograph_or_refuses_it(monkeypatch, capsys, gated_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    cloud(30).save(images / "cloud.png")
    Image.new("RGB", (70, 60), (200, 20, 20)).save(images / "red.png")
    words = "red.png: This does not look like a chest radiograph: it is a colour photograph"
    command = ["predict", images, "--model", gated_folder, "--positives"]
    for mode, code, scored in (("flag", 0, 2), ("refuse", 1, 1)):
        path = tmp_path / f"{mode}.csv"
        options = [] if mode == "flag" else ["--gate", mode]
        found, out, err = run(monkeypatch, capsys, *command, *options, "--json", "-o", path)
        assert found == code
        assert words in err
        assert f"{scored} of 2 radiographs scored. 1 does not look like a chest radiograph." in err
        summary = json.loads(out)
        assert (summary["gate"], summary["not_radiographs"], summary["failed"]) == (mode, 1, 2 - scored)
        assert summary["operating_points"] == dict.fromkeys(OBSERVATIONS, 0.5)
        table = pd.read_csv(path)
        assert table["gate"][0] in ("pass", "warning")
        assert summary["with_warning"] == (table["gate"] == "warning").sum()
        assert ("The gate warns of 1: see gate_reason." in err) == summary["with_warning"]
        assert table["gate"][1] == {"flag": "flagged", "refuse": "refused"}[mode]
        assert table["Edema positive"].tolist()[0] == int(table["Edema"][0] >= 0.5)
        assert table["Edema"].notna().tolist() == [True, mode == "flag"]
        assert run(monkeypatch, capsys, *command, *options)[1] == path.read_text()  # on standard output, too
    _, out, err = run(monkeypatch, capsys, *command, "--gate", "off")
    assert "gate" not in out.splitlines()[0]
    assert "2 of 2 radiographs scored. Research" in err


@pytest.mark.parametrize("mode", ["flag", "refuse"])
def test_a_gate_that_the_model_has_not_got_is_bad_input(monkeypatch, capsys, radiographs, tiny_folder, tmp_path, mode):
    command = ["predict", radiographs, "--model", tiny_folder, "-o", tmp_path / "a.csv", "--gate", mode]
    code, out, err = run(monkeypatch, capsys, *command)
    assert (code, out) == (2, "")
    assert f"--gate {mode} needs a model with a gate, {tiny_folder} has none; fit one" in err.splitlines()[-1]
    assert not (tmp_path / "a.csv").exists()


def test_predict_writes_an_overlay_per_observation(monkeypatch, capsys, radiographs, tiny_folder, tmp_path):
    folder = tmp_path / "overlays"
    code, out, _ = run(
        monkeypatch, capsys, "predict", radiographs / "a.png", "--model", tiny_folder, "--saliency", folder
    )
    assert code == 0
    assert len(out.splitlines()) == 2  # without --output the CSV goes to standard output
    assert {path.stem for path in (folder / "a.png").iterdir()} == set(OBSERVATIONS)


def test_predict_takes_patterns_lists_and_archives(monkeypatch, capsys, radiographs, tiny_folder, tmp_path):
    monkeypatch.chdir(radiographs)
    Path("c.png").symlink_to(tiny_folder / "config.json")
    shutil.make_archive(str(tmp_path / "scans"), "zip", radiographs)
    (tmp_path / "list.txt").write_text("b.jpg\nnone.png\n")
    archive = tmp_path / "scans.zip"
    code, out, err = run(
        monkeypatch, capsys, "predict", "*.png", archive, "--list", tmp_path / "list.txt", "--model", tiny_folder,
        "--no-follow-links",
    )  # fmt: skip
    assert code == 1
    assert "Links that lead out of their folder were skipped (--no-follow-links): 1." in err
    rows = {row["path"]: row for row in csv.DictReader(out.splitlines())}
    assert list(rows)[:3] == ["a.png", f"{archive}/a.png", f"{archive}/b.jpg"]
    assert list(rows)[-2:] == ["b.jpg", "none.png"]
    assert rows["a.png"]["Edema"] == rows[f"{archive}/a.png"]["Edema"]
    assert rows["none.png"]["error"].startswith("File not found")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predict_follows_links_and_says_what_it_skips(monkeypatch, capsys, radiographs, tiny_folder, tmp_path, layout):
    data = tmp_path / "set" / "data"
    shutil.copytree(radiographs, data)
    root = layout(data)
    code, out, err = run(monkeypatch, capsys, "predict", root, "--model", tiny_folder)
    assert code == 0
    assert "Links followed (--no-follow-links skips those that lead out of their folder): 2." in err
    _, expected, _ = run(monkeypatch, capsys, "predict", radiographs, "--model", tiny_folder)
    assert out == expected.replace(str(radiographs), str(root))
    (root / "real.png").write_bytes((root / "a.png").read_bytes())
    code, out, err = run(monkeypatch, capsys, "predict", root, "--model", tiny_folder, "--no-follow-links")
    assert code == 1  # what was skipped looks like radiographs
    assert "Links that lead out of their folder were skipped (--no-follow-links): 2." in err
    assert len(out.splitlines()) == 2
    code, out, err = run(monkeypatch, capsys, "predict", root / "a.png", "--model", tiny_folder, "--no-follow-links")
    assert (code, len(out.splitlines())) == (0, 2)  # it is named itself


@pytest.mark.parametrize("layout", LAYOUTS)
def test_commands_on_data_sets_follow_links_unless_told_not_to(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path, layout
):
    data = tmp_path / "set" / "data"
    shutil.copytree(phantoms, data)
    root = layout(data)
    num_valid = len(pd.read_csv(root / "valid.csv"))
    _, expected, _ = run(monkeypatch, capsys, "evaluate", phantoms, "--model", tiny_folder, "--json")
    code, out, err = run(monkeypatch, capsys, "evaluate", root, "--model", tiny_folder, "--json")
    assert (code, out) == (0, expected)
    assert f"Radiographs reached through links: {num_valid} of {num_valid}." in err
    model = ["--model", tiny_folder]
    for command in (
        ["evaluate", root, *model],
        ["calibrate", root, *model, "--output", tmp_path / "calibrated", "--other-people"],
        ["localize", root, *model, "--output", tmp_path / "maps"],
        ["gate", root, *model],
        ["sanity", root, *model],
        ["train", root, "--output", tmp_path / "new", "--init", "random"],
    ):
        code, _, err = run(monkeypatch, capsys, *command, "--no-follow-links")
        assert code == 2, command
        assert "files cannot be used: " in err, command
        assert "(outside the folder)" in err, command


def test_train_on_links_is_train_on_files(monkeypatch, capsys, phantoms, tmp_path):
    data = tmp_path / "set" / "data"
    shutil.copytree(phantoms, data)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "init: random\narchitecture: {growth_rate: 4, block_config: [2, 2], num_init_features: 8, bn_size: 2}\n"
        "image_size: 32\nepochs: 1\nbatch_size: 8\nworkers: 0\nobservations: [Edema, Cardiomegaly]\n"
    )
    for number, root in enumerate((phantoms, as_datalad(data))):
        code, _, err = run(monkeypatch, capsys, "train", root, "--output", tmp_path / str(number), "--recipe", recipe)
        assert code == 0, err
    assert re.search(r"Radiographs reached through links: (\d+) of \1\.", err)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("0", "1")]
    assert weights[0] == weights[1]


def test_predict_scores_studies_to_parquet_and_standard_output(monkeypatch, capsys, phantoms, tiny_folder, tmp_path):
    output = tmp_path / "studies.parquet"
    arguments = ["predict", phantoms / "valid", "--model", tiny_folder, "--study"]
    assert run(monkeypatch, capsys, *arguments, "-o", output)[0] == 0
    frame = pd.read_parquet(output)
    assert list(frame) == ["study", "views", *OBSERVATIONS, "note", "error"]
    assert frame["study"].tolist() == sorted(map(str, (phantoms / "valid").glob("patient*/study*")))
    assert frame["views"].sum() == len(list((phantoms / "valid").rglob("*.jpg")))
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert pd.read_csv(io.StringIO(out))[list(OBSERVATIONS)].equals(frame[list(OBSERVATIONS)])


def test_predict_takes_its_shard_from_options_or_the_launcher(monkeypatch, capsys, phantoms, tiny_folder, tmp_path):
    arguments = ["predict", phantoms / "valid", "--model", tiny_folder, "--batch-size", 4, "--output"]
    assert run(monkeypatch, capsys, *arguments, tmp_path / "whole.csv")[0] == 0
    rows = []
    for rank in (0, 1):
        assert (
            run(monkeypatch, capsys, *arguments, tmp_path / f"{rank}.csv", "--num-shards", 2, "--shard", rank)[0] == 0
        )
        with monkeypatch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", "2")
            assert run(patch, capsys, *arguments, tmp_path / "part.csv")[0] == 0
        part = (tmp_path / f"part-0000{rank}-of-00002.csv").read_text()
        assert part == (tmp_path / f"{rank}.csv").read_text()
        rows += part.splitlines()[1:]
    assert sorted(rows) == sorted((tmp_path / "whole.csv").read_text().splitlines()[1:])


def test_a_bad_file_does_not_make_a_launcher_stop_the_processes_that_still_score(
    monkeypatch, capsys, radiographs, tiny_folder, tmp_path
):
    (radiographs / "0.png").write_text("not an image")  # first, so in the first of two shards
    arguments = ["predict", radiographs, "--model", tiny_folder, "--batch-size", 1, "--output"]
    options = ["--num-shards", 2, "--shard", 0]
    assert run(monkeypatch, capsys, *arguments, tmp_path / "alone.csv", *options)[0] == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(monkeypatch, capsys, *arguments, tmp_path / "part.csv")[0] == 0
    assert (tmp_path / "part-00000-of-00002.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert pd.read_csv(tmp_path / "alone.csv").error.notna().tolist() == [True, False]


def test_predict_says_now_and_then_how_far_it_is(monkeypatch, capsys, radiographs, tiny_folder):
    monkeypatch.setattr(predicting, "REPORT_SECONDS", 0)
    code, _, err = run(monkeypatch, capsys, "predict", radiographs, "--model", tiny_folder)
    assert code == 0
    *_, runtime, first, second, _ = err.splitlines()
    assert runtime == "Computing with PyTorch in fp32 on cpu."
    assert re.fullmatch(r"1 of 2, \d+\.\d a second, \d+ s left", first)
    assert re.fullmatch(r"2 of 2, \d+\.\d a second, 0 s left", second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{folder}", "-o", "a.xlsx"], r"ends in \.xlsx, expected \.csv, \.jsonl, \.parquet"),
        (["{folder}", "-o", "a.csv", "--resume", "--overwrite"], "one of --resume and --overwrite"),
        (["{folder}", "--resume"], "Expected --output with --resume"),
        (["{folder}", "-o", "."], r"ends in nothing, expected \.csv, \.jsonl, \.parquet"),
        (
            ["{folder}", "-o", "a.csv", "--num-shards", "2"],
            "--num-shards N with --shard from 0 to N - 1, got 2 and None",
        ),
        (["{folder}", "-o", "a.csv", "--num-shards", "2", "--shard", "2"], "from 0 to N - 1, got 2 and 2"),
        (["{folder}", "--num-shards", "2", "--shard", "1"], "Expected --output with several shards"),
        (["{folder}", "-o", "a.csv", "--study", "--num-shards", "2", "--shard", "1"], "may fall into different shards"),
        (["{folder}", "--saliency", "{folder}/overlays"], "where the overlays would be scored next time"),
        (["{folder}", "--list", "none.txt"], r"none\.txt cannot be read"),
        ([], "or a --list of them; got none"),
    ],
)
def test_predict_refuses_what_makes_no_sense_before_it_loads_a_model(
    monkeypatch, capsys, radiographs, tmp_path, options, message
):
    monkeypatch.chdir(tmp_path)
    filled = [option.format(folder=radiographs) for option in options]
    code, out, err = run(monkeypatch, capsys, "predict", *filled, "--model", "no-such/model")
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["radiographs"]


def test_evaluate_prints_a_table_or_json(monkeypatch, capsys, phantoms, tiny_folder):
    code, out, err = run(monkeypatch, capsys, "evaluate", phantoms, "--model", tiny_folder)
    assert code == 0
    assert "--output FOLDER adds intervals, calibration, operating points and subgroups." in err
    assert [line for line in out.splitlines() if line.startswith("Pleural Effusion")]
    code, out, _ = run(monkeypatch, capsys, "evaluate", phantoms, "--model", tiny_folder, "--json")
    result = json.loads(out)
    assert [item["observation"] for item in result["observations"]] == list(OBSERVATIONS)
    positives = {item["observation"]: item["num_positive"] for item in result["observations"]}
    with (phantoms / "valid.csv").open() as stream:
        rows = {row["Path"].rsplit("/", 1)[0]: row for row in csv.DictReader(stream)}
    assert positives["Edema"] == sum(float(row["Edema"] or 0) == 1 for row in rows.values())


def test_models_of_other_labels_are_compared_on_those_that_all_of_them_score(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    names = ["Fracture", "Edema", "Cardiomegaly"]  # in another order than the first model's
    torch.manual_seed(1)
    other = CheXpertForImageClassification(CheXpertConfig(**TINY, id2label=dict(enumerate(names))))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tiny_folder / "preprocessor_config.json", tmp_path / "other")
    both = ["evaluate", phantoms, "--model", tiny_folder, "--model", tmp_path / "other"]
    code, out, err = run(monkeypatch, capsys, *both, "--json")
    assert code == 0
    assert "Evaluated are the observations that all models score: Cardiomegaly, Edema, Fracture; tiny-model sc" in err
    assert "other scores" not in err
    assert "--output FOLDER adds differences between the models, intervals, calibration" in err
    found = json.loads(out)
    assert [*found] == ["tiny-model", "other"]
    for name, folder in (("tiny-model", tiny_folder), ("other", tmp_path / "other")):
        _, alone, _ = run(monkeypatch, capsys, "evaluate", phantoms, "--model", folder, "--json")
        expected = {entry["observation"]: entry for entry in json.loads(alone)["observations"]}
        assert [entry["observation"] for entry in found[name]["observations"]] == ["Cardiomegaly", "Edema", "Fracture"]
        assert found[name]["observations"] == [expected[entry["observation"]] for entry in found[name]["observations"]]
    report = tmp_path / "report"
    assert run(monkeypatch, capsys, *both, "--output", report, "--replicates", "100", "--thumbnails", "1")[0] == 0
    assert "Pneumonia" not in (report / "report.md").read_text()
    code, _, err = run(monkeypatch, capsys, *both, "--ensemble")
    assert code == 2
    assert "without --ensemble compares such models" in err.splitlines()[-1]
    code, _, err = run(monkeypatch, capsys, *both, "--output", tmp_path / "maps", "--sanity", "4")
    assert code == 2
    assert "check their maps one by one, with `sanity`" in err.splitlines()[-1]


def test_models_that_count_blanks_differently_are_compared_on_the_same_labels(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "valid.csv").write_text((data / "valid.csv").read_text().replace(",0.0", ","))
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    CheXpertConfig.from_pretrained(other, blank_labels="unknown").save_pretrained(other)
    command = ["evaluate", data, "--model", tiny_folder, "--model", other, "--json"]
    code, out, err = run(monkeypatch, capsys, *command)
    assert code == 0
    assert "Blank cells count as negative for all of these models, as tiny-model was trained." in err
    found = json.loads(out)
    assert found["other"] == found["tiny-model"]
    assert found["other"]["observations"][5]["num_negative"] > 0
    _, alone, err = run(monkeypatch, capsys, "evaluate", data, "--model", other, "--json")
    assert json.loads(alone)["observations"][5]["num_negative"] == 0
    assert "Blank cells" not in err


def test_a_model_named_like_the_labels_in_tables_of_predictions_is_refused(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    shutil.copytree(tiny_folder, tmp_path / "truth")
    code, _, err = run(
        monkeypatch, capsys, "evaluate", phantoms, "--model", tmp_path / "truth", "--output", tmp_path / "r"
    )
    assert code == 2
    assert "A model is named 'truth'" in err.splitlines()[-1]


def test_evaluate_prints_the_same_table_with_a_report_and_takes_the_mean_if_asked(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    command = ["evaluate", phantoms, "--model", tiny_folder, "--aggregation", "mean"]
    _, alone, _ = run(monkeypatch, capsys, *command)
    code, out, err = run(monkeypatch, capsys, *command, "--output", tmp_path / "report", "--replicates", 100)
    assert (code, out) == (0, alone)
    assert "mean over the views of each" in alone
    assert str(tmp_path / "report") in err
    entries = json.loads((tmp_path / "report" / "metrics.json").read_text())["models"][0]["observations"]
    (expected,) = [entry["auroc"]["value"] for entry in entries if entry["observation"] == "Support Devices"]
    assert re.search(rf"Support Devices +\d+ +\d+ +{expected:.3f}", out)


def test_train_takes_a_recipe_and_flags_override_it(monkeypatch, capsys, phantoms, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "init: random\narchitecture: {growth_rate: 4, block_config: [2, 2], num_init_features: 8, bn_size: 2}\n"
        "image_size: 48\nepochs: 5\nbatch_size: 8\nworkers: 0\n"
    )
    code, out, err = run(
        monkeypatch, capsys, "train", phantoms, "--output", tmp_path / "model", "--recipe", recipe,
        "--image-size", 32, "--epochs", 1, "--observations", "Edema,Cardiomegaly", "--policy", "Edema=u-ones",
        "--valid-fraction", 0.3,
    )  # fmt: skip
    assert code == 0, err
    assert "Cardiomegaly" in out
    saved = (tmp_path / "model" / "recipe.yaml").read_text()
    assert "image_size: 32" in saved
    assert "valid_fraction: 0.3" in saved
    assert "batch_size: 8" in saved
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["uncertainty_policies"] == {"Edema": "u-ones", "Cardiomegaly": "u-ignore"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "no-such.png"], "no-such.png does not exist"),
        (["predict", "film.png", "--output", "there.csv"], "there.csv exists already"),
        (["evaluate", "no-such"], "'no-such' does not exist"),
        (["predict", "film.png", "--model", "nihh"], "'nihh' is neither a model folder nor the id of a repository"),
        (["evaluate", ".", "--model", "runs/a/b"], "'runs/a/b' is neither a model folder nor the id of a repository"),
        (["demo", "--model", "./tb"], "'./tb' is neither a model folder nor the id of a repository"),
        (["check", "--model", "."], ". holds no config.json; expected a model folder"),
        (
            ["predict", "film.png", "--model", "lora"],
            "lora holds an adapter, expected a model folder: load",
        ),
        (["train", ".", "--output", "x", "--init", "nihh"], "'nihh' is neither a model folder nor the id"),
        (["evaluate", ".", "--output", "there.csv"], "there.csv cannot be a folder for the results"),
        (["localize", "no-such", "--output", "x"], "'no-such' does not exist"),
        (["calibrate", ".", "--output", "."], "is not empty"),
        (["gate", "/no/such"], "'/no/such' does not exist"),
        (["train", ".", "--output", "."], "is not empty"),
        (["phantom", "--output", "."], "is not empty"),
    ],
)
def test_wrong_paths_and_outputs_are_refused_before_torch_is_imported(tmp_path, arguments, message):
    for name in ("film.png", "there.csv"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    program = (
        "import atexit, sys; from chexpert_hf.cli import main; "
        "atexit.register(lambda: print(*sys.modules.keys() & {'torch', 'transformers'})); main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("output", [[], ["--output", "scores.csv"]])
def test_predict_writes_only_the_maps_that_are_asked_for(
    monkeypatch, capsys, radiographs, tiny_folder, tmp_path, output
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next(radiographs.glob("*.jpg")), "a.jpg")
    arguments = ["predict", "a.jpg", "--model", tiny_folder, *output]
    asked = ["--saliency", "maps", "--map", "Edema", "--map", "Fracture"]
    assert run(monkeypatch, capsys, *arguments, *asked)[0] == 0
    assert sorted(path.name for path in Path("maps").rglob("*.png")) == ["Edema.png", "Fracture.png"]
    shutil.rmtree("maps")
    Path("scores.csv").unlink(missing_ok=True)
    code, _, err = run(monkeypatch, capsys, *arguments, "--saliency", "maps", "--map", "edema")
    assert code == 2
    assert "--map is 'edema', expected one of No Finding, " in err
    code, _, err = run(monkeypatch, capsys, *arguments, "--map", "Edema")
    assert code == 2
    assert "--map needs --saliency" in err


def test_predict_says_how_many_radiographs_are_in_no_folder_of_a_study(
    monkeypatch, capsys, radiographs, tiny_folder, tmp_path
):
    views = [tmp_path / "patient1" / "study1" / name for name in ("1.jpg", "2.jpg")]
    views[0].parent.mkdir(parents=True)
    for path in (*views, tmp_path / "a.jpg"):
        shutil.copy(next(radiographs.glob("*.jpg")), path)
    arguments = ["predict", "--model", tiny_folder, "--study"]
    code, out, err = run(monkeypatch, capsys, *arguments, *views, tmp_path / "a.jpg")
    assert (code, len(out.splitlines())) == (0, 3)
    assert "1 of 3 radiographs are in no folder like patient00001/study1" in err
    assert "in no folder" not in run(monkeypatch, capsys, *arguments, *views)[2]


@pytest.mark.parametrize("options", [[], ["--study"]])
def test_predict_prints_json_lines_with_the_values_of_the_csv(monkeypatch, capsys, radiographs, tiny_folder, options):
    arguments = ["predict", radiographs, "--model", tiny_folder, *options]
    code, out, _ = run(monkeypatch, capsys, *arguments, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    _, expected, _ = run(monkeypatch, capsys, *arguments)
    table = list(csv.DictReader(io.StringIO(expected)))
    assert code in (0, 1)
    assert [list(row) for row in rows] == [list(row) for row in table]
    assert [f"{row['Edema']:.6f}" for row in rows if row["Edema"]] == [row["Edema"] for row in table if row["Edema"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "no-such-file.png", "--model", "{model}"], "no-such-file.png does not exist"),
        (["evaluate", "no-such-folder", "--model", "{model}"], "no-such-folder"),
        (["train", "{data}", "--output", "x", "--policy", "u-maybe"], "Unknown uncertainty policy 'u-maybe'"),
        (["train", "{data}", "--output", "x", "--image-size", "0"], "image_size is 0, expected at least 1"),
        (["train", "{data}", "--output", "{data}", "--init", "random"], "is not empty"),
        (["train", "no-such-folder", "--output", "x", "--init", "random"], "no-such-folder"),
        (["train", "{data}", "--output", "x", "--report-to", "nowhere"], "expected one of: none, tensorboard, trackio"),
        (["train", "{data}", "--output", "x", "--report-to", "trackio"], "needs that package: pip install trackio"),
        (["evaluate", "{data}", "--model", "{data}"], "holds no config.json; expected a model folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(data=phantoms, model=tiny_folder) for argument in arguments]
    code, out, err = run(monkeypatch, capsys, *filled)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_calibrate_writes_a_folder_whose_card_and_reference_scores_are_its_own(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    (tiny_folder / "README.md").write_text("# tiny\n\n## Operating points\n\nold\n\n## Limits\n\nmany\n")
    output = tmp_path / "calibrated"
    arguments = ["calibrate", phantoms, "--model", tiny_folder, "--output", output]
    code, out, err = run(monkeypatch, capsys, *arguments, "--method", "platt", "--operating-points", "youden")
    assert code == 0, err
    assert str(output) in out
    record = json.loads((output / "config.json").read_text())["calibration"]
    assert {*record["slopes"], *record["left_out"]} == set(OBSERVATIONS)
    assert all(name in out for name in OBSERVATIONS)
    card = (output / "README.md").read_text()
    assert "old" not in card
    assert card.index("## Calibration") < card.index("## Operating points") < card.index("## Limits")
    reference = json.loads((output / "reference.json").read_text())
    phantom = render_phantom(**reference["phantom"])
    expected = CheXpertClassifier.from_pretrained(output).predict(phantom.image).probabilities
    assert reference["probabilities"] == pytest.approx(expected, abs=1e-6)
    code, _, err = run(monkeypatch, capsys, "evaluate", phantoms, "--model", output)
    assert code == 2
    assert "pass --allow-calibration-patients" in err
    report = tmp_path / "report"
    code, _, err = run(
        monkeypatch, capsys, "evaluate", phantoms, "--model", output, "--model", tiny_folder, "--output", report,
        "--replicates", 100, "--thumbnails", 1, "--allow-calibration-patients",
    )  # fmt: skip
    assert code == 0, err
    text = (report / "report.md").read_text()
    assert "patients were used to calibrate the model; metrics on them are optimistic" in text.split("## ")[0]
    assert f"{tiny_folder.name} − calibrated" in text
    assert "Largest errors" in (report / "report.html").read_text()
    assert json.loads((report / "metrics.json").read_text())["data"]["views"] > 10
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "is not empty" in err
    code, _, err = run(monkeypatch, capsys, *arguments, "--operating-points", "best", "--output", tmp_path / "b")
    assert code == 2
    assert "above 0, at most 1), got 'best'" in err


def test_calibrate_takes_the_prevalence_where_the_model_will_be_used(
    monkeypatch, capsys, phantoms, tiny_folder, tmp_path
):
    arguments = ["calibrate", phantoms, "--model", tiny_folder, "--output", tmp_path / "out"]
    code, _, err = run(monkeypatch, capsys, *arguments, "--prevalence", "Edema:.05")
    assert code == 2
    assert "Expected prevalences as 'Pneumonia=.02,Edema=.05', got 'Edema:.05'" in err
    code, _, err = run(monkeypatch, capsys, *arguments, "--prevalence", "Edema=1.05")
    assert code == 2
    assert "The prevalence of Edema is 1.05" in err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def readings(phantoms, tmp_path):
    """What others read in all but one of the valid images: Edema, with the class of each and a box where it is."""
    with (phantoms / "valid.csv").open() as stream:
        rows = list(csv.DictReader(stream))[1:]
    lines = ["Path,Class,Target,x,y,width,height", "elsewhere/train/patient99999/study1/view1_frontal.jpg,Ill,1,,,,"]
    for number, row in enumerate(rows):
        kind = ("Ill,1,2,2,9,9", "Other,0,,,,", "Normal,0,,,,")[number % 3]
        lines.append(f"elsewhere/{row['Path'].partition('/')[2]},{kind}")
    file = tmp_path / "readings.csv"
    file.write_text("\n".join(lines) + "\n")
    return file, len(rows)


def test_evaluate_puts_a_second_reference_standard_beside_the_labels(
    monkeypatch, capsys, phantoms, tiny_folder, readings, tmp_path
):
    file, count = readings
    arguments = [
        "evaluate", phantoms, "--model", tiny_folder, "--reference", file, "--reference-name", "Two readers",
        "--reference-map", "Target=Edema", "--reference-map", "Target=Pneumonia", "--reference-against", "Class=Normal",
        "--labels-name", "drawn labels", "--replicates", 100,
    ]  # fmt: skip
    code, out, err = run(monkeypatch, capsys, *arguments, "--output", tmp_path / "report")
    assert code == 0, err
    assert f"Two readers: {count} of the {count + 1} images of this split are in readings.csv; 1 other image" in err
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    second = metrics["second_reference_standard"]
    assert metrics["reference_standard"] == "drawn labels"
    assert (second["images"], second["images_only_in_split"], second["images_only_in_reference"]) == (count, 1, 1)
    kinds = [(item["observation"], item["reference"], item["against"]) for item in second["figures"]]
    assert kinds == [
        (name, *standard)
        for name in ("Edema", "Pneumonia")
        for standard in (("Two readers", None), ("Two readers", "Class=Normal"), ("drawn labels", None))
    ]
    for text in [(tmp_path / "report" / f"report.{kind}").read_text() for kind in ("md", "html")]:
        assert "Reference standard: drawn labels; uncertain labels are left out, blank ones count as negative." in text
        assert "Second reference standard: Two readers" in text
        assert "Target, against Class=Normal" in text
        assert f"On the {count} images of this split that are in readings.csv" in text
    code, out, _ = run(monkeypatch, capsys, *arguments, "--json")
    assert json.loads(out)["second_reference_standard"]["figures"] == second["figures"]
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert [line.split("  ")[1] for line in out.splitlines() if "drawn labels" in line] == ["Edema", "Pneumonia"]


def test_localize_takes_the_boxes_of_a_reference_standard(
    monkeypatch, capsys, phantoms, tiny_folder, readings, tmp_path
):
    file, count = readings
    arguments = [
        "localize", phantoms, "--model", tiny_folder, "--reference", file, "--reference-map", "Target=Edema",
        "--reference-name", "Readers", "--replicates", 100, "--output", tmp_path,
    ]  # fmt: skip
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 0, err
    result = json.loads((tmp_path / "localization.json").read_text())
    assert result["ground_truth"] == "boxes in readings.csv (Readers)"
    assert (result["num_images"], list(result["observations"])) == (-(-count // 3), ["Edema"])
    code, _, err = run(monkeypatch, capsys, *arguments, "--annotations", file)
    assert (code, "Expected --reference or --annotations, got both" in err) == (2, True)


@pytest.mark.parametrize("command", ["evaluate", "localize"])
def test_options_of_a_reference_need_the_file(monkeypatch, capsys, phantoms, tiny_folder, tmp_path, command):
    arguments = [command, phantoms, "--model", tiny_folder, "--output", tmp_path / "out"]
    code, _, err = run(monkeypatch, capsys, *arguments, "--reference-map", "Target=Edema")
    assert (code, "need --reference" in err) == (2, True)
