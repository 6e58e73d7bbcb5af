"""Everything once, without data or network: phantoms, training, evaluation, overlays, a model folder."""

import os
from collections.abc import Callable
from pathlib import Path

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.evaluation.report.report import as_table
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.files import require_empty
from chexpert_hf.folders.scoring import FileResult, write_overlays
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import train

NUM_STUDIES = 2500
UNSEEN_STUDIES = 300

RECIPE = Recipe(
    init="random",
    # Three blocks: a last feature map of 8 x 8, fine enough for maps, and an epoch in eight seconds on two cores.
    architecture={"growth_rate": 16, "block_config": [2, 4, 8], "num_init_features": 32, "bn_size": 2},
    num_channels=1,
    image_size=128,
    policy="u-ignore",
    frontal_only=True,
    epochs=12,
    batch_size=32,
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.01,
    seed=0,
)


def run_quickstart(output: Path, say: Callable[[str], None]) -> Path:
    """Runs all steps, reports each, and returns the model folder.

    Args:
        output: Gets `phantoms`, `unseen`, `model` and `overlays`.
        say: Takes lines for the user.

    Raises:
        FolderError: If `output` is not empty.
    """
    require_empty(output, "choose another with --output")
    say(f"1. Synthetic radiographs: {NUM_STUDIES} studies for training, {UNSEEN_STUDIES} others for evaluation.")
    workers, side = os.cpu_count() or 1, RECIPE.image_size
    write_phantoms(output / "phantoms", num_studies=NUM_STUDIES, seed=0, workers=workers)
    write_phantoms(output / "unseen", num_studies=UNSEEN_STUDIES, seed=1, valid_fraction=0.999, workers=workers)

    say(f"2. Training a small DenseNet from random weights for {RECIPE.epochs} epochs at {side} x {side} pixels.")
    model = train(RECIPE, output / "phantoms", output / "model", say=say).folder

    say("3. Evaluation on phantoms that took no part in training or in choosing the checkpoint.")
    classifier = CheXpertClassifier.from_pretrained(model)
    unseen = load_dataset(output / "unseen", splits=["valid"], frontal_only=True)["valid"]
    say(as_table(evaluate_dataset(classifier, unseen)))

    positives = [sum(value == 1 for value in labels) for labels in unseen["labels"][:]]
    path = Path(image_files(unseen)[positives.index(max(positives))])
    write_overlays(
        FileResult(path, classifier.predict(path, saliency=True)), output / "overlays", classifier.observations
    )
    say(f"4. Overlays of one radiograph, one per observation: {output / 'overlays'}.")
    say(
        f"5. The model folder {model} is complete: weights, code, card (README.md), curve.png. Use it with\n"
        f"     chexpert-hf predict RADIOGRAPHS --model {model} --output scores.csv\n"
        f"     chexpert-hf demo --model {model}\n"
        "   It learned from drawings: its scores of real radiographs mean nothing."
    )
    return model
