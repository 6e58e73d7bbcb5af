"""What the page keeps of one radiograph between two clicks, so that drawing another map needs no forward pass."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexpert_hf.data.radiograph import read_radiograph
from chexpert_hf.inference.classifier import CheXpertClassifier, Prediction
from chexpert_hf.inference.saliency import SaliencyMaps, overlay

DISPLAY_SIZE = 1024
"""Longest side in pixels of what is shown. Scores do not depend on it: the model gets the file itself."""

NO_FINDING = "No Finding"


@dataclass(frozen=True, eq=False)
class Reading:
    """One radiograph with its scores and maps, in the size in which it is shown.

    Attributes:
        image: `(height, width)`, 8-bit.
        prediction: The scores, without maps.
        maps: Of each observation `(height, width)`, made when it is asked for.
    """

    image: NDArray[np.uint8]
    prediction: Prediction
    maps: SaliencyMaps

    @property
    def most_probable(self) -> str:
        """The observation to show first: the highest score but that of No Finding, which has no place to point at."""
        scores = self.prediction.probabilities
        placed = [name for name in scores if name != NO_FINDING] or list(scores)
        return max(placed, key=scores.__getitem__)

    def overlay(self, observation: str, opacity: float) -> NDArray[np.uint8]:
        """The radiograph under an observation's map, `(height, width, 3)`."""
        return np.asarray(overlay(Image.fromarray(self.image), self.maps[observation], opacity))


def read(classifier: CheXpertClassifier, data: bytes) -> Reading:
    """Scores a radiograph as `classifier.predict(data)` does, and keeps what the page shows of it.

    Args:
        classifier: The model.
        data: A file's bytes.

    Raises:
        RadiographError: If it cannot be read.
    """
    shown = read_radiograph(data)
    shown.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE), Image.Resampling.LANCZOS)
    prediction = classifier.predict(data, saliency=True)
    return Reading(
        image=np.asarray(shown),
        prediction=replace(prediction, saliency=None),
        maps=prediction.maps.at_size(shown.size),
    )
