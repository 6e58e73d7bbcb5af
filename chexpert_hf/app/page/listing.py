"""The list of many radiographs on the page: progress, the table with a row for each, and downloads of it."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import gradio as gr

from chexpert_hf.app.page.batch import csv_of, parquet_of, score_items, write_overlays
from chexpert_hf.app.page.html import asset, delivery_html, message_html, render
from chexpert_hf.app.page.panel import PLAIN, QUIET, SESSION_SECONDS, Panel, ResultState, Updates, bar_html
from chexpert_hf.app.page.reading import Item, Study
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.scoring.classifier import CheXpertClassifier

MAX_VIEWS = 12  # radiographs of one study; the viewer holds all of them

_PROGRESS_SECONDS = 0.4  # between two reports of progress
_TABLES = {"scores.csv": (csv_of, "text/csv"), "scores.parquet": (parquet_of, "application/vnd.apache.parquet")}
_ROWS_AT_ONCE = 50  # rows in one answer; the browser can draw so many without freezing

Rows = tuple[Item, ...]


@dataclass(eq=False)
class ListState:
    """The list that a visitor sees, one object per session; the page's buttons and the scoring change it in place.

    The scoring ends by itself once `id` has changed or `is_stopped` is set. It is not cancelled through Gradio: updates
    of a cancelled scoring could still reach the browser, and overwrite the next list.
    """

    id: str = ""
    """Identifies the table in the page; empty while no list is shown."""
    rows: Rows = ()
    is_stopped: bool = False

    def replace(self, rows: Rows) -> None:
        """Forget the previous list and keep `rows`, under a new id."""
        self.rows, self.is_stopped, self.id = rows, False, uuid4().hex if rows else ""

    @property
    def scored(self) -> Rows:
        """The rows before the first one that has neither scores nor an error yet."""
        return tuple(takewhile(lambda row: row.prediction is not None or row.error is not None, self.rows))


class Listing:
    """The Gradio components of the list, and their event handlers; a click on a row opens it in a Panel.

    The session holds all radiographs from the start, in order, and their results as they come. The server tells the
    browser how many are scored, and the browser asks for the rows that it lacks: no answer holds the whole table.
    """

    def __init__(self, classifier: CheXpertClassifier) -> None:
        self._classifier, self._names = classifier, CHEXPERT.in_order(classifier.observations)
        self.state = gr.State(ListState(), time_to_live=SESSION_SECONDS)
        self._status = gr.HTML(visible=False, js_on_load=asset("actions.js"), elem_id="list-status", **PLAIN)
        self._stop = gr.Button("Stop", visible=False, size="sm", elem_id="list-stop")
        self._archive = gr.DownloadButton("Download overlays.zip", size="sm", visible=False, elem_id="list-archive")
        table = asset("table.js")
        self._table = gr.HTML(visible=False, js_on_load=table, elem_id="list", scored=0, rows=None, **PLAIN)
        self.outputs: list[Any] = [self.state, self._status, self._stop, self._archive, self._table]
        """The components that `replaced` changes."""

    def replaced(self, state: ListState, items: Rows = (), notes: Sequence[str] = ()) -> Updates:
        """Replace the list in `state` by `items`, and return updates that show a table without rows.

        The scoring of the previous list stops. When the browser gets the updates, it asks the server to score the
        items. `notes` are sentences to show with the table. Without items, the list is hidden.
        """
        state.replace(items)
        return {
            self.state: state,
            **(self._show_progress(0, len(items), 0.0, "Scored") if items else self._show_status("")),
            self._stop: gr.Button(visible=bool(items)),
            self._archive: gr.DownloadButton(visible=False),
            self._table: self._empty_table(state, notes) if items else gr.HTML("", visible=False),
        }

    def _empty_table(self, state: ListState, notes: Sequence[str] = ()) -> gr.HTML:
        scored = len(state.scored)
        table = render("table.html", id=state.id, names=self._names, notes=notes, is_new=not scored)
        return gr.HTML(table, visible=True, scored=scored, rows=None)

    def _run(self, event: gr.EventData, state: ListState) -> Iterator[Updates]:
        of, items, done = event.id, state.rows if event.id == state.id else (), list[Item]()
        scored = score_items(self._classifier, items, is_gated=True)
        try:
            for seconds in _paced(takewhile(lambda _: state.id == of and not state.is_stopped, scored), done):
                state.rows = (*done, *items[len(done) :])
                progress = self._show_progress(len(done), len(items), seconds, "Scored")
                yield {self.state: state, self._table: gr.HTML(scored=len(done)), **progress}
        finally:  # after an error, too, the list keeps only the rows that were scored
            if state.id == of:
                state.rows = tuple(done)
        # Gradio sends the last updates twice; the second ones may come when another list is shown.
        yield {self.state: state}

    def _finished(self, state: ListState) -> Updates:
        """Return updates that show a summary in place of the progress and hide the Stop button.

        If a row has no result yet, a new list has replaced the scored one: then the updates change nothing.
        """
        done = state.scored
        if len(done) < len(state.rows):
            return {self._stop: gr.skip()}
        status = self._summary(done) if state.id else self._show_status("")
        table = gr.HTML(scored=len(done), visible=bool(done))
        return {self.state: state, **status, self._stop: gr.Button(visible=False), self._table: table}

    def _summary(self, done: Rows) -> Updates:
        return self._show_status(render("list_status.html", rows=done, is_study_possible=1 < len(done) <= MAX_VIEWS))

    def _show_status(self, value: str) -> Updates:
        return {self._status: gr.HTML(value, visible=bool(value))}

    def _show_progress(self, done: int, total: int, seconds: float, what: str) -> Updates:
        left = seconds / done * (total - done) if done else None
        return self._show_status(render("progress.html", done=done, total=total, left=left, what=what))

    def connect(self, bar: gr.HTML, panel: Panel) -> None:
        """Attach the list's event handlers: a row opens in `panel`; the button "List" in `bar` closes the open row."""
        table, status, classifier = self._table, self._status, self._classifier

        def send_rows(event: gr.EventData, state: ListState) -> Updates:
            if event.id != state.id:  # the event is of a list that the visitor has left
                return {table: gr.skip()}
            start = int(event.start)
            part = state.scored[start : start + _ROWS_AT_ONCE]
            new = render("rows.html", rows=part, start=start, names=self._names)
            return {table: gr.HTML(rows={"id": event.id, "start": start, "html": new})}

        def open_row(event: gr.EventData, state: ListState) -> Updates:
            number = int(event.row)
            if not 0 <= number < len(state.scored):
                return self._show_status(message_html(EXPIRED))
            row = state.rows[number]
            title = bar_html(row.name, place=(int(event.shown), int(event.of)), has_back=True)
            chosen = dict(enumerate(self._names)).get(int(event.observation))
            # A row that was scored in spite of the gate opens without it.
            return panel.show(ResultState(Study([row]), title), is_gated=row.prediction is None, chosen=chosen)

        def show_study(state: ListState) -> Updates:
            if not 0 < len(state.rows) <= MAX_VIEWS:
                return self._show_status(message_html(EXPIRED))
            title = bar_html(f"A study of {len(state.rows)} views", has_back=True)
            return panel.show(ResultState(Study(state.rows), title))

        def close_row() -> Updates:
            return panel.cleared(bar_html())

        def score_refused(state: ListState) -> Updates:
            if not (rows := state.rows):
                return self._show_status(message_html(EXPIRED))
            anyway = score_items(classifier, [row for row in rows if row.is_refused], is_gated=False)
            state.replace(tuple(next(anyway) if row.is_refused else row for row in rows))
            return {**self._finished(state), self._table: self._empty_table(state)}

        def stop(state: ListState) -> None:
            state.is_stopped = True

        def deliver_table(event: gr.EventData, state: ListState) -> Updates:
            if not state.rows:
                return self._show_status(message_html(EXPIRED))
            make, media_type = _TABLES[event.name]
            content = make(_shown(state.rows, event), classifier.observations)
            return {panel.delivery: delivery_html(content, event.name, media_type)}

        state, shown = [self.state], [status, *panel.outputs]
        # "multiple": by default Gradio ignores events while one runs, also if that was just cancelled or answered.
        scoring = table.run(self._run, state, self.outputs, trigger_mode="multiple", **QUIET)
        scoring.then(self._finished, state, self.outputs, trigger_mode="multiple", **QUIET)
        table.more(send_rows, state, [table], trigger_mode="multiple", **QUIET)
        table.open(open_row, state, shown, **panel.busy)
        status.study(show_study, state, shown, **panel.busy)
        bar.back(close_row, None, panel.outputs, trigger_mode="multiple", **QUIET)
        status.override(score_refused, state, self.outputs, **panel.busy)
        self._stop.click(stop, state, None, **QUIET)
        status.table(deliver_table, state, [panel.delivery, status], **QUIET)
        status.overlays(self._prepare_overlays, state, [status, self._archive], **QUIET)

    def _prepare_overlays(self, event: gr.EventData, state: ListState) -> Iterator[Updates]:
        if not (done := state.rows):
            yield self._show_status(message_html(EXPIRED))
            return
        # Files in Gradio's cache are served from there and deleted with the uploads.
        cache = Path(self._archive.GRADIO_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=cache))
        path = folder / "overlays.zip"
        try:
            of, shown, drawn = state.id, _shown(done, event), list[int]()
            for seconds in _paced(takewhile(lambda _: state.id == of, write_overlays(path, shown)), drawn):
                yield self._show_progress(len(drawn), len(shown), seconds, "Drawn")
        except BaseException:
            shutil.rmtree(folder)
            raise
        if state.id != of:
            shutil.rmtree(folder)
            yield {self._archive: gr.skip()}
            return
        label = f"Download overlays.zip ({len(shown):,} of {len(done):,}, {path.stat().st_size / 1_000_000:.1f} MB)"
        yield {**self._summary(done), self._archive: gr.DownloadButton(label, value=str(path), visible=True)}


def _paced(parts: Iterable[Any], done: list[Any]) -> Iterator[float]:
    """Collect the `parts` of a slow job in `done`; yield the seconds spent, at most once in `_PROGRESS_SECONDS`."""
    start, shown_at = time.monotonic(), 0.0
    for part in parts:
        done.append(part)
        if (now := time.monotonic()) - shown_at > _PROGRESS_SECONDS:
            shown_at = now
            yield now - start


def _shown(rows: Rows, event: Any) -> Rows:
    """Return the rows that the page's filters show; the browser's event lists the numbers of the hidden ones."""
    return tuple(row for number, row in enumerate(rows) if number not in event.hidden)
