"""The gate: radiographs pass, other images do not, and what lies the wrong way round is told."""

import io
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.cli import app
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.gate import GATE_FILE, Gate, Verdict
from chexpert_hf.gate.children import CHILD_AGE, CHILD_QUANTILE, child_scores
from chexpert_hf.gate.features import gate_features, gray_levels
from chexpert_hf.gate.fit import MAX_IMAGES, distance_limits, evenly_spaced, fit_distance, fit_folder_gate, fit_gate
from chexpert_hf.phantoms import render_phantom, write_phantoms
from chexpert_hf.radiographs.radiograph import Radiograph, open_radiograph, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertEnsemble
from tests.radiographs.test_dicom import make_dicom

PROCESSOR = CheXpertImageProcessor(size={"height": 64, "width": 64})


def judge(gate: Gate, image: Image.Image, **said: bool | None) -> Verdict:
    return gate.judge_batch([gate.prepare(Radiograph(image, image.info.get("original_size", image.size), **said))])[0]


def phantom(seed: int) -> Image.Image:
    return Image.fromarray(render_phantom(seed).image).resize((160, 160))


@pytest.fixture(scope="module")
def phantoms() -> list[Image.Image]:
    return [phantom(seed) for seed in range(70)]


@pytest.fixture(scope="module")
def gate(phantoms: list[Image.Image]) -> Gate:
    return fit_gate(phantoms[:60], data_name="phantoms", date="2026-11-23")


def textures() -> list[Image.Image]:
    stripes = np.tile(np.arange(160) % 20 * 12, (160, 1)).astype(np.uint8)
    checker = (np.indices((160, 160)).sum(axis=0) // 20 % 2 * 255).astype(np.uint8)
    return [Image.fromarray(array) for array in (stripes, checker)]


def test_radiographs_that_the_fit_did_not_see_are_accepted_without_a_warning(gate, phantoms):
    verdicts = [judge(gate, image) for image in phantoms[60:]]
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= 9
    assert sum(bool(verdict.warnings) for verdict in verdicts) <= 1
    assert all(verdict.reason == "" and verdict.distance <= 1 for verdict in verdicts if verdict.is_chest_radiograph)


def test_a_classifier_can_be_pickled_before_and_after_its_gate_was_asked(gate, shared_tiny_model, phantoms):
    classifier = CheXpertClassifier(shared_tiny_model, PROCESSOR, gate=gate)
    before = pickle.dumps(classifier)
    first = classifier.predict(phantoms[0])
    for content in (before, pickle.dumps(classifier)):
        copy = pickle.loads(content)
        again = copy.predict(phantoms[0])
        assert (again.gate, again.probabilities) == (first.gate, first.probabilities)


def test_textures_are_refused_with_how_far_they_are(gate):
    for image in textures():
        verdict = judge(gate, image)
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
def test_what_needs_no_network_is_refused_in_plain_words(gate, image, is_colour, reason):
    verdict = judge(gate, image, is_colour=is_colour)
    assert not verdict.is_chest_radiograph
    assert reason in verdict.reason


@pytest.mark.parametrize("side", [64, 128, 256, 512, 1024])
def test_noise_is_refused_in_every_size_also_by_the_bundled_model(gate, side):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8))
    for one in (gate, Gate.load(DEFAULT_MODEL)):
        assert "it is noise" in judge(one, noise).reason


@pytest.mark.parametrize(
    ("transform", "word"),
    [
        (ImageOps.invert, "inverted"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), "90 degrees to the left"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_180), "upside down"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_270), "90 degrees to the right"),
    ],
)
def test_radiographs_the_wrong_way_round_are_told_and_not_refused(gate, phantoms, transform, word):
    verdicts = [judge(gate, transform(image)) for image in phantoms[60:]]
    assert sum(word in " ".join(verdict.warnings) for verdict in verdicts) >= 8
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= 8


