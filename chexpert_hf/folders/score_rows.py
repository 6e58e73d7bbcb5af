"""Columns and rows of a score table, for radiographs and for studies."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chexpert_hf.folders.score_table import FLAGGED, GATE, GATE_REASON, REFUSED, Cell, GateMode, readable
from chexpert_hf.folders.studies import STUDY_COLUMNS, study_rows

if TYPE_CHECKING:
    from chexpert_hf.folders.scoring import FileResult
    from chexpert_hf.gate import Verdict


@dataclass(frozen=True)
class RowFormat:
    """The columns of a score table, and its rows.

    Attributes:
        observations: The model's observations, in its order.
        gate: Unless it is OFF, there are the columns `gate` and `gate_reason`.
        positives: Whether each observation has a column `<observation> positive`: 1 or 0, at the operating point.
    """

    observations: tuple[str, ...]
    gate: GateMode = GateMode.OFF
    positives: bool = False

    def columns(self) -> list[str]:
        """The columns of a table with a row per radiograph."""
        return ["path", *self._shared_columns()]

    def study_columns(self) -> list[str]:
        """The columns of a table with a row per study."""
        return [*STUDY_COLUMNS, *self._shared_columns()]

    def rows(self, results: "Iterable[FileResult]") -> Iterator[list[Cell]]:
        """The rows of radiographs; cells without a value are None."""
        for result in results:
            probabilities: Sequence[Cell] = [None] * len(self.observations)
            positives = probabilities
            if result.prediction is not None:
                probabilities = list(result.prediction.probabilities.values())
                positives = list(map(int, result.prediction.positives.values()))
            row = [readable(str(result.path)), *probabilities, *(positives if self.positives else ())]
            notes = result.prediction.notes if result.prediction is not None else ()
            yield [*row, *self._gate_cells(result.gate), " ".join(notes) or None, result.error]

    def study_rows(self, rows: Iterable[Sequence[Cell]]) -> Iterator[list[Cell]]:
        """The rows of studies, from the rows of radiographs."""
        count = len(self.observations)
        return study_rows(
            rows, count, num_positives=count if self.positives else 0, has_gate=self.gate is not GateMode.OFF
        )

    def _shared_columns(self) -> list[str]:
        positives = [f"{name} positive" for name in self.observations] if self.positives else []
        gate = [] if self.gate is GateMode.OFF else [GATE, GATE_REASON]
        return [*self.observations, *positives, *gate, "note", "error"]

    def _gate_cells(self, verdict: "Verdict | None") -> list[Cell]:
        if self.gate is GateMode.OFF:
            return []
        if verdict is None:
            return [None, None]
        if not verdict.is_chest_radiograph:
            state = REFUSED if self.gate is GateMode.REFUSE else FLAGGED
        else:
            state = "warning" if verdict.warnings else "pass"
        return [state, " ".join(verdict.messages) or None]
