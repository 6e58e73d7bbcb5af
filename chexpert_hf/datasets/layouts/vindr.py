"""VinDr-CXR: PhysioNet's edition with 28 labels, and that of Kaggle's VinBigData challenge with 15.

Source: Nguyen et al. 2022, Scientific Data 9, 429, the files of https://physionet.org/content/vindr-cxr/, and those of
https://www.kaggle.com/competitions/vinbigdata-chest-xray-abnormalities-detection.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, header_of, parse_cells, read_cells
from chexpert_hf.datasets.label_sets import LABEL_SETS
from chexpert_hf.datasets.layout import Layout, find_images, find_table, rows, table_in
from chexpert_hf.labels import LabelSet

VINDR, KAGGLE_LABELS = LABEL_SETS["vindr"], LABEL_SETS["vinbigdata"]
_IMAGE, _READER, _CLASS = "image_id", "rad_id", "class_name"
_FILES = {split: (f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv") for split in ("train", "test")}
_KAGGLE_FILES = ["train.csv"]
_BOX_FILES = {
    "train": ("annotations/annotations_train.csv", "annotations_train.csv", *_KAGGLE_FILES),
    "test": ("annotations/annotations_test.csv", "annotations_test.csv"),
}
_OTHER, _OTHERS = "Other disease", "Other diseases"  # one split has the plural

_CLASSES: dict[str, Parser] = {
    _CLASS: (lambda text: KAGGLE_LABELS.names[KAGGLE_LABELS.names.index(text)], ", ".join(KAGGLE_LABELS.names))
}


def _votes(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the votes for each finding, in [0, 1], with one row per image and one column per finding.

    In train, a vote is the share of the image's readers who report the finding. In test, it is their consensus, 0 or 1.
    """
    file = table_in(folder, _FILES[split])
    cells = read_cells(file, _IMAGE, [*names, _OTHER, _OTHERS])
    if _OTHER not in cells:
        cells = cells.rename(columns={_OTHERS: _OTHER})
    expect_columns(cells, [_IMAGE], names, file)
    stated = pd.DataFrame({name: parse_cells(cells, name, file, {}) for name in names}, dtype=float)
    return stated.groupby(cells[_IMAGE].to_numpy(), sort=False).mean()


def _kaggle_votes(folder: Path, _split: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the share of an image's readers who report a finding: one row per image, one column per finding.

    In Kaggle's table, each row is one box of one reader. A reader who drew no box in an image has one row for that
    image, with the class "No finding".
    """
    file = table_in(folder, _KAGGLE_FILES)
    cells = read_cells(file, _IMAGE, [_CLASS, _READER])
    expect_columns(cells, [_IMAGE, _CLASS, _READER], [], file)
    stated = pd.DataFrame({"image": cells[_IMAGE], "reader": cells[_READER].astype(str)})
    stated["class"] = parse_cells(cells, _CLASS, file, _CLASSES)
    num_readers = stated.groupby("image", sort=False)["reader"].nunique()
    stated = stated.drop_duplicates()
    counts = pd.crosstab(stated["image"], stated["class"])
    return counts.reindex(index=num_readers.index, columns=list(names), fill_value=0).div(num_readers, axis=0)


def _boxes(folder: Path) -> pd.DataFrame | None:
    """Read the boxes of all readers, converting two corners to a corner and a size; None if no table has boxes."""
    tables = {split: find_table(folder, names) for split, names in _BOX_FILES.items()}
    has_boxes = {split: file for split, file in tables.items() if file is not None and "x_min" in header_of(file)}
    found = [_boxes_in(folder, file, split) for split, file in has_boxes.items()]
    return pd.concat(found) if found else None


def _boxes_in(folder: Path, file: Path, split: str) -> pd.DataFrame:
    table = pd.read_csv(file).dropna(subset="x_min")
    return pd.DataFrame(
        {
            "path": find_images(folder, (f"{split}/" + table[_IMAGE] + ".dicom").tolist()),
            "observation": table[_CLASS],
            "x": table["x_min"],
            "y": table["y_min"],
            "width": table["x_max"] - table["x_min"],
            "height": table["y_max"] - table["y_min"],
        }
    )


def _layout(
    name: str, labels: LabelSet, files: str, votes: Callable[..., pd.DataFrame], is_majority: bool = True
) -> Layout:
    is_kaggle = votes is _kaggle_votes

    def has_split(folder: Path, split: str) -> bool:
        if not is_kaggle:
            return split in _FILES and find_table(folder, _FILES[split]) is not None
        file = find_table(folder, _KAGGLE_FILES) if split == "train" else None
        return file is not None and {_IMAGE, _CLASS, _READER} <= {*header_of(file)}

    def read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
        share = votes(folder, split, names)
        by = {"train": "majority of three radiologists" if is_majority else "share of three radiologists"}
        return rows(
            pd.RangeIndex(2, len(share) + 2),
            find_images(folder, (f"{split}/" + share.index + ".dicom").tolist()),
            None,
            share.index,
            (share > 0.5).astype(float).where(share.notna()) if is_majority else share,
            labels_by=by.get(split, "consensus of radiologists"),
        )

    implied_by: dict[str, Sequence[str]] = {"Pleural Other": ("Pleural thickening",)}
    if not is_kaggle:
        implied_by["Lung Lesion"] = ("Nodule/Mass", "Lung tumor")
    return Layout(name, labels, files=files, has_split=has_split, read=read, implied_by=implied_by, boxes=_boxes)


_PHYSIONET_FILES = f"{_FILES['train'][0]} and {_FILES['test'][0]}"
VINDR_LAYOUT = _layout("vindr", VINDR, _PHYSIONET_FILES, _votes)
"""15,000 radiographs in train, labelled by the majority of their three readers; 3,000 in test, by consensus."""

VINDR_VOTES_LAYOUT = _layout("vindr-votes", VINDR, _PHYSIONET_FILES, _votes, is_majority=False)
"""VinDr's radiographs with the share of the readers as label: 0, 1/3, 2/3, 1. Metrics take the majority."""

VINBIGDATA_LAYOUT = _layout("vinbigdata", KAGGLE_LABELS, f"{_KAGGLE_FILES[0]} with {_CLASS}", _kaggle_votes)
"""Kaggle's edition of the 15,000 radiographs in train."""
