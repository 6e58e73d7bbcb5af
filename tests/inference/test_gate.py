"""The gate: radiographs pass, other images do not, and what lies the wrong way round is told."""

import dataclasses
import io
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.cli import app
from chexpert_hf.data.chexpert import load_chexpert
from chexpert_hf.data.colour import has_colour
from chexpert_hf.data.phantom import render_phantom, write_phantoms
from chexpert_hf.data.radiograph import read_radiograph
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.inference.gate import GATE_FILE, Gate, first_stages, fit_gate
from chexpert_hf.inference.gate import fit as fitting
from chexpert_hf.inference.gate.distance import distance_limits, fit_distance
from chexpert_hf.inference.gate.features import gray_levels, num_features
from chexpert_hf.inference.gate.folder import fit_folder_gate
from chexpert_hf.inference.gate.lateral import air, looks_lateral, symmetry
from tests.conftest import TINY
from tests.data.test_dicom import make_dicom

PROCESSOR = CheXpertImageProcessor(size={"height": 64, "width": 64})


def phantom(seed: int) -> Image.Image:
    return Image.fromarray(render_phantom(seed).image).resize((160, 160))


@pytest.fixture(scope="module")
def phantoms() -> list[Image.Image]:
    return [phantom(seed) for seed in range(70)]


@pytest.fixture(scope="module")
def gate(shared_tiny_model: CheXpertForImageClassification, phantoms: list[Image.Image]) -> Gate:
    return fit_gate(shared_tiny_model, PROCESSOR, phantoms[:60], data_name="phantoms", date="2026-11-23")


def textures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (160, 160), dtype=np.uint8)
    stripes = np.tile(np.arange(160) % 20 * 12, (160, 1)).astype(np.uint8)
    checker = (np.indices((160, 160)).sum(axis=0) // 20 % 2 * 255).astype(np.uint8)
    return [Image.fromarray(array) for array in (noise, stripes, checker)]


def test_radiographs_that_the_fit_did_not_see_are_accepted_without_a_warning(gate, shared_tiny_model, phantoms):
    verdicts = [gate.judge(first_stages(shared_tiny_model), image) for image in phantoms[60:]]
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= 9
    assert sum(bool(verdict.warnings) for verdict in verdicts) <= 1
    assert all(verdict.reason == "" and verdict.distance <= 1 for verdict in verdicts if verdict.is_chest_radiograph)


def test_a_classifier_can_be_pickled_before_and_after_its_gate_was_asked(gate, shared_tiny_model, phantoms):
    classifier = CheXpertClassifier(shared_tiny_model, PROCESSOR, gate=gate)
    before = pickle.dumps(classifier)
    verdict, scores = classifier.judge(phantoms[0]), classifier.predict(phantoms[0]).probabilities
    for content in (before, pickle.dumps(classifier)):
        copy = pickle.loads(content)
        assert copy.judge(phantoms[0]) == verdict
        assert copy.predict(phantoms[0]).probabilities == scores


def test_textures_are_refused_with_how_far_they_are(gate, shared_tiny_model):
    for image in textures():
        verdict = gate.judge(first_stages(shared_tiny_model), image)
        assert not verdict.is_chest_radiograph
        assert f"of the 60 radiographs that the model was fitted on ({verdict.distance:.1f} times" in verdict.reason
        assert verdict.distance > 1


@pytest.mark.parametrize(
    ("image", "is_colour", "reason"),
    [
        (phantom(61), True, "colour"),
        (phantom(61).resize((30, 30)), False, "only 30 x 30 pixels"),
        (phantom(61).resize((400, 100)), False, "4.0 times as long"),
        (Image.new("L", (200, 200), 90), False, "same brightness"),
        (Image.linear_gradient("L"), False, "smooth everywhere"),
    ],
)
def test_what_needs_no_network_is_refused_in_plain_words(gate, shared_tiny_model, image, is_colour, reason):
    verdict = gate.judge(first_stages(shared_tiny_model), image, is_colour=is_colour)
    assert not verdict.is_chest_radiograph
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("transform", "word"),
    [
        (ImageOps.invert, "inverted"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), "90 degrees to the left"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_180), "upside down"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_270), "90 degrees to the right"),
    ],
)
def test_radiographs_the_wrong_way_round_are_told_and_not_refused(gate, shared_tiny_model, phantoms, transform, word):
    verdicts = [gate.judge(first_stages(shared_tiny_model), transform(image)) for image in phantoms[60:]]
    assert sum(word in " ".join(verdict.warnings) for verdict in verdicts) >= 8
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= 8


