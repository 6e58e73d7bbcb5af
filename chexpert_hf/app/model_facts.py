"""Facts about a model from its folder, for page and HTTP API: name, weights, training data, and metrics."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isclose, isfinite
from pathlib import Path
from typing import Any

from pydantic import AliasPath, BaseModel, Field, NonNegativeInt, ValidationError

from chexpert_hf.evaluation.intervals import Estimate, newcombe_interval, wilson_interval
from chexpert_hf.files import sha256_of
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.models.loading import model_name, model_warnings
from chexpert_hf.models.model_files import CARD_FILE, ENSEMBLE_FILE, EVALUATION_FILE
from chexpert_hf.publishing.data_terms import labels_name
from chexpert_hf.scoring.classifier import CheXpertClassifier

NO_METRICS = "No metrics come with this model."

FEW_STUDIES = 5
"""With fewer positive or fewer negative studies than this, an AUROC means little."""

_SHOWN_DIGITS = 12
_METADATA = re.compile(r"---\n.*?\n---\n+", re.DOTALL)


class Calls(BaseModel):
    """Numbers of studies that are called positive or negative, rightly or wrongly, at one observation's threshold."""

    threshold: float
    true_positives: NonNegativeInt
    false_positives: NonNegativeInt
    true_negatives: NonNegativeInt
    false_negatives: NonNegativeInt

    @property
    def positives(self) -> int:
        """The number of studies that are called positive."""
        return self.true_positives + self.false_positives

    @property
    def rates(self) -> tuple[Estimate, Estimate]:
        """Sensitivity and specificity, with intervals."""
        true, false = self.true_positives, self.true_negatives
        return wilson_interval(true, true + self.false_negatives), wilson_interval(false, false + self.false_positives)

    def __str__(self) -> str:
        true = self.true_positives
        sensitivity, specificity = (f"{each.value:.2f}, {each.low:.2f} to {each.high:.2f}" for each in self.rates)
        return (
            f"Called above: {true:,} of those with it (sensitivity {sensitivity}) and {self.false_positives:,} of "
            f"those without (specificity {specificity}); {true:,} of {self.positives:,} such calls were right."
        )


class ObservationMetrics(BaseModel):
    """The metrics of one observation: AUROC with its 95 % interval, numbers of studies, right and wrong calls."""

    observation: str
    num_positive: int  # studies with the observation
    num_negative: int  # studies without it
    auroc: float | None  # None if not measured, such as without any positive study
    auroc_low: float | None = None  # lower end of the AUROC's interval
    auroc_high: float | None = None  # upper end
    calls: Calls | None = Field(None, validation_alias="operating_point")  # None if unknown at the operating point

    @property
    def estimate(self) -> Estimate | None:
        """The AUROC with its 95 % interval; None if the AUROC was not measured.

        If `evaluation.json` has no interval, one is computed by Newcombe's method, from the numbers of studies.
        """
        if self.auroc is None or not isfinite(self.auroc):
            return None
        if self.auroc_low is None or self.auroc_high is None:
            return newcombe_interval(self.auroc, self.num_positive, self.num_negative)
        return Estimate(self.auroc, self.auroc_low, self.auroc_high)


class Metrics(BaseModel):
    """The metrics of a model on one split, read from its folder's `evaluation.json`, which training writes.

    `data` is the name of the training data. `split_facts` are numbers of images and patients, and the like, of the
    validation split.
    """

    data: str = Field(validation_alias=AliasPath("data", "name"))
    num_training_images: int | None = Field(None, validation_alias=AliasPath("data", "train", "images"))
    split: str
    split_facts: dict[str, Any] = Field({}, validation_alias=AliasPath("data", "valid"))  # see `describe_data`
    num_studies: int
    mean_auroc: float | None
    mean_over: tuple[str, ...]  # the observations in the mean AUROC
    observations: tuple[ObservationMetrics, ...]
    intervals: str = "95 %, from the numbers of studies"
    was_chosen_on_it: bool = True  # whether the checkpoint was chosen on this split

    @property
    def reference_standard(self) -> str:
        """The source of the labels, and the data set, such as "text-mined labels (NIH)"."""
        patients, stated = self.split_facts.get("patients", 0), self.split_facts.get("labels_by", ())
        return f"{labels_name(self.data, self.split, patients, stated)} ({self.data})"

    def of(self, observation: str) -> ObservationMetrics | None:
        """Return the metrics of one observation; None if it was not measured."""
        return next((each for each in self.observations if each.observation == observation and each.estimate), None)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model, or about an ensemble's members together."""

    name: str | None
    sha256: tuple[str | None, ...]  # of each member's weights; None if they are not from a file
    num_parameters: int
    input_size: tuple[int, int]  # (height, width) in pixels
    metrics: Metrics | None = None
    maps_note: str = ""  # whether the maps of a single model point at findings; empty if that was not measured
    warnings: tuple[str, ...] = ()  # of the model, such as that it is not a clinical one
    network: str = "DenseNet121"  # the backbones' names
    card: str = ""  # Markdown, without its metadata
    definitions: Mapping[str, str] = field(default_factory=lambda: CHEXPERT.definitions)  # observation -> meaning

    @property
    def short_checksums(self) -> str:
        """The first digits of the checksum of each member's weights, in one line."""
        return ", ".join(f"SHA-256 {each[:_SHOWN_DIGITS]}" if each else "not from a file" for each in self.sha256)

    def evidence(self, observation: str) -> str:
        """Return in words how well an observation is detected: AUROC, interval, studies, reference standard.

        Return "Not evaluated." if the observation has no metrics.
        """
        metrics = self.metrics
        figure = metrics.of(observation) if metrics else None
        if metrics is None or figure is None or (estimate := figure.estimate) is None:
            return "Not evaluated."
        calls = f" {figure.calls}" if figure.calls else ""
        few = " Too few to mean much." if min(figure.num_positive, figure.num_negative) < FEW_STUDIES else ""
        return (
            f"AUROC {estimate.value:.2f} (95 % interval {estimate.low:.2f} to {estimate.high:.2f}) on "
            f"{figure.num_positive:,} studies with it and {figure.num_negative:,} without.{calls} "
            f"Reference standard: {metrics.reference_standard}.{few}"
        )

    def right_calls(self, above: Sequence[str]) -> tuple[str, ...]:
        """Return a sentence on how often the model's positive calls were right when the model was tested.

        `above` are the findings whose probability is above the operating point in the study shown. The sentence gives
        the lowest and the highest positive predictive value among them. Findings with fewer than `FEW_STUDIES` positive
        calls in the test are ignored. The result is a tuple with the sentence, or () if no finding remains.
        """
        figures = [self.metrics.of(name) for name in above] if self.metrics else []
        shares = {
            each.observation: 100 * each.calls.true_positives / each.calls.positives
            for each in figures
            if each and each.calls and each.calls.positives >= FEW_STUDIES
        }
        if self.metrics is None or not shares:
            return ()
        least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        right = f"{shares[least]:.0f} of 100 such calls of {least}"
        if len(shares) > 1:
            right = f"{shares[least]:.0f} ({least}) to {shares[most]:.0f} ({most}) of 100 such calls"
        tested = f"When tested on {self.metrics.num_studies:,} studies, {right} were right"
        return (f"{tested}; where findings are rarer, fewer are.",)

    @property
    def metrics_line(self) -> str:
        """A line about the training data and the mean AUROC; `NO_METRICS` if the model has no metrics."""
        metrics = self.metrics
        if metrics is None:
            return NO_METRICS
        images = metrics.num_training_images
        trained = f"Trained on {metrics.data}{'' if images is None else f' ({images:,} images)'}."
        if not metrics.mean_over or metrics.mean_auroc is None:
            return f"{trained} Its {metrics.split} split is too small to evaluate any observation."
        return (
            f"{trained} Mean AUROC {metrics.mean_auroc:.3f} over {', '.join(metrics.mean_over)}, on "
            f"{metrics.num_studies:,} studies of its {metrics.split} split."
        )


