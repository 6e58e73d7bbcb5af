"""What a tab shows of a radiograph or study: the viewer, its message line, feature activations, and the report.

The panel keeps in the visitor's session what was uploaded and what came of it, for the report, for the activations, and
for scoring all the same what the gate refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from uuid import uuid4

import gradio as gr

from chexpert_hf.app.page.activations import activations_html
from chexpert_hf.app.page.html import data_url, error_html, figures_line, note_html, refusal_html
from chexpert_hf.app.page.limits import SESSION_SECONDS
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.reading import ExpiredError, Study, read_study
from chexpert_hf.app.page.report import report_html
from chexpert_hf.app.page.result import result_html
from chexpert_hf.app.page.style import BUTTONS_JS, DELIVERY_JS, VIEWER_JS
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertClassifier

Updates = dict[Any, Any]
"""New values by component."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Of every handler: programs have endpoints of their own."""


@dataclass(frozen=True)
class Kept:
    """What a session holds: the uploads, and what was read from them, if anything was."""

    files: tuple[RadiographFile, ...]
    study: Study | None


@dataclass(frozen=True, eq=False)
class Panel:
    """The components, and the model that they show results of.

    Attributes:
        is_study: Whether it shows studies, whose views are numbered.
    """

    classifier: CheXpertClassifier
    facts: ModelFacts
    is_study: bool
    kept: gr.State = field(init=False)
    message: gr.HTML = field(init=False)
    result: gr.HTML = field(init=False)
    activations: gr.HTML = field(init=False)
    delivery: gr.HTML = field(init=False)

    def lay_out(self) -> None:
        """Makes the components where the layout stands."""
        name = "study" if self.is_study else "single"
        plain: dict[str, Any] = {"apply_default_css": False}
        parts = {
            "kept": gr.State(None, time_to_live=SESSION_SECONDS),
            "message": gr.HTML(visible=False, js_on_load=BUTTONS_JS, elem_id=f"{name}-message", **plain),
            "result": gr.HTML(visible=False, js_on_load=VIEWER_JS, elem_id=f"{name}-result", **plain),
            "activations": gr.HTML(visible=False, elem_id=f"{name}-activations", **plain),
            "delivery": gr.HTML(visible="hidden", js_on_load=DELIVERY_JS, elem_id=f"{name}-delivery", **plain),
        }
        for attribute, component in parts.items():
            object.__setattr__(self, attribute, component)

    @property
    def outputs(self) -> list[Any]:
        """What `show` and `refuse` change."""
        return [self.kept, self.message, self.result, self.activations]

    def show(self, files: Sequence[RadiographFile], *, is_gated: bool = True, note: str = "") -> Updates:
        """Reads and scores files, and shows what came of it, below a note if there is one."""
        study, failures = read_study(self.classifier, files, is_gated=is_gated)
        if study is None:
            reasons = [f"View {item.view}: {item.reason}" if self.is_study else item.reason for item in failures]
            if any(item.is_refused for item in failures):
                return self.refuse(note_html(note) + refusal_html(reasons), files)
            return self.refuse(note_html(note) + error_html(" ".join(reasons)))
        html = result_html(
            study,
            self.classifier.operating_points,
            figures_line(self.facts.figures),
            is_study=self.is_study,
            maps_note=self.facts.maps_note,
        )
        return {
            self.kept: Kept(tuple(files), study),
            self.message: gr.HTML(note_html(note), visible=bool(note)),
            self.result: gr.HTML(html, visible=True),
            self.activations: gr.HTML("", visible=False),
        }

    def refuse(self, message: str, files: Sequence[RadiographFile] = ()) -> Updates:
        """A message instead of results: scores of what came before must not stand beside it."""
        return {
            self.kept: Kept(tuple(files), None) if files else None,
            self.message: gr.HTML(message, visible=True),
            self.result: gr.HTML("", visible=False),
            self.activations: gr.HTML("", visible=False),
        }

    def connect(self) -> None:
        """Connects the viewer's buttons."""

        def score_anyway(kept: Kept | None) -> Updates:
            return self.show(kept.files, is_gated=False) if kept else self.refuse(error_html(EXPIRED))

        def show_activations(event: gr.EventData, kept: Kept | None) -> Updates:
            study = kept.study if kept else None
            try:
                if study is None:
                    raise ExpiredError(EXPIRED)
                views = list(study.views.values())
                reading = views[min(int(event.view), len(views) - 1)]
                return {self.activations: gr.HTML(activations_html(self.classifier, reading.file), visible=True)}
            except RadiographError as error:
                return {self.activations: gr.HTML(error_html(str(error)), visible=True)}

        def make_report(event: gr.EventData, kept: Kept | None) -> Updates:
            if kept is None or kept.study is None:
                return {self.delivery: "", self.message: gr.HTML(error_html(EXPIRED), visible=True)}
            names = self.classifier.observations
            report = report_html(
                kept.study,
                self.facts,
                self.classifier.operating_points,
                is_study=self.is_study,
                chosen=names[min(int(event.observation), len(names) - 1)],
            )
            return {self.delivery: delivery_html(report.encode(), "report.html", "text/html"), self.message: gr.skip()}

        for component in (self.message, self.result):
            component.override(
                score_anyway, [self.kept], self.outputs, show_progress_on=[self.message, self.result], **PRIVATE
            )
        self.result.activations(show_activations, [self.kept], [self.activations], show_progress="minimal", **PRIVATE)
        self.result.report(make_report, [self.kept], [self.delivery, self.message], show_progress="hidden", **PRIVATE)


def delivery_html(content: bytes, name: str, media_type: str) -> str:
    """A file for `assets/delivery.js`, with a number of its own so that the same file can be had twice."""
    encoded = data_url(content, media_type).split(",", 1)[1]
    return (
        f'<span data-id="{uuid4().hex}" data-name="{escape(name)}" data-type="{media_type}" '
        f'data-file="{encoded}"></span>'
    )
