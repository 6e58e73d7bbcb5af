"""Hugging Face's imagefolder: the folder of an image is its label, as in `Normal/a.png` or `train/Normal/a.png`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import SPLIT_NAMES, SPLIT_OF
from chexpert_hf.datasets.layout import IMAGE_SUFFIXES, Layout, rows
from chexpert_hf.labels import LabelSet

_MIN_CLASSES = 2


def _entries(folder: Path, *, is_folder: bool) -> list[str]:
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.is_dir() == is_folder and not entry.name.startswith(".")]
    return sorted(found)


def _images(folder: Path) -> list[str]:
    if "mask" in folder.name.lower():  # beside images, not a class of them
        return []
    return [name for name in _entries(folder, is_folder=False) if Path(name).suffix.lower() in IMAGE_SUFFIXES]


def _place(folder: Path, split: str) -> str | None:
    """Return a split's folder: "train/", or "" for train if no split has a folder; None if the split is missing."""
    has_splits = [name for name in SPLIT_OF if (folder / name).is_dir()]
    if not has_splits:
        return "" if split == "train" else None
    return next((f"{name}/" for name in SPLIT_NAMES[split] if name in has_splits), None)


def _classes(folder: Path, split: str) -> Mapping[str, list[str]]:
    """Return class -> names of its images, in a split; empty if there are fewer than two classes."""
    place = _place(folder, split)
    if place is None:
        return {}
    images = {name: _images(folder / place / name) for name in _entries(folder / place, is_folder=True)}
    found = {name: files for name, files in images.items() if files}
    return found if len(found) >= _MIN_CLASSES else {}


def _labels(folder: Path) -> LabelSet:
    return LabelSet(tuple(sorted({name for split in SPLIT_NAMES for name in _classes(folder, split)})))


def _read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    files = [(name, file) for name, files in _classes(folder, split).items() for file in files]
    classes = pd.Series([name for name, _ in files], index=pd.RangeIndex(1, len(files) + 1))
    return rows(
        classes.index,
        [f"{_place(folder, split)}{name}/{file}" for name, file in files],
        None,
        None,
        pd.DataFrame({name: (classes == name).astype(float) for name in names}),
    )


IMAGE_FOLDER_LAYOUT = Layout(
    "imagefolder",
    _labels,
    files="two or more class folders of images, optionally within train, valid and test",
    has_split=lambda folder, split: bool(_classes(folder, split)),
    read=_read,
)
"""Folders of images by class. This layout is recognised only where no table is found."""
