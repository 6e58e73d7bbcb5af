"""A model's maps on a data set whose findings have known places: hit rates and mIoUs, next to those of baselines.

Four pointers are judged alike: the model, a network of its architecture with random weights, and the two fixed places
of `localization.PRIORS`. A map that does no better than these says nothing about the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.intervals import NAN, BootstrapEstimate
from chexpert_hf.evaluation.localization.chexlocalize import (
    LOCALIZED_OBSERVATIONS,
    MapFile,
    RunLengths,
    image_id,
    write_map,
    write_segmentations,
)
from chexpert_hf.evaluation.localization.ground_truth import GroundTruth
from chexpert_hf.evaluation.localization.localization import (
    Localization,
    MapScore,
    Mask,
    best_threshold,
    iou,
    iou_by_threshold,
    mean_interval,
    score_indication,
    summarize,
)
from chexpert_hf.evaluation.localization.pointing import (
    BASELINES,
    MODEL,
    ScoredImage,
    coarse_map,
    indications,
    map_at,
    scored_images,
    untrained_like,
)
from chexpert_hf.evaluation.metrics import FloatArray
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.saliency import SaliencyMaps

_THUMBNAIL_SIDE = 128
"""Of the radiograph in each of cheXlocalize's pickles, ten an image."""

Thresholds: TypeAlias = float | Mapping[str, float] | None
"""One for all observations, one of each (Otsu's for those left out), or None for Otsu's on every map."""


@dataclass(frozen=True)
class Located:
    """One finding of one image, and how each pointer did on it.

    Attributes:
        path: Of the image, from the split's name on.
        patient: Its patient.
        observation: The finding.
        probability: The model's.
        shape: (height, width) at which maps and ground truth were compared.
        scores: Pointer -> score.
    """

    path: str
    patient: str
    observation: str
    probability: float
    shape: tuple[int, int]
    scores: Mapping[str, MapScore]


@dataclass(frozen=True)
class ObservationLocalization:
    """The figures of one observation.

    Attributes:
        observation: Its name.
        pointers: Of the model and of each baseline.
        gains: Baseline -> hit rate of the model minus that of the baseline, on the same resamples of patients.
        full_set_miou: mIoU over all images, a mask where there is no finding counting as 0, and maps of observations
            below the model's operating point counting as empty; None where it is not known what is absent.
    """

    observation: str
    pointers: Mapping[str, Localization]
    gains: Mapping[str, BootstrapEstimate]
    full_set_miou: BootstrapEstimate | None


@dataclass(frozen=True)
class LocalizationResult:
    """What came out.

    Attributes:
        observations: Those with at least one ground truth, in the model's order.
        located: Each finding of each image, in the order of the data.
        num_images: That were scored.
        source: Of the ground truth.
        thresholds: By which maps became masks.
        replicates: Of the bootstrap.
    """

    observations: Sequence[ObservationLocalization]
    located: Sequence[Located]
    num_images: int
    source: str
    thresholds: Thresholds
    replicates: int


