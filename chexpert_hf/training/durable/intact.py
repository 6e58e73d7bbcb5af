"""Checkpoints with a manifest: the checksum of each file, written last. Verification and one-line errors.

A folder that was cut short has no manifest, a changed file does not match it, and the manifest has a checksum of its
own. This finds damage, not forgery.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line, sha256_of

MANIFEST_FILE = "manifest.json"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save raises RuntimeError on a full disk

_READ_ERRORS = (*WRITE_ERRORS, ValueError, LookupError, TypeError, AttributeError, EOFError)
_PROBE_BYTES = 1 << 20
_THREADS = 4  # hashing and waiting for the disk release the interpreter


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or cannot be trusted."""


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` in a folder, oldest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    return sorted((path for path in folder.glob("*") if pattern.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(folder: Path, values: Mapping[str, Any]) -> None:
    """Flushes every file of a folder and its subfolders to the disk, then writes a manifest of them with `values`."""
    names = _names(folder)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(to_disk, folder.rglob("*")))
        checksums = list(threads.map(lambda name: sha256_of(folder / name), names))
    if None in checksums:
        raise OSError(f"{names[checksums.index(None)]} cannot be read back")
    file = folder / MANIFEST_FILE
    file.write_bytes(manifest_text({**values, "files": dict(zip(names, checksums, strict=True))}))
    to_disk(file)
    to_disk(folder)


def manifest_text(values: Mapping[str, Any]) -> bytes:
    """The canonical text of a manifest; its own checksum is on the last line but one."""
    body = json.dumps(values, indent=1, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-2]},\n "sha256": "{own}"\n}}\n'.encode()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The values of a folder's manifest, and `files`, the SHA-256 of each path; None if it is missing or damaged."""
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        values = json.loads(content)
        del values["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if content == manifest_text(values) else None  # not canonical: it was changed


def fault_of_checkpoint(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in a few words; None if it is as it was written."""
    if not (checkpoint / MANIFEST_FILE).is_file():
        return f"it has no {MANIFEST_FILE}, so it was cut short, or written by another program"
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"{MANIFEST_FILE} is damaged"
    checksums: dict[str, str] = manifest["files"]
    for name in sorted(set(_names(checkpoint)) - checksums.keys()):
        return f"{name} does not belong to it"
    with ThreadPoolExecutor(_THREADS) as threads:
        faults = list(threads.map(lambda item: _fault(checkpoint, *item), checksums.items()))
    step = manifest.get("step")
    is_own = step == step_of(checkpoint)
    return next(filter(None, faults), None if is_own else f"it is the checkpoint of step {step} under another name")


def _names(folder: Path) -> list[str]:
    """The paths of all files in a folder except its manifest, with "/" between their parts."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {MANIFEST_FILE})


def _fault(folder: Path, name: str, expected: str) -> str | None:
    if not (folder / name).is_file():  # opening a named pipe would wait for ever
        return f"{name} is missing"
    found = sha256_of(folder / name)
    if found is None:
        return f"{name} cannot be read"
    return None if found == expected else f"{name} is not as it was written"


def expect_intact(checkpoint: Path) -> None:
    """Raises CheckpointError if a checkpoint is not as it was written."""
    if fault := fault_of_checkpoint(checkpoint):
        raise CheckpointError(f"{checkpoint} cannot be used: {fault}. Restore it from a copy, or train again.")


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Turns any error of loading a checkpoint into a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: it holds a pickle of more than plain values.") from error
    except _READ_ERRORS as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: {first_line(error)}") from error


def cannot_write(checkpoint: Path, unfinished: Path, error: BaseException) -> str:
    """One line about a checkpoint that could not be written to `unfinished`, which is still there."""
    intact = (path for path in reversed(numbered_checkpoints(checkpoint.parent)) if not fault_of_checkpoint(path))
    newest = next(intact, None)
    advice = f"{newest.name} is intact: fix this and resume" if newest else "there is no earlier checkpoint"
    return f"{checkpoint} could not be written: {_why(unfinished, error)}; {advice}."


def _why(folder: Path, error: BaseException) -> str:
    """Why a write failed; torch.save hides it ("unexpected pos 24128 vs 24020"), so another write is tried."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        (folder / "probe").write_bytes(bytes(_PROBE_BYTES))
        to_disk(folder / "probe")
    except OSError as probe:
        return str(probe.strerror)
    return first_line(error)


def to_disk(path: Path) -> None:
    """Flushes the content of a file, or the names in a folder where the operating system can, to the disk."""
    is_posix = os.name == "posix"
    if path.is_dir() and not is_posix:
        return
    descriptor = os.open(path, os.O_RDONLY if is_posix else os.O_RDWR)  # Windows flushes writable files only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
