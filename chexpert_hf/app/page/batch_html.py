"""The table of many radiographs, and the progress of scoring them, as HTML; `assets/table.js` sorts it."""

from collections.abc import Mapping, Sequence
from html import escape

from chexpert_hf.app.page.batch import Row
from chexpert_hf.app.page.html import clinical_order, not_judged_html
from chexpert_hf.app.server.words import DISCLAIMER


def progress_html(done: int, total: int, what: str) -> str:
    """How far it is."""
    share = 100 * done / max(total, 1)
    return (
        f'<div class="progress"><div class="progress-track" role="progressbar" aria-label="{what}" aria-valuemin="0" '
        f'aria-valuemax="{total}" aria-valuenow="{done}"><span style="width: {share:.1f}%"></span></div>'
        f"<p>{what}: {done:,} of {total:,}</p></div>"
    )


def table_html(rows: Sequence[Row], operating_points: Mapping[str, float], notes: Sequence[str] = ()) -> str:
    """A row per radiograph in upload order: its name, its scores or why it has none.

    Args:
        rows: What came of each.
        operating_points: Of each observation.
        notes: Sentences about files that have no row.
    """
    names = clinical_order(operating_points)
    failed = sum(row.prediction is None for row in rows)
    failures = f", {failed:,} without scores" if failed else ""
    heads = "".join(
        f'<th scope="col" class="score-head" data-kind="number" aria-sort="none"><button type="button" '
        f'data-column="{column}"><span>{escape(name)}</span></button></th>'
        for column, name in enumerate(names, start=2)
    )
    body = "".join(_row_html(row, number, names, operating_points) for number, row in enumerate(rows))
    return (
        f'<p class="disclaimer">{escape(DISCLAIMER)}</p>'
        f'<p class="batch-summary" role="status"><strong>{len(rows) - failed:,} of {len(rows):,}</strong> radiographs '
        f"scored{failures}. A filled cell is at or above the operating point. Choose a number to open the radiograph, "
        f"a heading to sort. {escape(' '.join(notes))}</p>"
        '<div class="table-scroll batch-table" tabindex="0" role="region" aria-label="Scores of all radiographs">'
        '<table><thead><tr><th scope="col" data-kind="order" aria-sort="ascending"><button type="button" '
        'data-column="0"><span>No.</span></button></th>'
        '<th scope="col" class="file-head" data-kind="text" aria-sort="none"><button type="button" data-column="1">'
        f"<span>File</span></button></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{not_judged_html(operating_points)}"
    )


def _row_html(row: Row, number: int, names: Sequence[str], points: Mapping[str, float]) -> str:
    name = escape(row.item.name)
    notes = "".join(f'<span class="row-note">{escape(text)}</span>' for text in row.warnings)
    if row.prediction is None:
        can_open = row.is_refused
        reason = f'<td class="row-error" colspan="{len(names)}">{escape(row.error or "")}</td>'
    else:
        can_open = True
        reason = "".join(_cell(row.prediction.probabilities[item], points[item]) for item in names)
    opener = (
        f'<button type="button" class="row-open" data-row="{number}" aria-label="Open radiograph {number + 1}">'
        f"{number + 1}</button>"
        if can_open
        else str(number + 1)
    )
    return (
        f'<tr data-place="{number}"><td data-value="{number}">{opener}</td>'
        f'<th scope="row" class="file-name" data-value="{name}"><span title="{name}">{name}</span>{notes}</th>'
        f"{reason}</tr>"
    )


def _cell(probability: float, point: float) -> str:
    is_above = probability >= point
    mark = ' class="is-above"' if is_above else ""
    spoken = '<span class="for-readers"> above</span>' if is_above else ""
    return f'<td data-value="{probability:.6f}"{mark}>{probability:.2f}{spoken}</td>'
