"""The page: its parts as pure functions, its handlers, and the whole in a headless Chromium."""

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from chexpert_hf import (
    OBSERVATIONS,
    CheXpertClassifier,
    CheXpertConfig,
    CheXpertForImageClassification,
    CheXpertImageProcessor,
    Prediction,
)
from chexpert_hf.data.phantom import render_phantom
from chexpert_hf.data.radiograph import RadiographError, read_radiograph
from chexpert_hf.demo import build_demo, launch
from chexpert_hf.errors import InputError
from chexpert_hf.inference.saliency import SaliencyMaps
from chexpert_hf.page.html import Order, definitions_html, examples_html, scores_html, sort_observations
from chexpert_hf.page.reading import DISPLAY_SIZE, Reading, read
from chexpert_hf.page.text import DEFINITIONS, DISCLAIMER, EXPIRED, describe_map
from tests.conftest import TINY

SPACE = Path(__file__).parents[1] / "space"
EXAMPLES = sorted((SPACE / "examples").glob("*.jpg"))
BROKEN_PNG = b"\x89PNG\r\n\x1a\n and then nothing that a PNG has"


# The words


def test_every_observation_has_a_definition_of_its_own() -> None:
    assert tuple(DEFINITIONS) == OBSERVATIONS
    assert len(set(DEFINITIONS.values())) == len(OBSERVATIONS)
    assert all(text.endswith(".") and "\n" not in text for text in DEFINITIONS.values())


@pytest.mark.parametrize(
    ("observation", "word"),
    [
        ("No Finding", "None"),
        ("Enlarged Cardiomediastinum", "mediastinum"),
        ("Cardiomegaly", "heart is enlarged"),
        ("Lung Opacity", "whiter"),
        ("Lung Lesion", "nodule"),
        ("Edema", "too much fluid"),
        ("Consolidation", "air spaces filled"),
        ("Pneumonia", "infection"),
        ("Atelectasis", "lost volume"),
        ("Pneumothorax", "air between"),
        ("Pleural Effusion", "fluid between"),
        ("Pleural Other", "pleura other than"),
        ("Fracture", "bone"),
        ("Support Devices", "tube"),
    ],
)
def test_definition_belongs_to_its_observation(observation: str, word: str) -> None:
    assert word.lower() in DEFINITIONS[observation].lower()


def test_unknown_observation_is_listed_without_a_definition() -> None:
    html = definitions_html(["Hernia", "Edema"])
    assert "<dt>Hernia</dt></div>" in html
    assert f"<dt>Edema</dt><dd>{DEFINITIONS['Edema']}</dd>" in html


def test_map_that_is_nowhere_positive_is_said_to_be_empty() -> None:
    assert describe_map("Edema", 0.0) == "The map is empty: no place in this radiograph speaks for Edema."


@pytest.mark.parametrize(("peak", "share"), [(1e-6, "under 1 %"), (0.01, "1 %"), (0.345, "34 %"), (0.999, "99 %")])
def test_map_says_how_strong_its_evidence_is(peak: float, share: str) -> None:
    assert f"reaches {share} of" in describe_map("Edema", peak)


# The scores


def _prediction(probabilities: dict[str, float], point: float = 0.5) -> Prediction:
    return Prediction(probabilities, {name: score >= point for name, score in probabilities.items()})


def _rows(html: str) -> list[dict[str, str]]:
    """What each row of the scores says."""
    pattern = (
        r'class="score is-(?P<kind>\w+)" data-index="(?P<index>\d+)" aria-pressed="(?P<pressed>\w+)" '
        r'title="(?P<title>[^"]*)">'
        r'<span class="score-name">(?P<name>.*?)</span><span class="score-value">(?P<value>.*?)</span>'
        r'<span class="score-call">(?P<call>\w+) <span class="for-readers">operating point </span>(?P<point>.*?)</span>'
        r'.*?score-fill" style="width: (?P<width>.*?)%.*?score-point" style="left: (?P<left>.*?)%'
    )
    return [match.groupdict() for match in re.finditer(pattern, html)]


