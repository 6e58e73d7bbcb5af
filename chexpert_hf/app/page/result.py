"""What the viewer shows of a radiograph or a study: the scores as HTML, and for `assets/viewer.js` the images and maps.

The maps go to the browser as small as the model makes them, 14 of them a few kilobytes, in 256 levels; it enlarges
them, colours them and lays them over the radiograph as `inference.saliency.overlay` does.
"""

import base64
import json
from collections.abc import Mapping
from html import escape
from typing import Any
from uuid import uuid4

import numpy as np
from matplotlib import colormaps

from chexpert_hf.app.page.html import Order, clinical_order, data_url, maps_note_html, not_judged_html, scores_html
from chexpert_hf.app.page.reading import Reading, Study
from chexpert_hf.app.page.text import DEFINITIONS, NO_GATE, describe_map
from chexpert_hf.app.server.words import DISCLAIMER
from chexpert_hf.scoring.saliency import COLORMAP

_ACTIONS = (
    '<div class="result-actions">'
    '<button type="button" class="plain-button" data-action="report">Download a report</button>'
    '<button type="button" class="plain-button" data-action="activations">Show feature activations</button></div>'
)


def result_html(
    study: Study, operating_points: Mapping[str, float], facts_line: str, *, is_study: bool, maps_note: str = ""
) -> str:
    """All that is shown of a study.

    Args:
        study: Its views with scores and maps.
        operating_points: Of each observation.
        facts_line: What the model was trained on and measured on.
        is_study: Whether it was given as a study, whose views are numbered even if there is one.
        maps_note: Shown under every map: whether the model's maps point at findings.
    """
    chosen = study.most_probable
    views = study.view_of() if is_study else None
    positives = study.positives
    return (
        f'<section class="result" aria-label="Scores and maps" '
        f'data-result="{escape(_payload(study, chosen, is_study))}">'
        f'<p class="disclaimer">{escape(DISCLAIMER)}</p>{_notes(study, is_study)}'
        '<div class="result-columns"><div class="result-scores"><div class="result-bar">'
        f'<p class="scores-summary"><strong>{sum(positives.values())} of {len(positives)}</strong> at or above the '
        f"operating point{' in any view' if is_study else ''}</p>{_order_html('study' if is_study else 'single')}</div>"
        f"{scores_html(study.probabilities, operating_points, positives, chosen, views)}"
        f"{not_judged_html(operating_points)}{_legend(is_study)}"
        f'<p class="facts">{escape(facts_line)}</p>{_ACTIONS}</div>'
        f"{_viewer_html(study, chosen, is_study, maps_note)}</div></section>"
    )


