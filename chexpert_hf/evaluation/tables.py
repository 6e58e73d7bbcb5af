"""Formatting of numbers, estimates and tables as plain text, and of reports from templates."""

import base64
from collections.abc import Collection, Mapping, Sequence
from math import isnan
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.evaluation.metrics import plain

DASH = "–"  # stands for a value that is undefined


def number(value: float | None, places: int = 3) -> str:
    """Format a number without the zero in front of the point, such as `.892`; a dash if undefined."""
    if value is None or isnan(value):
        return DASH
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def as_estimate(estimate: Estimate | Mapping[str, Any] | None, places: int = 3) -> str:
    """Format an estimate as `.892 (.831 to .953)`, or as `.892` if it has no interval."""
    values = plain(estimate) or {"value": None}
    if values["value"] is None or values["low"] is None:
        return number(values["value"], places)
    low, high = number(values["low"], places), number(values["high"], places)
    return f"{number(values['value'], places)} ({low} to {high})"


def aligned(cells: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Format rows of cells as a plain table with aligned columns.

    Args:
        cells: Rows. The last cell of a row with fewer cells than others may extend over the missing columns.
        right: Indices of the columns that are aligned to the right.
    """
    columns = range(max(map(len, cells)))
    counted = [row if len(row) == len(columns) else row[:-1] for row in cells]
    widths = [max(len(row[column]) for row in counted if column < len(row)) for column in columns]
    lines = [
        "  ".join(f"{cell:{'>' if column in right else '<'}{widths[column]}}" for column, cell in enumerate(row))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def render(template: str, **context: Any) -> str:
    """Render a template in `templates/`, such as "report.md", with filters for estimates, numbers and p-values."""
    environment = Environment(
        loader=PackageLoader("chexpert_hf.evaluation", "templates"),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "estimate": as_estimate,
        "short": number,
        "p": lambda value: "" if value is None else "< .001" if value < 0.001 else f"{value:.3f}",
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return environment.get_template(f"{template}.jinja").render(**context)
