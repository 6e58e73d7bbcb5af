"""A model's maps put to the test on radiographs; what is checked, and why, stands in `sanity`.

It takes three passes over the radiographs, and for the curves as many pictures as `removal.PAIRS` says: about 600 for
50 radiographs. At the .13 s that DenseNet121 takes for one of 320 pixels on one core, that is a minute and a half.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
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

Floats: TypeAlias = NDArray[np.floating]

OUTSIDE, FRAME, MARKER = "outside the body", "outer frame", "side marker"

_MODEL, _HEAD, _ALL = "model", "head", "all weights"

_STREAM = 1810_03292  # any number that nobody takes for a seed

# The absence of findings is nowhere in particular.
_NOWHERE = frozenset({"No Finding"})

# The side of the picture in which regions are found: the paper's, in which letters can be read.
_PICTURE_SIDE = 320


@dataclass(frozen=True)
class _Seen:
    """What the networks made of the radiographs: n of them, L observations."""

    probabilities: Floats  # (n, L), the model's
    maps: dict[str, Floats]  # network -> (n, L, h, w)
    masses: dict[str, Floats]  # region -> (n, L), of the model's maps
    areas: dict[str, Floats]  # region -> (n,)


def check_sanity(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    *,
    is_positive: NDArray[np.bool_] | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SanityChecks:
    """Checks the maps of one model, which stays as it is.

    Args:
        classifier: One model, no ensemble.
        files: The radiographs, two or more.
        is_positive: `(num_files, num_labels)`: what is labelled positive. Curves are made for that and for what the
            model calls positive at its operating points. The regions are judged on the latter only: where little
            speaks for a finding, the positive part of its map is what was left over.
        patients: The patient of each radiograph; all are different people if None.
        seed: Of the re-drawn weights and the random order.
        progress: Called with the number of radiographs and curves that were added.

    Raises:
        InputError: If it is an ensemble, or there are fewer than two radiographs.
        RadiographError: If one cannot be read.
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
    seen = _look(classifier, files, seed, progress)
    points = np.array([classifier.operating_points[name] for name in classifier.observations])
    is_finding = np.array([name not in _NOWHERE for name in classifier.observations])
    is_called = (seen.probabilities >= points) & is_finding
    is_wanted = is_called if is_positive is None else is_called | (is_positive & is_finding)
    pairs = choose_pairs(seen.probabilities, is_wanted)
    maps = seen.maps[_MODEL]
    return SanityChecks(
        observations=classifier.observations,
        num_images=len(files),
        map_size=(maps.shape[2], maps.shape[3]),
        seed=seed,
        weights=[check_weights(name, maps, seen.maps[name], patients) for name in (_HEAD, _ALL)],
        regions=[
            check_region(name, np.where(is_called, seen.masses[name], np.nan), seen.areas[name], patients)
            for name in seen.areas
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
    """`check_sanity` on at most `limit` radiographs, drawn by `seed`, of a split from `load_chexpert`."""
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
    """Copies of a model with a re-drawn head, and with every weight re-drawn as for a new model.

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


def _look(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    seed: int,
    progress: Callable[[int], None] | None,
) -> _Seen:
    """Runs the model and the re-drawn ones over all radiographs."""
    other_head, fresh = redrawn_networks(classifier.model, seed)
    networks = {_MODEL: classifier.model, _HEAD: other_head, _ALL: fresh}
    batches = []
    for start in range(0, len(files), BATCH_SIZE):
        images = [read_file(classifier, file) for file in files[start : start + BATCH_SIZE]]
        pixel_values = classifier.processor(images, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(classifier.model.device, classifier.model.dtype)
        if start == 0:
            estimate_statistics(fresh, pixel_values)
        batches.append(_look_at(classifier.processor, networks, images, pixel_values))
        if progress:
            progress(len(images))
    first = batches[0]
    return _Seen(
        probabilities=np.concatenate([batch.probabilities for batch in batches]),
        maps={name: np.concatenate([batch.maps[name] for batch in batches]) for name in first.maps},
        masses={name: np.concatenate([batch.masses[name] for batch in batches]) for name in first.masses},
        areas={name: np.concatenate([batch.areas[name] for batch in batches]) for name in first.areas},
    )


@torch.inference_mode()
def _look_at(
    processor: CheXpertImageProcessor,
    networks: dict[str, CheXpertForImageClassification],
    images: list[Image.Image],
    pixel_values: Tensor,
) -> _Seen:
    outputs = {name: network(pixel_values, output_saliency=True) for name, network in networks.items()}
    maps = {name: output.saliency.float().cpu() for name, output in outputs.items()}
    regions = [_regions(processor, image) for image in images]
    size = (_PICTURE_SIDE, _PICTURE_SIDE)
    full = [resize_maps(item.clamp(min=0), size) for item in maps[_MODEL]]
    return _Seen(
        probabilities=outputs[_MODEL].logits.float().sigmoid().cpu().numpy(),
        maps={name: item.numpy() for name, item in maps.items()},
        masses={
            name: np.array([mass_inside(item, region[name]) for item, region in zip(full, regions, strict=True)])
            for name in regions[0]
        },
        areas={name: np.array([region[name].mean() for region in regions]) for name in regions[0]},
    )


def _regions(processor: CheXpertImageProcessor, image: Image.Image) -> dict[str, NDArray[np.bool_]]:
    """The regions of the part of a radiograph that the model sees, where its maps lie; found on all of it."""
    size = (_PICTURE_SIDE, _PICTURE_SIDE)
    picture = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    left, top, right, bottom = processor.seen_box(*image.size)
    x, y = _PICTURE_SIDE / image.width, _PICTURE_SIDE / image.height
    box = (round(left * x), round(top * y), round(right * x), round(bottom * y))
    found = {OUTSIDE: outside_body(picture), MARKER: side_marker(picture)}
    seen = {name: np.asarray(Image.fromarray(mask).crop(box).resize(size)) for name, mask in found.items()}
    return {OUTSIDE: seen[OUTSIDE], FRAME: frame(size), MARKER: seen[MARKER]}
