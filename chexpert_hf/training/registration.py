"""How far beside its own place a place of a map looks.

A place of the last feature map is laid over the middle of its cell, but nothing makes a network look there: the field
of what it answers to may lie beside it, by more than a cell, and about as far in all images. For phantoms' tubes, a few
pixels wide, that decides whether a map points at them.

Source: Luo et al. 2016, "Understanding the Effective Receptive Field", arXiv:1701.04128 (the gradient with respect to
the input).
"""

from statistics import median

import datasets
import numpy as np
import torch
from torch import Tensor

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.scoring.classifier import CheXpertClassifier

MAX_IMAGES = 64
MIN_IMAGES = 16
"""Of an observation; with fewer its offset is not measured."""

_BATCH_SIZE = 16
_LEAST_MASS = 1e-20


def measure_map_offsets(classifier: CheXpertClassifier, dataset: datasets.Dataset) -> dict[str, list[float]]:
    """The offset (down, right) of each observation's map, as shares of the input's height and width.

    The median over images with the finding. Nothing but their labels is used: no place of any finding.

    Args:
        classifier: The model, a single one.
        dataset: From `load_chexpert`, with the labels of the model's observations in its order.

    Raises:
        RadiographError: If an image cannot be read.
    """
    labels, files = np.asarray(dataset["labels"][:]), image_files(dataset)
    device = classifier.model.device
    offsets = {}
    for column, name in enumerate(classifier.observations):
        rows = np.flatnonzero(labels[:, column] == 1)
        if len(rows) < MIN_IMAGES:
            continue
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_IMAGES)).round().astype(int)]
        found: list[list[float]] = []
        for start in range(0, len(rows), _BATCH_SIZE):
            prepared = [
                classifier.prepare(read_file(classifier, files[row])) for row in rows[start : start + _BATCH_SIZE]
            ]
            pixel_values = classifier.processor.pixel_values_of(torch.stack([one.gray[0] for one in prepared]))
            columns = torch.full((len(pixel_values),), column, device=device)
            found += offsets_of_peaks(classifier.model, pixel_values.to(device), columns).tolist()
        offsets[name] = [round(median(axis), 4) for axis in zip(*found, strict=True)]
    return offsets


def offsets_of_peaks(
    model: CheXpertForImageClassification, pixel_values: Tensor, columns: Tensor, *, create_graph: bool = False
) -> Tensor:
    """How far from the strongest place of a map lies what that place answers to.

    Args:
        model: In evaluation mode.
        pixel_values: `(batch, num_channels, height, width)`.
        columns: `(batch,)`: the observation of each image.
        create_graph: Whether the result can be differentiated with respect to the model's parameters.

    Returns:
        `(batch, 2)`: (down, right), as shares of height and width: the centre of mass of the squared gradient of the
        map's largest value, less the middle of its cell.
    """
    with torch.enable_grad():
        values = pixel_values.detach().clone().requires_grad_()
        maps = model(values, output_saliency=True).saliency[torch.arange(len(values)), columns]  # (B, h, w)
        height, width = maps.shape[1:]
        maps = maps.flatten(1)
        peaks = maps.detach().argmax(dim=1)
        strongest = maps.gather(1, peaks[:, None]).sum()
        (gradient,) = torch.autograd.grad(strongest, values, create_graph=create_graph)
        mass = gradient.float().square().sum(dim=1)  # (B, height, width)
        mass = mass / mass.sum(dim=(1, 2), keepdim=True).clamp(min=_LEAST_MASS)
        cells = torch.stack([(peaks // width + 0.5) / height, (peaks % width + 0.5) / width], dim=1)
        down = (mass.sum(dim=2) * _middles(mass.shape[1], mass)).sum(dim=1)
        right = (mass.sum(dim=1) * _middles(mass.shape[2], mass)).sum(dim=1)
        return torch.stack([down, right], dim=1) - cells


def _middles(count: int, like: Tensor) -> Tensor:
    """The middles of so many pixels, as shares of the side."""
    return (torch.arange(count, device=like.device) + 0.5) / count
