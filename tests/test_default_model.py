"""The bundled model: it is there, complete, small, and does what its card says."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from chexpert_hf import CheXpertClassifier, load_dataset
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.evaluation.metrics import observation_metrics, split_labels
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.models.model_files import CODE_FILES, differences, missing_files
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.card import card_problems
from chexpert_hf.publishing.check import check_folder
from chexpert_hf.publishing.model_folder import REFERENCE_PHANTOM
from chexpert_hf.publishing.publish import stage_model
from tests.commands import run as run_command
from train.bundled_model_card import uncalibrated


@pytest.fixture(scope="module")
def classifier():
    return CheXpertClassifier.from_pretrained()


def test_without_a_name_the_model_in_the_box_gives_its_reference_scores(classifier):
    reference = json.loads((DEFAULT_MODEL / "reference.json").read_text())["probabilities"]
    scores = classifier.predict(render_phantom(**REFERENCE_PHANTOM).image).probabilities
    assert dict(scores) == pytest.approx(reference, abs=1e-5)


def test_it_takes_at_most_16_megabytes_and_is_a_densenet121(classifier):
    assert sum(path.stat().st_size for path in DEFAULT_MODEL.iterdir()) < 16e6
    assert classifier.model.config.block_config == [6, 12, 24, 16]
    assert {parameter.dtype for parameter in classifier.model.parameters()} == {torch.float32}


def test_it_is_calibrated_and_has_operating_points_that_the_validation_split_did_not_choose(classifier):
    config = classifier.model.config
    for record in (config.calibration, config.operating_points_source):
        assert record["split"] == "train, cross-validation with 3 folds of patients"
    assert all(config.operating_points[name] != 0.5 for name in config.calibration["slopes"])


@pytest.mark.slow
def test_check_finds_nothing_wrong_and_its_card_is_complete():
    assert [line for line in check_folder(DEFAULT_MODEL).lines if line.result == "FAILED"] == []
    card = (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    assert card_problems(card) == []
    assert "https://nihcc.app.box.com/v/ChestXray-NIHCC" in card


def test_it_can_be_pushed_with_the_packages_code(tmp_path):
    names = [name for name, _ in stage_model(DEFAULT_MODEL, "me/box", tmp_path)]
    assert set(CODE_FILES) <= set(names)
    assert not any("patients" in name for name in names)
    assert not any((tmp_path / name).is_symlink() for name in names)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'CheXpertClassifier.from_pretrained("me/box")' in card


@pytest.mark.parametrize("command", [["check", "--model", "nih"], ["push", "me/nih", "--model", "nih", "--dry-run"]])
def test_commands_take_it_by_its_name(run, command):
    code, out, err = run(*command)
    assert code == 0, err
    assert "modeling_chexpert.py" in out or "FAILED" not in out


def test_a_space_takes_it_by_its_name_and_shows_its_name_and_warning(run, tmp_path):
    code, _, err = run("space", "me/page", "--model", "nih", "--dry-run", "--output", tmp_path / "space")
    assert code == 0, err
    model = tmp_path / "space" / "model"
    assert missing_files(model) == differences(model) == []
    config = json.loads((model / "config.json").read_text())
    assert config["model_name"] == "nih"
    assert "not a clinical model" in config["warnings"][0]


def test_the_line_of_its_card_gives_it_and_a_folder_of_that_name_wins_with_a_note(
    classifier, tiny_folder, tmp_path, monkeypatch, recwarn
):
    assert 'from_pretrained("nih")' in (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert CheXpertClassifier.from_pretrained("nih").observations == classifier.observations
    assert not [one for one in recwarn if "bundled model" in str(one.message)]
    tiny_folder.rename(tmp_path / "nih")
    with pytest.warns(UserWarning, match="^Using the folder .*nih, not the bundled model of the same name.$"):
        assert len(CheXpertClassifier.from_pretrained("nih").observations) == 14


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command; gives its exit code, standard output and standard error."""

    return partial(run_command, monkeypatch, capsys)


