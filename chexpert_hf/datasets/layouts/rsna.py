"""RSNA Pneumonia Detection Challenge (stage 2): one row per box, DICOM files, no patients, sex or age.

Source: Shih et al. 2019, Radiology: Artificial Intelligence 1(1), e180041, and the challenge's files.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, parse_cells, read_cells
from chexpert_hf.datasets.layout import BOX_COLUMNS, Layout, find_images, find_table, only_train, rows, table_in
from chexpert_hf.labels import NEGATIVE, POSITIVE, LabelSet

_TABLES, _CLASSES = ["stage_2_train_labels.csv"], ["stage_2_detailed_class_info.csv"]
_IMAGE, _TARGET, _CLASS = "patientId", "Target", "class"
_OPACITY, _NORMAL = "Lung Opacity", "No Finding"
_CLASS_NAMES = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")

LABELS = LabelSet(
    (_OPACITY, _NORMAL),
    none_of_these=_NORMAL,
    definitions={_OPACITY: "An opacity that is suspicious for pneumonia."},
)

_PARSERS: dict[str, Parser] = {
    _TARGET: (lambda text: {"0": NEGATIVE, "1": POSITIVE}[text], "0, 1"),
    _CLASS: (lambda text: float(_CLASS_NAMES.index(text) == 0), ", ".join(_CLASS_NAMES)),
}


def _per_image(file: Path, column: str) -> pd.Series:
    """Return the highest value of a column for each image (the index), in the order of the file."""
    cells = read_cells(file, _IMAGE, [column])
    expect_columns(cells, [_IMAGE, column], [], file)
    return pd.Series(parse_cells(cells, column, file, _PARSERS).astype(float)).groupby(
        cells[_IMAGE].to_numpy(), sort=False
    ).max()  # fmt: skip


def _read(folder: Path, _split: str, names: Sequence[str]) -> pd.DataFrame:
    labels = {_OPACITY: _per_image(table_in(folder, _TABLES), _TARGET)}
    images = labels[_OPACITY].index
    if _NORMAL in names:
        labels[_NORMAL] = _per_image(table_in(folder, _CLASSES), _CLASS).reindex(images)
    return rows(
        pd.RangeIndex(2, len(images) + 2),
        find_images(folder, ("stage_2_train_images/" + images + ".dcm").tolist()),
        None,
        images,
        pd.DataFrame({name: labels[name] for name in names}),
        labels_by="one to three radiologists",
    )


def _boxes(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(table_in(folder, _TABLES)).dropna(subset="x")
    paths = find_images(folder, ("stage_2_train_images/" + table[_IMAGE] + ".dcm").tolist())
    return table.assign(path=paths, observation=_OPACITY)[[*BOX_COLUMNS]]


RSNA_LAYOUT = Layout(
    "rsna",
    lambda folder: LABELS if find_table(folder, _CLASSES) else LABELS.among([_OPACITY]),
    files=f"{_TABLES[0]}, with {_CLASSES[0]}",
    has_split=only_train(_TABLES),
    read=_read,
    boxes=_boxes,
)
"""The 26,684 radiographs of the challenge, which are NIH's under other names; "patientId" is the name of an image."""
