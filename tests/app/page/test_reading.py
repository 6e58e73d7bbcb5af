"""What is kept of radiographs, and that it is what `predict` says."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from chexpert_hf import CheXpertClassifier
from chexpert_hf.app.model_facts import facts_of
from chexpert_hf.app.page.reading import (
    DISPLAY_SIZE,
    Item,
    Study,
    bytes_of,
    encode,
    read,
)
from chexpert_hf.app.page.result import detail_of, result_html
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.archives import ArchiveMember
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.app.page.conftest import EMPTY, JUDGED, REFUSAL, WARNING, encoded, read_study
from tests.radiographs.test_dicom import FILM, make_dicom


def _radiographs() -> dict[str, bytes]:
    gray = render_phantom(1, ["Pleural Effusion"]).image
    large = np.asarray(Image.fromarray(gray).resize((1700, 2100)))
    return {
        "small PNG": encoded(gray),
        "large JPEG, which is scaled while it is decoded": encoded(large, "JPEG"),
        "16-bit PNG": encoded(gray.astype(np.uint16) * 200 + 1000),
    }


@pytest.mark.parametrize("kind", _radiographs())
def test_scores_and_maps_are_exactly_those_of_predict(
    classifier: CheXpertClassifier, kind: str, tmp_path: Path
) -> None:
    data = _radiographs()[kind]
    (tmp_path / "upload").write_bytes(data)
    prediction = read(classifier, Item(tmp_path / "upload")).prediction
    expected = classifier.predict(data, saliency=True)
    assert prediction == expected


def test_large_radiograph_is_shown_smaller_and_in_full_resolution_on_request(
    classifier: CheXpertClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upload").write_bytes(_radiographs()["large JPEG, which is scaled while it is decoded"])
    item = read(classifier, Item(tmp_path / "upload"))
    assert item.prediction is not None
    assert Image.open(io.BytesIO(item.jpeg)).size == (round(1700 / 2100 * DISPLAY_SIZE), DISPLAY_SIZE)
    assert item.prediction.maps[EMPTY].shape == (2100, 1700)
    detail = Image.open(io.BytesIO(base64.b64decode(detail_of(item).split(",")[1])))
    assert detail.size == (1700, 2100)
    original = np.asarray(read_radiograph(item.path), dtype=float)
    assert np.abs(np.asarray(detail, dtype=float) - original).mean() < 2
    monkeypatch.setattr("chexpert_hf.app.page.result.DETAIL_SIZE", 1500)
    assert Image.open(io.BytesIO(base64.b64decode(detail_of(item).split(",")[1]))).size == (1214, 1500)
    (tmp_path / "upload").unlink()
    with pytest.raises(RadiographError, match="have been deleted"):
        detail_of(item)


def test_small_radiograph_is_shown_in_its_size(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    shown = np.asarray(Image.open(io.BytesIO(read(classifier, Item(files["phantom"])).jpeg)), dtype=float)
    original = np.asarray(read_radiograph(files["phantom"]), dtype=float)
    assert shown.shape == original.shape
    assert np.abs(shown - original).mean() < 2  # JPEG of quality 90


def test_nothing_but_pixels_of_the_file_is_kept(classifier: CheXpertClassifier, tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "DOE^JANE")
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    Image.fromarray(render_phantom(1, []).image).save(tmp_path / "a.png", pnginfo=text, exif=exif)
    assert b"DOE^JANE" in (tmp_path / "a.png").read_bytes()
    jpeg = read(classifier, Item(tmp_path / "a.png")).jpeg
    assert b"DOE" not in jpeg
    assert b"Exif" not in jpeg


def test_encoding_drops_what_pillow_would_take_over() -> None:
    image = Image.new("L", (8, 8))
    image.info = {"comment": b"DOE^JANE", "icc_profile": b"DOE^JANE"}
    assert b"DOE" not in encode(image)


def test_refused_image_has_no_scores_unless_asked_to(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    refused = read(classifier, Item(files["blank"]))
    assert (refused.prediction, refused.error, refused.is_refused) == (None, REFUSAL, True)
    scored = read(classifier, refused, is_gated=False)
    assert (scored.error, scored.is_refused, scored.warnings) == (None, False, (REFUSAL,))
    assert scored.prediction is not None


def test_upload_that_has_been_deleted_is_named_as_such(classifier: CheXpertClassifier, tmp_path: Path) -> None:
    assert "have been deleted" in str(read(classifier, Item(tmp_path / "gone.png")).error)
    with pytest.raises(RadiographError, match="have been deleted"):
        bytes_of(ArchiveMember(str(tmp_path / "gone.zip"), "a.png"))


def test_member_of_an_archive_is_read_like_a_file(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    assert bytes_of(ArchiveMember(str(files["two"]), "a.png")) == files["phantom"].read_bytes()


# Studies


def test_study_is_the_maximum_over_its_views_of_no_finding_the_minimum_and_says_which(
    classifier: CheXpertClassifier, files: dict[str, Path]
) -> None:
    names = ("phantom", "broken", "other")
    study = read_study(classifier, [files[name] for name in names])
    assert list(study.views) == [1, 3]
    assert [item.is_refused for item in study.items] == [False] * 3
    first, third = (classifier.predict(files[name].read_bytes()) for name in ("phantom", "other"))
    for name in JUDGED:
        scores = first.probabilities[name], third.probabilities[name]
        decisive = min(scores) if name == "No Finding" else max(scores)
        assert study.prediction.probabilities[name] == decisive
        assert study.view_of[name] == (1 if scores[0] == decisive else 3)
        assert study.prediction.positives[name] == (decisive >= classifier.operating_points[name])
    assert len(set(study.view_of.values())) == 2  # else this test shows little


def test_study_without_a_readable_view_has_all_reasons(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    study = read_study(classifier, [files["broken"], files["blank"]])
    assert study.views == {}
    assert [item.is_refused for item in study.items] == [False, True]
    broken, blank = study.missing(is_named=True)
    assert broken.startswith("View 1 (broken.png) has no scores: The PNG image is damaged")
    assert blank == f"View 2 (blank.png) has no scores: {REFUSAL}"
    assert study.missing()[1] == f"View 2 has no scores: {REFUSAL}"


def test_warnings_of_the_gate_are_kept(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    assert read(classifier, Item(files["warned"])).warnings == (WARNING,)


def test_notes_on_a_file_come_before_the_warnings(classifier: CheXpertClassifier, tmp_path: Path) -> None:
    file = tmp_path / "useless.dcm"
    file.write_bytes(make_dicom(FILM, RescaleSlope=0, RescaleIntercept=0))
    study = read_study(classifier, [file], is_gated=False)
    assert study.warnings()[0].startswith("RescaleSlope")
    assert Study([*study.items, *study.items]).warnings()[0].startswith("View 1: RescaleSlope")
    assert "RescaleSlope" in result_html(study, facts_of(classifier), classifier.operating_points)


def test_unreadable_file_is_one_line(classifier: CheXpertClassifier, files: dict[str, Path]) -> None:
    error = str(read(classifier, Item(files["broken"])).error)
    assert "PNG image is damaged" in error
    assert "\n" not in error
