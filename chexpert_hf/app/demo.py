"""The page: `build_demo` lays out its tabs around a model, `launch` serves it.

Uploads are deleted when Gradio's cache is emptied. Images and maps live in the visitor's session until
`SESSION_SECONDS` after they were made, or for an hour (Gradio's choice) if the tab was closed. Names of files reach the
page only in the table of the visitor who gave them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from chexpert_hf.app.page.batch_tab import build_batch_tab
from chexpert_hf.app.page.html import CSS, FONTS, RELOAD_JS, about_html, header_html
from chexpert_hf.app.page.model_facts import ModelFacts, facts_of
from chexpert_hf.app.page.tabs import build_single_tab, build_study_tab
from chexpert_hf.app.server import launch as server
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.temporary import KEEP_SECONDS
from chexpert_hf.scoring.classifier import CheXpertClassifier


def build_demo(classifier: CheXpertClassifier, examples: Sequence[Path] = (), facts: ModelFacts | None = None) -> Page:
    """Builds the page around a model; `examples` are files to try, from `page.examples.find_examples`."""
    facts = facts or facts_of(classifier)
    with Page(title="CheXpert scores and maps", delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        gr.HTML(header_html(facts, len(classifier.observations)), apply_default_css=False)
        with gr.Tabs(selected="single", overflow_behavior="wrap") as tabs:
            with gr.Tab("One image", id="single"):
                single = build_single_tab(classifier, facts, examples)
            with gr.Tab("A study", id="study"):
                build_study_tab(classifier, facts)
            with gr.Tab("Many images", id="batch"):
                build_batch_tab(classifier, tabs, single, "single")
            with gr.Tab("The model", id="about"):
                gr.HTML(about_html(facts, classifier.operating_points), apply_default_css=False)
        add_endpoints(classifier)
    return demo


def look(*, reloads: bool = False) -> dict[str, Any]:
    """The options of Gradio that give the page its look; with `reloads` it reloads once another server answers."""
    head = f"<script>{RELOAD_JS}</script>" if reloads else None
    return {"theme": gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS), "css": CSS, "head": head}


def launch(
    classifier: CheXpertClassifier, examples: Sequence[Path] = (), *, reloads: bool = False, **options: Any
) -> None:
    """Serves the page and the HTTP API until the process is told to stop.

    `reloads` is that of `look`; options as of `server.launch.serving`.
    """
    build, facts = partial(build_demo, classifier, examples), facts_of(classifier)
    server.launch(partial(build, facts), classifier, facts=facts, **look(reloads=reloads), **options)
