"""The tab for many radiographs: progress while they are scored, the table, and its downloads."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from chexpert_hf.app.page.batch import MAX_FILES, ListedFile, csv_of, find_items, score_items, write_overlays
from chexpert_hf.app.page.html import DELIVERY_JS, TABLE_JS, delivery_html, error_html, render
from chexpert_hf.app.page.panel import PLAIN, PRIVATE, SESSION_SECONDS, Panel, Updates, upload_field, uploads_of
from chexpert_hf.app.page.text import EXPIRED, FORMATS
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.finding import Found
from chexpert_hf.scoring.classifier import CheXpertClassifier

_PROGRESS_SECONDS = 0.4  # between two reports of progress


def build_batch_tab(classifier: CheXpertClassifier, tabs: gr.Tabs, single: Panel, single_id: str) -> None:
    """Lays out and connects the tab; a row of its table opens in the panel `single` of the tab `single_id`."""
    rows = gr.State((), time_to_live=SESSION_SECONDS)
    files = upload_field("Radiographs and ZIP archives of them", "batch-files")
    gr.HTML(f'<p class="formats">{MAX_FILES:,} radiographs at most. {FORMATS}</p>', **PLAIN)
    is_ungated = gr.Checkbox(
        label="Also score images that do not look like chest radiographs",
        visible=classifier.has_gate,
        elem_id="batch-ungated",
    )
    status = gr.HTML(visible=False, elem_id="batch-status", **PLAIN)
    stop = gr.Button("Stop", visible=False, size="sm", elem_id="batch-stop", elem_classes="stop-button")
    with gr.Row(visible=False, elem_classes="downloads") as downloads:
        csv = gr.Button("Download scores (CSV)", size="sm", elem_id="batch-csv")
        overlays = gr.Button("Prepare overlays (ZIP)", size="sm", elem_id="batch-overlays")
        archive = gr.DownloadButton("Download overlays.zip", size="sm", visible=False, elem_id="batch-archive")
    table = gr.HTML(visible=False, js_on_load=TABLE_JS, elem_id="batch-table", **PLAIN)
    delivery = gr.HTML(visible="hidden", js_on_load=DELIVERY_JS, elem_id="batch-delivery", **PLAIN)

    def show_status(html: str) -> Updates:
        return {status: gr.HTML(html, visible=bool(html))}

    def show_progress(done: int, total: int, what: str) -> Updates:
        return show_status(render("progress.html", done=done, total=total, what=what))

    def score_all(value: Any, ungated: bool) -> Iterator[Updates]:
        if not (uploads := uploads_of(value)):
            return
        found = Found()
        try:
            items = find_items(uploads, found)
        except InputError as error:
            yield {files: None, **show_status(error_html(str(error)))}
            return
        yield {
            files: None,
            rows: (),
            **show_progress(0, len(items), "Scored"),
            stop: gr.Button(visible=True),
            downloads: gr.Row(visible=False),
            archive: gr.DownloadButton(visible=False),
            table: gr.HTML("", visible=False),
        }
        done: list[ListedFile] = []
        shown_at = time.monotonic()
        for row in score_items(classifier, items, is_gated=not ungated):
            done.append(row)
            if time.monotonic() - shown_at > _PROGRESS_SECONDS:
                shown_at = time.monotonic()
                yield {rows: tuple(done), **show_progress(len(done), len(items), "Scored")}
        yield finished(tuple(done), found.notes())

    def finished(done: tuple[ListedFile, ...], notes: Sequence[str] = ()) -> Updates:
        html = render("table.html", rows=done, operating_points=classifier.operating_points, notes=notes)
        return {
            rows: done,
            **show_status(""),
            stop: gr.Button(visible=False),
            downloads: gr.Row(visible=bool(done)),
            table: gr.HTML(html, visible=bool(done)),
        }

    def open_row(event: gr.EventData, done: tuple[ListedFile, ...]) -> Updates:
        place = int(event.row)
        if not 0 <= place < len(done):
            return show_status(error_html(EXPIRED))
        row = done[place]
        is_gated = row.prediction is None  # a row that was scored in spite of the gate opens without it
        return {tabs: gr.Tabs(selected=single_id), **single.show([row.path], is_gated=is_gated)}

    def deliver_csv(done: tuple[ListedFile, ...]) -> Updates:
        if not done:
            return show_status(error_html(EXPIRED))
        return {delivery: delivery_html(csv_of(done, classifier.observations), "scores.csv", "text/csv")}

    def prepare_overlays(done: tuple[ListedFile, ...]) -> Iterator[Updates]:
        if not done:
            yield show_status(error_html(EXPIRED))
            return
        yield {overlays: gr.Button(interactive=False)}
        # Files in Gradio's cache are served from there and deleted with the uploads.
        cache = Path(archive.GRADIO_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=cache))
        path = folder / "overlays.zip"
        try:
            shown_at = time.monotonic()
            for count in write_overlays(path, done):
                if time.monotonic() - shown_at > _PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    yield show_progress(count, len(done), "Drawn")
        except BaseException:
            shutil.rmtree(folder)
            raise
        label = f"Download overlays.zip ({path.stat().st_size / 1_000_000:.1f} MB)"
        yield {
            overlays: gr.Button(interactive=True),
            **show_status(""),
            archive: gr.DownloadButton(label, value=str(path), visible=True),
        }

    quiet = {"show_progress": "hidden", **PRIVATE}
    outputs = [files, rows, status, stop, downloads, archive, table]
    run = files.upload(score_all, [files, is_ungated], outputs, preprocess=False, **quiet)
    stop.click(finished, [rows], [rows, status, stop, downloads, table], cancels=[run], **quiet)
    table.open(open_row, [rows], [tabs, status, *single.outputs], show_progress_on=[table], **PRIVATE)
    csv.click(deliver_csv, [rows], [delivery, status], **quiet)
    overlays.click(prepare_overlays, [rows], [overlays, status, archive], **quiet)
