"""Hit rate and IoU of saliency maps against masks or boxes of findings, with intervals and baselines.

Maps are compared at the size of the ground truth's mask. Only the positive part of a map counts: evidence against an
observation does not say where it is. A map without a positive value is empty: it is a miss, and its mask has no pixel.

Source: Saporta et al. 2022, "Benchmarking saliency methods for chest X-ray interpretation", Nature Machine Intelligence
4, and its public evaluation code (github.com/rajpurkarlab/cheXlocalize) for what the paper leaves open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from chexpert_hf.evaluation.intervals import BootstrapEstimate, Estimate, ratio_interval, wilson_interval
from chexpert_hf.evaluation.metrics import NAN

Mask = NDArray[np.bool_]

_TIE = 1e-6
"""Values this close to the largest one, as a share of it, are tied with it: float32 keeps about seven digits, and
interpolation gives the pixels of a plateau values that differ in the last of them."""


@dataclass(frozen=True)
class Prior:
    """A baseline map that is the same for every image: a Gaussian around a fixed point."""

    x: float  # as a share of the width, from the left
    y: float  # as a share of the height, from the top
    spread_x: float  # standard deviation, as a share of the width
    spread_y: float


PRIORS: Mapping[str, Prior] = {"centre": Prior(0.5, 0.5, 0.25, 0.25), "right lung": Prior(0.3, 0.45, 0.12, 0.2)}
"""Two baselines that ignore the image. "centre" is that of the pointing game (Zhang et al. 2018, International Journal
of Computer Vision 126). "right lung" is where the midpoint of the patient's right lung, on the image's left, comes to
lie in a frontal radiograph that shows the whole chest. Both were set beforehand, from anatomy and not from any ground
truth; in a lateral view "right lung" is no more than a fixed point."""


@dataclass(frozen=True)
class Indication:
    """The part of an image that a map points at: the pixels that it marks, and its peak."""

    mask: Mask  # (height, width)
    peak: tuple[int, int] | None  # (row, column); None for a map without a positive value


@dataclass(frozen=True)
class MapScore:
    """The metrics of one map against the ground truth of one finding."""

    hit: float  # 1 if the peak is in the ground truth's mask, else 0; NaN if that mask is empty
    iou: float  # of the map's mask and the ground truth; NaN unless both are non-empty
    peak: tuple[int, int] | None  # (row, column); None for an empty map


@dataclass(frozen=True)
class PointerMetrics:
    """The metrics of one pointer (model or baseline) for one observation, over the images that have a ground truth."""

    num_images: int
    num_patients: int
    num_empty: int  # images whose map has no positive value: misses for the hit rate, left out of the mIoU
    hit_rate: Estimate
    hit_interval: str  # the kind of the hit rate's interval: "wilson" or "bootstrap"
    miou: BootstrapEstimate  # over the images where it is defined


def otsu_threshold(levels: NDArray[np.uint8]) -> int:
    """Return Otsu's threshold of 8-bit values: values above it are foreground. It is 0 for a constant image.

    The order of operations is OpenCV's, since rounding decides between thresholds that are equally good.

    Source: Otsu 1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1); OpenCV's THRESH_OTSU.
    """
    # Pillow counts 8-bit values ten times as fast as numpy, which converts them to 64 bits first.
    counts, scale = np.array(Image.fromarray(levels.reshape(1, -1)).histogram()), 1.0 / levels.size
    shares, mean = (counts * scale).tolist(), float(counts @ np.arange(256)) * scale
    best, threshold, below, mean_below = 0.0, 0, 0.0, 0.0
    negligible = float(np.finfo(np.float32).eps)  # a smaller share of the pixels is no class
    for level, share in enumerate(shares):
        mean_below *= below
        below += share
        if min(below, 1 - below) < negligible:
            continue
        mean_below = (mean_below + level * share) / below
        mean_above = (mean - below * mean_below) / (1 - below)
        between = below * (1 - below) * (mean_below - mean_above) ** 2
        if between > best:
            best, threshold = between, level
    return threshold


def saliency_mask(saliency: NDArray[np.floating], threshold: float | None = None) -> Mask:
    """Return the mask of the pixels that a map `(height, width)` marks: those whose positive part is above a threshold.

    The positive part is scaled to [0, 1] by its own minimum and maximum. A constant map, or one without positive
    values, marks nothing. The threshold is in (0, 1); None: Otsu's threshold on 256 levels. Source: cheXlocalize,
    heatmap_to_segmentation.py.
    """
    positive = np.maximum(saliency, 0).astype(np.float32, copy=False)
    positive = positive - positive.min(initial=np.inf)
    largest = positive.max(initial=0)
    if not largest > 0:
        return np.zeros(saliency.shape, dtype=bool)
    scaled = positive / largest
    if threshold is not None:
        return scaled > np.float32(threshold)
    levels = (np.float32(255) * scaled).astype(np.uint8)  # truncated, not rounded, as in cheXlocalize
    return levels > otsu_threshold(levels)


def find_peak(saliency: NDArray[np.floating]) -> tuple[int, int] | None:
    """Return the (row, column) of a map's maximum, None if it has no positive value.

    Interpolation makes plateaus of tied pixels in the outermost cells of a coarse map. Among tied pixels, the one
    nearest to their mean position is taken; cheXlocalize takes the first in reading order.
    """
    largest = saliency.max(initial=0)
    if not largest > 0:
        return None
    tied = np.argwhere(saliency >= largest * (1 - _TIE))  # (num_tied, 2)
    nearest = np.argmin(((tied - tied.mean(axis=0)) ** 2).sum(axis=1))
    return int(tied[nearest, 0]), int(tied[nearest, 1])


def iou(predicted: Mask, truth: Mask, *, true_positives_only: bool = True) -> float:
    """Return the intersection over union of two masks `(height, width)`. Source: cheXlocalize, eval.py.

    If both masks are empty, return NaN. If only one is, return NaN with `true_positives_only`, and 0 without, as
    cheXlocalize does on its full data set. Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"The map is {predicted.shape}, the ground truth {truth.shape}; expected one (height, width).")
    if true_positives_only and not (predicted.any() and truth.any()):
        return NAN
    union = int(np.count_nonzero(predicted | truth))
    return int(np.count_nonzero(predicted & truth)) / union if union else NAN


