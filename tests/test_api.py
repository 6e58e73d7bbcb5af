"""The functions of `import chexpert_hf` that do what commands do."""

import json
import subprocess
import sys

import pytest

import chexpert_hf
from chexpert_hf import CheXpertClassifier, calibrate, evaluate, load_dataset, localize, save_model_folder
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.check import check_folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=40, seed=3, valid_fraction=0.6)
    return root


@pytest.fixture(scope="module")
def classifier(tiny_folder_for_module):
    return CheXpertClassifier.from_pretrained(tiny_folder_for_module)


@pytest.fixture(scope="module")
def tiny_folder_for_module(tmp_path_factory):
    import torch

    from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
    from tests.conftest import TINY

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = CheXpertForImageClassification(CheXpertConfig(**TINY))
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    save_model_folder(folder, model, processor, data="drawings", licence="As you like.")
    return folder


def test_every_public_name_can_be_imported():
    assert {"Recipe", "train", "evaluate", "calibrate", "localize", "load_dataset", "save_model_folder"} <= set(
        dir(chexpert_hf)
    )
    for name in chexpert_hf.__all__:
        assert getattr(chexpert_hf, name) is not None


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, chexpert_hf; print(sorted({'torch', 'transformers', 'datasets', 'gradio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_of_one_is_evaluated_as_its_split_is(classifier, phantoms, tmp_path):
    result = evaluate(classifier, phantoms, output=tmp_path / "report")
    data = load_dataset(phantoms, splits=["valid"], observations=classifier.observations)["valid"]
    assert result == evaluate_dataset(classifier, data) == evaluate(classifier, data)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["models"][0]["mean_auroc"]["value"] == pytest.approx(result.mean_auroc)


def test_data_with_other_labels_than_the_models_are_refused(classifier, phantoms):
    data = load_dataset(phantoms, splits=["valid"], observations=["Edema"])["valid"]
    with pytest.raises(InputError, match="have 1 labels, the model 14 observations"):
        evaluate(classifier, data)


def test_a_calibrated_folder_is_complete(tiny_folder_for_module, phantoms, tmp_path):
    result = calibrate(tiny_folder_for_module, phantoms, tmp_path / "calibrated", operating_points="youden")
    config = CheXpertClassifier.from_pretrained(tmp_path / "calibrated").model.config
    assert config.calibration["slopes"].keys() == result.calibration.lines.keys() != set()
    points = {name: point.threshold for name, point in result.operating_points.items()}
    assert {name: config.operating_points[name] for name in points} == pytest.approx(points)


def test_maps_are_compared_with_the_masks_of_phantoms(classifier, phantoms):
    result = localize(classifier, phantoms)
    assert result.source == "masks"
    assert len(result.located) == sum(each.pointers["model"].num_images for each in result.observations) > 0


def test_a_saved_folder_passes_the_check_and_names_its_data(tiny_folder_for_module):
    assert check_folder(tiny_folder_for_module).is_ok
    assert "drawings" in (tiny_folder_for_module / "README.md").read_text()
