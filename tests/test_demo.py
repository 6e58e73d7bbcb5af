"""The page as a whole: what it offers, how it is launched, and the Space around it. Its parts: `tests/page`."""

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
import yaml
from gradio.state_holder import SessionState

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.demo import build_demo
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


def test_what_one_visitor_does_changes_no_other_visitors_page(classifier: CheXpertClassifier) -> None:
    page = build_demo(classifier, EXAMPLES)
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
    launched: list[tuple[CheXpertClassifier, Sequence[Path], dict[str, Any]]] = []
    app = _space_app()
    monkeypatch.setenv("MODEL_ID", str(tiny_folder))
    monkeypatch.setattr(app, "launch", lambda *given, **settings: launched.append((*given, settings)))
    assert not launched  # importing launches nothing
    app.main()
    ((classifier, examples, settings),) = launched
    assert settings == {"host": "0.0.0.0"}
    assert classifier.observations == CheXpertClassifier.from_pretrained(tiny_folder).observations
    assert "Radiograph RG1" in str(build_demo(classifier, examples).get_config_file())


def test_space_on_zero_gpu_starts_by_gradios_own_launch_and_borrows_a_gpu_for_each_radiograph(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    borrowed: list[str] = []
    answers: list[httpx.Response] = []
    app, launch = _space_app(), gr.Blocks.launch

    def borrow(function: Any) -> Any:
        return lambda *given, **options: borrowed.append("a GPU") or function(*given, **options)

    def launch_here(page: gr.Blocks, **settings: Any) -> None:
        assert settings.pop("server_name") == "0.0.0.0"
        _, url, _ = launch(page, prevent_thread_lock=True, quiet=True, **settings)
        with httpx.Client(base_url=url, timeout=30) as http:
            (path,) = http.post("/gradio_api/upload", files={"files": EXAMPLES[0].read_bytes()}).json()
            event = http.post("/gradio_api/call/predict", json={"data": [{"path": path}]}).json()["event_id"]
            answers.extend(http.get(path) for path in (f"/gradio_api/call/predict/{event}", "/monitoring"))
        page.close(verbose=False)

    monkeypatch.setenv("MODEL_ID", str(tiny_folder))
    monkeypatch.setattr(app, "spaces", SimpleNamespace(GPU=borrow))
    monkeypatch.setattr(gr.Blocks, "launch", launch_here)
    app.main()
    scored, hidden = answers
    assert scored.text.startswith("event: complete")
    assert borrowed == ["a GPU"]
    assert (hidden.status_code, hidden.headers["x-content-type-options"]) == (404, "nosniff")


def test_space_says_what_it_needs_and_its_examples_are_small() -> None:
    front_matter = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front_matter["sdk"] == "gradio"
    assert (SPACE / front_matter["app_file"]).is_file()
    assert len(front_matter["short_description"]) <= 60  # the Hub's limit
    assert len(EXAMPLES) >= 2
    assert all(path.stat().st_size < 120_000 for path in EXAMPLES)
    assert all(read_radiograph(path).info["original_size"] > (300, 300) for path in EXAMPLES)
