import copy
import functools
import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import pipeline

import chexpert_hf
from chexpert_hf import (
    CheXpertClassifier,
    CheXpertConfig,
    CheXpertForImageClassification,
    CheXpertImageProcessor,
    load_dataset,
)
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.calibration.calibrate import (
    CalibratedModel,
    dataset_logits,
    fold_calibration,
)
from chexpert_hf.evaluation.calibration.calibration import (
    Calibration,
    CalibrationCheck,
    CalibrationError,
    Method,
    OperatingPoint,
    OperatingRule,
    Platt,
    fit_platt,
)
from chexpert_hf.evaluation.calibration.records import record_of
from chexpert_hf.evaluation.metrics import auroc, per_study, split_labels
from chexpert_hf.evaluation.patients import (
    CALIBRATION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    overlapping_patients,
    write_patient_hashes,
)
from chexpert_hf.evaluation.report.reporting import assess_dataset
from chexpert_hf.files import FolderError
from chexpert_hf.labels import IGNORED, OBSERVATIONS
from chexpert_hf.modeling_chexpert import LAST_STAGE
from chexpert_hf.models.model_files import CHECKSUMS_FILE, write_ensemble
from chexpert_hf.phantoms import write_phantoms

from ..conftest import TINY

MULTICLASS = {"Cardiomegaly": "u-multiclass", "Pleural Effusion": "u-multiclass"}
HEADS = {
    "linear": {},
    "hidden": {"head_hidden_size": 8, "head_dropout": 0.5},
    "multiclass": {"uncertainty_policies": MULTICLASS},
    "multiclass_hidden": {"uncertainty_policies": MULTICLASS, "head_hidden_size": 8},
}
LINES = {
    "Cardiomegaly": Platt(2.5, -1.25),
    "Edema": Platt(0.3, 0.7),
    "Pleural Effusion": Platt(0.8, 3.0),
    "Fracture": Platt(1.7, 0.0),
}


calibrate = functools.partial(chexpert_hf.calibrate, split="valid", data_name="phantoms")


def build(head: str) -> CheXpertForImageClassification:
    return copy.deepcopy(built(head))


@functools.cache
def built(head: str) -> CheXpertForImageClassification:
    """A tiny model with BatchNorm statistics, and logits that differ between images; not to be changed."""
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, **HEADS[head])).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 32, 32) * 2 + 1)
        for parameter in model.classifier.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture(params=list(HEADS))
def model(request) -> CheXpertForImageClassification:
    return build(request.param)


def calibrated(logits: torch.Tensor) -> np.ndarray:
    """What the lines say, computed apart from any model."""
    logits = logits.detach().double().numpy()
    columns = [LINES.get(name, Platt(1.0, 0.0)).probabilities(logits[:, c]) for c, name in enumerate(OBSERVATIONS)]
    return np.stack(columns, axis=1)


def pictures(num: int = 12) -> torch.Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2


def test_the_sigmoid_of_a_folded_models_logits_is_the_calibrated_probability_also_after_saving(model, tmp_path):
    expected = calibrated(model(pictures()).logits)
    fold_calibration(model, LINES)
    np.testing.assert_allclose(model(pictures()).logits.sigmoid().detach().numpy(), expected, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = CheXpertForImageClassification.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded(pictures()).logits.sigmoid().detach().numpy(), expected, atol=1e-6)


def test_the_stock_pipeline_gives_the_calibrated_probability(model, tmp_path):
    processor = CheXpertImageProcessor(size={"height": 32, "width": 32})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70), dtype=np.uint8))
    expected = calibrated(model(processor(image, return_tensors="pt")["pixel_values"]).logits)[0]
    fold_calibration(model, LINES)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scores = pipeline("image-classification", str(tmp_path))(image, top_k=14)
    by_name = {item["label"]: item["score"] for item in scores}
    np.testing.assert_allclose([by_name[name] for name in OBSERVATIONS], expected, atol=1e-6)


