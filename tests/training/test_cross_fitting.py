"""Calibration by models that have not seen the patients they judge, and the last checkpoint as the model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import logit

from chexpert_hf import OBSERVATIONS, CheXpertClassifier
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.evaluation.calibration.calibrate import dataset_logits
from chexpert_hf.evaluation.calibration.calibration import fit_platt
from chexpert_hf.evaluation.metrics import per_study, split_labels
from chexpert_hf.models.loading import load_model
from chexpert_hf.phantoms import render_phantom, write_phantoms
from chexpert_hf.publishing.model_folder import REFERENCE_PHANTOM
from chexpert_hf.training.cross_fitting import fold_of_images, hold_out_fold
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.run import train

from ..conftest import TINY

NAMES = ("Lung Opacity", "Edema", "Support Devices")
RECIPE = Recipe(
    observations=NAMES,
    policy="u-ones",
    init="random",
    architecture=TINY,
    num_channels=1,
    image_size=32,
    epochs=6,
    images_per_checkpoint=64,
    learning_rate=1e-2,
    checkpoint="last",
    calibration_folds=3,
    stored_precision="fp16",
    precision="bf16",  # what is said of the model is computed in float32 all the same
    workers=0,
)


def quiet(recipe, root, output, **options):
    return train(recipe, root, output, say=lambda line: None, **options)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=60, seed=5, valid_fraction=0.3)
    return root


@pytest.fixture(scope="module")
def split(phantoms):
    return load_dataset(phantoms, observations=NAMES)["train"]


@pytest.fixture(scope="module")
def calibrated(phantoms, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    quiet(RECIPE, phantoms, output)
    return output


def test_all_images_of_a_patient_are_in_one_part_and_rare_observations_in_all(split):
    parts = fold_of_images(split, 3)
    patients = np.asarray(split["patient"][:])
    assert all(len(set(parts[patients == patient])) == 1 for patient in set(patients))
    assert np.bincount(parts).min() > 0.7 * len(parts) / 3
    positive = np.asarray(split["labels"][:]) == 1
    counts = np.array([positive[parts == part].sum(axis=0) for part in range(3)])
    assert (counts.min(axis=0) >= 0.5 * counts.mean(axis=0)).all(), counts


def test_a_part_is_held_out_whole_and_nothing_of_it_is_trained_on(split):
    data = hold_out_fold(split, RECIPE.override(held_out_fold=1))
    assert set(data["train"]["patient"][:]).isdisjoint(data["valid"]["patient"][:])
    assert sorted([*data["train"]["path"][:], *data["valid"]["path"][:]]) == sorted(split["path"][:])


def test_fewer_patients_than_parts_are_refused(split):
    one_patient = split.select(np.flatnonzero(np.asarray(split["patient"][:]) == split["patient"][0]))
    with pytest.raises(RecipeError, match="calibration_folds is 2, but there are only 1 training patients"):
        fold_of_images(one_patient, 2)


@pytest.mark.slow
def test_the_lines_are_those_through_the_logits_of_models_that_did_not_see_the_patient(split, calibrated):
    parts = fold_of_images(split, 3)
    logits = np.empty((len(split), len(NAMES)))
    for part in range(3):
        folder = calibrated / "folds" / f"fold-{part + 1}"
        rows = np.flatnonzero(parts == part)
        logits[rows] = dataset_logits(CheXpertClassifier.from_pretrained(folder), split.select(rows))
    truth, _ = per_study(split_labels(split, "negative"), split["study"][:])
    logits, _ = per_study(logits, split["study"][:])
    record = json.loads((calibrated / "config.json").read_text())["calibration"]
    assert record["split"] == "train, cross-validation with 3 folds of patients"
    assert len(record["slopes"]) >= 2
    for name in record["slopes"]:
        column = NAMES.index(name)
        line = fit_platt(logits[:, column], truth[:, column])
        assert record["slopes"][name] == pytest.approx(line.slope, rel=1e-6)
        assert record["intercepts"][name] == pytest.approx(line.intercept, abs=1e-6)


def test_the_model_is_the_last_checkpoint_under_these_lines(phantoms, calibrated):
    config = json.loads((calibrated / "config.json").read_text())
    last = max((calibrated / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    valid = load_dataset(phantoms, observations=NAMES)["valid"]
    processor = CheXpertClassifier.from_pretrained(calibrated).processor
    before = dataset_logits(CheXpertClassifier(load_model(last), processor), valid)
    after = dataset_logits(CheXpertClassifier.from_pretrained(calibrated), valid)
    record = config["calibration"]
    slopes = np.array([record["slopes"].get(name, 1.0) for name in NAMES])
    intercepts = np.array([record["intercepts"].get(name, 0.0) for name in NAMES])
    assert after == pytest.approx(before * slopes + intercepts, abs=5e-3)  # float16 in between
    assert not (calibrated / "selection_patients.json").exists()  # the validation split chose nothing


def test_a_part_that_is_held_out_is_evaluated_once_at_the_end(calibrated):
    def evaluated_steps(folder):
        history = json.loads((folder / "history.json").read_text())
        return [entry["step"] for entry in history if "eval_mean_auroc" in entry], history[-1]["step"]

    steps, last = evaluated_steps(calibrated / "folds" / "fold-1")
    assert steps == [last]
    steps, last = evaluated_steps(calibrated)
    assert len(steps) > 1
    assert steps[-1] == last


def test_operating_points_are_chosen_by_youden_on_the_parts_left_out(calibrated):
    config = json.loads((calibrated / "config.json").read_text())
    assert config["operating_points_source"]["method"] == "youden"
    assert "cross-validation" in config["operating_points_source"]["split"]
    assert any(config["operating_points"][name] != 0.5 for name in NAMES)


def test_fp16_takes_half_the_space_and_loads_as_fp32_with_the_figures_of_the_evaluation(phantoms, calibrated):
    stored = load_file(calibrated / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if "conv" in name} == {torch.float16}
    assert {tensor.dtype for name, tensor in stored.items() if "norm" in name and "num" not in name} == {torch.float32}
    model = load_model(calibrated)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    reference = json.loads((calibrated / "reference.json").read_text())["probabilities"]
    image = render_phantom(**REFERENCE_PHANTOM).image
    now = CheXpertClassifier.from_pretrained(calibrated).predict(image).probabilities
    assert logit(list(now.values())) == pytest.approx(logit(list(reference.values())), abs=1e-5)


def test_a_finished_run_is_continued_to_the_same_folder(phantoms, calibrated, tmp_path):
    names = ("model.safetensors", "evaluation.json", "reference.json")
    before = [(calibrated / name).read_bytes() for name in names]
    quiet(RECIPE, phantoms, calibrated, resume=True)
    assert [(calibrated / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "best"}, "calibration_folds needs checkpoint 'last'"),
        ({"calibration_folds": 1}, "calibration_folds is 1, expected 0 or at least 2"),
        ({"held_out_fold": 3}, "held_out_fold is 3, expected from 0 to calibration_folds - 1"),
        ({"runs": 2}, "calibration_folds is for one run of one stage"),
        ({"conditional_epochs": 1, "observations": OBSERVATIONS}, "calibration_folds is for one run of one stage"),
        ({"checkpoint": "first"}, "checkpoint is 'first', expected one of: best, last"),
        ({"stored_precision": "int8"}, "stored_precision is 'int8', expected one of: fp32, fp16"),
    ],
)
def test_a_recipe_whose_calibration_makes_no_sense_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        RECIPE.override(**values)
