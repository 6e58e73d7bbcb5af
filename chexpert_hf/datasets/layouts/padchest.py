"""PadChest: its table of 160,861 radiographs; images lie anywhere below the data set's folder, such as in 0/ to 54/.

Source: Bustos et al. 2020, arXiv:1901.07441, and the files of https://bimcv.cipf.es/bimcv-projects/padchest/.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, findings, parse_cells, parse_number, read_cells
from chexpert_hf.datasets.label_sets import LABEL_SETS
from chexpert_hf.datasets.layout import FRONTAL_PROJECTIONS, Layout, find_images, only_train, rows, table_in
from chexpert_hf.files import data_beside

TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "PADCHEST_chest_x_ray_images_labels_160K.csv")
_IMAGE, _FOLDER, _PATIENT, _STUDY = "ImageID", "ImageDir", "PatientID", "StudyID"
_DATE, _BIRTH, _SEX, _VIEW = "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "Projection"
_LABELS, _METHOD = "Labels", "MethodLabel"

_NO_FINDINGS = frozenset({"", "exclude", "unchanged", "suboptimal study"})
"""Labels about the report or the image's quality. A report without any other label states nothing."""

_DATA = data_beside(__file__)
PADCHEST = LABEL_SETS["padchest"]
NAMES = (*PADCHEST.names, *_DATA["further_names"])
"""All labels of the table: the 36 of the label set, then the others, most frequent first."""

_PARSERS: dict[str, Parser] = {
    _DATE: (lambda text: int(text[:4]), "YYYYMMDD"),
    _BIRTH: (lambda text: int(parse_number(text)), "a year"),
    _SEX: (lambda text: {"M": "Male", "F": "Female", "O": "Unknown"}[text], "M, F, O"),
    # Laterals, views of the ribs (COSTAL), and images that are no radiograph of the chest or of no known projection.
    _VIEW: (lambda text: {"L": None, "COSTAL": None, "EXCLUDE": None, "UNK": None}.get(text, text[:2]), "a projection"),
    _METHOD: (
        lambda text: {"Physician": "physicians", "RNN_model": "text-mined labels"}[text],
        "Physician, RNN_model",
    ),
}


def _split_labels(text: str) -> Collection[str] | None:
    """Return the labels in a cell such as "['cardiomegaly', ' scoliosis']"; None if it states nothing."""
    return {name.strip() for name in re.findall(r"'([^']*)'", text)} - _NO_FINDINGS or None


def _read(folder: Path, _split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, TABLES)
    columns = [_FOLDER, _PATIENT, _STUDY, _DATE, _BIRTH, _SEX, _VIEW, _LABELS, _METHOD]
    cells = read_cells(file, _IMAGE, columns)
    expect_columns(cells, [_IMAGE, _PATIENT, _STUDY, _VIEW, _LABELS], [], file)
    projection = parse_cells(cells, _VIEW, file, _PARSERS)
    study_year, birth_year = (pd.array(parse_cells(cells, name, file, _PARSERS), "Int32") for name in (_DATE, _BIRTH))
    folders = cells[_FOLDER].astype(str) + "/" if _FOLDER in cells else ""
    return rows(
        cells.index,
        find_images(folder, (folders + cells[_IMAGE]).tolist()),
        cells[_PATIENT].astype(str),
        cells[_PATIENT].astype(str) + "/" + cells[_STUDY].astype(str),
        findings(cells[_LABELS], names, _split_labels, NAMES, file),
        is_frontal=pd.Series(projection).isin(FRONTAL_PROJECTIONS).to_numpy(),
        sex=parse_cells(cells, _SEX, file, _PARSERS),
        age=study_year - birth_year,
        projection=projection,
        labels_by=parse_cells(cells, _METHOD, file, _PARSERS),
    )


PADCHEST_LAYOUT = Layout(
    "padchest",
    PADCHEST,
    files=" or ".join(TABLES),
    has_split=only_train(TABLES),
    read=_read,
    columns=lambda _: NAMES,
    implied_by=_DATA["implied_by"],
)
"""The 160,861 radiographs of 67,625 patients, all of them in the train split."""
