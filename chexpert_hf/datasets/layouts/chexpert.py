"""CheXpert's layout: reads its tables, `train.csv`, `valid.csv` and those of the test set.

Every cell that is used is checked here, so that no later module meets a value that CheXpert does not define.

Source: Irvin et al. 2019, arXiv:1901.07031, section 2, and the `train.csv` and `valid.csv` of the CheXpert release.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from chexpert_hf.datasets.cells import (
    DatasetError,
    Parser,
    bad_cell,
    expect_columns,
    header_of,
    listed,
    parse_cells,
    parse_number,
    read_cells,
    refuse_cells,
)
from chexpert_hf.datasets.layout import MAX_AGE, RESERVED, Layout, find_table, refuse_repeated, rows, table_in
from chexpert_hf.labels import CHEXPERT, LabelSet

_SPLIT_FILES = {"train": ("train.csv",), "valid": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
"""Split -> names of its table; the first that exists is read. cheXlocalize ships `test_labels.csv`."""

_ACQUISITION_COLUMNS = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_SEX_NAMES = {"male": "Male", "m": "Male", "female": "Female", "f": "Female", "unknown": "Unknown"}
_PROJECTIONS = {"AP": "AP", "PA": "PA", "LL": None, "RL": None}
"""Cell -> projection. 17 frontal rows of `train.csv` have LL or RL, which are laterals: their projection is unknown."""

_PATH_PATTERN = (
    r"^(?P<prefix>(?:.*/)?)(?P<split>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)"
    r"/(?P<file>view(?P<view>\d{1,4})_(?P<side>frontal|lateral)\.(?i:jpg|jpeg|png))$"
)
_ABSOLUTE_PATTERN = r"^/|^[A-Za-z]:"
_PARENT_PATTERN = r"(?:^|/)\.\.(?:/|$)"


def _find_table(folder: Path, split: str) -> Path | None:
    return find_table(folder, _SPLIT_FILES[split])


def _columns(folder: Path) -> Sequence[str]:
    """Return the columns that may be labels; they are read from the table of train, else of valid, else of test.

    If the folder has none of these tables, return CheXpert's 14 observations.
    """
    file = next((file for split in _SPLIT_FILES if (file := _find_table(folder, split))), None)
    taken = {"Path", *_ACQUISITION_COLUMNS, *RESERVED}
    return CHEXPERT.names if file is None else [name for name in header_of(file) if name and name not in taken]


def _labels(folder: Path) -> LabelSet:
    """Return CheXpert's 14 observations if a folder's table has any of them, or no column that may be a label.

    Otherwise return all columns that may be labels, see `_columns`.
    """
    columns = _columns(folder)
    return CHEXPERT if not columns or {*columns} & {*CHEXPERT.names} else LabelSet(tuple(columns))


def read_table(file: Path, observations: Sequence[str], *, has_acquisition: bool = True) -> pd.DataFrame:
    """Read a CSV file of CheXpert as a table, and check every cell that is used.

    Tables that other programs have written are read, too: separated by commas, semicolons or tabs, in UTF-8 or UTF-16,
    with decimal commas, with M and F for the sexes, with "nan" or "NA" in blank cells, with backslashes in paths, and
    with absolute paths into the folder of the file.

    Args:
        file: CSV file, possibly gzipped, with the columns of CheXpert in any order; further columns are skipped.
        observations: The observations to read; the others may be missing from the file.
        has_acquisition: Whether the columns of sex, age, view and projection must exist. CheXpert's test set comes
            without them; their values are then None.

    Returns:
        One row per radiograph in the file's order: `path` (such as `train/patient00001/study1/view1_frontal.jpg`),
        `patient`, `study`, `view`, `is_frontal`, `sex`, `age` (years, NA where blank), `projection` ("AP", "PA" or
        None), then one float32 column per observation: 1, 0, -1, or NaN where blank. The index is the row number in the
        file, the header being row 1.

    Raises:
        DatasetError: If a column is missing or a cell has another value than CheXpert defines.
    """
    cells = read_cells(file, "Path", [*_ACQUISITION_COLUMNS, *observations])
    expect_columns(cells, ["Path", *(_ACQUISITION_COLUMNS if has_acquisition else ())], observations, file)
    paths = _parse_paths(cells, file)
    table = rows(
        cells.index,
        paths["split"] + "/" + paths["patient"] + "/" + paths["study"] + "/" + paths["file"],
        paths["patient"],
        paths["patient"] + "/" + paths["study"],
        pd.DataFrame({name: parse_cells(cells, name, file, _PARSERS) for name in observations}, index=cells.index),
        view=paths["view"].astype(np.int32),
        is_frontal=paths["side"] == "frontal",
        sex=parse_cells(cells, "Sex", file, _PARSERS),
        age=parse_cells(cells, "Age", file, _PARSERS),
        projection=parse_cells(cells, "AP/PA", file, _PARSERS),
    )
    return refuse_repeated(table, file, "Path")


def _parse_paths(cells: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Split each cell of the column Path into columns, and return them; DatasetError if a path is wrong.

    For "a/train/patient00001/study1/view1_frontal.jpg", the columns are prefix "a/", split "train", patient
    "patient00001", study "study1", file "view1_frontal.jpg", view "1" and side "frontal".
    """
    stated = cells["Path"]
    paths = stated.str.strip().str.replace("\\", "/")
    parts = pc.extract_regex(pa.array(paths, pa.string(), from_pandas=True), _PATH_PATTERN)  # faster than pandas
    columns = pa.Table.from_struct_array(parts).to_pandas().set_axis(cells.index)
    _refuse_escapes(stated, paths, columns["prefix"].fillna(""), file)
    refuse_cells(columns["split"].isna(), stated, file, "[.../]train/patient00001/study1/view1_frontal.jpg")
    if "Frontal/Lateral" in cells.columns:
        views = cells["Frontal/Lateral"].astype("str")
        wrong = cells.index[(views.str.strip().str.lower() != columns["side"]).to_numpy()]
        if len(wrong):
            expected = f"'Frontal' or 'Lateral', as in the file name {columns.loc[wrong[0], 'file']}"
            raise bad_cell(file, wrong[0], "Frontal/Lateral", views[wrong[0]], expected)
    return columns


