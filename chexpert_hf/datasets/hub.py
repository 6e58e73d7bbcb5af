"""Downloads data sets of the Hugging Face Hub, once, into a folder that the layouts read.

A repository of files in a known layout is downloaded as it is. Tables with images inside (Parquet) are streamed from
the Hub, and their images are written as files beside a CSV file, so that training reads them like any other.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, errors, snapshot_download

from chexpert_hf.datasets.cells import SPLIT_OF, DatasetError
from chexpert_hf.datasets.layouts.table import is_fact
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line, new_folder
from chexpert_hf.radiographs.finding import IMAGE_SUFFIXES

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_CELLS = {
    **{"unlabeled": "", "blank": "", "uncertain": "-1", "-1": "-1"},
    **dict.fromkeys(("absent", "negative", "no", "0"), "0"),
    **dict.fromkeys(("present", "positive", "yes", "1"), "1"),
}
"""Name of a class of one observation, in lower case -> the cell of a CSV file that it becomes."""


def is_repository(root: str | Path) -> bool:
    """Return whether a text has the form of a repository's id ("user/name") and no such path exists."""
    return bool(_REPOSITORY.fullmatch(str(root))) and not Path(root).exists()


def fetch(repository: str) -> Path:
    """Return the local folder of a data set of the Hub; download it if its newest version is not there yet.

    Without a network, the version that was downloaded last is used.

    Raises:
        DatasetError: If there is no such data set, it cannot be reached, or it has no images.
    """
    kept = Path(datasets.config.HF_DATASETS_CACHE, "chexpert-hf", repository.replace("/", "--"))
    with _errors_of(repository):
        files = _files_of(repository)
        if files is None and (earlier := sorted(kept.glob("*/"), key=lambda folder: folder.stat().st_mtime)):
            return earlier[-1]
        if files is None or not any(name.endswith(".parquet") for name in files[1]):
            return Path(snapshot_download(repository, repo_type="dataset"))
    commit, _ = files
    if not (kept / commit).is_dir():
        with new_folder(kept / commit) as beside, _errors_of(repository):
            write_files(datasets.load_dataset(repository, revision=commit, streaming=True), beside)
    return kept / commit


@contextmanager
def _errors_of(repository: str) -> Iterator[None]:
    """Context manager that turns errors of the Hub and its clients, and of damaged files, into DatasetError."""
    try:
        yield
    except InputError:
        raise
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise DatasetError(
            f"There is no folder {repository}, and no data set of this name can be fetched from the Hub: "
            f"{first_line(error)}"
        ) from None


def _files_of(repository: str) -> tuple[str, list[str]] | None:
    """Return the newest commit of a data set of the Hub and the names of its files; None if there is no network."""
    try:
        info = HfApi().dataset_info(repository)
    except errors.HfHubHTTPError:
        raise
    except (errors.HTTPError, OSError):
        return None
    return str(info.sha), [file.rfilename for file in info.siblings or ()]


def write_files(splits: Mapping[str, Any], folder: Path) -> None:
    """Write each split as image files in `images/` and a CSV file: `train.csv`, `valid.csv` or `test.csv`.

    Args:
        splits: A `datasets.DatasetDict` or `IterableDatasetDict` with a feature of images. A feature of text or numbers
            becomes a column. A `ClassLabel` becomes one column if its name is that of a fact about the patient or
            image, such as "sex", or if its classes are states of one observation ("unlabeled", "uncertain", "absent",
            "present"). Any other `ClassLabel`, or a list of them, becomes a column of 1 and 0 for each class. Features
            of other kinds are dropped.
        folder: The existing folder to write to.

    Raises:
        DatasetError: If an image is missing, or a split has no feature of images or is none of train, valid and test.
    """
    for split, data in splits.items():
        name = SPLIT_OF.get(split)
        if name is None:
            raise DatasetError(f"The data set has a split {split!r}; expected {', '.join(SPLIT_OF)}.")
        image = next((key for key, each in (data.features or {}).items() if isinstance(each, datasets.Image)), None)
        if image is None:
            raise DatasetError(f"The split {split!r} has no column of images; it has {', '.join(data.features or ())}.")
        (folder / "images" / name).mkdir(parents=True)
        _write_split(data.cast_column(image, datasets.Image(decode=False)), image, folder, name)


def _write_split(data: Any, image: str, folder: Path, name: str) -> None:
    parts = [(key, *part) for key, feature in data.features.items() if key != image for part in _parts(key, feature)]
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *(column for _, column, _ in parts)])
        for number, row in enumerate(data):
            content = (row[image] or {}).get("bytes")
            if content is None:  # only a path, which may be of any file on this machine
                raise DatasetError(f"Row {number} of the split {name!r} has no image in it.")
            suffix = Path(row[image]["path"] or "").suffix.lower()
            path = f"images/{name}/{number:07}{suffix if suffix in IMAGE_SUFFIXES else '.png'}"
            (folder / path).write_bytes(content)
            table.writerow([path, *("" if row[key] is None else cell(row[key]) for key, _, cell in parts)])


def _parts(name: str, feature: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield (column name, function from value to cell) for each of the CSV columns that one feature is split into."""
    of_list = getattr(feature, "feature", None)
    if isinstance(feature, datasets.ClassLabel) and {each.lower() for each in feature.names} <= set(_CELLS):
        cells = [_CELLS[each.lower()] for each in feature.names]
        yield name, lambda value: cells[value] if value >= 0 else ""  # -1: no class
    elif isinstance(feature, datasets.ClassLabel) and is_fact(name):
        yield name, lambda value: feature.names[value] if value >= 0 else ""
    elif isinstance(feature, datasets.ClassLabel):
        yield from ((each, partial(_is_class, index)) for index, each in enumerate(feature.names))
    elif isinstance(of_list, datasets.ClassLabel):
        yield from ((each, partial(_has_class, index)) for index, each in enumerate(of_list.names))
    elif isinstance(feature, datasets.Value):
        yield name, lambda value: int(value) if isinstance(value, bool) else value


def _is_class(index: int, value: int) -> int | str:
    return int(value == index) if value >= 0 else ""  # -1: no class


def _has_class(index: int, values: Sequence[int]) -> int:
    return int(index in values)
