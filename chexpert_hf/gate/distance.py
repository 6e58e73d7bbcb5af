"""The gate's arithmetic: how far features are from those of radiographs, and which way round an image lies.

Sources: Lee et al. 2018, arXiv:1807.03888 (Mahalanobis distance of features); Wang et al. 2022, arXiv:2203.10807 (the
part of the features that the training images do not span); Fisher 1936 (linear discriminants).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIRECTIONS = 20
"""Principal directions in which training images may vary; 20 to 50 do alike."""

FOLDS = 5

_IMAGES_PER_DIRECTION = 8
_SHRINKAGE = 0.1
_QUANTILE = 0.995
_STRICT_QUANTILE = 0.95
_KIND_QUANTILE = 0.997
_KIND_RIDGE = 3.0  # times the variance of a feature
_NORMAL_QUANTILE = 2.576  # of .995
_ENOUGH_FOR_QUANTILE = 200  # images, of which one is above the quantile
_TINY = 1e-6


@dataclass(frozen=True)
class Distance:
    """The distance from training images.

    Attributes:
        centre: `(num_features,)`, the mean.
        spread: `(num_features,)`, the standard deviation.
        directions: `(num_directions, num_features)`, orthonormal: the principal ones.
        variances: `(num_directions,)`, along them.
        residual: The mean square of what lies outside of them.
    """

    centre: Floats
    spread: Floats
    directions: Floats
    variances: Floats
    residual: float

    def __call__(self, features: Floats) -> Floats:
        """Of features `(batch, num_features)` the distance `(batch,)`; training images have 2 on average.

        The mean square along the directions, each in units of its variance, plus the square of what no direction
        explains, in units of its mean.
        """
        scaled = (features - self.centre) / self.spread
        along = scaled @ self.directions.T
        outside = np.maximum((scaled**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return (along**2 / self.variances).mean(axis=1) + outside / self.residual


def fit_distance(features: Floats) -> Distance:
    """The distance from images with these features, `(num_images, num_features)`."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    # A filter that hardly answers in any training image must not decide by the little that it does.
    spread = spread + 0.05 * spread.mean() + _TINY
    scaled = (features - centre) / spread
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    variances = singular**2 / len(features)
    count = max(1, min(DIRECTIONS, len(features) // _IMAGES_PER_DIRECTION, len(variances) - 1))
    return Distance(
        centre, spread, directions[:count], variances[:count] + _TINY, float(variances[count:].sum() + _TINY)
    )


def distance_limits(features: Floats) -> tuple[float, float]:
    """What 99.5 % of unseen images like these stay below, and what 95 % do.

    The quantiles of the distances of each fifth of the images from the other four. With fewer than 200 images, of which
    the first quantile is no more than the maximum, it is that of a log-normal distribution if that is larger.
    """
    folds = fold_of(len(features))
    distances = np.empty(len(features))
    for fold in range(FOLDS):
        distances[folds == fold] = fit_distance(features[folds != fold])(features[folds == fold])
    most, many = (float(value) for value in np.quantile(distances, (_QUANTILE, _STRICT_QUANTILE)))
    if len(features) < _ENOUGH_FOR_QUANTILE:
        logs = np.log(distances + _TINY)
        most = float(max(most, np.exp(logs.mean() + _NORMAL_QUANTILE * logs.std())))
    return most, many


def fold_of(count: int) -> NDArray[np.int64]:
    """The fold of each image: stretches of the given order, so that a patient's images mostly stay together."""
    return np.arange(count) * FOLDS // count


@dataclass(frozen=True)
class Poses:
    """Linear discriminants of ways in which a radiograph may lie.

    Attributes:
        weights: `(num_features, num_poses)`.
        biases: `(num_poses,)`.
        margins: `(num_poses,)`: by how much a pose must beat the first, the right one; 0 for the first.
    """

    weights: Floats
    biases: Floats
    margins: Floats

    def __call__(self, features: Floats) -> NDArray[np.int64]:
        """The pose of each image, `(batch,)`; 0 unless another is clearly more likely."""
        scores = features @ self.weights + self.biases
        leads: Floats = scores - scores[:, :1] - self.margins
        return leads.argmax(axis=1)


def fit_poses(features: Sequence[Floats]) -> Poses:
    """Fits the discriminants.

    Args:
        features: Of each pose `(num_images, num_features)`, of the same images in the same order; the right pose first.
    """
    count = len(features[0])
    folds = fold_of(count)
    leads = np.empty((count, len(features)))
    for fold in range(FOLDS):
        weights, biases = _discriminants([rows[folds != fold] for rows in features])
        scores = features[0][folds == fold] @ weights + biases
        leads[folds == fold] = scores - scores[:, :1]
    weights, biases = _discriminants(features)
    return Poses(weights, biases, np.maximum(np.quantile(leads, _QUANTILE, axis=0), 0))


@dataclass(frozen=True)
class Discriminant:
    """A linear discriminant of one kind of images.

    Attributes:
        weights: `(num_features,)`.
        limit: Images with a higher score, the weighted sum of the features, are of the kind.
    """

    weights: Floats
    limit: float

    def __call__(self, features: Floats) -> NDArray[np.bool_]:
        """Whether each image with these features `(batch, num_features)` is of the kind, `(batch,)`."""
        return features @ self.weights > self.limit


def fit_discriminant(usual: Floats, kind: Floats) -> Discriminant:
    """Fits what tells a kind of images from the usual ones, of which .3 % are taken for that kind.

    The kind may be synthetic, so that its spread is not like that of real images: only its mean is used, and the
    covariance of the usual images is far shrunk towards a diagonal.

    Args:
        usual: `(num_usual, num_features)`.
        kind: `(num_of_the_kind, num_features)`.
    """
    centre, spread = usual.mean(axis=0), usual.std(axis=0) + _TINY
    scaled = (usual - centre) / spread
    covariance = scaled.T @ scaled / len(scaled) + _KIND_RIDGE * np.eye(len(spread))
    weights = np.linalg.solve(covariance, (kind.mean(axis=0) - centre) / spread) / spread
    return Discriminant(weights, float(np.quantile(usual @ weights, _KIND_QUANTILE, method="higher")))


def _discriminants(features: Sequence[Floats]) -> tuple[Floats, Floats]:
    rows = np.concatenate(features)
    centre, spread = rows.mean(axis=0), rows.std(axis=0) + _TINY
    scaled = [(part - centre) / spread for part in features]
    means = np.stack([part.mean(axis=0) for part in scaled])  # (poses, features)
    within = np.concatenate([part - mean for part, mean in zip(scaled, means, strict=True)])
    covariance = within.T @ within / len(within)
    size = len(covariance)
    ridge = _SHRINKAGE * np.trace(covariance) / size + _TINY
    covariance = (1 - _SHRINKAGE) * covariance + ridge * np.eye(size)
    weights = np.linalg.solve(covariance, means.T)  # (features, poses)
    biases = -0.5 * (means * weights.T).sum(axis=1)
    weights = weights / spread[:, None]
    return weights, biases - centre @ weights
