"""Calibration of a model folder: fitted on its logits for a split, folded into its head, saved as a new folder."""

import shutil
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.evaluation.calibration.calibrated_model import CalibratedModel, Origin, calibrate_model
from chexpert_hf.evaluation.calibration.calibration import CalibrationError, Method
from chexpert_hf.evaluation.calibration.fold import refuse_hierarchy
from chexpert_hf.evaluation.calibration.operating_points import OperatingRule
from chexpert_hf.evaluation.patients import (
    CALIBRATION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    overlapping_patients,
    write_patient_hashes,
)
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.gate import GATE_FILE
from chexpert_hf.models.graph_files import RECORD_FILE
from chexpert_hf.models.model_files import CHECKSUMS_FILE
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier

_OF_OLD_WEIGHTS = ("reference.json", RECORD_FILE, CHECKSUMS_FILE)
_COPIED_SUFFIXES = {"", ".csv", ".json", ".md", ".png", ".txt", ".yaml"}
"""Other files of a model folder may be exported graphs, whose weights would no longer be the model's."""


def calibrate_folder(
    source: Path,
    output: Path,
    dataset: datasets.Dataset,
    origin: Origin,
    *,
    method: Method = Method.PLATT,
    rule: OperatingRule | None = None,
    prevalences: Mapping[str, float] | None = None,
    are_other_people: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CalibratedModel:
    """Calibrates the model of a folder on a split, and writes it to a new folder.

    The files beside the weights come along, without `reference.json`, whose scores are no longer the model's, without
    exported graphs for the same reason, and without folders such as `checkpoints`. The hashes of the split's patients
    are written to `calibration_patients.json`.

    Args:
        source: Model folder; it stays as it is.
        output: Must be new or empty.
        dataset: A split from `load_chexpert` with the labels of the model's observations, in its order.
        origin: What it is, for the record in the model's config.
        method: How to calibrate.
        rule: How to choose operating points on the calibrated probabilities; if None, those that differ from the
            default keep their meaning: they move with the probabilities.
        prevalences: Of observations, in (0, 1), where the model will be used, if it is known that they differ from
            those of this split; see `Platt.at_prevalence`. With Platt scaling only.
        are_other_people: Whether ids that occur in training as well are known to name other people.
        progress: Called with the number of images that were scored.

    Raises:
        CalibrationError: If `source` is no folder or an ensemble, `output` is not empty, patients of the split were
            trained on, the model has a label hierarchy, no observation can be calibrated, or a prevalence is given that
            cannot be used.
        ModelFolderError: If `source` holds no model that can be loaded.
        RadiographError: If an image cannot be read.
    """
    _refuse_folders(source, output)
    if not are_other_people:
        _refuse_training_patients(source, dataset["patient"][:])
    classifier = CheXpertClassifier.from_pretrained(source)
    model = classifier.model
    _refuse_model(classifier)
    logits = dataset_logits(classifier, dataset, progress)
    result = calibrate_model(model, logits, dataset, origin, method=method, rule=rule, prevalences=prevalences)
    _write(classifier, source, output)
    write_patient_hashes(output / CALIBRATION_PATIENTS_FILE, dataset["patient"][:])
    return result


@torch.inference_mode()
def dataset_logits(
    classifier: CheXpertClassifier, dataset: datasets.Dataset, progress: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """Logits `(num_views, num_labels)` of the images of a split.

    From the model itself: a float32 probability near 1 has lost them.
    """
    model, rows = classifier.model, []
    images = (read_file(classifier, file).image for file in image_files(dataset))
    while batch := list(islice(images, BATCH_SIZE)):
        pixel_values = classifier.processor(batch, return_tensors="pt")["pixel_values"]
        rows.append(model(pixel_values.to(model.device, model.dtype)).logits.double().cpu().numpy())
        if progress:
            progress(len(batch))
    return np.concatenate(rows)


def _write(classifier: CheXpertClassifier, source: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        is_kept = path.suffix in _COPIED_SUFFIXES or path.name == GATE_FILE  # which judges features, not scores
        if path.is_file() and is_kept and path.name not in _OF_OLD_WEIGHTS:
            shutil.copy2(path, output)
    classifier.model.save_pretrained(output)
    classifier.processor.save_pretrained(output)
    # transformers writes the weights for the owner alone, which hides them from other users of a container.
    (output / "model.safetensors").chmod(0o644)


def _refuse_folders(source: Path, output: Path) -> None:
    if not source.is_dir():
        raise CalibrationError(f"Expected a model folder, got {str(source)!r}; download a repository of the Hub first.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CalibrationError(f"{output} is not empty: the calibrated model is written to a new folder.")


def _refuse_training_patients(source: Path, patients: list[str]) -> None:
    file = source / TRAINING_PATIENTS_FILE
    shared = overlapping_patients(file, patients) if file.exists() else set()
    if shared:
        raise CalibrationError(
            f"{len(shared):,} of {len(set(patients)):,} patients are, by their ids, among those that the model was "
            "trained on, where its scores are surer than elsewhere: calibrate on others. If the ids name other people, "
            "say so."
        )


def _refuse_model(classifier: CheXpertClassifier) -> None:
    if len(classifier.members) > 1:
        raise CalibrationError(
            f"The model is an ensemble of {len(classifier.members)}, whose mean no head can calibrate; calibrate its "
            "members one by one."
        )
    refuse_hierarchy(classifier.model.config)
