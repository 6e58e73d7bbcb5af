"""Cells of label files, as text and parsed: what all layouts and reference standards share."""

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
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
"""The names that each split goes by in files of others."""

SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

Parser: TypeAlias = tuple[Callable[[str], Any], str]
"""Parses a cell's text, or raises ValueError or KeyError; and the values that are expected, in words."""

_MAX_LISTED = 5
_HEADER_BYTES = 65_536


class DatasetError(InputError):
    """A data set that is not what its layout defines; the message is one line that says where and what to do."""


def listed(items: Sequence[str]) -> str:
    """Joins the first few of the items and counts the rest, so that an error stays one line."""
    more = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def parse_number(text: str) -> float:
    """Parses a number with a decimal point or a decimal comma."""
    return float(text.replace(",", "."))


def parse_label(text: str) -> float:
    """Parses a label: 1, 0 or -1."""
    value = parse_number(text)
    if value not in (POSITIVE, NEGATIVE, UNCERTAIN):
        raise ValueError(text)
    return value


def header_of(file: Path) -> list[str]:
    """The names in the first line of a CSV file, possibly gzipped, without blanks; none if it cannot be read."""
    try:
        return [name.strip() for name in _header(file, *dialect_of(file))]
    except (pa.ArrowInvalid, OSError):
        return []


def _header(file: Path, encoding: str, delimiter: str) -> list[str]:
    with pa.input_stream(str(file)) as stream:
        line = next(iter(stream.read(_HEADER_BYTES).decode(encoding, errors="replace").splitlines()), "")
    return next(csv.reader([line], delimiter=delimiter), [])


def read_cells(file: Path, path: str, columns: Sequence[str], *, has_line_breaks: bool = False) -> pd.DataFrame:
    """Reads the column of paths as text and those of `columns` that are there as categories of text.

    Blanks around names are left out. The index is the row in the file, the header being row 1. `has_line_breaks` is
    for tables with reports, whose quoted cells go on over several lines.

    Raises:
        DatasetError: If it cannot be read, or has one of the columns twice.
    """
    # Text, so that errors can quote the file; as dictionaries, so that each distinct value is parsed once.
    types = {path: pa.string(), **dict.fromkeys(columns, pa.dictionary(pa.int32(), pa.string()))}
    try:
        encoding, delimiter = dialect_of(file)
        # The parallel reader does not count rows in its messages.
        serial = pa_csv.ReadOptions(use_threads=False, encoding=encoding)
        parsing = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=has_line_breaks)
        header = _header(file, encoding, delimiter)
        wanted = {name: types[name.strip()] for name in header if name.strip() in types}
        conversion = pa_csv.ConvertOptions(
            column_types=wanted, null_values=[""], strings_can_be_null=True, include_columns=[*wanted]
        )
        table = pa_csv.read_csv(file, serial, parsing, conversion)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file.name} cannot be read as CSV: {first_line(error)}") from None
    names = [name.strip() for name in header if name in wanted]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DatasetError(f"{file.name} has the column {repeated!r} more than once; expected it once.")
    cells = table.select([*wanted]).rename_columns(names).to_pandas()
    cells.index = pd.RangeIndex(2, len(cells) + 2, name="row")
    cells.attrs["header"] = header
    return cells


def expect_columns(cells: pd.DataFrame, required: Sequence[str], observations: Sequence[str], file: Path) -> None:
    """Raises DatasetError if the table lacks a column or has no row; the message lists the columns that it has."""
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
    """Parses a column of `read_cells`: None where it is blank or missing, NaN for a label, which has no parser."""
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
    """Labels from cells that list findings: 1 for those that are listed, 0 for the others, NaN where nothing is stated.

    Args:
        texts: A column of `read_cells`.
        names: The columns of the result.
        split: Makes the findings of a cell's text; None if it states nothing, as a blank cell does.
        known: The findings that may be listed; any if None.
        file: For errors.
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
    """Raises DatasetError for the first cell of a column that is bad, if one is."""
    if is_bad.any():
        row = texts.index[is_bad.to_numpy()][0]
        raise bad_cell(file, row, str(texts.name), texts[row], expected)


def bad_cell(file: Path, row: int, column: str, value: Any, expected: str) -> DatasetError:
    """The error of a cell that its column does not define."""
    came = f"{value!r:.90}" if isinstance(value, str) else "blank"
    return DatasetError(f"{file.name} row {row}: {column} is {came}, expected {expected}.")
