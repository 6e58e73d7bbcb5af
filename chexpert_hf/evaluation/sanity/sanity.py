"""Sanity checks of saliency maps: do maps depend on the weights, stay on the body, and mark cells that matter?

Sources: Adebayo et al. 2018, arXiv:1810.03292 (weight randomisation); Petsiuk et al. 2018, arXiv:1806.07421 (deletion
and insertion); Zech et al. 2018, PLOS Medicine 15(11) (networks that read the side marker instead of the chest).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import isnan

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.integrate import trapezoid
from scipy.stats import rankdata

from chexpert_hf.evaluation.intervals import UNDEFINED, Estimate, ratio_interval
from chexpert_hf.evaluation.metrics import NAN, FloatArray

MAX_SIMILARITY = 0.5
"""Maps count as unchanged from this mean |rank correlation| on: a quarter of the variance of their ranks is shared. The
bound was set before any model was evaluated."""

Mask = NDArray[np.bool_]
Picture = NDArray[np.floating] | NDArray[np.uint8]

FRAME = 0.05  # width of the frame, as a share of each side
# Air beside the body is darker than this share of the range of grey levels.
_DARK = 0.15
# The side marker is detected in the upper third of the outer quarters of a picture, where technicians put it.
_ZONE_HEIGHT, _ZONE_WIDTH = 1 / 3, 1 / 4
# Its strokes are brighter than both sides by this share of the range of grey levels ...
_INK = 0.1
# ... and narrower than this share of the picture; it is between these shares of the picture's height and width.
_STROKE, _MIN_MARKER, _MAX_MARKER = 0.04, 0.03, 0.2
_GAP = 0.01  # between the strokes of one letter, in shares of the picture


class Verdict(str, Enum):
    """The outcome of comparing an estimate with a bound; the values are the texts in reports."""

    PASSED = "yes"
    FAILED = "FAILED"
    UNCLEAR = "not clear"
    NOT_JUDGED = "nothing to judge"


def judge(estimate: Estimate, bound: float, *, is_good_below: bool) -> Verdict:
    """Return PASSED if the whole interval is on the good side of the bound, FAILED if the value itself is not.

    UNCLEAR: the value is on the good side, but an end of the interval is not, or is NaN. NOT_JUDGED: the value is NaN.
    """
    if isnan(estimate.value):
        return Verdict.NOT_JUDGED
    if not (estimate.value < bound if is_good_below else estimate.value > bound):
        return Verdict.FAILED
    is_sure = estimate.high < bound if is_good_below else estimate.low > bound
    return Verdict.PASSED if is_sure else Verdict.UNCLEAR


@dataclass(frozen=True)
class WeightCheck:
    """The similarity of a model's maps to those of the same network with randomised weights; low is good.

    Similarity is the absolute value of Spearman's correlation of the signed maps, at the size of the last feature maps.
    The sign does not count, since a random head with all signs reversed is as likely. The SSIM of Adebayo et al. is not
    used: its window is as large as such a map.

    `by_chance` is the similarity of maps that do not match: one map is moved against the other, with wrap-around, by
    every possible number of cells. As weights are randomised only once, a single observation may be similar by chance.
    """

    redrawn: str  # the weights that were randomised: "head" or "all weights"
    similarity: Estimate  # mean |correlation| over radiographs and observations; 1: maps do not depend on the weights
    signed: FloatArray  # (num_labels,): mean correlation
    by_observation: FloatArray  # (num_labels,): mean |correlation| over radiographs
    other_image: FloatArray  # (num_labels,): mean |correlation| with the randomised network's maps of other radiographs
    by_chance: FloatArray  # (num_labels,): mean |correlation| over radiographs and all moves of a map

    @property
    def verdict(self) -> Verdict:
        """PASSED if the whole interval of `similarity` is below `MAX_SIMILARITY`: the maps change with the weights.

        FAILED if its value is not below that bound, UNCLEAR if only its value is. NOT_JUDGED, whatever `similarity` is,
        if the mean of `by_chance` reaches the bound: maps of a few cells are often alike, even if they do not match.
        """
        if _mean(self.by_chance, 0) >= MAX_SIMILARITY:
            return Verdict.NOT_JUDGED
        return judge(self.similarity, MAX_SIMILARITY, is_good_below=True)


@dataclass(frozen=True)
class RegionCheck:
    """How much of the positive part of the maps lies in a region without findings, such as outside the body."""

    region: str
    num_images: int  # radiographs that have such a region and a map to check
    mass: float  # mean share of a map's sum in the region
    area: float  # mean share of the picture in the region: the mass of a uniform map
    ratio: Estimate  # mass / area; above 1, the maps mark the region more than a uniform map would
    by_observation: FloatArray  # (num_labels,): the ratio

    @property
    def verdict(self) -> Verdict:
        """PASSED if the whole interval of `ratio` is below 1, FAILED if its value is 1 or more.

        Below 1, the maps mark the region less than a uniform map would. UNCLEAR if only the value is below 1;
        NOT_JUDGED if it is NaN.
        """
        return judge(self.ratio, 1, is_good_below=True)


@dataclass(frozen=True)
class RemovalCheck:
    """Deletion and insertion curves: an observation's probability while cells are removed or inserted step by step.

    Cells of the radiograph are removed (blurred) or inserted in the order of the map's values, highest first. A gain is
    the mean area between these curves and those of a random order: `deletion_gain` is positive if the deletion curves
    are lower, `insertion_gain` if the insertion curves are higher. The map is then better than chance. Both gains use
    the same curves `random`: cells that are removed in random order are, in reverse, inserted in random order.
    """

    observations: Sequence[str]  # the observation of each curve
    fractions: FloatArray  # (num_points,): share of the cells that were removed, or inserted
    deletion: FloatArray  # (num_curves, num_points): probability, cells removed in the order of the map
    insertion: FloatArray  # (num_curves, num_points): cells inserted into the blurred picture in that order
    random: FloatArray  # (num_curves, num_points): like `deletion`, but in random order
    deletion_gain: Estimate
    insertion_gain: Estimate

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts on the maps by "deletion" and by "insertion" of cells.

        PASSED if the order of the map is better than a random order: the interval of `deletion_gain` or of
        `insertion_gain` lies above 0.
        """
        gains = {"deletion": self.deletion_gain, "insertion": self.insertion_gain}
        return {name: judge(gain, 0, is_good_below=False) for name, gain in gains.items()}


