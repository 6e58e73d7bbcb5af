"""The model in the box: it is there, complete, small, and does what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from chexpert_hf import CheXpertClassifier, load_chexpert
from chexpert_hf.cli import main
from chexpert_hf.data.phantom import render_phantom
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.evaluation.metrics import evaluation_labels, expected_calibration_error
from chexpert_hf.hub.card_check import card_problems
from chexpert_hf.hub.check import check_folder
from chexpert_hf.hub.folder import REFERENCE_PHANTOM
from chexpert_hf.hub.publish import stage_model
from chexpert_hf.inference.dataset import predict_dataset
from chexpert_hf.inference.model_files import CODE_FILES
from train.model_in_the_box import uncalibrated


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


def test_check_finds_nothing_wrong_and_its_card_is_complete():
    assert [line for line in check_folder(DEFAULT_MODEL).lines if line.result == "FAILED"] == []
    card = (DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    assert card_problems(card) == []
    assert "https://nihcc.app.box.com/v/ChestXray-NIHCC" in card


def test_it_can_be_pushed_with_the_packages_code(tmp_path):
    names = [name for name, _ in stage_model(DEFAULT_MODEL, "me/box", tmp_path)]
    assert set(CODE_FILES) <= set(names)
    assert not any("patients" in name for name in names)


def test_predict_without_a_model_takes_it_and_says_so(monkeypatch, capsys, tmp_path):
    Image.fromarray(render_phantom(**REFERENCE_PHANTOM).image).save(tmp_path / "a.png")
    monkeypatch.setattr("sys.argv", ["chexpert-hf", "predict", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    assert end.value.code == 0
    assert "No --model: this is the one in the box" in captured.err
    assert captured.out.splitlines()[0].startswith("path,")
    assert len(captured.out.splitlines()) == 2


@pytest.fixture(scope="module")
def judged(classifier, real_data: Path):
    """Probabilities and truth, both `(109, 5)`, of the validation split, where each study is one image."""
    valid = load_chexpert(real_data / "NIH-mini", observations=classifier.observations)["valid"]
    return predict_dataset(classifier, valid), evaluation_labels(np.asarray(valid["labels"][:]), "negative")


def test_on_the_real_validation_split_it_has_the_aurocs_of_its_card(classifier, judged):
    found = dict(zip(classifier.observations, aurocs(*judged), strict=True))
    stored = json.loads((DEFAULT_MODEL / "evaluation.json").read_text())
    expected = {item["observation"]: item["auroc"] for item in stored["observations"]}
    assert found == pytest.approx(expected, abs=2e-3)
    assert found["Pneumonia"] >= 0.90
    assert found["Edema"] >= 0.83
    assert np.mean(list(found.values())) >= 0.80


def test_its_calibration_lowers_the_calibration_error_of_patients_that_it_has_not_seen(classifier, judged):
    calibrated, truth = judged
    raw = uncalibrated(calibrated, classifier.model.config)
    errors = np.array(
        [
            [expected_calibration_error(scores[:, column], truth[:, column]) for column in range(truth.shape[1])]
            for scores in (calibrated, raw)
        ]
    )
    assert (errors[0] < errors[1]).all()
    assert errors[0].mean() < errors[1].mean() - 0.01
    assert aurocs(calibrated, truth) == aurocs(raw, truth)


def aurocs(scores, truth):
    return [roc_auc_score(truth[:, column], scores[:, column]) for column in range(truth.shape[1])]
