"""Finds the layout of a data set's folder, and reads its splits as tables.

Observations may also be asked for by their names in other label sets; their labels are taken from matching columns.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexpert_hf.datasets.cells import DatasetError, header_of, listed
from chexpert_hf.datasets.hub import fetch, is_repository
from chexpert_hf.datasets.label_sets import LABEL_SETS, is_known, same_label
from chexpert_hf.datasets.layout import RESERVED, SPLITS, Layout
from chexpert_hf.datasets.layouts.chexpert import CHEXPERT_LAYOUT
from chexpert_hf.datasets.layouts.chexpert_plus import CHEXPERT_PLUS_LAYOUT
from chexpert_hf.datasets.layouts.google import GOOGLE_LAYOUT
from chexpert_hf.datasets.layouts.image_folder import IMAGE_FOLDER_LAYOUT
from chexpert_hf.datasets.layouts.mimic import MIMIC_LAYOUT, MIMIC_NEGBIO_LAYOUT
from chexpert_hf.datasets.layouts.nih import NIH_LAYOUT
from chexpert_hf.datasets.layouts.openi import OPENI_LAYOUT
from chexpert_hf.datasets.layouts.padchest import PADCHEST_LAYOUT
from chexpert_hf.datasets.layouts.rsna import RSNA_LAYOUT
from chexpert_hf.datasets.layouts.siim import SIIM_LAYOUT
from chexpert_hf.datasets.layouts.table import SINGLE_TABLES, TABLE_LAYOUT, table_layout
from chexpert_hf.datasets.layouts.vindr import VINBIGDATA_LAYOUT, VINDR_LAYOUT, VINDR_VOTES_LAYOUT
from chexpert_hf.labels import IGNORED, POSITIVE, UNCERTAIN

LAYOUTS: tuple[Layout, ...] = (
    NIH_LAYOUT,
    GOOGLE_LAYOUT,
    MIMIC_LAYOUT,
    PADCHEST_LAYOUT,
    VINDR_LAYOUT,
    RSNA_LAYOUT,
    SIIM_LAYOUT,
    OPENI_LAYOUT,
    CHEXPERT_PLUS_LAYOUT,
    VINBIGDATA_LAYOUT,
    TABLE_LAYOUT,
    CHEXPERT_LAYOUT,
)
"""The layouts that are recognised by their files, in this order: CheXpert is last, as its file names are common."""

FURTHER_LAYOUTS: tuple[Layout, ...] = (IMAGE_FOLDER_LAYOUT, MIMIC_NEGBIO_LAYOUT, VINDR_VOTES_LAYOUT)
"""Image folders, tried last, and layouts that must be named, since another layout has the same files."""


def find_layout(root: str | Path, layout: str | Layout | None = None) -> tuple[Layout, Path]:
    """Return the layout of a data set and its absolute folder: `root`, or the only folder in it with a data set.

    `layout` is the expected layout, as a name or an object; if None, it is recognised. Columns of a CSV file may follow
    the name "table": "table:image=FILE,patient=PID". `root` may also be a CSV file, or the id of a data set on the Hub,
    which is downloaded.

    Raises:
        DatasetError: If no layout is recognised there, or several folders in it hold data sets.
    """
    root = fetch(str(root)) if is_repository(root) else Path(root).resolve()
    layouts = _chosen(layout)
    if root.is_file():
        of_file = [each.for_file(root.name) for each in layouts if each.for_file is not None]
        return _recognised(_layout_of(root.parent, of_file), root, layouts), root.parent
    if not root.is_dir():
        raise DatasetError(f"Expected the folder of a data set, but {str(root)!r} is not a folder.")
    if found := _layout_of(root, layouts):
        return found, root
    below = {folder: _layout_of(folder, layouts) for folder in sorted(root.iterdir()) if folder.is_dir()}
    inside = [(found, folder.resolve()) for folder, found in below.items() if found is not None]
    if len(inside) > 1:
        names = listed([folder.name for _, folder in inside])
        raise DatasetError(f"{str(root)!r} holds several data sets ({names}); pass one of them.")
    if inside:
        return inside[0]
    return _recognised(_layout_of(root, [IMAGE_FOLDER_LAYOUT] if layout in (None, "auto") else []), root, layouts), root


def _chosen(layout: str | Layout | None) -> Sequence[Layout]:
    if isinstance(layout, Layout):
        return [layout]
    if layout in (None, "auto"):
        return LAYOUTS
    by_name = {each.name: each for each in (*LAYOUTS, *FURTHER_LAYOUTS)}
    name, _, columns = layout.partition(":")
    if name not in by_name:
        raise DatasetError(f"There is no layout {name!r}; expected {', '.join(by_name)}.")
    if columns and name != TABLE_LAYOUT.name:
        raise DatasetError(f"The layout {name!r} takes no columns, got {columns!r}; only {TABLE_LAYOUT.name}: does.")
    return [_table_with(columns) if columns else by_name[name]]


def _table_with(text: str) -> Layout:
    """Return the layout of a CSV file whose columns are named in `text`.

    For example, "image=FILE,patient=PID" means that the column FILE holds the images and PID the patients. The keys are
    the arguments of `table_layout` without their "_column". Raises DatasetError for another key or an empty column.
    """
    given = {fact.strip(): column.strip() for fact, _, column in (item.partition("=") for item in text.split(","))}
    facts = [name.removesuffix("_column") for name in signature(table_layout).parameters if name.endswith("_column")]
    if strange := [fact for fact, column in given.items() if fact not in facts or not column]:
        raise DatasetError(
            f"The layout 'table:{text}' names {strange[0]!r}; expected {', '.join(f'{fact}=COLUMN' for fact in facts)}."
        )
    columns: dict[str, Any] = {f"{fact}_column": column for fact, column in given.items()}
    return table_layout(**columns)


def _layout_of(folder: Path, layouts: Sequence[Layout]) -> Layout | None:
    """Return the first of `layouts` whose files are directly in a folder; None if there is none."""
    return next((layout for layout in layouts if layout.is_in(folder)), None)


def _recognised(found: Layout | None, root: Path, layouts: Sequence[Layout]) -> Layout:
    if found is not None:
        return found
    if root.is_file():
        of_folder = _layout_of(root.parent, LAYOUTS)
        advice = f" Its folder has the layout {of_folder.name}: pass {str(root.parent)!r}." if of_folder else ""
        raise DatasetError(f"{root} is no table of a data set: {_expected_columns(root)}{advice}")
    *others, last = layouts
    also = (
        f", the files of {', '.join(each.name for each in others)}, and a folder of images for each class"
        if others
        else ""
    )
    tables = sorted(root.glob("*.csv"), key=lambda file: file.name not in SINGLE_TABLES)
    why = f" {tables[0].name} is there, but is none: {_expected_columns(tables[0])}" if tables else ""
    raise DatasetError(
        f"No table of a data set in {str(root)!r} or in a folder directly in it; looked for {last.files} "
        f"({last.name}){also}. Pass the folder that holds the table, or those of the classes.{why}"
    )


def _expected_columns(table: Path) -> str:
    return (
        "expected a column of image files, named image or file, or with --layout table:image=COLUMN, and columns of "
        f"labels with 1, 0, -1 or blank cells; it has the columns {', '.join(header_of(table)) or 'none'}."
    )


def has_dataset(folder: str | Path, splits: Sequence[str] = SPLITS) -> bool:
    """Return whether a folder itself holds one of the splits in a layout that is recognised."""
    return any(layout.has_split(Path(folder), split) for layout in LAYOUTS for split in splits)


def has_labels_for(folder: Path, observations: Sequence[str]) -> bool:
    """Return whether a folder itself holds a train or valid split with labels for some of the observations."""
    if not has_dataset(folder, ("train", "valid")):
        return False
    layout, _ = find_layout(folder)
    named = [*layout.names_in(folder), *layout.labels_in(folder).names, *layout.implied_by]
    return any(same_label(name, named) for name in observations)


def read_splits(
    layout: Layout,
    folder: Path,
    splits: Sequence[str],
    observations: Sequence[str],
    valid_fraction: float,
    say: Callable[[str], None] | None = None,
    known: Collection[str] = (),
) -> dict[str, pd.DataFrame]:
    """Return the table of each split, as `Layout.read` returns it, with a column of labels per observation.

    If there is no valid split, `valid_fraction` of the patients of train become valid. An observation of a built-in
    label set or of `known` (the label names of all data sets loaded together) may be missing from this data set: its
    labels are then `IGNORED`, that is unknown, not negative. `say` is called with lines for the user on missing
    observations and on held-out patients.

    Raises:
        DatasetError: If a table is wrong, a split is missing or empty, an observation is in no label set, or (with
            empty `known`) the data set has none of the observations.
    """
    sources = _sources(layout, folder, observations, known)
    if unstated := [name for name, columns in sources.items() if not columns]:
        if len(unstated) == len(sources) and not known:
            raise DatasetError(
                f"{str(folder)!r} has no labels for {listed(unstated)}; it has {', '.join(layout.names_in(folder))}."
            )
        if say is not None:
            say(f"{folder.name} has no labels for {', '.join(unstated)}: unknown there, not negative.")
    names = list(dict.fromkeys(column for columns in sources.values() for column in columns))
    has_valid = layout.has_split(folder, "valid")
    wanted = dict.fromkeys("train" if split == "valid" and not has_valid else split for split in splits)
    if missing := [split for split in wanted if not layout.has_split(folder, split)]:
        there = ", ".join(split for split in SPLITS if layout.has_split(folder, split))
        raise DatasetError(
            f"No table of the {missing[0]} split in {str(folder)!r}; looked for {layout.files}. "
            f"Add it, or choose from {there}."
        )
    tables = {split: _combine_columns(layout.read(folder, split, names), sources) for split in wanted}
    if "train" in tables and not has_valid:
        if say is not None and valid_fraction and tables["train"]["patient"].equals(tables["train"]["study"]):
            say(f"{folder.name} names no patients: train and valid may hold studies of the same one.")
        patients = shuffled(tables["train"]["patient"])
        count = max(1, round(valid_fraction * len(patients))) if valid_fraction else 0
        is_held_out = tables["train"]["patient"].isin(patients[:count])
        tables["train"], tables["valid"] = tables["train"][~is_held_out], tables["train"][is_held_out]
        if say is not None and len(splits) == 1 and 0 < is_held_out.sum() < len(is_held_out):
            say(
                f"{folder.name} has no valid split: {splits[0]} is {len(tables[splits[0]]):,} of its "
                f"{len(is_held_out):,} radiographs. --valid-fraction sets the share of valid; --split valid "
                "--valid-fraction 1 takes all."
            )
    for split in splits:
        if tables[split].empty and (has_valid or split == "test"):
            raise DatasetError(f"The {split} split of {str(folder)!r} has no radiograph; leave it out.")
        if tables[split].empty:
            raise DatasetError(
                f"{split} is empty: there is no valid split, and valid_fraction={valid_fraction} of the patients of "
                "train leaves it none. Add a table of the valid split, or choose another fraction."
            )
    return {split: tables[split] for split in splits}


def shuffled(patients: pd.Series) -> list[str]:
    """Return each patient once, in a pseudo-random order that depends on the names alone.

    Which of two patients comes first depends neither on the order of rows nor on other patients. The first 100, for
    example, are always part of the first 1,000.
    """
    return sorted(patients.unique(), key=lambda name: hashlib.blake2b(f"0/{name}".encode()).digest())


def _sources(
    layout: Layout, folder: Path, observations: Sequence[str], known: Collection[str]
) -> dict[str, Sequence[str]]:
    """Return observation -> the data set's columns that give its labels; () if no column does.

    An observation must be in this data set, a built-in label set or `known` (the label names of all data sets that are
    loaded together), else DatasetError.
    """
    own, by_default = layout.names_in(folder), layout.labels_in(folder).names
    sources: dict[str, Sequence[str]] = {}
    if taken := sorted(RESERVED.intersection(observations)):
        raise DatasetError(
            f"{taken[0]!r} is a reserved column name, so it cannot be an observation; rename it, or leave it out with "
            "--observations."
        )
    for name in observations:
        same = same_label(name, own)
        if name in own or name in by_default:
            sources[name] = (name,)
        elif label := same_label(name, layout.implied_by):
            sources[name] = layout.implied_by[label]
        elif same or is_known(name) or same_label(name, known):
            sources[name] = (same,) if same else ()
        else:
            near = get_close_matches(
                name, [*own, *(each for known in LABEL_SETS.values() for each in known.names)], n=1
            )
            raise DatasetError(
                f"{str(folder)!r} has no labels for {name!r}; it has {', '.join(own)}. Name other observations"
                + (f", such as {near[0]!r}." if near else ".")
            )
    return sources


def _combine_columns(table: pd.DataFrame, sources: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the table with one column for each observation, in place of the label columns that the files have.

    `sources` has the label columns of each observation. Where there are several, `_highest` combines their labels: one
    positive label is enough, for instance.
    """
    if all(columns == (name,) for name, columns in sources.items()):
        return table
    own = dict.fromkeys(column for columns in sources.values() for column in columns)
    labels = {name: _highest(table[list(columns)].to_numpy(np.float32)) for name, columns in sources.items()}
    return pd.concat([table.drop(columns=list(own)), pd.DataFrame(labels, index=table.index)], axis=1)


def _highest(labels: np.ndarray) -> np.ndarray:
    """Combine the labels in each row of `(num_rows, num_columns)` to one, and return `(num_rows,)`.

    The result is 1 if any label is 1, else -1 (uncertain) if any is -1, else NaN (blank) if any is NaN. Otherwise it
    is the highest of the labels, which are then 0, shares of readers or `IGNORED`. Without columns it is `IGNORED`.
    """
    if not labels.shape[1]:
        return np.full(len(labels), IGNORED, dtype=np.float32)
    conditions = [(labels == POSITIVE).any(axis=1), (labels == UNCERTAIN).any(axis=1), np.isnan(labels).any(axis=1)]
    return np.select(conditions, [POSITIVE, UNCERTAIN, np.nan], default=labels.max(axis=1)).astype(np.float32)
