"""Reads a second reference standard: a CSV file of other readers' labels, and boxes, for images of a data set.

The column Path names the image of a row. A column with the name of an observation, or mapped to one, holds its labels.
In a column `Observation`, each cell names one finding that is in the image; findings that are not named are unknown.
Rows with `x, y, width, height` are boxes, in pixels of the upright image (with its EXIF orientation) at full size.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexpert_hf.datasets.cells import BLANKS, DatasetError, header_of, listed, parse_number, read_cells
from chexpert_hf.datasets.label_sets import same_label
from chexpert_hf.datasets.layout import BOX_SIDES, Layout
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.labels import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN

Box: TypeAlias = tuple[float, ...]
"""x, y, width, height in pixels of the upright image at its full size."""

_BROADER_NAMES = {
    "Pleural_Thickening": "Pleural Other",
    "Nodule": "Lung Lesion",
    "Mass": "Lung Lesion",
    "Infiltrate": "Lung Opacity",
    "Infiltration": "Lung Opacity",
}
"""Name of NIH's labels and boxes (BBox_List_2017.csv) -> the observation of CheXpert that includes it."""

_FINDING_COLUMN = "Observation"
_CERTAINTY = {POSITIVE: 1.0, UNCERTAIN: 0.5, NEGATIVE: 0.0}
"""Label -> certainty; if an image has several rows, the highest counts."""


class ReferenceFileError(InputError):
    """A reference standard cannot be read, or has none of the images of the split."""


@dataclass(frozen=True)
class Target:
    """One finding of a reference standard, and the model's observation that it is compared with."""

    name: str  # the column, such as "Target"; for a column of texts "column:positive text", as in "Class:Normal"
    observation: str  # the model's observation whose score is compared with the labels
    against: str | None  # condition on the rows used as negatives, such as "Class=Normal"; None: all negatives
    labels: Mapping[str, float]  # path -> 1, 0, -1 (uncertain), or NaN where it is not stated
    boxes: Mapping[str, Sequence[Box]]  # path -> boxes around the finding, for images that have some


@dataclass(frozen=True)
class Reference:
    """A reference standard for some images of a data set: labels of findings, and boxes around them, if any."""

    name: str  # who set the labels, for reports
    file: str  # name of the file
    paths: tuple[str, ...]  # its images, such as "train/patient00001/study1/view1_frontal.jpg"
    targets: tuple[Target, ...]  # its findings
    skipped: tuple[str, ...] = ()  # observations in the file that the model does not score

    def labels(self, paths: Sequence[str]) -> NDArray[np.float64]:
        """Return the labels of these images, `(num_paths, num_targets)`: 1, 0, -1 (uncertain), NaN where not stated."""
        columns = [[target.labels.get(path, np.nan) for path in paths] for target in self.targets]
        return np.array(columns, dtype=float).T

    def rows_of(self, paths: Sequence[str]) -> list[int]:
        """Return the indices of those `paths` that are in this reference; ReferenceFileError if none is."""
        known = set(self.paths)
        rows = [row for row, path in enumerate(paths) if path in known]
        if not rows:
            raise ReferenceFileError(
                f"{self.file}: none of its {len(self.paths):,} images (such as {self.paths[0]!r:.90}) is among the "
                f"{len(paths):,} images of this split (such as {paths[0]!r:.90}); choose another --split or file."
            )
        return rows

    def coverage(self, paths: Sequence[str]) -> str:
        """Return a sentence: how many of `paths` (a split's images) this reference has, and how many other images.

        Raises ReferenceFileError if it has none of `paths`.
        """
        shared = len(self.rows_of(paths))
        line = (
            f"{self.name}: {shared:,} of the {len(paths):,} images of this split are in {self.file}; "
            f"{len(self.paths) - shared:,} other images of the file are not in this split."
        )
        return line + (f" Not judged by the model: {', '.join(self.skipped)}." if self.skipped else "")


@dataclass(frozen=True)
class _Choice:
    """A column of a reference standard, and the observation that its labels are compared with.

    `value` is the text of a positive cell, such as "Normal". If it is None, the cells decide. If any cell is the
    observation's name, cells with that name are positive. Otherwise all cells must be numbers, and 1 is positive.
    """

    column: str
    value: str | None
    observation: str


