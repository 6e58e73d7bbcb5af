"""Evaluates a model's saliency maps on a data set with located findings, by hit rate and mean IoU, beside baselines.

Four pointers (sources of maps) are compared: the model, the same architecture with random weights, and the two fixed
points of `localization.PRIORS`. A map that is no better than these baselines carries no information about the image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.intervals import BootstrapEstimate
from chexpert_hf.evaluation.localization import chexlocalize, localization
from chexpert_hf.evaluation.localization.chexlocalize import TASK_OF, RunLengths, image_id
from chexpert_hf.evaluation.localization.ground_truth import GroundTruth, Segmentations
from chexpert_hf.evaluation.localization.localization import PRIORS, Mask, PointerMetrics, indicate, mean_interval
from chexpert_hf.evaluation.metrics import NAN
from chexpert_hf.evaluation.sanity.checks import (
    estimate_statistics,
    pixel_values_of,
    randomised_networks,
    sample_rows,
)
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographError
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import SaliencyMaps

MODEL, UNTRAINED = "model", "untrained"
BASELINES = (UNTRAINED, *PRIORS)
POINTERS = (MODEL, *BASELINES)

_COARSE_SIDE = (
    320  # several times finer than any network's maps, so that cheXlocalize's own resizing changes maps little
)
_THUMBNAIL_SIDE = 128  # of the radiograph in a pickle for cheXlocalize, of which an image has ten


@dataclass(frozen=True)
class Finding:
    """One finding in one image, with the score of each pointer's map. Pointers are sources of maps; see `POINTERS`."""

    path: str  # of the image, as in `load_dataset`
    patient: str
    observation: str
    probability: float  # the model's
    shape: tuple[int, int]  # (height, width) at which maps and ground truth were compared
    scores: Mapping[str, localization.MapScore]  # by pointer


@dataclass(frozen=True)
class ObservationLocalization:
    """The metrics of one observation, for each pointer (source of maps; see `POINTERS`).

    `full_set_miou` is the model's mIoU over all images, with or without the finding. In an image without the finding, a
    map that marks any pixel has an IoU of 0. If the probability is below the operating point, the map counts as empty.
    `full_set_miou` is None if the ground truth does not tell which findings are absent.
    """

    observation: str
    pointers: Mapping[str, PointerMetrics]  # one of `POINTERS` -> its metrics
    gains: Mapping[str, BootstrapEstimate]  # baseline -> hit rate of the model minus that of the baseline
    full_set_miou: BootstrapEstimate | None


@dataclass(frozen=True)
class LocalizationResult:
    """The result of `localize_dataset`."""

    observations: Sequence[ObservationLocalization]  # with at least one finding, in the model's order
    findings: Sequence[Finding]  # each finding of each image, in the order of the data
    num_images: int  # that were scored; see `rows_with_truth`
    source: str  # of the ground truth, for reports
    threshold: float | None  # of the maps' masks; None: Otsu's on each map
    replicates: int  # number of bootstrap resamples


