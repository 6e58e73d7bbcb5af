"""A server in a process of its own, as `chexpert-hf demo` starts it but without the page."""

import sys

import gradio as gr

from chexpert_hf.inference.classifier import CheXpertClassifier
from chexpert_hf.serving.endpoints import add_endpoints
from chexpert_hf.serving.launch import launch
from chexpert_hf.serving.scorer import SharedClassifier
from chexpert_hf.serving.shell import Limits


def main(model: str, runtime: str, precision: str, waiting: str) -> None:
    classifier = SharedClassifier(CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision))
    with gr.Blocks(analytics_enabled=False) as demo:
        add_endpoints(classifier)
    launch(demo, on_stop=classifier.close, limits=Limits(waiting=int(waiting)))


if __name__ == "__main__":
    main(*sys.argv[1:])
