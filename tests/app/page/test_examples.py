"""The examples of the page: a real radiograph first, and behind it drawings of what the model finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.page.start import examples_html, find_examples
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.radiographs.radiograph import read_radiograph
from tests.app.page.conftest import StubGate, encoded, make_model, phantom_gray

FOLDER = Path(__file__).parents[3] / "space" / "examples"


def test_the_radiograph_is_nemas_sample_reduced_to_1024_pixels_and_nothing_else() -> None:
    pytest.importorskip("data_store", reason="pydicom-data is not installed")
    shown = Image.open(FOLDER / "RG1.jpg")
    assert (shown.size, shown.mode) == ((964, 1024), "L")
    assert not shown.getexif()
    assert "comment" not in shown.info
    source = read_radiograph(get_testdata_file("RG1_UNCR.dcm", download=False)).resize(shown.size, Image.Resampling.BOX)
    differences = np.abs(np.asarray(source, dtype=float) - np.asarray(shown))
    assert differences.mean() < 1.5


def test_the_page_of_the_bundled_model_has_every_example_and_the_radiograph_first() -> None:
    """After a change of the bundled model: `python -m train.page_examples space/examples`."""
    shown = find_examples(FOLDER, CheXpertClassifier.from_pretrained(DEFAULT_MODEL))
    assert shown[0] == FOLDER / "RG1.jpg"
    assert set(shown[1:]) == set((FOLDER / "drawings").glob("*.jpg")) != set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A radiograph, drawings of three observations that the model judges, and one of another."""
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    (tmp_path / "one.jpg").write_bytes(encoded(phantom_gray(), "JPEG"))
    for name in ("Edema", "Pneumonia", "Fracture"):
        (drawings / f"{name}.jpg").write_bytes(encoded(phantom_gray(), "JPEG"))
    (drawings / "Cardiomegaly.jpg").write_bytes(encoded(np.full((80, 60), 7, dtype=np.uint8), "JPEG"))
    return tmp_path


def test_only_drawings_of_what_the_model_judges_and_finds_and_its_gate_accepts_are_shown(folder: Path) -> None:
    model = make_model(("Pneumonia", "Edema", "Cardiomegaly"))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([-4.0, 4.0, 4.0]))  # Pneumonia is not found
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    classifier = CheXpertClassifier(model, processor, gate=StubGate())  # type: ignore[arg-type]
    shown = find_examples(folder, classifier)
    assert [path.relative_to(folder).as_posix() for path in shown] == ["one.jpg", "drawings/Edema.jpg"]
    assert [path.name for path in find_examples(folder, None)] == ["one.jpg"]


def test_examples_say_whether_they_are_drawn_and_what_was_planted(folder: Path) -> None:
    html = examples_html([folder / "one.jpg", folder / "drawings" / "Edema.jpg"])
    assert "<span>Radiograph one</span>" in html
    assert "<span>Drawing: Edema</span>" in html
    assert "sample radiograph of NEMA" in html
    assert "Drawings are synthetic and show no patient" in html
    assert "Drawings" not in examples_html([folder / "one.jpg"])


def test_example_is_named_after_its_file_and_small(tmp_path: Path) -> None:
    path = tmp_path / "a<b.png"
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (2000, 8))).save(path)
    html = examples_html([path])
    assert "<span>Radiograph a&lt;b</span>" in html
    assert len(html) < 15_000
