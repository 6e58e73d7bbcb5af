"""Fits the gate on a model's training images and synthetic lateral views; it needs no examples of other images."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date as calendar
from functools import cache
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.errors import InputError
from chexpert_hf.gate.children import CHILD_AGE, CHILD_QUANTILE, child_scores, lowest_child_limit
from chexpert_hf.gate.features import STRUCTURES, THUMBNAIL, Floats, detail, gate_features, gray_levels
from chexpert_hf.gate.gate import GATE_FILE, Distance, Gate, Pose
from chexpert_hf.models.loading import load_processor
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import read_radiograph

MAX_IMAGES = 1000
MIN_IMAGES = 20

_CROPPED_SIDE = 0.56  # share of each side in the middle: the lungs without shoulders, flanks and abdomen
_MIN_DETAIL_SHARE = 0.5  # `Gate.least_detail` as a share of the detail of the least detailed training image
_NUM_PHANTOMS = 60
_DIRECTIONS = 20  # the most principal directions of a `Distance`
_IMAGES_PER_DIRECTION = 8
_FOLDS = 5
_SHRINKAGE = 0.1
_QUANTILE, _STRICT_QUANTILE = 0.995, 0.95
_NORMAL_QUANTILE = 2.576  # standard normal at .995
_MIN_FOR_QUANTILE = 200  # number of images from which on one is above the quantile
_LATERAL_QUANTILE = 0.997
_LATERAL_RIDGE = 3.0  # added to the diagonal of a covariance, in units of the variance of a feature
_MAX_CHILD_SHARE = 0.1  # a model with more children among its training images counts as trained on children
_TINY = 1e-6

T = TypeVar("T")


def fit_folder_gate(
    folder: Path, dataset: datasets.Dataset, data_name: str, progress: Callable[[int], None] | None = None
) -> Gate:
    """Fit a gate on a model's training images, write it into the model folder and update the folder's checksums.

    `dataset` is the split that the model was trained on; `data_name` is recorded in the gate; `progress` is called
    with 1 after each radiograph. Raises InputError if there are fewer than `MIN_IMAGES` radiographs, or the processor
    or a radiograph cannot be read.
    """
    processor = load_processor(folder)

    def images() -> Iterator[Image.Image]:
        for file in evenly_spaced(image_files(dataset)):
            with naming(file):
                image = read_radiograph(file, target_size=processor.decoded_side)
            yield image
            if progress:
                progress(1)

    gate = fit_gate(
        images(),
        ages=evenly_spaced(dataset["age"][:]),
        data_name=data_name,
        date=calendar.today().isoformat(),
        knows_laterals=not all(dataset["is_frontal"][:]),
    )
    gate.save(folder)
    renew_checksums(folder, [GATE_FILE])
    return gate


def fit_gate(
    images: Iterable[Image.Image],
    *,
    data_name: str,
    date: str,
    ages: Sequence[int | None] = (),
    knows_laterals: bool = False,
) -> Gate:
    """Fit a gate on training images from `read_radiograph`.

    More than `MAX_IMAGES` images are not needed. Images of one patient should be neighbours: cross-validation splits
    `images` into parts by position. `data_name` and `date` are recorded in the gate; `ages` are the patients' ages in
    years, one for each image, or empty; `knows_laterals` says whether `images` include lateral views. InputError if
    there are fewer than `MIN_IMAGES`.
    """
    grays = [(gray_levels(image), gray_levels(_middle(image))) for image in images]
    if len(grays) < MIN_IMAGES:
        raise InputError(f"Expected at least {MIN_IMAGES} radiographs to fit a gate on, got {len(grays)}; give more.")
    whole, middle = (torch.stack(each) for each in zip(*grays, strict=True))  # (N, 1, RESOLUTION, RESOLUTION)
    features = [gate_features(middle if pose is Pose.CROPPED else pose.applied(whole)) for pose in Pose]
    upright = features[0]
    limit, strict_limit = distance_limits(upright[:, STRUCTURES])
    pose_weights, pose_biases, pose_margins = _pose_discriminants(features)
    lateral_weights, lateral_limit = _lateral_discriminant(upright[:, THUMBNAIL])
    return Gate(
        distance=fit_distance(upright[:, STRUCTURES]),
        limit=limit,
        strict_limit=strict_limit,
        pose_weights=pose_weights,
        pose_biases=pose_biases,
        pose_margins=pose_margins,
        lateral_weights=lateral_weights,
        lateral_limit=lateral_limit,
        # The child discriminant is for frontal views, and a gate that knows laterals does not tell views apart.
        child_limit=math.inf if knows_laterals else _child_limit(upright, ages),
        least_detail=_MIN_DETAIL_SHARE * float(np.min(detail(whole))),
        num_images=len(grays),
        data_name=data_name,
        date=date,
        knows_laterals=knows_laterals,
    )


def evenly_spaced(items: Sequence[T]) -> list[T]:
    """Return at most `MAX_IMAGES` of the items, evenly spaced from the first to the last."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(len(items), MAX_IMAGES))]


def _middle(image: Image.Image) -> Image.Image:
    margin = (1 - _CROPPED_SIDE) / 2
    left, top, right, bottom = (round(share * side) for share in (margin, 1 - margin) for side in image.size)
    return image.crop((left, top, right, bottom)) if right > left and bottom > top else image


