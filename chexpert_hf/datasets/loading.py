"""A folder as a `datasets.DatasetDict`: its layout, splits, filters, subsets by patient, and the check of its files.

Labels stay as the files have them (1, 0, -1, NaN for blank): an uncertainty policy is applied when a batch is made.
Images are stored as paths and decoded on access.

Source: Irvin et al. 2019, arXiv:1901.07031, section 2.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, List, NamedSplit, Value

from chexpert_hf.datasets.cells import DatasetError, listed
from chexpert_hf.datasets.chexpert import CHEXPERT_LAYOUT
from chexpert_hf.datasets.image_files import find_bad_files
from chexpert_hf.datasets.layout import COLUMNS, SPLITS, Layout
from chexpert_hf.labels import check_observations

LAYOUTS: tuple[Layout, ...] = (CHEXPERT_LAYOUT,)
"""The layouts that are recognised, in this order."""

_LABELS_LINE = "Observations in the order of `labels`: "
_TYPES = {"view": "int32", "age": "int32", "is_frontal": "bool"}  # the others are strings


class BadFilesError(DatasetError):
    """Radiographs of the tables that cannot be read; `faults` says what is wrong with each path."""

    def __init__(self, message: str, faults: Mapping[str, str]) -> None:
        super().__init__(message)
        self.faults = faults

    def write_list(self, path: Path) -> None:
        """Writes all of them as CSV: `path` and `fault`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.faults.items(), columns=["path", "fault"]).to_csv(path, index=False)


def find_layout(root: str | Path) -> tuple[Layout, Path]:
    """The layout of a data set and its absolute folder: `root`, or the only folder in it that holds one.

    Raises:
        DatasetError: If no layout is recognised there, or several folders in it hold data sets.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise DatasetError(f"Expected the folder of a data set, but {str(root)!r} is not a folder.")
    if layout := _layout_of(root):
        return layout, root
    below = {folder: _layout_of(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    found = [(layout, folder.resolve()) for folder, layout in below.items() if layout is not None]
    if len(found) > 1:
        names = listed([folder.name for _, folder in found])
        raise DatasetError(f"{str(root)!r} holds several data sets ({names}); pass one of them.")
    if found:
        return found[0]
    raise DatasetError(
        f"No CheXpert table in {str(root)!r} or in a folder directly in it; looked for "
        f"{'; '.join(layout.files for layout in LAYOUTS)}. Pass the folder that holds train.csv."
    )


def _layout_of(folder: Path) -> Layout | None:
    """The first layout that is recognised in a folder itself."""
    return next((layout for layout in LAYOUTS if layout.is_in(folder)), None)


def has_dataset(folder: str | Path, splits: Sequence[str] = SPLITS) -> bool:
    """Whether a folder itself holds one of the splits in a layout that is recognised."""
    return any(layout.has_split(Path(folder), split) for layout in LAYOUTS for split in splits)


def load_dataset(
    root: str | Path,
    *,
    splits: Sequence[str] = ("train", "valid"),
    check_files: bool = True,
    follow_links: bool = True,
    say: Callable[[str], None] | None = None,
    frontal_only: bool = False,
    observations: Sequence[str] | None = None,
    num_patients: int | None = None,
    valid_fraction: float = 0.1,
) -> DatasetDict:
    """Loads a data set in a layout that is recognised: splits in the order asked for, rows in the order of the files.

    Each row is one radiograph: `image` (absolute path, decoded on access), `path` (from the split's name on),
    `patient`, `study` ("patient00001/study1"), `view` (1, 2, ...), `sex`, `age` in years, `projection` ("AP", "PA",
    None for laterals), `is_frontal`, and `labels`: `(num_observations,)` float32, 1, 0, -1 or NaN where the report
    does not mention the observation. `info.description` names the columns of `labels`.

    A folder without `valid.csv` has patients of `train.csv` held out as its valid split. They are left out of train
    whether or not `splits` asks for valid, so that loading the splits one by one does not leak; only `valid_fraction`
    changes who they are. With `valid_fraction=0`, train is all of `train.csv`.

    Args:
        root: The folder with `train.csv` (or `train.csv.gz`), or the folder that contains it.
        splits: Of "train", "valid" and "test". A test table may lack sex, age, view and projection.
        check_files: Whether to look at every file before returning. If False, no image or image folder need exist.
        follow_links: Whether radiographs may be links that lead out of the folder; if not, the check refuses them.
        say: Takes a line for the user about how many links were followed, if any were.
        frontal_only: Whether to leave out laterals.
        observations: What `labels` holds, in this order: columns of the files; all of the layout's by default.
        num_patients: Take this many of the patients of train that the filter leaves; the other splits stay whole. A
            smaller subset is part of a larger one.
        valid_fraction: Fraction of the patients to hold out where there is no `valid.csv`, in [0, 1).

    Raises:
        BadFilesError: If files are missing, empty, cut short, no images, or outside the folder; it has the list.
        DatasetError: If a table is missing or has a value that CheXpert does not define, two splits share a
            patient, or `frontal_only` leaves nothing.
        ValueError: If an argument is not one of those named here.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"Expected splits from {', '.join(SPLITS)}, got {unknown[0]!r}.")
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"Expected valid_fraction in [0, 1), got {valid_fraction}.")
    asked = None if observations is None else check_observations(observations)
    layout, folder = find_layout(root)
    names = asked or layout.labels.names
    tables = _read_splits(layout, folder, splits, names, valid_fraction)
    for split, table in tables.items() if frontal_only else ():
        tables[split] = table[table["is_frontal"]]
        if tables[split].empty:
            raise DatasetError(f"All {len(table):,} radiographs of {split} are laterals; leave the split out.")
    if num_patients is not None and "train" in tables:
        patients = _shuffled(tables["train"]["patient"])
        if not 1 <= num_patients <= len(patients):
            raise DatasetError(
                f"Expected num_patients from 1 to {len(patients):,}, the patients of train that the filter leaves, "
                f"got {num_patients}."
            )
        tables["train"] = tables["train"][tables["train"]["patient"].isin(patients[:num_patients])]
    paths = [path for table in tables.values() for path in table["path"]]
    if check_files and (faults := find_bad_files(folder, paths, follow_links=follow_links, say=say)):
        line = (
            f"{len(faults):,} of {len(paths):,} files cannot be used: "
            f"{listed([f'{path} ({fault})' for path, fault in faults.items()])}. They were looked for in "
            f"{str(folder)!r}: put them there, or pass check_files=False to work with the labels alone."
        )
        raise BadFilesError(line, faults)
    return DatasetDict({split: _to_dataset(table, split, folder, names) for split, table in tables.items()})


