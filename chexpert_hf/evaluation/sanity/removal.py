"""Deletion and insertion curves: what a probability does when places go, or come, in the order of the map.

A place is a cell of the map, so that both orders remove blocks of one size. What is removed becomes its blurred self:
Petsiuk et al. delete to grey, but patches of another brightness are edges that no radiograph has.

Source: Petsiuk et al. 2018, arXiv:1806.07421.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from chexpert_hf.evaluation.sanity.sanity import RemovalCheck, check_removal, removal_steps
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier

PAIRS = 12
"""Radiographs with an observation that get curves, at most; each costs `3 * STEPS - 1` pictures."""

STEPS = 12
"""In which all places are removed; fewer where a map has fewer places."""

BLUR = 0.1
"""Standard deviation of the blur, in shares of the picture's side: wide enough to take findings away."""

Pair = tuple[int, int]
"""Row of a radiograph and column of an observation."""


def choose_pairs(probabilities: NDArray[np.floating], is_wanted: NDArray[np.bool_]) -> list[Pair]:
    """At most `PAIRS`, in turn from each observation, its highest probability first.

    Args:
        probabilities: `(num_images, num_labels)`.
        is_wanted: Of the same shape: what may be chosen.
    """
    queues = []
    for column in range(probabilities.shape[1]):
        rows = np.flatnonzero(is_wanted[:, column])
        best = rows[np.argsort(-probabilities[rows, column], kind="stable")]
        queues.append([(int(row), column) for row in best])
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)][:PAIRS]


def removal_check(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    maps: NDArray[np.floating],
    pairs: Sequence[Pair],
    patients: Sequence[str],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> RemovalCheck:
    """Makes the curves of these pairs.

    Args:
        classifier: One model.
        files: The radiographs.
        maps: `(num_files, num_labels, h, w)`, signed.
        pairs: From `choose_pairs`.
        patients: The patient of each radiograph.
        seed: Of the random order.
        progress: Called with the number of pairs that were added.

    Raises:
        RadiographError: If a radiograph cannot be read; it says which.
    """
    rng = np.random.default_rng(seed)
    places = maps.shape[2] * maps.shape[3]
    steps = min(STEPS, places)
    deletion, insertion, random = np.empty((3, len(pairs), steps + 1))
    for number, (row, column) in enumerate(pairs):
        order = np.argsort(-maps[row, column].ravel(), kind="stable")
        pixel_values = classifier.processor([read_file(classifier, files[row]).image], return_tensors="pt")
        deletion[number], insertion[number], random[number] = removal_curves(
            classifier.model,
            pixel_values["pixel_values"],
            column,
            order,
            rng.permutation(places),
            maps.shape[2:],
            steps,
        )
        if progress:
            progress(1)
    return check_removal(
        [classifier.observations[column] for _, column in pairs],
        removal_steps(np.arange(places), steps)[1],
        deletion,
        insertion,
        random,
        [patients[row] for row, _ in pairs],
    )


@torch.inference_mode()
def removal_curves(
    model: CheXpertForImageClassification,
    pixel_values: Tensor,
    column: int,
    order: NDArray[np.integer],
    random_order: NDArray[np.integer],
    map_shape: tuple[int, ...],
    steps: int,
) -> NDArray[np.floating]:
    """Probabilities of one observation while places of one picture are removed or put in.

    Args:
        model: In evaluation mode.
        pixel_values: `(1, num_channels, height, width)`.
        column: Of the observation.
        order: The places `(h w,)`, the map's highest first.
        random_order: The same places.
        map_shape: (h, w).
        steps: In which all places go.

    Returns:
        `(3, steps + 1)`: deletion in the order of the map, insertion in it, and deletion in random order.
    """
    is_gone, _ = removal_steps(order, steps)
    is_gone_at_random, _ = removal_steps(random_order, steps)
    # Nothing gone and all gone are the ends of each curve and are computed once.
    states = np.concatenate([is_gone, ~is_gone[1:-1], is_gone_at_random[1:-1]]).reshape(-1, *map_shape)
    blurred = _blurred(pixel_values).to(model.device, model.dtype)
    original = pixel_values.to(model.device, model.dtype)
    parts = []
    for batch in torch.from_numpy(states).to(model.device, model.dtype).split(BATCH_SIZE):
        gone = functional.interpolate(batch[:, None], size=original.shape[-2:], mode="nearest") > 0.5
        parts.append(model(torch.where(gone, blurred, original)).logits[:, column].float().sigmoid())
    probabilities = torch.cat(parts).cpu().numpy()
    full, empty = probabilities[[0]], probabilities[[steps]]
    deletion, insertion, random = np.split(probabilities, [steps + 1, 2 * steps])
    return np.stack([deletion, np.concatenate([empty, insertion, full]), np.concatenate([full, random, empty])])


def _blurred(pixel_values: Tensor) -> Tensor:
    height, width = pixel_values.shape[-2:]
    values = pixel_values.float().numpy()
    return torch.from_numpy(ndimage.gaussian_filter(values, (0, 0, BLUR * height, BLUR * width)))
