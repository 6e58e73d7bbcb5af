"""Parts of the page that are HTML of its own: bars of scores, one-line messages, the table of the model.

Names come from the model's configuration and are escaped; so is every line that may have come from a file.
"""

import base64
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from html import escape

from chexpert_hf.app.page.model_facts import Figure, Figures, ModelFacts
from chexpert_hf.app.page.text import DEFINITIONS, NO_FIGURES, PRIVACY
from chexpert_hf.labels import OBSERVATIONS

FEW = 5
"""With fewer studies of either class, a figure says little."""


class Order(str, Enum):
    """How the observations are sorted; the values are what the page shows."""

    BY_PROBABILITY = "By probability"
    CLINICAL = "Clinical order"


def clinical_order(observations: Iterable[str]) -> list[str]:
    """In the order of CheXpert's files; names that are not CheXpert's come last, in the model's order."""
    names = list(observations)
    return [*(name for name in OBSERVATIONS if name in names), *(name for name in names if name not in OBSERVATIONS)]


def sort_observations(probabilities: Mapping[str, float], order: Order) -> list[str]:
    """The observations, the most probable first or in clinical order; equal ones keep the clinical order."""
    names = clinical_order(probabilities)
    return names if order is Order.CLINICAL else sorted(names, key=lambda name: -probabilities[name])


def not_judged(observations: Collection[str]) -> list[str]:
    """The CheXpert observations that a model does not judge."""
    return [name for name in OBSERVATIONS if name not in observations]


def scores_html(
    probabilities: Mapping[str, float],
    operating_points: Mapping[str, float],
    positives: Mapping[str, bool],
    chosen: str,
    views: Mapping[str, int] | None = None,
) -> str:
    """The list of all scores, the most probable first; each row is a button for its map.

    Args:
        probabilities: Of each observation, in the model's order.
        operating_points: Of each observation, in [0, 1].
        positives: Whether each is at or above its operating point.
        chosen: The observation whose map is shown.
        views: Of a study, the number of the view that each probability came from.
    """
    index = {name: number for number, name in enumerate(probabilities)}
    places = {name: place for place, name in enumerate(clinical_order(probabilities))}
    rows = [
        _row(
            name,
            (index[name], places[name]),
            probabilities[name],
            operating_points[name],
            is_above=positives[name],
            is_chosen=name == chosen,
            view=None if views is None else views[name],
        )
        for name in sort_observations(probabilities, Order.BY_PROBABILITY)
    ]
    return f'<ul class="scores{"" if views is None else " of-study"}">{"".join(rows)}</ul>'


def _row(
    name: str,
    index_and_place: tuple[int, int],
    probability: float,
    point: float,
    *,
    is_above: bool,
    is_chosen: bool,
    view: int | None,
) -> str:
    index, place = index_and_place
    call = "above" if is_above else "below"
    origin = "" if view is None else f'<span class="score-view">View {view}</span>'
    return (
        f'<li data-place="{place}"><button type="button" class="score is-{call}" data-index="{index}" '
        f'aria-pressed="{str(is_chosen).lower()}" title="{escape(DEFINITIONS.get(name, ""))}">'
        f'<span class="score-name">{escape(name)}</span>'
        f'<span class="score-value">{probability:.3f}</span>'
        f'<span class="score-call">{call} <span class="for-readers">operating point </span>{point:.3f}</span>'
        f"{origin}"
        '<span class="score-bar" aria-hidden="true">'
        f'<span class="score-fill" style="width: {probability * 100:.2f}%"></span>'
        f'<span class="score-point" style="left: {point * 100:.2f}%"></span>'
        "</span></button></li>"
    )


def not_judged_html(observations: Collection[str]) -> str:
    """A line that names what the model does not judge; nothing if it judges all."""
    names = not_judged(observations)
    if not names:
        return ""
    return f'<p class="not-judged">Not judged by this model: {escape(", ".join(names))}.</p>'


def maps_note_html(text: str) -> str:
    """Whether the maps point at findings; nothing without text."""
    return f'<p class="maps-note">{escape(text)}</p>' if text else ""


def error_html(reason: str) -> str:
    """One line, announced by screen readers."""
    return f'<p class="error-line" role="alert">{escape(reason)}</p>'


