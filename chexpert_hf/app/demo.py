"""The page: `build_demo` puts its tabs together around a model, `launch` serves it.

Uploads are read here and not kept: a file goes when Gradio's cache is emptied, images and maps live in the visitor's
session until `SESSION_SECONDS` after they were made, or for an hour (Gradio's choice) if the tab was closed. Names of
files reach the page only in the table of the visitor who gave them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from chexpert_hf.app.page.batch_tab import build_batch_tab
from chexpert_hf.app.page.html import about_html, header_html
from chexpert_hf.app.page.model_facts import facts_of
from chexpert_hf.app.page.style import CSS, FONTS
from chexpert_hf.app.page.tabs import build_single_tab, build_study_tab
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.launch import launch as serve
from chexpert_hf.app.server.temporary import KEEP_SECONDS
from chexpert_hf.scoring.classifier import CheXpertClassifier


def build_demo(classifier: CheXpertClassifier, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Builds the page around a model.

    Args:
        classifier: The model, or what stands in front of it.
        examples: Files to try, from `page.examples.find_examples`.

    Returns:
        The page; `launch` opens it.
    """
    facts = facts_of(classifier)
    with gr.Blocks(
        title="CheXpert scores and maps", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as demo:
        gr.HTML(header_html(facts, len(classifier.observations)), apply_default_css=False)
        with gr.Tabs(selected="single", overflow_behavior="wrap") as tabs:
            with gr.Tab("One image", id="single"):
                single = build_single_tab(classifier, facts, examples)
            with gr.Tab("A study", id="study"):
                build_study_tab(classifier, facts)
            with gr.Tab("Many images", id="batch"):
                build_batch_tab(classifier, tabs, single, "single", has_gate=classifier.has_gate)
            with gr.Tab("The model", id="about"):
                gr.HTML(about_html(facts, classifier.operating_points), apply_default_css=False)
        add_endpoints(classifier)
    return demo


def launch(
    demo: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
    on_stop: Callable[[], None] | None = None,
    prevent_thread_lock: bool = False,
) -> str:
    """Serves the page in its own look; see `serving.launch.launch`."""
    return serve(
        demo,
        host=host,
        port=port,
        auth=auth,
        mcp=mcp,
        on_stop=on_stop,
        prevent_thread_lock=prevent_thread_lock,
        theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS),
        css=CSS,
    )
