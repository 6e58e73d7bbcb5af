"""A layout: how the files of a data set are named, and how one of its splits is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from chexpert_hf.labels import LabelSet

SPLITS = ("train", "valid", "test")

COLUMNS = ("path", "patient", "study", "view", "sex", "age", "projection", "is_frontal")
"""The facts of a radiograph besides its labels."""


@dataclass(frozen=True)
class Layout:
    """A way in which data sets come. Nothing outside of this package knows one.

    `read(folder, split, observations)` gives one row per radiograph, in the order of the files: `path` (below the
    folder, with "/"), `patient`, `study`, `view` (1, 2, ...), `is_frontal`, `sex`, `age` (years, NA where unknown),
    `projection` ("AP", "PA", None), then one float32 column per observation: 1, 0, -1 (uncertain), NaN (not stated).
    It raises DatasetError where a file has something else than the layout defines.
    """

    name: str
    labels: LabelSet  # the observations that its files have
    files: str  # what is looked for, in words
    has_split: Callable[[Path, str], bool]  # whether a folder has the table of a split
    read: Callable[[Path, str, Sequence[str]], pd.DataFrame]

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds a data set in this layout."""
        return any(self.has_split(folder, split) for split in SPLITS)
