"""What the page's handlers answer, without a browser."""

import inspect
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from chexpert_hf import CheXpertClassifier
from chexpert_hf.app.page.listing import MAX_VIEWS, ListState, score_items
from chexpert_hf.app.page.panel import SESSION_SECONDS, ResultState
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.app.page.conftest import JUDGED, zipped
from tests.app.page.test_result import rows_of
from tests.dicom_files import dicom_without_pixels


def call(demo: gr.Blocks, handler: str, *arguments: Any) -> dict[str, Any]:
    """The last answer of a handler of the page, by the component's id or kind."""
    function = next(item.fn for item in demo.fns.values() if item.fn is not None and item.fn.__name__ == handler)
    answer = function(*arguments)
    if inspect.isgenerator(answer):
        merged: dict[Any, Any] = {}
        for update in answer:
            merged |= {part: value for part, value in update.items() if value != gr.skip()}
        answer = merged
    return {part.elem_id or type(part).__name__: value for part, value in (answer or {}).items()}


ROW = SimpleNamespace(row=0, shown=1, of=2, hidden=[], observation=-1)


def list_of(demo: gr.Blocks, *paths: Path) -> Any:
    """A list of files, scored, as the session keeps it."""
    state = ListState()
    call(demo, "show_uploads", uploads(*paths), state)
    return call(demo, "_run", SimpleNamespace(id=state.id), state)["State"]


def uploads(*paths: Path) -> list[dict[str, str]]:
    return [{"path": str(path), "orig_name": path.name} for path in paths]


def test_handler_shows_the_scores_of_predict(
    demo: gr.Blocks, classifier: CheXpertClassifier, files: dict[str, Path]
) -> None:
    answer = call(demo, "show_uploads", uploads(files["phantom"]), ListState())
    expected = classifier.predict(files["phantom"].read_bytes())
    rows = rows_of(answer["result"].value)
    assert {row["name"]: row["value"] for row in rows} == {k: f"{v:.3f}" for k, v in expected.probabilities.items()}
    assert {row["name"]: row["call"] == "above" for row in rows} == expected.positives
    assert {row["name"]: float(row["point"]) for row in rows} == classifier.operating_points
    assert answer["file"] is None  # the field is free for the next


def test_handler_refuses_a_broken_file_in_one_line_and_drops_the_last_reading(
    demo: gr.Blocks, files: dict[str, Path]
) -> None:
    answer = call(demo, "show_uploads", uploads(files["broken"]), ListState())
    assert answer["State"] is None
    assert answer["result"].visible is False
    assert answer["result"].value == ""
    assert "The PNG image is damaged" in answer["message"].value
    assert "\n" not in answer["message"].value
    assert "Score it anyway" not in answer["message"].value