@dataclass(frozen=True)
class SanityChecks:
    """The results of all sanity checks of one model."""

    num_images: int
    map_size: tuple[int, int]  # (height, width)
    seed: int  # of all random choices
    observations: Sequence[str]  # the order of all arrays `(num_labels,)`
    weights: Sequence[WeightCheck]
    regions: Sequence[RegionCheck]
    removal: RemovalCheck


def check_weights(weights: str, maps: FloatArray, randomised: FloatArray, patients: Sequence[str]) -> WeightCheck:
    """Compare a model's maps with the maps of the same network with randomised weights.

    Both are signed, `(num_images, num_labels, h, w)`. `weights` says which were randomised: "head" or "all weights".
    """
    first, second = _standard_ranks(maps), _standard_ranks(randomised)  # (n, L, h, w)
    cells = maps.shape[2] * maps.shape[3]
    matched = np.einsum("nlhw,nlhw->nl", first, second) / cells
    crossed = np.abs(np.einsum("nlhw,mlhw->lnm", first, second)) / cells
    crossed[:, np.eye(len(maps), dtype=bool)] = NAN
    # With the second map shifted cyclically, by each shift but none: (n, L, h w - 1)
    product = np.fft.ifft2(np.fft.fft2(first) * np.conj(np.fft.fft2(second))).real / cells
    shifted = np.abs(product.reshape(*maps.shape[:2], -1)[..., 1:])
    return WeightCheck(
        redrawn=weights,
        similarity=_ratio(_mean(np.abs(matched), 1), np.ones(len(maps)), patients),
        signed=_mean(matched, 0),
        by_observation=_mean(np.abs(matched), 0),
        other_image=_mean(crossed, (1, 2)),
        by_chance=_mean(shifted, (0, 2)),
    )


