"""The view of the feature maps: for each stage of the network the mean of its maps and the strongest ones."""

import io

import numpy as np
from PIL import Image
from torch import Tensor

from chexpert_hf.app.page.html import color_table, data_url, render
from chexpert_hf.app.page.reading import bytes_of
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.activations import Stage, feature_activations
from chexpert_hf.scoring.classifier import CheXpertClassifier

COLORMAP = "viridis"
_MAX_SIDE = 160
"""Maps with more pixels than this across are shown smaller."""


def activations_html(classifier: CheXpertClassifier, file: RadiographFile) -> str:
    """The feature maps of one radiograph, from a forward pass of its own; of an ensemble, in its first member.

    Raises:
        RadiographError: If it cannot be read.
        ExpiredError: If it has been deleted.
    """
    image = classifier.read(bytes_of(file)).image
    pixel_values = classifier.processor(image, return_tensors="pt")["pixel_values"].to(classifier.model.device)
    stages = feature_activations(classifier.model, pixel_values.to(classifier.model.dtype))
    return render(
        "activations.html",
        stages=[(stage, _maps(stage)) for stage in stages],
        proportion=image.width / image.height,
    )


def _maps(stage: Stage) -> list[tuple[str, str]]:
    """The titles and addresses of a stage's images."""
    strongest = ((f"channel {channel}", stage.maps[channel]) for channel in stage.strongest())
    return [(title, data_url(_png(values), "image/png")) for title, values in (("mean", stage.mean), *strongest)]


def _png(values: Tensor) -> bytes:
    array = values.numpy()
    span = float(array.max() - array.min())
    levels = np.rint((array - array.min()) / (span or 1) * 255).astype(np.uint8)
    image = Image.fromarray(color_table(COLORMAP)[levels])
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
