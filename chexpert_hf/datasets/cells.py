"""Reads the cells of CSV files with labels, and parses them; used by all layouts."""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from chexpert_hf.csv_dialect import dialect_of
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.labels import NEGATIVE, POSITIVE, UNCERTAIN

BLANKS = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""Texts, in lower case, that pandas, R and Excel write into an empty cell."""

SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}
"""Split -> the names that data sets have for it."""

SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

Parser: TypeAlias = tuple[Callable[[str], Any], str]
"""A function that parses a cell's text or raises ValueError or KeyError, and the expected values, for messages."""

_MAX_LISTED = 5
_HEADER_BYTES = 65_536
_BLOCK_BYTES = 1 << 24  # that pyarrow parses at once; the longest row must fit into one block


class DatasetError(InputError):
    """A data set differs from what its layout defines; the message is one line that says where and what to do."""


def listed(items: Sequence[str]) -> str:
    """Join the first 5 items with commas and say how many more there are, so that an error stays one line."""
    more = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def parse_number(text: str) -> float:
    """Parse a number with a decimal point or a decimal comma; raise ValueError for any other text."""
    return float(text.replace(",", "."))


def parse_label(text: str) -> float:
    """Parse a label: 1, 0 or -1; raise ValueError for any other text."""
    value = parse_number(text)
    if value not in (POSITIVE, NEGATIVE, UNCERTAIN):
        raise ValueError(text)
    return value


def header_of(file: Path) -> list[str]:
    """Return the column names of a CSV file, possibly gzipped, without blanks around them; [] if it cannot be read."""
    try:
        return [name.strip() for name in _header(file, *dialect_of(file))]
    except (pa.ArrowInvalid, OSError):
        return []


def _header(file: Path, encoding: str, delimiter: str) -> list[str]:
    with pa.input_stream(str(file)) as stream:
        line = next(iter(stream.read(_HEADER_BYTES).decode(encoding, errors="replace").splitlines()), "")
    return next(csv.reader([line], delimiter=delimiter), [])


