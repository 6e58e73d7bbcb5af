"""From scores of views to scores of studies: the maximum over the views, as in the CheXpert paper.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from chexpert_hf.inference.folders.score_table import Cell

STUDY_COLUMNS = ("study", "views")

_SEPARATOR = r"[/\\]"

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

    def add(self, probabilities: Sequence[float]) -> None:
        self.views += 1
        self.maximum = array("d", map(max, self.maximum, probabilities) if self.maximum else probabilities)

    def error(self) -> str | None:
        if not self.failed:
            return None
        return f"{len(self.failed)} of {self.views + len(self.failed)} views failed: {'; '.join(self.failed)}"


def study_rows(views: Iterable[Sequence[Cell]], num_observations: int) -> Iterator[list[Cell]]:
    """Rows of studies from rows of views.

    Args:
        views: Path, a probability for each observation (None where the view failed), note, error.
        num_observations: How many.

    Yields:
        In the order of the studies' first views: study, number of views that were scored, for each observation the
        maximum over them (None where there is none), the views' notes, and which views failed and why.
    """
    studies: dict[str, _Study] = {}
    for path, *probabilities, note, error in views:
        study = studies.setdefault(study_of(str(path)), _Study())
        if note is not None:
            study.notes.append(f"{_file_name(path)} ({note})")
        if error is None:
            study.add(cast("list[float]", probabilities))
        else:
            study.failed.append(f"{_file_name(path)} ({error})")
    for name, study in studies.items():
        note = "; ".join(study.notes) or None
        yield [name, study.views, *(study.maximum or [None] * num_observations), note, study.error()]


def _file_name(path: Cell) -> str:
    return re.split(_SEPARATOR, str(path))[-1]
