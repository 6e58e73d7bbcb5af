"""Google's labels of four findings, adjudicated by radiologists, for 4,376 of NIH's radiographs.

The table also has NIH's own columns. Source: Majkowska et al. 2020, Radiology 294(2), 421-431.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, parse_cells
from chexpert_hf.datasets.layout import Layout, find_table, table_in
from chexpert_hf.datasets.layouts import nih
from chexpert_hf.labels import NEGATIVE, POSITIVE, LabelSet

_TABLES = ["google2019_nih-chest-xray-labels.csv"]
_SPLIT = "Set Id"
LABELS = LabelSet(("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass"))

_PARSERS: dict[str, Parser] = {
    _SPLIT: (lambda text: {"val": "valid", "valid": "valid", "test": "test"}[text], "val, test"),
    **dict.fromkeys(LABELS.names, (lambda text: {"NO": NEGATIVE, "YES": POSITIVE}[text], "NO, YES")),
}


def _read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, _TABLES)
    cells = nih.read_entries(file, [_SPLIT, *LABELS.names])
    expect_columns(cells, [_SPLIT], names, file)
    cells = cells[parse_cells(cells, _SPLIT, file, _PARSERS) == split]
    labels = pd.DataFrame({name: parse_cells(cells, name, file, _PARSERS) for name in names}, dtype=float)
    return nih.split_table(cells, file, folder, labels, "adjudicated by radiologists")


GOOGLE_LAYOUT = Layout(
    "google",
    LABELS,
    files=_TABLES[0],
    has_split=lambda folder, split: split in ("valid", "test") and find_table(folder, _TABLES) is not None,
    read=_read,
    patient_prefix="NIH",
)
"""2,414 radiographs in the valid split and 1,962 in the test split; there is no train split."""
