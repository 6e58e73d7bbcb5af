"""The parts of the page that are HTML of its own: the bars of the scores, the definitions, the examples.

Names come from the model's configuration or the examples' files and are escaped; nothing comes from a visitor.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from enum import Enum
from html import escape
from pathlib import Path

from chexpert_hf.data.radiograph import read_radiograph
from chexpert_hf.inference.classifier import Prediction
from chexpert_hf.page.text import DEFINITIONS

_THUMBNAIL_SIZE = 176
"""Longest side in pixels: twice what the page shows, for screens of high density."""


class Order(str, Enum):
    """How the observations are sorted; the values are what the page shows."""

    BY_PROBABILITY = "By probability"
    AS_IN_MODEL = "As in the model"


def sort_observations(probabilities: Mapping[str, float], order: Order) -> list[str]:
    """The observations, the most probable first or in the model's order; equal ones keep the model's order."""
    if order is Order.AS_IN_MODEL:
        return list(probabilities)
    return sorted(probabilities, key=lambda name: -probabilities[name])


def scores_html(prediction: Prediction, operating_points: Mapping[str, float], order: Order, chosen: str) -> str:
    """The list of all scores; each row is a button that carries the observation's index in the model's order.

    Args:
        prediction: Of one radiograph.
        operating_points: Of each observation, in [0, 1].
        order: How to sort the rows.
        chosen: The observation whose map is shown.
    """
    index = {name: number for number, name in enumerate(prediction.probabilities)}
    rows = [
        _row(
            name,
            index[name],
            prediction.probabilities[name],
            operating_points[name],
            is_above=prediction.positives[name],
            is_chosen=name == chosen,
        )
        for name in sort_observations(prediction.probabilities, order)
    ]
    count = sum(prediction.positives.values())
    return (
        f'<p class="scores-summary"><strong>{count} of {len(rows)}</strong> at or above the operating point</p>'
        f'<ul class="scores">{"".join(rows)}</ul>'
        '<p class="scores-legend"><span class="score-key" aria-hidden="true"></span>Operating point: the probability '
        "from which on the model calls an observation positive. Choose a row to see its map.</p>"
    )


def _row(name: str, index: int, probability: float, point: float, *, is_above: bool, is_chosen: bool) -> str:
    call = "above" if is_above else "below"
    return (
        f'<li><button type="button" class="score is-{call}" data-index="{index}" '
        f'aria-pressed="{str(is_chosen).lower()}" title="{escape(DEFINITIONS.get(name, ""))}">'
        f'<span class="score-name">{escape(name)}</span>'
        f'<span class="score-value">{probability:.3f}</span>'
        f'<span class="score-call">{call} <span class="for-readers">operating point </span>{point:.3f}</span>'
        '<span class="score-bar" aria-hidden="true">'
        f'<span class="score-fill" style="width: {probability * 100:.2f}%"></span>'
        f'<span class="score-point" style="left: {point * 100:.2f}%"></span>'
        "</span></button></li>"
    )


def definitions_html(observations: Iterable[str]) -> str:
    """The observations with what they mean; of a name that is not CheXpert's, nothing is said."""
    return f'<dl class="definitions">{"".join(map(_definition, observations))}</dl>'


def _definition(name: str) -> str:
    meaning = f"<dd>{escape(DEFINITIONS[name])}</dd>" if name in DEFINITIONS else ""
    return f"<div><dt>{escape(name)}</dt>{meaning}</div>"


def examples_html(paths: Iterable[Path]) -> str:
    """Buttons with a small image and the file's name without its suffix; each carries its place in `paths`."""
    buttons = "".join(_example(index, path) for index, path in enumerate(paths))
    return f'<p class="examples-title">Or try a synthetic radiograph:</p><div class="examples">{buttons}</div>'


def _example(index: int, path: Path) -> str:
    image = read_radiograph(path)
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG")
    return (
        f'<button type="button" class="example" data-index="{index}">'
        f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}" alt="">'
        f"<span>{escape(path.stem)}</span></button>"
    )
