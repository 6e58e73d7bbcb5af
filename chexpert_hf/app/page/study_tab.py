"""The tab for a study: several views of one patient, and the maximum over them."""

import gradio as gr

from chexpert_hf.app.page.html import error_html
from chexpert_hf.app.page.limits import MAX_VIEWS
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.panel import PLAIN, PRIVATE, Panel, Updates
from chexpert_hf.app.page.text import FORMATS
from chexpert_hf.app.page.uploads import Upload, upload_field
from chexpert_hf.scoring.classifier import CheXpertClassifier


def build_study_tab(classifier: CheXpertClassifier, facts: ModelFacts) -> None:
    """Lays out and connects the tab."""
    files = upload_field("Views of one study", "study-files")
    hint = f"Frontal and lateral views of one patient at one time, {MAX_VIEWS} at most, all at once."
    gr.HTML(f'<p class="formats">{hint} {FORMATS}</p>', **PLAIN)
    panel = Panel(classifier, facts, is_study=True)

    def show_study(uploads: list[Upload]) -> Updates:
        if not uploads:
            return {files: None}
        if len(uploads) > MAX_VIEWS:
            reason = f"Expected at most {MAX_VIEWS} views of one study, got {len(uploads)}; choose fewer."
            return {files: None, **panel.refuse(error_html(reason))}
        return {files: None, **panel.show([upload.path for upload in uploads])}

    files.upload(show_study, [files], [files, *panel.outputs], show_progress_on=[files], **PRIVATE)
