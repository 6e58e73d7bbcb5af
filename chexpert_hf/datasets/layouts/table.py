"""Any CSV file with a column of image paths, columns of labels and, optionally, facts such as patient and view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from chexpert_hf.datasets.cells import (
    BLANKS,
    SPLIT_NAMES,
    SPLIT_OF,
    DatasetError,
    Parser,
    expect_columns,
    header_of,
    parse_cells,
    parse_label,
    parse_number,
    read_cells,
    refuse_cells,
)
from chexpert_hf.datasets.layout import (
    MAX_AGE,
    RESERVED,
    SPLITS,
    Layout,
    find_images,
    find_table,
    image_names,
    refuse_repeated,
    rows,
)
from chexpert_hf.labels import CHEXPERT, LabelSet

SINGLE_TABLES = ("labels.csv", "metadata.csv")
"""Names of a table that holds all splits."""

_IN_SPLIT_FOLDER = "metadata.csv"  # a split's table in its folder, as in Hugging Face's imagefolder

_USUAL_NAMES = {
    "image": ("image", "file", "filename", "file_name", "image_path", "path"),
    "patient": ("patient", "patient_id", "patientid", "subject_id"),
    "study": ("study", "study_id", "studyid"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "age": ("age", "patient_age"),
    "view": ("view", "view_position", "viewposition", "projection"),
    "split": ("split",),
}
"""Fact -> usual names of its column, in lower case, with "_" for blanks and hyphens."""


def is_fact(column: str) -> bool:
    """Return whether a column's name, such as "Patient ID", shows that it holds images or a fact, not labels."""
    plain = column.lower().replace(" ", "_").replace("-", "_")
    return any(plain in names for names in _USUAL_NAMES.values())


_ANSWERS = frozenset(
    {"yes", "no", "y", "n", "true", "false", "pos", "neg", "positive", "negative", "present", "absent"}
)
"""Words, in lower case, that people write instead of 1 and 0. They are reported as errors, not read as labels."""

_MEANT_AS_LABELS = 0.75  # share of a column's non-blank cells that must look like labels; other cells are then errors

_CHEXPERTS = frozenset({"Frontal/Lateral", "AP/PA"})  # columns that only CheXpert's tables have
_PATIENT = r"patient\d+/study\d+/"  # in CheXpert's paths
_CHEXPERTS_PATH = r"(?:^|/)(?P<patient>patient\d+)/(?P<study>study\d+)/view\d+_(?P<side>frontal|lateral)\.[^/]*$"


def _age(text: str) -> int | None:
    years = int(parse_number(text.removesuffix("Y")))
    return years if 0 <= years <= MAX_AGE else None


