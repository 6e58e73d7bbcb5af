"""From scores of views to scores of studies: the maximum over the views, as in the CheXpert paper.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from chexpert_hf.folders.score_table import NOT_RADIOGRAPH, Cell

STUDY_COLUMNS = ("study", "views")

_SEPARATOR = r"[/\\]"
_GATE_ORDER: tuple[Cell, ...] = (None, "pass", "warning", *NOT_RADIOGRAPH)

# As in CheXpert's own Path column; what is in front stays, since two data sets may have a patient00001 each.
_STUDY_PATH = re.compile(r"(?P<study>(?:.*[/\\])?patient\d+[/\\]study\d+)[/\\][^/\\]+", re.DOTALL)


def study_of(path: str) -> str:
    """The study's folder in a path of CheXpert's layout; any other file is a study of its own, named by its path."""
    match = _STUDY_PATH.fullmatch(path)
    return match["study"] if match else path


@dataclass
class _Study:
    # An array, since there may be a hundred thousand of them.
    maximum: array = field(default_factory=lambda: array("d"))
    views: int = 0
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gate: Cell = None
    gate_reasons: list[str] = field(default_factory=list)

    def add(self, scores: Sequence[float]) -> None:
        self.views += 1
        self.maximum = array("d", map(max, self.maximum, scores) if self.maximum else scores)

    def add_gate(self, view: str, gate: Cell, reason: Cell) -> None:
        self.gate = max(self.gate, gate, key=_GATE_ORDER.index)
        if reason is not None:
            self.gate_reasons.append(f"{view}: {reason}")

    def error(self) -> str | None:
        if not self.failed:
            return None
        return f"{len(self.failed)} of {self.views + len(self.failed)} views failed: {'; '.join(self.failed)}"


def study_rows(
    views: Iterable[Sequence[Cell]], num_observations: int, *, num_positives: int = 0, has_gate: bool = False
) -> Iterator[list[Cell]]:
    """Rows of studies from rows of views.

    Args:
        views: Path, a probability for each observation (None where the view failed), `num_positives` calls (likewise),
            with `has_gate` the gate's verdict and reason, note, error.
        num_observations: How many.
        num_positives: How many calls, 1 or 0.
        has_gate: Whether there are two cells of the gate.

    Yields:
        In the order of the studies' first views: study, number of views that were scored, for each observation the
        maximum over them (None where there is none), likewise for each call, the worst of the gate's verdicts and the
        reasons of all views, the views' notes, and which views failed and why.
    """
    studies: dict[str, _Study] = {}
    num_scores = num_observations + num_positives
    for path, *cells, note, error in views:
        study, view = studies.setdefault(study_of(str(path)), _Study()), re.split(_SEPARATOR, str(path))[-1]
        if has_gate:
            study.add_gate(view, *cells[num_scores:])
        if note is not None:
            study.notes.append(f"{view} ({note})")
        if error is None:
            study.add(cast("list[float]", cells[:num_scores]))
        else:
            study.failed.append(f"{view} ({error})")
    for name, study in studies.items():
        scores: list[Cell] = [*study.maximum] or [None] * num_scores
        calls = [None if cell is None else int(cell) for cell in scores[num_observations:]]
        gate: list[Cell] = [study.gate, "; ".join(study.gate_reasons) or None] if has_gate else []
        note = "; ".join(study.notes) or None
        yield [name, study.views, *scores[:num_observations], *calls, *gate, note, study.error()]
