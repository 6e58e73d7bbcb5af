"""The Space: the page of chexpert-hf around the model that MODEL_ID names, or the one in `model` beside this file."""

import os
from pathlib import Path

from chexpert_hf.demo import build_demo, launch
from chexpert_hf.inference.classifier import CheXpertClassifier

HERE = Path(__file__).parent


def main() -> None:
    classifier = CheXpertClassifier.from_pretrained(os.environ.get("MODEL_ID") or HERE / "model")
    launch(build_demo(classifier, sorted((HERE / "examples").glob("*.jpg"))), host="0.0.0.0")


if __name__ == "__main__":
    main()
