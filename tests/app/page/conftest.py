"""What the tests of the page share: a tiny model with a gate, files, one server and one browser."""

import io
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import (
    OBSERVATIONS,
    CheXpertClassifier,
    CheXpertConfig,
    CheXpertForImageClassification,
    CheXpertImageProcessor,
)
from chexpert_hf.app.demo import appearance, build_demo
from chexpert_hf.app.model_facts import Metrics, facts_of
from chexpert_hf.app.page.reading import Item, Study, read
from chexpert_hf.app.server.launch import serving
from chexpert_hf.gate import Verdict
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.radiograph import Radiograph
from tests.conftest import TINY

EXAMPLES = sorted((Path(__file__).parents[3] / "space" / "examples").rglob("*.jpg"))
BROKEN_PNG = b"\x89PNG\r\n\x1a\n and then nothing that a PNG has"
REFUSAL = "This does not look like a chest radiograph: it is <blank>."
WARNING = "The radiograph looks inverted: its corner is white."
NOT_JUDGED = ("Pleural Other", "Fracture")
JUDGED = tuple(name for name in OBSERVATIONS if name not in NOT_JUDGED)
SLOW = (48, 48)
"""An image of this size takes `SLOW_SECONDS`, so that a list of a thousand is not at its end when a test looks."""
SLOW_SECONDS = 0.1
EMPTY = "Edema"
"""Nothing ever speaks for it."""
MAPS_NOTE = "When these maps were tested, they hit 3 of 4."
METRICS = Metrics.model_validate(
    {
        "data": {"name": "phantoms", "valid": {"patients": 100, "labels_by": ["radiologists"]}},
        "split": "valid",
        "num_studies": 100,
        "mean_auroc": 0.9,
        "mean_over": JUDGED[:5],
        "observations": [
            {
                "observation": name,
                "num_positive": 25,
                "num_negative": 75,
                "auroc": 0.9,
                "operating_point": {
                    "threshold": 0.5,
                    "true_positives": 20,
                    "false_negatives": 5,
                    "false_positives": 3 * place,
                    "true_negatives": 75 - 3 * place,
                },
            }
            for place, name in enumerate(JUDGED, start=1)
        ],
    }
)
"""What the page's folder says: of 100 studies without the observation at place n, 4 n are called above."""


class StubGate:
    """Refuses images of one gray level, warns of a white corner, and takes its time over slow ones."""

    def prepare(self, radiograph: Radiograph) -> np.ndarray:
        return np.asarray(radiograph.image)

    def judge_batch(self, inputs: Sequence[np.ndarray]) -> list[Verdict]:
        return list(map(self._verdict, inputs))

    def _verdict(self, pixels: np.ndarray) -> Verdict:
        if pixels.shape == SLOW:
            time.sleep(SLOW_SECONDS)
        is_blank = bool(pixels.min() == pixels.max())
        warnings = (WARNING,) if pixels[0, 0] == 255 else ()
        return Verdict(not is_blank, REFUSAL if is_blank else "", warnings, 1.0)


def make_model(names: tuple[str, ...] = JUDGED) -> CheXpertForImageClassification:
    """Scores that are spread, with an operating point of its own for each observation."""
    torch.manual_seed(1)
    points = {name: round(0.2 + 0.04 * index, 2) for index, name in enumerate(names)}
    labels = dict(enumerate(names))
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, id2label=labels, operating_points=points))
    with torch.no_grad():
        model.classifier.weight.normal_(0, 1)
        model.classifier.weight[names.index(EMPTY)] = -1  # features are never negative: an empty map
        model.classifier.bias.normal_(0, 1)
    return model


@pytest.fixture(scope="session")
def classifier() -> CheXpertClassifier:
    """A tiny model that judges 12 of the 14 observations, with a gate."""
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    return CheXpertClassifier(make_model(), processor, gate=StubGate())  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def demo(classifier: CheXpertClassifier) -> gr.Blocks:
    return build_demo(classifier, EXAMPLES)


def encoded(image: np.ndarray, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, file_format)
    return stream.getvalue()


def phantom_gray(seed: int = 3) -> np.ndarray:
    return render_phantom(seed, ["Edema", "Support Devices"], projection="AP").image


@pytest.fixture(scope="session")
def phantom_png() -> bytes:
    return encoded(phantom_gray())


@pytest.fixture(scope="session")
def other_png() -> bytes:
    return encoded(phantom_gray(5))


@pytest.fixture(scope="session")
def blank_png() -> bytes:
    return encoded(np.full((80, 60), 7, dtype=np.uint8))


@pytest.fixture(scope="session")
def warned_png() -> bytes:
    gray = phantom_gray(6).copy()
    gray[0, 0] = 255
    return encoded(gray)


@pytest.fixture
def files(tmp_path: Path, phantom_png: bytes, other_png: bytes, blank_png: bytes, warned_png: bytes) -> dict[str, Path]:
    """Uploads as they lie on the disk."""
    contents = {
        "phantom.png": phantom_png,
        "other.png": other_png,
        "blank.png": blank_png,
        "warned.png": warned_png,
        "broken.png": BROKEN_PNG,
        "two.zip": zipped({"a.png": phantom_png, "b/<b>.png": other_png}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {Path(name).stem: tmp_path / name for name in contents}


def read_study(classifier: CheXpertClassifier, files: Sequence[Path], *, is_gated: bool = True) -> Study:
    return Study([read(classifier, Item(file, name=file.name), is_gated=is_gated) for file in files])


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def forward_passes(classifier: CheXpertClassifier) -> Iterator[list[int]]:
    """Grows by the size of each batch that goes through the network."""
    batches: list[int] = []
    hook = classifier.model.register_forward_hook(lambda _, __, output: batches.append(len(output.logits)))
    yield batches
    hook.remove()


# One browser and one server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        executable = shutil.which("chromium") or shutil.which("google-chrome") or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium is installed")
        browser = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address(classifier: CheXpertClassifier) -> Iterator[str]:
    facts = replace(facts_of(classifier), metrics=METRICS, maps_note=MAPS_NOTE)
    with serving(lambda: build_demo(classifier, EXAMPLES, facts), classifier, **appearance()) as url:
        yield url


@pytest.fixture
def theme() -> str:
    """Of the page; tests of the dark one parametrise it."""
    return "light"


@pytest.fixture(scope="session")
def visitor(chromium: Any, address: str) -> Iterator[Any]:
    """A browser's context for all tests, so that what the page consists of is loaded and compiled once."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    yield context
    context.close()


@pytest.fixture
def page(visitor: Any, address: str, theme: str) -> Iterator[Any]:
    """The page, newly opened; it fails the test if it logs an error or asks anyone but this machine."""
    page = visitor.new_page()
    errors: list[str] = []
    outside: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else outside.append(request.url),
    )
    page.goto(f"{address}?__theme={theme}")
    page.locator("#file input[type=file]").wait_for(state="attached")
    yield page
    page.close()
    assert errors == []
    assert outside == []
