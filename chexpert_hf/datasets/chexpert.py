"""CheXpert's CSV files: where they are, and one of them as a checked pandas table.

Every cell that is used is checked here, so nothing after this module meets a value that CheXpert does not define.

Source: Irvin et al. 2019, arXiv:1901.07031, section 2, and the `train.csv` and `valid.csv` of the CheXpert release.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from chexpert_hf.csv_dialect import dialect_of
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from chexpert_hf.radiographs.unfetched import why_missing

SPLIT_FILES: dict[str, tuple[str, ...]] = {
    "train": ("train.csv", "train.csv.gz"),
    "valid": ("valid.csv", "valid.csv.gz"),
    "test": ("test.csv", "test.csv.gz", "test_labels.csv"),
}
"""The names that each split's table goes by; the first that is there is read. cheXlocalize ships `test_labels.csv`."""

BLANKS = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""Texts, in lower case, that pandas, R and Excel write into an empty cell."""

_ACQUISITION_COLUMNS = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_SEX_NAMES = {"male": "Male", "m": "Male", "female": "Female", "f": "Female", "unknown": "Unknown"}
_PROJECTIONS = ("AP", "PA", "LL", "RL")  # LL and RL stand in 17 frontal rows of `train.csv`; laterals leave it blank
_MAX_AGE = 120

_PATH_PATTERN = (
    r"^(?P<prefix>(?:.*/)?)(?P<split>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)"
    r"/(?P<file>view(?P<view>\d{1,4})_(?P<side>frontal|lateral)\.(?i:jpg|jpeg|png))$"
)
_ABSOLUTE_PATTERN = r"^/|^[A-Za-z]:"
_PARENT_PATTERN = r"(?:^|/)\.\.(?:/|$)"
_MAX_LISTED = 5


class CheXpertDataError(InputError):
    """The data are not what CheXpert defines; the message is one line that says where and what to do."""


def find_dataset_folder(root: str | Path) -> Path:
    """The absolute folder that holds the tables: `root` or the only folder in it that does."""

    def holds_a_table(folder: Path) -> bool:
        return any(find_table(folder, split) for split in SPLIT_FILES)

    root = Path(root).resolve()
    if not root.is_dir():
        raise CheXpertDataError(f"Expected the folder of a CheXpert data set, but {str(root)!r} is not a folder.")
    if holds_a_table(root):
        return root
    found = sorted(folder for folder in root.iterdir() if folder.is_dir() and holds_a_table(folder))
    if not found:
        names = ", ".join(name for names in SPLIT_FILES.values() for name in names)
        raise CheXpertDataError(
            f"No CheXpert table in {str(root)!r} or in a folder directly in it; looked for {names}. "
            "Pass the folder that holds train.csv."
        )
    if len(found) > 1:
        names = listed([folder.name for folder in found])
        raise CheXpertDataError(f"{str(root)!r} holds several data sets ({names}); pass one of them.")
    return found[0].resolve()


def find_table(folder: Path, split: str) -> Path | None:
    """The CSV file of a split; None if the folder has none. A link to a file that is not there is an error."""
    for file in (folder / name for name in SPLIT_FILES[split]):
        if file.is_file():
            return file
        if file.is_symlink() and not file.exists():
            raise CheXpertDataError(f"{file} cannot be read. {why_missing(file)}")
    return None


def read_table(file: Path, observations: Sequence[str], *, has_acquisition: bool = True) -> pd.DataFrame:
    """Reads a table of CheXpert and checks every cell that is used.

    Tables that went through other programs are read too: separated by commas, semicolons or tabs, in UTF-8 or UTF-16,
    with a decimal comma, with M and F, with "nan" or "NA" in blank cells, with backslashes in paths, and with absolute
    paths into the folder of the file.

    Args:
        file: CSV file, possibly gzipped, with the columns of CheXpert in any order; further columns are skipped.
        observations: The observations to read; the others may be missing from the file.
        has_acquisition: Whether the columns of sex, age, view and projection must be there. CheXpert's test set comes
            without them: what is missing is then None.

    Returns:
        One row per radiograph in the file's order: `path` (from the split's name on), `patient`, `study`, `view`,
        `is_frontal`, `sex`, `age` (years, NA where blank), `projection`, then one float32 column per observation: 1, 0,
        -1 and NaN where blank. The index is the row number in the file, the header being row 1.
    """
    cells = _read_cells(file)
    required = ("Path", *(_ACQUISITION_COLUMNS if has_acquisition else ()), *observations)
    if missing := [name for name in required if name not in cells.columns]:
        raise CheXpertDataError(
            f"{file.name} lacks the column{'s' * (len(missing) > 1)} {listed([repr(name) for name in missing])}; of "
            f"CheXpert's columns it has {', '.join(cells.columns) or 'none'}. Add what is missing; observations= names "
            "the observations to read."
        )
    if cells.empty:
        raise CheXpertDataError(f"{file.name} has a header and no rows; expected one row per radiograph.")
    paths = _parse_paths(cells, file)
    columns: dict[str, Any] = {
        "path": paths["split"] + "/" + paths["patient"] + "/" + paths["study"] + "/" + paths["file"],
        "patient": paths["patient"],
        "study": paths["patient"] + "/" + paths["study"],
        "view": paths["view"].astype(np.int32),
        "is_frontal": paths["side"] == "frontal",
        "sex": _parse_cells(cells, "Sex", file),
        "age": pd.array(_parse_cells(cells, "Age", file), "Int32"),
        "projection": _parse_cells(cells, "AP/PA", file),
        **{name: _parse_cells(cells, name, file).astype(np.float32) for name in observations},
    }
    table = pd.DataFrame(columns, index=cells.index)
    repeated = table["path"][table["path"].duplicated()]
    if len(repeated):
        row, path = next(iter(repeated.items()))
        raise CheXpertDataError(
            f"{file.name} row {row}: Path is {path!r}, as in row {table.index[table['path'] == path][0]} already; "
            f"expected each radiograph once ({len(repeated):,} rows repeat an earlier one)."
        )
    return table


def listed(items: Sequence[str]) -> str:
    """Joins the first few of the items and counts the rest, so that an error stays one line."""
    more = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def parse_number(text: str) -> float:
    """Parses a number with a decimal point or a decimal comma."""
    return float(text.replace(",", "."))


def _read_cells(file: Path) -> pd.DataFrame:
    # Text, so that errors can quote the file; as dictionaries, so that each distinct value is parsed once.
    as_dictionary = pa.dictionary(pa.int32(), pa.string())
    types = {"Path": pa.string(), **dict.fromkeys((*_ACQUISITION_COLUMNS, *OBSERVATIONS), as_dictionary)}
    conversion = pa_csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    try:
        encoding, delimiter = dialect_of(file)
        # The parallel reader does not count rows in its messages.
        serial = pa_csv.ReadOptions(use_threads=False, encoding=encoding)
        table = pa_csv.read_csv(file, serial, pa_csv.ParseOptions(delimiter=delimiter), conversion)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise CheXpertDataError(f"{file.name} cannot be read as CSV: {first_line(error)}") from None
    names = [name for name in table.column_names if name in types]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise CheXpertDataError(f"{file.name} has the column {repeated!r} more than once; expected it once.")
    cells = table.select(names).to_pandas()
    cells.index = pd.RangeIndex(2, len(cells) + 2, name="row")
    return cells


def _parse_paths(cells: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Splits the paths at the split's name, which works for every prefix and for none."""
    stated = cells["Path"]
    paths = stated.str.strip().str.replace("\\", "/")
    parts = pc.extract_regex(pa.array(paths, pa.string(), from_pandas=True), _PATH_PATTERN)  # faster than pandas
    columns = pa.Table.from_struct_array(parts).to_pandas().set_axis(cells.index)
    is_malformed = columns["split"].isna()
    _refuse_escapes(stated, paths, columns["prefix"].fillna(""), file)
    if is_malformed.any():
        row = cells.index[is_malformed][0]
        raise _bad_cell(file, row, "Path", stated[row], "[.../]train/patient00001/study1/view1_frontal.jpg")
    if "Frontal/Lateral" in cells.columns:
        views = cells["Frontal/Lateral"].astype(object)
        wrong = cells.index[(views.str.strip().str.lower() != columns["side"]).to_numpy()]
        if len(wrong):
            expected = f"'Frontal' or 'Lateral', as in the file name {columns.loc[wrong[0], 'file']}"
            raise _bad_cell(file, wrong[0], "Frontal/Lateral", views[wrong[0]], expected)
    return columns


