"""HTML of the result of a radiograph or study: the viewer, the report, and the feature activations.

The maps go to the browser at the model's own size in 256 levels; `assets/viewer.js` enlarges and colours them and lays
them over the radiograph as `scoring.saliency.overlay` does.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray
from PIL import Image

from chexpert_hf.app.model_facts import ModelFacts
from chexpert_hf.app.page.html import asset, data_url, render
from chexpert_hf.app.page.reading import DETAIL_SIZE, Item, Study, bytes_of, encode, shown_image
from chexpert_hf.app.page.text import describe_map, describe_strength
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.scoring.activations import Stage, feature_activations
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import COLORMAP, overlay

_MOST = 4  # views, and maps, in a report
_REPORT_SIDE = 640  # longest side in pixels of an image on paper: about 250 to the inch
_ACTIVATION_SIDE = 160  # maps with more pixels than this across are shown smaller


def result_script() -> str:
    """Return the script of `result_html`, as a function's body: Gradio does not run modules."""
    return asset("viewer.js").replace("\nexport ", "\n") + asset("result.js")


def result_html(
    study: Study, facts: ModelFacts, points: Mapping[str, float], chosen: str | None = None, *, stills: str = ""
) -> Markup:
    """Return the viewer and the scores, sorted by probability, as HTML; each score is a button for its map.

    `points` are the operating points. The viewer opens on the map of the `chosen` observation, or else of the first
    in `Prediction.display_order`. `stills` is HTML with images for paper; with it, the result is part of a report:
    files are not named, and no button asks the server for anything.
    """
    colors = np.rint(colormaps[COLORMAP](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)  # (256, 3)
    names, numbers = list(study.prediction.probabilities), list(study.views)
    chosen = chosen or study.prediction.display_order()[0]
    content = {
        "id": uuid4().hex,  # new each time, so that the browser draws the same file again
        "observations": names,
        "chosen": names.index(chosen),
        "viewOf": [numbers.index(number) for number in study.view_of.values()],
        "colors": base64.b64encode(colors.tobytes()).decode(),
        "views": [_view(study.items[number - 1], view, study.label(number)) for number, view in study.views.items()],
    }
    shown = {"study": study, "missing": study.missing(is_named=not stills), "stills": stills, "facts": facts}
    return render("result.html", payload=json.dumps(content), chosen=chosen, operating_points=points, **shown)


def _view(item: Item, prediction: Prediction, label: str) -> dict[str, Any]:
    probabilities, positives, maps = prediction.probabilities, prediction.positives, prediction.maps
    levels = np.rint(maps.positive.cpu().numpy() * 255).astype(np.uint8)  # (num_labels, h, w)
    return {
        "label": label,
        "image": data_url(item.jpeg),
        "size": maps.size,
        "box": maps.box,
        "grid": levels.shape[1:],
        "maps": base64.b64encode(levels.tobytes()).decode(),
        "texts": [describe_map(name, maps.peak(name), levels.shape[1:]) for name in probabilities],
        "notes": [describe_strength(maps.peak(name), is_above) for name, is_above in positives.items()],
        "positives": list(positives.values()),
        "probabilities": [round(value, 3) for value in probabilities.values()],
    }


def detail_of(item: Item) -> str:
    """Return a radiograph at up to `DETAIL_SIZE` pixels as a `data:` URL; RadiographError if its upload is gone."""
    return data_url(encode(shown_image(bytes_of(item.path), DETAIL_SIZE)))


def report_html(study: Study, facts: ModelFacts, points: Mapping[str, float], chosen: str | None = None) -> str:
    """Return a self-contained report of a study as HTML: one printed page with images, maps, scores and disclaimer.

    It is HTML, not PDF, to be searchable and readable aloud. It requests nothing and holds no file name. Its script
    shows the viewer. On paper, or without the script, it has up to `_MOST` views and up to `_MOST` maps that are not
    empty: of the `chosen` observation, then in `display_order`. `points` are the operating points.
    """
    images = [(caption, data_url(encode(image))) for caption, image in _report_images(study, chosen)]
    stills = render("stills.html", study=study, images=images, color_bar=_png(np.arange(256)[None], COLORMAP))
    return render(
        "report.html",
        study=study,
        facts=facts,
        result=result_html(study, facts, points, chosen, stills=stills),
        script=Markup(result_script()),
        nonce=uuid4().hex,
        time=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _report_images(study: Study, chosen: str | None) -> Iterator[tuple[str, Image.Image]]:
    """Yield (caption, image) of up to `_MOST` views, then of up to `_MOST` maps that are not empty, `chosen` first."""
    for number in list(study.views)[:_MOST]:
        yield study.label(number), shown_image(study.items[number - 1].jpeg, _REPORT_SIDE)
    names = dict.fromkeys([*filter(None, [chosen]), *study.prediction.display_order()])
    maps = {name: study.views[number].maps for name, number in study.view_of.items()}
    shown = [name for name in names if not maps[name].is_empty(name)]  # an empty map shows nothing
    for name in shown[:_MOST]:
        number = study.view_of[name]
        image = shown_image(study.items[number - 1].jpeg, _REPORT_SIDE)
        place = f", View {number}" if study.is_numbered else ""
        yield f"Map of {name}{place}", overlay(image, maps[name].at_size(image.size)[name])


def activations_html(classifier: CheXpertClassifier, file: RadiographFile) -> str:
    """Return HTML with images of the network's feature maps for one radiograph, from a separate forward pass.

    For an ensemble, the network is its first member.

    Raises:
        RadiographError: If the file cannot be read or has been deleted.
    """
    image = classifier.read(bytes_of(file)).image
    pixel_values = classifier.processor(image, return_tensors="pt")["pixel_values"].to(classifier.model.device)
    stages = feature_activations(classifier.model, pixel_values.to(classifier.model.dtype))
    rows = [(stage, _activation_images(stage)) for stage in stages]
    return render("activations.html", stages=rows, proportion=image.width / image.height)


def _activation_images(stage: Stage) -> list[tuple[str, str]]:
    """Return (title, `data:` URL) of a stage's images: the mean of its channels, then the strongest ones."""
    step = -(-max(stage.mean.shape) // _ACTIVATION_SIDE)
    maps = ("mean", stage.mean), *((f"channel {channel}", stage.maps[channel]) for channel in stage.strongest())
    return [(title, _png(values.numpy()[::step, ::step], "viridis")) for title, values in maps]


def _png(values: NDArray[Any], colormap: str) -> str:
    stream = io.BytesIO()
    imsave(stream, values, cmap=colormap, format="png")  # from the least to the greatest value
    return data_url(stream.getvalue(), "image/png")
