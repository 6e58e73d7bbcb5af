"""What a model folder says of its model: name, weights, training data, and metrics."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from pydantic import BaseModel, ValidationError

from chexpert_hf.app.page.text import NO_FIGURES, describe_map_evaluation
from chexpert_hf.evaluation.delong import newcombe_interval
from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.files import sha256_of
from chexpert_hf.models.ensembles import ENSEMBLE_FILE
from chexpert_hf.models.identity import model_name, model_warnings
from chexpert_hf.models.repositories import HubError, hub_errors
from chexpert_hf.scoring.classifier import CheXpertClassifier

EVALUATION_FILE = "evaluation.json"
WEIGHTS_FILE = "model.safetensors"

FEW = 5
"""With fewer studies of either class, an AUROC says little."""

_SHOWN_DIGITS = 12


class Figure(BaseModel):
    """How well the model tells one observation: AUROC, its 95 % interval, and the numbers of studies."""

    observation: str
    num_positive: int
    num_negative: int
    auroc: float | None
    auroc_low: float | None = None
    auroc_high: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The AUROC with its interval, from the numbers of studies if the file has none; None if not measured."""
        if self.auroc is None or not isfinite(self.auroc):
            return None
        if self.auroc_low is None or self.auroc_high is None:
            return newcombe_interval(self.auroc, self.num_positive, self.num_negative)
        return Estimate(self.auroc, self.auroc_low, self.auroc_high)

    @property
    def is_uncertain(self) -> bool:
        """Whether there were too few studies to tell."""
        return min(self.num_positive, self.num_negative) < FEW


class Data(BaseModel):
    """The data set: its name, and with "images" the number of images in its training split."""

    name: str
    train: Mapping[str, Any] = {}


class Figures(BaseModel):
    """The metrics in `evaluation.json`, which training writes."""

    data: Data
    split: str
    num_studies: int
    mean_auroc: float | None
    mean_over: tuple[str, ...]
    observations: tuple[Figure, ...]
    intervals: str = "95 %, from the numbers of studies"
    was_chosen_on_it: bool = True

    def of(self, observation: str) -> Figure | None:
        """The metrics of one observation; None if it was not measured."""
        return next((each for each in self.observations if each.observation == observation and each.estimate), None)


@dataclass(frozen=True)
class ModelFacts:
    """What the page says of a model.

    Attributes:
        name: From the config, or of the repository; None for a model without a name.
        weights: Identifies the weights: the revision of the repository, or the start of a SHA-256.
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

    @property
    def figures_line(self) -> str:
        """The training data and the mean AUROC, in one line."""
        figures = self.figures
        if figures is None:
            return NO_FIGURES
        images = figures.data.train.get("images")
        trained = f"Trained on {figures.data.name}{'' if images is None else f' ({images:,} images)'}."
        if not figures.mean_over or figures.mean_auroc is None:
            return f"{trained} Its {figures.split} split could judge no observation well enough for a figure."
        return (
            f"{trained} Mean AUROC {figures.mean_auroc:.3f} over {', '.join(figures.mean_over)}, on "
            f"{figures.num_studies:,} studies of its {figures.split} split."
        )


def facts_of(classifier: CheXpertClassifier) -> ModelFacts:
    """Reads the facts from the folder or repository that a model was loaded from."""
    models = [member.model for member in classifier.members]
    places = [str(model.name_or_path or "") for model in models]
    (model, *others), size = models, classifier.processor.size
    return ModelFacts(
        name=f"of {len(models)} members" if others else model_name(model),
        weights=", ".join(_weights(each.config, place) for each, place in zip(models, places, strict=True)),
        num_parameters=sum(parameter.numel() for each in models for parameter in each.parameters()),
        input_size=(size["height"], size["width"]),
        figures=_figures(_file(model.config, _common_place(places), EVALUATION_FILE)),
        maps_note="" if others else describe_map_evaluation(model.config.map_evaluation),
        warnings=model_warnings(models),
    )


def _common_place(places: list[str]) -> str:
    """The folder or repository of a model, or the folder of an ensemble; empty for members from anywhere."""
    if len(places) == 1:
        return places[0]
    (first, *others) = {Path(place).parent.parent for place in places}
    return str(first) if not others and (first / ENSEMBLE_FILE).is_file() else ""


def _file(config: Any, place: str, name: str) -> Path | None:
    """A file of a model's folder, or of the revision of its repository that was loaded."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if place and path.is_file() else None
    with suppress(HubError), hub_errors(place, is_upload=False):
        return Path(hf_hub_download(place, name, revision=config._commit_hash))
    return None


def _weights(config: Any, place: str) -> str:
    if place and not Path(place).is_dir():
        return f"revision {str(config._commit_hash)[:_SHOWN_DIGITS]}"
    path = _file(config, place, WEIGHTS_FILE)
    digest = sha256_of(path) if path else None
    return f"SHA-256 {digest[:_SHOWN_DIGITS]}" if digest else "not from a file"


def _figures(path: Path | None) -> Figures | None:
    """The metrics in a file; None if it does not hold them."""
    with suppress(OSError, ValidationError):
        return Figures.model_validate_json(path.read_bytes()) if path else None
    return None
