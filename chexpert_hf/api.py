"""Functions to evaluate and calibrate a model, to localize findings with it, and to save one as a model folder.

`evaluate`, `calibrate` and `localize` do the same as the commands of these names. Where a command prints messages about
the data, such as missing labels, the function issues warnings.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TypeAlias

import datasets
import torch

from chexpert_hf.datasets.loading import expect_labels, load_dataset
from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.calibration.calibrate import (
    CalibratedModel,
    Origin,
    calibrate_model,
    dataset_logits,
    load_uncalibrated,
    refuse_training_patients,
    write_calibrated,
)
from chexpert_hf.evaluation.calibration.calibration import Method, OperatingRule
from chexpert_hf.evaluation.localization.ground_truth import find_ground_truth
from chexpert_hf.evaluation.localization.localize import LocalizationResult, localize_dataset
from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.evaluation.report.report import write_report
from chexpert_hf.evaluation.report.reporting import (
    assess_dataset,
    evaluate_dataset,
    evaluate_predictions,
    patient_warnings,
    refuse_calibration_patients,
)
from chexpert_hf.files import require_empty
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.publishing.data_terms import ImportedFrom, labels_name_of
from chexpert_hf.publishing.model_folder import refresh_folder, save_imported_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier

Model: TypeAlias = str | Path | CheXpertClassifier
Data: TypeAlias = str | Path | datasets.Dataset

_RECORDS = ("calibration", "operating_points_source", "map_evaluation")


def evaluate(
    model: Model,
    data: Data,
    *,
    split: str | None = None,
    output: str | Path | None = None,
    allow_calibration_patients: bool = False,
) -> Evaluation:
    """Compute a model's metrics on a split, per study as in the CheXpert paper: the maximum over a study's views.

    Args:
        model: A model folder, repository id, "nih", or a `CheXpertClassifier`.
        data: A folder that `load_dataset` reads, or a split from `load_dataset` that has the labels of the model's
            observations.
        split: The split to load from a folder, "valid" if None. If `data` is a split, a name for it in the report.
        output: Folder for the full report with intervals, calibration and subgroups, created if needed; no report if
            None.
        allow_calibration_patients: Whether the split may contain patients that the model was calibrated on. If it
            does, True gives a warning and False an InputError. Only local model folders are checked.

    Raises:
        InputError: If the model or the data cannot be loaded, the model was calibrated on patients of the split, or the
            report cannot be written.

    Source: Irvin et al. 2019, arXiv:1901.07031, section 4.
    """
    classifier = _classifier(model)
    split = _split_name(data, split)
    dataset = _split(data, split, classifier.observations)
    patients = dataset["patient"][:]
    if not allow_calibration_patients:
        refuse_calibration_patients(_folders(model), patients)
    notes = _warn(model, patients)
    if output is None:
        return evaluate_dataset(classifier, dataset)
    title = f"{_name(data)}, {split}"
    judged_by = labels_name_of(dataset, _name(data), split)
    report = assess_dataset({"model": classifier}, dataset, title=title, warnings=notes, labels_name=judged_by)
    write_report(Path(output), report)
    return evaluate_predictions(report.view_scores["model"], dataset, classifier.model.config)


def calibrate(
    model: str | Path,
    data: Data,
    output: str | Path,
    *,
    split: str | None = None,
    method: str = "platt",
    operating_points: str | OperatingRule | None = None,
    prevalences: Mapping[str, float] | None = None,
    are_other_people: bool = False,
    data_name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibratedModel:
    """Calibrate a model on a split and write it to a new model folder.

    Args:
        model: The folder of a single model, or "nih".
        data: A folder that `load_dataset` reads, or a split from `load_dataset` that has the labels of the model's
            observations.
        output: The new folder.
        split: The split to load from a folder, "valid" if None. If `data` is a split, a name for it. Either is recorded
            in the model's config.
        method: "platt" fits slope and intercept for each observation's logit, "temperature" one factor for all logits.
        operating_points: How to choose new operating points: "youden", "sensitivity=.9" or "ppv=.5". If None, the
            present ones are converted so that the same images remain positive, except that .5, the default, stays .5.
        prevalences: Observation -> prevalence where the model will be used, if it differs from this split's; for
            "platt" only.
        are_other_people: Whether equal patient ids in the split and the training data name different people; if False,
            equal ids raise InputError.
        data_name: Name of the data in the model's config; the folder's name if None.
        progress: Called after each batch with its number of images.

    Raises:
        InputError: If the folder does not hold a single model, the model was trained on patients of the split or cannot
            be calibrated on it, `output` is not new, an image cannot be read, or an option is unknown.
    """
    if not isinstance(model, (str, Path)):
        raise InputError(f"Expected the folder of a model, whose files are calibrated, got a {type(model).__name__}.")
    if method not in [each.value for each in Method]:
        raise InputError(f"Expected method {' or '.join(each.value for each in Method)}, got {method!r}.")
    rule = operating_points
    if not (rule is None or isinstance(rule, OperatingRule)):
        rule = OperatingRule.parse(str(rule))
    source, output, split = Path(resolve_model(model)), Path(output), _split_name(data, split)
    require_empty(output, "the calibrated model is written to a new folder")
    classifier = load_uncalibrated(source)
    dataset = _split(data, split, classifier.observations)
    patients = dataset["patient"][:]
    if not are_other_people:
        refuse_training_patients(source, patients)
    origin = Origin(data=data_name or _name(data), split=split, date=date.today().isoformat())
    logits, how = dataset_logits(classifier, dataset, progress), Method(method)
    result = calibrate_model(classifier.model, logits, dataset, origin, method=how, rule=rule, prevalences=prevalences)
    write_calibrated(classifier, source, output, patients)
    refresh_folder(output)
    return result


def localize(
    model: Model, data: str | Path, *, split: str | None = None, annotations: str | Path | None = None
) -> LocalizationResult:
    """Measure how often a model's saliency maps point at annotated findings, and how often fixed points do.

    Args:
        model: A model folder, repository id, "nih", or a `CheXpertClassifier`.
        data: A folder that `load_dataset` reads.
        split: The split to load, "valid" if None.
        annotations: A CSV file of boxes or cheXlocalize's JSON; if None, the folder's `masks/` or `boxes.csv`, or the
            masks or boxes in the data set's own files.

    Raises:
        InputError: If there are no annotations, or none is of an image of the split.

    Source: Saporta et al. 2022, Nature Machine Intelligence 4, 867-878.
    """
    if isinstance(data, (datasets.Dataset, datasets.DatasetDict)):
        raise InputError(
            f"Expected the folder of a data set, which also has the annotations, got a {type(data).__name__}."
        )
    classifier = _classifier(model)
    dataset = _split(data, _split_name(data, split), classifier.observations)
    file = None if annotations is None else Path(annotations)
    truth = find_ground_truth(data, classifier.observations, file, images=dataset["path"][:])
    _warn(model, dataset["patient"][:])
    return localize_dataset(classifier, dataset, truth)


def save_model_folder(
    folder: str | Path,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    *,
    data: str,
    licence: str,
    source: str = "a training run outside of this package, such as with the Trainer of transformers",
    keep_records: bool = False,
) -> None:
    """Write a model that was trained elsewhere as a complete model folder: with card, reference scores and checksums.

    Records of an earlier model in the config, such as its calibration, are dropped with a warning, see `keep_records`.

    Args:
        folder: The folder, created if it does not exist; files in it are overwritten, and an earlier model's
            evaluation, recipe and training curve removed, as are its lists of patients, see `keep_records`.
        model: The model, in float32 on the CPU.
        processor: The model's image processor.
        data: The training data, as a phrase for the card.
        licence: Sentences on the use of the weights.
        source: Where the weights come from, as a phrase for the card.
        keep_records: Whether to keep the config's calibration, operating points and evaluation of maps, and the
            folder's lists of patients that a model was trained, chosen or calibrated on. Pass True only if they are of
            these weights. False resets them, and thus changes `model.config`.

    Raises:
        InputError: If the model is not in float32, or has a LoRA adapter that is not merged.
    """
    if hasattr(model, "peft_config"):  # of peft's wrapper, and of the model in it
        raise InputError(
            "Expected the model itself, got one with a LoRA adapter: pass the result of PeftModel's merge_and_unload()."
        )
    if model.dtype != torch.float32:
        raise InputError(f"Expected a model in float32, got {model.dtype}: pass model.float().")
    has_records = any(getattr(model.config, name, None) is not None for name in _RECORDS)  # also in older remote code
    if has_records and not keep_records:
        model.config.forget_head()
        warnings.warn(
            "The config's calibration, operating points and evaluation of maps are dropped, as training made them "
            "wrong; if they are of these weights, pass keep_records=True.",
            stacklevel=2,
        )
    conversion = "none; no metrics were recorded with it"
    origin = ImportedFrom(source=source, data=data, licence=licence, conversion=conversion)
    save_imported_folder(Path(folder), model, processor, origin, keep_patients=keep_records)


def _classifier(model: Model) -> CheXpertClassifier:
    return model if isinstance(model, CheXpertClassifier) else CheXpertClassifier.from_pretrained(model)


def _split(data: Data, split: str, observations: Sequence[str]) -> datasets.Dataset:
    if not isinstance(data, datasets.Dataset):
        said: list[str] = []
        dataset = load_dataset(data, splits=[split], observations=observations, say=said.append)[split]
        for line in said:
            warnings.warn(line, stacklevel=3)
        return dataset
    expect_labels(data, observations)
    if not len(data):
        raise InputError("Expected radiographs to score, got a split without rows.")
    return data.with_format(None)


def _split_name(data: Data, split: str | None) -> str:
    if isinstance(data, datasets.DatasetDict):
        raise InputError(f"Expected one split, such as data[{next(iter(data))!r}], got a DatasetDict.")
    folders = data if isinstance(data, (list, tuple)) else [data]
    if not (isinstance(data, datasets.Dataset) or all(isinstance(folder, (str, Path)) for folder in folders)):
        raise InputError(f"Expected a folder or a split from load_dataset, got a {type(data).__name__}.")
    return split or (str(data.split or "data") if isinstance(data, datasets.Dataset) else "valid")


def _folders(model: Model) -> list[str]:
    return [] if isinstance(model, CheXpertClassifier) else [str(resolve_model(model))]


def _warn(model: Model, patients: Sequence[str]) -> list[str]:
    """Issue and return warnings if a model was trained, selected or calibrated on some of these patients.

    A model without a record of its training patients gets a warning, too. A `CheXpertClassifier` is not checked: the
    result is [].
    """
    notes = patient_warnings(_folders(model), patients)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return notes


def _name(data: Data) -> str:
    return "data" if isinstance(data, datasets.Dataset) else Path(data).resolve().name
