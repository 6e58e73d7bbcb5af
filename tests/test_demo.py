"""The page as a whole: what it offers, how it is launched, and the Space around it. Its parts: `tests/page`."""

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import pytest
import yaml
from gradio.blocks import Block
from gradio.state_holder import SessionState

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.demo import build_demo, launch
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.radiograph import read_radiograph

SPACE = Path(__file__).parents[1] / "space"
EXAMPLES = sorted((SPACE / "examples").rglob("*.jpg"))


@pytest.fixture(scope="module")
def classifier(shared_tiny_model: Any) -> CheXpertClassifier:
    return CheXpertClassifier(shared_tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture(scope="module")
def demo(classifier: CheXpertClassifier) -> gr.Blocks:
    return build_demo(classifier, EXAMPLES)


def test_page_offers_programs_its_endpoints_alone_and_tells_nobody(demo: gr.Blocks) -> None:
    offered = {function.api_name for function in demo.fns.values() if function.api_visibility != "private"}
    assert offered == {"predict", "saliency", "batch"}
    assert set(demo.get_api_info()["named_endpoints"]) == {f"/{name}" for name in offered}
    assert demo.analytics_enabled is False
    assert demo.delete_cache == (600, 600)


def test_a_visit_to_the_page_has_gradios_configuration_of_it_without_asking_its_components(
    classifier: CheXpertClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = build_demo(classifier, EXAMPLES)
    launch(page, prevent_thread_lock=True)
    monkeypatch.setattr(Block, "get_config", lambda *_: 1 / 0)
    first = SessionState(page).config_values
    monkeypatch.undo()
    for block in page.blocks.values():
        del block.get_config  # the memory of it; the component's own comes to light
    as_gradio_makes_it = SessionState(page).config_values
    page.close(verbose=False)
    assert len(first) > 20
    assert first == as_gradio_makes_it


def test_what_one_visitor_does_changes_no_other_visitors_page(classifier: CheXpertClassifier) -> None:
    page = build_demo(classifier, EXAMPLES)
    launch(page, prevent_thread_lock=True)
    one, other = SessionState(page), SessionState(page)
    before = copy.deepcopy(other.config_values)
    for key in one.config_values:
        one._update_value_in_config(key, "changed")
    page.close(verbose=False)
    assert other.config_values == before
    assert SessionState(page).config_values == before


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
    assert settings["host"] == "0.0.0.0"
    assert "Radiograph RG1" in str(page.get_config_file())


def test_space_says_what_it_needs_and_its_examples_are_small() -> None:
    front_matter = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front_matter["sdk"] == "gradio"
    assert (SPACE / front_matter["app_file"]).is_file()
    assert len(front_matter["short_description"]) <= 60  # the Hub's limit
    assert len(EXAMPLES) >= 2
    assert all(path.stat().st_size < 120_000 for path in EXAMPLES)
    assert all(read_radiograph(path).info["original_size"] > (300, 300) for path in EXAMPLES)


@pytest.fixture
def address(demo: gr.Blocks) -> Iterator[str]:
    yield launch(demo, prevent_thread_lock=True)
    demo.close()


def test_port_in_use_is_one_clear_line(address: str, classifier: CheXpertClassifier) -> None:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(InputError, match=rf"cannot be served at 127\.0\.0\.1, port {port}"):
        launch(build_demo(classifier), port=port, prevent_thread_lock=True)
