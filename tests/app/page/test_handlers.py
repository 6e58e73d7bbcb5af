"""What the page's handlers answer, without a browser."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from chexpert_hf import CheXpertClassifier
from chexpert_hf.app.page.panel import SESSION_SECONDS, Kept
from chexpert_hf.app.page.tabs import MAX_VIEWS
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.app.page.conftest import JUDGED
from tests.app.page.test_result import rows_of


def call(demo: gr.Blocks, handler: str, *arguments: Any, place: int = 0) -> dict[str, Any]:
    """The last answer of a handler of the page, by the component's id or kind; `place` among those of one name."""
    functions = [item for item in demo.fns.values() if item.fn is not None and item.fn.__name__ == handler]
    assert functions[place].fn is not None
    answer = functions[place].fn(*arguments)
    if inspect.isgenerator(answer):
        merged: dict[Any, Any] = {}
        for update in answer:
            merged |= update
        answer = merged
    return {part.elem_id or type(part).__name__: value for part, value in answer.items()}


def uploads(*paths: Path) -> list[dict[str, str]]:
    return [{"path": str(path), "orig_name": path.name} for path in paths]


def test_handler_shows_the_scores_of_predict(
    demo: gr.Blocks, classifier: CheXpertClassifier, files: dict[str, Path]
) -> None:
    answer = call(demo, "show_file", uploads(files["phantom"]))
    expected = classifier.predict(files["phantom"].read_bytes())
    rows = rows_of(answer["single-result"].value)
    assert {row["name"]: row["value"] for row in rows} == {k: f"{v:.3f}" for k, v in expected.probabilities.items()}
    assert {row["name"]: row["call"] == "above" for row in rows} == expected.positives
    assert {row["name"]: float(row["point"]) for row in rows} == classifier.operating_points
    assert answer["file"] is None  # the field is free for the next


def test_handler_refuses_a_broken_file_in_one_line_and_drops_the_last_reading(
    demo: gr.Blocks, files: dict[str, Path]
) -> None:
    answer = call(demo, "show_file", uploads(files["broken"]))
    assert answer["State"] is None
    assert answer["single-result"].visible is False
    assert answer["single-result"].value == ""
    assert "The PNG image is damaged" in answer["single-message"].value
    assert "\n" not in answer["single-message"].value
    assert "Score it anyway" not in answer["single-message"].value


def test_error_is_escaped(demo: gr.Blocks, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RadiographError("expected <b>pixels</b>")

    monkeypatch.setattr("chexpert_hf.app.page.reading.read", refuse)
    answer = call(demo, "show_file", uploads(files["phantom"]))
    assert "expected &lt;b&gt;pixels&lt;/b&gt;" in answer["single-message"].value


@pytest.mark.parametrize("handler", ["score_anyway", "show_activations", "make_report"])
def test_buttons_say_that_the_session_expired(demo: gr.Blocks, handler: str) -> None:
    event = SimpleNamespace(view=0, observation=0)
    answer = call(demo, handler, *([None] if handler == "score_anyway" else [event, None]))
    shown = answer["single-activations" if handler == "show_activations" else "single-message"]
    assert EXPIRED in shown.value


@pytest.mark.parametrize("handler", ["open_row", "deliver_csv", "prepare_overlays"])
def test_table_says_that_the_session_expired(demo: gr.Blocks, handler: str) -> None:
    event = [SimpleNamespace(row=0)] if handler == "open_row" else []
    assert EXPIRED in call(demo, handler, *event, ())["batch-status"].value


def test_row_whose_upload_was_deleted_says_so(demo: gr.Blocks, files: dict[str, Path]) -> None:
    rows = call(demo, "score_all", uploads(files["phantom"]), False)["State"]
    files["phantom"].unlink()
    answer = call(demo, "open_row", SimpleNamespace(row=0), rows)
    assert EXPIRED in answer["single-message"].value


def test_refused_image_can_be_scored_anyway(demo: gr.Blocks, files: dict[str, Path]) -> None:
    refused = call(demo, "show_file", uploads(files["blank"]))
    assert refused["single-result"].visible is False
    kept = refused["State"]
    assert isinstance(kept, Kept)
    answer = call(demo, "score_anyway", kept)
    assert len(rows_of(answer["single-result"].value)) == len(JUDGED)
    assert "it is &lt;blank&gt;" in answer["single-result"].value  # the reason stays beside the scores


def test_image_that_was_listed_without_the_gate_opens_without_it(demo: gr.Blocks, files: dict[str, Path]) -> None:
    for ungated in (False, True):
        rows = call(demo, "score_all", uploads(files["blank"]), ungated)["State"]
        answer = call(demo, "open_row", SimpleNamespace(row=0), rows)
        assert answer["single-result"].visible is ungated


def test_study_of_too_many_views_is_refused(demo: gr.Blocks, files: dict[str, Path], forward_passes: list[int]) -> None:
    answer = call(demo, "show_study", uploads(*[files["phantom"]] * (MAX_VIEWS + 1)))
    assert f"Expected at most {MAX_VIEWS} views of one study, got {MAX_VIEWS + 1}" in answer["study-message"].value
    assert forward_passes == []


def test_views_are_numbered_and_never_named(demo: gr.Blocks, files: dict[str, Path]) -> None:
    answer = call(demo, "show_study", uploads(files["phantom"], files["broken"], files["other"]))
    html = answer["study-result"].value
    assert "View 2 has no scores" in html
    assert not any(path.name in html or str(path.parent) in html for path in files.values())


def test_activations_show_every_stage(demo: gr.Blocks, files: dict[str, Path], forward_passes: list[int]) -> None:
    kept = call(demo, "show_file", uploads(files["phantom"]))["State"]
    html = call(demo, "show_activations", SimpleNamespace(view=0), kept)["single-activations"].value
    for stage in ("stem", "dense block 1", "transition 1", "dense block 2", "last feature maps"):
        assert f"<strong>{stage}</strong>" in html
    assert html.count("<figure>") == 5 * 6
    assert forward_passes == [1]  # the activations' own pass is not one of the whole model


def test_report_needs_no_forward_pass(demo: gr.Blocks, files: dict[str, Path], forward_passes: list[int]) -> None:
    kept = call(demo, "show_file", uploads(files["phantom"]))["State"]
    assert "data-file" in call(demo, "make_report", SimpleNamespace(observation=3), kept)["single-delivery"]
    assert forward_passes == [1]


def test_sessions_end(demo: gr.Blocks) -> None:
    states = [block for block in demo.blocks.values() if isinstance(block, gr.State)]
    assert len(states) == 3
    assert {state.time_to_live for state in states} == {SESSION_SECONDS}


def test_upload_that_is_cleared_changes_nothing(demo: gr.Blocks) -> None:
    assert call(demo, "show_file", []) == {"file": None}
    assert call(demo, "show_study", []) == {"study-files": None}
    assert call(demo, "score_all", [], False) == {}
