"""MIMIC-CXR-JPG 2.x: its tables of metadata, labels and splits, and images below `files/`.

Source: Johnson et al. 2019, arXiv:1901.07042, and the files of https://physionet.org/content/mimic-cxr-jpg/.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, parse_cells, read_cells, refuse_cells
from chexpert_hf.datasets.layout import FRONTAL_PROJECTIONS, Layout, find_table, rows, table_in
from chexpert_hf.labels import CHEXPERT

_METADATA, _SPLITS = ["mimic-cxr-2.0.0-metadata.csv"], ["mimic-cxr-2.0.0-split.csv"]
_CHEXPERT, _NEGBIO = "mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.0.0-negbio.csv"
_IMAGE, _PATIENT, _STUDY, _VIEW, _SPLIT = "dicom_id", "subject_id", "study_id", "ViewPosition", "split"

_PARSERS: dict[str, Parser] = {
    # Only AP and PA count as frontal; laterals, oblique views and the 4 % without a position do not.
    _VIEW: (lambda text: text if text in FRONTAL_PROJECTIONS else None, "a position"),
    _SPLIT: (lambda text: {"train": "train", "validate": "valid", "test": "test"}[text], "train, validate, test"),
}


def _has_split(labels: Sequence[str], folder: Path, _split: str) -> bool:
    return all(find_table(folder, names) for names in (_METADATA, _SPLITS, labels))


def _read(label_files: Sequence[str], folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, _METADATA)
    cells = read_cells(file, _IMAGE, [_PATIENT, _STUDY, _VIEW])
    expect_columns(cells, [_IMAGE, _PATIENT, _STUDY, _VIEW], [], file)
    cells = cells[_splits(folder).reindex(cells[_IMAGE]).to_numpy() == split]
    patients, studies = cells[_PATIENT].astype(str), cells[_STUDY].astype(str)
    projection = parse_cells(cells, _VIEW, file, _PARSERS)
    return rows(
        cells.index,
        "files/p" + patients.str[:2] + "/p" + patients + "/s" + studies + "/" + cells[_IMAGE] + ".jpg",
        patients,
        patients + "/" + studies,
        _labels(table_in(folder, label_files), names).reindex(patients + "/" + studies),
        is_frontal=pd.notna(projection),
        projection=projection,
        labels_by="text-mined labels",
    )


def _splits(folder: Path) -> pd.Series:
    """Return the split of each image; the index is its `dicom_id`."""
    file = table_in(folder, _SPLITS)
    cells = read_cells(file, _IMAGE, [_SPLIT])
    expect_columns(cells, [_IMAGE, _SPLIT], [], file)
    return pd.Series(parse_cells(cells, _SPLIT, file, _PARSERS), index=cells[_IMAGE])


def _labels(file: Path, names: Sequence[str]) -> pd.DataFrame:
    """Return the labels of each study; the index is "PATIENT/STUDY". 8 of the 227,835 studies are not in the table."""
    cells = read_cells(file, _STUDY, [_PATIENT, *names])
    expect_columns(cells, [_STUDY, _PATIENT], names, file)
    keys = cells[_PATIENT].astype(str) + "/" + cells[_STUDY]
    refuse_cells(keys.duplicated(), keys.rename(_STUDY), file, "each study once")
    return pd.DataFrame({name: parse_cells(cells, name, file, {}) for name in names}).set_axis(keys)


def _layout(name: str, *label_files: str) -> Layout:
    return Layout(
        name,
        CHEXPERT,
        files=f"{_METADATA[0]}, {_SPLITS[0]} and {' or '.join(label_files)}",
        has_split=partial(_has_split, label_files),
        read=partial(_read, label_files),
        patient_prefix="MIMIC-CXR",
    )


MIMIC_LAYOUT = _layout("mimic", _CHEXPERT, _NEGBIO)
"""The 377,110 radiographs of 65,379 patients, with labels of CheXpert's labeler, or else of NegBio."""

MIMIC_NEGBIO_LAYOUT = _layout("mimic-negbio", _NEGBIO)
"""MIMIC's radiographs with the labels of NegBio, even if those of CheXpert's labeler are there."""
