"""Facts about a model from its folder: name, weights, training data, and metrics."""

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pydantic import AliasPath, BaseModel, Field, ValidationError

from chexpert_hf.app.page.text import NO_METRICS, describe_map_evaluation
from chexpert_hf.evaluation.delong import newcombe_interval
from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.files import sha256_of
from chexpert_hf.models.loading import model_name, model_warnings
from chexpert_hf.models.model_files import ENSEMBLE_FILE, EVALUATION_FILE
from chexpert_hf.scoring.classifier import CheXpertClassifier

_SHOWN_DIGITS = 12


class ObservationMetrics(BaseModel):
    """The model's discrimination of one observation: AUROC, its 95 % interval, and the numbers of studies."""

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


class Metrics(BaseModel):
    """The metrics in `evaluation.json`, which training writes."""

    data: str = Field(validation_alias=AliasPath("data", "name"))
    num_training_images: int | None = Field(None, validation_alias=AliasPath("data", "train", "images"))
    split: str
    num_studies: int
    mean_auroc: float | None
    mean_over: tuple[str, ...]
    observations: tuple[ObservationMetrics, ...]
    intervals: str = "95 %, from the numbers of studies"
    was_chosen_on_it: bool = True

    def of(self, observation: str) -> ObservationMetrics | None:
        """The metrics of one observation; None if it was not measured."""
        return next((each for each in self.observations if each.observation == observation and each.estimate), None)


@dataclass(frozen=True)
class ModelFacts:
    """The statements of the page about a model.

    Attributes:
        weights: The start of the SHA-256 of the weights.
        num_parameters: Of all members.
        input_size: (height, width) in pixels.
        maps_note: Whether the maps point at findings, for one model; empty if that was not measured.
        warnings: Sentences that belong to the model, such as that it is not a clinical one.
    """

    name: str | None
    weights: str
    num_parameters: int
    input_size: tuple[int, int]
    metrics: Metrics | None = None
    maps_note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def metrics_line(self) -> str:
        """The training data and the mean AUROC, in one line."""
        metrics = self.metrics
        if metrics is None:
            return NO_METRICS
        images = metrics.num_training_images
        trained = f"Trained on {metrics.data}{'' if images is None else f' ({images:,} images)'}."
        if not metrics.mean_over or metrics.mean_auroc is None:
            return f"{trained} Its {metrics.split} split could judge no observation well enough for a figure."
        return (
            f"{trained} Mean AUROC {metrics.mean_auroc:.3f} over {', '.join(metrics.mean_over)}, on "
            f"{metrics.num_studies:,} studies of its {metrics.split} split."
        )


def facts_of(classifier: CheXpertClassifier) -> ModelFacts:
    """Reads the facts from the folder that a model was loaded from, for a repository in the cache."""
    models = [member.model for member in classifier.members]
    places = [str(model.name_or_path or "") for model in models]
    (model, *others), size = models, classifier.processor.size
    return ModelFacts(
        name=f"of {len(models)} members" if others else model_name(model),
        weights=", ".join(map(_weights, places)),
        num_parameters=sum(parameter.numel() for each in models for parameter in each.parameters()),
        input_size=(size["height"], size["width"]),
        metrics=_metrics(_common_place(places)),
        maps_note="" if others else describe_map_evaluation(model.config.map_evaluation),
        warnings=model_warnings(models),
    )


def _common_place(places: list[str]) -> str:
    """The folder of a model, or the folder of an ensemble; empty for members from anywhere."""
    if len(places) == 1:
        return places[0]
    (first, *others) = {Path(place).parent.parent for place in places}
    return str(first) if not others and (first / ENSEMBLE_FILE).is_file() else ""


def _weights(place: str) -> str:
    digest = sha256_of(Path(place) / "model.safetensors") if place else None
    return f"SHA-256 {digest[:_SHOWN_DIGITS]}" if digest else "not from a file"


def _metrics(place: str) -> Metrics | None:
    """The metrics in a model's folder; None if it holds none."""
    with suppress(OSError, ValidationError):
        return Metrics.model_validate_json((Path(place) / EVALUATION_FILE).read_bytes()) if place else None
    return None
