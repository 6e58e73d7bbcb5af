"""A complete model folder: weights, configuration, processor, their code, a card with measured figures, and reference
scores of one phantom by which an installation, a conversion or an export can be checked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chexpert_hf.data.phantom import render_phantom
from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.hub.card import refresh_card, render_card
from chexpert_hf.hub.half_precision import half_state_dict
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.inference.classifier import CheXpertClassifier
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

REFERENCE_FILE = "reference.json"
EVALUATION_FILE = "evaluation.json"
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
) -> None:
    """Writes everything that a model folder holds.

    Args:
        folder: Made if it is not there; what else is in it stays.
        model: In float32 on the CPU.
        processor: Its image processor.
        recipe: All values of the run.
        data: See `chexpert_hf.hub.card.render_card`.
        evaluation: On the validation split.
        best_step: The checkpoint that was kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_half = recipe["stored_precision"] == "fp16"
    model.save_pretrained(folder, state_dict=half_state_dict(model) if is_half else None)
    processor.save_pretrained(folder)
    # transformers writes the weights for the owner alone, which hides them from other users of a container.
    (folder / "model.safetensors").chmod(0o644)
    _write_json(folder / REFERENCE_FILE, reference_scores(CheXpertClassifier(model, processor)))
    _write_json(folder / EVALUATION_FILE, {"split": "valid", "data": dict(data), **evaluation.to_dict()})
    card = render_card(
        folder.resolve().name,
        model,
        image_size=processor.longest_side,
        recipe=recipe,
        data=data,
        evaluation=evaluation,
        best_step=best_step,
    )
    card.save(folder / "README.md")


def refresh_folder(folder: Path) -> None:
    """Rewrites what follows from a folder's weights and config, once these have changed: reference scores and card.

    Of the card only the sections on calibration and operating points; a card without them gets them at its end.
    """
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    _write_json(folder / REFERENCE_FILE, reference_scores(classifier))
    card = folder / "README.md"
    if card.exists():
        text = refresh_card(card.read_text(encoding="utf-8"), classifier.model.config)
        card.write_text(text, encoding="utf-8")


def reference_scores(classifier: CheXpertClassifier) -> dict[str, Any]:
    """The phantom that is rendered from these values, and what the model says of it."""
    phantom = render_phantom(**REFERENCE_PHANTOM)
    return {"phantom": dict(REFERENCE_PHANTOM), "probabilities": dict(classifier.predict(phantom.image).probabilities)}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
