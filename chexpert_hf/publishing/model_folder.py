"""A complete model folder: weights, configuration, processor, their code, metrics, card, checksums of all files, and
reference scores of one phantom by which an installation, a conversion or an export can be checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.files import make_readable, write_json, write_text
from chexpert_hf.folders.score_table import readable
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.model_files import CHECKSUMS_FILE, EVALUATION_FILE, write_checksums
from chexpert_hf.models.weights import half_state_dict
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.card import refresh_card, refresh_references, render_card
from chexpert_hf.publishing.data_terms import ImportedFrom, terms_of
from chexpert_hf.publishing.measured import evaluation_record
from chexpert_hf.scoring.classifier import CheXpertClassifier

REFERENCE_FILE = "reference.json"
CARD_FILE = "README.md"
REFERENCE_PHANTOM: Mapping[str, Any] = {"seed": 0, "observations": ["Pleural Effusion"], "projection": "PA"}
_SECOND_STANDARDS = "second_reference_standards"


def save_model_folder(
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
    """Writes the complete folder of a model that was trained here.

    Other files in the folder stay; files that are written later need `write_checksums` again.

    Args:
        folder: The model folder.
        model: In float32 on the CPU.
        processor: Its image processor.
        recipe, data, best_step: See `chexpert_hf.publishing.card.render_card`.
        evaluation: On the validation split.
        assessment: From `assess_predictions`: intervals and subgroups for card and `evaluation.json`.
    """
    is_half = recipe["stored_precision"] == "fp16"
    _write_model(folder, model, processor, half_state_dict(model) if is_half else None)
    record = evaluation_record(evaluation, data, was_chosen_on_it=recipe["checkpoint"] == "best", assessment=assessment)
    write_json(folder / EVALUATION_FILE, record)
    card = render_card(
        model.config.model_name or readable(folder.resolve().name),
        model,
        terms_of(data["name"]),
        image_size=processor.longest_side,
        recipe=recipe,
        record=record,
        best_step=best_step,
    )
    write_text(folder / CARD_FILE, str(card))
    write_checksums(folder)


def save_imported_folder(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor, origin: ImportedFrom
) -> None:
    """Writes the complete folder of a model that others trained; see `save_model_folder`."""
    _write_model(folder, model, processor)
    card = render_card(readable(folder.resolve().name), model, origin, image_size=processor.output_size[0])
    write_text(folder / CARD_FILE, str(card))
    write_checksums(folder)


def refresh_folder(folder: Path) -> None:
    """Renews reference scores, card and checksums of a folder whose weights or config have changed.

    The card gets the folder's name and new sections on calibration and operating points; see `refresh_card`.
    """
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of the files as they were
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    write_json(folder / REFERENCE_FILE, reference_scores(classifier))
    card = folder / CARD_FILE
    if card.exists():
        name = readable(folder.resolve().name)
        write_text(card, refresh_card(card.read_text(encoding="utf-8"), classifier.model.config, name))
    write_checksums(folder)


def add_reference_figures(folder: Path, result: Mapping[str, Any], data: str) -> None:
    """Adds metrics against another reference standard, from `assess_reference`, to `evaluation.json` and card.

    They replace earlier ones against the same standard on the same data, which is named in words ("NIH, valid").
    """
    file, card = folder / EVALUATION_FILE, folder / CARD_FILE
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    replaced = (result["reference"], data)
    kept = [item for item in record.get(_SECOND_STANDARDS, ()) if (item["reference"], item["data"]) != replaced]
    record[_SECOND_STANDARDS] = [*kept, {"data": data, **result}]
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of the files as they were
    write_json(file, record)
    if card.exists():
        write_text(card, refresh_references(card.read_text(encoding="utf-8"), record))
    write_checksums(folder)


def _write_model(
    folder: Path,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    state_dict: Mapping[str, Any] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of a folder that is written again
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)
    make_readable(folder / "model.safetensors")
    write_json(folder / REFERENCE_FILE, reference_scores(CheXpertClassifier(model, processor)))


def reference_scores(classifier: CheXpertClassifier) -> dict[str, Any]:
    """The contents of `reference.json`: a phantom's parameters, the checksum of its pixels, and the model's scores."""
    image = render_phantom(**REFERENCE_PHANTOM).image
    return {
        "phantom": dict(REFERENCE_PHANTOM),
        "image_sha256": image_sum(image),
        "probabilities": dict(classifier.predict(image).probabilities),
    }


def image_sum(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's gray levels `(height, width)`."""
    return hashlib.sha256(image.tobytes()).hexdigest()
