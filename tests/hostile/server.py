"""A server in a process of its own, as `chexpert-hf demo` starts it, page and endpoints."""

import sys

from chexpert_hf.app.demo import launch
from chexpert_hf.app.server import temporary
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits
from chexpert_hf.scoring.classifier import CheXpertClassifier


def main(model: str, runtime: str, precision: str, waiting: str, keep_seconds: str) -> None:
    alone = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision)
    classifier = SharedClassifier(alone, max_waiting=int(waiting))
    if float(keep_seconds):  # for the janitor alone: Gradio, which deletes what came whole, keeps the usual time
        temporary.KEEP_SECONDS, temporary.SWEEP_SECONDS = float(keep_seconds), 1
    launch(classifier, limits=Limits(waiting=int(waiting)))


if __name__ == "__main__":
    main(*sys.argv[1:])
