"""The manifest of a folder: the checksum of each file, written last.

A folder that was cut short has no manifest, a file that has changed does not agree with it, and the manifest has a
checksum of its own. This finds damage, not forgery.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from chexpert_hf.files import sha256_of

MANIFEST_FILE = "manifest.json"

_THREADS = 4  # hashing and waiting for the disk release the interpreter


def seal(folder: Path, values: Mapping[str, Any]) -> None:
    """Brings every file of a folder and of its subfolders to the disk, and then a manifest of them with `values`."""
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


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The values of a folder's manifest, and `files`, the SHA-256 of each path; None if it is missing or damaged."""
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        values = json.loads(content)
        del values["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if content == manifest_text(values) else None  # one form only: any change of it is found


def fault_of(folder: Path) -> str | None:
    """The fault of a folder that cannot be trusted, in a few words; None if each file is as it was sealed."""
    if not (folder / MANIFEST_FILE).is_file():
        return f"it has no {MANIFEST_FILE}, so it was cut short, or written by another program"
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST_FILE} is damaged"
    checksums: dict[str, str] = manifest["files"]
    for name in sorted(set(_names(folder)) - checksums.keys()):
        return f"{name} does not belong to it"
    with ThreadPoolExecutor(_THREADS) as threads:
        faults = list(threads.map(partial(_fault, folder), checksums, checksums.values()))
    return next((fault for fault in faults if fault), None)


def to_disk(path: Path) -> None:
    """Brings the content of a file to the disk, or the names in a folder where the operating system can."""
    is_posix = os.name == "posix"
    if path.is_dir() and not is_posix:
        return
    descriptor = os.open(path, os.O_RDONLY if is_posix else os.O_RDWR)  # Windows flushes writable files only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    """The paths of all files in a folder but its manifest, with "/" between their parts."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {MANIFEST_FILE})


def _fault(folder: Path, name: str, expected: str) -> str | None:
    if not (folder / name).is_file():  # to open a named pipe would wait for ever
        return f"{name} is missing"
    found = sha256_of(folder / name)
    if found is None:
        return f"{name} cannot be read"
    return None if found == expected else f"{name} is not as it was written"


def manifest_text(values: Mapping[str, Any]) -> bytes:
    """The only form of a manifest; its own checksum is the last line but one."""
    body = json.dumps(values, indent=1, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-2]},\n "sha256": "{own}"\n}}\n'.encode()
