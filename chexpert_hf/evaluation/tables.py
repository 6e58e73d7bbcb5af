"""Numbers, estimates and tables as plain text and Markdown."""

from collections.abc import Collection, Mapping, Sequence
from math import isnan
from typing import Any

from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.evaluation.metrics import plain

DASH = "–"  # stands for a value that is undefined


def number(value: float | None, places: int = 3) -> str:
    """A number without the zero in front of the point, `.892`."""
    if value is None or isnan(value):
        return DASH
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def as_estimate(estimate: Estimate | Mapping[str, Any] | None, places: int = 3) -> str:
    """`.892 (.831 to .953)`; without the brackets where there is no interval."""
    values = plain(estimate) or {"value": None}
    if values["value"] is None or values["low"] is None:
        return number(values["value"], places)
    low, high = number(values["low"], places), number(values["high"], places)
    return f"{number(values['value'], places)} ({low} to {high})"


def aligned(cells: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table as plain text, its columns aligned.

    Args:
        cells: Rows; the last cell of one that is shorter than others runs on over the columns that it lacks.
        right: The columns that are aligned to the right.
    """
    columns = range(max(map(len, cells)))
    counted = [row if len(row) == len(columns) else row[:-1] for row in cells]
    widths = [max(len(row[column]) for row in counted if column < len(row)) for column in columns]
    lines = [
        "  ".join(f"{cell:{'>' if column in right else '<'}{widths[column]}}" for column, cell in enumerate(row))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])