_SEXES = {"m": "Male", "male": "Male", "f": "Female", "female": "Female", "unknown": "Unknown", "u": "Unknown"}
_VIEWS = {"AP": "AP", "PA": "PA", "FRONTAL": "Frontal", **dict.fromkeys(("L", "LL", "RL", "LAT", "LATERAL"), "Lateral")}
_PARSERS: Mapping[str, Parser] = {
    "sex": (lambda text: _SEXES[text.lower()], "Male, Female, M, F"),
    "age": (_age, "years"),
    "view": (lambda text: _VIEWS[text.upper()], ", ".join(_VIEWS)),
    "split": (lambda text: SPLIT_OF[text.lower()], ", ".join(SPLIT_OF)),
}


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of images, labels and facts; a column that is None is looked for by `_USUAL_NAMES`."""

    image: str | None = None
    labels: tuple[str, ...] | None = None
    patient: str | None = None
    study: str | None = None
    sex: str | None = None
    age: str | None = None
    view: str | None = None
    split: str | None = None

    def facts(self, header: Sequence[str]) -> dict[str, str]:
        """Return fact -> its column, such as "patient" -> "Patient ID"; facts without a column are left out.

        The column is the one named in this object or, if that is None, the one of `header` with a usual name.
        """
        plain = {name.lower().replace(" ", "_").replace("-", "_"): name for name in reversed(header)}
        usual = {fact: next((plain[n] for n in names if n in plain), None) for fact, names in _USUAL_NAMES.items()}
        found = {fact: getattr(self, fact) or usual[fact] for fact in _USUAL_NAMES}
        return {fact: name for fact, name in found.items() if name}


def table_layout(
    *,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    patient_column: str | None = None,
    study_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    view_column: str | None = None,
    split_column: str | None = None,
    labels: LabelSet | None = None,
    labels_by: str | None = None,
) -> Layout:
    """Return a layout of a CSV file, or of `train.csv`, `valid.csv`, `test.csv`, for `load_dataset(PATH, layout=...)`.

    A column that is None is looked for by its usual names, such as those below, in upper or lower case. Images are
    given as paths relative to the table's folder, as absolute paths below the data set's folder, or as names of files
    anywhere below that folder. Patients, studies or views without a column are read from the paths if all paths are
    like CheXpert's, "patient00001/study1/view1_frontal.jpg". Otherwise each study counts as a patient, and each image
    as a study.

    Args:
        image_column: Paths or names of images; "image", "file", "filename", "file_name", "image_path", "path" if None.
        label_columns: The observations. Cells must be 1, 0, -1 (uncertain) or blank; others are an error that names the
            row. If None, all other columns in which at least three quarters of the non-blank cells are 1, 0, -1 or
            words like yes and no. Such words are recognised only to report them as errors: write 1 and 0 instead.
        patient_column: "patient", "patient_id", "subject_id" if None.
        study_column: "study", "study_id" if None.
        sex_column: "sex", "gender" if None; with M, F, Male, Female.
        age_column: "age" if None; in years.
        view_column: "view", "view_position", "projection" if None; with AP, PA, frontal, lateral.
        split_column: "split" if None; with train, valid (or validation, val), test.
        labels: Hierarchy, headline and definitions of the observations; CheXpert's if None. If it is given and
            `label_columns` is not, its names are the label columns.
        labels_by: The reference standard, such as "majority of radiologists".
    """
    names = label_columns if label_columns is not None or labels is None else labels.names
    facts = (patient_column, study_column, sex_column, age_column, view_column, split_column)
    columns = _Columns(image_column, None if names is None else tuple(names), *facts)
    return _layout(columns, labels or CHEXPERT, labels_by, None)


def _layout(columns: _Columns, labels: LabelSet, labels_by: str | None, file: str | None) -> Layout:
    def label_names(folder: Path) -> tuple[str, ...]:
        names = [file] if file else [*(each for split in SPLITS for each in _tables(split)), *SINGLE_TABLES]
        table = None if columns.labels else find_table(folder, names)  # the first table's columns count for all
        return _label_columns(table, columns, table.stat().st_mtime_ns) if table else columns.labels or ()

    def has_split(folder: Path, split: str) -> bool:
        return _table_of(folder, split, file, columns) is not None and bool(label_names(folder))

    def read(folder: Path, split: str, names: Sequence[str]) -> pd.DataFrame:
        table = _table_of(folder, split, file, columns)
        if table is None:
            raise DatasetError(f"No table of the {split} split in {str(folder)!r}. Add it, or leave the split out.")
        return _read(folder, table, split, names, columns, labels_by)

    return Layout(
        "table",
        lambda folder: labels.among(label_names(folder)),
        files=file or f"train.csv, valid.csv, test.csv, or {' or '.join(SINGLE_TABLES)}, with a column of image files",
        has_split=has_split,
        read=read,
        for_file=lambda name: _layout(columns, labels, labels_by, name),
    )


def _tables(split: str) -> list[str]:
    names = SPLIT_NAMES[split]
    return [*(f"{name}.csv" for name in names), *(f"{name}/{_IN_SPLIT_FOLDER}" for name in names)]


def _table_of(folder: Path, split: str, file: str | None, columns: _Columns) -> Path | None:
    """Return the table that holds a split; None if no table does, or if that table has no image column.

    The result is also None for one of CheXpert's own tables, unless `columns` names the image column.

    `file` is the name of the only table to look for; if None, tables are looked for by their usual names.
    """
    own = None if file else find_table(folder, _tables(split))
    single = None if own else find_table(folder, [file] if file else SINGLE_TABLES)
    table = own or single
    header = header_of(table) if table else []
    facts = columns.facts(header)
    if table is None or "image" not in facts or (columns.image is None and _is_chexperts(table, header)):
        return None
    if facts.get("split") in header:
        splits = read_cells(table, facts["image"], [facts["split"]])
        named = parse_cells(splits, facts["split"], table, {facts["split"]: _PARSERS["split"]})
        return table if split in named else None
    # If the named column of splits is missing, `read` of each split raises the error.
    return table if own or split == "train" or "split" in facts else None


def _is_chexperts(table: Path, header: Sequence[str]) -> bool:
    """Return whether a table is CheXpert's, possibly without some of its columns."""
    if "Path" not in header:
        return False
    return not _CHEXPERTS.isdisjoint(header) or bool(read_cells(table, "Path", [])["Path"].str.contains(_PATIENT).any())


@lru_cache(maxsize=16)
def _label_columns(table: Path, columns: _Columns, _changed: int) -> tuple[str, ...]:
    """Return the columns of a table that look like labels, except those that hold a fact according to `columns`.

    Return () if the table has no image column. `_changed` is the file's modification time; it is part of the cache's
    key, so that a changed file is read again.
    """
    header = header_of(table)
    facts = columns.facts(header)
    if "image" not in facts:
        return ()
    taken = {*facts.values(), *RESERVED, ""}
    cells = read_cells(table, facts["image"], [name for name in header if name not in taken])
    return tuple(name for name in cells.columns if name not in taken and _is_meant_as_labels(cells[name]))


