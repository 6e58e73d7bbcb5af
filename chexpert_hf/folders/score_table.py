"""CSV and JSON Lines tables that grow a batch of rows at a time, and can be resumed after the process was killed."""

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from chexpert_hf.errors import InputError

DECIMALS = 6
SYNC_SECONDS = 10  # of work that a power failure may cost; a killed process loses none

Cell: TypeAlias = str | int | float | None

NOT_RADIOGRAPH = ("flagged", "refused")
"""Values of the column `gate` for images that do not look like chest radiographs: with scores, and without."""

_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
"""First characters that make a spreadsheet take a cell for a formula. Source: OWASP, "CSV Injection"."""


class GateMode(str, Enum):
    """Treatment of images that do not look like chest radiographs: scored and flagged, not scored, or not checked."""

    FLAG = "flag"
    REFUSE = "refuse"
    OFF = "off"


@dataclass(frozen=True)
class JsonLines:
    """Formats and parses rows as JSON Lines: an object per line. Floats are rounded to `DECIMALS`."""

    columns: Sequence[str]

    def header(self) -> bytes:
        return b""

    def line(self, cells: Sequence[Cell]) -> bytes:
        rounded = [round(cell, DECIMALS) if isinstance(cell, float) else cell for cell in cells]
        row = dict(zip(self.columns, rounded, strict=True))
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def is_whole(self, line: bytes) -> bool:
        return line.endswith(b"\n") and b"\0" not in line

    def cells(self, line: bytes) -> list[Cell]:
        row = json.loads(line)
        if not isinstance(row, dict) or list(row) != list(self.columns):
            raise ValueError("other columns")
        return list(row.values())

    def name(self, text: str) -> str:
        return text


class CsvLines(JsonLines):
    """Formats and parses rows as CSV by RFC 4180, with line feeds; None is an empty cell.

    Text with commas, quotes or line breaks is quoted. A file name that a spreadsheet would take for a formula gets "./"
    in front, which names the same file.
    """

    def header(self) -> bytes:
        return self.line(self.columns)

    def line(self, cells: Sequence[Cell]) -> bytes:
        return (",".join(map(_csv_cell, [self.name(str(cells[0])), *cells[1:]])) + "\n").encode()

    def is_whole(self, line: bytes) -> bool:
        return super().is_whole(line) and line.count(b'"') % 2 == 0

    def cells(self, line: bytes) -> list[Cell]:
        (cells,) = csv.reader([line.decode()], strict=True)
        return [cell or None for cell in cells]

    def name(self, text: str) -> str:
        return f"./{text}" if text.startswith(_FORMULA_STARTS) else text


def lines_of(path: Path, columns: Sequence[str]) -> JsonLines:
    """Return the formatter and parser of a table: CSV if the suffix of `path` is `.csv`, else JSON Lines."""
    return CsvLines(columns) if path.suffix.lower() == ".csv" else JsonLines(columns)


def readable(text: str) -> str:
    r"""Return a file name as valid Unicode, which every format can store.

    A byte that is not UTF-8, such as 0xff, becomes the six characters `\udcff`. If the locale is ASCII, Python cannot
    decode the two bytes of "é" in a file's name and keeps them as two surrogates; these become "é" again.
    """
    joined = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return joined.encode("utf-8", "backslashreplace").decode()


class KeptRows(NamedTuple):
    """Counts of the rows of an earlier run's table that are kept."""

    rows: int = 0  # all
    failed: int = 0  # with an error instead of scores: unreadable, or refused by the gate
    not_radiographs: int = 0  # flagged or refused by the gate
    with_warning: int = 0  # accepted by the gate with a warning


class GrowingTable(AbstractContextManager["GrowingTable"]):
    """A CSV or JSON Lines file to which rows are appended, a batch at a time; InputError if it cannot be written."""

    def __init__(self, path: Path, lines: JsonLines) -> None:
        self._path, self._lines = path, lines
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream: BinaryIO = path.open("ab")
            if self._stream.tell() == 0:
                self._stream.write(lines.header())
        self._synced = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with writing(self._path), self._stream:
            if kind is None:
                os.fsync(self._stream.fileno())

    def append(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Append rows. A killed process loses no row; a power failure loses those of the last `SYNC_SECONDS` or so."""
        with writing(self._path):
            self._stream.write(b"".join(map(self._lines.line, rows)))
            self._stream.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()


def resume_table(path: Path, lines: JsonLines, names: Sequence[object], batch_size: int) -> KeptRows:
    """Truncate the table of an earlier run to whole batches, and count the rows that are kept.

    All counts are 0 if there is no table. `lines` has the format and the columns that this run would write. `names` are
    this run's radiographs, in order; if each of them has a row, the last batch is kept even if it is not full.

    Raises:
        InputError: If the table has another header than `lines`, a row cannot be read, or the rows are not those of the
            first radiographs in `names`. The file is then unchanged.
    """
    if not path.exists():
        return KeptRows()
    with writing(path), path.open("r+b") as stream:
        header = stream.read(len(lines.header()))
        if not lines.header().startswith(header):
            raise InputError(f"{path} has other columns than this run would write; choose another output.")
        end = kept_end = len(header) if header == lines.header() else 0  # a header that was cut off is written again
        kept, failed, not_radiographs, with_warning = KeptRows(), 0, 0, 0
        gate = lines.columns.index("gate") if "gate" in lines.columns else None
        count, row = 0, b""
        for line in stream:
            row += line
            if not lines.is_whole(row):  # a name may hold line breaks
                continue
            count, end = count + 1, end + len(row)
            cells = _checked_row(path, lines, row, count, names)
            row = b""
            failed += cells[-1] is not None
            not_radiographs += gate is not None and cells[gate] in NOT_RADIOGRAPH
            with_warning += gate is not None and cells[gate] == "warning"
            if count % batch_size == 0 or count == len(names):
                kept, kept_end = KeptRows(count, failed, not_radiographs, with_warning), end
        stream.truncate(kept_end)
    return kept


def _checked_row(path: Path, lines: JsonLines, row: bytes, number: int, names: Sequence[object]) -> list[Cell]:
    """Return the cells of `row`, the bytes of row `number` (from 1) of the table `path` in the format `lines`.

    Raises InputError if the row is damaged, or is not that of the radiograph `names[number - 1]`.
    """
    try:
        name, *_ = cells = lines.cells(row)
    except (ValueError, csv.Error) as fault:
        raise InputError(f"{path} row {number} cannot be read; score again with --overwrite.") from fault
    expected = lines.name(readable(str(names[number - 1]))) if number <= len(names) else "no more rows"
    if name != expected:
        raise InputError(
            f"{path} row {number} is {name!s:.200}, expected {expected:.200}: the radiographs are not those of the run "
            "that wrote it. Choose another output, or score again with --overwrite."
        )
    return cells


def _csv_cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.{DECIMALS}f}"
    text = "" if cell is None else str(cell)
    # Not by csv.writer, whose quoting of line breaks depends on the version of Python.
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, turn an OSError, such as a full disk, into an InputError of one line about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Its rows are kept; use --resume.") from error
