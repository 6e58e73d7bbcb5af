"""`Layout`, which describes how a data set's files are named and read, and helpers to write one.

To add a layout, write a module in `layouts/` and enter it in `sources.LAYOUTS`, or pass a `Layout` of your own to
`load_dataset`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexpert_hf.datasets.cells import DatasetError, listed
from chexpert_hf.datasets.label_sets import SCORE_COLUMNS
from chexpert_hf.labels import LabelSet
from chexpert_hf.radiographs.finding import IMAGE_SUFFIXES
from chexpert_hf.radiographs.unfetched import why_missing

SPLITS = ("train", "valid", "test")

COLUMNS = (
    "path",
    "patient",
    "study",
    "view",
    "sex",
    "age",
    "projection",
    "is_frontal",
    "source",
    "labels_by",
)
"""The columns of a loaded data set besides `image` and `labels`."""

RESERVED = frozenset((*COLUMNS, *SCORE_COLUMNS))
"""Names that no observation can have: those of columns of a loaded data set or of a table of scores."""

BOX_SIDES = ("x", "y", "width", "height")  # in pixels of the upright image at its full size
BOX_COLUMNS = ("path", "observation", *BOX_SIDES)

Masks: TypeAlias = Mapping[str, Mapping[str, Callable[[], NDArray[np.bool_]]]]
"""Path -> observation -> function that returns its mask `(height, width)`; only for images with a mask."""

MAX_AGE = 120
FRONTAL_PROJECTIONS = ("AP", "PA")

_SUFFIX = rf"(?i:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$"
_OUT_OF_FOLDER = r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)"  # an absolute path, or one with ".."


@dataclass(frozen=True)
class Layout:
    """The file layout of a data set: the names of its files, and functions that read its splits.

    `read(folder, split, names)` returns a table, made by `rows` in this module: one row per radiograph, in the order of
    the files. It has a float32 column for each observation in `names`: 1, 0, -1 (uncertain), NaN (not stated), or the
    share of readers who say 1. `read` raises DatasetError if a file is not as the layout defines.
    """

    name: str
    labels: LabelSet | Callable[[Path], LabelSet]  # loaded by default; a function if they depend on the folder
    files: str  # the names of the files, as text for error messages
    has_split: Callable[[Path, str], bool]  # whether a folder has the table of a split
    read: Callable[[Path, str, Sequence[str]], pd.DataFrame]
    columns: Callable[[Path], Sequence[str]] | None = None  # all observations in a folder; those of `labels` if None
    implied_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Observation of another label set -> observations of this layout; if any of these is positive, so is the key."""
    patient_prefix: str | None = None
    """Prefix of patient ids when several data sets are loaded together; the folder's name if None.

    Data sets of the same patients have the same prefix.
    """
    boxes: Callable[[Path], pd.DataFrame | None] | None = None
    """Reads the boxes that readers drew, as a table with `BOX_COLUMNS`; None if the folder has no file of boxes."""
    masks: Callable[[Path], Masks] | None = None  # reads the masks that readers drew; None if there are none
    for_file: Callable[[str], "Layout"] | None = None
    """Returns this layout for a CSV file of another name, such as "my.csv"; None if names are fixed."""

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder holds a data set in this layout."""
        return any(self.has_split(folder, split) for split in SPLITS)

    def labels_in(self, folder: Path) -> LabelSet:
        """Return the observations that are loaded from a folder by default."""
        return self.labels if isinstance(self.labels, LabelSet) else self.labels(folder)

    def names_in(self, folder: Path) -> Sequence[str]:
        """Return the names of all observations with labels in a folder, also of those not loaded by default."""
        return self.labels_in(folder).names if self.columns is None else self.columns(folder)


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of `names` that is a file in the folder, possibly with `.gz` added; None if none is.

    Raises DatasetError for a broken link.
    """
    for file in (folder / (name + end) for name in names for end in ("", ".gz")):
        if file.is_file():
            return file
        if file.is_symlink() and not file.exists():
            raise DatasetError(f"{file} cannot be read. {why_missing(file)}")
    return None


