"""Folders of links as the Hub's cache, datalad and DVC make them of a folder of files."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def as_hub_snapshot(folder: Path) -> Path:
    """`blobs/<hash>` beside `snapshots/<commit>/...`; the links are relative and have no suffix."""
    repository = folder.with_name("datasets--someone--films")
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    _link(snapshot, lambda content, suffix: repository / "blobs" / hashlib.sha256(content).hexdigest())
    return snapshot


def as_datalad(folder: Path) -> Path:
    """`.git/annex/objects/...` in the data set, which is the folder's parent; keys hold size, hash and suffix."""

    def key(content: bytes, suffix: str) -> Path:
        name = f"MD5E-s{len(content)}--{hashlib.md5(content).hexdigest()}{suffix}"
        return folder.parent / ".git" / "annex" / "objects" / name[-6:-4] / name[-8:-6] / name / name

    _link(folder, key)
    return folder


def as_dvc(folder: Path) -> Path:
    """A cache elsewhere, `files/md5/ab/cdef...`; the links are absolute."""

    def place(content: bytes, suffix: str) -> Path:
        digest = hashlib.md5(content).hexdigest()
        return folder.parent.parent / "cache" / "files" / "md5" / digest[:2] / digest[2:]

    _link(folder, place, is_relative=False)
    return folder


LAYOUTS = [as_hub_snapshot, as_datalad, as_dvc]


def _link(folder: Path, place: Callable[[bytes, str], Path], *, is_relative: bool = True) -> None:
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        target = place(content, file.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        file.unlink()
        file.symlink_to(os.path.relpath(target, file.parent) if is_relative else target)