def _payload(study: Study, chosen: str, is_study: bool) -> str:
    names = list(study.probabilities)
    colors = np.rint(colormaps[COLORMAP](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    view_of = study.view_of()
    numbers = list(study.views)
    content = {
        "id": uuid4().hex,  # so that the same file a second time is shown anew
        "observations": names,
        "definitions": [DEFINITIONS.get(name, "") for name in names],
        "chosen": names.index(chosen),
        "viewOf": [numbers.index(view_of[name]) for name in names],
        "colors": base64.b64encode(colors.tobytes()).decode(),
        "views": [_view(number, reading, names, is_study) for number, reading in study.views.items()],
    }
    return json.dumps(content, separators=(",", ":"))


def _view(number: int, reading: Reading, names: list[str], is_study: bool) -> dict[str, Any]:
    levels = np.rint(reading.maps.positive.cpu().numpy() * 255).astype(np.uint8)  # (num_labels, h, w)
    return {
        "label": f"View {number}" if is_study else "Radiograph",
        "image": data_url(reading.jpeg, "image/jpeg"),
        "size": reading.maps.size,
        "box": reading.maps.box,
        "grid": levels.shape[1:],
        "maps": base64.b64encode(levels.tobytes()).decode(),
        "texts": [describe_map(name, reading.maps.peak(name)) for name in names],
        "empty": [reading.maps.is_empty(name) for name in names],
        "probabilities": [round(reading.prediction.probabilities[name], 3) for name in names],
    }


def _notes(study: Study, is_study: bool) -> str:
    """Warnings of the gate, views that are missing, and whether there is a gate at all."""
    notes = "".join(f'<li class="warning">{escape(line)}</li>' for line in study.warnings(is_study=is_study))
    notes += "".join(f'<li class="failed">{escape(line)}</li>' for line in study.missing())
    quiet = "" if study.has_gate else f'<p class="no-gate">{escape(NO_GATE)}</p>'
    refused = any(failure.is_refused for failure in study.failures)
    override = (
        '<button type="button" class="plain-button" data-action="override">Score them anyway</button>'
        if refused
        else ""
    )
    return (f'<div role="status"><ul class="notes">{notes}</ul></div>{override}' if notes else "") + quiet


def _order_html(prefix: str) -> str:
    choices = "".join(
        f'<label><input type="radio" name="{prefix}-order" value="{order.name}"'
        f"{' checked' if order is Order.BY_PROBABILITY else ''}><span>{order.value}</span></label>"
        for order in Order
    )
    return (
        f'<fieldset class="segments"><legend class="for-readers">Order of the observations</legend>{choices}</fieldset>'
    )


def _legend(is_study: bool) -> str:
    origin = " A study's probability is the maximum over its views; the view beside it is where it comes from."
    return (
        '<p class="scores-legend"><span class="score-key" aria-hidden="true"></span>Operating point: the probability '
        f"from which on the model calls an observation positive.{origin if is_study else ''}</p>"
    )


def _viewer_html(study: Study, chosen: str, is_study: bool, maps_note: str) -> str:
    prefix = "study" if is_study else "single"
    names = list(study.probabilities)
    options = "".join(
        f'<option value="{names.index(name)}"{" selected" if name == chosen else ""}>{escape(name)}</option>'
        for name in clinical_order(names)
    )
    views = "".join(
        f'<button type="button" class="view" data-view="{place}" aria-pressed="false">'
        f'<canvas aria-hidden="true"></canvas><span>View {number}</span></button>'
        for place, number in enumerate(study.views)
    )
    return (
        '<div class="viewer">'
        + (f'<div class="views" role="group" aria-label="Views of the study">{views}</div>' if is_study else "")
        + '<div class="viewer-bar">'
        f'<div class="control"><label for="{prefix}-observation">Map of</label>'
        f'<select id="{prefix}-observation" class="observation">{options}</select></div>'
        f'<div class="control grows"><label for="{prefix}-opacity">Opacity of the map</label><span class="range">'
        f'<input id="{prefix}-opacity" class="opacity" type="range" min="0" max="100" step="5" value="50">'
        '<output class="opacity-value">50 %</output></span></div>'
        f'<div class="control zoom" role="group" aria-label="Zoom">{_zoom_buttons()}</div></div>'
        f'<div class="panes">{_pane("Radiograph", "original", "")}'
        f'{_pane("Map", "mapped", """<canvas class="heat" role="img" aria-label="Map"></canvas>""")}</div>'
        '<p class="map-text" aria-live="polite"></p>'
        f"{maps_note_html(maps_note)}"
        f'<div class="gallery-bar"><h2>All maps</h2><label class="check"><input type="checkbox" class="own-scale">'
        "<span>Each map on a scale of its own</span></label></div>"
        f'<div class="gallery">{"".join(_thumbnail(name, names.index(name)) for name in clinical_order(names))}</div>'
        "</div>"
    )


def _zoom_buttons() -> str:
    corners = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/></svg>'
    buttons = (
        ("out", "Zoom out", "−"),
        ("in", "Zoom in", "+"),
        ("reset", "Fit the image", "Fit"),
        ("full", "Full screen", corners),
    )
    return "".join(
        f'<button type="button" class="zoom-button" data-zoom="{action}" aria-label="{label}" title="{label}">{sign}'
        "</button>"
        for action, label, sign in buttons
    )


def _pane(caption: str, kind: str, layer: str) -> str:
    return (
        f'<figure class="pane {kind}"><figcaption>{caption}</figcaption>'
        f'<div class="stage" tabindex="0" role="group" aria-label="{caption}; plus and minus zoom, arrow keys move">'
        f'<div class="layers"><img class="radiograph" alt="{caption}" draggable="false">{layer}</div></div></figure>'
    )


def _thumbnail(name: str, index: int) -> str:
    return (
        f'<button type="button" class="thumbnail" data-index="{index}" aria-pressed="false">'
        f'<canvas aria-hidden="true"></canvas><span class="thumbnail-name">{escape(name)}</span>'
        '<span class="thumbnail-note"></span></button>'
    )