def localize_dataset(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    truth: GroundTruth,
    *,
    threshold: float | None = None,
    replicates: int = 1000,
    maps_folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> LocalizationResult:
    """Evaluate a model's maps, and those of the baselines, on a split from `load_dataset`.

    Images are read in batches, and maps are not kept in memory.

    Args:
        classifier: The model. The untrained baseline has the same architecture; for an ensemble, that of its first
            member.
        dataset: The split.
        truth: From `find_ground_truth`.
        threshold: In (0, 1): a map, scaled to [0, 1], marks the pixels where its value is above this. None: Otsu's
            threshold of each map.
        replicates: Number of bootstrap resamples of patients.
        maps_folder: If given, the maps are written to this folder as cheXlocalize's pickles, and the ground truth as
            `gt_segmentations.json`; such files of an earlier run are replaced. A finding without a mask or box gets an
            empty mask in `gt_segmentations.json`, as if the image did not show it.
        progress: Called with 1 after each image.

    Raises:
        InputError: If no image has a ground truth for the model's observations, if an image or mask cannot be used, or
            if `truth` or `maps_folder` uses cheXlocalize's files and two images would have the same id there.
    """
    paths, patients, names = dataset["path"][:], dataset["patient"][:], classifier.observations
    rows = rows_with_truth(dataset, truth, names)
    if maps_folder or isinstance(truth, Segmentations):
        _expect_ids([paths[row] for row in rows])
    for file in maps_folder.glob("*_map.pkl") if maps_folder else ():  # of an earlier run, perhaps of other images
        file.unlink()
    findings: list[Finding] = []
    full_set: dict[str, list[float]] = {name: [] for name in names}  # IoU of each image
    written: dict[str, dict[str, RunLengths]] = {}
    all_files = image_files(dataset)
    files = [all_files[row] for row in sample_rows(len(dataset), BATCH_SIZE)]  # with or without a ground truth
    untrained = scored_images(untrained_like(classifier, files), dataset, rows)
    scored = scored_images(classifier, dataset, rows)
    for row, (image, prediction), (_, other) in zip(rows, scored, untrained, strict=True):
        path, (width, height) = paths[row], prediction.maps.size
        found = {name: truth.mask(path, name, (height, width)) for name in truth.findings(path) if name in names}
        for name, mask in found.items():
            pointed = {
                MODEL: indicate(prediction.maps.at_size(mask.shape[::-1])[name], threshold),
                UNTRAINED: indicate(other.maps.at_size(mask.shape[::-1])[name], threshold),
                **{prior: _prior_indication(prior, mask.shape, threshold) for prior in PRIORS},
            }
            scores = {pointer: localization.score_indication(each, mask) for pointer, each in pointed.items()}
            findings.append(Finding(path, patients[row], name, prediction.probabilities[name], mask.shape, scores))
            called = pointed[MODEL].mask & prediction.positives[name]
            full_set[name].append(localization.iou(called, mask, true_positives_only=False))
        for name in full_set.keys() - found.keys():
            saliency = map_before_resizing(prediction.maps, name)
            marks_something = prediction.positives[name] and bool(saliency.max() > saliency.min())
            full_set[name].append(0.0 if marks_something else NAN)
        if maps_folder:
            written[image_id(path)] = _write_maps(maps_folder, image_id(path), image, prediction, found)
        if progress:
            progress(1)
    if maps_folder:
        chexlocalize.write_segmentations(maps_folder / "gt_segmentations.json", written)
    whose = [patients[row] for row in rows]
    mious = {name: mean_interval(full_set[name], whose, replicates) if truth.is_complete else None for name in names}
    by_name = {name: [item for item in findings if item.observation == name] for name in names}
    observations = [_summary(items, mious[name], replicates) for name, items in by_name.items() if items]
    return LocalizationResult(observations, findings, len(rows), truth.source, threshold, replicates)


def rows_with_truth(dataset: datasets.Dataset, truth: GroundTruth, observations: Sequence[str]) -> list[int]:
    """Return the rows to score: all if the ground truth tells which findings are absent, else those with a finding.

    Raises InputError if no image has a located finding among `observations`.
    """
    paths = dataset["path"][:]
    rows = [row for row, path in enumerate(paths) if set(truth.findings(path)) & set(observations)]
    if not rows:
        raise InputError(
            f"None of the {len(paths):,} images of this split has a ground truth of what the model judges (looked in: "
            f"{truth.source}); choose another --split, or --annotations of these images."
        )
    return list(range(len(paths))) if truth.is_complete else rows


def _expect_ids(paths: Sequence[str]) -> None:
    """Raise InputError if two different paths have the same `image_id`, by which cheXlocalize's files name images."""
    found: dict[str, str] = {}
    for path in paths:
        if (other := found.setdefault(image_id(path), path)) != path:
            raise InputError(
                f"{other} and {path} are both {image_id(path)!r} in cheXlocalize's files, which take the last three "
                "parts of a path; rename a folder or file, or leave out --write-maps."
            )


def scored_images(
    classifier: CheXpertClassifier, dataset: datasets.Dataset, rows: Sequence[int]
) -> Iterator[tuple[Image.Image, Prediction]]:
    """Yield the image of each row, as the model read it (possibly scaled down), and its prediction with maps."""
    files, read = image_files(dataset), list[Radiograph]()

    def images() -> Iterator[Radiograph]:
        for row in rows:
            read.append(read_file(classifier, files[row]))
            yield read[-1]

    for prediction in classifier.predict_prepared(map(classifier.prepare, images()), saliency=True):
        yield read.pop(0).image, prediction


def untrained_like(
    classifier: CheXpertClassifier, files: Sequence[RadiographFile], seed: int = 0
) -> CheXpertClassifier:
    """Return a classifier with random weights and the architecture of `classifier`, or of an ensemble's first member.

    The BatchNorm layers of the new classifier get the statistics of the images in `files` as one batch. With the
    statistics of a new model, the maps of all images would be nearly the same.
    """
    untrained = CheXpertClassifier(randomised_networks(classifier.model, seed)[1], classifier.processor)
    images = []
    for file in files:
        with suppress(RadiographError):  # skipped here: if it has a ground truth, scoring it raises the error
            images.append(read_file(classifier, file).image)
    estimate_statistics(untrained.model, pixel_values_of(untrained, images))
    return untrained


def map_before_resizing(maps: SaliencyMaps, name: str) -> NDArray[np.float32]:
    """Return the positive part of an observation's map over the whole image.

    The result has the size of the last feature maps. If the network saw only a part of the image, the result has
    the size `(_COARSE_SIDE, _COARSE_SIDE)` instead, and is 0 outside that part.
    """
    if maps.box == (0, 0, *maps.size):
        return maps.positive[list(maps.observations).index(name)].numpy()
    return maps.at_size((_COARSE_SIDE, _COARSE_SIDE))[name]


@lru_cache(maxsize=8)
def _prior_indication(prior: str, shape: tuple[int, int], threshold: float | None) -> localization.Indication:
    return indicate(localization.prior_map(PRIORS[prior], shape), threshold)


def _summary(items: Sequence[Finding], full_miou: BootstrapEstimate | None, replicates: int) -> ObservationLocalization:
    patients = [item.patient for item in items]
    scores = {pointer: [item.scores[pointer] for item in items] for pointer in POINTERS}
    hits = {pointer: np.array([score.hit for score in values]) for pointer, values in scores.items()}
    return ObservationLocalization(
        observation=items[0].observation,
        pointers={pointer: localization.summarize(values, patients, replicates) for pointer, values in scores.items()},
        gains={name: mean_interval(hits[MODEL] - hits[name], patients, replicates) for name in BASELINES},
        full_set_miou=full_miou,
    )


def _write_maps(
    folder: Path, name: str, image: Image.Image, prediction: Prediction, found: Mapping[str, Mask]
) -> dict[str, RunLengths]:
    """Write the maps of the image with the id `name` as cheXlocalize's pickles; return its compressed ground truth.

    `found` is the ground truth, observation -> mask. If `found` is empty, an empty mask of one observation is returned,
    since `write_segmentations` needs a mask to know the image's size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    height, width = next((mask.shape for mask in found.values()), prediction.maps.size[::-1])
    shown = image.copy()
    shown.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    for observation in TASK_OF.keys() & set(prediction.maps):
        chexlocalize.write_map(
            folder,
            name,
            observation,
            map_before_resizing(prediction.maps, observation),
            probability=prediction.probabilities[observation],
            is_positive=observation in found,
            size=(width, height),
            picture=np.asarray(shown, dtype=np.float32) / np.float32(255),
        )
    empty = {next(iter(TASK_OF)): RunLengths.encode(np.zeros((height, width), dtype=bool))}
    return {observation: RunLengths.encode(mask) for observation, mask in found.items()} or empty
