"""Regions of a radiograph without findings: outside the body, the outer frame, the side marker, found by brightness."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Picture = NDArray[np.floating] | NDArray[np.uint8]

FRAME = 0.05  # width of the frame, as a share of each side
# Air beside the body is darker than this share of the way from the darkest to the brightest place.
_DARK = 0.15
# The marker is looked for in the upper third of the outer quarters of a picture, where technicians put it.
_ZONE_HEIGHT, _ZONE_WIDTH = 1 / 3, 1 / 4
# Its strokes are brighter than both sides by this share of the range of grey levels ...
_INK = 0.1
# ... and narrower than this share of the picture; it is between these shares of the picture's height and width.
_STROKE, _SMALLEST, _LARGEST = 0.04, 0.03, 0.2
_GAP = 0.01  # between the strokes of one letter, in shares of the picture


def frame(shape: tuple[int, int]) -> Mask:
    """The outer `FRAME` of a picture of `shape` (height, width), at least one pixel wide."""
    mask = np.ones(shape, dtype=bool)
    rows, columns = (max(1, round(FRAME * side)) for side in shape)
    mask[rows:-rows, columns:-columns] = False
    return mask


def outside_body(picture: Picture) -> Mask:
    """The dark surroundings: all but the largest bright region of the smoothed picture and what it encloses.

    Lungs are dark, but enclosed. Where the body fills the picture, nothing is outside. Air is dark in the picture.
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
    """The box around what looks most like a side marker: narrow bright strokes, close together, near an upper corner.

    Metal is bright in the picture, which needs 320 pixels or more, or letters cannot be told from ribs. The mask is
    empty if nothing looks like one. It is wrong now and then: a pacemaker or the edge of a bone may look more like one
    than a faint letter does.
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
        is_small = rows <= _LARGEST * height and columns <= _LARGEST * width
        is_letter = rows >= _SMALLEST * height + 2 * reach and max(rows, columns) <= 4 * min(rows, columns)
        contrast = float(ridge[place][ink[place] & (letters[place] == number)].mean())
        if is_small and is_letter and contrast > best:
            best, marker = contrast, np.zeros_like(marker)
            marker[place] = True
    return marker
