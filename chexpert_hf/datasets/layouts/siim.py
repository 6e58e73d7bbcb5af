"""SIIM-ACR Pneumothorax Segmentation: run lengths of masks, "-1" where there is none, and DICOM files in any folder.

Source: the challenge's files, and Filice et al. 2020, Journal of Digital Imaging 33, 490-496.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import expect_columns, read_cells, refuse_cells
from chexpert_hf.datasets.layout import Layout, find_images, only_train, rows, table_in
from chexpert_hf.labels import LabelSet

_TABLES = ("train-rle.csv", "siim-pneumothorax-train-rle.csv", "stage_2_train.csv")
_IMAGE = "ImageId"
_MASK = "EncodedPixels"
_LABEL = "Pneumothorax"


def _read(folder: Path, _split: str, _names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, _TABLES)
    cells = read_cells(file, _IMAGE, [_MASK])
    expect_columns(cells, [_IMAGE, _MASK], [], file)
    refuse_cells(cells[_MASK].isna(), cells[_MASK], file, "run lengths or -1")
    codes = cells[_MASK].cat
    is_none = [text.strip() == "-1" for text in codes.categories]
    has_mask = pd.Series(~pd.Series(is_none).to_numpy()[codes.codes])
    images = has_mask.groupby(cells[_IMAGE].to_numpy(), sort=False).max().astype(float)
    return rows(
        pd.RangeIndex(2, len(images) + 2),
        find_images(folder, (images.index + ".dcm").tolist()),
        None,
        images.index,
        pd.DataFrame({_LABEL: images}),
        labels_by="radiologists",
    )


SIIM_LAYOUT = Layout(
    "siim",
    LabelSet((_LABEL,)),
    files=" or ".join(_TABLES),
    has_split=only_train(_TABLES),
    read=_read,
)
"""The 12,047 radiographs of the challenge, which are NIH's under other names."""