def test_several_images_are_judged_as_each_of_them_alone(gate, shared_tiny_model, phantoms):
    stages = first_stages(shared_tiny_model)
    turned = phantoms[64].transpose(Image.Transpose.ROTATE_180)
    images = [*phantoms[60:63], *textures(), Image.new("L", (200, 200), 90), turned]
    together = gate.judge_batch(stages, [gate.prepare(image) for image in images])
    for verdict, image in zip(together, images, strict=True):
        alone = gate.judge(stages, image)
        assert (verdict.is_chest_radiograph, verdict.warnings) == (alone.is_chest_radiograph, alone.warnings)
        assert verdict.distance == pytest.approx(alone.distance, rel=1e-5)
    assert gate.judge_batch(stages, []) == []


def test_a_prediction_carries_the_verdict_from_the_same_reading(tiny_folder, gate, phantoms, monkeypatch):
    file = io.BytesIO()
    phantoms[62].save(file, "PNG")
    data, opened = file.getvalue(), []
    without = CheXpertClassifier.from_pretrained(tiny_folder).predict(data)
    assert without.gate is None
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    read = classifier.read
    monkeypatch.setattr(classifier, "read", lambda source: opened.append(source) or read(source))
    file.seek(0)
    prediction = classifier.predict(file, saliency=True)
    assert prediction.probabilities == without.probabilities
    assert prediction.gate == gate_verdict(classifier, phantoms[62])
    assert len(opened) == 1


def test_an_image_from_read_is_judged_like_its_file(tiny_folder, gate, phantoms):
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    red, dicom = io.BytesIO(), make_dicom(np.asarray(phantoms[60]), ViewPosition="LL")
    Image.merge("RGB", [phantoms[60], Image.new("L", (160, 160)), Image.new("L", (160, 160))]).save(red, "PNG")
    for data, text in ((red.getvalue(), "colour photograph"), (dicom, "as the DICOM file says")):
        image = classifier.read(data)
        assert image.mode == "L"
        verdict = classifier.predict(image).gate
        assert verdict == classifier.predict(data).gate
        assert text in " ".join(verdict.messages)