def describe_map_evaluation(evaluation: Mapping[str, Any] | None) -> str:
    """Return a sentence on whether maps point at findings, from `CheXpertConfig.map_evaluation`; "" if that is empty.

    With several reference standards, the one on which the maps did worst decides.
    """
    if not evaluation:
        return ""
    records = [evaluation, *evaluation.get("further", ())]
    measured = "; ".join(
        f"the maximum of the map lay in {one['hit_rate'] * 100:.0f}\u00a0% of {one['n']:,} marked findings, the best "
        f"constant point in {one['constant_point'] * 100:.0f}\u00a0% (reference: {one['reference']})"
        for one in records
    )
    lows = [wilson_interval(round(one["hit_rate"] * one["n"]), one["n"]).low for one in records]
    if any(one["hit_rate"] <= one["constant_point"] for one in records):
        return f"These maps did not point at findings when tested: {measured}."
    if any(low <= one["constant_point"] for low, one in zip(lows, records, strict=True)):
        return f"When tested, these maps hit findings hardly more often than chance: {measured}."
    return f"When these maps were tested, {measured}."


def facts_of(classifier: CheXpertClassifier) -> ModelFacts:
    """Read the facts about a loaded model from its folder; a model from the Hub has its folder in the Hub's cache."""
    models = [member.model for member in classifier.members]
    paths = [str(model.name_or_path or "") for model in models]
    (model, *others), size = models, classifier.processor.size
    return ModelFacts(
        name=f"of {len(models)} members" if others else model_name(model),
        sha256=tuple(sha256_of(Path(path) / "model.safetensors") if path else None for path in paths),
        num_parameters=sum(parameter.numel() for each in models for parameter in each.parameters()),
        input_size=(size["height"], size["width"]),
        metrics=_metrics(_common_folder(paths), classifier.operating_points),
        maps_note="" if others else describe_map_evaluation(model.config.map_evaluation),
        warnings=model_warnings(models),
        network=", ".join(dict.fromkeys(model.config.network_title for model in models)),
        definitions=classifier.labels.definitions,
        card=_card(_common_folder(paths)),
    )


def _common_folder(paths: list[str]) -> Path | None:
    """Return the folder of a model, or the one that holds all members of an ensemble; None if there is none.

    `paths` are the paths that the members were loaded from, "" if unknown.
    """
    folders = {Path(path) if len(paths) == 1 else Path(path).parent.parent for path in paths}
    folder = folders.pop()
    is_one = not folders and paths[0] and (len(paths) == 1 or (folder / ENSEMBLE_FILE).is_file())
    return folder if is_one else None


def _metrics(folder: Path | None, operating_points: Mapping[str, float]) -> Metrics | None:
    """Read a folder's `evaluation.json`; None if it has no valid one.

    An observation's confusion matrix (`calls`) is dropped if its threshold is not the one in `operating_points`.
    """
    if folder is None:
        return None
    with suppress(OSError, ValidationError):
        metrics = Metrics.model_validate_json((folder / EVALUATION_FILE).read_bytes())
        for each in metrics.observations:
            if each.calls and not isclose(each.calls.threshold, operating_points.get(each.observation, -1)):
                each.calls = None
        return metrics
    return None


def _card(folder: Path | None) -> str:
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / CARD_FILE).read_text(encoding="utf-8") if folder else ""
        return _METADATA.sub("", text, count=1) if text.startswith("---\n") else text
    return ""
