"""Makes the model that comes with the package, and what its card says of these data in particular.

    python -m train.model_in_the_box NIH-mini --work runs/nih_mini --output chexpert_hf/nih_mini

`NIH-mini` is a folder of 691 frontal radiographs of ChestX-ray14 in CheXpert's layout. The model is that of

    chexpert-hf train NIH-mini --recipe nih_mini --output runs/nih_mini/model

which this runs first, or continues. Further runs with other seeds say how much of a figure is chance; the model is the
one of seed 0, decided before any of them was evaluated. The validation split chooses nothing.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.data.chexpert import load_chexpert
from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.evaluation.delong import delong_interval
from chexpert_hf.evaluation.intervals import Estimate, wilson_interval
from chexpert_hf.evaluation.metrics import evaluation_labels, expected_calibration_error
from chexpert_hf.hub.card import rename_card
from chexpert_hf.inference.classifier import CheXpertClassifier
from chexpert_hf.inference.dataset import predict_dataset
from chexpert_hf.inference.localization.ground_truth import find_ground_truth
from chexpert_hf.inference.localization.localize import localize_dataset, rows_with_truth
from chexpert_hf.inference.localization.pointing import MODEL, UNTRAINED
from chexpert_hf.inference.model_files import CODE_FILES, write_checksums
from chexpert_hf.training.cross_fitting import fold_of_images
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import RECIPE_FILE, train

FEW = 5
"""Positive or negative studies below which an AUROC is not given."""

SHARED_PATIENTS = range(1280, 3957)
"""Numbers of the patients among whom both kinds of images were drawn; see the card."""

_BUNDLED = (
    f"It comes with the package chexpert-hf, which uses it where no model is named, and calls it `{DEFAULT_NAME}`. In "
    f"transformers alone, `{DEFAULT_NAME}` stands for the path of a copy of this folder."
)

_POINTERS = {
    MODEL: "the model",
    UNTRAINED: "an untrained network",
    "centre": "the centre",
    "right lung": "the right lung",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="NIH-mini.")
    parser.add_argument("--work", type=Path, required=True, help="Gets the runs.")
    parser.add_argument("--output", type=Path, required=True, help="Becomes the model folder of the package.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs in all, to show what chance does.")
    options = parser.parse_args()

    recipe = Recipe.load(Path("nih_mini"))
    model = _trained(recipe, options.data, options.work / "model")
    others = [
        _trained(recipe.override(seed=seed, calibration_folds=0), options.data, options.work / f"seed-{seed}")
        for seed in range(1, options.seeds)
    ]
    section = describe(options.data, model, others)
    pack(model, options.output, section)
    print(section)


def describe(data: Path, model: Path, others: Sequence[Path]) -> str:
    """The card's section on these data: confounding, chance, boxes."""
    recipe = Recipe.load(model / RECIPE_FILE)
    splits = load_chexpert(data, observations=recipe.observations)
    valid, classifier = splits["valid"], CheXpertClassifier.from_pretrained(model)
    probabilities = predict_dataset(classifier, valid)
    truth = evaluation_labels(np.asarray(valid["labels"][:]), recipe.blank_labels)
    lines = [
        "## On these radiographs in particular",
        "",
        "Weights, calibration, operating points and gate are those of one command (24 minutes on two cores; on the "
        "same kind of machine, with the same versions and number of threads, the same bits):",
        "",
        "```bash",
        "chexpert-hf train NIH-mini --recipe nih_mini --output MODEL",
        "```",
        "",
        "They were drawn in two samples: images without finding are of patients 1280 to 3956, pneumonia of 150 to "
        "12211, so that the patient's number alone tells them apart with an AUROC of .76, and with it the year, the "
        "scanner and the processing. AP views, taken of those who cannot stand, are more often pneumonia. Here is what "
        "is left within a view and among patients 1280 to 3956 (validation split; AUROC with DeLong's 95 % interval; "
        f"fewer than {FEW} positive or negative studies are not judged):",
        "",
        *_restricted_table(probabilities, truth, valid, recipe.observations),
        "",
        "In these data every radiograph is either No Finding or Pneumonia, and Lung Opacity is Pneumonia under another "
        "name, which is why it is not among the observations.",
        "",
        *(_chance(valid, truth, [model, *others], recipe.observations) if others else ()),
        *_calibration(probabilities, truth, classifier.model.config),
        "",
        *_boxes(data, splits, model, recipe),
        "",
        "## Where the radiographs are from",
        "",
        "ChestX-ray14 was provided by the NIH Clinical Center: https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "",
    ]
    return "\n".join(lines)