def localize_dataset(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    truth: GroundTruth,
    *,
    thresholds: Thresholds = None,
    replicates: int = 1000,
    seed: int = 0,
    maps_folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> LocalizationResult:
    """Judges a model's maps on a split from `load_chexpert`. Memory does not grow with the number of images.

    Args:
        classifier: The model.
        dataset: The split.
        truth: Where its findings are, from `find_ground_truth`.
        thresholds: By which maps, those of the baselines too, become masks.
        replicates: Of the bootstrap of patients.
        seed: Of the bootstrap and of the untrained network's weights.
        maps_folder: Gets the maps as cheXlocalize's pickles, and the ground truth as `gt_segmentations.json`, where
            findings without a place are absent, also where they merely have no box.
        progress: Called with the number of images that were added.

    Raises:
        InputError: If no image of the split has a ground truth of an observation that the model judges.
        RadiographError: If an image cannot be read.
    """
    paths, patients = dataset["path"][:], dataset["patient"][:]
    rows = rows_with_truth(dataset, truth, classifier.observations)
    tally = _Tally(classifier.observations, thresholds)
    writer = _MapWriter(maps_folder) if maps_folder else None
    untrained = scored_images(untrained_like(classifier, seed), dataset, rows)
    for scored, other in zip(scored_images(classifier, dataset, rows), untrained, strict=True):
        path = paths[scored.row]
        found = _truths(truth, path, classifier.observations, scored.maps.size)
        tally.add(path, patients[scored.row], scored, other.maps, found)
        if writer:
            writer.add(path, scored, found)
        if progress:
            progress(1)
    if writer:
        writer.close()
    return LocalizationResult(
        observations=tally.summaries(truth.is_complete, replicates, seed),
        located=tally.located,
        num_images=len(rows),
        source=truth.source,
        thresholds=thresholds,
        replicates=replicates,
    )


def tune_thresholds(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    truth: GroundTruth,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The threshold of each observation with the highest mIoU on a split, for `localize_dataset` on another one.

    Observations that have no ground truth and map in one image are left out.

    Raises:
        InputError: If no image of the split has a ground truth of an observation that the model judges.
        RadiographError: If an image cannot be read.
    """
    ious: dict[str, list[FloatArray]] = {name: [] for name in classifier.observations}
    paths, rows = dataset["path"][:], rows_with_truth(dataset, truth, classifier.observations)
    for scored in scored_images(classifier, dataset, rows):
        found = _truths(truth, paths[scored.row], classifier.observations, scored.maps.size)
        for name, mask in found.items():
            ious[name].append(iou_by_threshold(map_at(scored.maps, name, mask.shape), mask))
        if progress:
            progress(1)
    defined = {name: np.array(values) for name, values in ious.items() if not np.isnan(values).all()}
    return {name: best_threshold(values) for name, values in defined.items()}


def rows_with_truth(dataset: datasets.Dataset, truth: GroundTruth, observations: Sequence[str]) -> list[int]:
    """The rows to score: those with a ground truth, or all where it is known what is absent.

    Raises:
        InputError: If no image of the split has a ground truth of one of these observations.
    """
    paths = dataset["path"][:]
    rows = [row for row, path in enumerate(paths) if set(truth.findings(path)) & set(observations)]
    if not rows:
        raise InputError(
            f"None of the {len(paths):,} images of this split has a ground truth of what the model judges (looked in: "
            f"{truth.source}); choose another --split, or --annotations of these images."
        )
    return list(range(len(paths))) if truth.is_complete else rows


def _truths(truth: GroundTruth, path: str, observations: Sequence[str], size: tuple[int, int]) -> dict[str, Mask]:
    width, height = size
    return {name: truth.mask(path, name, (height, width)) for name in truth.findings(path) if name in observations}


def _marks_something(scored: ScoredImage, name: str) -> bool:
    """Whether the full set counts a mask: the observation is called, and its map is not the same everywhere."""
    saliency = coarse_map(scored.maps, name)
    return scored.prediction.positives[name] and bool(saliency.max() > saliency.min())


def _threshold(thresholds: Thresholds, name: str) -> float | None:
    return thresholds.get(name) if isinstance(thresholds, Mapping) else thresholds


class _Tally:
    """Gathers the scores of image after image; of the images themselves it keeps nothing."""

    def __init__(self, observations: Sequence[str], thresholds: Thresholds) -> None:
        self.located: list[Located] = []
        self._thresholds = thresholds
        self._patients: list[str] = []  # of each image
        self._full_set: dict[str, list[float]] = {name: [] for name in observations}  # IoU of each image

    def add(
        self,
        path: str,
        patient: str,
        scored: ScoredImage,
        untrained: SaliencyMaps,
        found: Mapping[str, Mask],
    ) -> None:
        prediction = scored.prediction
        self._patients.append(patient)
        for name, mask in found.items():
            pointed = indications(name, scored.maps, untrained, mask.shape, _threshold(self._thresholds, name))
            scores = {pointer: score_indication(each, mask) for pointer, each in pointed.items()}
            self.located.append(Located(path, patient, name, prediction.probabilities[name], mask.shape, scores))
            called = pointed[MODEL].mask & prediction.positives[name]
            self._full_set[name].append(iou(called, mask, true_positives_only=False))
        for name in self._full_set.keys() - found.keys():
            self._full_set[name].append(0.0 if _marks_something(scored, name) else NAN)

    def summaries(self, is_complete: bool, replicates: int, seed: int) -> list[ObservationLocalization]:
        by_name = {name: [item for item in self.located if item.observation == name] for name in self._full_set}
        full_sets = {
            name: mean_interval(self._full_set[name], self._patients, replicates=replicates, seed=seed)
            for name, items in by_name.items()
            if items and is_complete
        }
        return [_summary(items, full_sets.get(name), replicates, seed) for name, items in by_name.items() if items]


def _summary(
    located: Sequence[Located], full_set_miou: BootstrapEstimate | None, replicates: int, seed: int
) -> ObservationLocalization:
    patients = [item.patient for item in located]
    scores = {pointer: [item.scores[pointer] for item in located] for pointer in (MODEL, *BASELINES)}
    hits = {pointer: np.array([score.hit for score in values]) for pointer, values in scores.items()}
    return ObservationLocalization(
        observation=located[0].observation,
        pointers={
            pointer: summarize(values, patients, replicates=replicates, seed=seed) for pointer, values in scores.items()
        },
        gains={
            name: mean_interval(hits[MODEL] - hits[name], patients, replicates=replicates, seed=seed)
            for name in BASELINES
        },
        full_set_miou=full_set_miou,
    )


class _MapWriter:
    """Writes each image's maps as they come, and at the end the ground truth."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._truths: dict[str, dict[str, RunLengths]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: str, scored: ScoredImage, found: Mapping[str, Mask]) -> None:
        name = image_id(path)
        height, width = next((mask.shape for mask in found.values()), scored.maps.size[::-1])
        shown = scored.image.copy()
        shown.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        for observation in scored.maps:
            if observation in LOCALIZED_OBSERVATIONS:
                content = MapFile(
                    observation=observation,
                    saliency=coarse_map(scored.maps, observation),
                    probability=scored.prediction.probabilities[observation],
                    is_positive=observation in found,
                    size=(width, height),
                    image=np.asarray(shown, dtype=np.float32) / np.float32(255),
                )
                write_map(self._folder, name, content)
        self._truths[name] = {observation: RunLengths.encode(mask) for observation, mask in found.items()} or {
            LOCALIZED_OBSERVATIONS[0]: RunLengths.encode(np.zeros((height, width), dtype=bool))
        }

    def close(self) -> None:
        write_segmentations(self._folder / "gt_segmentations.json", self._truths)
