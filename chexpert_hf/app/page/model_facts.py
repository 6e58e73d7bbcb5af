"""What a model folder says of its model: name, weights, what it was trained on, and how well it did.

The figures and their intervals are those of `evaluation.json`, which training writes; figures without intervals get
them here, from the numbers of studies.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from chexpert_hf.app.page.text import describe_map_evaluation
from chexpert_hf.evaluation.delong import newcombe_interval
from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.files import sha256_of
from chexpert_hf.models.ensembles import ENSEMBLE_FILE
from chexpert_hf.models.identity import model_name, model_warnings
from chexpert_hf.scoring.classifier import CheXpertClassifier

EVALUATION_FILE = "evaluation.json"
WEIGHTS_FILE = "model.safetensors"

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Figure:
    """How well the model tells one observation.

    Attributes:
        auroc: With its 95 % interval.
        num_positive: Studies.
        num_negative: Studies.
    """

    auroc: Estimate
    num_positive: int
    num_negative: int


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        data: Name of the data set.
        split: Of it, on which was measured.
        num_training_images: Of its training split; None if that is not said.
        num_studies: That were scored.
        mean_auroc: Over `mean_over`.
        mean_over: Observations of which there were enough studies.
        observations: Those with positive and negative studies.
        intervals: By what the intervals are.
        was_chosen_on_it: Whether the checkpoint was chosen on this same split.
    """

    data: str
    split: str
    num_training_images: int | None
    num_studies: int
    mean_auroc: float
    mean_over: tuple[str, ...]
    observations: Mapping[str, Figure]
    intervals: str
    was_chosen_on_it: bool


@dataclass(frozen=True)
class ModelFacts:
    """Attributes:
    name: From the config, or of the repository; None for a model without a name.
    weights: What tells these weights from others: the revision of the repository, or the start of a SHA-256.
    num_parameters: Of all members.
    input_size: (height, width) in pixels.
    figures: None if the folder has none.
    maps_note: Whether the maps point at findings, for one model; empty if that was not measured.
    warnings: Sentences that belong to the model, such as that it is not a clinical one.
    """

    name: str | None
    weights: str
    num_parameters: int
    input_size: tuple[int, int]
    figures: Figures | None = None
    maps_note: str = ""
    warnings: tuple[str, ...] = ()


def facts_of(classifier: CheXpertClassifier) -> ModelFacts:
    """Reads what the folder or repository says that a model was loaded from."""
    places = [str(member.model.name_or_path or "") for member in classifier.members]
    root = _ensemble_folder(places) if len(places) > 1 else None
    place = str(root) if root else places[0]
    size = classifier.processor.size
    return ModelFacts(
        name=model_name(classifier.model) if len(places) == 1 else f"of {len(places)} members",
        weights=", ".join(
            _weights(member.model.config, of) for member, of in zip(classifier.members, places, strict=True)
        ),
        num_parameters=sum(
            parameter.numel() for member in classifier.members for parameter in member.model.parameters()
        ),
        input_size=(size["height"], size["width"]),
        figures=None if len(places) > 1 and root is None else _figures(_file(classifier.model.config, place)),
        maps_note=describe_map_evaluation(classifier.model.config.map_evaluation) if len(places) == 1 else "",
        warnings=model_warnings(member.model for member in classifier.members),
    )


def _ensemble_folder(places: list[str]) -> Path | None:
    parents = {Path(place).parent.parent for place in places}
    (first, *others) = parents
    return first if not others and (first / ENSEMBLE_FILE).is_file() else None


def _file(config: Any, place: str, name: str = EVALUATION_FILE) -> Path | None:
    """A file of a model's folder, or of the revision of its repository that was loaded."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    if not place:
        return None
    found = cached_file(
        place,
        name,
        revision=config._commit_hash,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(found) if found else None


def _weights(config: Any, place: str) -> str:
    if place and not Path(place).is_dir():
        return f"revision {str(config._commit_hash)[:_SHOWN_DIGITS]}"
    path = _file(config, place, WEIGHTS_FILE)
    digest = sha256_of(path) if path else None
    return f"SHA-256 {digest[:_SHOWN_DIGITS]}" if digest else "not from a file"


def _figures(path: Path | None) -> Figures | None:
    """What `evaluation.json` says; a file that says something else is one without figures."""
    if path is None:
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Figures(
            data=str(record["data"]["name"]),
            split=str(record["split"]),
            num_training_images=record["data"].get("train", {}).get("images"),
            num_studies=int(record["num_studies"]),
            mean_auroc=float("nan") if record["mean_auroc"] is None else float(record["mean_auroc"]),
            mean_over=tuple(map(str, record["mean_over"])),
            observations={
                entry["observation"]: _figure(entry) for entry in record["observations"] if _is_judged(entry)
            },
            intervals=str(record.get("intervals", "95 %, from the numbers of studies")),
            was_chosen_on_it=bool(record.get("was_chosen_on_it", True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_judged(entry: Mapping[str, Any]) -> bool:
    return entry["auroc"] is not None and isfinite(entry["auroc"])


def _figure(entry: Mapping[str, Any]) -> Figure:
    auroc, positive, negative = float(entry["auroc"]), int(entry["num_positive"]), int(entry["num_negative"])
    if "auroc_low" in entry:
        interval = Estimate(auroc, float(entry["auroc_low"]), float(entry["auroc_high"]))
    else:
        interval = newcombe_interval(auroc, positive, negative)
    return Figure(interval, positive, negative)