def _is_meant_as_labels(cells: pd.Series) -> bool:
    counts = {text.strip().lower(): count for text, count in cells.value_counts().items()}
    stated = {text: count for text, count in counts.items() if text not in BLANKS}
    like_labels = sum(count for text, count in stated.items() if text in _ANSWERS or _is_label(text))
    return bool(stated) and like_labels >= _MEANT_AS_LABELS * sum(stated.values())


def _is_label(text: str) -> bool:
    try:
        parse_label(text)
    except ValueError:
        return False
    return True


def _read(
    folder: Path, table: Path, split: str, names: Sequence[str], columns: _Columns, labels_by: str | None
) -> pd.DataFrame:
    facts = columns.facts(header_of(table))
    image = facts.pop("image")
    cells = read_cells(table, image, [*facts.values(), *names])
    expect_columns(cells, [image, *facts.values()], names, table)
    images = _names(cells[image], table, "the path of an image")
    parsers = {name: _PARSERS[fact] for fact, name in facts.items() if fact in _PARSERS}
    parsed = {fact: parse_cells(cells, name, table, parsers) for fact, name in facts.items() if fact in _PARSERS}
    if "split" in parsed:
        is_blank = pd.isna(pd.Series(parsed["split"]))
        advice = f"name the split of such rows ({is_blank.sum():,} in all), or remove them"
        refuse_cells(is_blank, cells[facts["split"]], table, f"{', '.join(SPLIT_OF)}; {advice}")
    texts = {
        fact: _names(cells[facts[fact]], table, f"the name of a {fact}")
        for fact in ("patient", "study")
        if fact in facts
    }
    paths = _paths(folder, table, images)
    stated = paths.str.extract(_CHEXPERTS_PATH)
    if not stated.isna().any(axis=None):
        texts = {fact: stated[fact] for fact in ("patient", "study")} | texts
        parsed = {"view": stated["side"].str.capitalize()} | parsed
    views = pd.Series(parsed.get("view", np.full(len(cells), None)), index=cells.index)
    patients, studies = texts.get("patient"), texts.get("study")
    if studies is None:  # named like the paths in the table, not like those of the images found
        studies = image_names(paths)
    made = rows(
        cells.index,
        paths if cells[image].str.contains(r"[/\\]").any() else find_images(folder, paths.tolist()),
        patients,
        studies if patients is None else patients + "/" + studies,
        _labels(cells, names, table),
        is_frontal=views.ne("Lateral"),
        sex=parsed.get("sex"),
        age=parsed.get("age"),
        projection=views.where(views.isin(["AP", "PA"]), None),
        labels_by=labels_by,
    )
    return refuse_repeated(made[parsed["split"] == split] if "split" in parsed else made, table, image)


def _names(cells: pd.Series, table: Path, expected: str) -> pd.Series:
    """Return a column's cells without blanks around them; DatasetError if one is empty.

    The error quotes `expected`, such as "the path of an image".
    """
    names = cells.astype(object).str.strip()
    refuse_cells(names.isna() | names.str.lower().isin(BLANKS), cells, table, expected)
    return names


def _labels(cells: pd.DataFrame, names: Sequence[str], table: Path) -> pd.DataFrame:
    labels = {}
    for name in names:
        try:
            labels[name] = parse_cells(cells, name, table, {})
        except DatasetError as error:
            odd = {text.strip() for text in cells[name].unique() if text.strip().lower() not in BLANKS}
            odd = {text for text in odd if not _is_label(text)}
            found = f" Such cells of {name} are: {', '.join(sorted(odd)[:5])}." if len(odd) > 1 else ""
            others = ",".join(each for each in names if each != name)
            advice = f"; if {name} is no label, pass --observations '{others}'" if others else ""
            raise DatasetError(f"{error}{found} Correct the cells{advice}.") from None
    return pd.DataFrame(labels)


def _paths(folder: Path, table: Path, stated: pd.Series) -> pd.Series:
    """Return the paths that a table states, relative to `folder`.

    In the table, they are absolute or relative to the table's folder. Absolute paths outside `folder` do not change.
    """
    stated, place = stated.str.replace("\\", "/"), table.parent.relative_to(folder).as_posix()
    stated = stated.str.replace(r"(?<=.)/(?:\.?/)+", "/", regex=True).str.removeprefix("./")  # one name for each file
    below = stated if place == "." else f"{place}/" + stated
    return stated.str.removeprefix(f"{folder.as_posix()}/").where(stated.str.contains(r"^/|^[A-Za-z]:"), below)


TABLE_LAYOUT = table_layout()
"""A CSV file whose columns are all found by their usual names."""