load_chexpert = load_dataset
"""The name of `load_dataset` in version 0.1.0."""


def _read_splits(
    layout: Layout, folder: Path, splits: Sequence[str], observations: Sequence[str], valid_fraction: float
) -> dict[str, pd.DataFrame]:
    has_valid = layout.has_split(folder, "valid")
    sources = dict.fromkeys("train" if split == "valid" and not has_valid else split for split in splits)
    tables = {source: layout.read(folder, source, observations) for source in sources}
    if "train" in tables and not has_valid:
        patients = _shuffled(tables["train"]["patient"])
        count = max(1, round(valid_fraction * len(patients))) if valid_fraction else 0
        is_held_out = tables["train"]["patient"].isin(patients[:count])
        tables["train"], tables["valid"] = tables["train"][~is_held_out], tables["train"][is_held_out]
    for split in splits:
        if tables[split].empty:
            raise DatasetError(
                f"{split} is empty: there is no valid.csv, and valid_fraction={valid_fraction} of the patients of "
                "train.csv leaves it none. Add a valid.csv, or choose another fraction."
            )
    for one, other in combinations(dict.fromkeys(splits), 2):
        shared = sorted(set(tables[one]["patient"]) & set(tables[other]["patient"]))
        if shared:
            raise DatasetError(
                f"{one} and {other} share {len(shared):,} patients ({listed(shared)}); expected none, or scores on "
                f"{other} would be too good. Take their rows out of one of the tables."
            )
    return {split: tables[split] for split in splits}


def _shuffled(patients: pd.Series) -> list[str]:
    # The order of two patients depends on nothing but their names: subsets nest, and neither the order of the rows nor
    # other patients' coming and going changes it.
    return sorted(patients.unique(), key=lambda name: hashlib.blake2b(f"0/{name}".encode()).digest())


def _to_dataset(table: pd.DataFrame, split: str, folder: Path, observations: Sequence[str]) -> Dataset:
    labels_type = List(Value("float32"), length=len(observations))
    columns = {name: Value(_TYPES.get(name, "string")) for name in COLUMNS}
    features = Features({"image": Image(), **columns, "labels": labels_type})
    # Built as stored, a path without bytes: to encode 223,414 paths one by one would take a second.
    files = pa.array((f"{folder}{os.sep}" + table["path"]).astype(object), pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(table), pa.binary()), files], names=["bytes", "path"])
    values = pa.array(table[list(observations)].to_numpy(np.float32).ravel())
    plain = {name: pa.array(table[name], dtype.pa_type, from_pandas=True) for name, dtype in columns.items()}
    arrow = pa.table({"image": images, **plain, "labels": pa.FixedSizeListArray.from_arrays(values, len(observations))})
    info = DatasetInfo(description=_LABELS_LINE + ", ".join(observations), features=features)
    # Names the content, for the caches of datasets, which would pickle the whole table for that.
    digest = hashlib.blake2b(info.description.encode(), digest_size=8)
    for column in arrow.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
            digest.update(buffer)
    return Dataset(arrow, info=info, split=NamedSplit(split), fingerprint=digest.hexdigest())
