"""A folder of a data set: its layout, its splits as tables, and labels of other sets that its own labels answer for."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from chexpert_hf.datasets.cells import DatasetError, listed
from chexpert_hf.datasets.label_sets import is_known, same_label
from chexpert_hf.datasets.layout import COLUMNS, SPLITS, Layout
from chexpert_hf.datasets.layouts.chexpert import CHEXPERT_LAYOUT
from chexpert_hf.datasets.layouts.nih import NIH_LAYOUT
from chexpert_hf.labels import IGNORED, POSITIVE, UNCERTAIN

LAYOUTS: tuple[Layout, ...] = (NIH_LAYOUT, CHEXPERT_LAYOUT)
"""The layouts that are recognised, in this order: CheXpert's names of files are the least specific."""


def find_layout(root: str | Path, layout: str | Layout | None = None) -> tuple[Layout, Path]:
    """The layout of a data set and its absolute folder: `root`, or the only folder in it that holds one.

    `layout` is one that it must have, by its name or as an object; any that is recognised if None.

    Raises:
        DatasetError: If no layout is recognised there, or several folders in it hold data sets.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DatasetError(f"Expected the folder of a data set, but {str(root)!r} is not a folder.")
    layouts = _chosen(layout)
    if found := _layout_of(root, layouts):
        return found, root
    below = {folder: _layout_of(folder, layouts) for folder in sorted(root.iterdir()) if folder.is_dir()}
    inside = [(found, folder.resolve()) for folder, found in below.items() if found is not None]
    if len(inside) > 1:
        names = listed([folder.name for _, folder in inside])
        raise DatasetError(f"{str(root)!r} holds several data sets ({names}); pass one of them.")
    if inside:
        return inside[0]
    raise DatasetError(
        f"No table of a data set in {str(root)!r} or in a folder directly in it; looked for "
        f"{'; '.join(f'{layout.files} ({layout.name})' for layout in reversed(layouts))}. "
        "Pass the folder that holds the table."
    )


def _chosen(layout: str | Layout | None) -> Sequence[Layout]:
    if isinstance(layout, Layout):
        return [layout]
    chosen = [each for each in LAYOUTS if layout in (None, "auto", each.name)]
    if not chosen:
        raise DatasetError(f"There is no layout {layout!r}; expected {', '.join(each.name for each in LAYOUTS)}.")
    return chosen


def _layout_of(folder: Path, layouts: Sequence[Layout]) -> Layout | None:
    """The first layout that is recognised in a folder itself."""
    return next((layout for layout in layouts if layout.is_in(folder)), None)


def has_dataset(folder: str | Path, splits: Sequence[str] = SPLITS) -> bool:
    """Whether a folder itself holds one of the splits in a layout that is recognised."""
    return any(layout.has_split(Path(folder), split) for layout in LAYOUTS for split in splits)


def read_splits(
    layout: Layout,
    folder: Path,
    splits: Sequence[str],
    observations: Sequence[str],
    valid_fraction: float,
    say: Callable[[str], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables of some splits, as `Layout.read` returns them, with labels for `observations`.

    A label that the data set cannot state is `IGNORED`: unknown, not negative. `say` is told which.

    Raises:
        DatasetError: If a table is wrong, a split is empty, or the data set can state none of the observations.
    """
    sources = _sources(layout, folder, observations)
    if unstated := [name for name, columns in sources.items() if not columns]:
        if len(unstated) == len(sources):
            raise DatasetError(
                f"{str(folder)!r} has no labels for {listed(unstated)}; it has {', '.join(layout.names_in(folder))}."
            )
        if say is not None:
            say(f"{folder.name} states nothing of {', '.join(unstated)}: unknown there, not negative.")
    names = list(dict.fromkeys(column for columns in sources.values() for column in columns))
    has_valid = layout.has_split(folder, "valid")
    wanted = dict.fromkeys("train" if split == "valid" and not has_valid else split for split in splits)
    if missing := [split for split in wanted if not layout.has_split(folder, split)]:
        there = ", ".join(split for split in SPLITS if layout.has_split(folder, split))
        raise DatasetError(
            f"No table of the {missing[0]} split in {str(folder)!r}; looked for {layout.files}. "
            f"Add it, or choose from {there}."
        )
    tables = {split: _answered(layout.read(folder, split, names), sources) for split in wanted}
    if "train" in tables and not has_valid:
        if say is not None and valid_fraction and tables["train"]["patient"].equals(tables["train"]["study"]):
            say(f"{folder.name} names no patients: each image counts as one, so train and valid may share patients.")
        patients = shuffled(tables["train"]["patient"])
        count = max(1, round(valid_fraction * len(patients))) if valid_fraction else 0
        is_held_out = tables["train"]["patient"].isin(patients[:count])
        tables["train"], tables["valid"] = tables["train"][~is_held_out], tables["train"][is_held_out]
    for split in splits:
        if tables[split].empty:
            raise DatasetError(
                f"{split} is empty: there is no valid.csv, and valid_fraction={valid_fraction} of the patients of "
                "train.csv leaves it none. Add a valid.csv, or choose another fraction."
            )
    return {split: tables[split] for split in splits}


def shuffled(patients: pd.Series) -> list[str]:
    """The patients in an order that depends on nothing but their names.

    Subsets nest, and neither the order of the rows nor other patients' coming and going changes them.
    """
    return sorted(patients.unique(), key=lambda name: hashlib.blake2b(f"0/{name}".encode()).digest())


def _sources(layout: Layout, folder: Path, observations: Sequence[str]) -> dict[str, Sequence[str]]:
    """Observation -> the labels of the data set that answer for it; none if it cannot be stated."""
    own, sources = layout.names_in(folder), dict[str, Sequence[str]]()
    if taken := sorted({*observations} & {*COLUMNS}):
        raise DatasetError(f"{taken[0]!r} names what is known of a radiograph, not an observation; rename the column.")
    for name in observations:
        same = same_label(name, own)
        if name in own or name in layout.labels_in(folder).names:
            sources[name] = (name,)
        elif name in layout.answers:
            sources[name] = layout.answers[name]
        elif same or is_known(name):
            sources[name] = (same,) if same else ()
        else:
            near = get_close_matches(name, own, n=1)
            raise DatasetError(
                f"{str(folder)!r} has no labels for {name!r}; it has {', '.join(own)}. Name other observations"
                + (f", such as {near[0]!r}." if near else ".")
            )
    return sources


def _answered(table: pd.DataFrame, sources: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The table with a column for each observation: the highest of the labels that answer for it."""
    if all(columns == (name,) for name, columns in sources.items()):
        return table
    own = dict.fromkeys(column for columns in sources.values() for column in columns)
    labels = {name: _highest(table[list(columns)].to_numpy(np.float32)) for name, columns in sources.items()}
    return pd.concat([table.drop(columns=list(own)), pd.DataFrame(labels, index=table.index)], axis=1)


def _highest(labels: np.ndarray) -> np.ndarray:
    """Per row `(num_rows,)`: positive, else uncertain, else not stated, else negative; IGNORED without columns."""
    if not labels.shape[1]:
        return np.full(len(labels), IGNORED, dtype=np.float32)
    conditions = [(labels == POSITIVE).any(axis=1), (labels == UNCERTAIN).any(axis=1), np.isnan(labels).any(axis=1)]
    return np.select(conditions, [POSITIVE, UNCERTAIN, np.nan], default=labels.max(axis=1)).astype(np.float32)
