"""Detects unfinished and damaged checkpoints by a manifest, which holds the checksum of each file.

The manifest is written last, so an unfinished folder has none. It also holds a checksum of its own content. This finds
damage, not forgery.
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
_THREADS = 4  # hashing and waiting for the disk release the interpreter's lock


class CheckpointError(InputError):
    """A checkpoint cannot be written, is unfinished or damaged, or does not fit the model."""


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the subfolders `checkpoint-N` of a folder, by ascending N."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    return sorted((path for path in folder.glob("*") if pattern.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step N after which the folder `checkpoint-N` was written."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(folder: Path, values: Mapping[str, Any]) -> None:
    """Flush all files below a folder to the disk, then write a manifest with their checksums.

    `values` are further entries of the manifest, such as the step.
    """
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
    """Return a manifest as JSON that ends with a checksum of the rest, `sha256`; equal values give equal bytes."""
    body = json.dumps(values, indent=1, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-2]},\n "sha256": "{own}"\n}}\n'.encode()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest: the values given to `seal`, and `files`, the SHA-256 by path.

    None if the manifest is missing or damaged. The files are not checked against it.
    """
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        values = json.loads(content)
        del values["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if content == manifest_text(values) else None


def fault_of_checkpoint(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, such as "model.safetensors is missing"; None if it is intact."""
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
    """Return the relative paths of all files below a folder except its manifest, sorted, with "/" as separator."""
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
    """Raise CheckpointError if a checkpoint is unfinished or damaged."""
    if fault := fault_of_checkpoint(checkpoint):
        raise CheckpointError(f"{checkpoint} cannot be used: {fault}. Restore it from a copy, or train again.")


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Context manager: turn errors in loading a checkpoint into a CheckpointError, one line that names its path.

    `checkpoint` is the path; None if the Trainer, whose loading methods run in the context, has none to load.
    """
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: it holds a pickle of more than plain values.") from error
    except _READ_ERRORS as error:
        raise CheckpointError(f"{checkpoint} cannot be loaded: {first_line(error)}") from error


def cannot_write(checkpoint: Path, unfinished: Path, error: BaseException) -> str:
    """Return the message for a failed save: the checkpoint, the cause, and the newest checkpoint that is intact.

    `checkpoint` is the path that the failed checkpoint would have got, `unfinished` the folder that it was written to.
    """
    intact = (path for path in reversed(numbered_checkpoints(checkpoint.parent)) if not fault_of_checkpoint(path))
    newest = next(intact, None)
    advice = f"{newest.name} is intact: fix this and resume" if newest else "there is no earlier checkpoint"
    return f"{checkpoint} could not be written: {_why(unfinished, error)}; {advice}."


def _why(folder: Path, error: BaseException) -> str:
    """Return the cause of a failed write to `folder`; if `error` does not tell the cause, write a test file to find it.

    torch.save hides a cause such as a full disk behind "unexpected pos 24128 vs 24020".
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        (folder / "probe").write_bytes(bytes(_PROBE_BYTES))
        to_disk(folder / "probe")
    except OSError as probe:
        return str(probe.strerror)
    return first_line(error)


def to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk; do nothing for a folder on Windows, which cannot."""
    is_posix = os.name == "posix"
    if path.is_dir() and not is_posix:
        return
    descriptor = os.open(path, os.O_RDONLY if is_posix else os.O_RDWR)  # Windows flushes writable files only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