def _refuse_escapes(stated: pd.Series, paths: pd.Series, prefixes: pd.Series, file: Path) -> None:
    def is_inside(prefix: str) -> bool:  # a network path is not looked up for the sake of a table
        return os.path.isabs(prefix) and not prefix.startswith("//") and Path(prefix).resolve().is_relative_to(folder)

    is_absolute, folder = paths.str.contains(_ABSOLUTE_PATTERN, na=False), file.parent.resolve()
    inside = [prefix for prefix in prefixes[is_absolute].unique() if is_inside(prefix)]
    escapes = stated[paths.str.contains(_PARENT_PATTERN, na=False) | (is_absolute & ~prefixes.isin(inside))]
    if len(escapes):
        rows = listed([f"row {row} {path!r:.90}" for row, path in escapes.items()])
        raise CheXpertDataError(
            f"{file.name}, column Path: {len(escapes):,} paths are absolute or contain '..' and lead out of the data "
            f"set: {rows}. Expected paths relative to the folder of the data set, or absolute ones below {folder}."
        )


def _parse_cells(cells: pd.DataFrame, column: str, file: Path) -> NDArray[np.object_]:
    parse, expected = _PARSERS.get(column, (_label, "1, 0, -1"))
    blank = None if column in _PARSERS else np.nan
    if column not in cells.columns:
        return np.full(len(cells), blank, dtype=object)
    texts = cells[column].cat
    values = np.full(len(texts.categories) + 1, blank, dtype=object)  # the code of a blank is -1: the last one
    for code, text in enumerate(texts.categories):
        try:
            values[code] = blank if text.strip().lower() in BLANKS else parse(text.strip())
        except (ValueError, KeyError):
            row = cells.index[(texts.codes == code).to_numpy()][0]
            raise _bad_cell(file, row, column, text, f"{expected} or blank") from None
    return values[texts.codes.to_numpy()]


def _age(text: str) -> int:
    years = parse_number(text.removesuffix("Y"))  # DICOM's 045Y
    if not years.is_integer() or not 0 <= years <= _MAX_AGE:
        raise ValueError(text)
    return int(years)


def _label(text: str) -> float:
    value = parse_number(text)
    if value not in (POSITIVE, NEGATIVE, UNCERTAIN):
        raise ValueError(text)
    return value


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "Sex": (lambda text: _SEX_NAMES[text.lower()], "Male, Female, Unknown"),
    "Age": (_age, f"whole years, 0 to {_MAX_AGE},"),
    "AP/PA": (lambda text: _PROJECTIONS[_PROJECTIONS.index(text.upper())], ", ".join(_PROJECTIONS)),
}
"""Parser and expected values by column; all other columns are observations."""


def _bad_cell(file: Path, row: int, column: str, value: Any, expected: str) -> CheXpertDataError:
    came = f"{value!r:.90}" if isinstance(value, str) else "blank"
    return CheXpertDataError(f"{file.name} row {row}: {column} is {came}, expected {expected}.")
