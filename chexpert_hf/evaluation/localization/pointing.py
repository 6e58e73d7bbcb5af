"""What points at findings: a model's maps at their own resolution, and those of the baselines that it must beat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.evaluation.localization.localization import PRIORS, Indication, indicate, prior_map
from chexpert_hf.evaluation.sanity.randomisation import redrawn_networks
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.radiographs.radiograph import Radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import SaliencyMaps

MODEL, UNTRAINED = "model", "untrained"
BASELINES = (UNTRAINED, *PRIORS)

_COARSE_SIDE = 320
"""Several times finer than any network's maps, so that resizing it once more changes them little."""


@dataclass(frozen=True)
class ScoredImage:
    """One image that went through a model.

    Attributes:
        row: In the data set.
        image: As the model read it, possibly scaled down.
        prediction: Of the model.
        maps: Of the prediction.
    """

    row: int
    image: Image.Image
    prediction: Prediction
    maps: SaliencyMaps


def scored_images(
    classifier: CheXpertClassifier, dataset: datasets.Dataset, rows: Sequence[int]
) -> Iterator[ScoredImage]:
    """Scores these rows of a split, one batch at a time.

    Raises:
        RadiographError: If an image cannot be read.
    """
    files = image_files(dataset)
    read: list[tuple[int, Radiograph]] = []

    def images() -> Iterator[Radiograph]:
        for row in rows:
            read.append((row, read_file(classifier, files[row])))
            yield read[-1][1]

    for prediction in classifier.predict_images(images(), saliency=True):
        if prediction.saliency is None:
            raise ValueError("Expected predictions with maps, got one without.")
        row, radiograph = read.pop(0)
        yield ScoredImage(row, radiograph.image, prediction, prediction.saliency)


def untrained_like(classifier: CheXpertClassifier, seed: int) -> CheXpertClassifier:
    """A network of the (first) model's architecture with random weights, other than those its training began with."""
    _, untrained = redrawn_networks(classifier.model, seed)
    return CheXpertClassifier(untrained, classifier.processor)


def indications(
    name: str, maps: SaliencyMaps, untrained: SaliencyMaps, shape: tuple[int, int], threshold: float | None
) -> dict[str, Indication]:
    """What the model, the untrained network and each fixed place say of one observation, at `shape` (height, width)."""
    return {
        MODEL: indicate(map_at(maps, name, shape), threshold),
        UNTRAINED: indicate(map_at(untrained, name, shape), threshold),
        **{prior: _prior_indication(prior, shape, threshold) for prior in PRIORS},
    }


@lru_cache(maxsize=8)
def _prior_indication(prior: str, shape: tuple[int, int], threshold: float | None) -> Indication:
    return indicate(prior_map(PRIORS[prior], shape), threshold)


def map_at(maps: SaliencyMaps, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The map of one observation, bilinearly at `shape` (height, width)."""
    height, width = shape
    return maps.at_size((width, height))[name]


def coarse_map(maps: SaliencyMaps, name: str) -> NDArray[np.float32]:
    """The map of one observation over the whole image, `(h, w)`, as small as the network made it.

    Where the network saw a part of the image only, it is one of `_COARSE_SIDE` instead, which shows where that part is.
    """
    if maps.box == (0, 0, *maps.size):
        return maps.positive[list(maps.observations).index(name)].numpy()
    return map_at(maps, name, (_COARSE_SIDE, _COARSE_SIDE))
