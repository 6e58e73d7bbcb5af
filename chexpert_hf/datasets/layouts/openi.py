"""Indiana University's chest X-rays (Open-i), in the two tables that Kaggle's edition made of the XML files.

Source: Demner-Fushman et al. 2016, JAMIA 23(2), 304-310, and the files of
https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, findings, parse_cells, read_cells, refuse_cells
from chexpert_hf.datasets.layout import Layout, find_images, only_train, rows, table_in
from chexpert_hf.files import data_beside
from chexpert_hf.labels import LabelSet

_REPORTS, _IMAGES = ["indiana_reports.csv"], ["indiana_projections.csv"]
_REPORT, _TERMS, _FILE, _VIEW = "uid", "MeSH", "filename", "projection"

_DATA = data_beside(__file__)
TERMS: Mapping[str, Sequence[str]] = _DATA["terms"]

_STATES_NOTHING = frozenset({"No Indexing", "Technical Quality of Image Unsatisfactory"})
_PARSERS: dict[str, Parser] = {
    _VIEW: (lambda text: {"frontal": True, "lateral": False}[text.lower()], "Frontal, Lateral"),
}


def _labels(text: str) -> Collection[str] | None:
    """Return the labels in a cell such as "Opacity/lung/base/left;Cardiomegaly/mild"; None if it states nothing."""
    terms = {term.strip() for term in text.split(";")} - _STATES_NOTHING
    beginnings = {"/".join(term.split("/")[:length]) for term in terms for length in (1, 2)}
    return {name for name, meant in TERMS.items() if beginnings.intersection(meant)} if terms else None


def _read(folder: Path, _split: str, names: Sequence[str]) -> pd.DataFrame:
    file, images_file = table_in(folder, _REPORTS), table_in(folder, _IMAGES)
    reports = read_cells(file, _REPORT, [_TERMS])
    expect_columns(reports, [_REPORT, _TERMS], [], file)
    labels = findings(reports[_TERMS], names, _labels, None, file).set_axis(reports[_REPORT])
    cells = read_cells(images_file, _FILE, [_REPORT, _VIEW])
    expect_columns(cells, [_FILE, _REPORT, _VIEW], [], images_file)
    studies = cells[_REPORT].astype(str)
    refuse_cells(~studies.isin(labels.index), studies, images_file, f"a report of {file.name}")
    return rows(
        cells.index,
        find_images(folder, ("images/images_normalized/" + cells[_FILE]).tolist()),
        None,
        studies,
        labels.reindex(studies),
        is_frontal=parse_cells(cells, _VIEW, images_file, _PARSERS).astype(bool),
        labels_by="reports coded by hand",
    )


OPENI_LAYOUT = Layout(
    "openi",
    LabelSet(tuple(TERMS), none_of_these="No Finding"),
    files=f"{_REPORTS[0]} and {_IMAGES[0]}",
    has_split=only_train(_REPORTS, _IMAGES),
    read=_read,
    implied_by=_DATA["implied_by"],
)
"""The 7,466 radiographs of 3,851 reports. MeSH terms were set by hand from the reports, without the images."""
