"""A layout: how the files of a data set are named, and how one of its splits is read.

A further layout is one file in `layouts/` and its entry in `sources.LAYOUTS`, or a `Layout` of one's own that is
passed to `load_dataset`.
"""

import os
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
"""The facts of a radiograph besides its labels."""

BOX_SIDES = ("x", "y", "width", "height")  # in pixels of the image as it is stored
BOX_COLUMNS = ("path", "observation", *BOX_SIDES)

Masks: TypeAlias = Mapping[str, Mapping[str, Callable[[], NDArray[np.bool_]]]]
"""Path -> observation -> a function that decodes its mask `(height, width)`; images without one do not have it."""

MAX_AGE = 120
FRONTAL_PROJECTIONS = ("AP", "PA")

_SUFFIX = r"\.[^./]*$"
_OUT_OF_FOLDER = r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)"  # an absolute path, or one with ".."


@dataclass(frozen=True)
class Layout:
    """The file layout of a data set: the names of its files, and functions that read its splits.

    `read(folder, split, names)` gives one row per radiograph, in the order of the files: the columns of `rows`, then
    one float32 column per name: 1, 0, -1 (uncertain), NaN (not stated). It raises DatasetError where a file has
    something else than the layout defines.
    """

    name: str
    labels: LabelSet | Callable[[Path], LabelSet]  # the observations that are loaded by default, of a folder if need be
    files: str  # what is looked for, in words
    has_split: Callable[[Path, str], bool]  # whether a folder has the table of a split
    read: Callable[[Path, str, Sequence[str]], pd.DataFrame]
    columns: Callable[[Path], Sequence[str]] | None = None  # names that can be read from a folder; of `labels` if None
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label of another label set -> labels here that imply it: it is positive if any of them is positive."""
    patients: str | None = None  # whose ids they are, where several data sets share patients; the folder's if None
    boxes: Callable[[Path], pd.DataFrame | None] | None = None
    """Reads the boxes that readers drew, None where a folder has no file of them, with the columns `BOX_COLUMNS`."""
    masks: Callable[[Path], Masks] | None = None  # reads the masks that readers drew
    for_file: Callable[[str], "Layout"] | None = None  # makes the layout of one table, where its name is not fixed

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds a data set in this layout."""
        return any(self.has_split(folder, split) for split in SPLITS)

    def labels_in(self, folder: Path) -> LabelSet:
        """The observations that are loaded from a folder by default."""
        return self.labels if isinstance(self.labels, LabelSet) else self.labels(folder)

    def names_in(self, folder: Path) -> Sequence[str]:
        """The names of all observations with labels in a folder, including any that are not loaded by default."""
        return self.labels_in(folder).names if self.columns is None else self.columns(folder)


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some files that is there, as it is or gzipped. A link to a file that is not there is an error."""
    for file in (folder / (name + end) for name in names for end in ("", ".gz")):
        if file.is_file():
            return file
        if file.is_symlink() and not file.exists():
            raise DatasetError(f"{file} cannot be read. {why_missing(file)}")
    return None


def table_in(folder: Path, names: Sequence[str]) -> Path:
    """The first of some files that is there, as `find_table`; an error if there is none."""
    if file := find_table(folder, names):
        return file
    raise DatasetError(f"No table of a data set in {str(folder)!r}; looked for {', '.join(names)}. Add it.")


def only_train(*tables: Sequence[str]) -> Callable[[Path, str], bool]:
    """Makes `has_split` for a data set without splits: only train exists, if each table has one of its names."""
    return lambda folder, split: split == "train" and all(find_table(folder, names) for names in tables)


def find_images(folder: Path, expected: Sequence[str]) -> list[str]:
    """The paths of image files that may be anywhere below a folder, or in another format.

    Each is the expected path if that is there, else a file of that name, else an image of that name with another
    suffix, else the expected path after all. Folders of masks are passed by.
    """
    paths: set[str] = set()
    by_name: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        is_new = (real := os.path.realpath(place)) not in entered  # links may lead in a circle
        entered.add(real)
        folders[:] = sorted(name for name in folders if is_new and "mask" not in name.lower())
        relative = os.path.relpath(place, folder).replace(os.sep, "/")
        for file in files:
            path = file if relative == "." else f"{relative}/{file}"
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in IMAGE_SUFFIXES:
                paths.add(path)
                by_name.setdefault(file, path)
                by_stem.setdefault(stem, path)

    if not by_name:  # the tables alone, as for labels without images
        return [*expected]

    def find(path: str) -> str:
        name = path.rpartition("/")[2]
        return path if path in paths else by_name.get(name) or by_stem.get(os.path.splitext(name)[0]) or path

    return [find(path) for path in expected]


def mask_of_runs(runs: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of `size` (height, width) from lengths of runs outside and inside of it in turn, down the columns.

    Pixels after the last run are outside. Raises ValueError for runs that no mask of this size has.
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
    """The table of a split, with the columns that `Layout.read` returns; each is a sequence, or one value for all.

    Args:
        index: The rows in the file, for errors; the header is row 1.
        path: Below the data set's folder, with "/".
        patient: A name that no other patient has; None where the tables name no patients: each study counts as one.
        study: A name that no other study has; None where the tables do not group images: each is one, by its path.
        labels: One column per observation: 1, 0, -1 (uncertain), NaN (not stated).
        view: The number of the view in its study; counted in the order of the rows if None.
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
    studies = paths.str.replace(_SUFFIX, "", regex=True) if study is None else _texts(study, index)
    ages = pd.array([None] * len(index) if age is None else age, "Int32")
    patients = studies if patient is None else _texts(patient, index)
    table = pd.DataFrame({"path": paths, "patient": patients, "study": studies})
    table["view"] = (table.groupby("study", sort=False).cumcount() + 1 if view is None else view).astype(np.int32)
    table["is_frontal"], table["sex"], table["age"], table["projection"] = is_frontal, sex, ages, projection
    return pd.concat([table.assign(labels_by=labels_by), labels.set_axis(index).astype(np.float32)], axis=1)


def _texts(values: Sequence[str], index: pd.Index) -> pd.Series:
    return values.set_axis(index) if isinstance(values, pd.Series) else pd.Series(values, index=index, dtype="str")


def refuse_repeated(table: pd.DataFrame, file: Path, column: str) -> pd.DataFrame:
    """Returns a table of `rows` in which each radiograph stands once; raises DatasetError if it is not so."""
    repeated = table["path"][table["path"].duplicated()]
    if len(repeated):
        row, path = next(iter(repeated.items()))
        raise DatasetError(
            f"{file.name} row {row}: {column} is {path!r}, as in row {table.index[table['path'] == path][0]} already; "
            f"expected each radiograph once ({len(repeated):,} rows repeat an earlier one)."
        )
    return table
