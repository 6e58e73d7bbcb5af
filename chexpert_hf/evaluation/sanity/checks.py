"""Runs the sanity checks of `sanity` on a model's saliency maps of radiographs.

The checks of weights and regions take three forward passes per radiograph; the deletion and insertion curves take at
most `3 * STEPS - 1` for each of up to `PAIRS` pairs (radiograph, observation). A cell of the map is removed by blurring
its block of pixels. Petsiuk et al. set pixels to grey, which would add edges that no radiograph has.

Source: Petsiuk et al. 2018, arXiv:1806.07421.
"""

import copy
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import FloatArray
from chexpert_hf.evaluation.sanity import sanity
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import POSITIVE
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier
from chexpert_hf.scoring.saliency import resize_maps

PAIRS = 12  # pairs of a radiograph and an observation that get curves, at most
STEPS = 12  # steps until all cells are removed; fewer if a map has fewer cells
BLUR = 0.1  # standard deviation, as a share of the picture's side: wide enough to hide findings

OUTSIDE, FRAME, MARKER = "outside the body", "outer frame", "side marker"
_MODEL, _HEAD, _ALL = "model", "head", "all weights"

_STREAM = 1810_03292  # joined to the seed, as the model may have been trained with the same one
_SIZE = (320, 320)  # of the picture in which regions are found: the paper's, in which letters can be read

Pair = tuple[int, int]  # row of a radiograph and column of an observation


