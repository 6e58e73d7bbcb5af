"""Which files make a model folder, and the sums by which a changed byte in any of them is found.

`checksums.json` holds the SHA-256 of every file of the folder that is named here. It is written in one form only, so
that a change of itself is found as well. What is loaded is verified then; `chexpert-hf check` verifies all.
"""

import json
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from chexpert_hf.errors import InputError
from chexpert_hf.files import sha256_of

CHECKSUMS_FILE = "checksums.json"

NEEDED_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""Without these nothing can be scored."""

LOADED_FILES = (*NEEDED_FILES, "gate.safetensors")
"""What this package reads before it scores; exported graphs have sums of their own in `export.json`."""

CODE_FILES = (
    "labels.py",
    "configuration_chexpert.py",
    "image_processing_chexpert.py",
    "modeling_chexpert.py",
)

REQUIRED_FILES = (
    "README.md",
    *NEEDED_FILES,
    *CODE_FILES,
    "reference.json",
)
"""Without these a model folder is not complete."""

OPTIONAL_FILES = (
    "LICENSE",
    "evaluation.json",
    "recipe.yaml",
    "curve.png",
    "gate.safetensors",
    "export.json",
    "onnx/*.onnx",
    "openvino/*.xml",
    "openvino/*.bin",
)
"""What else of a model folder is meant for others: names, or patterns of paths."""

PRIVATE_FILES = ("*_patients.json", "history.json", "soft_labels.csv")
"""What a run leaves beside the model and keeps: hashes of patients' ids, its log, labels of single radiographs."""


class ChecksumError(InputError):
    """A file of a model folder that is not as it was when the folder was saved."""


def missing_files(folder: Path) -> list[str]:
    """The files without which a model folder is not complete, and that are not there."""
    return [name for name in REQUIRED_FILES if not (folder / name).is_file()]


def published_files(folder: Path) -> list[str]:
    """The paths in a folder that are meant for others, sorted."""
    return _matching(folder, (*REQUIRED_FILES, *OPTIONAL_FILES))


def summed_files(folder: Path) -> list[str]:
    """The paths in a folder that have a sum: what is meant for others, and what a run keeps beside it."""
    return _matching(folder, (*REQUIRED_FILES, *OPTIONAL_FILES, *PRIVATE_FILES))


def write_checksums(folder: Path) -> None:
    """Writes `checksums.json` for the files as they are now, whole or not at all."""
    _write(folder, {name: _sum(folder / name) for name in summed_files(folder)})


def renew_checksums(folder: Path, names: Iterable[str]) -> None:
    """Takes these files as they are now, in a folder that has sums; a folder without stays without.

    The other files keep their sums, so that a file that was damaged meanwhile is still found.

    Args:
        folder: The model folder.
        names: Paths in it; one that is gone loses its sum.

    Raises:
        ChecksumError: If `checksums.json` is damaged.
    """
    sums = read_checksums(folder)
    if sums is not None:
        new = {name: _sum(folder / name) for name in names if (folder / name).is_file()}
        _write(folder, {name: value for name, value in sums.items() if name not in set(names)} | new)


def read_checksums(folder: Path) -> dict[str, str] | None:
    """The sums by path; None if the folder has none.

    Raises:
        ChecksumError: If the file is not as it was written.
    """
    try:
        content = (folder / CHECKSUMS_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ChecksumError(f"{folder / CHECKSUMS_FILE} cannot be read: {error.strerror}.") from error
    try:
        sums = {str(name): str(value) for name, value in json.loads(content)["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        sums = {}
    if content != _text(sums):
        raise ChecksumError(f"{folder / CHECKSUMS_FILE} is damaged; copy or download the folder again.")
    return sums


def differences(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is not as it was, a line for each file; nothing for a folder without sums.

    Args:
        folder: The model folder.
        names: The files to look at; all that have a sum or should if None.

    Raises:
        ChecksumError: If `checksums.json` itself is damaged.
    """
    sums = read_checksums(folder)
    if sums is None:
        return []
    wanted = set(sums) | set(summed_files(folder)) if names is None else set(names)
    lines = []
    for name in sorted(wanted):
        is_there = (folder / name).is_file()
        if name not in sums:
            lines += [f"{name} has no sum"] if is_there else []
        elif not is_there:
            lines.append(f"{name} is missing")
        elif sha256_of(folder / name) != sums[name]:
            lines.append(f"{name} is not as it was saved")
    return lines


def verify_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raises ChecksumError if a file of a folder with sums is not as it was; see `differences`."""
    if found := differences(folder, names):
        raise ChecksumError(
            f"{folder}: {found[0]} ({CHECKSUMS_FILE}){f', and {len(found) - 1} more' if len(found) > 1 else ''}. Copy "
            f"or download it again; if you changed it yourself, accept it with `chexpert-hf check {folder} --accept`."
        )


def verify_loaded_files(folder: Path) -> None:
    """Verifies what scores are computed from, in a folder with sums.

    Raises:
        ChecksumError: If a file is not as it was when the folder was saved.
    """
    verify_checksums(folder, [name for name in LOADED_FILES if (folder / name).is_file()])


def _matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    found = []
    for parent in sorted({str(Path(pattern).parent) for pattern in patterns}):
        place = folder / parent
        if place.is_dir() and not (parent != "." and place.is_symlink()):
            names = [path.relative_to(folder).as_posix() for path in place.iterdir() if path.is_file()]
            found += [name for name in names if any(matches(name, pattern) for pattern in patterns)]
    return sorted(set(found))


def matches(name: str, pattern: str) -> bool:
    """Whether a path in a folder is a name or fits a pattern of the lists above."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _sum(path: Path) -> str:
    value = sha256_of(path)
    if value is None:
        raise ChecksumError(f"{path} cannot be read, so it has no sum.")
    return value


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    partial = folder / f".{CHECKSUMS_FILE}.{os.getpid()}"
    partial.write_bytes(_text(sums))
    partial.replace(folder / CHECKSUMS_FILE)


def _text(sums: Mapping[str, str]) -> bytes:
    return (json.dumps({"sha256": dict(sorted(sums.items()))}, indent=2) + "\n").encode()
