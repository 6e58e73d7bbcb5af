"""The page: one radiograph in, all scores and a map of each observation out.

Uploads are read here and not kept: the file goes when Gradio's cache is emptied, the image and its maps live in the
visitor's session until `SESSION_SECONDS` after the last map was drawn, or for an hour (Gradio's choice) if the tab was
closed. Names of files never reach the page.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import gradio as gr

from chexpert_hf.data.radiograph import RadiographError
from chexpert_hf.errors import InputError
from chexpert_hf.inference.classifier import CheXpertClassifier
from chexpert_hf.page.html import Order, definitions_html, examples_html, scores_html
from chexpert_hf.page.reading import Reading, read
from chexpert_hf.page.style import CSS, FONTS
from chexpert_hf.page.text import DEFINITIONS, DISCLAIMER, EXPIRED, FORMATS, describe_map

SESSION_SECONDS = 1800
CACHE_SECONDS = 600
MAX_UPLOAD = "100mb"

_SELECT_BUTTON = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-index]");
  if (button) trigger("select", {index: Number(button.dataset.index), value: null});
});
"""

Updates = dict[Any, Any]
"""New values by component."""


@dataclass(frozen=True, eq=False)
class _Page:
    """The components that change."""

    reading: gr.State
    file: gr.File
    examples: gr.HTML
    message: gr.HTML
    results: gr.Row
    order: gr.Radio
    scores: gr.HTML
    radiograph: gr.Image
    map: gr.Image
    observation: gr.Dropdown
    opacity: gr.Slider
    map_text: gr.HTML


