"""The report: one printed page with image, maps, scores, model and disclaimer, as a single HTML file.

HTML and not PDF: it opens and prints everywhere, can be searched and read aloud, and its style for paper keeps it on
one sheet of A4 or Letter. It has no script and requests nothing. Of the patient it holds pixels, and no file name.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version

from PIL import Image

from chexpert_hf.app.page.html import data_url, render, shown_first
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.app.page.reading import Study, encode
from chexpert_hf.app.page.style import REPORT_CSS
from chexpert_hf.scoring.saliency import overlay

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
    chosen: str | None = None,
    now: datetime | None = None,
) -> str:
    """A report of a radiograph or study, complete in itself.

    Args:
        study: The views with scores and maps.
        facts: About the model.
        operating_points: For each observation.
        chosen: The observation of the first map; the most probable ones follow, `NUM_MAPS` in all.
        now: The time of the report, in UTC; the current time if None.
    """
    return render(
        "report.html",
        css=REPORT_CSS,
        study=study,
        facts=facts,
        operating_points=operating_points,
        images=[(caption, data_url(_small_jpeg(image))) for caption, image in _images(study, chosen)],
        version=version("chexpert-hf"),
        time=(now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _images(study: Study, chosen: str | None) -> Iterator[tuple[str, Image.Image]]:
    """Views, then maps of the chosen and the most probable observations, with captions."""
    for number, reading in list(study.views.items())[:_MAX_IMAGES]:
        yield study.label(number), reading.image()
    names = [name for name in shown_first(study.probabilities) if name != chosen]
    for name in [*([chosen] if chosen else []), *names][:NUM_MAPS]:
        number = study.view_of()[name]
        reading = study.views[number]
        place = f", View {number}" if study.is_numbered else ""
        empty = ": empty" if reading.prediction.maps.is_empty(name) else ""
        yield f"Map of {name}{place}{empty}", overlay(reading.image(), reading.prediction.maps[name], _OPACITY)


def _small_jpeg(image: Image.Image) -> bytes:
    image.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE))
    return encode(image)
