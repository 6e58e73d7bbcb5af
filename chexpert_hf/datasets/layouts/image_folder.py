"""Hugging Face's imagefolder: the folder of an image is its label, as in `Normal/a.png` or `train/Normal/a.png`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import SPLIT_NAMES, SPLIT_OF, DatasetError
from chexpert_hf.datasets.layout import IMAGE_SUFFIXES, Layout, rows
from chexpert_hf.labels import LabelSet

_MIN_CLASSES = 2
_FILES_OF_MODELS = ("recipe.yaml", "config.json")  # the output folder of a training also has an image, its curve


def _entries(folder: Path, *, is_folder: bool) -> list[str]:
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.is_dir() == is_folder and not entry.name.startswith(".")]
    return sorted(found)


def _folders(folder: Path) -> list[str]:
    """Return the names of the subfolders that may be classes.

    Subfolders with "mask" in the name, and those that hold a trained model, are left out.
    """
    names = [name for name in _entries(folder, is_folder=True) if "mask" not in name.lower()]
    return [name for name in names if not any((folder / name / file).is_file() for file in _FILES_OF_MODELS)]


def _images(folder: Path) -> list[str]:
    return [name for name in _entries(folder, is_folder=False) if Path(name).suffix.lower() in IMAGE_SUFFIXES]


def _split_folder(folder: Path, split: str) -> str | None:
    """Return the folder of a split, such as "train/"; None if it is missing.

    Without folders for splits, all images are training data: "" for train, None for the others.
    """
    folders = {name.lower(): name for name in _entries(folder, is_folder=True)}
    if folders.keys().isdisjoint(SPLIT_OF):
        return "" if split == "train" else None
    return next((f"{folders[name]}/" for name in SPLIT_NAMES[split] if name in folders), None)


def _classes(folder: Path, split: str) -> Mapping[str, list[str]]:
    """Return class -> file names of its images in `split`; {} if no split of the data set has two or more classes."""
    found: dict[str, Mapping[str, list[str]]] = {}
    for each in SPLIT_NAMES:
        if (place := _split_folder(folder, each)) is not None:
            images = {name: _images(folder / place / name) for name in _folders(folder / place)}
            found[each] = {name: files for name, files in images.items() if files}
    return found.get(split, {}) if max(map(len, found.values()), default=0) >= _MIN_CLASSES else {}


def _refuse_nested(folder: Path) -> None:
    """Raise DatasetError if images lie in subfolders of a class's folder: they would be left out."""
    for name in _folders(folder):
        for place, below, _ in os.walk(folder / name):
            below[:] = _folders(Path(place))
            if Path(place) != folder / name and (images := _images(Path(place))):
                raise DatasetError(
                    f"{Path(place) / images[0]} is in a folder below that of its class, {name}. Put all images of a "
                    "class directly into its folder, or name them in a CSV file."
                )


def _labels(folder: Path) -> LabelSet:
    return LabelSet(tuple(sorted({name for split in SPLIT_NAMES for name in _classes(folder, split)})))


def _read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    place = _split_folder(folder, split) or ""
    _refuse_nested(folder / place)
    files = [(name, file) for name, files in _classes(folder, split).items() for file in files]
    classes = pd.Series([name for name, _ in files], index=pd.RangeIndex(1, len(files) + 1))
    return rows(
        classes.index,
        [f"{place}{name}/{file}" for name, file in files],
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