def test_a_saved_gate_judges_alike_and_says_what_it_was_fitted_on(gate, shared_tiny_model, phantoms, tmp_path):
    gate.save(tmp_path)
    loaded = Gate.load(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [GATE_FILE]
    assert (loaded.num_images, loaded.data_name, loaded.date) == (60, "phantoms", "2026-11-23")
    for image in [*phantoms[60:], *textures()]:
        first, second = (
            gate.judge(first_stages(shared_tiny_model), image),
            loaded.judge(first_stages(shared_tiny_model), image),
        )
        assert first.is_chest_radiograph == second.is_chest_radiograph
        assert second.distance == pytest.approx(first.distance, rel=1e-3)


# Lateral views


def warnings_of(gate: Gate, model: CheXpertForImageClassification, image: Image.Image, **said: bool | None) -> str:
    return " ".join(gate.judge(first_stages(model), image, **said).warnings)


@pytest.fixture(scope="module")
def laterals() -> list[Image.Image]:
    return [Image.fromarray(render_phantom(seed, projection="Lateral").image) for seed in range(20)]


def test_lateral_phantoms_are_told_from_frontal_ones_by_their_pixels(phantoms, laterals):
    assert sum(looks_lateral(gray_levels(image)) for image in laterals) >= 15
    assert sum(looks_lateral(gray_levels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) for image in laterals) >= 15
    assert not any(looks_lateral(gray_levels(image)) for image in phantoms)


def test_symmetry_is_1_of_a_mirrored_image_wherever_its_axis_is_and_0_of_noise():
    half = np.random.default_rng(0).uniform(0, 255, (64, 24))
    for left in (8, 10):  # the axis at column 32 and 34 and a half
        mirrored = np.full((64, 64), 128.0)
        mirrored[:, left : left + 48] = np.concatenate([half, half[:, ::-1]], axis=1)
        assert symmetry(mirrored) == pytest.approx(1, abs=1e-6)
    assert abs(symmetry(np.random.default_rng(1).uniform(0, 255, (64, 64)))) < 0.2
    for dark_half in (np.zeros((64, 64)), np.repeat(np.linspace(0, 200, 64)[None] > 100, 64, axis=0) * 255.0):
        assert abs(symmetry(dark_half)) < 0.2


def test_symmetry_is_the_correlation_of_the_two_sides_at_the_best_axis_and_tilt():
    levels = np.random.default_rng(3).uniform(0, 255, (64, 64)).cumsum(axis=1) % 200
    rows, columns = np.arange(12, 46), np.arange(64)
    found = []
    for tilt in (-0.12, -0.06, 0.0, 0.06, 0.12):
        upright = np.stack([np.interp(columns + tilt * (row - rows.mean()), columns, levels[row]) for row in rows])
        for axis in range(50, 79):
            right = axis // 2 + 1 + np.arange(24)
            found.append(np.corrcoef(upright[:, right].ravel(), upright[:, axis - right].ravel())[0, 1])
    assert symmetry(levels) == pytest.approx(max(found), abs=1e-9)


def test_air_of_one_lung_is_in_the_middle_of_itself_and_of_two_beside_it():
    body = np.zeros((64, 64))
    body[:, 7:57] = 200  # 50 columns, the first 7
    one, two, beside = body.copy(), body.copy(), body.copy()
    one[:, 17:47] = 80
    two[:, 12:28] = two[:, 36:52] = 80
    beside[:, 12:28] = 80
    # 30 columns of air, of which the first and the last are left out as its tails, among 50 of body: 27 of 49 steps.
    assert air(one) == pytest.approx((1, 27 / 49, 0))
    assert air(two)[0] == 0
    assert air(np.full((64, 64), 7.0)) == (0, 0, 0)
    assert air(beside)[1] < 0.35
    assert air(beside)[2] > 0.2


def test_one_field_of_air_is_a_lateral_view_only_if_its_sides_are_not_alike():
    levels = np.zeros((64, 64), dtype=np.uint8)
    levels[:, 7:57] = 200
    levels[:, 17:47] = 80
    assert not looks_lateral(torch.from_numpy(levels)[None])
    levels[24:64, 17:32] = 190  # the heart, and below it the diaphragm, before the spine
    levels[:24, 32:47] = 140
    assert looks_lateral(torch.from_numpy(levels)[None])


def test_of_a_lateral_view_is_warned_by_what_the_file_says_or_else_by_its_pixels(gate, shared_tiny_model, phantoms):
    frontal, judge = phantoms[60], partial(warnings_of, gate, shared_tiny_model)
    assert judge(frontal) == judge(frontal, is_lateral=False) == ""
    assert judge(frontal, is_lateral=True).startswith("This is a lateral view, as the DICOM file says.")


def test_lateral_views_are_warned_of_unless_the_file_or_the_model_knows_better(shared_tiny_model, laterals, tmp_path):
    # Fitted on lateral views, so that they are accepted, but told that they are frontal ones.
    fitted = fit_gate(shared_tiny_model, PROCESSOR, [*laterals, *laterals], data_name="phantoms", date="-")
    assert not fitted.knows_laterals
    lateral = next(image for image in laterals if looks_lateral(gray_levels(image)))
    warning = "This may be a lateral view: its sides are not alike. The model was trained on frontal views only."
    assert warnings_of(fitted, shared_tiny_model, lateral) == warning
    assert warnings_of(fitted, shared_tiny_model, lateral, is_lateral=False) == ""
    knowing = dataclasses.replace(fitted, knows_laterals=True)
    knowing.save(tmp_path)
    for gate in (knowing, Gate.load(tmp_path)):
        assert warnings_of(gate, shared_tiny_model, lateral) == ""
        assert warnings_of(gate, shared_tiny_model, lateral, is_lateral=True) == ""


def test_gates_that_do_not_say_are_of_frontal_views_and_are_written_as_before(gate, tmp_path):
    gate.save(tmp_path)
    with safe_open(tmp_path / GATE_FILE, framework="pt") as opened:
        assert "laterals" not in opened.metadata()
    assert Gate.load(tmp_path).knows_laterals is False


def test_the_gate_of_a_folder_knows_the_views_that_it_was_fitted_on(tiny_folder, tmp_path):
    write_phantoms(tmp_path / "data", num_studies=30, valid_fraction=0)
    for frontal_only in (True, False):
        train = load_chexpert(tmp_path / "data", splits=["train"], frontal_only=frontal_only)["train"]
        assert fit_folder_gate(tiny_folder, train, "phantoms").knows_laterals is not frontal_only


def test_of_the_view_that_a_dicom_file_says_the_classifier_warns(tiny_folder, gate, phantoms):
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    pixels = np.asarray(phantoms[60])
    for view, is_warned in (("LL", True), ("PA", False)):
        verdict = classifier.predict(make_dicom(pixels, ViewPosition=view)).gate
        assert ("as the DICOM file says" in " ".join(verdict.warnings)) is is_warned


def test_almost_no_real_frontal_radiograph_is_taken_for_a_lateral_one(real_data):
    files = [*(real_data / "NIH-mini" / "valid").glob("**/*.jpg"), *(real_data / "NIH-originals").glob("**/*.png")]
    grays = [gray_levels(read_radiograph(file, target_size=64)) for file in files]
    assert sum(looks_lateral(gray) for gray in grays) <= 0.01 * len(files)


def _spoil(file: Path, **changes: torch.Tensor | None) -> None:
    tensors = {name: value for name, value in (load_file(file) | changes).items() if value is not None}
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    save_file(tensors, file, metadata=about)


def test_damaged_gates_are_one_line_each(gate, tmp_path):
    gate.save(tmp_path)
    file = tmp_path / GATE_FILE
    good = file.read_bytes()
    size = len(gate.distance.centre)
    spoilt = {
        "not all finite": {"centre": torch.full((size,), torch.nan)},
        "must be positive": {"spread": torch.zeros(size)},
        "does not hold the tensors": {"pose_biases": torch.zeros(2)},
        "'shift' is None": {"shift": None},
    }
    for message, changes in spoilt.items():
        file.write_bytes(good)
        _spoil(file, **changes)
        with pytest.raises(ModelFolderError, match=message) as caught:
            Gate.load(file)
        assert "\n" not in str(caught.value)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(ModelFolderError, match="cannot be read as a gate"):
        Gate.load(file)
    save_file({"centre": torch.zeros(3)}, file, metadata={"version": "9"})
    with pytest.raises(ModelFolderError, match="another version"):
        Gate.load(file)


def test_a_gate_of_another_network_is_refused(gate):
    other = CheXpertForImageClassification(CheXpertConfig(**TINY | {"num_init_features": 16}))
    with pytest.raises(ModelFolderError, match=f"has {num_features(other)} and 3"):
        gate.check_fits(other)


def test_too_few_radiographs_are_refused(shared_tiny_model, phantoms):
    with pytest.raises(InputError, match="at least 20 radiographs to fit a gate on, got 5"):
        fit_gate(shared_tiny_model, PROCESSOR, phantoms[:5], data_name="phantoms", date="-")


def test_of_many_radiographs_evenly_spaced_ones_are_kept(monkeypatch):
    monkeypatch.setattr(fitting, "MAX_IMAGES", 8)
    assert fitting._thinned((number, number) for number in range(37)) == [
        (number, number) for number in range(0, 37, 8)
    ]
    assert fitting.evenly_spaced(range(15)) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_the_limit_is_what_995_in_1000_of_unseen_gaussian_images_stay_below():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(40, 40))
    fitted, unseen = rng.normal(size=(600, 40)) @ mix, rng.normal(size=(20_000, 40)) @ mix
    distances = fit_distance(fitted)(unseen)
    limit, strict = distance_limits(fitted)
    assert 0.985 < (distances < limit).mean() < 1
    assert 0.93 < (distances < strict).mean() < 0.97


