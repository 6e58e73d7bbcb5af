"""The report: one printed page with image, maps, scores, model and disclaimer, as a single HTML file.

HTML and not PDF: it opens and prints everywhere, can be searched and read aloud, and its style for paper keeps it on
one sheet of A4 or Letter. It has no script and asks for nothing. Of the patient it has pixels, and no name of a file.
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape
from importlib.metadata import version

from PIL import Image

from chexpert_hf.app.page.html import Order, data_url, figures_line, maps_note_html, not_judged_html, sort_observations
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.reading import NO_FINDING, Reading, Study, encode
from chexpert_hf.app.page.style import REPORT_CSS
from chexpert_hf.app.page.text import NO_GATE
from chexpert_hf.app.server.words import DISCLAIMER

NUM_MAPS = 4
_IMAGE_SIZE = 640
"""Longest side in pixels of an image on paper: about 250 to the inch."""

_OPACITY = 0.5
_MAX_IMAGES = 4


def report_html(
    study: Study,
    facts: ModelFacts,
    operating_points: Mapping[str, float],
    *,
    is_study: bool,
    chosen: str | None = None,
    now: datetime | None = None,
) -> str:
    """A report of a radiograph or study, complete in itself.

    Args:
        study: What is reported.
        facts: Of the model.
        operating_points: Of each observation.
        is_study: Whether the views are numbered.
        chosen: The observation whose map is wanted; with the most probable ones it makes `NUM_MAPS`.
        now: Taken from the clock if None.
    """
    time = (now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC")
    kind = f"a study of {len(study.views)} view{'s' if len(study.views) > 1 else ''}" if is_study else "one radiograph"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>CheXpert scores and maps</title><style>{REPORT_CSS}</style></head><body><main>"
        f"<header><h1>CheXpert scores and maps</h1><p>Scores of {kind}, {time}</p></header>"
        f'<p class="disclaimer">{escape(DISCLAIMER)}</p>{_notes(study, is_study)}'
        f'<div class="images{" of-study" if is_study else ""}">'
        f"{_images(study, is_study)}{_maps(study, chosen, is_study)}</div>{maps_note_html(facts.maps_note)}"
        f"{_table(study, operating_points, is_study)}{not_judged_html(operating_points)}"
        f"<footer><p><strong>Model:</strong> {escape(facts.name or 'without a name')}, weights "
        f"{escape(facts.weights)}, chexpert-hf {escape(version('chexpert-hf'))}. "
        f"{escape(' '.join((*facts.warnings, figures_line(facts.figures))))}</p>"
        "<p>A probability from the operating point on is called positive. Maps show where the evidence for an "
        "observation lies, 1 (brightest) being the strongest evidence for any observation in the image; they do not "
        "outline findings. Probabilities are calibrated only where the model's card says so.</p></footer>"
        "</main></body></html>"
    )


def _notes(study: Study, is_study: bool) -> str:
    lines = [*study.warnings(is_study=is_study), *study.missing(), *([] if study.has_gate else [NO_GATE])]
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _images(study: Study, is_study: bool) -> str:
    return "".join(
        _figure(_small(reading.image()), f"View {number}" if is_study else "Radiograph")
        for number, reading in list(study.views.items())[:_MAX_IMAGES]
    )


def _maps(study: Study, chosen: str | None, is_study: bool) -> str:
    views = study.view_of()
    figures = []
    for name in _shown(study, chosen):
        reading = study.views[views[name]]
        place = f", View {views[name]}" if is_study else ""
        empty = ": empty" if reading.maps.is_empty(name) else ""
        figures.append(_figure(_small_overlay(reading, name), f"Map of {name}{place}{empty}"))
    return "".join(figures)


def _shown(study: Study, chosen: str | None) -> list[str]:
    ranked = [name for name in sort_observations(study.probabilities, Order.BY_PROBABILITY) if name != NO_FINDING]
    first = [chosen] if chosen else []
    return [*first, *(name for name in ranked if name not in first)][:NUM_MAPS] or [study.most_probable]


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE))
    return image


def _small_overlay(reading: Reading, observation: str) -> Image.Image:
    return _small(reading.overlay(observation, _OPACITY))


def _figure(image: Image.Image, caption: str) -> str:
    text, source = escape(caption), data_url(encode(image), "image/jpeg")
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(study: Study, operating_points: Mapping[str, float], is_study: bool) -> str:
    views, positives, scores = study.view_of(), study.positives, study.probabilities
    rows = "".join(
        f'<tr class="{"above" if positives[name] else "below"}"><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><span style="width: {scores[name] * 100:.1f}%"></span>'
        f'<i style="left: {operating_points[name] * 100:.1f}%"></i></td>'
        f"<td>{scores[name]:.3f}</td><td>{'above' if positives[name] else 'below'} {operating_points[name]:.3f}</td>"
        + (f"<td>View {views[name]}</td>" if is_study else "")
        + "</tr>"
        for name in sort_observations(scores, Order.BY_PROBABILITY)
    )
    origin = '<th scope="col">Maximum in</th>' if is_study else ""
    return (
        '<table><thead><tr><th scope="col">Observation</th><td></td><th scope="col">Probability</th>'
        f'<th scope="col">Operating point</th>{origin}</tr></thead><tbody>{rows}</tbody></table>'
    )