def check_sanity(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    *,
    is_positive: NDArray[np.bool_] | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> sanity.SanityChecks:
    """Check the maps of one model on two or more radiographs.

    There are three checks:

    - Weights: all maps are compared with those of randomised networks.
    - Regions: the share of a map that lies in regions without findings, such as outside the body. Only maps of
      observations that the model calls positive are checked.
    - Removal: deletion and insertion curves, for at most `PAIRS` maps. These are maps of observations that the model
      calls positive, or that are true in `is_positive`.

    Maps of No Finding, or its counterpart in another label set, are used in the check of weights only.

    Args:
        classifier: The model.
        files: The radiographs.
        is_positive: `(num_files, num_labels)`: the observations that are known to be positive.
        patients: The patient of each file; None: all differ.
        seed: Of all random choices.
        progress: Called with the number of radiographs just scored, then with 1 for each map whose curves were made.

    Raises:
        InputError: If the model is an ensemble, there are fewer than two radiographs or one cannot be read.
    """
    if len(classifier.members) > 1:
        raise InputError(f"Sanity checks take one model, got an ensemble of {len(classifier.members)}; name a member.")
    if len(files) < 2:
        raise InputError(f"Expected two or more radiographs to compare their maps with each other's, got {len(files)}.")
    patients = patients or [str(number) for number in range(len(files))]
    probabilities, by_network, masses, areas = _scores_and_maps(classifier, files, seed, progress)
    points = np.array([classifier.operating_points[name] for name in classifier.observations])
    is_finding = np.array([name != classifier.labels.none_of_these for name in classifier.observations])
    is_called = (probabilities >= points) & is_finding
    is_wanted = is_called if is_positive is None else is_called | (is_positive & is_finding)
    pairs = choose_pairs(probabilities, is_wanted)
    maps = by_network[_MODEL]
    return sanity.SanityChecks(
        num_images=len(files),
        map_size=(maps.shape[2], maps.shape[3]),
        seed=seed,
        observations=classifier.observations,
        weights=[sanity.check_weights(name, maps, by_network[name], patients) for name in (_HEAD, _ALL)],
        regions=[
            sanity.check_region(name, np.where(is_called, masses[name], np.nan), shares, patients)
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
) -> sanity.SanityChecks:
    """Run `check_sanity` on a random sample of at most `limit` radiographs of a split from `load_dataset`."""
    part = dataset.select(sample_rows(len(dataset), limit, seed))
    is_positive, patients = np.asarray(part["labels"][:]) == POSITIVE, part["patient"][:]
    files = image_files(part)
    return check_sanity(classifier, files, is_positive=is_positive, patients=patients, seed=seed, progress=progress)


def sample_rows(count: int, limit: int, seed: int = 0) -> list[int]:
    """Return at most `limit` of the row numbers below `count`, sampled without replacement, in ascending order."""
    rows = np.random.default_rng(seed).choice(count, size=min(count, limit), replace=False)
    return sorted(rows.tolist())


def randomised_networks(
    model: CheXpertForImageClassification, seed: int
) -> tuple[CheXpertForImageClassification, CheXpertForImageClassification]:
    """Return two copies of a model: one with a randomised head, and one with all weights randomised as in a new model.

    Call `estimate_statistics` on the second copy: its BatchNorm layers still have the statistics of a new model.
    """
    stream = np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream)
        fresh = type(model)(copy.deepcopy(model.config))
    fresh = fresh.to(model.device, model.dtype).eval()
    other_head = copy.deepcopy(model).eval()
    other_head.classifier = fresh.classifier
    return other_head, fresh


def pixel_values_of(classifier: CheXpertClassifier, images: Sequence[Image.Image]) -> Tensor:
    """Return normalised pixel values `(N, channels, height, width)` of images, with the model's dtype and device."""
    pixel_values: Tensor = classifier.processor(images, return_tensors="pt")["pixel_values"]
    return pixel_values.to(classifier.model.device, classifier.model.dtype)


@torch.no_grad()
def estimate_statistics(model: CheXpertForImageClassification, pixel_values: Tensor) -> None:
    """Set the running statistics of a model's BatchNorm layers to those of one batch, in place.

    With the statistics of a new model, features under random weights would fade or explode.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches; here, one
    model.train()
    model(pixel_values)
    model.eval()


@torch.inference_mode()
def _scores_and_maps(
    classifier: CheXpertClassifier, files: Sequence[RadiographFile], seed: int, progress: Callable[[int], None] | None
) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray], dict[str, FloatArray]]:
    """Score n radiographs for L observations, and compute the maps of the model and of its two randomised networks.

    Returns the model's probabilities `(n, L)`; network -> maps `(n, L, h, w)`; region -> share `(n, L)` of each of the
    model's maps in the region; and region -> share `(n,)` of each picture in the region.
    """
    other_head, fresh = randomised_networks(classifier.model, seed)
    networks = {_MODEL: classifier.model, _HEAD: other_head, _ALL: fresh}
    probabilities: list[FloatArray] = []
    maps: dict[str, list[FloatArray]] = {name: [] for name in networks}
    masses: dict[str, list[FloatArray]] = {name: [] for name in (OUTSIDE, FRAME, MARKER)}
    areas: dict[str, list[float]] = {name: [] for name in masses}
    for start in range(0, len(files), BATCH_SIZE):
        images = [read_file(classifier, file).image for file in files[start : start + BATCH_SIZE]]
        pixel_values = pixel_values_of(classifier, images)
        if start == 0:
            estimate_statistics(fresh, pixel_values)
        for name, network in networks.items():
            output = network(pixel_values, output_saliency=True)
            maps[name].append(output.saliency.float().cpu().numpy())
            if name == _MODEL:
                probabilities.append(output.logits.float().sigmoid().cpu().numpy())
        for image, saliency in zip(images, maps[_MODEL][-1], strict=True):
            positive = resize_maps(torch.from_numpy(saliency).clamp(min=0), _SIZE)
            for name, region in _regions(classifier.processor, image).items():
                masses[name].append(sanity.mass_inside(positive, region))
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
    """Return region -> mask over the part of the image that the model sees.

    The frame runs along the edges of that part. The two other regions, outside the body and side marker, are detected
    in the whole image and then cropped to the part.
    """
    picture = np.asarray(image.resize(_SIZE, Image.Resampling.BILINEAR))
    left, top, right, bottom = processor.seen_box(*image.size)
    x, y = _SIZE[0] / image.width, _SIZE[1] / image.height
    box = (round(left * x), round(top * y), round(right * x), round(bottom * y))
    found = {OUTSIDE: sanity.outside_body(picture), MARKER: sanity.side_marker(picture)}
    seen = {name: np.asarray(Image.fromarray(mask).crop(box).resize(_SIZE)) for name, mask in found.items()}
    return seen | {FRAME: sanity.frame(_SIZE)}


def choose_pairs(probabilities: FloatArray, is_wanted: NDArray[np.bool_]) -> list[Pair]:
    """Choose at most `PAIRS` (row, column) pairs where `is_wanted` `(num_images, num_labels)` is true.

    Observations (columns) take turns; each one's images (rows) are taken by falling probability.
    """
    order = np.argsort(np.where(is_wanted, -probabilities, np.inf), axis=0, kind="stable")  # (num_images, num_labels)
    pairs = [(row, column) for rows in order.tolist() for column, row in enumerate(rows)]
    return [pair for pair in pairs if is_wanted[pair]][:PAIRS]


def removal_check(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    maps: FloatArray,
    pairs: Sequence[Pair],
    patients: Sequence[str],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> sanity.RemovalCheck:
    """Compute deletion and insertion curves for (radiograph, observation) pairs, and their gains over random order.

    Cells are removed in the order of the signed maps `(num_files, num_labels, h, w)`, highest first.
    """
    rng = np.random.default_rng(seed)
    cells = maps.shape[2] * maps.shape[3]
    steps = min(STEPS, cells)
    curves = np.empty((3, len(pairs), steps + 1))
    for number, (row, column) in enumerate(pairs):
        images = [read_file(classifier, files[row]).image]
        pixel_values = classifier.processor(images, return_tensors="pt")["pixel_values"]
        orders = np.argsort(-maps[row, column].ravel(), kind="stable"), rng.permutation(cells)
        curves[:, number] = removal_curves(classifier.model, pixel_values, column, *orders, maps.shape[2:], steps)
        if progress:
            progress(1)
    names = [classifier.observations[column] for _, column in pairs]
    fractions = sanity.removal_steps(np.arange(cells), steps)[1]
    deletion, insertion, random = curves
    patients = [patients[row] for row, _ in pairs]
    return sanity.check_removal(names, fractions, deletion, insertion, random, patients)


@torch.inference_mode()
def removal_curves(
    model: CheXpertForImageClassification,
    pixel_values: Tensor,
    column: int,
    order: NDArray[np.integer],
    random_order: NDArray[np.integer],
    map_shape: tuple[int, ...],
    steps: int,
) -> FloatArray:
    """Compute the probability of one observation (column) while cells of one image are removed or inserted in steps.

    Pixel values are `(1, num_channels, height, width)`. `order` and `random_order` `(h * w,)` list the numbers of all
    cells of a map of `map_shape` (h, w) in the order in which they are removed or inserted. Returns `(3, steps + 1)`:
    deletion in `order`, insertion in `order`, and deletion in `random_order`.
    """
    is_gone, _ = sanity.removal_steps(order, steps)
    is_gone_at_random, _ = sanity.removal_steps(random_order, steps)
    # The ends of all curves, with no cell and with all cells removed, are the same and are computed once.
    states = np.concatenate([is_gone, ~is_gone[1:-1], is_gone_at_random[1:-1]]).reshape(-1, *map_shape)
    height, width = pixel_values.shape[-2:]
    blurred = ndimage.gaussian_filter(pixel_values.float().numpy(), (0, 0, BLUR * height, BLUR * width))
    replacement = torch.from_numpy(blurred).to(model.device, model.dtype)
    original = pixel_values.to(model.device, model.dtype)
    parts = []
    for batch in torch.from_numpy(states).to(model.device, model.dtype).split(BATCH_SIZE):
        gone = functional.interpolate(batch[:, None], size=(height, width), mode="nearest") > 0.5
        parts.append(model(torch.where(gone, replacement, original)).logits[:, column].float().sigmoid())
    probabilities = torch.cat(parts).cpu().numpy()
    full, empty = probabilities[[0]], probabilities[[steps]]
    deletion, insertion, random = np.split(probabilities, [steps + 1, 2 * steps])
    return np.stack([deletion, np.concatenate([empty, insertion, full]), np.concatenate([full, random, empty])])
