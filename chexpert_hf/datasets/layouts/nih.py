"""NIH ChestX-ray14: `Data_Entry_2017*.csv`, the lists of its official split, and images anywhere in its folder.

Source: Wang et al. 2017, CVPR, and the files of https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import (
    Parser,
    expect_columns,
    findings,
    parse_cells,
    read_cells,
    refuse_cells,
)
from chexpert_hf.datasets.label_sets import LABEL_SETS
from chexpert_hf.datasets.layout import BOX_COLUMNS, MAX_AGE, Layout, find_images, find_table, rows, table_in

NIH = LABEL_SETS["nih"]
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_FILE, _FINDINGS, _PATIENT, _AGE, _VIEW = "Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"
_SEX = ("Patient Gender", "Patient Sex")  # in the first and in the later edition
_NO_FINDING, _BOXES = "No Finding", "BBox_List_2017.csv"


def _years(text: str) -> int:
    return int(text.rstrip("YMD")) // {"M": 12, "D": 365}.get(text[-1:], 1)


PARSERS: dict[str, Parser] = {
    # 16 rows of the first edition have ages above 120, up to 414; they are read as unknown.
    _AGE: (lambda text: age if (age := _years(text)) <= MAX_AGE else None, "whole years, or such as 058Y, 011M, 024D"),
    **dict.fromkeys(_SEX, (lambda text: {"M": "Male", "F": "Female"}[text], "M, F")),
    _VIEW: (lambda text: {"AP": "AP", "PA": "PA"}[text], "AP, PA"),
}


def _has_split(folder: Path, split: str) -> bool:
    return find_table(folder, TABLES) is not None and (split == "train" or (folder / _LISTS.get(split, "-")).is_file())


def read_entries(file: Path, further: Sequence[str] = ()) -> pd.DataFrame:
    """Read NIH's columns and those named `further` from a table, one row per radiograph, cells as text."""
    cells = read_cells(file, _FILE, [_FINDINGS, _PATIENT, _AGE, *_SEX, _VIEW, *further])
    expect_columns(cells, [_FILE, _FINDINGS, _PATIENT], [], file)
    refuse_cells(cells[_FILE].isna(), cells[_FILE], file, "the name of an image file")
    return cells


def split_table(cells: pd.DataFrame, file: Path, folder: Path, labels: pd.DataFrame, labels_by: str) -> pd.DataFrame:
    """Make the table of a split (see `layout.rows`); each image is a study, since NIH's tables do not group views.

    Args:
        cells: Those rows of `read_entries` that belong to the split.
        file: The file that `cells` were read from, for error messages.
        folder: The data set's folder, in which the images are found.
        labels: One row per row of `cells`, one column per observation.
        labels_by: The reference standard, such as "text-mined labels".
    """
    sex = next((name for name in _SEX if name in cells), _SEX[0])
    return rows(
        cells.index,
        find_images(folder, ("images/" + cells[_FILE]).tolist()),
        cells[_PATIENT].astype(str).str.zfill(8).tolist(),
        cells[_FILE].str.replace(r"\.[^.]*$", "", regex=True).tolist(),
        labels,
        sex=parse_cells(cells, sex, file, PARSERS),
        age=parse_cells(cells, _AGE, file, PARSERS),
        projection=parse_cells(cells, _VIEW, file, PARSERS),
        labels_by=labels_by,
    )


def _read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, TABLES)
    cells = read_entries(file)
    lists = {name: set(file.read_text("utf-8").split()) for name in _LISTS if (file := folder / _LISTS[name]).is_file()}
    if split in lists:
        cells = cells[cells[_FILE].isin(lists[split])]
    elif "test" in lists:  # the list of the other images is missing
        cells = cells[~cells[_FILE].isin(lists["test"])]
    labels = findings(cells[_FINDINGS], names, lambda text: text.split("|"), {*NIH.names, _NO_FINDING}, file)
    return split_table(cells, file, folder, labels, "text-mined labels")


def _boxes(folder: Path) -> pd.DataFrame | None:
    """Read `BBox_List_2017.csv`; None if it is missing.

    Columns are found by their position, not their name: the header has another number of commas than the rows.
    """
    file = find_table(folder, [_BOXES])
    if file is None:
        return None
    names = [*BOX_COLUMNS, *"abc"]
    boxes = pd.read_csv(file, skiprows=1, header=None, names=names, index_col=False)[[*BOX_COLUMNS]]
    boxes["path"] = find_images(folder, ("images/" + boxes["path"]).tolist())
    return boxes


NIH_LAYOUT = Layout(
    "nih",
    NIH,
    files=f"{' or '.join(TABLES)}, with {' and '.join(_LISTS.values())}",
    has_split=_has_split,
    read=_read,
    columns=lambda _: (*NIH.names, _NO_FINDING),
    implied_by={
        "Lung Lesion": ("Nodule", "Mass"),
        "Lung Opacity": ("Infiltration", "Consolidation", "Edema", "Pneumonia", "Atelectasis", "Nodule", "Mass"),
        "Pleural Other": ("Pleural_Thickening",),
    },
    patient_prefix="NIH",
    boxes=_boxes,
)
"""The 112,120 radiographs of 30,805 patients. If the lists of the split are missing, all are in the train split."""