def read_cells(file: Path, path: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read some columns of a CSV file as text; those that the file lacks are skipped.

    The column named `path` is read as strings, each of `columns` as pandas categories of strings. Blanks around column
    names are removed. The index is the number of the row in the file, where the header is row 1. A quoted cell, such as
    a report, may extend over several lines.

    Raises:
        DatasetError: If the file cannot be read, has one of these columns twice, or a quoted cell that is not closed.
    """
    # Text, so that errors can quote the file; as dictionaries, so that each distinct value is parsed once.
    types = {path: pa.string(), **dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()))}
    try:
        encoding, delimiter = dialect_of(file)
        _refuse_open_cells(file, encoding, delimiter)
        # The parallel reader does not count rows in its messages.
        serial = pa_csv.ReadOptions(use_threads=False, encoding=encoding, block_size=_BLOCK_BYTES)
        parsing = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        header = _header(file, encoding, delimiter)
        wanted = {name: types[name.strip()] for name in header if name.strip() in types}
        conversion = pa_csv.ConvertOptions(
            column_types=wanted, null_values=[""], strings_can_be_null=True, include_columns=[*wanted]
        )
        table = pa_csv.read_csv(file, serial, parsing, conversion)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file.name} cannot be read as CSV: {_why_unreadable(error)}") from None
    names = [name.strip() for name in header if name in wanted]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DatasetError(f"{file.name} has the column {repeated!r} more than once; expected it once.")
    cells = table.select([*wanted]).rename_columns(names).to_pandas()
    cells.index = pd.RangeIndex(2, len(cells) + 2, name="row")
    cells.attrs["header"] = header
    return cells


def _refuse_open_cells(file: Path, encoding: str, delimiter: str) -> None:
    """Raise DatasetError if the quotation mark at the beginning of a cell is not closed at the end of the cell.

    pyarrow would read all lines up to the next mark as text of that cell, and lose their rows without a message.
    """
    with TextIOWrapper(pa.input_stream(str(file)), encoding, errors="replace", newline="") as lines:
        if not any(line.count('"') % 2 for line in lines):  # each cell is closed on its line
            return
    with TextIOWrapper(pa.input_stream(str(file)), encoding, errors="replace", newline="") as lines:
        text = lines.read()
    for cell in re.finditer(rf'"(?<![^{delimiter}\r\n]")(?:[^"]+|"")*(?:("[ \t]*(?=[{delimiter}\r\n]|\Z))|")?', text):
        if cell[1] is None and ("\n" in cell[0] or "\r" in cell[0]):
            number = len(re.findall(r"\r\n|\r|\n", text[: cell.start()])) + 1
            raise DatasetError(
                f"{file.name} line {number}: a cell begins with a quotation mark that is not closed, so that it holds "
                f"the lines after it, too: {cell[0].splitlines()[0]:.60}. Close it, or remove the mark."
            )


def _why_unreadable(error: Exception) -> str:
    """Return in one line why a CSV file cannot be read; if it is not in UTF-8, how to convert it."""
    text = first_line(error)
    # from Python's decoder, pyarrow's for cells, and its message that a column of the header decoded here is not there
    if isinstance(error, UnicodeDecodeError) or "UTF8" in text or "\N{REPLACEMENT CHARACTER}" in text:
        return "it is not in UTF-8; save it as 'CSV UTF-8', or convert it: iconv -f WINDOWS-1252 -t UTF-8."
    return text


def expect_columns(cells: pd.DataFrame, required: Sequence[str], observations: Sequence[str], file: Path) -> None:
    """Raise DatasetError if a table of `read_cells` has no row, or lacks a required column or an observation."""
    if missing := [name for name in (*required, *observations) if name not in cells.columns]:
        header: list[str] = cells.attrs["header"]
        near = [name for name in header if missing[0] in name] or get_close_matches(missing[0], header, n=1)
        advice = "name other observations" if missing[0] in observations else "rename a column"
        raise DatasetError(
            f"{file.name} lacks the column{'s' * (len(missing) > 1)} {listed([repr(name) for name in missing])}; it "
            f"has {', '.join(header) or 'none':.400}. Add what is missing, or {advice}"
            + (f", such as {near[0]!r}." if near else ".")
        )
    if cells.empty:
        raise DatasetError(f"{file.name} has a header and no rows; expected one row per radiograph.")


def parse_cells(cells: pd.DataFrame, column: str, file: Path, parsers: Mapping[str, Parser]) -> NDArray[np.object_]:
    """Return a column of `read_cells` parsed, one value per row.

    The column's parser is `parsers[column]`. A column without a parser there is parsed as labels: 1, 0 or -1. Blank
    cells and missing columns give None, or NaN for labels. Raises DatasetError for the first wrong cell.
    """
    parse, expected = parsers.get(column, (parse_label, "1, 0, -1"))
    blank = None if column in parsers else np.nan
    if column not in cells.columns:
        return np.full(len(cells), blank, dtype=object)
    texts = cells[column].cat
    values = np.full(len(texts.categories) + 1, blank, dtype=object)  # the code of a blank is -1: the last one
    for code, text in enumerate(texts.categories):
        try:
            values[code] = blank if text.strip().lower() in BLANKS else parse(text.strip())
        except (ValueError, KeyError):
            row = cells.index[(texts.codes == code).to_numpy()][0]
            raise bad_cell(file, row, column, text, f"{expected} or blank") from None
    return values[texts.codes.to_numpy()]


def findings(
    texts: pd.Series,
    names: Sequence[str],
    split: Callable[[str], Collection[str] | None],
    known: Collection[str] | None,
    file: Path,
) -> pd.DataFrame:
    """Return labels `(num_rows, len(names))` from cells that list findings, such as "Mass|Nodule".

    A label is 1 for a finding that is listed, 0 for the others, NaN where the cell states nothing.

    Args:
        texts: A column of `read_cells`.
        names: The columns of the result.
        split: Function from the text of a non-blank cell to its findings, or to None if the text states nothing.
        known: The findings that may be listed: any other raises DatasetError. None allows all.
        file: The table, named in errors.
    """
    columns = {name: column for column, name in enumerate(names)}
    allowed = None if known is None else frozenset(known)
    values = np.full((len(texts.cat.categories) + 1, len(names)), np.nan, dtype=np.float32)
    for code, text in enumerate(texts.cat.categories):
        found = None if text.strip().lower() in BLANKS else split(text)
        if found is None:
            continue
        listed_here = {name.strip() for name in found}
        if allowed is not None and not listed_here <= allowed:
            row = texts.index[(texts.cat.codes == code).to_numpy()]
            if len(row):
                strange = min(listed_here - allowed)
                raise bad_cell(file, row[0], str(texts.name), strange, f"some of {listed([*(known or ())])}")
        values[code] = NEGATIVE
        for name in listed_here & columns.keys():
            values[code, columns[name]] = POSITIVE
    return pd.DataFrame(values[texts.cat.codes.to_numpy()], columns=list(names), index=texts.index)


def refuse_cells(is_bad: pd.Series, texts: pd.Series, file: Path, expected: str) -> None:
    """Raise DatasetError for the first cell of `texts` for which `is_bad` is true; `expected` describes good cells."""
    if is_bad.any():
        row = texts.index[is_bad.to_numpy()][0]
        raise bad_cell(file, row, str(texts.name), texts[row], expected)


def bad_cell(file: Path, row: int, column: str, value: Any, expected: str) -> DatasetError:
    """Return a DatasetError that names file, row, column and value of a cell, and what was expected there."""
    came = f"{value!r:.90}" if isinstance(value, str) else "blank"
    return DatasetError(f"{file.name} row {row}: {column} is {came}, expected {expected}.")
