"""The app: `build_demo` builds the page around a model, `launch` serves it.

Uploads are deleted after `KEEP_SECONDS`. Images and maps stay in the visitor's session until `SESSION_SECONDS` after
they were made, or for an hour (Gradio's choice) if the page was closed. The server sends the name of a file only to
the visitor who uploaded it.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from chexpert_hf.app.model_facts import ModelFacts, facts_of
from chexpert_hf.app.page.html import FONTS, asset, render
from chexpert_hf.app.page.listing import Listing
from chexpert_hf.app.page.panel import PLAIN, Panel
from chexpert_hf.app.page.start import Start
from chexpert_hf.app.server import launch as server
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.temporary import KEEP_SECONDS
from chexpert_hf.scoring.classifier import CheXpertClassifier


def build_demo(
    classifier: CheXpertClassifier,
    examples: Sequence[Path] = (),
    facts: ModelFacts | None = None,
    *,
    has_api: bool = True,
) -> Page:
    """Build the page around a model; `examples` are files to try, from `page.start.find_examples`.

    `facts` are read from the model's folder if None. With `has_api` the page links to the HTTP API, served beside it.
    """
    facts = facts or facts_of(classifier)
    with Page(title="Chest radiograph scores and maps", delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        gr.HTML(render("header.html"), elem_id="header", **PLAIN)
        bar = gr.HTML("", js_on_load=asset("page.js"), elem_id="bar", **PLAIN)
        message = gr.HTML(visible=False, js_on_load=asset("actions.js"), elem_id="message", **PLAIN)
        start = Start(facts, len(classifier.observations), examples)
        with gr.Row(elem_id="workspace"):
            with gr.Column(elem_id="list-side"):
                listing = Listing(classifier)
            with gr.Column(elem_id="result-side"):
                panel = Panel(classifier, facts, bar, message)
        start.connect(bar, panel, listing)
        footer = render("footer.html", facts=facts, operating_points=classifier.operating_points, has_api=has_api)
        gr.HTML(footer, elem_id="footer", **PLAIN)
        add_endpoints(classifier)
    return demo


def appearance(*, reloads: bool = False) -> dict[str, Any]:
    """Return Gradio's options for the appearance of the page.

    With `reloads`, an open page reloads itself as soon as a new server answers at the same address.
    """
    head = f"<script>{asset('reload.js')}</script>" if reloads else None
    return {
        "theme": gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS),
        "css": asset("page.css"),
        "head": head,
    }


def launch(
    classifier: CheXpertClassifier, examples: Sequence[Path] = (), *, reloads: bool = False, **options: Any
) -> None:
    """Serve the page and the HTTP API until SIGINT or SIGTERM, then end the process with exit code 0.

    With `reloads`, an open page reloads itself as soon as a new server answers at the same address. `options`, such as
    `host` and `port`, are those of `server.launch.serving`.
    """
    facts = facts_of(classifier)
    build = partial(build_demo, classifier, examples, facts)
    server.launch(build, classifier, facts=facts, **appearance(reloads=reloads), **options)