def _refuse_escapes(stated: pd.Series, paths: pd.Series, prefixes: pd.Series, file: Path) -> None:
    def is_inside(prefix: str) -> bool:  # a network path in a table is not looked up
        return os.path.isabs(prefix) and not prefix.startswith("//") and Path(prefix).resolve().is_relative_to(folder)

    is_absolute, folder = paths.str.contains(_ABSOLUTE_PATTERN, na=False), file.parent.resolve()
    inside = [prefix for prefix in prefixes[is_absolute].unique() if is_inside(prefix)]
    escapes = stated[paths.str.contains(_PARENT_PATTERN, na=False) | (is_absolute & ~prefixes.isin(inside))]
    if len(escapes):
        rows = listed([f"row {row} {path!r:.90}" for row, path in escapes.items()])
        raise DatasetError(
            f"{file.name}, column Path: {len(escapes):,} paths are absolute or contain '..' and lead out of the data "
            f"set: {rows}. Expected paths relative to the folder of the data set, or absolute ones below {folder}."
        )


def _age(text: str) -> int:
    years = parse_number(text.removesuffix("Y"))  # DICOM's 045Y
    if not years.is_integer() or not 0 <= years <= MAX_AGE:
        raise ValueError(text)
    return int(years)


_PARSERS: dict[str, Parser] = {
    "Sex": (lambda text: _SEX_NAMES[text.lower()], "Male, Female, Unknown"),
    "Age": (_age, f"whole years, 0 to {MAX_AGE},"),
    "AP/PA": (lambda text: _PROJECTIONS[text.upper()], ", ".join(_PROJECTIONS)),
}
"""Parser and expected values by column; all other columns are observations."""

CHEXPERT_LAYOUT = Layout(
    "chexpert",
    _labels,
    files=", ".join(name for names in _SPLIT_FILES.values() for name in names),
    has_split=lambda folder, split: _find_table(folder, split) is not None,
    read=lambda folder, split, names: read_table(
        table_in(folder, _SPLIT_FILES[split]), names, has_acquisition=split != "test"
    ),
    columns=_columns,
)
"""CheXpert 1.0 and its small version, and any data set with the same folders and columns."""
