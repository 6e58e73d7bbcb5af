"""Is it a lateral view? By symmetry and by where the air is, from the gray levels alone.

In a frontal view the spine stands between two lungs that are nearly each other's mirror image. In a lateral one they
lie over each other: one field of air in the middle of the body, the heart in front of it and the spine behind.

There were no lateral radiographs to fit anything on, so these are rules by anatomy, with limits from real frontal
views, synthetic lateral ones and lateral projections of one CT; `tests/benchmarks/gate_accuracy.py` says how often they
are right. A frontal view with one lung opaque has no symmetry either; but then the air is beside the middle of the
body, and narrower.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from chexpert_hf.inference.gate.features import RESOLUTION

Floats = NDArray[np.float64]

# All in pixels of `features.RESOLUTION`, 64.
_SMOOTHING = 1.0
_ROWS = slice(12, 46)  # the chest without shoulders and abdomen
_TILTS = (-0.12, -0.06, 0.0, 0.06, 0.12)  # columns by row: up to 7 degrees
_AXES = np.arange(50, 79)  # twice the column of the axis
_REACH = 24  # to either side of it

# Where each pixel of the chest is in a tilted one: between two columns, `(tilts, rows, width)`.
_HEIGHT = np.arange(RESOLUTION)[_ROWS] - np.arange(RESOLUTION)[_ROWS].mean()
_COLUMNS = np.clip(np.arange(RESOLUTION) + np.multiply.outer(_TILTS, _HEIGHT)[..., None], 0, RESOLUTION - 1)
_BEFORE = _COLUMNS.astype(int)
_AFTER = np.minimum(_BEFORE + 1, RESOLUTION - 1)
_SHARE = _COLUMNS - _BEFORE

# The columns on both sides of each axis, `(axes, reach)`, outwards.
_RIGHT = _AXES[:, None] // 2 + 1 + np.arange(_REACH)
_LEFT = _AXES[:, None] - _RIGHT

_LEAST_VARIANCE = 1e-3  # gray levels squared, summed over a side: less than that is rounding

_MOST_SYMMETRY = 0.65
_LEAST_IN_MIDDLE = 0.4
_WIDTHS = (0.55, 0.8)
_MOST_OFFSET = 0.05

_MIDDLE = 0.1  # of the width of the air, to either side of its middle
_TAIL = 0.04  # of the air, left out at either end of its width
_BODY = 0.35  # times the bright gray levels, from which on a pixel is no background
_BRIGHT = 0.9


def looks_lateral(gray: Tensor) -> bool:
    """Whether an upright chest radiograph seems to be a lateral view.

    Args:
        gray: From `features.gray_levels`.
    """
    levels = gaussian_filter(gray[0].double().numpy(), _SMOOTHING)
    in_middle, width, offset = air(levels)
    if in_middle < _LEAST_IN_MIDDLE or not _WIDTHS[0] < width < _WIDTHS[1] or offset > _MOST_OFFSET:
        return False
    return symmetry(levels) < _MOST_SYMMETRY


def symmetry(levels: Floats) -> float:
    """The correlation of one side of the chest with the other, mirrored at the axis where it is highest.

    Args:
        levels: `(height, width)`.
    """
    chest = levels[_ROWS] - levels[_ROWS].mean()
    rows = np.arange(len(chest))[:, None]
    upright = chest[rows, _BEFORE] * (1 - _SHARE) + chest[rows, _AFTER] * _SHARE  # (tilts, rows, width)
    # All that correlations are made of: sums of columns, and of the products of each two of them.
    products = upright.transpose(0, 2, 1) @ upright  # (tilts, width, width)
    sums, squares = upright.sum(axis=1), np.diagonal(products, axis1=1, axis2=2)  # (tilts, width)
    count = len(chest) * _REACH
    right, left = sums[:, _RIGHT].sum(axis=2), sums[:, _LEFT].sum(axis=2)  # (tilts, axes)
    covariance = products[:, _RIGHT, _LEFT].sum(axis=2) - right * left / count
    right_variance = np.maximum(squares[:, _RIGHT].sum(axis=2) - right**2 / count, _LEAST_VARIANCE)
    left_variance = np.maximum(squares[:, _LEFT].sum(axis=2) - left**2 / count, _LEAST_VARIANCE)
    return float((covariance / np.sqrt(right_variance * left_variance)).max())


def air(levels: Floats) -> tuple[float, float, float]:
    """Where the air is that has something brighter on both sides of it, column by column.

    Args:
        levels: `(height, width)`.

    Returns:
        How much of it is in its middle, relative to its mean over its width; its width as a share of the body's; how
        far its middle is from the body's, likewise. All 0 where there is none.
    """
    chest = levels[_ROWS]
    walls = np.minimum(np.maximum.accumulate(chest, axis=1), np.maximum.accumulate(chest[:, ::-1], axis=1)[:, ::-1])
    depth = (walls - chest).sum(axis=0)  # (width,)
    if not depth.any():
        return 0.0, 0.0, 0.0
    share = np.cumsum(depth) / max(depth.sum(), 1e-9)
    first, last = np.searchsorted(share, (_TAIL, 1 - _TAIL))
    middle = (first + last) / 2
    is_near = np.abs(np.arange(len(depth)) - middle) <= max(_MIDDLE * (last - first), 1.5)
    in_middle = depth[is_near].mean() / max(depth[first : last + 1].mean(), 1e-9)
    is_body = (chest > _BODY * np.quantile(chest, _BRIGHT)).mean(axis=0) > 0.5
    left, right = np.flatnonzero(is_body)[[0, -1]] if is_body.any() else (0, len(depth) - 1)
    size = max(right - left, 1)
    return float(in_middle), float((last - first) / size), float(abs(middle - (left + right) / 2) / size)