@pytest.mark.parametrize("model", [None, "nih", "copy"])
def test_predict_says_that_it_is_no_clinical_model_and_names_its_card_where_it_is_used(run, tmp_path, model):
    Image.fromarray(render_phantom(**REFERENCE_PHANTOM).image).save(tmp_path / "a.png")
    if model == "copy":
        model = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    code, out, err = run("predict", tmp_path / "a.png", *(("--model", model) if model else ()))
    assert code == 0
    assert ("Using the bundled model; its card: " in err) is (model in (None, "nih"))
    assert "not a clinical model." in err
    assert out.splitlines()[0].startswith("path,")
    assert len(out.splitlines()) == 2


@pytest.fixture(scope="module")
def judged(classifier, real_data: Path):
    """Probabilities and truth, both `(305, 11)`, of the validation split, where each study is one image."""
    valid = load_dataset(real_data / "NIH", observations=classifier.observations)["valid"]
    return predict_dataset(classifier, valid), split_labels(valid, "negative")


@pytest.mark.slow
def test_on_the_real_validation_split_it_has_the_aurocs_of_its_card(classifier, judged):
    found = dict(zip(classifier.observations, aurocs(*judged), strict=True))
    stored = json.loads((DEFAULT_MODEL / "evaluation.json").read_text())
    expected = {item["observation"]: item["auroc"] for item in stored["observations"]}
    assert found == pytest.approx(expected, abs=2e-3)
    assert np.mean(list(found.values())) >= 0.775
    five = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert np.mean([found[name] for name in five]) >= 0.8


@pytest.mark.slow
def test_its_lung_opacity_agrees_with_radiologists_on_patients_that_it_has_not_seen(classifier, judged, real_data):
    """RSNA's readings of 93 images of the validation split, which trained, chose and calibrated nothing."""
    readings = pd.read_csv(real_data / "NIH" / "rsna.csv").drop_duplicates("Path")
    readings.index = readings["Path"].str.split("/").str[2:].str.join("/")
    paths = [path.split("/")[-3:] for path in load_dataset(real_data / "NIH")["valid"]["path"][:]]
    read = readings.reindex(["/".join(parts) for parts in paths]).reset_index(drop=True)
    scores = pd.Series(judged[0][:, classifier.observations.index("Lung Opacity")])
    is_read, is_normal = read["Target"].notna(), read["Class"] == "Normal"
    assert (is_read.sum(), (read["Target"] == 1).sum(), is_normal.sum()) == (93, 31, 15)
    assert roc_auc_score(read["Target"][is_read], scores[is_read]) >= 0.69
    clear = is_normal | (read["Target"] == 1)
    assert roc_auc_score(read["Target"][clear], scores[clear]) >= 0.9


@pytest.mark.slow
def test_it_judges_hearts_of_other_hospitals_whatever_gray_range_they_use(classifier, real_data: Path):
    index = pd.read_csv(real_data / "external" / "index.csv")
    for source, least in (("wingspan", 0.85), ("jsrt", 0.75)):
        films = index[index["Source"] == source]
        predictions = classifier.predict([real_data / path for path in films["Path"]])
        scores = [one.probabilities["Cardiomegaly"] for one in predictions]
        assert roc_auc_score(films["Cardiomegaly"], scores) >= least


def test_its_probabilities_of_patients_that_it_has_not_seen_are_calibrated(classifier, judged):
    """The scaling itself lowers the error of the cross-fitted networks only; see docs/results/bundled_model.md."""
    calibrated, truth = judged
    raw = uncalibrated(calibrated, classifier.model.config)
    errors = np.array(
        [
            [observation_metrics(scores[:, column], truth[:, column])["ece"] for column in range(truth.shape[1])]
            for scores in (calibrated, raw)
        ]
    )
    assert errors[0].mean() < 0.065
    prevalences = truth.mean(axis=0)
    relative_brier = ((calibrated - truth) ** 2).mean(axis=0) / (prevalences * (1 - prevalences))
    assert relative_brier.mean() < 0.88
    assert aurocs(calibrated, truth) == aurocs(raw, truth)


def aurocs(scores, truth):
    return [roc_auc_score(truth[:, column], scores[:, column]) for column in range(truth.shape[1])]