def test_scores_are_sorted_by_probability_and_ties_keep_the_models_order() -> None:
    scores = {"A": 0.2, "B": 0.9, "C": 0.2, "D": 0.95}
    assert sort_observations(scores, Order.BY_PROBABILITY) == ["D", "B", "A", "C"]
    assert sort_observations(scores, Order.AS_IN_MODEL) == ["A", "B", "C", "D"]


def test_row_shows_probability_operating_point_and_call() -> None:
    prediction = Prediction({"Edema": 0.7312, "Fracture": 0.0306}, {"Edema": True, "Fracture": False})
    html = scores_html(prediction, {"Edema": 0.25, "Fracture": 0.6}, Order.BY_PROBABILITY, "Fracture")
    edema, fracture = _rows(html)
    assert edema == {
        "kind": "above",
        "index": "0",
        "pressed": "false",
        "title": DEFINITIONS["Edema"],
        "name": "Edema",
        "value": "0.731",
        "call": "above",
        "point": "0.250",
        "width": "73.12",
        "left": "25.00",
    }
    assert (fracture["kind"], fracture["call"], fracture["pressed"]) == ("below", "below", "true")
    assert (fracture["value"], fracture["point"], fracture["width"], fracture["left"]) == (
        "0.031",
        "0.600",
        "3.06",
        "60.00",
    )
    assert "<strong>1 of 2</strong> at or above" in html


def test_rows_keep_the_models_index_when_sorted() -> None:
    scores = {"A": 0.1, "B": 0.9, "C": 0.5}
    rows = _rows(scores_html(_prediction(scores), dict.fromkeys(scores, 0.5), Order.BY_PROBABILITY, "A"))
    assert [(row["name"], row["index"]) for row in rows] == [("B", "1"), ("C", "2"), ("A", "0")]


def test_names_are_escaped_in_html() -> None:
    name = '<img src=x onerror="alert(1)"> & "co"'
    html = scores_html(_prediction({name: 0.5}), {name: 0.5}, Order.AS_IN_MODEL, name) + definitions_html([name])
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; &quot;co&quot;") == 2


def test_example_is_named_after_its_file_and_small(tmp_path: Path) -> None:
    path = tmp_path / "a<b.png"
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (2000, 8))).save(path)
    html = examples_html([path])
    assert "<span>a&lt;b</span>" in html
    assert len(html) < 10_000


# A reading: what is kept of a radiograph


