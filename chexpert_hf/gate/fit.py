"""Fits the gate on a model's training images and synthetic lateral views. No images of anything else are needed."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from chexpert_hf.errors import InputError
from chexpert_hf.gate.distance import (
    Discriminant,
    Floats,
    distance_limits,
    fit_discriminant,
    fit_distance,
    fit_poses,
)
from chexpert_hf.gate.features import detail, gate_features, gray_levels, structures, thumbnails
from chexpert_hf.gate.gate import POSES, Gate, Pose
from chexpert_hf.phantoms import render_phantom

Item = TypeVar("Item")

MAX_IMAGES = 1000
MIN_IMAGES = 20

# The middle of a radiograph, as a share of each side: the lungs without the shoulders, the flanks and the abdomen.
_CROPPED_SIDE = 0.56
# An image may have somewhat less detail than the least detailed training image.
_LEAST_DETAIL = 0.5
_NUM_PHANTOMS = 60


def fit_gate(
    images: Iterable[Image.Image],
    *,
    data_name: str,
    date: str,
    knows_laterals: bool = False,
) -> Gate:
    """Fits a gate.

    Args:
        images: The training images as `read_radiograph` gives them; of more than `MAX_IMAGES`, evenly spaced ones are
            taken. A patient's images should stand together.
        data_name: Of the data, for the record.
        date: Of the fit, such as "2026-11-23".
        knows_laterals: Whether there are lateral views among them.

    Raises:
        InputError: If there are fewer than `MIN_IMAGES`.
    """
    grays = _thinned((gray_levels(image), gray_levels(_middle(image))) for image in images)
    if len(grays) < MIN_IMAGES:
        raise InputError(f"Expected at least {MIN_IMAGES} radiographs to fit a gate on, got {len(grays)}; give more.")
    whole = torch.stack([gray for gray, _ in grays])  # (N, 1, RESOLUTION, RESOLUTION)
    middle = torch.stack([gray for _, gray in grays])
    seen = [middle if pose is Pose.CROPPED else pose.applied(whole) for pose in POSES]
    features = [gate_features(gray) for gray in seen]
    upright = features[0]
    limit, strict_limit = distance_limits(structures(upright))
    return Gate(
        distance=fit_distance(structures(upright)),
        limit=limit,
        strict_limit=strict_limit,
        poses=fit_poses(features),
        lateral=_lateral(upright),
        least_detail=_LEAST_DETAIL * float(np.min(detail(whole))),
        num_images=len(grays),
        data_name=data_name,
        date=date,
        knows_laterals=knows_laterals,
    )


def evenly_spaced(items: Sequence[Item]) -> list[Item]:
    """At most `MAX_IMAGES` of them, from the first to the last, so that no more need be read."""
    if len(items) <= MAX_IMAGES:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, MAX_IMAGES)]


def _thinned(images: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """At most `MAX_IMAGES`, evenly spaced, of what may be many more; no more than that is ever kept."""
    kept: list[tuple[Tensor, Tensor]] = []
    step = 1
    for number, image in enumerate(images):
        if number % step:
            continue
        if len(kept) == MAX_IMAGES:
            kept, step = kept[::2], 2 * step
            if number % step:
                continue
        kept.append(image)
    return kept


def _middle(image: Image.Image) -> Image.Image:
    margin = (1 - _CROPPED_SIDE) / 2
    width, height = image.size
    box = (round(margin * width), round(margin * height), round((1 - margin) * width), round((1 - margin) * height))
    return image.crop(box) if box[2] > box[0] and box[3] > box[1] else image


def _lateral(frontal: Floats) -> Discriminant:
    """Tells synthetic lateral views, facing either way, from frontal views with these features."""
    drawn = [render_phantom(seed, projection="Lateral").image for seed in range(_NUM_PHANTOMS)]
    grays = torch.stack([gray_levels(Image.fromarray(pixels)) for pixels in drawn])
    return fit_discriminant(thumbnails(frontal), thumbnails(gate_features(torch.cat([grays, grays.flip(-1)]))))