def read_reference(
    file: Path,
    observations: Sequence[str] = OBSERVATIONS,
    *,
    mapping: Sequence[str] = (),
    against: Sequence[str] = (),
    name: str | None = None,
    images: Sequence[str] = (),
) -> Reference:
    """Read a reference standard from a CSV file.

    Args:
        file: CSV file with the column Path; separated by commas, semicolons or tabs, in UTF-8 or UTF-16. Cells of a
            label are 1, 0, -1 (uncertain), blank (not stated), or text. Columns x, y, width and height are boxes.
        observations: The observations that the model scores.
        mapping: Which observation a column is compared with: "Target=Lung Opacity", or "Class:Normal=No Finding" for a
            column of text, in which "Normal" is positive. Several in one text are separated by commas. Columns that are
            named like an observation need no mapping.
        against: Conditions on the negatives, such as "Class=Normal". For each condition, every compared column is
            compared once more: with all its positives, but only those negatives that meet the condition.
        name: Who set the labels; the file's name if None.
        images: Paths of the images in the data set. The column Path may have more folders in front than these paths,
            or fewer. A path that fits none of these images is cut to its last four parts, such as
            "train/patient00001/study1/view1_frontal.jpg".

    Raises:
        ReferenceFileError: If the file cannot be read, has no labels, or a cell, a box, `mapping` or `against` is
            wrong; or if a path in it fits several `images`, or two different paths fit one image.
    """
    cells = _read_cells(file)
    cells["Path"] = _paths_in(cells["Path"], images, file)
    boxes = _read_boxes(cells, file)
    asked = [_parse_choice(item, observations) for text in mapping for item in text.split(",")]
    taken = {choice.column for choice in asked}
    named = [choice for choice in _named_columns(cells, observations, file) if choice.column not in taken]
    chosen = [*asked, *(choice for choice in named if choice.observation in observations)]
    if not chosen:
        raise ReferenceFileError(
            f"{file.name}: no column is named like an observation of the model; say which score stands for which of "
            f"its columns ({listed([column for column in cells if column not in ('Path', *BOX_SIDES)])}), such as "
            "--reference-map 'Target=Lung Opacity'."
        )
    targets = [_target(choice, cells, boxes, file) for choice in dict.fromkeys(chosen)]
    for text in against:
        allowed = _paths_where(text, cells, file)
        for target in [target for target in targets if target.against is None]:
            kept = {path: value for path, value in target.labels.items() if value == POSITIVE or path in allowed}
            targets.append(replace(target, against=text, labels=kept))
    skipped = dict.fromkeys(choice.observation for choice in named if choice.observation not in observations)
    return Reference(name or file.name, file.name, tuple(dict.fromkeys(cells["Path"])), tuple(targets), tuple(skipped))


def boxes_of(layout: Layout, folder: Path, observations: Sequence[str]) -> Reference | None:
    """Return the boxes of a data set as a reference standard; None if there are none.

    A finding gets the name of the one of `observations` that is the same or includes it, such as "Lung Lesion" for
    "Mass". If there is none, it gets CheXpert's name of the same finding, or keeps its own if CheXpert has none.
    """
    try:
        table = None if layout.boxes is None else layout.boxes(folder)
    except (ValueError, KeyError) as error:
        raise ReferenceFileError(f"The boxes in {folder} cannot be read: {first_line(error)}") from None
    if table is None:
        return None
    named = table["observation"].map(
        {name: observation_named(name, observations) for name in set(table["observation"])}
    )
    targets = []
    for observation, found in table.groupby(named, sort=False):
        boxes: dict[str, list[Box]] = {}
        for path, *box in found[["path", *BOX_SIDES]].itertuples(index=False, name=None):
            boxes.setdefault(path, []).append(tuple(box))
        targets.append(Target(str(observation), str(observation), None, dict.fromkeys(boxes, POSITIVE), boxes))
    files = f"the files of {layout.name}"
    return Reference(files, files, tuple(dict.fromkeys(table["path"])), tuple(targets))


def _read_cells(file: Path) -> pd.DataFrame:
    """Return every cell as text without blanks around it; the index is the row number in the file."""
    try:
        cells = read_cells(file, "Path", [name for name in header_of(file) if name])
    except DatasetError as error:
        raise ReferenceFileError(str(error)) from None
    if "Path" not in cells or cells.empty:
        came = "got no row" if "Path" in cells else f"got the columns {listed(list(cells))}"
        raise ReferenceFileError(f"{file.name}: expected rows with the column Path and labels, {came}.")
    return cells.astype(object).fillna("").apply(lambda column: column.str.strip())