def pack(model: Path, output: Path, section: str) -> None:
    """Copies what the package ships, under the name of the bundled model.

    The code is linked: the folder is complete, and the code is in the repository once. Wheels hold it as files.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for name in (
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "reference.json",
        "evaluation.json",
        "gate.safetensors",
        RECIPE_FILE,
        "training_patients.json",
    ):
        shutil.copy(model / name, output)
    for name in CODE_FILES:
        (output / name).symlink_to(f"../{name}")
    card = (model / "README.md").read_text(encoding="utf-8")
    before, limits, after = card.partition("## Limits\n")
    card = rename_card(f"{before}{section}\n{limits}{after}", DEFAULT_NAME)
    heading, ways, rest = card.partition("## How to use\n")
    card = f"{heading}{ways}\n{_BUNDLED}\n{rest}"
    (output / "README.md").write_text(card, encoding="utf-8")
    write_checksums(output)


def _trained(recipe: Recipe, data: Path, folder: Path) -> Path:
    return train(recipe, data, folder, resume=(folder / RECIPE_FILE).exists()).folder


def _restricted_table(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: datasets.Dataset,
    observations: Sequence[str],
) -> list[str]:
    projections, patients = np.asarray(valid["projection"][:]), np.asarray(valid["patient"][:])
    numbers = np.array([int(patient.removeprefix("patient")) for patient in patients])
    groups: Mapping[str, NDArray[np.bool_]] = {
        "all": np.ones(len(truth), dtype=bool),
        "AP": projections == "AP",
        "PA": projections == "PA",
        "patients 1280 to 3956": np.isin(numbers, SHARED_PATIENTS),
    }
    rows = [f"| observation | {' | '.join(f'{name} (n = {rows.sum()})' for name, rows in groups.items())} |"]
    rows.append("| --- |" + " --- |" * len(groups))
    for column, name in enumerate(observations):
        cells = [_auroc(probabilities[rows, column], truth[rows, column], patients[rows]) for rows in groups.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _auroc(probabilities: NDArray[np.floating], truth: NDArray[np.floating], patients: NDArray[np.str_]) -> str:
    positive, negative = int((truth == 1).sum()), int((truth == 0).sum())
    if min(positive, negative) < FEW:
        return f"not judged ({positive} positive)"
    return f"{_interval(delong_interval(probabilities, truth, patients.tolist()))}, {positive} positive"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _chance(
    valid: datasets.Dataset, truth: NDArray[np.floating], models: Sequence[Path], observations: Sequence[str]
) -> list[str]:
    judged = [
        column for column in range(len(observations)) if min((truth[:, column] == k).sum() for k in (0, 1)) >= FEW
    ]
    rows = [
        f"The same recipe with {len(models)} seeds; this model is the first, as was decided beforehand:",
        "",
        f"| seed | {' | '.join(observations[column] for column in judged)} | mean |",
        "| --- |" + " ---: |" * (len(judged) + 1),
    ]
    for seed, model in enumerate(models):
        probabilities = predict_dataset(CheXpertClassifier.from_pretrained(model), valid)
        values = [delong_interval(probabilities[:, column], truth[:, column]).value for column in judged]
        rows.append(f"| {seed} | {' | '.join(f'{value:.3f}' for value in values)} | {np.mean(values):.3f} |")
    return [*rows, ""]


def _calibration(probabilities: NDArray[np.floating], truth: NDArray[np.floating], config: CheXpertConfig) -> list[str]:
    """What the calibration, fitted on the training patients, is worth on the others."""
    raw = uncalibrated(probabilities, config)
    rows = []
    for column, name in enumerate(config.observations):
        scores = raw[:, column], probabilities[:, column]
        means = " | ".join(f"{values.mean():.2f}" for values in (truth[:, column], *scores))
        errors = " | ".join(f"{expected_calibration_error(values, truth[:, column]):.2f}" for values in scores)
        rows.append(f"| {name} | {means} | {errors} |")
    return [
        "On the validation split, whose patients calibrated nothing (pneumonia is rarer there than in the training "
        "split, so that it stays too probable):",
        "",
        "| observation | positive | mean raw probability | calibrated | calibration error, raw | calibrated |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def uncalibrated(probabilities: NDArray[np.floating], config: CheXpertConfig) -> NDArray[np.floating]:
    """The probabilities `(num_images, num_labels)` that the model would give without its lines of Platt scaling."""
    record = config.calibration or {}
    slopes = np.array([record["slopes"].get(name, 1.0) for name in config.observations])
    intercepts = np.array([record["intercepts"].get(name, 0.0) for name in config.observations])
    return expit((logit(probabilities) - intercepts) / slopes)


def _boxes(data: Path, splits: datasets.DatasetDict, model: Path, recipe: Recipe) -> list[str]:
    """Hit rates on the radiologists' boxes, by models that did not see the patient."""
    truth = find_ground_truth(data)
    part = fold_of_images(splits["train"], recipe.calibration_folds, recipe.blank_labels)
    pieces = [(model, splits["valid"])]
    for fold in range(recipe.calibration_folds):
        pieces.append((model / "folds" / f"fold-{fold + 1}", splits["train"].select(np.flatnonzero(part == fold))))
    hits = dict.fromkeys(_POINTERS, 0)
    count = 0
    for folder, split in pieces:
        classifier = CheXpertClassifier.from_pretrained(folder)
        if not rows_with_truth(split, truth, classifier.observations):
            continue
        for located in localize_dataset(classifier, split, truth).located:
            count += 1
            for pointer in hits:
                hits[pointer] += bool(located.scores[pointer].hit)
    shares = [
        f"{words} {hits[name]} ({_interval(wilson_interval(hits[name], count))})" for name, words in _POINTERS.items()
    ]
    best_baseline = max(hits[name] for name in _POINTERS if name != MODEL)
    text = (
        f"On {count} boxes that radiologists drew, the map's maximum lies in the box for: {'; '.join(shares)}. Each "
        "image was judged by a model that had not seen its patient."
    )
    if hits[MODEL] <= best_baseline:
        text += " **The maps find no more than a guess that knows nothing of the image.**"
    return [text]


if __name__ == "__main__":
    main()
