"""The result of a radiograph or study: viewer, scores, report and feature activations.

The visitor's session holds the uploads and the study read from them, for the report, for the activations, and for
scoring radiographs that the gate refused.
"""

from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import gradio as gr

from chexpert_hf.app.model_facts import ModelFacts
from chexpert_hf.app.page.html import asset, delivery_html, message_html, render
from chexpert_hf.app.page.reading import Item, Study, read
from chexpert_hf.app.page.result import activations_html, detail_of, report_html, result_html, result_script
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertClassifier

SESSION_SECONDS = 1800  # for which scores and images stay in a visitor's session after they were made

Updates = dict[Any, Any]
"""New values for Gradio's components, by component."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Option of every event handler that hides it from programs, which have endpoints of their own."""

QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
"""Options of event handlers that answer at once."""

PLAIN: dict[str, Any] = {"apply_default_css": False}
"""Option of every `gr.HTML`: the page has its own style sheet."""


def bar_html(title: str = "", *, has_back: bool = False, place: tuple[int, int] | None = None) -> str:
    """Return the bar above results as HTML; without a title the browser fills in the name of the uploaded file.

    With `has_back`, the bar has a button back to the list; `place` is the (number, count) of the open row in the list.
    """
    return render("bar.html", id=uuid4().hex, title=title, has_back=has_back, place=place)


@dataclass(frozen=True)
class ResultState:
    """A visitor's study, before or after its views are scored, and the bar (title and buttons) above its result."""

    study: Study
    bar: str | None = None  # HTML of the bar; None if the browser fills in its title, an upload's name


class Panel:
    """The Gradio components that show the scores and maps of one study, and the handlers of their events.

    `bar` and `message` are components above them, which the handlers change, too.
    """

    def __init__(self, classifier: CheXpertClassifier, facts: ModelFacts, bar: gr.HTML, message: gr.HTML) -> None:
        self._classifier, self._facts, self._bar, self._message = classifier, facts, bar, message
        self._state = gr.State(None, time_to_live=SESSION_SECONDS)
        script = result_script()
        self._result = gr.HTML(visible=False, js_on_load=script, elem_id="result", detail=None, **PLAIN)
        self._activations = gr.HTML(visible=False, elem_id="activations", **PLAIN)
        self.delivery = gr.HTML(visible="hidden", js_on_load=asset("delivery.js"), elem_id="delivery", **PLAIN)
        """Downloads what `delivery_html` made."""
        self.outputs: list[Any] = [self._state, bar, message, self._result, self._activations]
        """The components that `show` and `cleared` change."""
        self.busy: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": [bar], **PRIVATE}
        """Options of events that make a result; a spinner over it would take computing time from the model."""
        self._connect()

    def show(self, state: ResultState, *, is_gated: bool = True, chosen: str | None = None, note: str = "") -> Updates:
        """Read and score the views of `state.study`; return updates that show the result, or why there is none.

        With `is_gated`, the gate may refuse images. The viewer opens on the `chosen` observation; `note` is shown above
        the result.
        """
        study = Study([read(self._classifier, item, is_gated=is_gated) for item in state.study.items])
        state = replace(state, study=study)
        if not study.views:
            can_score, is_of_file = any(item.is_refused for item in study.items), state.bar is None
            reasons = study.missing(is_named=True)
            text = message_html(*reasons, note=note, is_of_file=is_of_file, can_score=can_score)
            return self.cleared(state.bar or "", text, state if can_score else None)
        html = result_html(study, self._facts, self._classifier.operating_points, chosen=chosen)
        return {
            **self.cleared(state.bar or bar_html(), message_html(note=note), state),
            self._result: gr.HTML(html, visible=True),
        }

    def cleared(self, bar: str = "", message: str = "", state: ResultState | None = None) -> Updates:
        """Return updates that remove the result, so that no earlier scores stay beside the new message.

        `bar` and `message` are HTML to show instead. `state` is the session's new state; None forgets the uploads.
        """
        return {
            self._state: state,
            self._message: gr.HTML(message, visible=bool(message)),
            **dict.fromkeys((self._result, self._activations), gr.HTML("", visible=False)),
            self._bar: bar,
        }

    def explain(self, reason: str) -> Updates:
        """Return an update that shows an error message above the result."""
        return {self._message: gr.HTML(message_html(reason), visible=True)}

    def _connect(self) -> None:
        def score_anyway(state: ResultState | None) -> Updates:
            if state is None:
                return self.cleared(message=message_html(EXPIRED))
            return self.show(state, is_gated=False)

        def view_of(event: gr.EventData, state: ResultState | None) -> Item:
            if state is None or not state.study.views:
                raise RadiographError(EXPIRED)
            scored = [item for item in state.study.items if item.prediction]
            return scored[min(int(event.view), len(scored) - 1)]

        def show_detail(event: gr.EventData, state: ResultState | None) -> Updates:
            try:
                detail = {"id": event.id, "view": event.view, "image": detail_of(view_of(event, state))}
            except RadiographError as error:
                return self.explain(str(error))
            return {self._result: gr.HTML(detail=detail)}

        def show_activations(event: gr.EventData, state: ResultState | None) -> Updates:
            try:
                html = activations_html(self._classifier, view_of(event, state).path)
            except RadiographError as error:
                html = message_html(str(error))
            return {self._activations: gr.HTML(html, visible=True)}

        def make_report(event: gr.EventData, state: ResultState | None) -> Updates:
            if state is None or not state.study.views:
                return {self.delivery: "", self._message: gr.HTML(message_html(EXPIRED), visible=True)}
            names = self._classifier.observations
            chosen = names[min(int(event.observation), len(names) - 1)]
            report = report_html(state.study, self._facts, self._classifier.operating_points, chosen=chosen)
            file = delivery_html(report.encode(), "report.html", "text/html")
            return {self.delivery: file, self._message: gr.skip()}

        state = [self._state]
        for component in (self._message, self._result):
            component.override(score_anyway, state, self.outputs, **self.busy)
        self._result.detail(show_detail, state, [self._result, self._message], **QUIET)
        self._result.activations(show_activations, state, [self._activations], show_progress="minimal", **PRIVATE)
        self._result.report(make_report, state, [self.delivery, self._message], **QUIET)