def _paths_in(stated: pd.Series, images: Sequence[str], file: Path) -> pd.Series:
    """Return, for each cell of the column Path (`stated`), the path in `images` that the cell means.

    A cell may have more folders in front than that path, or fewer. A cell that fits none of `images` is cut to its last
    four parts. Raises ReferenceFileError, which names `file`, if a cell fits several images, or two different cells fit
    one image.
    """
    known, ends = set(images), defaultdict(list)
    for image in images:
        for end in _ends(image)[1:]:
            ends[end].append(image)

    def find(path: str) -> str:
        path = path.replace("\\", "/")
        if exact := next((end for end in _ends(path) if end in known), None):
            return exact
        found = ends.get(path, ())
        if len(found) > 1:
            raise ReferenceFileError(
                f"{file.name} row {stated.index[stated == path][0]}: Path is {path!r:.90}, which could be "
                f"{listed(found)}; expected one of them."
            )
        return found[0] if found else "/".join(path.split("/")[-4:])

    meant = {path: find(path) for path in stated.unique()}
    spelled: dict[str, str] = {}
    for path, image in meant.items():
        other = spelled.setdefault(image, path)
        if image in known and other.replace("\\", "/") != path.replace("\\", "/"):
            raise ReferenceFileError(
                f"{file.name}: {other!r:.90} and {path!r:.90} could both be {image!r:.90}; expected one path for an "
                "image, such as that in the data set."
            )
    return stated.map(meant)