def table_in(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the file names `names` that is in the folder, possibly with `.gz` added.

    Raises DatasetError if none is, or if it is a broken link.
    """
    if file := find_table(folder, names):
        return file
    raise DatasetError(f"No table of a data set in {str(folder)!r}; looked for {', '.join(names)}. Add it.")


def only_train(*tables: Sequence[str]) -> Callable[[Path, str], bool]:
    """Return a function for `Layout.has_split`, for a data set that has a train split only.

    The function returns True for "train" if the folder holds all tables of the data set. Each argument lists the
    possible names of one table.
    """
    return lambda folder, split: split == "train" and all(find_table(folder, names) for names in tables)


def find_images(folder: Path, expected: Sequence[str]) -> list[str]:
    """Find images that may be in another folder or format than expected; return one path for each expected path.

    The path returned is the first that exists of: the expected path, an image of the same name in another folder, an
    image whose name differs only in its suffix. If none exists, the expected path is returned.

    Folders whose name contains "mask" are skipped. Raise DatasetError if several images match an expected path, such as
    an original and a smaller copy. If several links lead to one image, the first link is returned.
    """
    paths: set[str] = set()
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        is_new = (real := os.path.realpath(place)) not in entered  # links may form a circle
        entered.add(real)
        folders[:] = sorted(name for name in folders if is_new and "mask" not in name.lower())
        relative = os.path.relpath(place, folder).replace(os.sep, "/")
        for file in sorted(files):
            path = file if relative == "." else f"{relative}/{file}"
            if (stem := without_suffix(file)) != file:
                paths.add(path)
                by_name.setdefault(file, []).append(path)
                by_stem.setdefault(stem, []).append(path)

    if not by_name:  # there are tables, but no images
        return [*expected]

    def find(path: str) -> str:
        if path in paths:
            return path
        name = path.rpartition("/")[2]
        found = by_name.get(name) or by_stem.get(without_suffix(name)) or [path]
        if len(found) > 1:  # links may lead to the same image
            found = [*{os.path.realpath(folder / each): each for each in reversed(found)}.values()][::-1]
        if len(found) > 1:
            raise DatasetError(
                f"Several images in {str(folder)!r} could be {path!r}: {listed(found)}. Expected one: move the others "
                "elsewhere, or state the path of each image in the table."
            )
        return found[0]

    return [find(path) for path in expected]


def without_suffix(path: str) -> str:
    """Return a path without an image's suffix, such as ".png"; a DICOM UID, such as "1.2.840.17", stays whole."""
    return re.sub(_SUFFIX, "", path)


def image_names(paths: pd.Series) -> pd.Series:
    """Return a unique name for each image: its path, without the suffix unless two names would then be equal."""
    names = paths.str.replace(_SUFFIX, "", regex=True)
    return names.where(~names.duplicated(keep=False), paths)


def mask_of_runs(runs: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of `size` (height, width) from lengths of runs of pixels, column by column.

    The first run is outside the mask, the second inside, and so on; pixels after the last one are outside. Raises
    ValueError if a run is negative, or their sum exceeds the number of pixels.
    """
    height, width = size
    if min(runs, default=0) < 0 or sum(runs) > height * width:
        raise ValueError(f"runs of {sum(runs):,} pixels")
    is_inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.pad(is_inside, (0, height * width - len(is_inside))).reshape(size, order="F")


def rows(
    index: pd.Index,
    path: Sequence[str],
    patient: Sequence[str] | None,
    study: Sequence[str] | None,
    labels: pd.DataFrame,
    *,
    view: Any = None,
    is_frontal: Any = True,
    sex: Any = None,
    age: Any = None,
    projection: Any = None,
    labels_by: Any = None,
) -> pd.DataFrame:
    """Make the table of a split that `Layout.read` returns; columns are sequences, or one value for all rows.

    Args:
        index: The row number of each radiograph in the file, for error messages; the header is row 1.
        path: Paths below the data set's folder, with "/".
        patient: Names of patients, unique in the data set. If None, each study counts as a patient.
        study: Names of studies, unique in the data set. If None, each image is a study, named like its path
            (see `image_names`).
        labels: One column per observation: 1, 0, -1 (uncertain), NaN (not stated).
        view: The number of the view in its study; if None, counted in the order of the rows.
        is_frontal: Whether the view is frontal.
        sex: "Male", "Female", "Unknown".
        age: Whole years; None where unknown.
        projection: "AP", "PA", or None.
        labels_by: The reference standard, such as "text-mined labels".

    Raises:
        DatasetError: If a path leads out of the folder.
    """
    paths = _texts(path, index)
    leads_out = pc.match_substring_regex(pa.array(paths, pa.string()), _OUT_OF_FOLDER).to_numpy(zero_copy_only=False)
    if leads_out.any():
        outside = [f"row {row} {text!r:.90}" for row, text in paths[leads_out].items()]
        raise DatasetError(f"{len(outside):,} image paths lead out of the data set: {listed(outside)}. Expected none.")
    studies = image_names(paths) if study is None else _texts(study, index)
    ages = pd.array([None] * len(index) if age is None else age, "Int32")
    patients = studies if patient is None else _texts(patient, index)
    table = pd.DataFrame({"path": paths, "patient": patients, "study": studies})
    table["view"] = (table.groupby("study", sort=False).cumcount() + 1 if view is None else view).astype(np.int32)
    table["is_frontal"], table["sex"], table["age"], table["projection"] = is_frontal, sex, ages, projection
    return pd.concat([table.assign(labels_by=labels_by), labels.set_axis(index).astype(np.float32)], axis=1)


def _texts(values: Sequence[str], index: pd.Index) -> pd.Series:
    return values.set_axis(index) if isinstance(values, pd.Series) else pd.Series(values, index=index, dtype="str")


def refuse_repeated(table: pd.DataFrame, file: Path, column: str) -> pd.DataFrame:
    """Return a table of radiographs unchanged; raise DatasetError if two of its rows have the same `path`.

    The message names the file that the table was read from, and its column of image paths.
    """
    repeated = table["path"][table["path"].duplicated()]
    if len(repeated):
        row, path = next(iter(repeated.items()))
        raise DatasetError(
            f"{file.name} row {row}: {column} is {path!r}, as in row {table.index[table['path'] == path][0]} already; "
            f"expected each radiograph once ({len(repeated):,} rows repeat an earlier one)."
        )
    return table
