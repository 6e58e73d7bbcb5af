"""The tab for many radiographs: progress while they are scored, the table, and its downloads."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from chexpert_hf.app.page.batch import (
    ListedFile,
    csv_of,
    find_items,
    progress_html,
    score_items,
    table_html,
    write_overlays,
)
from chexpert_hf.app.page.html import delivery_html, error_html
from chexpert_hf.app.page.limits import MAX_FILES, PROGRESS_SECONDS, SESSION_SECONDS
from chexpert_hf.app.page.panel import PLAIN, PRIVATE, Panel, Updates
from chexpert_hf.app.page.style import DELIVERY_JS, TABLE_JS
from chexpert_hf.app.page.text import EXPIRED, FORMATS
from chexpert_hf.app.page.uploads import upload_field, uploads_of
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.finding import Found
from chexpert_hf.scoring.classifier import CheXpertClassifier


def build_batch_tab(
    classifier: CheXpertClassifier, tabs: gr.Tabs, single: Panel, single_id: str, *, has_gate: bool
) -> None:
    """Lays out and connects the tab; a row of its table opens in the panel `single` of the tab `single_id`."""
    rows = gr.State((), time_to_live=SESSION_SECONDS)
    files = upload_field("Radiographs and ZIP archives of them", "batch-files")
    gr.HTML(f'<p class="formats">{MAX_FILES:,} radiographs at most. {FORMATS}</p>', **PLAIN)
    is_ungated = gr.Checkbox(
        label="Also score images that do not look like chest radiographs", visible=has_gate, elem_id="batch-ungated"
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

    def score_all(value: Any, ungated: bool) -> Iterator[Updates]:
        if not (uploads := uploads_of(value)):
            return
        found = Found()
        try:
            items = find_items([(upload.name, upload.path) for upload in uploads], found)
        except InputError as error:
            yield {files: None, **show_status(error_html(str(error)))}
            return
        yield {
            files: None,
            rows: (),
            **show_status(progress_html(0, len(items), "Scored")),
            stop: gr.Button(visible=True),
            downloads: gr.Row(visible=False),
            archive: gr.DownloadButton(visible=False),
            table: gr.HTML("", visible=False),
        }
        done: list[ListedFile] = []
        shown_at = time.monotonic()
        for row in score_items(classifier, items, is_gated=not ungated):
            done.append(row)
            if time.monotonic() - shown_at > PROGRESS_SECONDS:
                shown_at = time.monotonic()
                yield {rows: tuple(done), **show_status(progress_html(len(done), len(items), "Scored"))}
        yield finished(tuple(done), found.notes())

    def finished(done: tuple[ListedFile, ...], notes: Sequence[str] = ()) -> Updates:
        html = table_html(done, classifier.operating_points, notes)
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
        is_gated = row.prediction is None  # what was scored without the gate opens without it
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
        # In Gradio's cache, where the file is served from where it is and deleted with the uploads.
        cache = Path(archive.GRADIO_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=cache))
        path = folder / "overlays.zip"
        try:
            shown_at = time.monotonic()
            for count in write_overlays(path, done):
                if time.monotonic() - shown_at > PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    yield show_status(progress_html(count, len(done), "Drawn"))
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