def _ends(path: str) -> list[str]:
    """Return all ends of a path, longest first: for "a/b/c" these are "a/b/c", "b/c" and "c"."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _read_boxes(cells: pd.DataFrame, file: Path) -> dict[int, Box]:
    """Return row number in the file (the index of `cells`) -> box, for rows with a box.

    Raises ReferenceFileError, with the name of `file`, if columns of a box are missing or a box is malformed.
    """
    missing = [name for name in BOX_SIDES if name not in cells]
    if len(missing) == len(BOX_SIDES):
        return {}
    if missing:
        raise ReferenceFileError(
            f"{file.name}: expected the columns {', '.join(BOX_SIDES)} of boxes, missing: {', '.join(missing)}."
        )
    boxes = {}
    for row, *texts in cells[[*BOX_SIDES]].itertuples(name=None):
        if all(text.lower() in BLANKS for text in texts):
            continue
        try:
            boxes[row] = tuple(map(parse_number, texts))
        except ValueError:
            boxes[row] = (np.nan,)
        if not (np.isfinite(boxes[row]).all() and min(boxes[row][2:]) > 0):
            raise ReferenceFileError(
                f"{file.name} row {row}: {', '.join(texts)!r:.80} is no box; expected x, y, width, height in pixels."
            )
    return boxes


def observation_named(name: str, observations: Sequence[str]) -> str:
    """Return the one of `observations` that a name means, such as "Lung Lesion" for "Mass".

    If there is none, return the one of CheXpert's 14 observations that the name means, else the name itself.
    """
    broader = _BROADER_NAMES.get(name, name)
    same = same_label(name, observations) or same_label(broader, observations)
    return same or same_label(broader, OBSERVATIONS) or name


def _parse_choice(text: str, observations: Sequence[str]) -> _Choice:
    target, _, observation = (part.strip() for part in text.rpartition("="))
    column, has_value, value = (part.strip() for part in target.partition(":"))
    observation = observation_named(observation, observations)
    if not column or observation not in observations:
        raise ReferenceFileError(
            f"--reference-map: expected 'Target=Lung Opacity', a column and the score that stands for it, one of "
            f"{', '.join(observations)}; got {text.strip()!r:.90}."
        )
    return _Choice(column, value if has_value else None, observation)


def _named_columns(cells: pd.DataFrame, observations: Sequence[str], file: Path) -> Iterator[_Choice]:
    known = {*OBSERVATIONS, *observations}
    for column in cells:
        observation = observation_named(column, observations)
        if observation in known:
            yield _Choice(column, None, observation)
    findings = cells.get(_FINDING_COLUMN, pd.Series(dtype=str))
    plain = findings.str.casefold()
    for row, value in findings[~plain.duplicated() & ~plain.isin(BLANKS)].items():
        observation = observation_named(value, observations)
        if observation not in known:
            raise ReferenceFileError(
                f"{file.name} row {row}: {value!r:.60} is no observation of the model, CheXpert or NIH."
            )
        yield _Choice(_FINDING_COLUMN, value, observation)


def _target(choice: _Choice, cells: pd.DataFrame, boxes: Mapping[int, Box], file: Path) -> Target:
    column, value = choice.column, choice.value
    if column not in cells:
        raise ReferenceFileError(
            f"{file.name} has no column {column!r} for --reference-map; it has {listed([*cells])}."
        )
    texts = cells[column]
    texts = texts.mask(texts.str.lower().isin(BLANKS))
    if value is None and choice.observation in set(texts):
        value = choice.observation
    if value is None:
        values = _numbers(texts, choice, file)
    elif not (found := _is_text(texts, value)).any():
        known = listed(sorted(set(texts.dropna())))
        raise ReferenceFileError(f"{file.name}: no cell of {column} is {value!r:.60}; it has {known}.")
    else:  # a row that names one finding says nothing about the others
        values = found.astype(float).where(found if column == _FINDING_COLUMN else texts.notna())
    places: dict[str, list[Box]] = {}
    for row in values.index[values == POSITIVE].intersection(list(boxes)):
        places.setdefault(cells.loc[row, "Path"], []).append(boxes[row])
    labels = _per_image(values, cells["Path"], set(boxes), f"{file.name}, column {column}")
    return Target(column if value is None else f"{column}:{value}", choice.observation, None, labels, places)


def _numbers(texts: pd.Series, choice: _Choice, file: Path) -> pd.Series:
    """Convert the cells of a column of labels to certainties: "1" to 1, "0" to 0, "-1" (uncertain) to .5, blank to NaN.

    For any other cell, raise ReferenceFileError; its message names `file` and the column of `choice`.
    """
    values: dict[str, float] = {}
    for row, text in texts.dropna().drop_duplicates().items():
        try:
            values[text] = _CERTAINTY[parse_number(text)]
        except (ValueError, KeyError):
            example = f"{choice.column}:{text:.60}={choice.observation}"
            raise ReferenceFileError(
                f"{file.name} row {row}: {choice.column} is {text!r:.60}, expected 1, 0, -1 or blank; if the column "
                f"holds text, name its positive value: --reference-map '{example}'."
            ) from None
    return texts.map(values).astype(float)


def _per_image(values: pd.Series, paths: pd.Series, boxed: set[int], where: str) -> dict[str, float]:
    """Return path -> label: 1, 0, -1 (uncertain), or NaN where it is not stated.

    The label of an image with several rows is the highest of their values. If these values differ, each of the rows
    must have a box, or ReferenceFileError is raised.

    `values` holds the value of each row, with .5 for uncertain, and `paths` the image of each row. `boxed` are the rows
    with a box. `where` names file and column in errors.
    """
    grouped = values.groupby(paths, sort=False)
    highest = grouped.max()
    for path in highest.index[highest > grouped.min()]:
        rows = list(values.index[(paths == path) & values.notna()])
        if not boxed.issuperset(rows):
            raise ReferenceFileError(
                f"{where}: rows {listed([str(row) for row in rows])} say different things of {path!r:.90}; expected "
                "one row for each image, or rows with a box each."
            )
    return highest.where(highest != _CERTAINTY[UNCERTAIN], UNCERTAIN).to_dict()


def _paths_where(text: str, cells: pd.DataFrame, file: Path) -> set[str]:
    column, _, value = (part.strip() for part in text.partition("="))
    if column not in cells or not _is_text(cells[column], value).any():
        values = listed(sorted(set(cells[column]) - {""})) if column in cells else f"the columns {listed(list(cells))}"
        raise ReferenceFileError(
            f"{file.name}: no row fits --reference-against {text!r:.90}; expected a column and one of its values, such "
            f"as 'Class=Normal'; it has {values}."
        )
    return set(cells["Path"][_is_text(cells[column], value)])


def _is_text(cells: pd.Series, value: str) -> pd.Series:
    """Return whether each cell is the text `value`, ignoring case."""
    return cells.str.casefold() == value.casefold()
