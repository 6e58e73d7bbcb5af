"""The parts that tabs share: fields for files, and the results of a radiograph or study.

The visitor's session holds the uploads and the study read from them, for the report, for the activations, and for
scoring radiographs that the gate refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from chexpert_hf.app.page.html import (
    BUTTONS_JS,
    DELIVERY_JS,
    VIEWER_JS,
    delivery_html,
    error_html,
    note_html,
    render,
)
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.reading import ExpiredError, Study, read_study
from chexpert_hf.app.page.result import activations_html, report_html, result_html
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertClassifier

SESSION_SECONDS = 1800  # for which scores and images stay in a visitor's session after they were made

Updates = dict[Any, Any]
"""New values by component."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Option of every handler: programs have endpoints of their own."""

PLAIN: dict[str, Any] = {"apply_default_css": False}
"""Option of every `gr.HTML`: the page has its own style sheet."""

_MAX_NAME = 200


class Upload(NamedTuple):
    """An uploaded file: the visitor's name for it, which is shown to nobody else, and its path on the server."""

    name: str
    path: Path


def upload_field(label: str, elem_id: str) -> gr.File:
    """A field for files, whose events need `preprocess=False` and whose value `uploads_of` reads.

    Gradio's own preprocessing leaves an empty temporary file behind for each upload. There are no file types, since
    Gradio would drop the many DICOM files without a suffix, and no single file, since the browser would drop the others
    without a message.
    """
    return gr.File(label=label, file_count="multiple", height=140, elem_id=elem_id, elem_classes="upload-field")


def uploads_of(value: list[dict[str, Any]] | None) -> list[Upload]:
    """The files in an unprocessed value of an upload field."""
    return [
        Upload((file["orig_name"] or Path(file["path"]).name)[:_MAX_NAME], Path(file["path"])) for file in value or ()
    ]


@dataclass(frozen=True)
class Kept:
    """The uploads of a session, and the study that was read from them; None if none could be scored."""

    files: tuple[RadiographFile, ...]
    study: Study | None


class Panel:
    """The components that show results, laid out and connected; `is_study` numbers the views."""

    def __init__(self, classifier: CheXpertClassifier, facts: ModelFacts, *, is_study: bool) -> None:
        self._classifier, self._facts, self._is_study = classifier, facts, is_study
        name = "study" if is_study else "single"
        self._kept = gr.State(None, time_to_live=SESSION_SECONDS)
        self._message = gr.HTML(visible=False, js_on_load=BUTTONS_JS, elem_id=f"{name}-message", **PLAIN)
        self._result = gr.HTML(visible=False, js_on_load=VIEWER_JS, elem_id=f"{name}-result", **PLAIN)
        self._activations = gr.HTML(visible=False, elem_id=f"{name}-activations", **PLAIN)
        self._delivery = gr.HTML(visible="hidden", js_on_load=DELIVERY_JS, elem_id=f"{name}-delivery", **PLAIN)
        self.outputs: list[Any] = [self._kept, self._message, self._result, self._activations]
        """The components that `show` and `refuse` change."""
        self._connect()

    def show(self, files: Sequence[RadiographFile], *, is_gated: bool = True, note: str = "") -> Updates:
        """Reads and scores files, and shows the result, below a note if there is one."""
        study = read_study(self._classifier, files, is_gated=is_gated, is_numbered=self._is_study)
        if not study.views:
            failures = study.failures.items()
            reasons = [f"View {number}: {reason}" if self._is_study else reason for number, reason in failures]
            if study.is_any_refused:
                return self.refuse(note_html(note) + render("refusal.html", reasons=reasons), files)
            return self.refuse(note_html(note) + error_html(" ".join(reasons)))
        html = result_html(study, self._facts, self._classifier.operating_points)
        return {
            self._kept: Kept(tuple(files), study),
            self._message: gr.HTML(note_html(note), visible=bool(note)),
            self._result: gr.HTML(html, visible=True),
            self._activations: gr.HTML("", visible=False),
        }

    def refuse(self, message: str, files: Sequence[RadiographFile] = ()) -> Updates:
        """A message instead of results: earlier scores must not stand beside it."""
        return {
            self._kept: Kept(tuple(files), None) if files else None,
            self._message: gr.HTML(message, visible=True),
            **dict.fromkeys((self._result, self._activations), gr.HTML("", visible=False)),
        }

    def _connect(self) -> None:
        def score_anyway(kept: Kept | None) -> Updates:
            return self.show(kept.files, is_gated=False) if kept else self.refuse(error_html(EXPIRED))

        def show_activations(event: gr.EventData, kept: Kept | None) -> Updates:
            try:
                if kept is None or kept.study is None:
                    raise ExpiredError
                views = list(kept.study.views.values())
                html = activations_html(self._classifier, views[min(int(event.view), len(views) - 1)].file)
            except RadiographError as error:
                html = error_html(str(error))
            return {self._activations: gr.HTML(html, visible=True)}

        def make_report(event: gr.EventData, kept: Kept | None) -> Updates:
            if kept is None or kept.study is None:
                return {self._delivery: "", self._message: gr.HTML(error_html(EXPIRED), visible=True)}
            names = self._classifier.observations
            chosen = names[min(int(event.observation), len(names) - 1)]
            report = report_html(kept.study, self._facts, self._classifier.operating_points, chosen=chosen)
            file = delivery_html(report.encode(), "report.html", "text/html")
            return {self._delivery: file, self._message: gr.skip()}

        kept, shown = [self._kept], [self._message, self._result]
        for component in shown:
            component.override(score_anyway, kept, self.outputs, show_progress_on=shown, **PRIVATE)
        self._result.activations(show_activations, kept, [self._activations], show_progress="minimal", **PRIVATE)
        self._result.report(make_report, kept, [self._delivery, self._message], show_progress="hidden", **PRIVATE)