@pytest.fixture(scope="module")
def classifier() -> CheXpertClassifier:
    """A tiny model whose scores are spread, with an operating point of its own for each observation."""
    torch.manual_seed(1)
    points = {name: round(0.2 + 0.04 * index, 2) for index, name in enumerate(OBSERVATIONS)}
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, operating_points=points))
    with torch.no_grad():
        model.classifier.weight.normal_(0, 1)
        model.classifier.weight[OBSERVATIONS.index("Fracture")] = -1  # features are never negative: an empty map
        model.classifier.bias.normal_(0, 1)
    return CheXpertClassifier(model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


def _encoded(image: np.ndarray, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, file_format)
    return stream.getvalue()


@pytest.fixture(scope="module")
def phantom_png() -> bytes:
    return _encoded(render_phantom(3, ["Edema", "Support Devices"], projection="AP").image)


def _radiographs() -> dict[str, bytes]:
    gray = render_phantom(1, ["Pleural Effusion"]).image
    large = np.asarray(Image.fromarray(gray).resize((1700, 2100)))
    return {
        "small PNG": _encoded(gray),
        "large JPEG, which is scaled while it is decoded": _encoded(large, "JPEG"),
        "16-bit PNG": _encoded(gray.astype(np.uint16) * 200 + 1000),
    }


@pytest.mark.parametrize("kind", _radiographs())
def test_scores_are_exactly_those_of_predict(classifier: CheXpertClassifier, kind: str) -> None:
    data = _radiographs()[kind]
    assert read(classifier, data).prediction == classifier.predict(data)


def test_maps_are_those_of_predict(classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    reading = read(classifier, phantom_png)
    expected = classifier.predict(phantom_png, saliency=True).saliency
    assert expected is not None
    for name in OBSERVATIONS:
        np.testing.assert_array_equal(reading.maps[name], expected[name])
        assert reading.maps.peak(name) >= expected[name].max()
    assert reading.maps.is_empty("Fracture")


def test_large_radiograph_is_shown_smaller_with_maps_to_match(classifier: CheXpertClassifier) -> None:
    reading = read(classifier, _radiographs()["large JPEG, which is scaled while it is decoded"])
    assert reading.image.shape == (DISPLAY_SIZE, 829)  # 1700 / 2100 * 1024
    assert {saliency.shape for saliency in reading.maps.values()} == {reading.image.shape}


def test_small_radiograph_is_shown_as_it_is(classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    np.testing.assert_array_equal(read(classifier, phantom_png).image, np.asarray(read_radiograph(phantom_png)))


def _reading(**probabilities: float) -> Reading:
    scores = {name.replace("_", " "): value for name, value in probabilities.items()}
    image = np.array([[10, 200]], dtype=np.uint8)
    positive = torch.tensor([[[0.0, 1.0]]]).repeat(len(scores), 1, 1)
    return Reading(image, _prediction(scores), SaliencyMaps(positive, tuple(scores), (2, 1), (0, 0, 2, 1)))


def test_opacity_changes_the_overlay_only_where_the_map_is_positive() -> None:
    reading = _reading(Edema=0.5)
    faint, strong = reading.overlay("Edema", 0.2), reading.overlay("Edema", 0.9)
    assert faint[0, 0].tolist() == strong[0, 0].tolist() == [10, 10, 10]
    assert faint[0, 1].tolist() != strong[0, 1].tolist()
    np.testing.assert_array_equal(reading.overlay("Edema", 0)[..., 0], reading.image)


def test_no_finding_is_not_the_first_map() -> None:
    assert _reading(No_Finding=0.9, Edema=0.2, Fracture=0.3).most_probable == "Fracture"
    assert _reading(No_Finding=0.9).most_probable == "No Finding"


# The handlers


@pytest.fixture(scope="module")
def demo(classifier: CheXpertClassifier) -> gr.Blocks:
    return build_demo(classifier, EXAMPLES)


def _call(demo: gr.Blocks, handler: str, *arguments: Any) -> dict[str, Any]:
    """What a handler of the page answers, by the component's label or id."""
    function = next(item for item in demo.fns.values() if item.fn is not None and item.fn.__name__ == handler)
    assert function.fn is not None
    return {part.elem_id or type(part).__name__: value for part, value in function.fn(*arguments).items()}


def test_handler_shows_the_scores_of_predict(
    demo: gr.Blocks, classifier: CheXpertClassifier, phantom_png: bytes
) -> None:
    answer = _call(demo, "show_file", phantom_png, Order.AS_IN_MODEL.value, 0.5)
    expected = classifier.predict(phantom_png)
    rows = _rows(answer["scores"])
    assert {row["name"]: row["value"] for row in rows} == {k: f"{v:.3f}" for k, v in expected.probabilities.items()}
    assert {row["name"]: row["call"] == "above" for row in rows} == expected.positives
    assert {row["name"]: float(row["point"]) for row in rows} == classifier.operating_points


def test_handler_refuses_a_broken_file_in_one_line_and_drops_the_last_reading(demo: gr.Blocks) -> None:
    answer = _call(demo, "show_file", BROKEN_PNG, Order.AS_IN_MODEL.value, 0.5)
    assert answer["State"] is None
    assert answer["Row"].visible is False
    assert "The PNG image is damaged" in answer["HTML"].value
    assert "\n" not in answer["HTML"].value


def test_refusal_is_escaped(demo: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RadiographError("expected <b>pixels</b>")

    monkeypatch.setattr("chexpert_hf.demo.read", refuse)
    answer = _call(demo, "show_file", b"any", Order.AS_IN_MODEL.value, 0.5)
    assert "expected &lt;b&gt;pixels&lt;/b&gt;" in answer["HTML"].value


def test_choice_after_the_session_expired_says_so(demo: gr.Blocks) -> None:
    answer = _call(demo, "show_map", None, "Edema", 0.5, Order.AS_IN_MODEL.value)
    assert EXPIRED in answer["HTML"].value


def test_empty_map_is_named_on_the_page(demo: gr.Blocks, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    reading = read(classifier, phantom_png)
    answer = _call(demo, "show_map", reading, "Fracture", 0.5, Order.AS_IN_MODEL.value)
    assert "The map is empty" in answer["map-text"]


def test_page_offers_nothing_to_programs_and_tells_nobody(demo: gr.Blocks) -> None:
    assert {function.api_visibility for function in demo.fns.values()} == {"private"}
    assert demo.get_api_info()["named_endpoints"] == {}
    assert demo.analytics_enabled is False
    assert demo.delete_cache == (600, 600)


# Launching


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("a.b", True)]
)
def test_open_address_is_warned_about_in_one_line(host: str, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    blocked: list[bool] = []
    page = SimpleNamespace(
        launch=lambda **settings: (None, f"http://{settings['server_name']}:7860/", None),
        block_thread=lambda: blocked.append(True),
    )
    launch(page, host=host)  # type: ignore[arg-type]
    output = capsys.readouterr()
    assert output.out == f"The page is at http://{host}:7860/\n"
    assert output.err.count("\n") == output.err.count("without a password") == warned
    assert blocked == [True]


# The Space


def _space_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_space_builds_the_page_of_the_model_that_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[gr.Blocks, dict[str, Any]]] = []
    app = _space_app()
    monkeypatch.setenv("MODEL_ID", str(tiny_folder))
    monkeypatch.setattr(app, "launch", lambda demo, **settings: launched.append((demo, settings)))
    assert not launched  # importing launches nothing
    app.main()
    ((page, settings),) = launched
    assert settings == {"host": "0.0.0.0"}
    assert all(path.stem in str(page.get_config_file()) for path in EXAMPLES)


def test_space_says_what_it_needs_and_its_examples_are_small() -> None:
    front_matter = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front_matter["sdk"] == "gradio"
    assert (SPACE / front_matter["app_file"]).is_file()
    assert len(front_matter["short_description"]) <= 60  # the Hub's limit
    assert len(EXAMPLES) >= 2
    assert all(path.stat().st_size < 40_000 for path in EXAMPLES)
    assert all(read_radiograph(path).info["original_size"] > (300, 300) for path in EXAMPLES)


# The whole page in a browser


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def address(demo: gr.Blocks) -> Iterator[str]:
    yield launch(demo, prevent_thread_lock=True)
    demo.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The opened page; it fails the test if it logs an error or asks anyone but this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    page = context.new_page()
    errors: list[str] = []
    outside: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else outside.append(request.url),
    )
    page.goto(address)
    page.locator("#file input[type=file]").wait_for(state="attached")
    yield page
    context.close()
    assert errors == []
    assert outside == []


@pytest.fixture
def forward_passes(classifier: CheXpertClassifier) -> Iterator[list[int]]:
    """Grows by the size of each batch that goes through the network."""
    batches: list[int] = []
    hook = classifier.model.register_forward_hook(lambda _, __, output: batches.append(len(output.logits)))
    yield batches
    hook.remove()


def _upload(page: Any, name: str, data: bytes) -> None:
    page.set_input_files(
        "#file input[type=file]", {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def _shown_scores(page: Any) -> dict[str, str]:
    page.locator(".score").first.wait_for()
    return dict(
        zip(
            page.locator(".score-name").all_inner_texts(),
            page.locator(".score-value").all_inner_texts(),
            strict=True,
        )
    )


def _map_source(page: Any) -> str:
    page.locator("#map img").wait_for(state="attached")
    return page.locator("#map img").get_attribute("src")


def _wait_for_other_map(page: Any, source: str) -> str:
    page.wait_for_function("old => document.querySelector('#map img').src !== old", arg=source)
    return _map_source(page)


@pytest.mark.browser
def test_upload_shows_all_scores_of_predict(page: Any, classifier: CheXpertClassifier, phantom_png: bytes) -> None:
    _upload(page, "IM0001", phantom_png)  # no suffix, as on the CDs of hospitals
    expected = classifier.predict(phantom_png)
    assert _shown_scores(page) == {name: f"{score:.3f}" for name, score in expected.probabilities.items()}
    shown = page.locator(".score-value").all_inner_texts()
    assert shown == sorted(shown, reverse=True)
    assert DISCLAIMER in page.inner_text("body")
    assert "IM0001" not in page.content()
    page.get_by_label(Order.AS_IN_MODEL.value).check()
    page.wait_for_function("document.querySelector('.score-name').textContent === 'No Finding'")
    assert tuple(_shown_scores(page)) == OBSERVATIONS


@pytest.mark.browser
def test_other_map_and_opacity_need_no_forward_pass(page: Any, phantom_png: bytes, forward_passes: list[int]) -> None:
    _upload(page, "a.png", phantom_png)
    first = _map_source(page)
    scores = _shown_scores(page)
    page.locator(".score", has_text="Pleural Effusion").click()
    second = _wait_for_other_map(page, first)
    assert page.locator("#observation input").input_value() == "Pleural Effusion"
    assert "Fluid between the lung and the chest wall." in page.inner_text("#map-text")
    page.locator("#observation input").click()
    page.get_by_role("option", name="Fracture").click()
    third = _wait_for_other_map(page, second)
    assert page.locator(".score[aria-pressed=true] .score-name").inner_text() == "Fracture"
    assert "The map is empty" in page.inner_text("#map-text")
    page.locator(".score", has_text="Pleural Effusion").click()
    assert _wait_for_other_map(page, third) == second
    page.locator("#opacity input[type=number]").fill("0.9")
    page.keyboard.press("Tab")
    assert _wait_for_other_map(page, second) != first
    assert _shown_scores(page) == scores
    assert forward_passes == [1]


@pytest.mark.browser
def test_broken_file_gets_one_line_and_the_page_goes_on(
    page: Any, phantom_png: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    _upload(page, "a.png", phantom_png)
    _shown_scores(page)
    _upload(page, "doe_jane.png", BROKEN_PNG)
    page.get_by_role("alert").wait_for()
    assert re.fullmatch(r"The PNG image is damaged.*\.", page.get_by_role("alert").inner_text())
    assert page.locator(".score").count() == 0  # no scores of the file before beside it
    _upload(page, "a.png", phantom_png)
    assert len(_shown_scores(page)) == len(OBSERVATIONS)
    assert page.get_by_role("alert").count() == 0
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert "doe_jane" not in log


@pytest.mark.browser
def test_example_goes_the_same_way_as_an_upload(page: Any, classifier: CheXpertClassifier) -> None:
    page.locator(".example", has_text=EXAMPLES[1].stem).click()
    expected = classifier.predict(EXAMPLES[1].read_bytes()).probabilities
    assert _shown_scores(page) == {name: f"{score:.3f}" for name, score in expected.items()}


@pytest.mark.browser
def test_visitors_do_not_see_each_others_radiographs(page: Any, address: str, phantom_png: bytes) -> None:
    _upload(page, "a.png", phantom_png)
    first, scores = _map_source(page), _shown_scores(page)
    other = page.context.new_page()
    other.goto(address)
    other.locator(".example").first.click()
    assert _shown_scores(other) != scores
    page.locator(".score").nth(5).click()
    _wait_for_other_map(page, first)
    assert _shown_scores(page) == scores


@pytest.mark.browser
def test_page_fits_a_phone(page: Any, phantom_png: bytes) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    _upload(page, "a.png", phantom_png)
    _shown_scores(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    bars = page.locator(".score-bar")
    assert min(bars.nth(row).bounding_box()["width"] for row in range(len(OBSERVATIONS))) > 250


def test_port_in_use_is_one_clear_line(address: str, classifier: CheXpertClassifier) -> None:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(InputError, match=rf"cannot be served at 127\.0\.0\.1, port {port}"):
        launch(build_demo(classifier), port=port, prevent_thread_lock=True)
