"""Runs the sanity checks of `sanity` on a model's maps of radiographs.

It takes three forward passes over the radiographs, and for the curves as many pictures as `removal.PAIRS` says.
"""

import copy
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import FloatArray
from chexpert_hf.evaluation.sanity.image_regions import frame, outside_body, side_marker
from chexpert_hf.evaluation.sanity.removal import choose_pairs, removal_check
from chexpert_hf.evaluation.sanity.sanity import SanityChecks, check_region, check_weights, mass_inside
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import POSITIVE
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier
from chexpert_hf.scoring.saliency import resize_maps

OUTSIDE, FRAME, MARKER = "outside the body", "outer frame", "side marker"
_MODEL, _HEAD, _ALL = "model", "head", "all weights"

_STREAM = 1810_03292  # any number that nobody takes for a seed
_NOWHERE = "No Finding"  # the absence of findings is nowhere in particular
_PICTURE_SIDE = 320  # of the picture in which regions are found: the paper's, in which letters can be read


def check_sanity(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    *,
    is_positive: NDArray[np.bool_] | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SanityChecks:
    """Checks the maps of one model, no ensemble, on two or more radiographs.

    Curves are made for what `is_positive` `(num_files, num_labels)` and for what the model calls positive at its
    operating points; the regions are judged on the latter only. All radiographs are of different people if `patients`
    is None. Progress is called with the number of radiographs and curves that were added.

    Raises:
        InputError: If it is an ensemble, there are fewer than two radiographs or one cannot be read.
    """
    if len(classifier.members) > 1:
        raise InputError(
            f"Sanity checks are for one model, got an ensemble of {len(classifier.members)}; name a member."
        )
    if len(files) < 2:
        raise InputError(
            f"Expected two or more radiographs, to compare their maps with each other's, got {len(files)}."
        )
    patients = patients or [str(number) for number in range(len(files))]
    probabilities, by_network, masses, areas = _run(classifier, files, seed, progress)
    points = np.array([classifier.operating_points[name] for name in classifier.observations])
    is_finding = np.array([name != _NOWHERE for name in classifier.observations])
    is_called = (probabilities >= points) & is_finding
    is_wanted = is_called if is_positive is None else is_called | (is_positive & is_finding)
    pairs = choose_pairs(probabilities, is_wanted)
    maps = by_network[_MODEL]
    return SanityChecks(
        num_images=len(files),
        map_size=(maps.shape[2], maps.shape[3]),
        seed=seed,
        observations=classifier.observations,
        weights=[check_weights(name, maps, by_network[name], patients) for name in (_HEAD, _ALL)],
        regions=[
            check_region(name, np.where(is_called, masses[name], np.nan), shares, patients)
            for name, shares in areas.items()
        ],
        removal=removal_check(classifier, files, maps, pairs, patients, seed, progress),
    )


def dataset_sanity(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    limit: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SanityChecks:
    """`check_sanity` on at most `limit` radiographs, drawn by `seed`, of a split from `load_dataset`."""
    part = dataset.select(sample_rows(len(dataset), limit, seed))
    return check_sanity(
        classifier,
        image_files(part),
        is_positive=np.asarray(part["labels"][:]) == POSITIVE,
        patients=part["patient"][:],
        seed=seed,
        progress=progress,
    )


def sample_rows(count: int, limit: int, seed: int = 0) -> list[int]:
    """At most `limit` of `count` rows, drawn without replacement, in their order."""
    rows = np.random.default_rng(seed).choice(count, size=min(count, limit), replace=False)
    return sorted(rows.tolist())


def redrawn_networks(
    model: CheXpertForImageClassification, seed: int
) -> tuple[CheXpertForImageClassification, CheXpertForImageClassification]:
    """Copies of a model with a randomised head, and with every weight randomised as for a new model.

    The statistics of the second one's BatchNorm are those of a new model and are still to be estimated.
    """
    # Not the seed itself: it may be the one that the model was trained with, whose weights then began as these.
    stream = np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream)
        fresh = type(model)(copy.deepcopy(model.config))
    fresh = fresh.to(model.device, model.dtype).eval()
    other_head = copy.deepcopy(model).eval()
    other_head.classifier = fresh.classifier
    return other_head, fresh


@torch.no_grad()
def estimate_statistics(model: CheXpertForImageClassification, pixel_values: Tensor) -> None:
    """Gives BatchNorm the statistics of one batch; with those of a new model, random features would fade or explode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over the batches, of which there is one
    model.train()
    model(pixel_values)
    model.eval()


@torch.inference_mode()
def _run(
    classifier: CheXpertClassifier, files: Sequence[RadiographFile], seed: int, progress: Callable[[int], None] | None
) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray], dict[str, FloatArray]]:
    """Runs the model and the randomised ones over n radiographs, for L observations.

    Returns:
        The model's probabilities `(n, L)`, the maps `(n, L, h, w)` of each network, and for each region the share
        `(n, L)` of the model's maps in it and that of the picture `(n,)`.
    """
    other_head, fresh = redrawn_networks(classifier.model, seed)
    networks = {_MODEL: classifier.model, _HEAD: other_head, _ALL: fresh}
    size = (_PICTURE_SIDE, _PICTURE_SIDE)
    probabilities: list[FloatArray] = []
    maps: dict[str, list[FloatArray]] = {name: [] for name in networks}
    masses: dict[str, list[FloatArray]] = {name: [] for name in (OUTSIDE, FRAME, MARKER)}
    areas: dict[str, list[float]] = {name: [] for name in masses}
    for start in range(0, len(files), BATCH_SIZE):
        images = [read_file(classifier, file).image for file in files[start : start + BATCH_SIZE]]
        pixel_values = classifier.processor(images, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(classifier.model.device, classifier.model.dtype)
        if start == 0:
            estimate_statistics(fresh, pixel_values)
        for name, network in networks.items():
            output = network(pixel_values, output_saliency=True)
            saliency = output.saliency.float().cpu()
            maps[name].append(saliency.numpy())
            if name == _MODEL:
                probabilities.append(output.logits.float().sigmoid().cpu().numpy())
                full = [resize_maps(item.clamp(min=0), size) for item in saliency]
        for image, positive in zip(images, full, strict=True):
            for name, region in _regions(classifier.processor, image).items():
                masses[name].append(mass_inside(positive, region))
                areas[name].append(region.mean())
        if progress:
            progress(len(images))
    return (
        np.concatenate(probabilities),
        {name: np.concatenate(batches) for name, batches in maps.items()},
        {name: np.array(rows) for name, rows in masses.items()},
        {name: np.array(rows) for name, rows in areas.items()},
    )


def _regions(processor: CheXpertImageProcessor, image: Image.Image) -> dict[str, NDArray[np.bool_]]:
    """The regions of the part of a radiograph that the model sees, where its maps lie; found on all of it."""
    size = (_PICTURE_SIDE, _PICTURE_SIDE)
    picture = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    left, top, right, bottom = processor.seen_box(*image.size)
    x, y = _PICTURE_SIDE / image.width, _PICTURE_SIDE / image.height
    box = (round(left * x), round(top * y), round(right * x), round(bottom * y))
    found = {OUTSIDE: outside_body(picture), FRAME: None, MARKER: side_marker(picture)}
    return {
        name: frame(size) if mask is None else np.asarray(Image.fromarray(mask).crop(box).resize(size))
        for name, mask in found.items()
    }
