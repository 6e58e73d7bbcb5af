"""Runs models on a split and gathers the content of a report: metrics, subgroups, comparisons, pictures of errors."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from chexpert_hf.configuration_chexpert import DEFAULT_OPERATING_POINT, CheXpertConfig
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.reference import Reference
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.assessment import Groups, ModelScores, assess
from chexpert_hf.evaluation.calibration.records import record_of
from chexpert_hf.evaluation.metrics import Evaluation, FloatArray, evaluate_probabilities, per_study, split_labels
from chexpert_hf.evaluation.patients import (
    CALIBRATION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    overlapping_patients,
    seen_patients,
)
from chexpert_hf.evaluation.published import is_chexpert_valid
from chexpert_hf.evaluation.reference_standard import OWN_LABELS, SECOND_STANDARD, assess_reference
from chexpert_hf.evaluation.report.report import ReportData
from chexpert_hf.evaluation.sanity.checks import dataset_sanity
from chexpert_hf.evaluation.sanity.sanity_report import as_dictionary
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.folders.readers import Workers
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.saliency import overlay_of

AGE_BANDS = ((0, 39, "0 to 39"), (40, 59, "40 to 59"), (60, 79, "60 to 79"), (80, 200, "80 and older"))
SUPPORT_DEVICES = "Support Devices"
_THUMBNAIL_SIDE = 320


def evaluate_dataset(classifier: CheXpertClassifier, dataset: datasets.Dataset) -> Evaluation:
    """Score the images of a split, and compute AUROCs per study.

    The split must be labelled with the model's observations, in the model's order.
    """
    return evaluate_predictions(predict_dataset(classifier, dataset), dataset, classifier.model.config)


def evaluate_predictions(
    probabilities: FloatArray,
    dataset: datasets.Dataset,
    config: CheXpertConfig,
    aggregation: str = "maximum",
    observations: Sequence[str] | None = None,
) -> Evaluation:
    """Compute the AUROCs per study of probabilities `(num_views, num_labels)` for the images of a split.

    `observations` names the columns of the probabilities and of the split's labels; if None, `config.observations` are
    the columns. `config.blank_labels` says whether a blank label counts as negative or as unknown.
    """
    known, labels = config.labels.among(observations or config.observations), split_labels(dataset, config.blank_labels)
    return evaluate_probabilities(probabilities, labels, dataset["study"][:], known.names, known.headline, aggregation)


def shared_observations(classifiers: Mapping[str, CheXpertClassifier]) -> tuple[str, ...]:
    """Return the observations that all models score, in the order of the first; raise InputError if there are none."""
    first, *others = classifiers.values()
    shared = tuple(name for name in first.observations if all(name in other.observations for other in others))
    if not shared:
        raise InputError(f"No observation is scored by each of {', '.join(classifiers)}: evaluate them one by one.")
    return shared


def assess_dataset(
    classifiers: Mapping[str, CheXpertClassifier],
    dataset: datasets.Dataset,
    *,
    title: str,
    aggregation: str = "maximum",
    replicates: int = 1000,
    num_thumbnails: int = 0,
    num_sanity: int = 0,
    warnings: Sequence[str] = (),
    labels_name: str = OWN_LABELS,
    reference: Reference | None = None,
    progress: Callable[[int], None] | None = None,
    workers: Workers = 0,
) -> ReportData:
    """Score a split with each model, and compute the content of a report.

    Args:
        classifiers: Name -> model. The report is on the observations that all models score, in the first one's order.
        dataset: A split from `load_dataset` with the labels of these observations.
        title: Names the data and the split.
        aggregation: How the views of a study are combined; one of `metrics.AGGREGATIONS`.
        replicates: Number of bootstrap resamples of patients.
        num_thumbnails: How many of the first model's worst false positives to show for each observation, and as many
            false negatives.
        num_sanity: Number of radiographs on which each model's maps are checked; 0 (no check), or at least 2.
        warnings: Shown at the top of the report.
        labels_name: Who set the labels of the data set, such as "text-mined labels".
        reference: A second reference standard for images of this split, from `read_reference`.
        progress: Called with 1 after each image that a model scored.
        workers: Processes that read images, as in `folders.readers.read_prepared`.

    Raises:
        InputError: If the models share no observation, no image is in the reference, or an image cannot be read; with
            `num_sanity`, also if a model is an ensemble, or the models score different observations.
    """
    first = next(iter(classifiers.values()))
    labels, observations = split_labels(dataset, first.model.config.blank_labels), shared_observations(classifiers)
    studies, patients, paths = dataset["study"][:], dataset["patient"][:], dataset["path"][:]
    if num_sanity and any(model.observations != observations for model in classifiers.values()):
        raise InputError("The models score different observations: check their maps one by one, with `sanity`.")
    sanity = {name: dataset_sanity(model, dataset, num_sanity) for name, model in classifiers.items() if num_sanity}
    probabilities = {
        name: predict_dataset(model, dataset, progress, workers=workers, observations=observations)
        for name, model in classifiers.items()
    }
    options: dict[str, Any] = {"aggregation": aggregation, "replicates": replicates}
    groups, scores = subgroup_columns(dataset, labels, observations), _model_scores(classifiers, probabilities)
    headline = first.labels.among(observations).headline
    metrics = assess(scores, labels, studies, patients, observations, groups, headline=headline, **options)
    metrics |= {"reference_standard": labels_name, "blank_labels": first.model.config.blank_labels}
    if reference is not None:
        options["labels_name"] = labels_name
        metrics[SECOND_STANDARD] = reference_metrics(classifiers, probabilities, dataset, reference, **options)
    if sanity:
        metrics["sanity"] = {name: as_dictionary(checks) for name, checks in sanity.items()}
    truth, names = per_study(labels, studies)
    return ReportData(
        metrics=metrics,
        title=title,
        observations=observations,
        truth=truth,
        scores={name: per_study(values, studies, aggregation)[0] for name, values in probabilities.items()},
        studies=names,
        paths=paths,
        view_scores=probabilities,
        warnings=warnings,
        is_chexpert_valid=is_chexpert_valid(patients, len(dataset)),
        thumbnails=_thumbnails(
            first, dataset, labels, next(iter(probabilities.values())), observations, num_thumbnails
        ),
        sanity=sanity,
    )


def reference_metrics(
    classifiers: Mapping[str, CheXpertClassifier],
    probabilities: Mapping[str, FloatArray],
    dataset: datasets.Dataset,
    reference: Reference,
    **options: Any,
) -> dict[str, Any]:
    """Compute the metrics of models against a second reference standard, and against the split's own labels.

    `probabilities` are `(num_views, num_labels)` by model. `options` are passed to `assess_reference`, which makes
    the result: `labels_name` (who set the split's own labels), `aggregation` (how the views of a study are combined)
    and `replicates` (number of bootstrap resamples).

    Raises InputError if the models have no observation in common, or no image of the split is in the reference.
    """
    first = next(iter(classifiers.values()))
    scores, labels = _model_scores(classifiers, probabilities), split_labels(dataset, first.model.config.blank_labels)
    views = (dataset["path"][:], dataset["study"][:], dataset["patient"][:])
    return assess_reference(scores, *views, shared_observations(classifiers), reference, labels=labels, **options)


def subgroup_columns(dataset: datasets.Dataset, labels: FloatArray, observations: Sequence[str]) -> Groups:
    """Return the subgroups for `assess`: column, such as "sex" or "age" -> group of each view, None where unknown.

    The groups with and without support devices come from `labels` `(num_views, num_labels)`. If no view has a
    projection (AP or PA) and none is lateral, the data set does not state views, and none is called "frontal".
    """
    projections, is_frontal = dataset["projection"][:], dataset["is_frontal"][:]
    is_stated = any(projections) or not all(is_frontal)
    columns: dict[str, list[str | None]] = {
        "sex": dataset["sex"][:],
        "age": [
            next((name for low, high, name in AGE_BANDS if age is not None and low <= age <= high), None)
            for age in dataset["age"][:]
        ],
        "projection": projections,
        "view": [("frontal" if each else "lateral") if is_stated else None for each in is_frontal],
        **{
            name.replace("_", " "): dataset[name][:] for name in ("source", "labels_by") if name in dataset.column_names
        },
    }
    if SUPPORT_DEVICES in observations:
        devices = labels[:, list(observations).index(SUPPORT_DEVICES)]
        columns["support devices"] = [{1.0: "present", 0.0: "absent"}.get(float(value)) for value in devices]
    return columns


def patient_warnings(models: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Return the warnings of `seen_patients` for each model, such as "nih: ..."; a model is a folder or a repository.

    A model without a record of its training patients, such as an imported model or one of the Hub, gets a warning, too.
    """
    warnings = []
    for model in map(Path, models):
        lines = seen_patients(model, patients)
        if not (model / TRAINING_PATIENTS_FILE).exists():
            lines.append("its training patients are not recorded; if some are among these, metrics are optimistic.")
        warnings += [f"{model.name}: {line}" for line in lines]
    return warnings


def refuse_calibration_patients(models: Sequence[str], patients: Sequence[str]) -> None:
    """Raise InputError if a model, given as a folder, was calibrated on some of these patients."""
    for model in models:
        file = Path(model) / CALIBRATION_PATIENTS_FILE
        if file.is_file() and (shared := overlapping_patients(file, patients)):
            raise InputError(
                f"{model} was calibrated on {len(shared):,} of these {len(set(patients)):,} patients, so metrics on "
                "them are optimistic; evaluate on others, or pass --allow-calibration-patients (in Python "
                "allow_calibration_patients=True)."
            )


def _model_scores(classifiers: Mapping[str, CheXpertClassifier], scores: Mapping[str, FloatArray]) -> list[ModelScores]:
    models, shared = [], shared_observations(classifiers)
    for name, model in classifiers.items():
        rules = {observation: rule for observation in shared if (rule := _rule(model, observation))}
        points = {each: point for each, point in model.operating_points.items() if each in shared}
        models.append(ModelScores(name, scores[name], points, rules))
    return models


def _rule(model: CheXpertClassifier, observation: str) -> str | None:
    """Return how an operating point was chosen, such as "sensitivity 0.9" or "not recorded"; None for the default."""
    rules: list[str] = []
    for member in model.members:
        source = record_of(member.model.config.operating_points_source, observation)
        wanted = "" if source is None or source["wanted"] is None else f" {source['wanted']:g}"
        is_default = member.operating_points[observation] == DEFAULT_OPERATING_POINT
        rules.append(f"{source['method']}{wanted}" if source else "default" if is_default else "not recorded")
    if set(rules) == {"default"}:
        return None
    return rules[0] if len(rules) == 1 else f"mean of the members' ({', '.join(dict.fromkeys(rules))})"


def _thumbnails(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    labels: FloatArray,
    probabilities: FloatArray,
    observations: Sequence[str],
    count: int,
) -> list[tuple[str, bytes]]:
    """Return captions and PNGs (with map) of each observation's `count` worst false positives and false negatives."""
    files, paths = image_files(dataset), dataset["path"][:]
    pictures = []
    for column, name in enumerate(observations):
        is_called = probabilities[:, column] >= classifier.operating_points[name]
        for truth, kind, sign in ((0, "false positive", -1), (1, "false negative", 1)):
            wrong = np.flatnonzero((labels[:, column] == truth) & (is_called != bool(truth)))
            worst = wrong[np.argsort(sign * probabilities[wrong, column], kind="stable")][:count]
            for row in worst:
                caption = f"{name}, {kind}: probability {probabilities[row, column]:.3f} ({paths[row]})"
                with naming(files[row]):
                    maps = classifier.predict(Path(files[row]), saliency=True).maps
                    picture = overlay_of(read_radiograph(files[row]), maps, name)
                picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                picture.save(stream, "PNG")
                pictures.append((caption, stream.getvalue()))
    return pictures