def fit_distance(features: Floats) -> Distance:
    """Fit the function that measures how far images are from training images.

    `features`, `(num_images, num_features)`, are those of the training images. Their mean, spread, principal directions
    and variances along these are estimated.
    """
    centre, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that hardly varies among the training images must not decide by tiny differences.
    spread = spread + 0.05 * spread.mean() + _TINY
    _, singular, directions = np.linalg.svd((features - centre) / spread, full_matrices=False)
    variances = singular**2 / len(features)
    count = max(1, min(_DIRECTIONS, len(features) // _IMAGES_PER_DIRECTION, len(variances) - 1))
    residual = float(variances[count:].sum() + _TINY)
    return Distance(centre, spread, directions[:count], variances[:count] + _TINY, residual)


def distance_limits(features: Floats) -> tuple[float, float]:
    """Return the distances below which 99.5 % and 95 % of unseen images like the training images lie.

    They are quantiles in cross-validation: for each fifth of the training images, given by their `features`, distances
    are computed by a function that was fitted on the other four fifths. Fewer than 200 images say little
    about 99.5 %: then a log-normal distribution is fitted to the distances, and the larger of the measured and the
    fitted 99.5 % quantile is returned.
    """
    folds = _fold_of(len(features))
    distances = np.empty(len(features))
    for fold in range(_FOLDS):
        distances[folds == fold] = fit_distance(features[folds != fold])(features[folds == fold])
    most, many = (float(value) for value in np.quantile(distances, (_QUANTILE, _STRICT_QUANTILE)))
    if len(features) < _MIN_FOR_QUANTILE:
        logs = np.log(distances + _TINY)
        most = float(max(most, np.exp(logs.mean() + _NORMAL_QUANTILE * logs.std())))
    return most, many


def _fold_of(count: int) -> NDArray[np.int64]:
    return np.arange(count) * _FOLDS // count  # consecutive, so that a patient's images mostly stay together


def _pose_discriminants(features: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Fit linear discriminants of poses; return weights `(num_features, num_poses)`, biases and margins `(num_poses,)`.

    `features` has one array `(num_images, num_features)` for each pose, of the same images, upright first. An image is
    taken to be in another pose if that pose's score exceeds the upright one by more than the pose's margin. A margin is
    at least 0, and so large that at most .5 % of unseen upright images exceed it.
    """
    count = len(features[0])
    rows, poses = np.concatenate(features), np.repeat(np.arange(len(features)), count)
    scaler, discriminants = StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage=_SHRINKAGE)
    model = make_pipeline(scaler, discriminants)
    folds = PredefinedSplit(np.tile(_fold_of(count), len(features)))
    unseen = cross_val_predict(model, rows, poses, cv=folds, method="decision_function")[:count]
    margins = np.maximum(np.quantile(unseen - unseen[:, :1], _QUANTILE, axis=0), 0)
    model.fit(rows, poses)
    weights = discriminants.coef_.T / scaler.scale_[:, None]
    return weights, discriminants.intercept_ - scaler.mean_ @ weights, margins


def _child_limit(features: Floats, ages: Sequence[int | None]) -> float:
    """Return a limit of `child_scores` that hardly any adult among the training images exceeds.

    Children's images are ignored if they are at most a tenth of all. If they are more, or ages are unknown, the limit
    exceeds the scores of nearly all images, children's included, so that a model trained on children gives no warning.
    """
    is_child = np.array([age is not None and age < CHILD_AGE for age in ages or [None] * len(features)])
    used = features if is_child.mean() > _MAX_CHILD_SHARE else features[~is_child]
    return max(lowest_child_limit(), float(np.quantile(child_scores(used), CHILD_QUANTILE)))


@cache
def _drawn_laterals() -> Floats:
    """Return thumbnails `(num_images, num_cells)` of synthetic lateral views, facing left and right."""
    drawn = [render_phantom(seed, projection="Lateral").image for seed in range(_NUM_PHANTOMS)]
    grays = torch.stack([gray_levels(Image.fromarray(pixels)) for pixels in drawn])
    return gate_features(torch.cat([grays, grays.flip(-1)]))[:, THUMBNAIL]


def _lateral_discriminant(frontal: Floats) -> tuple[Floats, float]:
    """Fit a discriminant of lateral views; return weights `(num_cells,)` and the limit that .3 % of `frontal` exceed.

    `frontal` are thumbnails `(num_images, num_cells)` of the training images. The lateral views are synthetic, half of
    them facing left and half right. Since they vary less than real ones, they are used only by their mean, and the
    covariance of the frontal views is strongly shrunk towards a diagonal.
    """
    lateral = _drawn_laterals()
    centre, spread = frontal.mean(axis=0), frontal.std(axis=0) + _TINY
    scaled = (frontal - centre) / spread
    covariance = scaled.T @ scaled / len(scaled) + _LATERAL_RIDGE * np.eye(len(spread))
    weights = np.linalg.solve(covariance, (lateral.mean(axis=0) - centre) / spread) / spread
    return weights, float(np.quantile(frontal @ weights, _LATERAL_QUANTILE, method="higher"))
