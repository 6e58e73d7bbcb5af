"""Writes complete model folders: weights, configuration, processor, code, metrics, card, and checksums of all files.

A folder also has the model's scores of one phantom, by which an installation, conversion or export can be checked.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import Evaluation, split_labels
from chexpert_hf.evaluation.patients import PATIENT_FILES
from chexpert_hf.evaluation.report.reporting import subgroup_columns
from chexpert_hf.files import make_readable, write_json, write_text
from chexpert_hf.folders.score_table import readable
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.model_files import CHECKSUMS_FILE, CURVE_FILE, EVALUATION_FILE, RECIPE_FILE, write_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.models.weights import half_state_dict
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.card import public_name, refresh_card, refresh_references, render_card
from chexpert_hf.publishing.data_terms import (
    ImportedFrom,
    Terms,
    data_names,
    each_terms,
    read_terms,
    terms_of,
    with_initial_terms,
    write_terms,
)
from chexpert_hf.scoring.classifier import CheXpertClassifier

REFERENCE_FILE = "reference.json"
CARD_FILE = "README.md"
REFERENCE_PHANTOM: Mapping[str, Any] = {"seed": 0, "observations": ["Pleural Effusion"], "projection": "PA"}
_SECOND_STANDARDS = "second_reference_standards"
_OF_PROBABILITIES = ("operating_point", "brier", "scaled_brier", "ece")
"""Results of an observation that calibration changes; ranks, and with them AUROC and AUPRC, stay."""


def assess_predictions(
    probabilities: NDArray[np.floating], dataset: datasets.Dataset, config: CheXpertConfig, replicates: int = 1000
) -> dict[str, Any]:
    """Compute metrics with 95 % intervals, also by subgroup, from a model's probabilities.

    `probabilities` are `(num_images, num_labels)`; `dataset` holds the images' labels, of the same observations in the
    same order. `replicates` is the number of bootstrap resamples of patients.

    Returns a dictionary of plain types for `evaluation.json`:

    - `mean_auroc`, and `mean_over`: the observations of that mean.
    - `observations`: the metrics of each observation.
    - `subgroups`: the metrics of each observation in each subgroup, such as women.
    - `gaps`: differences of the AUROC between subgroups.
    - `name`, which is "model", and `replicates`.
    """
    labels = split_labels(dataset, config.blank_labels)
    result = assess(
        [ModelScores("model", np.asarray(probabilities, dtype=float), config.operating_points or {})],
        labels,
        dataset["study"][:],
        dataset["patient"][:],
        config.observations,
        subgroups=subgroup_columns(dataset, labels, config.observations),
        replicates=replicates,
        headline=config.labels.headline,
    )
    return {**result["models"][0], "replicates": replicates}


def evaluation_record(
    evaluation: Evaluation,
    data: Mapping[str, Any],
    *,
    was_chosen_on_it: bool,
    assessment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the contents of `evaluation.json`: counts and AUROCs.

    With `assessment`, also intervals, subgroups, the gaps between subgroups, and the confusion matrix at each operating
    point. `refresh_folder` removes the confusion matrices once the model is calibrated; AUROCs stay valid, since
    calibration keeps the order of the probabilities.

    Args:
        evaluation: Metrics on the validation split.
        data: Name of the data, and its numbers of images, studies and patients; see `record` in `card.render_card`.
        was_chosen_on_it: Whether the checkpoint was chosen on this same split.
        assessment: From `assess_predictions`, for intervals and subgroups.
    """
    record = {
        "split": "valid",
        "data": dict(data),
        "was_chosen_on_it": was_chosen_on_it and bool(evaluation.mean_over),
        **evaluation.to_dict(),
    }
    if assessment is None:
        return record
    measured = {
        entry["observation"]: _bounds("auroc", entry["auroc"]) | _calls(entry["operating_point"])
        for entry in assessment["observations"]
    }
    subgroup_keys = ("column", "group", "observation", "num_positive", "num_negative")
    return record | {
        "intervals": f"95 %, by DeLong; that of the mean by {assessment['replicates']:,} resamples of patients",
        **_bounds("mean_auroc", assessment["mean_auroc"]),
        "observations": [entry | measured[entry["observation"]] for entry in record["observations"]],
        "subgroups": [
            {name: entry[name] for name in subgroup_keys}
            | {"auroc": entry["auroc"] and entry["auroc"]["value"], **_bounds("auroc", entry["auroc"])}
            for entry in assessment["subgroups"]
        ],
        "gaps": assessment["gaps"],
    }