def test_observations_that_are_left_out_keep_their_weights_and_logits_to_the_bit(model):
    before, weights = model(pictures()).logits, copy.deepcopy(model.state_dict())
    fold_calibration(model, LINES)
    left_out = [column for column, name in enumerate(OBSERVATIONS) if name not in LINES]
    assert torch.equal(model(pictures()).logits[:, left_out], before[:, left_out])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert len(changed) == 2  # weight and bias of the last layer
    for name in changed:
        assert torch.equal(model.state_dict()[name][left_out], weights[name][left_out])


def test_auroc_and_the_order_of_scores_are_the_same_after_folding(model):
    before = model(pictures(60)).logits.detach().numpy()
    labels = np.random.default_rng(0).integers(0, 2, before.shape).astype(float)
    fold_calibration(model, LINES)
    after = model(pictures(60)).logits.detach().numpy()
    for column in range(14):
        np.testing.assert_array_equal(np.argsort(after[:, column]), np.argsort(before[:, column]))
        assert auroc(after[:, column], labels[:, column]) == auroc(before[:, column], labels[:, column])


def test_maps_are_scaled_by_the_slope(model):
    before = model(pictures(), output_saliency=True).saliency
    fold_calibration(model, LINES)
    slopes = torch.tensor([LINES.get(name, Platt(1.0, 0.0)).slope for name in OBSERVATIONS])
    after = model(pictures(), output_saliency=True).saliency
    torch.testing.assert_close(after, before * slopes[:, None, None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", "multiclass"])
def test_the_mean_of_a_map_and_the_bias_are_still_the_logit(head):
    model = build(head)
    fold_calibration(model, LINES)
    output = model(pictures(), output_saliency=True)
    bias = model.logits_from(torch.zeros(1, model.classifier.in_features, 1, 1))[0]
    torch.testing.assert_close(output.saliency.mean(dim=(2, 3)) + bias, output.logits, atol=1e-5, rtol=1e-5)


def test_the_uncertain_class_keeps_its_order_against_the_other_two():
    model = build("multiclass")
    caught = []
    model.classifier.register_forward_hook(lambda module, inputs, output: caught.append(output))
    model(pictures())
    fold_calibration(model, LINES)
    model(pictures())
    positive = [OBSERVATIONS.index(name) for name in MULTICLASS]
    negative, uncertain = ([len(OBSERVATIONS) + 2 * part + place for place in range(2)] for part in range(2))
    # (12, 2, 3): negative, positive, uncertain
    before, after = (outputs[:, [negative, positive, uncertain]].transpose(1, 2) for outputs in caught)
    slopes = torch.tensor([LINES[name].slope for name in MULTICLASS])
    # The log odds of uncertain against the geometric mean of negative and positive.
    odds_before, odds_after = (z[..., 2] - (z[..., 0] + z[..., 1]) / 2 for z in (before, after))
    torch.testing.assert_close(odds_after, odds_before * slopes, atol=1e-5, rtol=1e-5)


def test_a_model_with_a_hierarchy_is_refused_and_stays_as_it_is():
    model = build("linear")
    model.config.label_parents = {"Edema": "Lung Opacity"}
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match=r"label hierarchy \(label_parents\)") as caught:
        fold_calibration(model, {"Fracture": Platt(2.0, 0.0)})
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=60, seed=2, valid_fraction=0.9)
    return load_dataset(root, splits=["valid"])["valid"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, valid) -> Path:
    """A model folder with a card, an exported graph, a checkpoint and an operating point."""
    folder = tmp_path_factory.mktemp("source") / "model"
    model = build("linear")
    model.config.operating_points |= {"Pleural Effusion": 0.3, "Fracture": 0.2}
    learn_head(model, valid)
    model.save_pretrained(folder)
    CheXpertImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    for name in ("README.md", "recipe.yaml", "LICENSE", "reference.json", "model.onnx", "export.json"):
        (folder / name).write_text(f"this is {name}")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "large.bin").write_text("large")
    return folder