def note_html(text: str) -> str:
    """A note that screen readers announce; nothing without text."""
    return f'<div role="status"><ul class="notes"><li>{escape(text)}</li></ul></div>' if text else ""


def refusal_html(reasons: Iterable[str], warnings: Iterable[str] = ()) -> str:
    """What the gate said, and a button to score all the same."""
    lines = "".join(f"<p>{escape(reason)}</p>" for reason in (*reasons, *warnings))
    return (
        f'<div class="refusal" role="alert"><div>{lines}</div>'
        '<button type="button" class="plain-button" data-action="override">Score it anyway</button></div>'
    )


def header_html(facts: ModelFacts, count: int) -> str:
    """The page's title and what it does, in two lines."""
    return (
        '<header class="page-header"><h1>CheXpert scores and maps</h1>'
        f"<p>{_subject(facts)} judges chest radiographs for {count} "
        f"observation{'s' if count > 1 else ''} at once, and shows where in the image each score comes from. "
        f"{escape(' '.join((*facts.warnings, PRIVACY)))}</p></header>"
    )


def _subject(facts: ModelFacts) -> str:
    return "This model" if facts.name is None else f"The model {escape(facts.name)}"


def figures_line(figures: Figures | None) -> str:
    """What the model was trained on and what was measured, in one line of text."""
    if figures is None:
        return NO_FIGURES
    trained = f"Trained on {figures.data}"
    if figures.num_training_images is not None:
        trained += f" ({figures.num_training_images:,} images)"
    if not figures.mean_over:
        return f"{trained}. Its {figures.split} split could judge no observation well enough for a figure."
    return (
        f"{trained}. Mean AUROC {figures.mean_auroc:.3f} over {', '.join(figures.mean_over)}, on "
        f"{figures.num_studies:,} studies of its {figures.split} split."
    )


def about_html(facts: ModelFacts, operating_points: Mapping[str, float]) -> str:
    """What the model is, what was measured, and what each observation means."""
    height, width = facts.input_size
    rows = "".join(
        _about_row(name, operating_points[name], facts.figures.observations.get(name) if facts.figures else None)
        for name in clinical_order(operating_points)
    )
    caution = _caution(facts.figures) if facts.figures else ""
    return (
        f'<section class="about"><h2>About the model</h2><p>{escape(figures_line(facts.figures))} {escape(caution)}</p>'
        f"<p>{_subject(facts)}: DenseNet, {facts.num_parameters:,} parameters, sees radiographs at {height} x "
        f"{width} pixels. Weights: {escape(facts.weights)}. Scores and maps come from one pass through it. "
        f"{escape(' '.join(facts.warnings))}</p>{maps_note_html(facts.maps_note)}"
        '<div class="table-scroll" tabindex="0" role="region" aria-label="Observations">'
        '<table class="about-table"><thead><tr><th scope="col">Observation</th><th scope="col">What it means</th>'
        '<th scope="col">Operating point</th><th scope="col">AUROC</th><th scope="col">Positive / negative</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{not_judged_html(operating_points)}</section>"
    )


def _caution(figures: Figures) -> str:
    chosen = (
        "The checkpoint was chosen on this split, so the figures are optimistic"
        if figures.was_chosen_on_it
        else "No checkpoint was chosen on this split"
    )
    return f"Intervals: {figures.intervals}. {chosen}; other hospitals, scanners and patients may give other figures."


def _about_row(name: str, point: float, figure: Figure | None) -> str:
    if figure is None:
        measured = '<td class="quiet">not measured</td><td></td>'
    else:
        few = min(figure.num_positive, figure.num_negative) < FEW
        auroc = f"{figure.auroc.value:.3f} ({figure.auroc.low:.2f} to {figure.auroc.high:.2f})"
        measured = (
            f"<td>{auroc}{' <em>too few to tell</em>' if few else ''}</td>"
            f"<td>{figure.num_positive:,} / {figure.num_negative:,}</td>"
        )
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="meaning">{escape(DEFINITIONS.get(name, ""))}</td>'
        f"<td>{point:.3f}</td>{measured}</tr>"
    )


def data_url(data: bytes, media_type: str) -> str:
    """Bytes as an address that needs no request."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
