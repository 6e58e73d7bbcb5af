"""A layout: how the files of a data set are named, and how one of its splits is read.

A further layout is one file in `layouts/` and its line in `loading.LAYOUTS`, or a `Layout` of one's own that is passed
to `load_dataset`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.labels import LabelSet
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

MAX_AGE = 120
FRONTAL_PROJECTIONS = ("AP", "PA")


@dataclass(frozen=True)
class Layout:
    """A way in which data sets come. Nothing outside of this package knows one.

    `read(folder, split, names)` gives one row per radiograph, in the order of the files: the columns of `rows`, then
    one float32 column per name: 1, 0, -1 (uncertain), NaN (not stated). It raises DatasetError where a file has
    something else than the layout defines.
    """

    name: str
    labels: LabelSet  # the observations that are loaded by default
    files: str  # what is looked for, in words
    has_split: Callable[[Path, str], bool]  # whether a folder has the table of a split
    read: Callable[[Path, str, Sequence[str]], pd.DataFrame]
    columns: Callable[[Path], Sequence[str]] | None = None  # names that can be read from a folder; of `labels` if None
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of other label sets and the labels here that together answer for them: one positive, and it is positive."""
    patients: str | None = None  # whose ids they are, where several data sets share patients; the folder's if None

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds a data set in this layout."""
        return any(self.has_split(folder, split) for split in SPLITS)

    def names_in(self, folder: Path) -> Sequence[str]:
        """The names of labels that can be read from a folder."""
        return self.labels.names if self.columns is None else self.columns(folder)


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of some files that is there, as it is or gzipped. A link to a file that is not there is an error."""
    for file in (folder / (name + end) for name in names for end in ("", ".gz")):
        if file.is_file():
            return file
        if file.is_symlink() and not file.exists():
            raise DatasetError(f"{file} cannot be read. {why_missing(file)}")
    return None


def find_images(folder: Path, names: Sequence[str], expected_in: str) -> list[str]:
    """The paths of image files below a folder by their names; in `expected_in` where they are not there."""
    found: dict[str, str] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        relative = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        for file in files:
            found.setdefault(file, prefix + file)
    return [found.get(name, f"{expected_in}/{name}") for name in names]


def rows(
    index: pd.Index,
    path: Sequence[str],
    patient: Sequence[str],
    study: Sequence[str],
    labels: pd.DataFrame,
    *,
    view: Any = 1,
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
        patient: A name that no other patient has.
        study: A name that no other study has.
        labels: One column per observation: 1, 0, -1 (uncertain), NaN (not stated).
        view: The number of the view in its study.
        is_frontal: Whether the view is frontal.
        sex: "Male", "Female", "Unknown".
        age: Whole years; None where unknown.
        projection: "AP", "PA", or None.
        labels_by: The reference standard, such as "text-mined labels".
    """
    ages = pd.array([None] * len(index) if age is None else list(age), "Int32")
    table = pd.DataFrame(
        {"path": path, "patient": patient, "study": study, "view": view, "is_frontal": is_frontal, "sex": sex},
        index=index,
    )
    table["age"], table["projection"], table["labels_by"] = ages, projection, labels_by
    table["view"] = table["view"].astype(np.int32)
    return pd.concat([table, labels.set_axis(index).astype(np.float32)], axis=1)
