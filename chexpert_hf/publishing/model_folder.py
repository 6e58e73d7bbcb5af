"""A complete model folder: weights, configuration, processor, their code, a card with measured figures, reference
scores of one phantom by which an installation, a conversion or an export can be checked, and the sums of all files.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.folders.score_table import readable
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.half_precision import half_state_dict
from chexpert_hf.models.model_files import CHECKSUMS_FILE, write_checksums
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.card import ImportedFrom, refresh_card, refresh_references, render_card, render_import_card
from chexpert_hf.publishing.card_sections import SECOND_STANDARDS
from chexpert_hf.publishing.measured import evaluation_record
from chexpert_hf.scoring.classifier import CheXpertClassifier

REFERENCE_FILE = "reference.json"
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "README.md"
REFERENCE_PHANTOM: Mapping[str, Any] = {"seed": 0, "observations": ["Pleural Effusion"], "projection": "PA"}


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
    """Writes everything that the folder of a model that was trained here holds.

    What is written into the folder later has no sum until `inference.model_files.write_checksums` is called.

    Args:
        folder: Made if it is not there; what else is in it stays.
        model: In float32 on the CPU.
        processor: Its image processor.
        recipe: All values of the run.
        data: `name`, and for `train` and `valid` the numbers of images, studies and patients.
        evaluation: On the validation split.
        best_step: The checkpoint that was kept.
        assessment: From `chexpert_hf.publishing.measured.assess_predictions`: intervals and subgroups for card and
            `evaluation.json`.
    """
    is_half = recipe["stored_precision"] == "fp16"
    _write_model(folder, model, processor, half_state_dict(model) if is_half else None)
    record = evaluation_record(evaluation, data, was_chosen_on_it=recipe["checkpoint"] == "best", assessment=assessment)
    _write_json(folder / EVALUATION_FILE, record)
    name, size = model.config.model_name or readable(folder.resolve().name), processor.longest_side
    card = render_card(name, model, image_size=size, recipe=recipe, record=record, best_step=best_step)
    card.save(folder / CARD_FILE)
    write_checksums(folder)


def save_imported_folder(
    folder: Path, model: CheXpertForImageClassification, processor: CheXpertImageProcessor, origin: ImportedFrom
) -> None:
    """Writes everything that the folder of a model that others trained holds; see `save_model_folder`.

    Args:
        folder: Made if it is not there.
        model: In float32 on the CPU.
        processor: Its image processor.
        origin: Where it comes from, for the card.
    """
    _write_model(folder, model, processor)
    name, size = readable(folder.resolve().name), processor.output_size[0]
    render_import_card(name, model, image_size=size, origin=origin).save(folder / CARD_FILE)
    write_checksums(folder)


def refresh_folder(folder: Path) -> None:
    """Rewrites what follows from a folder's weights and config, once these have changed: reference scores, card, sums.

    Of the card the name and the sections on calibration and operating points; a card without them gets them at its end.
    """
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of the files as they were
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    _write_json(folder / REFERENCE_FILE, reference_scores(classifier))
    card = folder / CARD_FILE
    if card.exists():
        text = refresh_card(card.read_text(encoding="utf-8"), classifier.model.config, readable(folder.resolve().name))
        card.write_text(text, encoding="utf-8")
    write_checksums(folder)


def add_reference_figures(folder: Path, result: Mapping[str, Any], data: str) -> None:
    """Adds figures against another reference standard to a folder's `evaluation.json` and card, and renews its sums.

    They replace earlier ones against the same standard on the same data.

    Args:
        folder: The model's.
        result: Of this one model, from `chexpert_hf.evaluation.reference_standard.assess_reference`.
        data: What was scored, in words, such as "NIH, valid".
    """
    file, card = folder / EVALUATION_FILE, folder / CARD_FILE
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    earlier = [
        item
        for item in record.get(SECOND_STANDARDS, ())
        if (item["reference"], item["data"]) != (result["reference"], data)
    ]
    record[SECOND_STANDARDS] = [*earlier, {"data": data, **result}]
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of the files as they were
    _write_json(file, record)
    if card.exists():
        card.write_text(refresh_references(card.read_text(encoding="utf-8"), record), encoding="utf-8")
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
    # transformers writes the weights for the owner alone, which hides them from other users of a container.
    (folder / "model.safetensors").chmod(0o644)
    _write_json(folder / REFERENCE_FILE, reference_scores(CheXpertClassifier(model, processor)))


def reference_scores(classifier: CheXpertClassifier) -> dict[str, Any]:
    """The phantom that is rendered from these values, its pixels' sum, and what the model says of it."""
    image = render_phantom(**REFERENCE_PHANTOM).image
    return {
        "phantom": dict(REFERENCE_PHANTOM),
        "image_sha256": image_sum(image),
        "probabilities": dict(classifier.predict(image).probabilities),
    }


def image_sum(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's gray levels `(height, width)`."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
