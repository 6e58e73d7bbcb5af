"""Loads a folder as a `datasets.DatasetDict`: finds layout and splits, filters, takes subsets, checks image files.

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
from chexpert_hf.datasets.image_files import find_bad_files
from chexpert_hf.datasets.label_sets import union
from chexpert_hf.datasets.layout import COLUMNS, SPLITS, Layout
from chexpert_hf.datasets.sources import find_layout, read_splits, shuffled
from chexpert_hf.labels import LabelSet, check_observations

_RENAMED = {"rsna", "siim"}
_OF_NIH = {"nih", "google", *_RENAMED}
"""Layouts of NIH's radiographs; those in `_RENAMED` have other names of images, and no names of patients."""

_LABELS_LINE = "Observations in the order of `labels`: "
_TYPES = {"view": "int32", "age": "int32", "is_frontal": "bool"}  # the others are strings


class BadFilesError(DatasetError):
    """Image files cannot be used.

    `faults` maps the path of each bad file (the column `path` of a loaded data set) to its fault, such as "missing" or
    "empty"; see `find_bad_files`.
    """

    def __init__(self, message: str, faults: Mapping[str, str]) -> None:
        super().__init__(message)
        self.faults = faults

    def write_list(self, path: Path) -> None:
        """Write all faults to a CSV file with the columns `path` and `fault`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.faults.items(), columns=["path", "fault"]).to_csv(path, index=False)


def load_dataset(
    root: str | Path | Sequence[str | Path],
    *,
    layout: str | Layout | None = None,
    splits: Sequence[str] = ("train", "valid"),
    check_files: bool = True,
    follow_links: bool = True,
    say: Callable[[str], None] | None = None,
    frontal_only: bool = False,
    observations: Sequence[str] | None = None,
    num_patients: int | None = None,
    valid_fraction: float = 0.1,
) -> DatasetDict:
    """Load one data set, or several as one: splits in the order asked for, rows in the order of the files.

    Each row is one radiograph: `image` (absolute path, decoded on access), `path` (below the data set's folder),
    `patient`, `study` ("patient00001/study1"), `view` (1, 2, ...), `sex`, `age` in years, `projection` ("AP", "PA",
    None for laterals and where unknown), `is_frontal`, `source` (the folder's name if there are several), `labels_by`
    (the reference standard, None if the layout does not say), and `labels`: `(num_observations,)` float32 with 1, 0, -1
    (uncertain), NaN if the report does not mention the observation, or -100 if the data set has no labels of it. No
    uncertainty policy changes -100. With the layout "vindr-votes", labels are shares of the readers: 0, 1/3, 2/3, 1.
    `info.description` names the observations in the order of `labels`.

    If a folder has no valid split, a share of train's patients is held out as valid: always the same ones for the same
    `valid_fraction`. They are not in train even if `splits` does not ask for valid, so that loading the splits one by
    one does not leak. With `valid_fraction=0`, nobody is held out.

    Args:
        root: The folder of a data set (with `train.csv`, for example), the folder that contains it, a CSV file with a
            column of images, or the id of a data set on the Hub. Several are loaded as one: paths, studies and patients
            then begin with the name of their folder.
        layout: The name of a layout, such as "vindr-votes", or a layout of your own, such as one from `table_layout`;
            if None, it is recognised.
        splits: Some of "train", "valid" and "test". A test table may lack sex, age, view and projection.
        check_files: Whether to look at every image file before returning. If False, images need not exist.
        follow_links: Whether image files may be links that lead out of the folder. If False, the check refuses them.
        say: Called with lines for the user, such as "Radiographs reached through links: 3 of 200." Other lines tell
            which labels a data set lacks, or that splits may share patients, as files do not name patients or data sets
            overlap. If patients are held out and only train or only valid is loaded, a line tells how many radiographs
            that split has.
        frontal_only: Whether to drop lateral views.
        observations: The observations in `labels`, in this order, named as in the files or in another label set; if
            None, those of the layout; of several data sets, the union of theirs.
        num_patients: Take only this many of the patients in train (after `frontal_only`); other splits stay whole. A
            smaller subset is part of a larger one.
        valid_fraction: Fraction of the patients of train to hold out if there is no valid split, in [0, 1]; with 1,
            all are in valid.

    Raises:
        BadFilesError: If files are missing, empty, cut short, no images, or outside the folder.
        DatasetError: If a table is missing or has a value that its layout does not define, two splits share a patient,
            two data sets have the same name, `frontal_only` leaves nothing, or train has fewer than `num_patients`.
        ValueError: If `splits`, `valid_fraction` or `observations` has a value that is not allowed.
    """
    for name, given in (("splits", splits), ("observations", observations)):
        if isinstance(given, str | set | frozenset):
            raise ValueError(f"Expected {name} in a list, which has an order, got {given!r}.")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"Expected splits from {', '.join(SPLITS)}, got {unknown[0]!r}.")
    if not 0 <= valid_fraction <= 1:
        raise ValueError(f"Expected valid_fraction in [0, 1], got {valid_fraction}.")
    roots = [root] if isinstance(root, str | Path) else list(root)
    found = [find_layout(each, layout) for each in roots]
    names = check_observations(
        union(each.labels_in(folder) for each, folder in found).names if observations is None else observations
    )
    _expect_distinct(found, say)
    known = [name for each, folder in found for name in each.names_in(folder)] if len(found) > 1 else []
    tables = _merged([_read(*each, splits, names, valid_fraction, say, known) for each in found])
    _refuse_shared(tables)
    for split, table in tables.items() if frontal_only else ():
        tables[split] = table[table["is_frontal"]]
        if tables[split].empty:
            raise DatasetError(f"All {len(table):,} radiographs of {split} are laterals; leave the split out.")
    if num_patients is not None and "train" in tables:
        patients = shuffled(tables["train"]["patient"])
        if not 1 <= num_patients <= len(patients):
            raise DatasetError(
                f"Expected num_patients from 1 to {len(patients):,}, the patients of train that the filter leaves, "
                f"got {num_patients}."
            )
        tables["train"] = tables["train"][tables["train"]["patient"].isin(patients[:num_patients])]
    if check_files:
        _refuse_bad_files(tables, follow_links, say)
    return DatasetDict({split: _to_dataset(table, split, names) for split, table in tables.items()})


load_chexpert = load_dataset
"""The name of `load_dataset` in version 0.1.0."""


def data_name(roots: str | Path | Sequence[str | Path]) -> str:
    """Return the name of the data for reports and model cards: the folder's name, or several joined by "and"."""
    folders = [roots] if isinstance(roots, str | Path) else roots
    return " and ".join(Path(folder).resolve().name for folder in folders)


def label_set_of(root: str | Path | Sequence[str | Path], layout: str | Layout | None = None) -> LabelSet:
    """Return the observations that are loaded by default from a data set, or their union over several."""
    roots = [root] if isinstance(root, str | Path) else list(root)
    found = [find_layout(each, layout) for each in roots]
    return union(each.labels_in(folder) for each, folder in found)


def _read(
    layout: Layout,
    folder: Path,
    splits: Sequence[str],
    names: Sequence[str],
    valid_fraction: float,
    say: Callable[[str], None] | None,
    known: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """Return split -> table of `read_splits`, with further columns: `folder`, `file` (a path in it) and `source`.

    `names` are the observations to read. If several data sets are loaded together, `known` has the label names of all
    of them, `source` is the folder's name, and `path`, `study` and `patient` get a prefix that makes them unique. If
    only one is loaded, `known` is empty, `source` is None, and there is no prefix.
    """
    tables = read_splits(layout, folder, splits, names, valid_fraction, say, known)
    prefixes = dict.fromkeys(("path", "study"), folder.name) | {"patient": layout.patient_prefix or folder.name}
    for split, table in tables.items():
        renamed = {column: f"{prefix}/" + table[column] for column, prefix in prefixes.items() if known}
        source = folder.name if known else None
        tables[split] = table.assign(folder=str(folder), file=table["path"], source=source, **renamed)
    return tables


def _expect_distinct(found: Sequence[tuple[Layout, Path]], say: Callable[[str], None] | None) -> None:
    """Raise DatasetError if two data sets have the same name.

    Warn through `say` if two data sets, both made from NIH's, may share radiographs under different file names.
    """
    names = [folder.name for _, folder in found]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DatasetError(
            f"Two data sets are called {repeated!r}; rename a folder, so that their patients are told apart."
        )
    same = [layout.name for layout, _ in found if layout.name in _OF_NIH]
    if say is not None and len(same) > 1 and set(same) & _RENAMED:
        say(
            f"The radiographs of {' and '.join(same)} are partly the same under other names: splits may share patients."
        )


def _merged(sources: Sequence[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    if len(sources) == 1:
        return sources[0]
    return {split: pd.concat([source[split] for source in sources], ignore_index=True) for split in sources[0]}


def _refuse_shared(tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise DatasetError if the same patient or the same radiograph is in two splits."""
    for column, things in {"patient": "patients", "path": "radiographs"}.items():
        names = {split: set(table[column].unique()) for split, table in tables.items()}
        for one, other in combinations(tables, 2):
            if shared := sorted(names[one] & names[other]):
                raise DatasetError(
                    f"{one} and {other} share {len(shared):,} {things} ({listed(shared)}); expected none, or scores on "
                    f"{other} would be too good. Take their rows out of one of the tables."
                )


def _refuse_bad_files(
    tables: Mapping[str, pd.DataFrame], follow_links: bool, say: Callable[[str], None] | None
) -> None:
    files = pd.concat([table[["folder", "file", "path"]] for table in tables.values()])
    faults: dict[str, str] = {}
    places: list[str] = []
    for folder, rows in files.groupby("folder", sort=False):
        bad = find_bad_files(Path(str(folder)), rows["file"].tolist(), follow_links=follow_links, say=say)
        names = dict(zip(rows["file"], rows["path"], strict=True))
        faults |= {names[file]: fault for file, fault in bad.items()}
        places += [repr(folder)] if bad else []
    if faults:
        line = (
            f"{len(faults):,} of {len(files):,} files cannot be used: "
            f"{listed([f'{path} ({fault})' for path, fault in faults.items()])}. They were looked for in "
            f"{' and '.join(places)}: put them there, or take their rows out of the table."
        )
        raise BadFilesError(line, faults)


def expect_labels(data: Dataset, observations: Sequence[str]) -> None:
    """Raise DatasetError unless `data` has the columns of a split, and its labels are `observations` in this order.

    A split from `load_dataset` states the names of its labels, even after it was filtered or joined with another. For
    any other data, only the number of labels is compared.
    """
    if missing := [name for name in ("image", "path", "patient", "study", "labels") if name not in data.column_names]:
        raise DatasetError(
            f"The data have no column {missing[0]!r}; expected a split from load_dataset, got the columns "
            f"{', '.join(data.column_names)}."
        )
    way_out = "load them with observations=classifier.observations."
    if (given := getattr(data.features["labels"], "length", None)) != len(observations):
        raise DatasetError(f"The data have {given} labels, the model {len(observations)} observations; {way_out}")
    for line in data.info.description.split("\n\n"):
        if line.startswith(_LABELS_LINE) and line != _labels_line(observations):
            raise DatasetError(
                f"The data have the labels {line.removeprefix(_LABELS_LINE)}, in this order, the model "
                f"{', '.join(observations)}; {way_out}"
            )


def _labels_line(observations: Sequence[str]) -> str:
    return _LABELS_LINE + ", ".join(observations)


def _to_dataset(table: pd.DataFrame, split: str, observations: Sequence[str]) -> Dataset:
    labels_type = List(Value("float32"), length=len(observations))
    columns = {name: Value(_TYPES.get(name, "string")) for name in COLUMNS}
    features = Features({"image": Image(), **columns, "labels": labels_type})
    # Built in the stored form, a path without bytes: encoding 223,414 paths one by one would take a second.
    files = pa.array((table["folder"] + os.sep + table["file"]).astype(object), pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(table), pa.binary()), files], names=["bytes", "path"])
    values = pa.array(table[list(observations)].to_numpy(np.float32).ravel())
    plain = {name: pa.array(table[name], dtype.pa_type, from_pandas=True) for name, dtype in columns.items()}
    arrow = pa.table({"image": images, **plain, "labels": pa.FixedSizeListArray.from_arrays(values, len(observations))})
    info = DatasetInfo(description=_labels_line(observations), features=features)
    # A fingerprint of the content for the caches of `datasets`, which would pickle the whole table to make one.
    digest = hashlib.blake2b(info.description.encode(), digest_size=8)
    for column in arrow.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
            digest.update(buffer)
    return Dataset(arrow, info=info, split=NamedSplit(split), fingerprint=digest.hexdigest())