def build_demo(classifier: CheXpertClassifier, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Builds the page around a model.

    Args:
        classifier: The model.
        examples: Files of synthetic radiographs to try; the page calls them synthetic.

    Returns:
        The page; `launch` opens it.
    """
    with gr.Blocks(
        title="CheXpert scores and maps", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)
    ) as demo:
        page = _lay_out(classifier, examples)
        _connect_files(page, classifier, examples)
        _connect_choices(page, classifier)
    return demo


def launch(
    demo: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None, prevent_thread_lock: bool = False
) -> str:
    """Serves the page until it is interrupted, and prints its address.

    Args:
        demo: From `build_demo`.
        host: Address to listen at. The page has no password, so any other than this machine's own gets a warning.
        port: The first free one from 7860 on if None.
        prevent_thread_lock: Return at once and serve in the background.

    Returns:
        The address of the page.

    Raises:
        InputError: If the port is taken or the address is not this machine's.
    """
    if not _is_loopback(host):
        print(f"Warning: at {host} the page is open, without a password, to all who can reach it.", file=sys.stderr)
    try:
        _, url, _ = demo.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            show_error=True,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS),
            css=CSS,
        )
    except OSError as error:
        raise InputError(f"The page cannot be served at {host}, port {port or 'from 7860 on'}: {error}") from error
    print(f"The page is at {url}", flush=True)
    if not prevent_thread_lock:
        demo.block_thread()
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lay_out(classifier: CheXpertClassifier, examples: Sequence[Path]) -> _Page:
    reading = gr.State(None, time_to_live=SESSION_SECONDS)
    gr.HTML(_header(classifier), apply_default_css=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            # No file types: Gradio would drop the many DICOM files without a suffix. The reader looks inside.
            file = gr.File(label="Radiograph", type="binary", height=140, elem_id="file")
            gr.HTML(f'<p class="formats">{FORMATS}</p>', apply_default_css=False)
        with gr.Column(scale=2, min_width=320, visible=bool(examples)):
            thumbnails = gr.HTML(
                examples_html(examples), js_on_load=_SELECT_BUTTON, apply_default_css=False, elem_id="examples"
            )
    message = gr.HTML(visible=False, apply_default_css=False)
    with gr.Row(visible=False) as results:
        with gr.Column(scale=1, min_width=320):
            gr.HTML(f'<p class="disclaimer">{escape(DISCLAIMER)}</p>', apply_default_css=False)
            order = gr.Radio(
                [item.value for item in Order],
                value=Order.BY_PROBABILITY.value,
                label="Order of the observations",
                show_label=False,
                container=False,
                elem_id="order",
            )
            scores = gr.HTML(js_on_load=_SELECT_BUTTON, apply_default_css=False, elem_id="scores")
        with gr.Column(scale=1, min_width=320):
            with gr.Row():
                radiograph = _image("Radiograph", "radiograph", "The radiograph as it was read")
                overlay = _image("Map", "map", "The radiograph under a map")
            with gr.Row():
                observation = gr.Dropdown(
                    list(classifier.observations),
                    label="Map of",
                    filterable=False,
                    min_width=240,
                    elem_id="observation",
                )
                opacity = gr.Slider(
                    0, 1, value=0.5, step=0.05, label="Opacity of the map", min_width=240, elem_id="opacity"
                )
            map_text = gr.HTML(apply_default_css=False, elem_id="map-text")
    with gr.Accordion("What the model judges", open=True):
        gr.HTML(_about(classifier), apply_default_css=False)
    return _Page(
        reading=reading,
        file=file,
        examples=thumbnails,
        message=message,
        results=results,
        order=order,
        scores=scores,
        radiograph=radiograph,
        map=overlay,
        observation=observation,
        opacity=opacity,
        map_text=map_text,
    )


def _image(label: str, elem_id: str, alt_text: str) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        buttons=["fullscreen", "download"],
        min_width=220,
        elem_id=elem_id,
        alt_text=alt_text,
    )


def _header(classifier: CheXpertClassifier) -> str:
    count = len(classifier.observations)
    return (
        '<header class="page-header"><h1>CheXpert scores and maps</h1>'
        f"<p>A DenseNet judges one chest radiograph for {count} observation{'s' if count > 1 else ''} at once, and "
        "shows where in the image each score comes from. Radiographs are deleted within an hour.</p></header>"
    )


def _about(classifier: CheXpertClassifier) -> str:
    size = classifier.processor.size
    num_parameters = sum(parameter.numel() for parameter in classifier.model.parameters())
    return (
        f"{definitions_html(classifier.observations)}"
        f'<p class="facts">The model is a DenseNet with {num_parameters:,} parameters that sees the radiograph at '
        f"{size['height']} x {size['width']} pixels. Scores and maps come from one pass through it.</p>"
    )


def _connect_files(page: _Page, classifier: CheXpertClassifier, examples: Sequence[Path]) -> None:
    def show_file(data: bytes | None, order: str, opacity: float) -> Updates:
        if data is None:
            return {page.file: None}
        try:
            reading = read(classifier, data)
        except RadiographError as error:
            return _refuse(page, str(error))
        return _show(page, classifier, reading, order, opacity)

    def show_example(event: gr.SelectData, order: str, opacity: float) -> Updates:
        return show_file(examples[int(event.index)].read_bytes(), order, opacity)

    outputs = [
        page.reading,
        page.file,
        page.message,
        page.results,
        page.scores,
        page.radiograph,
        page.map,
        page.observation,
        page.map_text,
    ]
    settings = [page.order, page.opacity]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [page.file]}
    page.file.upload(show_file, [page.file, *settings], outputs, **private)
    page.examples.select(show_example, settings, outputs, **private)


def _connect_choices(page: _Page, classifier: CheXpertClassifier) -> None:
    def show_map(reading: Reading | None, observation: str, opacity: float, order: str) -> Updates:
        if reading is None:
            return _refuse(page, EXPIRED)
        return _draw(page, classifier, reading, observation, order, opacity)

    def show_row(event: gr.SelectData, reading: Reading | None, opacity: float, order: str) -> Updates:
        observation = classifier.observations[int(event.index)]
        return {page.observation: observation, **show_map(reading, observation, opacity, order)}

    def sort_rows(reading: Reading | None, observation: str, order: str) -> Updates:
        if reading is None:
            return _refuse(page, EXPIRED)
        return {page.scores: _scores(classifier, reading, observation, order)}

    expired = [page.reading, page.file, page.message, page.results]
    drawn = [page.map, page.map_text, page.scores, *expired]
    choices = [page.reading, page.observation, page.opacity, page.order]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
    page.observation.input(show_map, choices, drawn, **private)
    page.opacity.input(show_map, choices, drawn, **private)
    page.scores.select(show_row, [page.reading, page.opacity, page.order], [page.observation, *drawn], **private)
    page.order.input(sort_rows, [page.reading, page.observation, page.order], [page.scores, *expired], **private)


def _show(page: _Page, classifier: CheXpertClassifier, reading: Reading, order: str, opacity: float) -> Updates:
    observation = reading.most_probable
    return {
        page.file: None,
        page.message: gr.HTML(visible=False),
        page.results: gr.Row(visible=True),
        page.radiograph: reading.image,
        page.observation: observation,
        **_draw(page, classifier, reading, observation, order, opacity),
    }


def _refuse(page: _Page, reason: str) -> Updates:
    """One line instead of results: scores of an earlier radiograph must not stand beside the refusal of this one."""
    return {
        page.reading: None,
        page.file: None,
        page.message: gr.HTML(f'<p class="error-line" role="alert">{escape(reason)}</p>', visible=True),
        page.results: gr.Row(visible=False),
    }


def _draw(
    page: _Page, classifier: CheXpertClassifier, reading: Reading, observation: str, order: str, opacity: float
) -> Updates:
    text = describe_map(observation, reading.maps.peak(observation))
    definition = DEFINITIONS.get(observation, "")
    return {
        page.reading: reading,  # set again, which is what prolongs its life
        page.map: gr.Image(
            reading.overlay(observation, opacity),
            label=f"Map of {observation}",
            alt_text=f"The radiograph under the map of {observation}. {text}",
        ),
        page.map_text: (
            f'<p class="map-text" aria-live="polite"><strong>{escape(observation)}</strong>. {escape(definition)} '
            f"{escape(text)}</p>"
        ),
        page.scores: _scores(classifier, reading, observation, order),
    }


def _scores(classifier: CheXpertClassifier, reading: Reading, observation: str, order: str) -> str:
    return scores_html(reading.prediction, classifier.operating_points, Order(order), observation)