def check_region(region: str, masses: FloatArray, areas: FloatArray, patients: Sequence[str]) -> RegionCheck:
    """Summarise how much of the maps lies in one region, over all images.

    `masses` `(num_images, num_labels)` are the share of each map's positive part that lies in the region. They are NaN
    for maps that are not to be checked or have no positive part. `areas` `(num_images,)` are the share of each image
    that the region covers. Images with an area of 0, or without a map to check, are left out.
    """
    mean = _mean(masses, 1)
    rows = np.flatnonzero((areas > 0) & ~np.isnan(mean)).tolist()
    known = ~np.isnan(masses[rows])
    expected = (known * areas[rows, None]).sum(axis=0)
    inside = np.where(known, masses[rows], 0).sum(axis=0)
    return RegionCheck(
        region=region,
        num_images=len(rows),
        mass=float(_mean(mean[rows], 0)),
        area=float(_mean(areas[rows], 0)),
        ratio=_ratio(mean[rows], areas[rows], [patients[row] for row in rows]),
        by_observation=np.divide(inside, expected, out=np.full(masses.shape[1], NAN), where=expected > 0),
    )


def check_removal(
    observations: Sequence[str],
    fractions: FloatArray,
    deletion: FloatArray,
    insertion: FloatArray,
    random: FloatArray,
    patients: Sequence[str],
) -> RemovalCheck:
    """Compare deletion and insertion curves with those of a random order: compute the mean areas between them.

    `patients` names the patient of each curve. The other arguments become fields of the `RemovalCheck`, where they are
    explained; the areas are its fields `deletion_gain` and `insertion_gain`.
    """
    deleted, inserted, at_random = (trapezoid(curves, fractions, axis=1) for curves in (deletion, insertion, random))
    gains = (_ratio(gain, np.ones(len(gain)), patients) for gain in (at_random - deleted, inserted - at_random))
    return RemovalCheck(observations, fractions, deletion, insertion, random, *gains)


def mass_inside(maps: FloatArray, region: Mask) -> FloatArray:
    """Return the share `(num_labels,)`, in [0, 1], of the positive part of each map that lies in a region.

    Maps are `(num_labels, height, width)`, the region is `(height, width)`. NaN for maps without a positive part.
    """
    positive = np.maximum(maps, 0)
    total = positive.sum(axis=(1, 2))
    return np.divide(positive[:, region].sum(axis=1), total, out=np.full(len(maps), NAN), where=total > 0)


def removal_steps(order: NDArray[np.integer], steps: int) -> tuple[Mask, FloatArray]:
    """Return the cells removed after each step, as masks `(steps + 1, num_cells)`, and their share `(steps + 1,)`.

    `order` `(num_cells,)` has the numbers of the cells in the order of their removal. In the first mask no cell is
    removed, in the last mask all are.
    """
    counts = np.round(np.linspace(0, len(order), steps + 1)).astype(int)
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    return rank < counts[:, None], counts / len(order)


def frame(shape: tuple[int, int]) -> Mask:
    """Return the mask of four strips along the edges of a picture of `shape` (height, width).

    The upper and lower strips are `FRAME` times as high as the picture, the left and right ones `FRAME` times as wide.
    """
    mask = np.ones(shape, dtype=bool)
    rows, columns = (max(1, round(FRAME * side)) for side in shape)
    mask[rows:-rows, columns:-columns] = False
    return mask


