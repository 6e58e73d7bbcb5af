"""What the gate looks at: a thumbnail of the image, and how strongly the model's first filters answer to it.

The first stages of the network cost a few milliseconds at this size. The later ones, which learn to forget what does
not matter for the findings, tell photographs from radiographs less well.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

RESOLUTION = 64
"""Side in pixels at which the gate sees an image, whatever the model's own size is."""

STAGES = ("pool0", "transition1")

FirstStages: TypeAlias = Callable[[Tensor], Sequence[Tensor]]
"""From pixel values `(batch, num_channels, RESOLUTION, RESOLUTION)` to the maps after each of `STAGES` it has."""

_THUMBNAIL = 16
_BATCH_SIZE = 32
# So that where nothing varies, neither the thumbnail nor the logarithm is made of rounding.
_GRAY_LEVELS, _LEAST_DEVIATION = 4.0, 0.01


def gray_levels(image: Image.Image) -> Tensor:
    """The gray levels `(1, RESOLUTION, RESOLUTION)` of an 8-bit image, uint8."""
    small = image.convert("L").resize((RESOLUTION, RESOLUTION), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return torch.from_numpy(np.array(small))[None]


def detail(gray: Tensor) -> NDArray[np.float64]:
    """How much of an image is fine structure: `(batch,)`, 0 for a constant image or a smooth gradient.

    Args:
        gray: `(batch, 1, height, width)`, uint8.
    """
    levels = gray.double()
    inner = levels[..., 1:-1, 1:-1]
    fine = (inner - functional.avg_pool2d(levels, 3, stride=1)).abs().mean(dim=(1, 2, 3))
    return (fine / (levels.std(dim=(1, 2, 3)) + 1)).numpy()


def first_stages(model: CheXpertForImageClassification) -> FirstStages:
    """The first stages of a model in evaluation mode, computed by PyTorch where the model is."""
    return partial(_compute, model)  # can be pickled, unlike a function inside this one


def _compute(model: CheXpertForImageClassification, pixel_values: Tensor) -> list[Tensor]:
    maps = pixel_values.to(model.get_parameter("features.conv0.weight"))
    found = []
    for name, module in model.features.named_children():
        maps = module(maps)
        if name in STAGES:
            found.append(maps)
        if name == STAGES[-1]:
            break
    return found


@torch.inference_mode()
def gate_features(stages: FirstStages, gray: Tensor, scale: Tensor, shift: Tensor) -> NDArray[np.float64]:
    """The features of images.

    Args:
        stages: Of the model, from `first_stages` or whatever computes the same.
        gray: `(batch, 1, RESOLUTION, RESOLUTION)`, uint8.
        scale: `(num_channels,)`; `pixel_values` are the gray levels times `scale`, plus `shift`.
        shift: `(num_channels,)`.

    Returns:
        `(batch, num_features)`: the thumbnail without its brightness and contrast, and of each filter of each stage the
        mean over the image and the logarithm of the standard deviation.
    """
    return np.concatenate([_features(stages, part, scale, shift) for part in gray.split(_BATCH_SIZE)])


def num_stages(model: CheXpertForImageClassification) -> int:
    """How many of `STAGES` the model has: without a second block there is no transition."""
    return min(len(model.config.block_config), len(STAGES))


def num_features(model: CheXpertForImageClassification) -> int:
    """How many features an image has with this model."""
    widths = {"pool0": model.config.num_init_features}
    if num_stages(model) > 1:
        block = model.config.num_init_features + model.config.block_config[0] * model.config.growth_rate
        widths["transition1"] = block // 2
    return _THUMBNAIL**2 + 2 * sum(widths.values())


def _features(stages: FirstStages, gray: Tensor, scale: Tensor, shift: Tensor) -> NDArray[np.float64]:
    thumbnail = functional.avg_pool2d(gray.float(), RESOLUTION // _THUMBNAIL).flatten(1)
    thumbnail = thumbnail - thumbnail.mean(dim=1, keepdim=True)
    parts = [thumbnail / (thumbnail.std(dim=1, keepdim=True) + _GRAY_LEVELS)]
    for maps in stages(gray.float() * scale[:, None, None] + shift[:, None, None]):
        flat = maps.float().cpu().flatten(2)  # (B, channels, places)
        mean = flat.mean(dim=2)
        # Several times faster than `std` on small maps; the last bits differ.
        variance = (flat - mean[..., None]).square().sum(dim=2) / (flat.shape[2] - 1)
        parts += [mean, (variance.sqrt() + _LEAST_DEVIATION).log()]
    return torch.cat(parts, dim=1).double().numpy()
