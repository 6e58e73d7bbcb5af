"""The features by which the gate judges images: a thumbnail, the directions of edges, and fine structure.

No neural network is needed for them. Every image is brought to one gray range first, so that the features do not depend
on the scanner or the export.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chexpert_hf.image_processing_chexpert import to_gray_range

Floats = NDArray[np.float64]

RESOLUTION = 64  # side in pixels of the gate's images, whatever the model's own size is
THUMBNAIL_SIDE = 8
NUM_STRUCTURES = 160  # 128 edge strengths and 32 strengths of finer structure
NUM_FEATURES = THUMBNAIL_SIDE**2 + NUM_STRUCTURES
# The parts of the features. Thumbnails differ too much between hospitals to recognise radiographs by.
THUMBNAIL, STRUCTURES = slice(THUMBNAIL_SIDE**2), slice(THUMBNAIL_SIDE**2, NUM_FEATURES)

_CELL = 16  # pixels; edges and finer structure are averaged over cells of this side
_EDGE_DIRECTIONS = 8
_GRAY_RANGE = {"low": 0.5, "high": 99.5, "median": 0.5}
# Added so that rounding errors do not dominate in images or cells without variation.
_CONTRAST_EPS, _EDGE_EPS, _DETAIL_EPS, _GRADIENT_EPS = 4.0, 1.0, 0.5, 1e-3


def gray_levels(image: Image.Image) -> Tensor:
    """Return an 8-bit image as gray levels `(1, RESOLUTION, RESOLUTION)`, uint8."""
    small = image.convert("L").resize((RESOLUTION, RESOLUTION), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return torch.from_numpy(np.array(small))[None]


def detail(gray: Tensor) -> Floats:
    """Return the strength `(batch,)` of fine structure, relative to contrast, in images `(batch, 1, height, width)`."""
    levels = gray.float()
    fine = (levels[..., 1:-1, 1:-1] - _mean_of_3x3(levels)).abs().mean(dim=(1, 2, 3))
    return (fine / (levels.std(dim=(1, 2, 3)) + 1)).double().numpy()


def neighbour_correlation(gray: Tensor) -> Floats:
    """Return the correlation `(batch,)` of neighbouring pixels in images `(batch, 1, height, width)`.

    It is computed for horizontal and for vertical neighbours; the higher of the two is returned.
    """
    levels = gray.double()
    centred = levels - levels.mean(dim=(1, 2, 3), keepdim=True)
    across = (centred[..., 1:] * centred[..., :-1]).mean(dim=(1, 2, 3))
    down = (centred[..., 1:, :] * centred[..., :-1, :]).mean(dim=(1, 2, 3))
    return (torch.maximum(across, down) / centred.square().mean(dim=(1, 2, 3))).numpy()


def gate_features(gray: Tensor) -> Floats:
    """Return features `(batch, NUM_FEATURES)` of images `(batch, 1, RESOLUTION, RESOLUTION)`, uint8.

    The first features are the gray levels of a thumbnail, standardised to remove brightness and contrast. For the other
    features the image is divided into cells of 16 x 16 pixels. Each cell has ten numbers: the strength of edges in
    eight directions, of fine structure and of coarser structure. The features are the logarithms of these numbers.
    """
    levels = torch.stack([to_gray_range(one, **_GRAY_RANGE) for one in gray]).float()
    smooth = _blurred(levels)
    smoother = _blurred(_blurred(_blurred(smooth)))
    thumbnail = functional.avg_pool2d(levels, RESOLUTION // THUMBNAIL_SIDE).flatten(1)
    thumbnail = thumbnail - thumbnail.mean(dim=1, keepdim=True)
    parts = [
        thumbnail / (thumbnail.std(dim=1, keepdim=True) + _CONTRAST_EPS),
        (_by_cell(_edges(smooth)) + _EDGE_EPS).log(),
        (_by_cell((levels - smooth).abs()) + _DETAIL_EPS).log(),
        (_by_cell((smooth - smoother).abs()) + _DETAIL_EPS).log(),
    ]
    return torch.cat(parts, dim=1).double().numpy()


def _blurred(levels: Tensor) -> Tensor:
    return _mean_of_3x3(functional.pad(levels, (1, 1, 1, 1), mode="replicate"))


def _mean_of_3x3(levels: Tensor) -> Tensor:
    """Return means of 3 x 3 pixels, `(..., height - 2, width - 2)`.

    Adding slices is seven times as fast as `avg_pool2d`.
    """
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _edges(smooth: Tensor) -> Tensor:
    """Return how steeply gray levels rise in each of eight directions, `(batch, directions, height, width)`.

    `smooth` are blurred images `(batch, 1, height, width)`. Where gray levels fall in a direction, the result is 0.
    """
    across = functional.pad((smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2, (1, 1, 1, 1))
    down = functional.pad((smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2, (1, 1, 1, 1))
    steepness = (across.square() + down.square()).sqrt() + _GRADIENT_EPS
    # A rise in one of the first half of the directions is a fall in the opposite one.
    angles = (torch.arange(_EDGE_DIRECTIONS // 2) * (2 * math.pi / _EDGE_DIRECTIONS))[:, None, None]
    rise = (across * angles.cos()).addcmul_(down, angles.sin())
    rise.mul_(rise.abs()).div_(steepness)
    return torch.cat([rise, -rise], dim=1).clamp_(min=0)


def _by_cell(maps: Tensor) -> Tensor:
    return functional.avg_pool2d(maps, _CELL).flatten(1)
