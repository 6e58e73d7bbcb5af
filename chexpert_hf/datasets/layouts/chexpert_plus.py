"""CheXpert Plus: one table of images with their reports, and labels in JSON lines.

Source: Chambon et al. 2024, arXiv:2405.19538, and the files of https://github.com/Stanford-AIMI/chexpert-plus.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.json as pa_json

from chexpert_hf.datasets.cells import (
    DatasetError,
    Parser,
    expect_columns,
    parse_cells,
    parse_number,
    read_cells,
    refuse_cells,
)
from chexpert_hf.datasets.layout import MAX_AGE, Layout, find_table, refuse_repeated, rows, table_in
from chexpert_hf.files import first_line
from chexpert_hf.labels import CHEXPERT, NEGATIVE, POSITIVE, UNCERTAIN

_TABLES = ["df_chexpert_plus_240401.csv"]
_LABEL_FOLDERS = ("", "chexbert_labels/", "CheXpert Labels/", "labels/")
# CheXpert's own labels are mined from impressions, too; few reports have findings.
_LABEL_FILES = [
    f"{folder}{section}_fixed.json" for section in ("impression", "report", "findings") for folder in _LABEL_FOLDERS
]
_IMAGE, _SEX, _AGE, _SIDE, _VIEW, _SPLIT = "path_to_image", "sex", "age", "frontal_lateral", "ap_pa", "split"
_PATH = r"(?P<patient>patient\d+)/(?P<study>study\d+)/view(?P<view>\d+)_"

_PARSERS: dict[str, Parser] = {
    _SEX: (lambda text: {"male": "Male", "female": "Female", "unknown": "Unknown"}[text.lower()], "Male, Female"),
    _AGE: (lambda text: age if (age := int(parse_number(text))) <= MAX_AGE else None, "years"),
    _SIDE: (lambda text: {"frontal": True, "lateral": False}[text.lower()], "Frontal, Lateral"),
    _VIEW: (lambda text: {"AP": "AP", "PA": "PA"}.get(text.upper()), "AP, PA"),
    _SPLIT: (lambda text: {"train": "train", "valid": "valid", "test": "test"}[text], "train, valid, test"),
}


def _has_split(folder: Path, split: str) -> bool:
    return split in ("train", "valid") and all(find_table(folder, names) for names in (_TABLES, _LABEL_FILES))


def _read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, _TABLES)
    cells = read_cells(file, _IMAGE, [_SEX, _AGE, _SIDE, _VIEW, _SPLIT])
    expect_columns(cells, [_IMAGE, _SIDE, _SPLIT], [], file)
    cells = cells[parse_cells(cells, _SPLIT, file, _PARSERS) == split]
    parts = cells[_IMAGE].str.extract(_PATH)
    refuse_cells(parts["view"].isna(), cells[_IMAGE], file, "train/patient00001/study1/view1_frontal.jpg")
    table = rows(
        cells.index,
        _existing(folder, cells[_IMAGE]),
        parts["patient"],
        parts["patient"] + "/" + parts["study"],
        _labels_of(cells, table_in(folder, _LABEL_FILES), names, file),
        view=parts["view"].astype(int),
        is_frontal=parse_cells(cells, _SIDE, file, _PARSERS).astype(bool),
        sex=parse_cells(cells, _SEX, file, _PARSERS),
        age=parse_cells(cells, _AGE, file, _PARSERS),
        projection=parse_cells(cells, _VIEW, file, _PARSERS),
        labels_by="text-mined labels",
    )
    return refuse_repeated(table, file, _IMAGE)


def _labels_of(cells: pd.DataFrame, labels_file: Path, names: Sequence[str], file: Path) -> pd.DataFrame:
    labels = _labels(labels_file, names)
    if len(cells) and not cells[_IMAGE].isin(labels.index).any():
        raise DatasetError(
            f"{labels_file.name} has no label of an image of {file.name}: expected paths such as "
            f"{cells[_IMAGE].iloc[0]!r}, got such as {next(iter(labels.index), None)!r}."
        )
    return labels.reindex(cells[_IMAGE])


def _existing(folder: Path, paths: pd.Series) -> pd.Series:
    """Return `paths`, adapted so that the first image exists in `folder`; unchanged if it cannot be found.

    All paths are adapted alike: a subfolder such as `PNG/` is put in front if needed, and the suffix becomes .jpg, .png
    or .dcm.
    """
    if paths.empty:
        return paths
    folders = [f"{each.name}/" for each in sorted(folder.iterdir()) if each.is_dir()]
    for prefix in ("", *folders):
        for suffix in (".jpg", ".png", ".dcm"):
            moved = prefix + paths.str.rpartition(".")[0] + suffix
            if (folder / moved.iloc[0]).exists():
                return moved
    return paths


def _labels(file: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read labels from JSON lines: one row per image, with its path as index, and one column per name."""
    schema = pa.schema([(_IMAGE, pa.string()), *((name, pa.float32()) for name in names)])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        labels = pa_json.read_json(file, parse_options=options).to_pandas().set_index(_IMAGE)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{file.name} cannot be read as JSON lines: {first_line(error)}") from None
    if not (labels.isna() | labels.isin([POSITIVE, NEGATIVE, UNCERTAIN])).to_numpy().all():
        raise DatasetError(f"{file.name} has a label that is not 1, 0, -1 or null.")
    if labels.index.has_duplicates:
        raise DatasetError(f"{file.name} names {labels.index[labels.index.duplicated()][0]!r} twice; expected it once.")
    return labels


CHEXPERT_PLUS_LAYOUT = Layout(
    "chexpert-plus",
    CHEXPERT,
    files=f"{_TABLES[0]} and impression_fixed.json, report_fixed.json or findings_fixed.json",
    has_split=_has_split,
    read=_read,
)
"""CheXpert's radiographs and patients with other labels. Never load it together with another edition of CheXpert."""
