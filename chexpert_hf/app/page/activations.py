"""The view of the feature maps: of each stage of the network the mean of its maps and the strongest ones."""

import io
from html import escape

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from chexpert_hf.app.page.html import data_url
from chexpert_hf.app.page.reading import bytes_of
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.activations import Stage, feature_activations
from chexpert_hf.scoring.classifier import CheXpertClassifier

COLORMAP = "viridis"
_MAX_SIDE = 160
"""Maps with more pixels than this across are shown smaller."""


def activations_html(classifier: CheXpertClassifier, file: RadiographFile) -> str:
    """The feature maps of one radiograph, from a pass of its own; of an ensemble, in its first member.

    Args:
        classifier: The model.
        file: The upload.

    Raises:
        RadiographError: If it cannot be read.
        ExpiredError: If it has been deleted.
    """
    image = classifier.read(bytes_of(file)).image
    pixel_values = classifier.processor(image, return_tensors="pt")["pixel_values"].to(classifier.model.device)
    stages = feature_activations(classifier.model, pixel_values.to(classifier.model.dtype))
    rows = "".join(_stage_html(stage, image.width / image.height) for stage in stages)
    return (
        '<section class="activations" aria-label="Feature activations"><h2>Feature activations</h2>'
        "<p>What each stage of the network makes of this radiograph: the mean over all its feature maps, and the maps "
        "whose values differ most between places. Bright is high; each map has a scale of its own.</p>"
        f"{rows}</section>"
    )


def _stage_html(stage: Stage, proportion: float) -> str:
    count, height, width = stage.maps.shape
    maps = [("mean", stage.mean), *((f"channel {channel}", stage.maps[channel]) for channel in stage.strongest())]
    figures = "".join(
        f'<figure><img src="{data_url(_png(values), "image/png")}" style="aspect-ratio: {proportion:.4f}" '
        f'alt="{escape(stage.name)}, {title}"><figcaption>{title}</figcaption></figure>'
        for title, values in maps
    )
    return (
        f'<div class="stage-row"><p><strong>{escape(stage.name)}</strong>'
        f'<span>{count} maps of {height} x {width}</span></p><div class="stage-maps">{figures}</div></div>'
    )


def _png(values: Tensor) -> bytes:
    array = values.numpy()
    span = float(array.max() - array.min())
    levels = np.rint((array - array.min()) / (span or 1) * 255).astype(np.uint8)
    colored = np.rint(colormaps[COLORMAP](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)[levels]
    image = Image.fromarray(colored)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