def learn_head(model: CheXpertForImageClassification, dataset) -> None:
    """Makes the scores of a few observations rise with the truth, so that there is something to calibrate."""
    processor = CheXpertImageProcessor(size={"height": 32, "width": 32})
    pixel_values = processor([image.convert("L") for image in dataset["image"]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.stages(pixel_values)[LAST_STAGE].mean(dim=(2, 3)).double()
        labels = torch.tensor(dataset["labels"][:]).nan_to_num(0).clamp(min=0).double()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        weights = torch.linalg.lstsq(features.T @ features + 1e-2 * torch.eye(features.shape[1]), features.T @ labels)
        model.classifier.weight.copy_(8 * weights.solution[:-1].T)  # far too sure
        model.classifier.bias.copy_(8 * weights.solution[-1] - 2)


def reference(source: Path, dataset) -> tuple[np.ndarray, np.ndarray]:
    """Study logits and truth."""
    classifier = CheXpertClassifier.from_pretrained(source, device="cpu")
    truth, _ = per_study(split_labels(dataset, "negative"), dataset["study"][:])
    return per_study(dataset_logits(classifier, dataset), dataset["study"][:])[0], truth


def test_logits_are_the_models_and_progress_reaches_every_image(source, valid):
    seen = []
    classifier = CheXpertClassifier.from_pretrained(source, device="cpu")
    logits = dataset_logits(classifier, valid, seen.append)
    assert sum(seen) == len(valid)
    row = len(valid) - 1
    expected = classifier.predict(image_files(valid)[row]).probabilities
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[row])), list(expected.values()), atol=1e-6)


def test_a_calibrated_folder_scores_with_calibrated_probabilities_and_says_how_it_came_about(source, valid, tmp_path):
    output = tmp_path / "calibrated"
    rule = OperatingRule.parse("sensitivity=.8")
    result = calibrate(source, valid, output, operating_points=rule)
    logits, truth = reference(source, valid)
    after, _ = reference(output, valid)
    config = CheXpertConfig.from_pretrained(output)
    record = config.calibration
    assert set(record["slopes"]) | set(record["left_out"]) == set(OBSERVATIONS)
    assert len(record["slopes"]) >= 4
    assert len(record["left_out"]) >= 1
    for column, name in enumerate(OBSERVATIONS):
        assert record["num_positive"][name] == (truth[:, column] == 1).sum()
        if name in record["left_out"]:
            np.testing.assert_array_equal(after[:, column], logits[:, column])
            continue
        line = fit_platt(logits[:, column], truth[:, column])
        assert (record["slopes"][name], record["intercepts"][name]) == (line.slope, line.intercept)
        p = 1 / (1 + np.exp(-after[:, column]))
        np.testing.assert_allclose(p, line.probabilities(logits[:, column]), atol=5e-6)
        point = result.operating_points[name]
        assert config.operating_points[name] == point.threshold
        assert (p >= point.threshold)[truth[:, column] == 1].mean() == point.sensitivity >= 0.8
        assert (p < point.threshold)[truth[:, column] == 0].mean() == pytest.approx(point.specificity)
    assert (record["method"], record["data"], record["split"], record["date"]) == (
        "platt",
        "phantoms",
        "valid",
        date.today().isoformat(),
    )
    assert record["num_studies"] == result.num_studies == len(truth)
    origin = config.operating_points_source
    assert (origin["method"], origin["wanted"], origin["split"]) == ("sensitivity", 0.8, "valid")
    assert origin["left_out"] == result.without_point
    assert result.calibration.left_out == record["left_out"]


def test_the_result_as_text_and_json_names_every_observation_and_each_reason():
    calibration = Calibration(
        Method.PLATT, {"Edema": Platt(1.25, -0.5), "Fracture": Platt(2.0, 0.0)}, {"Pneumonia": "few"}
    )
    result = CalibratedModel(
        calibration, {"Edema": OperatingPoint(0.25, 0.8, 0.9, 0.75)}, {"Fracture": "nowhere", "Pneumonia": "few"}, 40
    )
    assert result.as_table().splitlines()[1:] == [
        "Edema        1.250     -0.500  0.250 (sensitivity 0.800, specificity 0.900, PPV 0.750)",
        "Fracture     2.000     +0.000  nowhere",
        "Pneumonia    as it was: few",
    ]
    content = json.loads(json.dumps(result.to_dict()))
    assert content["calibration"]["lines"]["Edema"] == {"slope": 1.25, "intercept": -0.5}
    assert content["calibration"]["method"] == "platt"
    assert content["operating_points"]["Edema"]["ppv"] == 0.75


