"""The tabs for one radiograph, and for a study: several views of one patient, and the maximum over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from chexpert_hf.app.page.examples import examples_html
from chexpert_hf.app.page.html import BUTTONS_JS, PASTE_JS, error_html
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.panel import PLAIN, PRIVATE, Panel, Updates, upload_field, uploads_of
from chexpert_hf.app.page.text import FORMATS, only_first
from chexpert_hf.scoring.classifier import CheXpertClassifier

MAX_VIEWS = 12  # radiographs of one study; the viewer holds all of them


def build_single_tab(classifier: CheXpertClassifier, facts: ModelFacts, examples: Sequence[Path]) -> Panel:
    """Lays out and connects the tab; `examples` are from `examples.find_examples`."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            files = upload_field("Radiograph", "file")
            gr.HTML(f'<p class="formats">{FORMATS} Ctrl+V pastes an image.</p>', js_on_load=PASTE_JS, **PLAIN)
        with gr.Column(scale=2, min_width=300, visible=bool(examples)):
            thumbnails = gr.HTML(examples_html(examples), js_on_load=BUTTONS_JS, elem_id="examples", **PLAIN)
    panel = Panel(classifier, facts, is_study=False)

    def show_file(value: Any) -> Updates:
        if not (uploads := uploads_of(value)):
            return {files: None}
        first, *others = uploads
        return {files: None, **panel.show([first.path], note=only_first(first.name, len(others)) if others else "")}

    def show_example(event: gr.SelectData) -> Updates:
        return {files: None, **panel.show([examples[int(event.index)]])}

    outputs = [files, *panel.outputs]
    files.upload(show_file, [files], outputs, preprocess=False, show_progress_on=[files], **PRIVATE)
    thumbnails.select(show_example, None, outputs, show_progress_on=[files], **PRIVATE)
    return panel


def build_study_tab(classifier: CheXpertClassifier, facts: ModelFacts) -> None:
    """Lays out and connects the tab."""
    files = upload_field("Views of one study", "study-files")
    hint = f"Frontal and lateral views of one patient at one time, {MAX_VIEWS} at most, all at once."
    gr.HTML(f'<p class="formats">{hint} {FORMATS}</p>', **PLAIN)
    panel = Panel(classifier, facts, is_study=True)

    def show_study(value: Any) -> Updates:
        if not (uploads := uploads_of(value)):
            return {files: None}
        if len(uploads) > MAX_VIEWS:
            reason = f"Expected at most {MAX_VIEWS} views of one study, got {len(uploads)}; choose fewer."
            return {files: None, **panel.refuse(error_html(reason))}
        return {files: None, **panel.show([upload.path for upload in uploads])}

    outputs = [files, *panel.outputs]
    files.upload(show_study, [files], outputs, preprocess=False, show_progress_on=[files], **PRIVATE)