def test_several_images_are_judged_as_each_of_them_alone(gate, phantoms):
    turned = phantoms[64].transpose(Image.Transpose.ROTATE_180)
    images = [*phantoms[60:63], *textures(), Image.new("L", (200, 200), 90), turned]
    together = gate.judge_batch([gate.prepare(Radiograph(image, image.size)) for image in images])
    for verdict, image in zip(together, images, strict=True):
        alone = judge(gate, image)
        assert (verdict.is_chest_radiograph, verdict.warnings) == (alone.is_chest_radiograph, alone.warnings)
        assert verdict.distance == pytest.approx(alone.distance, rel=1e-5)
    assert gate.judge_batch([]) == []


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


def test_a_radiograph_from_read_is_judged_like_its_file(tiny_folder, gate, phantoms):
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    red, dicom = io.BytesIO(), make_dicom(np.asarray(phantoms[60]), ViewPosition="LL")
    Image.merge("RGB", [phantoms[60], Image.new("L", (160, 160)), Image.new("L", (160, 160))]).save(red, "PNG")
    for data, text in ((red.getvalue(), "colour photograph"), (dicom, "as the DICOM file says")):
        radiograph = classifier.read(data)
        assert radiograph.image.mode == "L"
        verdict = classifier.predict(radiograph).gate
        assert verdict == classifier.predict(data).gate
        assert text in " ".join(verdict.messages)


def test_another_subject_that_the_dicom_header_names_is_refused_with_its_word(gate, phantoms):
    verdict = judge(gate, phantoms[60], other_subject="BodyPartExamined is BREAST")
    assert verdict.state == "flagged"
    assert verdict.reason.endswith("chest radiograph: its DICOM header says that BodyPartExamined is BREAST.")
    assert judge(gate, phantoms[60]).state == "pass"


