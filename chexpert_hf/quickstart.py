"""Run every step once, without data or network: draw phantoms, train, evaluate, write overlays and a model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.files import new_folder
from chexpert_hf.folders.scoring import FileResult, write_overlays
from chexpert_hf.machine import num_processors
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe, recipes_folder
from chexpert_hf.training.run import train

NUM_STUDIES = 2500
UNSEEN_STUDIES = 300
RECIPE = recipes_folder() / "quickstart.yaml"
DRAWN, TRAINED = 0.2, 0.97
"""Fractions of the total time, measured on two cores, that have passed once the radiographs are drawn and once the
model is trained."""

Progress = Callable[[str, float], None]
"""Called with the name of the current stage and the fraction of the time that has passed, in [0, 1]."""


def run_quickstart(output: Path, progress: Progress) -> Evaluation:
    """Train and evaluate a small model on phantoms; write everything into the new folder `output`.

    `output` holds `phantoms` (training data), `unseen` (evaluation data), `model` and `overlays`, and appears once all
    are complete. Returns the model's evaluation on `unseen`. Raises FolderError if `output` is not empty.
    """
    recipe = Recipe.load(RECIPE)
    with new_folder(output) as folder:
        _draw(folder, progress)
        watch = _TrainingShare(progress)
        model = train(recipe, folder / "phantoms", folder / "model", say=lambda _: None, progress=watch).folder
        progress("Evaluating", TRAINED)
        classifier = CheXpertClassifier.from_pretrained(model)
        unseen = load_dataset(folder / "unseen", splits=["valid"], frontal_only=True)["valid"]
        evaluation = evaluate_dataset(classifier, unseen)
        _write_overlays(classifier, unseen, folder / "overlays")
    return evaluation


def _draw(folder: Path, progress: Progress) -> None:
    workers, both = num_processors(), NUM_STUDIES + UNSEEN_STUDIES

    def report(done: int) -> None:
        progress("Drawing radiographs", DRAWN * done / both)

    report(0)
    write_phantoms(folder / "phantoms", num_studies=NUM_STUDIES, seed=0, workers=workers, progress=report)
    settings: dict[str, Any] = {"seed": 1, "valid_fraction": 0.999, "workers": workers}
    further = lambda done: report(NUM_STUDIES + done)  # noqa: E731
    write_phantoms(folder / "unseen", num_studies=UNSEEN_STUDIES, **settings, progress=further)


class _TrainingShare(TrainerCallback):
    """Reports the progress of training as a fraction of the whole quickstart's time."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("Training", DRAWN + (TRAINED - DRAWN) * state.global_step / state.max_steps)


def _write_overlays(classifier: CheXpertClassifier, data: datasets.Dataset, folder: Path) -> None:
    """Write one saliency overlay per observation. They all show the radiograph that has the most positive labels."""
    positives = [sum(value == 1 for value in labels) for labels in data["labels"][:]]
    path = Path(image_files(data)[positives.index(max(positives))])
    write_overlays(FileResult(path, classifier.predict(path, saliency=True)), folder, classifier.observations)