def indicate(saliency: NDArray[np.floating], threshold: float | None = None) -> Indication:
    """Return the mask of the pixels that a map `(height, width)` marks, and the position of the map's maximum.

    A pixel is marked if its value is above `threshold`, in (0, 1), after the map's positive part was scaled to [0, 1].
    If `threshold` is None, Otsu's threshold is used. A constant map marks nothing. The position is None if no value is
    positive.
    """
    return Indication(saliency_mask(saliency, threshold), find_peak(saliency))


def score_indication(indication: Indication, truth: Mask) -> MapScore:
    """Return hit (whether the peak lies in `truth`) and IoU (of the map's mask and `truth`), with the peak.

    `truth` is the ground truth's mask `(height, width)`. Raises ValueError if the two masks differ in shape.
    """
    overlap = iou(indication.mask, truth)
    hit = float(indication.peak is not None and truth[indication.peak]) if truth.any() else NAN
    return MapScore(hit, overlap, indication.peak)


def box_mask(boxes: ArrayLike, shape: tuple[int, int]) -> Mask:
    """Return the mask of the pixels whose centres lie in one of the boxes, so that a hit is a peak inside a box.

    Boxes are `(num_boxes, 4)`: x, y of the upper left corner, width, height, in pixels of an image of `shape` (height,
    width).
    """
    mask = np.zeros(shape, dtype=bool)
    rows, columns = (np.arange(length) + 0.5 for length in shape)
    for x, y, width, height in np.asarray(boxes, dtype=float).reshape(-1, 4):
        mask |= np.outer((rows >= y) & (rows < y + height), (columns >= x) & (columns < x + width))
    return mask


def prior_map(prior: Prior, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the Gaussian around the prior's point as a map of `shape` (height, width), with values in (0, 1]."""
    rows, columns = ((np.arange(length) + 0.5) / length for length in shape)
    down = np.exp(-(((rows - prior.y) / prior.spread_y) ** 2) / 2)
    across = np.exp(-(((columns - prior.x) / prior.spread_x) ** 2) / 2)
    return np.outer(down, across).astype(np.float32)


def summarize(scores: Sequence[MapScore], patients: Sequence[str], replicates: int = 1000) -> PointerMetrics:
    """Summarise one observation's maps by hit rate and mean IoU; `scores` and `patients` have an entry per image.

    The interval of the hit rate comes from a bootstrap of patients. In two cases it is Wilson's, with one trial per
    patient: if each patient has one image, or if the hit rate is 0 or 1 (all resamples would be equal).

    Source: Saporta et al. 2022, methods: 1,000 bootstrap replicates, though of images, not patients.
    """
    hits = np.array([score.hit for score in scores])
    num_patients, rate = len(set(patients)), float(np.mean(hits)) if len(hits) else NAN
    hit_rate: Estimate
    if num_patients == len(hits) or rate in (0, 1):
        hit_rate, kind = wilson_interval(round(rate * num_patients) if num_patients else 0, num_patients), "wilson"
    else:
        hit_rate, kind = mean_interval(hits, patients, replicates), "bootstrap"
    return PointerMetrics(
        num_images=len(hits),
        num_patients=num_patients,
        num_empty=sum(score.peak is None for score in scores),
        hit_rate=hit_rate,
        hit_interval=kind,
        miou=mean_interval([score.iou for score in scores], patients, replicates),
    )


def mean_interval(values: ArrayLike, patients: Sequence[str], replicates: int = 1000) -> BootstrapEstimate:
    """Return the mean of the values `(num_images,)` that are not NaN, with a bootstrap interval over patients.

    Resamples in which all values are NaN are counted in `left_out`. Mean and interval are NaN if all values are.
    """
    values = np.asarray(values, dtype=float)
    is_defined = ~np.isnan(values)
    if not is_defined.any():
        return BootstrapEstimate(NAN, NAN, NAN, 0)
    mean, filled = float(values[is_defined].mean()), np.where(is_defined, values, 0)
    return ratio_interval(mean, filled, is_defined.astype(float), patients, replicates)