def _bounds(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {f"{name}_{end}": None if estimate is None else estimate[end] for end in ("low", "high")}


def _calls(point: Mapping[str, Any] | None) -> dict[str, Any]:
    keys = ("threshold", "true_positives", "false_positives", "true_negatives", "false_negatives")
    return {} if point is None else {"operating_point": {key: point[key] for key in keys}}


def save_trained_folder(
    folder: Path,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    *,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluation: Evaluation,
    best_step: int,
    assessment: Mapping[str, Any] | None = None,
) -> None:
    """Write the complete folder of a model that this package trained; other files in the folder are kept.

    Call `write_checksums` again after adding files to the folder.

    Args:
        folder: The model folder.
        model: In float32 on the CPU.
        processor: Its image processor.
        recipe: All values of the training run's recipe, by field.
        data: From `describe_data`: the name of the data and numbers of images and patients in each split.
        best_step: Optimizer step of the checkpoint that was kept.
        evaluation: Metrics on the validation split.
        assessment: From `assess_predictions`: intervals and subgroups for card and `evaluation.json`.
    """
    state_dict = half_state_dict(model) if recipe["stored_precision"] == "fp16" else None
    record = evaluation_record(evaluation, data, was_chosen_on_it=recipe["checkpoint"] == "best", assessment=assessment)
    name, names = model.config.model_name or readable(folder.resolve().name), data_names(data)
    own = each_terms(names)
    licences = [terms.licence for terms in own]
    initial = [terms for terms in _initial_terms(recipe["init"]) if terms.licence not in licences]
    terms = with_initial_terms(terms_of(names), initial, public_name(recipe["init"]))
    trained = {"recipe": recipe, "record": record, "best_step": best_step, "model_id": _model_id(folder)}
    _write(folder, model, processor, state_dict, [*own, *initial], [], name=name, terms=terms, **trained)


def _initial_terms(init: str) -> list[Terms]:
    """Return the terms of `init`, the model that a run started from; empty for "imagenet" and "random".

    If the terms are unknown, the list has one entry, whose licence refers to the card of `init`.
    """
    if init in ("imagenet", "random"):
        return []
    try:
        known = read_terms(model_folder(init))
    except InputError:  # the trained model is saved even if the folder of its initial model is gone
        known = []
    return known or [Terms(licence=f"They are in the card of {public_name(init)}.", license_name=None)]


def save_imported_folder(
    folder: Path,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    origin: ImportedFrom,
    final: Path | None = None,
    *,
    keep_patients: bool = False,
) -> None:
    """Write the complete folder of a model that others trained.

    An earlier model's results, recipe and lists of patients in the folder are deleted; other files are kept.

    Args:
        folder: The folder to write.
        model: The imported model.
        processor: Its image processor.
        origin: Where the weights come from, and their terms.
        final: Path that the caller will move `folder` to, shown in the card's examples; None if it is not moved.
        keep_patients: Whether to keep the lists of patients, since they are of this model.
    """
    name, model_id = readable(folder.resolve().name), _model_id(final or folder)
    stale = [EVALUATION_FILE, RECIPE_FILE, CURVE_FILE, *(() if keep_patients else PATIENT_FILES)]
    _write(folder, model, processor, None, [origin], stale, name=name, terms=origin, model_id=model_id)


def _write(
    folder: Path,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    state_dict: Mapping[str, Any] | None,
    sources: Sequence[Terms],
    stale: Sequence[str],
    /,
    **card: Any,
) -> None:
    """Write the folder; `stale` names files of an earlier model that are deleted, `card` holds the card's contents."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # an earlier model's checksums
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)
    make_readable(folder / "model.safetensors")
    write_json(folder / REFERENCE_FILE, reference_scores(CheXpertClassifier(model, processor)))
    if "record" in card:
        write_json(folder / EVALUATION_FILE, card["record"])
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    write_terms(folder, sources)
    card["image_size"] = processor.output_size
    write_text(folder / CARD_FILE, str(render_card(model=model, **card)))
    write_checksums(folder)


def _model_id(folder: Path) -> str:
    """Return the path that a card's examples show: `folder` itself, or only its last part if `folder` is absolute."""
    return readable(folder.name if folder.is_absolute() else folder.as_posix())


def refresh_folder(folder: Path) -> None:
    """Update reference scores, card and checksums of a folder whose weights or config have changed.

    The card gets the folder's name and new sections on calibration and operating points; see `refresh_card`. Results
    that depend on the former probabilities or operating points are removed from `evaluation.json`.
    """
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # the files are about to change
    if (file := folder / EVALUATION_FILE).exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        others = [entry for result in record.get(_SECOND_STANDARDS, ()) for entry in result["figures"]]
        for entry in (*record.get("observations", ()), *others):
            for name in _OF_PROBABILITIES:
                entry.pop(name, None)
        write_json(file, record)
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    write_json(folder / REFERENCE_FILE, reference_scores(classifier))
    card = folder / CARD_FILE
    if card.exists():
        name = readable(folder.resolve().name)
        text = refresh_card(card.read_text(encoding="utf-8"), classifier.model.config, name, _model_id(folder))
        write_text(card, text)
    write_checksums(folder)


def add_reference_metrics(folder: Path, result: Mapping[str, Any], data: str) -> None:
    """Add a result of `assess_reference` to the `evaluation.json` and the card of a model folder; renew its checksums.

    `data` is the name of the data, such as "NIH, valid". An earlier result on data of this name, against the same
    reference standard, is replaced.
    """
    file, card = folder / EVALUATION_FILE, folder / CARD_FILE
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    replaced = (result["reference"], data)
    kept = [item for item in record.get(_SECOND_STANDARDS, ()) if (item["reference"], item["data"]) != replaced]
    record[_SECOND_STANDARDS] = [*kept, {"data": data, **result}]
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # the files are about to change
    write_json(file, record)
    if card.exists():
        write_text(card, refresh_references(card.read_text(encoding="utf-8"), record))
    write_checksums(folder)


def reference_scores(classifier: CheXpertClassifier) -> dict[str, Any]:
    """Score a phantom; return the contents of `reference.json`: phantom settings, image hash and probabilities."""
    image = render_phantom(**REFERENCE_PHANTOM).image
    scores = dict(classifier.predict(image).probabilities)
    return {"phantom": dict(REFERENCE_PHANTOM), "image_sha256": image_sha256(image), "probabilities": scores}


def image_sha256(image: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's gray levels `(height, width)`, in hexadecimal digits."""
    return hashlib.sha256(image.tobytes()).hexdigest()
