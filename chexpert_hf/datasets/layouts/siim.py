"""SIIM-ACR Pneumothorax Segmentation: run lengths of masks ("-1" for none), and DICOM files in any folder.

Source: the challenge's files, and Filice et al. 2020, Journal of Digital Imaging 33, 490-496.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexpert_hf.datasets.cells import bad_cell, expect_columns, read_cells, refuse_cells
from chexpert_hf.datasets.layout import Layout, Masks, find_images, mask_of_runs, only_train, rows, table_in
from chexpert_hf.labels import LabelSet

_TABLES = ("train-rle.csv", "siim-pneumothorax-train-rle.csv", "stage_2_train.csv")
_IMAGE = "ImageId"
_MASK = "EncodedPixels"
_LABEL = "Pneumothorax"
_SIZE = (1024, 1024)  # of all images of the challenge


def _cells(folder: Path) -> tuple[pd.DataFrame, pd.Series]:
    """Read the data set's table: its cells, and for each row whether it has a mask. An image may have several rows."""
    file = table_in(folder, _TABLES)
    cells = read_cells(file, _IMAGE, [_MASK])
    expect_columns(cells, [_IMAGE, _MASK], [], file)
    refuse_cells(cells[_MASK].isna(), cells[_MASK], file, "run lengths or -1")
    codes = cells[_MASK].cat
    is_none = np.array([text.strip() == "-1" for text in codes.categories])
    return cells, pd.Series(~is_none[codes.codes], index=cells.index)


def _paths(folder: Path, images: pd.Index) -> list[str]:
    return find_images(folder, (images + ".dcm").tolist())


def _read(folder: Path, _split: str, _names: Sequence[str]) -> pd.DataFrame:
    cells, has_mask = _cells(folder)
    images = has_mask.groupby(cells[_IMAGE].to_numpy(), sort=False).max().astype(float)
    return rows(
        pd.RangeIndex(2, len(images) + 2),
        _paths(folder, images.index),
        None,
        images.index,
        pd.DataFrame({_LABEL: images}),
        labels_by="radiologists",
    )


def _masks(folder: Path) -> Masks:
    cells, has_mask = _cells(folder)
    drawn = cells[has_mask]
    masks: dict[str, dict[int, str]] = defaultdict(dict)
    for path, row, text in zip(_paths(folder, pd.Index(drawn[_IMAGE])), drawn.index, drawn[_MASK], strict=True):
        masks[path][row] = text
    file = table_in(folder, _TABLES)
    return {path: {_LABEL: partial(_decoded, texts, file)} for path, texts in masks.items()}


def _decoded(texts: Mapping[int, str], file: Path) -> NDArray[np.bool_]:
    """Decode the masks in some rows of the table, and return their union `(height, width)`.

    `texts` is row number -> run lengths as in the file (see `mask_of_runs`). The row numbers and `file` are for errors.
    """
    mask = np.zeros(_SIZE, dtype=bool)
    for row, text in texts.items():
        try:
            one = mask_of_runs([int(number) for number in text.split()], _SIZE)
        except ValueError:
            one = np.zeros(_SIZE, dtype=bool)
        if not one.any():
            raise bad_cell(file, row, _MASK, text, "distances and lengths of runs in 1,024 x 1,024 pixels") from None
        mask |= one
    return mask


SIIM_LAYOUT = Layout(
    "siim",
    LabelSet((_LABEL,)),
    files=" or ".join(_TABLES),
    has_split=only_train(_TABLES),
    read=_read,
    masks=_masks,
)
"""The 12,047 radiographs of the challenge, which are NIH's under other names."""
