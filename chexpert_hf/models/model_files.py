"""The files of a model folder or an ensemble, and their checksums, which detect any change.

`checksums.json` holds the SHA-256 of a folder's `checksummed_files`. Its own text has exactly one valid form, so that
changes of `checksums.json` are detected, too. Loading a model verifies the files that are read; `chexpert-hf check`
verifies all files.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.files import sha256_of, text_beside, write_json, write_text

CHECKSUMS_FILE, ENSEMBLE_FILE = "checksums.json", "ensemble.json"
RECIPE_FILE, CURVE_FILE, EVALUATION_FILE, TERMS_FILE = "recipe.yaml", "curve.png", "evaluation.json", "terms.json"
NEEDED_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")  # required for scoring
LOADED_FILES = (*NEEDED_FILES, "gate.safetensors")  # read before scoring; graphs have their checksums in `export.json`
BACKBONES_FILE, MODELING_FILE = "backbones_chexpert.py", "modeling_chexpert.py"
CODE_FILES = ("labels.py", "configuration_chexpert.py", "image_processing_chexpert.py", BACKBONES_FILE, MODELING_FILE)
# A complete model folder has all of these.
CARD_FILE = "README.md"
REQUIRED_FILES = (CARD_FILE, *NEEDED_FILES, *CODE_FILES, "reference.json")
# Published, too, where present: names, or patterns of paths.
_GRAPH_FILES = ("export.json", "onnx/*.onnx", "openvino/*.xml", "openvino/*.bin")
OPTIONAL_FILES = ("LICENSE", EVALUATION_FILE, TERMS_FILE, RECIPE_FILE, CURVE_FILE, "gate.safetensors", *_GRAPH_FILES)
# Written by a run and never published: hashes of patients' ids, its log, labels of single radiographs.
_PRIVATE_FILES = ("*_patients.json", "history.json", "soft_labels.csv")
# Folders that a training run leaves in its model folder, and that are not part of the model.
RUN_FOLDERS = ("checkpoints", "members", "teacher", "teachers", "conditional", "folds", "logs")


class ChecksumError(InputError):
    """A file of a model folder has changed since the folder was saved, or cannot be read."""


def no_model(folder: Path, name: str | Path) -> ModelFolderError:
    """Return the error that `folder`, which the user called `name`, holds no config.json and thus no model."""
    if (folder / "adapter_config.json").is_file():
        return ModelFolderError(
            f"{name} holds an adapter, expected a model folder: load the adapter with peft, and save what its "
            "merge_and_unload() returns with chexpert_hf.save_model_folder."
        )
    return ModelFolderError(f"{name} holds no config.json; expected a model folder.")


def missing_files(folder: Path) -> list[str]:
    """Return the `REQUIRED_FILES` that a folder lacks.

    In folders saved by version 0.1, which have the backbone in the modeling file, `backbones_chexpert.py` is not
    required.
    """
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if BACKBONES_FILE in missing and MODELING_FILE not in missing:
        imports_it = f"from .{Path(BACKBONES_FILE).stem} import" in (folder / MODELING_FILE).read_text(encoding="utf-8")
        return missing if imports_it else [name for name in missing if name != BACKBONES_FILE]
    return missing


def published_files(folder: Path) -> list[str]:
    """Return the sorted relative paths of a folder's files that are uploaded to the Hub."""
    return _matching(folder, (*REQUIRED_FILES, *OPTIONAL_FILES))


def checksummed_files(folder: Path) -> list[str]:
    """Return the sorted relative paths of a folder's files that get a checksum, including those never published."""
    return _matching(folder, (*REQUIRED_FILES, *OPTIONAL_FILES, *_PRIVATE_FILES))


def _matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    own = [path for path in paths if path.parent == folder or not path.parent.is_symlink()]
    return sorted(path.relative_to(folder).as_posix() for path in own)


def matches(name: str, pattern: str) -> bool:
    """Return whether a path in a folder fits a pattern as in `OPTIONAL_FILES`: `onnx/model.onnx` fits `onnx/*.onnx`."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` for all files of a folder that get a checksum (`checksummed_files`)."""
    _write(folder, {}, checksummed_files(folder))