def test_error_is_escaped(demo: gr.Blocks, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RadiographError("expected <b>pixels</b>")

    monkeypatch.setattr("chexpert_hf.app.page.reading.decode", refuse)
    answer = call(demo, "show_uploads", uploads(files["phantom"]), ListState())
    assert "expected &lt;b&gt;pixels&lt;/b&gt;" in answer["message"].value


@pytest.mark.parametrize("handler", ["score_anyway", "show_activations", "make_report"])
def test_buttons_say_that_the_session_expired(demo: gr.Blocks, handler: str) -> None:
    event = SimpleNamespace(view=0, observation=0)
    answer = call(demo, handler, *([None] if handler == "score_anyway" else [event, None]))
    shown = answer["activations" if handler == "show_activations" else "message"]
    assert EXPIRED in shown.value


@pytest.mark.parametrize("handler", ["open_row", "show_study", "score_refused", "deliver_table"])
def test_list_says_that_the_session_expired(demo: gr.Blocks, handler: str) -> None:
    event = [ROW] if handler in ("open_row", "deliver_table") else []
    assert EXPIRED in call(demo, handler, *event, ListState())["list-status"].value
    assert EXPIRED in call(demo, "_prepare_overlays", ROW, ListState())["list-status"].value


def test_row_whose_upload_was_deleted_says_so(demo: gr.Blocks, files: dict[str, Path]) -> None:
    state = list_of(demo, files["phantom"], files["other"])
    files["phantom"].unlink()
    answer = call(demo, "open_row", ROW, state)
    assert EXPIRED in answer["message"].value


def test_refused_image_can_be_scored_anyway(demo: gr.Blocks, files: dict[str, Path]) -> None:
    refused = call(demo, "show_uploads", uploads(files["blank"]), ListState())
    assert refused["result"].visible is False
    state = refused["State"]
    assert isinstance(state, ResultState)
    answer = call(demo, "score_anyway", state)
    assert len(rows_of(answer["result"].value)) == len(JUDGED)
    assert "it is &lt;blank&gt;" in answer["result"].value  # the reason stays beside the scores


def test_refused_images_of_a_list_are_scored_on_request_and_open_without_the_gate(
    demo: gr.Blocks, files: dict[str, Path]
) -> None:
    state = list_of(demo, files["blank"], files["phantom"], files["broken"], files["blank"])
    before, table = state.rows, state.id
    assert [row.prediction is None for row in before] == [True, False, True, True]
    assert call(demo, "open_row", ROW, state)["result"].visible is False
    assert call(demo, "score_refused", state)["State"] is state
    assert state.id != table
    assert [row.prediction is None for row in state.rows] == [False, False, True, False]
    assert [row.error for row in state.rows] == [None, None, before[2].error, None]
    assert state.rows[1] is before[1]
    assert call(demo, "open_row", ROW, state)["result"].visible is True


def test_several_files_are_a_list_and_one_of_an_archive_is_not(demo: gr.Blocks, files: dict[str, Path]) -> None:
    answer = call(demo, "show_uploads", uploads(files["phantom"], files["broken"]), ListState())
    assert answer["list"].visible is True
    assert answer["result"].visible is False
    assert 'class="bar"' in answer["bar"]
    (files["phantom"].parent / "one.zip").write_bytes(zipped({"a.png": files["phantom"].read_bytes()}))
    answer = call(demo, "show_uploads", uploads(files["phantom"].parent / "one.zip"), ListState())
    assert answer["result"].visible is True
    assert answer["list"].visible is False


def test_nothing_that_is_dropped_vanishes_without_a_message(demo: gr.Blocks, files: dict[str, Path]) -> None:
    report = files["phantom"].parent / "report.dcm"
    report.write_bytes(dicom_without_pixels("1.2.840.10008.5.1.4.1.1.88.11"))
    answer = call(demo, "show_uploads", uploads(report), ListState())
    assert "Expected radiographs, got none." in answer["message"].value
    assert answer["bar"] == ""  # the start stays
    answer = call(demo, "show_uploads", uploads(report, files["phantom"]), ListState())
    assert "were skipped: 1." in answer["message"].value
    assert answer["result"].visible is True
    answer = call(demo, "show_uploads", uploads(report, files["phantom"], files["other"]), ListState())
    assert "were skipped: 1." in answer["list"].value
    assert "an empty folder" in call(demo, "explain", SimpleNamespace(is_busy=False))["message"].value


def test_a_list_of_few_can_be_read_as_views_of_one_study(demo: gr.Blocks, files: dict[str, Path]) -> None:
    for count in (MAX_VIEWS, MAX_VIEWS + 1):
        status = call(demo, "_finished", list_of(demo, *[files["phantom"]] * count))["list-status"].value
        assert ("views of one study" in status) is (count == MAX_VIEWS)


def test_views_are_numbered_and_named_only_where_they_have_no_scores(demo: gr.Blocks, files: dict[str, Path]) -> None:
    state = list_of(demo, files["phantom"], files["broken"], files["other"])
    answer = call(demo, "show_study", state)
    assert "A study of 3 views" in answer["bar"]
    html = answer["result"].value
    assert "View 2 (broken.png) has no scores" in html
    named = [path.name for path in files.values() if path.name in html or str(path.parent) in html]
    assert named == ["broken.png"]
    answer = call(demo, "show_study", list_of(demo, files["blank"], files["broken"]))
    assert "View 1 (blank.png) has no scores" in answer["message"].value
    assert "View 2 (broken.png) has no scores" in answer["message"].value


def test_activations_show_every_stage(demo: gr.Blocks, files: dict[str, Path], forward_passes: list[int]) -> None:
    state = call(demo, "show_uploads", uploads(files["phantom"]), ListState())["State"]
    html = call(demo, "show_activations", SimpleNamespace(view=0), state)["activations"].value
    for stage in ("stem", "dense block 1", "transition 1", "dense block 2", "last feature maps"):
        assert f"<strong>{stage}</strong>" in html
    assert html.count("<figure>") == 5 * 6
    assert forward_passes == [1]  # the activations' own pass is not one of the whole model


def test_report_needs_no_forward_pass(demo: gr.Blocks, files: dict[str, Path], forward_passes: list[int]) -> None:
    state = call(demo, "show_uploads", uploads(files["phantom"]), ListState())["State"]
    assert "download=" in call(demo, "make_report", SimpleNamespace(observation=3), state)["delivery"]
    assert forward_passes == [1]


def test_new_clears_result_and_list_and_back_the_result_alone(demo: gr.Blocks) -> None:
    cleared = call(demo, "start_over", ListState())
    assert cleared["bar"] == ""
    assert cleared["result"].visible is cleared["list"].visible is False
    closed = call(demo, "close_row")
    assert 'class="bar"' in closed["bar"]
    assert closed["result"].visible is False
    assert "list" not in closed


def test_sessions_end(demo: gr.Blocks) -> None:
    states = [block for block in demo.blocks.values() if isinstance(block, gr.State)]
    assert len(states) == 2
    assert {state.time_to_live for state in states} == {SESSION_SECONDS}


def test_a_list_that_the_visitor_has_left_neither_shows_nor_keeps_anything_more(
    demo: gr.Blocks, files: dict[str, Path]
) -> None:
    """What is still being scored or drawn of it ends at the next radiograph, without a word; its rows are not given."""
    both = uploads(files["phantom"], files["other"])
    for handler in ("_run", "_prepare_overlays"):
        state = list_of(demo, files["phantom"], files["phantom"], files["phantom"])
        left = state.id
        event = SimpleNamespace(id=left, hidden=[])
        function = next(item.fn for item in demo.fns.values() if item.fn is not None and item.fn.__name__ == handler)
        answers = function(event, state)
        next(answers)
        call(demo, "show_uploads", both, state)
        told = [value for answer in answers for value in answer.values()]
        assert told in ([gr.skip()], [state])
        assert [row.prediction for row in state.rows] == [None, None]
        more = SimpleNamespace(id=left, start=0)
        assert call(demo, "send_rows", more, state) == {"list": gr.skip()}


def test_a_stopped_list_keeps_what_was_scored(demo: gr.Blocks, files: dict[str, Path]) -> None:
    state = ListState()
    call(demo, "show_uploads", uploads(*[files["phantom"]] * 4), state)
    run = next(item.fn for item in demo.fns.values() if getattr(item.fn, "__name__", "") == "_run")
    answers = run(SimpleNamespace(id=state.id), state)
    next(answers)
    call(demo, "stop", state)
    unfinished = call(demo, "_finished", state)
    assert unfinished == {"list-stop": gr.skip()}
    assert [*answers]
    assert "<strong>1 of 1</strong>" in call(demo, "_finished", state)["list-status"].value
    assert len(state.rows) == len(state.scored) == 1
    call(demo, "start_over", state)
    left = call(demo, "_finished", state)
    assert [left[part].visible for part in ("list-status", "list-stop", "list")] == [False] * 3


def test_a_list_whose_scoring_breaks_off_shows_what_was_scored_and_another_lists_event_scores_nothing(
    demo: gr.Blocks, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ListState()
    call(demo, "show_uploads", uploads(*[files["phantom"]] * 4), state)
    assert call(demo, "_run", SimpleNamespace(id="another"), state) == {"State": state}
    assert state.scored == ()

    def break_off(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(score_items(*arguments, **options), 2)
        raise MemoryError("full")

    monkeypatch.setattr("chexpert_hf.app.page.listing.score_items", break_off)
    with pytest.raises(MemoryError, match="full"):
        call(demo, "_run", SimpleNamespace(id=state.id), state)
    answer = call(demo, "_finished", state)
    assert "<strong>2 of 2</strong>" in answer["list-status"].value
    assert answer["list-stop"].visible is False


def test_upload_that_is_cleared_changes_nothing(demo: gr.Blocks) -> None:
    assert call(demo, "show_uploads", [], ListState()) == {"file": None}


def test_overlays_are_of_the_rows_that_are_shown_and_the_list_keeps_its_buttons(
    demo: gr.Blocks, files: dict[str, Path]
) -> None:
    state = list_of(demo, files["phantom"], files["phantom"], files["phantom"])
    told = call(demo, "_prepare_overlays", SimpleNamespace(hidden=[0, 2]), state)
    with zipfile.ZipFile(told["list-archive"].value["path"]) as overlays:
        assert {name.split("/")[0] for name in overlays.namelist()} == {"0001_phantom", "README.txt"}
    assert "(1 of 3, " in told["list-archive"].label
    assert "<strong>3 of 3</strong>" in told["list-status"].value
    assert 'data-action="table"' in told["list-status"].value
