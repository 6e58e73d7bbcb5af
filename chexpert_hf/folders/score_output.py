"""The output file of a scoring run, and the metadata that makes it resumable.

`<output>.run.json`, beside the output, records the settings of the run. A table that cannot grow (Parquet, or one row
per study) is made at the end from `<output>.views.jsonl`, which grows as radiographs are scored.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from chexpert_hf.errors import InputError
from chexpert_hf.files import exclusive, replacing, write_text
from chexpert_hf.folders.score_table import Cell, GateMode, JsonLines, lines_of, writing

SUFFIXES = (".csv", ".jsonl", ".parquet")

_ROW_GROUP = 10_000
_SAME_SCORE = 5e-4  # the same model's scores differ by less on another processor or GPU, another model's by far more

_COMPARED = ("observations", "runtime", "row", "batch_size", "shard", "gate", "positives")
_DEFAULTS = {"gate": GateMode.OFF.value, "positives": False}
"""Values of settings that are missing in records written before these settings existed."""

_REMEDY = "choose another output, or score again with --overwrite."


class Existing(Enum):
    """Treatment of an output that exists already: an error, resuming its run, or deleting it."""

    REFUSE = "refuse"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True)
class ScoreOutput:
    """The output file: CSV, JSON Lines or Parquet by its suffix, with a row per radiograph or per study.

    `gate` and `positives` add columns, see `RowFormat`; `overlays` is the folder for overlays, None for none. Raises
    InputError if the suffix is another one, or if the output exists and `existing` is REFUSE.
    """

    path: Path
    by_study: bool = False
    existing: Existing = Existing.REFUSE
    overlays: Path | None = None
    gate: GateMode = GateMode.OFF
    positives: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{self.path} ends in {self.path.suffix or 'nothing'}, expected {', '.join(SUFFIXES)}.")
        there = [path for path in (self.path, self.rows_file) if path.exists()]
        if there and self.existing is Existing.REFUSE:
            raise InputError(f"{there[0]} exists already; --resume goes on with it, --overwrite scores again.")

    @property
    def is_written_at_end(self) -> bool:
        """Whether the output is written as a whole at the end (Parquet, or a row per study), not row by row."""
        return self.by_study or self.path.suffix.lower() == ".parquet"

    @property
    def rows_file(self) -> Path:
        """The file that rows are appended to: `<output>.views.jsonl` if `is_written_at_end`, else the output itself."""
        return self.path.with_name(f"{self.path.name}.views.jsonl") if self.is_written_at_end else self.path

    @property
    def record_file(self) -> Path:
        """The path of the record of the run's settings, `<output>.run.json`."""
        return self.path.with_name(f"{self.path.name}.run.json")

    def runtime_of_resumed_run(self, runtime: str, precision: str) -> tuple[str, str]:
        """Return (runtime, precision), with "auto" replaced by the value with which the run to resume was started.

        "auto" is not replaced for a new run, or for an ensemble whose members had different runtimes or precisions.
        """
        if self.existing is not Existing.RESUME or not self.record_file.exists():
            return runtime, precision
        started = set(self._read_record().get("runtime", ()))
        if len(started) != 1:
            return runtime, precision
        first, second = started.pop().split()
        return first if runtime == "auto" else runtime, second if precision == "auto" else precision

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager: keep other runs from writing the output; InputError if another run is writing it.

        If the attribute `existing` is OVERWRITE, the output, its `rows_file` and its `record_file` are deleted first.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path):
            if self.existing is Existing.OVERWRITE:
                with writing(self.path):
                    for path in (self.path, self.rows_file, self.record_file):
                        path.unlink(missing_ok=True)
            yield

    def begin(self, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Write `record`, the settings of a new run, or compare it with the record of the run to resume.

        If an earlier run marked the output as complete by calling `finish`, return the argument `finished` of that
        call, else None. Raise InputError if the output was started with other settings, or its record is missing or
        damaged.
        """
        if not any(path.exists() and path.stat().st_size for path in (self.path, self.rows_file)):
            self._save(record)
            return None
        started = self._read_record()
        self._compare(started, record)
        finished = started.get("finished") if self.is_written_at_end and self.path.exists() else None
        if finished is not None:
            self.rows_file.unlink(missing_ok=True)  # left if the run was killed between the two steps of `finish`
        return finished

    def finish(self, record: Mapping[str, Any], finished: Mapping[str, Any]) -> None:
        """Mark the output as complete: save `record` with `finished` added, and delete the temporary `rows_file`.

        Only for an output that `is_written_at_end`: the `rows_file` of any other output is the output itself.
        """
        self._save({**record, "finished": finished})
        self.rows_file.unlink(missing_ok=True)

    def _save(self, record: Mapping[str, Any]) -> None:
        with writing(self.record_file):
            self.record_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.record_file, json.dumps(record, indent=2) + "\n")

    def _compare(self, started: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        for key in _COMPARED:  # the other keys are for information only
            before = started.get(key, _DEFAULTS.get(key))
            if before != record[key]:
                raise InputError(
                    f"{self.path} was started with {key} {before}, this run has {record[key]}; use the same, {_REMEDY}"
                )
        if record["positives"] and started.get("operating_points") != record["operating_points"]:
            raise InputError(f"{self.path} was started with other operating points than the model has now; {_REMEDY}")
        then, now = started.get("test_pattern"), record["test_pattern"]
        if (
            not isinstance(then, dict)
            or list(then) != list(now)
            or not np.allclose(list(then.values()), list(now.values()), rtol=0, atol=_SAME_SCORE, equal_nan=True)
        ):
            raise InputError(
                f"{self.path} was started with another model ({started.get('model')}): this one scores a test pattern "
                f"otherwise. Use the same, {_REMEDY}"
            )

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict):
            raise InputError(
                f"{self.path} cannot be resumed: {self.record_file.name} beside it, which says how it was started, is "
                f"missing or damaged; {_REMEDY}"
            )
        return record


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a whole table as CSV, JSON Lines or Parquet, by the suffix of `path`.

    The rows go to a temporary file, which is renamed to `path` once it is complete.
    """
    with writing(path), replacing(path) as partial:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # left by a run that was killed
            if left != partial:
                left.unlink(missing_ok=True)
        if path.suffix.lower() == ".parquet":
            _write_parquet(partial, columns, iter(rows))
        else:
            lines = lines_of(path, columns)
            with partial.open("wb") as stream:
                stream.writelines(chain([lines.header()], map(lines.line, rows)))
        with partial.open("r+b") as stream:
            os.fsync(stream.fileno())  # the caller then deletes the rows from which the table was made


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield the rows of a JSON Lines file; ValueError if its columns are not `columns`."""
    with path.open("rb") as stream:
        yield from map(JsonLines(columns).cells, stream)


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Cell]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys((columns[0], "gate", "gate_reason", "note", "error"), pa.string())
    types |= {"views": pa.int32()} | {f"{name} positive": pa.int8() for name in columns}
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.table(list(map(list, zip(*group, strict=True))), schema=schema))