def outside_body(picture: Picture) -> Mask:
    """Return the mask of the dark surroundings of the body in a picture `(height, width)` in which air is dark.

    The body is the largest bright region of the smoothed picture and all that it encloses, such as the lungs. The mask
    is empty if the body fills the picture.
    """
    smooth = ndimage.gaussian_filter(np.asarray(picture, dtype=np.float32), min(picture.shape) / 64)
    dark, bright = np.percentile(smooth, [1, 99])
    regions, count = ndimage.label(smooth > dark + _DARK * (bright - dark))
    if not count:
        return np.zeros(picture.shape, dtype=bool)
    sizes = np.bincount(regions.ravel())
    body: Mask = ndimage.binary_fill_holes(regions == sizes[1:].argmax() + 1)
    return ~body


def side_marker(picture: Picture) -> Mask:
    """Return the mask of the box around the likeliest side marker, "L" or "R": bright strokes near an upper corner.

    Metal must be bright in the picture. Height and width must be at least 320 pixels, else letters cannot be told from
    ribs. The mask is empty if nothing looks like a marker. The box is sometimes wrong: a pacemaker or the edge of a
    bone may look like a marker.
    """
    height, width = picture.shape
    grey = np.asarray(picture, dtype=np.float32)
    dark, bright = np.percentile(grey, [1, 99.5])
    side = max(3, 2 * round(_STROKE / 2 * min(grey.shape)) + 1)
    ridge = ndimage.white_tophat(grey, size=side)
    zone = np.zeros(picture.shape, dtype=bool)
    rows, columns = round(_ZONE_HEIGHT * height), round(_ZONE_WIDTH * width)
    zone[:rows, :columns] = zone[:rows, -columns:] = True
    ink = zone & (ridge > _INK * (bright - dark))
    reach = max(1, round(_GAP * min(grey.shape)))
    letters, _ = ndimage.label(ndimage.binary_dilation(ink, iterations=reach))
    best, marker = 0.0, np.zeros(picture.shape, dtype=bool)
    for number, place in enumerate(ndimage.find_objects(letters), start=1):
        rows, columns = place[0].stop - place[0].start, place[1].stop - place[1].start
        is_small = rows <= _MAX_MARKER * height and columns <= _MAX_MARKER * width
        is_letter = rows >= _MIN_MARKER * height + 2 * reach and max(rows, columns) <= 4 * min(rows, columns)
        contrast = float(ridge[place][ink[place] & (letters[place] == number)].mean())
        if is_small and is_letter and contrast > best:
            best, marker = contrast, np.zeros_like(marker)
            marker[place] = True
    return marker


def _standard_ranks(maps: FloatArray) -> FloatArray:
    """Return the ranks of the values within each map, scaled to mean 0 and variance 1; NaN for a constant map."""
    ranks = rankdata(maps.reshape(*maps.shape[:2], -1), axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (ranks / ranks.std(axis=2, keepdims=True)).reshape(maps.shape)


def _mean(values: FloatArray, axis: int | tuple[int, ...]) -> FloatArray:
    """Return the mean of the values that are not NaN, or NaN if there are none, without the warning of `np.nanmean`."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis=axis), NAN)


def _ratio(numerators: FloatArray, denominators: FloatArray, patients: Sequence[str]) -> Estimate:
    """Return sum(numerators) / sum(denominators) with its bootstrap interval, leaving out numerators that are NaN.

    If several patients all have the same ratio, it is both ends of the interval; for one patient, the ends are NaN.
    """
    known = np.flatnonzero(~np.isnan(numerators)).tolist()
    if not known:
        return UNDEFINED
    above, below = numerators[known], denominators[known]
    estimate = ratio_interval(float(above.sum() / below.sum()), above, below, [patients[row] for row in known])
    if isnan(estimate.low) and len({patients[row] for row in known}) > 1:  # such as 0, for a region that no map marks
        return Estimate(estimate.value, estimate.value, estimate.value)
    return Estimate(estimate.value, estimate.low, estimate.high)