def renew_checksums(folder: Path, names: Iterable[str]) -> None:
    """Update the checksums of the files `names`, or drop those of missing files; no effect without `checksums.json`."""
    checksums = read_checksums(folder)
    if checksums is not None:
        names = set(names)
        kept = {name: value for name, value in checksums.items() if name not in names}
        _write(folder, kept, [name for name in names if (folder / name).is_file()])


def _write(folder: Path, kept: Mapping[str, str], new: Iterable[str]) -> None:
    checksums = {**kept, **{name: sha256_of(folder / name) for name in new}}
    if unreadable := [name for name, value in checksums.items() if value is None]:
        raise ChecksumError(f"{folder / unreadable[0]} cannot be read, so it has no checksum.")
    write_json(folder / CHECKSUMS_FILE, {"sha256": dict(sorted(checksums.items()))})


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return the checksums of a folder's files by path; None without `checksums.json`, ChecksumError if damaged."""
    try:
        content = (folder / CHECKSUMS_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ChecksumError(f"{folder / CHECKSUMS_FILE} cannot be read: {error.strerror}.") from error
    try:
        checksums = {str(name): str(value) for name, value in json.loads(content)["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        checksums = {}
    if content != (json.dumps({"sha256": dict(sorted(checksums.items()))}, indent=2) + "\n").encode():
        raise ChecksumError(f"{folder / CHECKSUMS_FILE} is damaged; copy or download the folder again.")
    return checksums


def differences(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """Return a line for each file that does not match `checksums.json`, e.g. "config.json is missing".

    `names` are the files to compare, by default all that have or should have a checksum. [] without `checksums.json`.
    """
    checksums = read_checksums(folder)
    if checksums is None:
        return []
    lines = []
    for name in sorted({*checksums, *checksummed_files(folder)} if names is None else set(names)):
        is_there = (folder / name).is_file()
        if name not in checksums:
            lines += [f"{name} has no checksum"] if is_there else []
        elif not is_there:
            lines.append(f"{name} is missing")
        elif sha256_of(folder / name) != checksums[name]:
            lines.append(f"{name} is not as it was saved")
    return lines


def verify_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise ChecksumError if one of the files `names` differs from its checksum, or only one of the two exists.

    By default, all files are checked that have or should have a checksum. Raise ChecksumError, too, if `checksums.json`
    is damaged. No effect without it.
    """
    if found := differences(folder, names):
        raise ChecksumError(
            f"{folder}: {found[0]} ({CHECKSUMS_FILE}){f', and {len(found) - 1} more' if len(found) > 1 else ''}. Copy "
            f"or download it again; if you changed it yourself: `chexpert-hf check --model {folder} --accept`."
        )


def write_ensemble(folder: Path, members: Sequence[Path]) -> None:
    """Make a folder an ensemble: copy the members to `members/01`, ..., and write `ensemble.json` and a model card.

    Each member is a model folder or a checkpoint. Only its weights, configuration, processor, code and gate (if any)
    are copied; the copies get checksums.
    """
    names = []
    for number, member in enumerate(members, start=1):
        copy = folder / "members" / f"{number:02d}"
        copy.mkdir(parents=True, exist_ok=True)
        for file in (*(member / name for name in NEEDED_FILES), *member.glob("*.py"), *member.glob("gate.safetensors")):
            shutil.copy(file, copy)
        write_checksums(copy)
        names.append(copy.relative_to(folder).as_posix())
    write_json(folder / ENSEMBLE_FILE, {"members": names})
    named = {"name": folder.resolve().name, "model_id": folder.as_posix()}
    card = text_beside(__file__, "ensemble_card.md").format(count=len(names), **named)
    write_text(folder / CARD_FILE, card)


def ensemble_members(model: str | Path) -> list[str | Path]:
    """Return the folders of an ensemble's members. If `model` is no ensemble, return a list with `model` alone.

    "nih" is replaced by the path of the bundled model. Raises ModelFolderError if `ensemble.json` is damaged.
    """
    model = resolve_model(model)
    path = Path(model) / ENSEMBLE_FILE
    if not path.is_file():
        return [model]
    try:
        members = json.loads(path.read_text(encoding="utf-8"))["members"]
        if not members or isinstance(members, str):
            raise ValueError(members)
        return [path.parent / name for name in members]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path} is damaged; expected a list 'members' of folders.") from error