def test_the_mean_distance_of_the_training_images_is_two():
    features = np.random.default_rng(1).normal(size=(500, 60))
    assert fit_distance(features)(features).mean() == pytest.approx(2, abs=0.05)


def test_colour_is_seen_in_files_arrays_and_images_and_gray_is_not_taken_for_it():
    gray = phantom(3)
    red = Image.merge("RGB", [gray, *[gray.point(lambda level: level // 3)] * 2])
    marked = gray.convert("RGB")
    marked.paste((255, 0, 0), (0, 0, 20, 20))
    for image, expected in ((gray, False), (gray.convert("RGB"), False), (marked, False), (red, True)):
        assert has_colour(image) is expected
        assert has_colour(np.asarray(image)) is expected
        for name in ("JPEG", "PNG"):
            file = io.BytesIO()
            image.save(file, name)
            assert has_colour(file.getvalue()) is expected


def test_the_runtime_that_computes_the_scores_judges_as_pytorch_does(
    tiny_folder, gate, phantoms, tmp_path, monkeypatch
):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))
    gate.save(tiny_folder)
    inverted = [Image.eval(image, lambda level: 255 - level) for image in phantoms[60:64]]
    images = [*phantoms[60:], *inverted, *textures()]
    expected = CheXpertClassifier.from_pretrained(tiny_folder).predict(images)
    assert {one.gate.is_chest_radiograph for one in expected} == {True, False}
    for precision, tolerance in (("fp32", 1e-4), ("auto", 0.02)):  # auto is bf16 where the processor has it
        classifier = CheXpertClassifier.from_pretrained(tiny_folder, runtime="openvino", precision=precision)
        monkeypatch.setattr(classifier.model.features.conv0, "forward", None)  # PyTorch is not asked
        for one, other in zip(classifier.predict(images), expected, strict=True):
            assert one.gate.is_chest_radiograph == other.gate.is_chest_radiograph
            assert one.gate.warnings == other.gate.warnings
            assert one.gate.distance == pytest.approx(other.gate.distance, rel=tolerance)


def test_the_classifier_judges_with_the_gate_of_its_folder(tiny_folder, gate, phantoms):
    assert not CheXpertClassifier.from_pretrained(tiny_folder).has_gate
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    verdict = gate_verdict(classifier, phantoms[62])
    assert classifier.has_gate
    assert classifier.predict(phantoms[62]).gate == verdict
    red = Image.merge("RGB", [phantoms[60], Image.new("L", (160, 160)), Image.new("L", (160, 160))])
    assert "colour" in classifier.predict(red).gate.reason
    plain = CheXpertClassifier(classifier.model, classifier.processor)
    assert CheXpertClassifier(plain.model, plain.processor, [classifier]).predict(phantoms[62]).gate == verdict


def gate_verdict(classifier, image):
    return classifier.gate.judge(first_stages(classifier.model), image)


def test_a_folder_with_a_gate_of_another_network_is_not_loaded(tiny_folder, gate):
    wrong = dataclasses.replace(gate, scale=torch.ones(1), shift=torch.zeros(1))
    wrong.save(tiny_folder)
    with pytest.raises(ModelFolderError, match="1 channels, this one has"):
        CheXpertClassifier.from_pretrained(tiny_folder)


def test_fitting_leaves_the_model_as_it_was(tiny_model, phantoms):
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    fit_gate(tiny_model, PROCESSOR, phantoms[:20], data_name="phantoms", date="-")
    assert tiny_model.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_the_command_writes_a_gate_on_real_radiographs_that_accepts_others(real_data, tiny_folder):
    answer = CliRunner().invoke(app, ["gate", str(real_data / "NIH-mini"), "-m", str(tiny_folder), "--split", "valid"])
    assert answer.exit_code == 0, answer.output
    assert "Fitted on 109 radiographs of NIH-mini (valid)" in answer.output
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    train = sorted((real_data / "NIH-mini" / "train").glob("**/*.jpg"))[::20]
    verdicts = [prediction.gate for prediction in classifier.predict(train)]
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= len(train) - 2