@pytest.mark.parametrize(
    ("platt", "error", "says"), [(0.86, 0.11, True), (0.85, 0.1, True), (0.84, 0.11, False), (0.86, 0.05, False)]
)
def test_a_calibration_that_does_not_help_held_out_patients_is_said(platt, error, says):
    calibration = Calibration(Method.PLATT, {"Edema": Platt(1.25, -0.5)}, {})
    brier = {"raw": 0.85, "platt": platt, "temperature": 0.8, "isotonic": 0.8}
    check = CalibrationCheck(("Edema",), 5, brier, dict.fromkeys(brier, 0.1) | {"platt": error})
    last = CalibratedModel(calibration, {}, {}, 40, check).as_table().splitlines()[-1]
    assert last.startswith("On held-out patients platt is no better than raw") == says


def test_the_files_come_along_but_for_what_is_no_longer_true(source, valid, tmp_path):
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    output = tmp_path / "calibrated"
    calibrate(source, valid, output, method="temperature")
    names = {path.name for path in output.iterdir()}
    assert names == (set(before) | {CALIBRATION_PATIENTS_FILE, CHECKSUMS_FILE}) - {"model.onnx", "export.json"}
    assert (output / "README.md").read_text().startswith("this is README.md")
    assert json.loads((output / "reference.json").read_text())["probabilities"]
    assert (output / "LICENSE").exists()
    assert before == {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    patients = valid["patient"][:]
    assert overlapping_patients(output / CALIBRATION_PATIENTS_FILE, [*patients, "patient99999"]) == set(patients)
    assert (output / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_an_operating_point_that_was_chosen_earlier_keeps_its_meaning(source, valid, tmp_path):
    result = calibrate(source, valid, tmp_path / "calibrated")
    logits, _ = reference(source, valid)
    after, _ = reference(tmp_path / "calibrated", valid)
    config = CheXpertConfig.from_pretrained(tmp_path / "calibrated")
    column = OBSERVATIONS.index("Pleural Effusion")
    assert "Pleural Effusion" in result.calibration.lines
    called = 1 / (1 + np.exp(-logits[:, column])) >= 0.3
    np.testing.assert_array_equal(
        1 / (1 + np.exp(-after[:, column])) >= config.operating_points["Pleural Effusion"], called
    )
    assert config.operating_points["Pleural Effusion"] != 0.3
    unchosen = set(OBSERVATIONS) - {"Pleural Effusion", "Fracture"}
    assert {config.operating_points[name] for name in unchosen} == {0.5}
    assert config.operating_points_source is None


def test_a_second_calibration_keeps_the_record_of_the_first(source, valid, tmp_path):
    calibrate(source, valid, tmp_path / "once")
    calibrate(tmp_path / "once", valid, tmp_path / "twice", method="temperature")
    once, twice = (CheXpertConfig.from_pretrained(tmp_path / name).calibration for name in ("once", "twice"))
    assert twice["earlier"] == once
    assert twice["method"] == "temperature"
    # What is calibrated already is left about as it is.
    assert next(iter(twice["slopes"].values())) == pytest.approx(1, abs=0.05)


def test_observations_that_a_second_calibration_cannot_fit_keep_the_first_ones_record(source, valid, tmp_path):
    once = calibrate(source, valid, tmp_path / "once", operating_points="youden", data_name="first hospital")
    fitted, *others = once.operating_points
    never = next(name for name in OBSERVATIONS if name not in once.calibration.lines)
    column = OBSERVATIONS.index(fitted)
    only = valid.map(lambda row: {"labels": [x if k == column else IGNORED for k, x in enumerate(row["labels"])]})
    calibrate(tmp_path / "once", only, tmp_path / "twice", operating_points="sensitivity=.9", data_name="second")
    before, after = (CheXpertConfig.from_pretrained(tmp_path / name) for name in ("once", "twice"))
    assert list(after.calibration["slopes"]) == [fitted]
    for records, earlier in (
        (after.calibration, before.calibration),
        (after.operating_points_source, before.operating_points_source),
    ):
        assert (record_of(records, fitted)["data"], record_of(records, others[0])) == ("second", earlier)
        assert record_of(records, never) is None
    assert {after.operating_points[name] == before.operating_points[name] for name in others} == {True}
    card = (tmp_path / "twice" / "README.md").read_text()
    how = f"on {once.num_studies} studies of first hospital (valid), {date.today().isoformat()}"
    for name in others:
        assert f"- {name} keeps its earlier calibration, by platt {how}" in card
        assert f"- {name} keeps its earlier operating point, chosen by youden {how}" in card
        assert f"{name} is not calibrated" not in card
    assert f"- {never} is not calibrated" in card
    assert f"- No operating point was chosen for {never}" in card
    assert f"Chosen by sensitivity of 0.9 on {once.num_studies} studies of second (valid)" in card
    assert f", for {fitted}.\n" in card
    folders = {name: CheXpertClassifier.from_pretrained(tmp_path / name) for name in ("once", "twice")}
    entries = assess_dataset(folders, valid, title="both", replicates=100).metrics["models"][1]["observations"]
    rules = {entry["observation"]: (entry["operating_point"] or {}).get("chosen_by") for entry in entries}
    assert (rules[fitted], rules[others[0]], rules[never]) == ("sensitivity 0.9", "youden", None)


def test_patients_of_an_earlier_calibration_are_still_refused_by_an_evaluation(source, valid, tmp_path):
    patients = sorted(set(valid["patient"][:]))
    halves = [valid.filter(lambda row, half=half: (patients.index(row["patient"]) % 2) == half) for half in (0, 1)]
    calibrate(source, halves[0], tmp_path / "once", operating_points="youden")
    calibrate(tmp_path / "once", halves[1], tmp_path / "twice")  # the operating points are those of the first half
    for half in halves:
        with pytest.raises(InputError, match="was calibrated on"):
            chexpert_hf.evaluate(tmp_path / "twice", half)


def test_patients_that_were_trained_on_are_refused_unless_the_ids_are_of_others(source, valid, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    write_patient_hashes(folder / TRAINING_PATIENTS_FILE, [*valid["patient"][:1], "patient99999"])
    with pytest.raises(CalibrationError, match=r"By their ids, 1 of these \d+ patients were used to train"):
        calibrate(folder, valid, tmp_path / "calibrated")
    assert not (tmp_path / "calibrated").exists()
    calibrate(folder, valid, tmp_path / "calibrated", are_other_people=True)
    assert (tmp_path / "calibrated" / TRAINING_PATIENTS_FILE).exists()


def test_a_folder_that_is_not_empty_is_never_written_to(source, valid, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path, source, tmp_path / "file"):
        with pytest.raises(FolderError, match="is not empty; the calibrated model is written to a new folder"):
            calibrate(source, valid, output)


def test_ensembles_repositories_and_hierarchies_are_refused_before_anything_is_scored(source, valid, tmp_path):
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    for name in ("one", "two"):
        shutil.copytree(source, ensemble / name)
    write_ensemble(ensemble, [ensemble / "one", ensemble / "two"])
    with pytest.raises(CalibrationError, match="ensemble of 2"):
        calibrate(ensemble, valid, tmp_path / "calibrated", progress=pytest.fail)
    with pytest.raises(CalibrationError, match="Expected a model folder, got 'somebody/model'"):
        calibrate(Path("somebody/model"), valid, tmp_path / "calibrated")
    config = json.loads((source / "config.json").read_text()) | {"label_parents": {"Edema": "Lung Opacity"}}
    (ensemble / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CalibrationError, match="label hierarchy"):
        calibrate(ensemble / "one", valid, tmp_path / "calibrated", progress=pytest.fail)


def test_a_split_that_can_calibrate_nothing_is_refused_with_the_reasons(source, valid, tmp_path):
    few = valid.select(range(3))
    with pytest.raises(
        CalibrationError, match=r"No observation can be calibrated on phantoms \(valid\): No Finding: \d"
    ):
        calibrate(source, few, tmp_path / "calibrated")
    assert not (tmp_path / "calibrated").exists()


@pytest.mark.parametrize(
    ("slopes", "message"),
    [({"Oedema": 1.0}, "calibration names 'Oedema'"), ({"Edema": -1.0}, "slope of Edema is -1.0")],
)
def test_a_record_that_cannot_be_this_models_is_refused(slopes, message):
    with pytest.raises(StrictDataclassError, match=message):
        CheXpertConfig(calibration={"slopes": slopes})


def test_a_given_prevalence_moves_the_intercept_and_nothing_else(source, valid, tmp_path):
    plain = calibrate(source, valid, tmp_path / "plain")
    name = next(iter(plain.calibration.lines))
    moved = calibrate(source, valid, tmp_path / "moved", prevalences={name: 0.02})
    count = {
        key: CheXpertConfig.from_pretrained(tmp_path / "moved").calibration[key][name]
        for key in ("num_positive", "num_negative")
    }
    odds = 0.02 / 0.98 / (count["num_positive"] / count["num_negative"])
    assert moved.calibration.lines[name].intercept == pytest.approx(
        plain.calibration.lines[name].intercept + np.log(odds), abs=1e-9
    )
    others = {other: line for other, line in moved.calibration.lines.items() if other != name}
    assert others == {other: line for other, line in plain.calibration.lines.items() if other != name}
    assert CheXpertConfig.from_pretrained(tmp_path / "moved").calibration["prevalences"] == {name: 0.02}
    card = (tmp_path / "moved" / "README.md").read_text()
    assert f"{name} is calibrated for a prevalence of 0.02, which was given" in card
    classifier = [CheXpertClassifier.from_pretrained(tmp_path / folder) for folder in ("plain", "moved")]
    before, after = (dataset_logits(one, valid)[:, OBSERVATIONS.index(name)] for one in classifier)
    np.testing.assert_allclose(after - before, np.log(odds), atol=1e-5)


@pytest.mark.parametrize(
    ("prevalences", "method", "message"),
    [
        ({"Edema": 1.5}, "platt", "The prevalence of Edema is 1.5, expected a share above 0 and below 1"),
        ({"Oedema": 0.5}, "platt", "A prevalence is given for 'Oedema', which is not among"),
        ({"Edema": 0.5}, "temperature", "moves the intercept, which temperature scaling has not; use platt"),
    ],
)
def test_prevalences_that_cannot_be_used_are_refused(source, valid, tmp_path, prevalences, method, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(source, valid, tmp_path / "out", method=method, prevalences=prevalences)
    assert not (tmp_path / "out").exists()


def test_a_prevalence_of_what_cannot_be_calibrated_is_refused(source, valid, tmp_path):
    left_out = next(iter(calibrate(source, valid, tmp_path / "plain").calibration.left_out))
    with pytest.raises(CalibrationError, match=f"given for what cannot be calibrated: {left_out}"):
        calibrate(source, valid, tmp_path / "out", prevalences={left_out: 0.5})


def test_what_calibration_is_worth_on_left_out_patients_is_in_the_result_the_record_and_the_card(
    source, valid, tmp_path
):
    result = calibrate(source, valid, tmp_path / "out")
    assert result.check is not None
    assert set(result.check.observations) <= set(result.calibration.lines)
    record = CheXpertConfig.from_pretrained(tmp_path / "out").calibration["check"]
    assert record["scaled_brier"] == result.check.scaled_brier
    assert result.check.as_table() in result.as_table()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| isotonic | {result.check.scaled_brier['isotonic']:.3f} |" in card