def test_a_saved_gate_judges_alike_and_says_what_it_was_fitted_on(gate, phantoms, tmp_path):
    gate.save(tmp_path)
    loaded = Gate.load(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [GATE_FILE]
    assert (loaded.num_images, loaded.data_name, loaded.date) == (60, "phantoms", "2026-11-23")
    for image in [*phantoms[60:], *textures()]:
        first, second = (
            judge(gate, image),
            judge(loaded, image),
        )
        assert first.is_chest_radiograph == second.is_chest_radiograph
        assert second.distance == pytest.approx(first.distance, rel=1e-3)


# Lateral views


def warnings_of(gate: Gate, image: Image.Image, **said: bool | None) -> str:
    return " ".join(judge(gate, image, **said).warnings)


UNSEEN_LATERALS = range(1000, 1020)  # others than those that a gate is fitted on
LATERAL = "This looks like a lateral view. The model was trained on frontal views only."
CHILD = "This looks like a radiograph of a child. The model was trained on adults, or almost only on adults."


@pytest.fixture(scope="module")
def laterals() -> list[Image.Image]:
    return [Image.fromarray(render_phantom(seed, projection="Lateral").image) for seed in UNSEEN_LATERALS]


def test_lateral_views_are_accepted_with_a_warning_whichever_way_they_face(gate, phantoms, laterals):
    for images in (laterals, [ImageOps.mirror(image) for image in laterals]):
        verdicts = [judge(gate, image) for image in images]
        assert sum(verdict.warnings == (LATERAL,) for verdict in verdicts) >= 18
    assert sum(LATERAL in judge(gate, image).warnings for image in phantoms) <= 1


def test_the_word_of_the_file_about_the_view_counts_more_than_the_pixels(gate, phantoms, laterals):
    frontal, lateral = phantoms[60], next(image for image in laterals if judge(gate, image).warnings)
    assert warnings_of(gate, frontal) == warnings_of(gate, frontal, is_lateral=False) == ""
    assert warnings_of(gate, frontal, is_lateral=True).startswith("This is a lateral view, as the DICOM file says.")
    assert warnings_of(gate, lateral, is_lateral=False) == ""


def test_a_gate_fitted_on_lateral_views_too_does_not_warn_of_them(gate, phantoms, laterals, tmp_path):
    knowing = fit_gate([*phantoms, *laterals], data_name="phantoms", date="-", knows_laterals=True)
    knowing.save(tmp_path)
    assert knowing.child_limit == math.inf  # of a lateral view, it would say that it looks like a child's
    for one in (knowing, Gate.load(tmp_path)):
        assert all(warnings_of(one, image, is_lateral=True) == "" for image in laterals)
        assert not any(LATERAL in judge(one, image).warnings for image in laterals)


def test_the_gray_range_of_the_export_does_not_matter(gate, phantoms):
    exports = {
        "dark": lambda level: level // 3,
        "bright": lambda level: 170 + level // 3,
        "gamma": lambda level: round(255 * (level / 255) ** 2),
    }
    for name, export in exports.items():
        for image in phantoms[60:]:
            expected, found = judge(gate, image), judge(gate, image.point(export))
            assert found.is_chest_radiograph == expected.is_chest_radiograph, name
            assert found.distance == pytest.approx(expected.distance, rel=0.25), name


def test_films_of_other_hospitals_pass_and_other_images_do_not(real_data, tmp_path):
    """Figures of the whole sets are printed by `tests.benchmarks.gate_accuracy`."""
    if not (real_data / "external").is_dir() or not (real_data / "views").is_dir():
        pytest.skip("needs external/ and views/ beside the radiographs")
    read = partial(read_radiograph, target_size=192)
    train = load_dataset(real_data / "NIH", splits=["train"])["train"]
    images = map(read, image_files(train)[::8])
    fitted = fit_gate(images, ages=train["age"][::8], data_name="NIH", date="-")

    def verdicts(pattern: str) -> list:
        return [judge(fitted, read(file)) for file in sorted(real_data.glob(pattern))[::4]]

    for pattern, most_refused in (("external/*/*.*", 0.06), ("views/frontal/*", 0.06), ("NIH/valid/**/*.jpg", 0.04)):
        found = verdicts(pattern)
        assert sum(not one.is_chest_radiograph for one in found) <= most_refused * len(found), pattern
        assert sum(LATERAL in one.warnings for one in found) <= 0.02 * len(found), pattern
        assert sum(CHILD in one.warnings for one in found) <= 0.03 * len(found), pattern
    others, views = verdicts("views/not-a-radiograph/*"), verdicts("views/lateral/*")
    assert sum(not one.is_chest_radiograph for one in others) >= 0.9 * len(others)
    assert sum(LATERAL in one.warnings for one in views) >= 0.8 * len(views)


def test_the_bundled_gate_warns_of_children_like_those_that_it_knows_and_hardly_of_adults(real_data):
    """Its discriminant was fitted on these children: this shows only that it is read, and used as it was fitted."""
    bundled = Gate.load(DEFAULT_MODEL)

    def share(files: list[Path]) -> float:
        return sum(CHILD in judge(bundled, read_radiograph(file)).warnings for file in files) / len(files)

    assert share(sorted(real_data.glob("views/children/*"))) >= 0.8
    assert share(sorted(real_data.glob("NIH/valid/**/*.jpg"))[::2]) <= 0.03
    assert share(sorted(real_data.glob("external/*/*.*"))[::2]) <= 0.03


def test_of_a_childs_radiograph_that_is_upright_and_frontal_the_gate_warns(gate, phantoms, laterals, tmp_path):
    score = child_scores(gate_features(gray_levels(phantoms[60])[None])).item()
    for limit, expected in ((score - 1e-6, (CHILD,)), (score + 1e-6, ()), (math.inf, ())):
        one = replace(gate, child_limit=limit)
        one.save(tmp_path)
        assert Gate.load(tmp_path).child_limit == limit
        for each in (one, Gate.load(tmp_path)):
            assert judge(each, phantoms[60]).warnings == expected
    always = replace(gate, child_limit=-1e9)
    lateral = next(image for image in laterals if LATERAL in judge(gate, image).warnings)
    assert judge(always, lateral).warnings == (LATERAL,)
    turned = [judge(always, image.rotate(90, expand=True)) for image in phantoms[60:]]
    assert not any(CHILD in verdict.warnings for verdict in turned if verdict.warnings[0] != CHILD)


def test_a_few_children_among_the_training_images_do_not_raise_the_limit_and_many_do(phantoms, monkeypatch):
    monkeypatch.setattr("chexpert_hf.gate.fit.lowest_child_limit", lambda: -math.inf)
    scores = child_scores(gate_features(torch.stack([gray_levels(image) for image in phantoms[:60]])))
    order = np.argsort(-scores)  # the likest to a child first

    def limit(num_children: int) -> float:
        ages = np.full(60, 50)
        ages[order[:num_children]] = CHILD_AGE - 1
        fitted = fit_gate(phantoms[:60], data_name="-", date="-", ages=ages.tolist())
        return fitted.child_limit

    assert limit(6) == pytest.approx(np.quantile(scores[order[6:]], CHILD_QUANTILE))
    assert limit(7) == limit(0) == pytest.approx(np.quantile(scores, CHILD_QUANTILE))
    unknown = fit_gate(phantoms[:60], data_name="-", date="-", ages=[None] * 60)
    assert unknown.child_limit == limit(0)


def test_gates_that_do_not_say_are_of_frontal_views_and_are_written_as_before(gate, tmp_path):
    gate.save(tmp_path)
    with safe_open(tmp_path / GATE_FILE, framework="pt") as opened:
        assert "laterals" not in opened.metadata()
    assert Gate.load(tmp_path).knows_laterals is False


def test_the_gate_of_a_folder_knows_the_views_that_it_was_fitted_on(tiny_folder, tmp_path):
    write_phantoms(tmp_path / "data", num_studies=30, valid_fraction=0)
    for frontal_only in (True, False):
        train = load_dataset(tmp_path / "data", splits=["train"], frontal_only=frontal_only)["train"]
        assert fit_folder_gate(tiny_folder, train, "phantoms").knows_laterals is not frontal_only


def test_of_the_view_that_a_dicom_file_says_the_classifier_warns(tiny_folder, gate, phantoms):
    gate.save(tiny_folder)
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    pixels = np.asarray(phantoms[60])
    for view, is_warned in (("LL", True), ("PA", False)):
        verdict = classifier.predict(make_dicom(pixels, ViewPosition=view)).gate
        assert ("as the DICOM file says" in " ".join(verdict.warnings)) is is_warned


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
        "must be finite": {"centre": torch.full((size,), torch.nan)},
        "must be positive": {"spread": torch.zeros(size)},
        "not the tensors of a gate": {"pose_biases": torch.zeros(2)},
        "'lateral_weights' is None": {"lateral_weights": None},
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


def test_too_few_radiographs_are_refused(phantoms):
    with pytest.raises(InputError, match="at least 20 radiographs to fit a gate on, got 5"):
        fit_gate(phantoms[:5], data_name="phantoms", date="-")


def test_of_many_radiographs_evenly_spaced_ones_are_kept():
    kept = evenly_spaced(range(2 * MAX_IMAGES - 1))
    assert kept == list(range(0, 2 * MAX_IMAGES, 2))
    assert evenly_spaced(kept) == kept


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
        assert open_radiograph(image).is_colour is expected
        assert open_radiograph(np.asarray(image)).is_colour is expected
        for name in ("JPEG", "PNG"):
            file = io.BytesIO()
            image.save(file, name)
            assert open_radiograph(file.getvalue()).is_colour is expected


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
    assert CheXpertEnsemble([plain, classifier]).predict(phantoms[62]).gate == verdict


def gate_verdict(classifier, image):
    return judge(classifier.gate, image)


def test_the_command_writes_a_gate_on_real_radiographs_that_accepts_others(real_data, tiny_folder):
    answer = CliRunner().invoke(app, ["gate", str(real_data / "NIH-mini"), "-m", str(tiny_folder), "--split", "valid"])
    assert answer.exit_code == 0, answer.output
    assert "Fitted on 109 radiographs of NIH-mini (valid)" in answer.output
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    train = sorted((real_data / "NIH-mini" / "train").glob("**/*.jpg"))[::20]
    verdicts = [prediction.gate for prediction in classifier.predict(train)]
    assert sum(verdict.is_chest_radiograph for verdict in verdicts) >= len(train) - 2
