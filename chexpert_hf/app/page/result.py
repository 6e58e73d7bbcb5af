"""The viewer of a radiograph or a study: the scores as HTML, and the images and maps for `assets/viewer.js`.

The maps go to the browser as small as the model makes them, 14 of them a few kilobytes, in 256 levels; it enlarges
them, colours them and lays them over the radiograph as `scoring.saliency.overlay` does.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import numpy as np

from chexpert_hf.app.page.html import color_table, data_url, render
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.reading import Reading, Study
from chexpert_hf.app.page.text import DEFINITIONS, describe_map
from chexpert_hf.scoring.saliency import COLORMAP


def result_html(study: Study, facts: ModelFacts, operating_points: Mapping[str, float]) -> str:
    """The viewer, and the scores sorted by probability; each of them is a button for its map."""
    payload = _payload(study)
    return render("result.html", payload=payload, study=study, facts=facts, operating_points=operating_points)


def _payload(study: Study) -> str:
    names, numbers = list(study.probabilities), list(study.views)
    content = {
        "id": uuid4().hex,  # so that the same file a second time is shown anew
        "observations": names,
        "definitions": [DEFINITIONS.get(name, "") for name in names],
        "chosen": names.index(study.most_probable),
        "viewOf": [numbers.index(number) for number in study.view_of().values()],
        "colors": base64.b64encode(color_table(COLORMAP).tobytes()).decode(),
        "views": [_view(reading, study.label(number)) for number, reading in study.views.items()],
    }
    return json.dumps(content, separators=(",", ":"))


def _view(reading: Reading, label: str) -> dict[str, Any]:
    probabilities, maps = reading.prediction.probabilities, reading.prediction.maps
    levels = np.rint(maps.positive.cpu().numpy() * 255).astype(np.uint8)  # (num_labels, h, w)
    return {
        "label": label,
        "image": data_url(reading.jpeg),
        "size": maps.size,
        "box": maps.box,
        "grid": levels.shape[1:],
        "maps": base64.b64encode(levels.tobytes()).decode(),
        "texts": [describe_map(name, maps.peak(name)) for name in probabilities],
        "empty": [maps.is_empty(name) for name in probabilities],
        "probabilities": [round(value, 3) for value in probabilities.values()],
    }
