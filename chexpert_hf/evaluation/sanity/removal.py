"""Deletion and insertion curves: the probability while cells are removed, or inserted, in the order of the map.

A cell of the map is removed as a block, in both orders. It is blurred: Petsiuk et al. delete to grey, but patches of
another brightness are edges that no radiograph has.

Source: Petsiuk et al. 2018, arXiv:1806.07421.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from chexpert_hf.evaluation.metrics import FloatArray
from chexpert_hf.evaluation.sanity.sanity import RemovalCheck, check_removal, removal_steps
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier

PAIRS = 12  # radiographs with an observation that get curves, at most; each costs `3 * STEPS - 1` pictures
STEPS = 12  # in which all cells are removed; fewer where a map has fewer cells
BLUR = 0.1  # standard deviation, in shares of the picture's side: wide enough to take findings away

Pair = tuple[int, int]  # row of a radiograph and column of an observation


def choose_pairs(probabilities: FloatArray, is_wanted: NDArray[np.bool_]) -> list[Pair]:
    """At most `PAIRS` of the wanted `(num_images, num_labels)`, each observation in turn, highest probability first."""
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
    maps: FloatArray,
    pairs: Sequence[Pair],
    patients: Sequence[str],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> RemovalCheck:
    """Makes the curves of pairs from `choose_pairs`, by signed maps `(num_files, num_labels, h, w)`."""
    rng = np.random.default_rng(seed)
    cells = maps.shape[2] * maps.shape[3]
    steps = min(STEPS, cells)
    curves = np.empty((3, len(pairs), steps + 1))
    for number, (row, column) in enumerate(pairs):
        order = np.argsort(-maps[row, column].ravel(), kind="stable")
        images = [read_file(classifier, files[row]).image]
        pixel_values = classifier.processor(images, return_tensors="pt")["pixel_values"]
        orders = order, rng.permutation(cells)
        curves[:, number] = removal_curves(classifier.model, pixel_values, column, *orders, maps.shape[2:], steps)
        if progress:
            progress(1)
    return check_removal(
        [classifier.observations[column] for _, column in pairs],
        removal_steps(np.arange(cells), steps)[1],
        curves[0],
        curves[1],
        curves[2],
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
) -> FloatArray:
    """Probabilities of an observation's column while cells of one picture are removed or inserted in steps.

    Pixel values are `(1, num_channels, height, width)`, the orders cells `(h w,)` of a map of `map_shape`. The result
    is `(3, steps + 1)`: deletion in the order of the map, insertion in it, and deletion in random order.
    """
    is_gone, _ = removal_steps(order, steps)
    is_gone_at_random, _ = removal_steps(random_order, steps)
    # Nothing gone and all gone are the ends of each curve and are computed once.
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
