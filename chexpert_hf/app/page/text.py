"""Texts of the page, and functions that put results into words."""

from collections.abc import Sequence

from chexpert_hf.scoring.prediction import Prediction

EXPIRED = "The radiographs of this page have been deleted after a while without use; upload them again."
EMPTY_FOLDER = "Expected radiographs, got an empty folder."
BUSY = "A list is being scored; stop it before you give other files."
NO_GATE = "This model cannot tell whether an image is a chest radiograph: it gives scores for any image."
PRIVACY = "Uploaded files are deleted after ten minutes, results within an hour; nothing is recorded."

_NAMED = 3  # findings that the verdict names; the others are counted
_WEAK = 0.25  # the evidence of a map with a lower peak is called weak


def describe_calls(prediction: Prediction) -> tuple[str, ...]:
    """Return sentences on the findings above their thresholds, on No Finding, and on a contradiction of the two."""
    above, none_of_these = prediction.sorted_positives(), prediction.labels.none_of_these
    names = ", ".join(above[:_NAMED])
    if not above:
        first = "No finding is above its threshold."
    elif len(above) > _NAMED + 1:
        first = f"{len(above)} findings are above their thresholds: {names} and {len(above) - _NAMED} more."
    else:
        first = f"Above {'its threshold' if len(above) == 1 else 'their thresholds'}: {', '.join(above)}."
    sentences = [first]
    if none_of_these is not None:
        is_none_above = prediction.positives[none_of_these]
        sentences.append(f"{none_of_these}: {'above' if is_none_above else 'below'}.")
        if bool(above) == is_none_above:
            sentences.append("This contradicts the findings." if above else "The model is undecided.")
    return tuple(sentences)


def describe_map(observation: str, peak: float, grid: Sequence[int]) -> str:
    """Return sentences on an observation's map, from its peak in [0, 1] and its `grid`: (rows, columns).

    A peak of 1 is the strongest evidence for any observation in this radiograph.
    """
    if peak <= 0:
        return f"The map is empty: nothing in this radiograph is evidence for {observation}."
    cells = f"It was enlarged from {grid[0]} x {grid[1]} values."
    strongest = "strongest evidence for any observation in this radiograph"
    if peak >= 1:
        return f"The {strongest} is in this map. {cells}"
    return f"At its brightest, the map reaches {_share(peak)} of the {strongest}. {cells}"


def describe_strength(peak: float, is_above: bool) -> str:
    """Return a note on a map's maximum (`peak`) below 1 and on a score below its operating point; "" for neither."""
    notes = [] if is_above else ["below its operating point"]
    if peak <= 0:
        notes.append("no evidence")
    elif peak < 1:
        notes.append(f"{'weak evidence: ' if peak < _WEAK else ''}{_share(peak)} of the strongest map")
    return ", ".join(notes)


def _share(peak: float) -> str:
    return "under 1 %" if peak < 0.01 else f"{min(round(peak * 100), 99)} %"
