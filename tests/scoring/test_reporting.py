import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chexpert_hf import CheXpertClassifier
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.evaluation.calibration.calibrate import dataset_logits
from chexpert_hf.evaluation.patients import TRAINING_PATIENTS_FILE, write_patient_hashes
from chexpert_hf.evaluation.report.reporting import assess_dataset, patient_warnings, subgroup_columns
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.gate.fit import fit_folder_gate
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertEnsemble


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=12, seed=2, valid_fraction=0.9)
    return load_dataset(root, splits=["valid"])["valid"]


@pytest.mark.slow
def test_what_is_shown_as_an_error_is_on_the_wrong_side_of_the_operating_point(dataset, tiny_folder):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    classifier.model.config.operating_points |= {"Edema": 1.0, "Support Devices": 0.0}
    report = assess_dataset({"tiny": classifier}, dataset, title="t", replicates=100, num_thumbnails=100)
    probabilities, labels = predict_dataset(classifier, dataset), np.asarray(dataset["labels"][:])
    called = probabilities >= np.array([classifier.operating_points[name] for name in classifier.observations])
    captions = [caption for caption, _ in report.thumbnails]
    assert sum("false positive" in caption for caption in captions) == (called & (labels == 0)).sum() > 0
    assert sum("false negative" in caption for caption in captions) == (~called & (labels == 1)).sum() > 0
    assert not [caption for caption in captions if caption.startswith("Edema, false positive")]
    assert not [caption for caption in captions if caption.startswith("Support Devices, false negative")]


def test_subgroups_are_those_of_the_table(dataset):
    labels = np.asarray(dataset["labels"][:])
    observations = ["Edema", "Support Devices"]
    columns = subgroup_columns(dataset, labels[:, [5, 13]], observations)
    assert columns["sex"] == dataset["sex"][:]
    assert [group == "lateral" for group in columns["view"]] == [not value for value in dataset["is_frontal"][:]]
    assert [group == "present" for group in columns["support devices"]] == (labels[:, 13] == 1).tolist()
    bounds = {"0 to 39": (0, 39), "40 to 59": (40, 59), "60 to 79": (60, 79), "80 and older": (80, 200)}
    assert all(
        bounds[group][0] <= age <= bounds[group][1]
        for group, age in zip(columns["age"], dataset["age"][:], strict=True)
    )


def test_views_of_a_table_that_does_not_state_them_are_of_no_group(dataset):
    frontal = dataset.filter(lambda row: row["is_frontal"])
    labels = np.asarray(frontal["labels"][:])
    assert set(subgroup_columns(frontal, labels, ["Edema"])["view"]) == {"frontal"}  # by their projections
    unknown = frontal.map(lambda row: {"projection": None}, features=frontal.features)
    assert set(subgroup_columns(unknown, labels, ["Edema"])["view"]) == {None}


def test_probabilities_are_the_same_whoever_reads_the_images(dataset, tiny_folder):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    assert np.array_equal(predict_dataset(classifier, dataset, workers=1), predict_dataset(classifier, dataset))


def test_a_file_that_goes_bad_after_the_check_is_named_with_its_folder(tmp_path, tiny_folder):
    write_phantoms(tmp_path / "phantoms", num_studies=12, seed=2, valid_fraction=0.9)
    dataset = load_dataset(tmp_path / "phantoms", splits=["valid"])["valid"]
    bad = image_files(dataset)[3]
    Path(bad).write_bytes(b"no image")
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    for use in (predict_dataset, partial(predict_dataset, workers=1), dataset_logits):
        with pytest.raises(RadiographError, match=f"^{re.escape(bad)}: Expected a JPEG"):
            use(classifier, dataset)
    with pytest.raises(RadiographError, match=f"^{re.escape(bad)}: Expected a JPEG"):
        fit_folder_gate(tiny_folder, dataset, "phantoms")


def test_the_rule_of_an_ensembles_operating_points_names_those_of_all_members(dataset, tiny_folder):
    one, other, third, changed = (CheXpertClassifier.from_pretrained(tiny_folder, device="cpu") for _ in range(4))
    changed.model.config.operating_points |= {"Edema": 0.3}
    source = {"method": "youden", "wanted": None, "left_out": {"Fracture": "no threshold does better than chance"}}
    one.model.config.operating_points_source = third.model.config.operating_points_source = source
    classifiers = {
        "one": one,
        "mixed": CheXpertEnsemble([other, one]),
        "alike": CheXpertEnsemble([one, third]),
        "default": CheXpertEnsemble([other, other]),
        "changed": changed,
    }
    models = assess_dataset(classifiers, dataset, title="t", replicates=100).metrics["models"]
    rules = {
        model["name"]: {item["observation"]: item["operating_point"]["chosen_by"] for item in model["observations"]}
        for model in models
    }
    assert {name: rule["Edema"] for name, rule in rules.items()} == {
        "one": "youden",
        "mixed": "mean of the members' (default, youden)",
        "alike": "mean of the members' (youden)",
        "default": None,
        "changed": "not recorded",
    }
    assert {rule["Fracture"] for rule in rules.values()} == {None}


def test_a_model_that_does_not_record_its_training_patients_is_said_not_to(tiny_folder):
    unknown = "its training patients are not recorded; if some are among these, metrics are optimistic."
    assert patient_warnings([str(tiny_folder), "me/model"], ["a"]) == [f"tiny-model: {unknown}", f"model: {unknown}"]
    write_patient_hashes(tiny_folder / TRAINING_PATIENTS_FILE, ["b"])
    assert patient_warnings([str(tiny_folder)], ["a"]) == []
    assert len(patient_warnings([str(tiny_folder)], ["a", "b"])) == 1
