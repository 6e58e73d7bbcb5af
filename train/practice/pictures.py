"""Confusion matrix and feature maps of a network, as PNG files."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from train.practice.densenet import DenseNet

MAPS_SHOWN = 8


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return counts `(num_classes, num_classes)`: rows are true classes, columns predicted ones."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def plot_confusion(matrix: NDArray[np.int64], classes: tuple[str, ...], title: str, path: Path) -> None:
    """Draw a confusion matrix with its counts as a PNG, each cell coloured by its share of the true class's images."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 0.55 * len(classes) + 2
    figure = Figure(figsize=(side + 0.6, side), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 3 else 60)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    figure.colorbar(shown, label="share of the true class", shrink=0.8)
    figure.savefig(path)


@torch.inference_mode()
def block_maps(model: DenseNet, pixel_values: Tensor) -> dict[str, Tensor]:
    """Return the feature maps `(channels, h, w)` of one image after the stem and each dense block, by name.

    Args:
        model: In evaluation mode.
        pixel_values: `(1, channels, height, width)`.
    """
    maps = {}
    stem = "pool0" if hasattr(model.features, "pool0") else "conv0"
    features = pixel_values
    for name, module in model.features.named_children():
        features = module(features)
        if name == stem:
            maps["stem"] = features[0]
        elif name.startswith("denseblock"):
            maps[f"dense block {name.removeprefix('denseblock')}"] = features[0]
    return maps


def plot_block_maps(image: NDArray[np.uint8], maps: dict[str, Tensor], title: str, path: Path) -> None:
    """Draw a row for each stage: the image, the mean of the maps, and those that vary most over the image.

    Args:
        image: `(channels, height, width)`.
        maps: From `block_maps`.
        title: Title of the figure.
        path: Path of the PNG.
    """
    figure = Figure(figsize=(1.25 * (MAPS_SHOWN + 2), 1.5 * len(maps) + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    rows = figure.subplots(len(maps), MAPS_SHOWN + 2, squeeze=False)
    for row, (name, values) in zip(rows, maps.items(), strict=True):
        strongest = values.flatten(1).std(dim=1).argsort(descending=True, stable=True)[:MAPS_SHOWN].tolist()
        picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        row[0].imshow(picture, cmap="gray")
        row[0].set_title(f"{name}\n{values.shape[0]} x {values.shape[1]} x {values.shape[2]}", fontsize=7)
        row[1].imshow(values.mean(dim=0).numpy(), cmap="viridis")
        row[1].set_title("mean", fontsize=7)
        for panel, channel in zip(row[2:], strongest, strict=False):
            panel.imshow(values[channel].numpy(), cmap="viridis")
            panel.set_title(f"channel {channel}", fontsize=7)
        for panel in row:
            panel.set_axis_off()
    figure.savefig(path)
