"""The functions of `import chexpert_hf` that do what commands do."""

import copy
import json
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from datasets import concatenate_datasets
from PIL import Image

import chexpert_hf
from chexpert_hf import (
    CheXpertClassifier,
    CheXpertForImageClassification,
    CheXpertImageProcessor,
    calibrate,
    evaluate,
    load_dataset,
    localize,
    save_model_folder,
)
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.patients import TRAINING_PATIENTS_FILE, overlapping_patients, write_patient_hashes
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.models.model_files import differences
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.check import check_folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=40, seed=3, valid_fraction=0.6)
    return root


@pytest.fixture(scope="module")
def folder(shared_tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    save_model_folder(folder, shared_tiny_model, processor, data="drawings", licence="As you like.")
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return CheXpertClassifier.from_pretrained(folder)


def test_every_public_name_can_be_imported():
    assert {"Recipe", "train", "evaluate", "calibrate", "localize", "load_dataset", "save_model_folder"} <= set(
        dir(chexpert_hf)
    )
    for name in chexpert_hf.__all__:
        assert getattr(chexpert_hf, name) is not None
    assert chexpert_hf.load_chexpert is chexpert_hf.load_dataset


def test_the_version_in_the_code_is_that_of_the_installed_package():
    assert chexpert_hf.__version__ == version("chexpert-hf")


def test_what_a_command_says_about_the_data_is_a_warning(folder, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (64, 64), 90).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,Edema,split\n" + "a.png,1,valid\nb.png,0,valid\n")
    with pytest.warns(UserWarning, match="has no labels for No Finding, .*: unknown there, not negative") as caught:
        evaluate(folder, tmp_path)
    assert {warning.filename for warning in caught if "unknown there" in str(warning.message)} == {__file__}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, chexpert_hf; print(sorted({'torch', 'transformers', 'datasets', 'gradio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_configuration_needs_neither_reports_nor_training():
    code = """import sys; from chexpert_hf import CheXpertConfig
print({'chexpert_hf.api', 'sklearn'} & set(sys.modules))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_folder_of_one_is_evaluated_as_its_split_is(classifier, phantoms, tmp_path):
    result = evaluate(classifier, phantoms, output=tmp_path / "report")
    data = load_dataset(phantoms, splits=["valid"], observations=classifier.observations)["valid"]
    assert result == evaluate_dataset(classifier, data) == evaluate(classifier, data)
    assert "phantoms, valid" in (tmp_path / "report" / "report.md").read_text()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["models"][0]["mean_auroc"]["value"] == pytest.approx(result.mean_auroc)


def test_data_with_other_labels_than_the_models_are_refused(classifier, phantoms):
    data = load_dataset(phantoms, splits=["valid"], observations=["Edema"])["valid"]
    with pytest.raises(InputError, match="have 1 labels, the model 14 observations"):
        evaluate(classifier, data)


def test_data_with_the_models_labels_in_another_order_are_refused(folder, classifier, phantoms, tmp_path):
    data = load_dataset(phantoms, splits=["valid"], observations=classifier.observations[::-1])["valid"]
    for given in (data, data.filter(lambda row: row["is_frontal"]), concatenate_datasets([data, data])):
        with pytest.raises(InputError, match=r"labels Support Devices, .*, in this order, the model No Finding, "):
            evaluate(classifier, given)
    with pytest.raises(InputError, match="in this order"):
        calibrate(folder, data, tmp_path / "calibrated")


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
def test_the_format_of_a_split_changes_nothing(classifier, phantoms, form):
    data = load_dataset(phantoms, splits=["valid"], observations=classifier.observations)["valid"]
    assert evaluate(classifier, data.with_format(form, columns=["labels"])) == evaluate(classifier, data)


def test_what_is_no_split_is_refused_in_one_line(classifier, phantoms):
    data = load_dataset(phantoms, observations=classifier.observations)
    with pytest.raises(InputError, match=r"Expected one split, such as data\['train'\], got a DatasetDict"):
        evaluate(classifier, data)
    for wrong in (data["valid"].to_iterable_dataset(), list(data["valid"]), data["valid"].to_pandas(), None):
        with pytest.raises(InputError, match=f"folder or a split from load_dataset, got a {type(wrong).__name__}"):
            evaluate(classifier, wrong)
    with pytest.raises(InputError, match="got a split without rows"):
        evaluate(classifier, data["valid"].select([]))
    with pytest.raises(InputError, match="no column 'study'; expected a split from load_dataset"):
        evaluate(classifier, data["valid"].remove_columns("study"))
    with pytest.raises(InputError, match="The image of row 0 is no file"):
        evaluate(classifier, data["valid"].map(lambda row: {"image": row["image"].resize((9, 9))}))
    with pytest.raises(InputError, match="Expected the folder of a data set, which also has the annotations"):
        localize(classifier, data["valid"])


def test_a_calibrated_folder_is_complete(folder, phantoms, tmp_path):
    result = calibrate(folder, phantoms, tmp_path / "calibrated", operating_points="youden")
    config = CheXpertClassifier.from_pretrained(tmp_path / "calibrated").model.config
    assert (config.calibration["data"], config.calibration["split"]) == ("phantoms", "valid")
    assert config.calibration["slopes"].keys() == result.calibration.lines.keys() != set()
    points = {name: point.threshold for name, point in result.operating_points.items()}
    assert {name: config.operating_points[name] for name in points} == pytest.approx(points)


def test_patients_that_a_model_was_calibrated_on_are_refused_or_warned_of(folder, phantoms, tmp_path):
    calibrate(folder, phantoms, tmp_path / "calibrated")
    with pytest.raises(InputError, match=r"was calibrated on \d+ of these"):
        evaluate(tmp_path / "calibrated", phantoms)
    with pytest.warns(UserWarning, match="calibrated"):
        evaluate(tmp_path / "calibrated", phantoms, output=tmp_path / "report", allow_calibration_patients=True)
    assert "used to calibrate the model" in (tmp_path / "report" / "report.md").read_text().split("## ")[0]


def test_a_split_that_is_given_names_itself(folder, phantoms, tmp_path):
    data = load_dataset(phantoms, splits=["train"])["train"]
    calibrate(folder, data, tmp_path / "calibrated")
    record = CheXpertClassifier.from_pretrained(tmp_path / "calibrated").model.config.calibration
    assert (record["data"], record["split"]) == ("data", "train")


def test_maps_are_compared_with_the_masks_of_phantoms(classifier, phantoms):
    result = localize(classifier, phantoms)
    assert result.source == "masks"
    assert len(result.findings) == sum(each.pointers["model"].num_images for each in result.observations) > 0


def test_a_saved_folder_passes_the_check_and_names_its_data(folder):
    assert check_folder(folder).is_ok
    assert "drawings" in (folder / "README.md").read_text()


def test_a_folder_of_a_model_that_was_trained_further_does_not_call_it_calibrated(folder, phantoms, tmp_path):
    calibrate(folder, phantoms, tmp_path / "calibrated", operating_points="sensitivity=.5")
    files = {"processor": CheXpertImageProcessor.from_pretrained(folder), "data": "films", "licence": "As you like."}
    model = CheXpertForImageClassification.from_pretrained(tmp_path / "calibrated")
    save_model_folder(tmp_path / "same", model, **files, keep_records=True)
    with pytest.warns(UserWarning, match="calibration, operating points .* dropped") as caught:
        save_model_folder(tmp_path / "trained", model, **files)
    assert [warning.filename for warning in caught] == [__file__]
    same, trained = (CheXpertClassifier.from_pretrained(tmp_path / name) for name in ("same", "trained"))
    assert same.model.config.calibration is not None
    assert trained.model.config.calibration is None
    assert set(trained.operating_points.values()) == {0.5} != set(same.operating_points.values())
    for name, is_calibrated in (("same", True), ("trained", False)):
        assert ("By platt on" in (tmp_path / name / "README.md").read_text()) == is_calibrated
    model.config.operating_points = {**model.config.operating_points, "Edema": 0.3}  # chosen by the user
    save_model_folder(tmp_path / "chosen", model, **files)
    assert CheXpertClassifier.from_pretrained(tmp_path / "chosen").operating_points["Edema"] == 0.3


def test_a_folder_that_is_written_again_has_no_results_of_its_earlier_model(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    earlier = ("evaluation.json", "recipe.yaml", "curve.png", "training_patients.json", "calibration_patients.json")
    for name in (*earlier, "gate.safetensors"):
        (copied / name).write_bytes(b"of an earlier model")
    model, processor = (cls.from_pretrained(copied) for cls in (CheXpertForImageClassification, CheXpertImageProcessor))
    save_model_folder(copied, model, processor, data="drawings", licence="As you like.")
    assert {path.name for path in copied.iterdir()} == {path.name for path in folder.iterdir()} | {"gate.safetensors"}


def test_a_folder_that_is_written_again_with_its_records_keeps_its_lists_of_patients(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    write_patient_hashes(copied / TRAINING_PATIENTS_FILE, ["patient00001"])
    model, processor = (cls.from_pretrained(copied) for cls in (CheXpertForImageClassification, CheXpertImageProcessor))
    save_model_folder(copied, model, processor, data="drawings", licence="As you like.", keep_records=True)
    assert overlapping_patients(copied / TRAINING_PATIENTS_FILE, ["patient00001"])
    assert differences(copied) == []


def test_a_folder_is_of_a_model_in_float32_without_adapters(shared_tiny_model, tmp_path):
    files = {"processor": CheXpertImageProcessor(), "data": "films", "licence": "As you like."}
    with pytest.raises(InputError, match=r"in float32, got torch.bfloat16: pass model.float\(\)"):
        save_model_folder(tmp_path / "model", copy.deepcopy(shared_tiny_model).bfloat16(), **files)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(shared_tiny_model), peft.LoraConfig(target_modules=["conv1"]))
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(InputError, match=r"the result of PeftModel's merge_and_unload"):
            save_model_folder(tmp_path / "model", model, **files)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_no_folder_is_refused_in_one_line(classifier, phantoms, tmp_path):
    with pytest.raises(InputError, match=r"Expected the folder of a model, .* got a CheXpertClassifier"):
        calibrate(classifier, phantoms, tmp_path / "calibrated")
    with pytest.raises(InputError, match="got a CheXpertForImageClassification; CheXpertClassifier"):
        evaluate(classifier.model, phantoms)


@pytest.mark.parametrize("points", [0.5, {"Edema": 0.5}])
def test_a_rule_for_operating_points_that_is_none_is_refused(folder, phantoms, tmp_path, points):
    with pytest.raises(InputError, match="Expected operating points by 'youden', "):
        calibrate(folder, phantoms, tmp_path / "calibrated", operating_points=points)


@pytest.mark.parametrize("wrong", [{"splits": "valid"}, {"observations": "Edema"}, {"observations": {"Edema"}}])
def test_names_that_are_no_list_are_refused(phantoms, wrong):
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))} in a list, which has an order, got "):
        load_dataset(phantoms, **wrong)


def test_an_unknown_method_is_refused_before_anything_is_written(folder, phantoms, tmp_path):
    with pytest.raises(InputError, match="Expected method platt or temperature, got 'isotonic'"):
        calibrate(folder, phantoms, tmp_path / "calibrated", method="isotonic")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_calibrated_on_other_labels_than_its_own(folder, phantoms, tmp_path):
    data = load_dataset(phantoms, splits=["valid"], observations=["Edema"])["valid"]
    with pytest.raises(InputError, match="have 1 labels, the model 14 observations"):
        calibrate(folder, data, tmp_path / "calibrated")
    assert list(tmp_path.iterdir()) == []
