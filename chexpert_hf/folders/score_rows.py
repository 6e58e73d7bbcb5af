"""Columns and rows of a score table, with a row per radiograph or per study.

A study's score is the maximum over its views, as in the CheXpert paper, but for No Finding the minimum, since a
finding in any view rules it out. Source: Irvin et al. 2019, arXiv:1901.07031, section 4.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from chexpert_hf.datasets.label_sets import refuse_duplicate_columns
from chexpert_hf.folders.score_table import NOT_RADIOGRAPH, Cell, GateMode, readable

if TYPE_CHECKING:
    from chexpert_hf.folders.scoring import FileResult
    from chexpert_hf.gate import Verdict

_GATE_ORDER: tuple[Cell, ...] = (None, "pass", "warning", *NOT_RADIOGRAPH)

# As in CheXpert's own Path column, or in MIMIC-CXR's folders (p10/p10000032/s50414267). The folders above the patient's
# are part of the study's name, since two data sets may have a patient00001 each.
_STUDY_PATH = re.compile(r"(?P<study>(?:.*[/\\])?(?:patient\d+[/\\]study\d+|p\d{8}[/\\]s\d{8}))[/\\][^/\\]+", re.DOTALL)


def study_of(path: str) -> str:
    """Return the name of the study that a file belongs to.

    In CheXpert's or MIMIC's layout it is the study's folder, such as `train/patient00001/study1`. In any other layout,
    each file is a study by itself, and `path` is returned unchanged.
    """
    match = _STUDY_PATH.fullmatch(path)
    return match["study"] if match else path


@dataclass
class _Study:
    """The row of a study, gathered from its views."""

    # An array takes less memory than a list.
    scores: array = field(default_factory=lambda: array("d"))  # all scores, then all calls (0 or 1)
    views: int = 0  # number of views with scores
    failed: list[str] = field(default_factory=list)  # "view (reason)"
    notes: list[str] = field(default_factory=list)  # "view (note)"
    gate: Cell = None  # the worst verdict on a view
    gate_reasons: list[str] = field(default_factory=list)  # "view: reason"


@dataclass(frozen=True)
class RowFormat:
    """The columns of a score table; `rows` makes a row per radiograph, `study_rows` merges these into one per study.

    Raises:
        InputError: If two columns would have the same name.
    """

    observations: tuple[str, ...]  # of the model, in its order
    gate: GateMode = GateMode.OFF  # unless it is OFF, there are the columns `gate` and `gate_reason`
    positives: bool = False  # whether there are columns `<observation> positive`: 1 or 0, at the operating point
    none_of_these: str | None = None  # the observation that any finding rules out, such as No Finding

    def __post_init__(self) -> None:
        refuse_duplicate_columns(self.observations, self._calls)

    @property
    def _calls(self) -> list[str]:
        return [f"{name} positive" for name in self.observations] if self.positives else []

    def columns(self, *, by_study: bool = False) -> list[str]:
        """Return the names of the columns of a table with a row per radiograph, or per study."""
        gate = [] if self.gate is GateMode.OFF else ["gate", "gate_reason"]
        return [
            *(("study", "views") if by_study else ("path",)),
            *self.observations,
            *self._calls,
            *gate,
            "note",
            "error",
        ]

    def rows(self, results: "Iterable[FileResult]") -> Iterator[list[Cell]]:
        """Yield a row for each radiograph, with None in cells without a value."""
        for result in results:
            scores: list[Cell] = [None] * self._num_scores
            note = None
            if (prediction := result.prediction) is not None:
                scores = list(prediction.probabilities.values())
                scores += map(int, prediction.positives.values()) if self.positives else ()
                note = " ".join(prediction.notes) or None
            yield [readable(str(result.path)), *scores, *self._gate_cells(result.gate), note, result.error]

    def study_rows(self, rows: Iterable[Sequence[Cell]]) -> Iterator[list[Cell]]:
        """Yield a row for each study from the rows of radiographs, in the order of the studies' first views.

        Scores and calls (0 or 1) are maxima over the views, but minima for No Finding or its equivalent. The gate's
        verdict is the worst of the views. All rows are read before the first one is yielded.
        """
        combine = [min if name == self.none_of_these else max for name in self.observations] * 2  # scores and calls
        studies: dict[str, _Study] = {}
        for path, *cells, note, error in rows:
            study, view = studies.setdefault(study_of(str(path)), _Study()), re.split(r"[/\\]", str(path))[-1]
            scores, gate = cast("list[float]", cells[: self._num_scores]), cells[self._num_scores :]
            if gate:
                study.gate = max(study.gate, gate[0], key=_GATE_ORDER.index)
                study.gate_reasons += [f"{view}: {gate[1]}"] if gate[1] is not None else []
            if note is not None:
                study.notes.append(f"{view} ({note})")
            if error is None:
                study.views += 1
                earlier = study.scores or scores
                study.scores = array("d", (how(*pair) for how, *pair in zip(combine, earlier, scores, strict=False)))
            else:
                study.failed.append(f"{view} ({error})")
        for name, study in studies.items():
            num_observations = len(self.observations)
            combined: list[Cell] = [*study.scores[:num_observations], *map(int, study.scores[num_observations:])]
            gate = [] if self.gate is GateMode.OFF else [study.gate, "; ".join(study.gate_reasons) or None]
            failed, total = len(study.failed), study.views + len(study.failed)
            error = f"{failed} of {total} views failed: {'; '.join(study.failed)}" if failed else None
            note = "; ".join(study.notes) or None
            yield [name, study.views, *(combined or [None] * self._num_scores), *gate, note, error]

    @property
    def _num_scores(self) -> int:
        return len(self.observations) * (2 if self.positives else 1)

    def _gate_cells(self, verdict: "Verdict | None") -> list[Cell]:
        if self.gate is GateMode.OFF:
            return []
        if verdict is None:
            return [None, None]
        is_refused = self.gate is GateMode.REFUSE and not verdict.is_chest_radiograph
        return ["refused" if is_refused else verdict.state, " ".join(verdict.messages) or None]
