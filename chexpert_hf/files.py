"""Write files and folders whole or not at all, compute checksums, and shorten errors to one line."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from chexpert_hf.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 1 << 20
_READABLE = 0o644  # some libraries make files readable by their owner only, not by other users of a container


class FolderError(InputError):
    """A folder cannot be written to; the message says what to do."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: yield a temporary path beside `path`, to which the caller writes.

    At the end, the temporary file replaces `path`; after an error, it is deleted.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context manager: keep other runs from writing to `path`, a file or an existing folder.

    A folder is locked directly. A file is not: on an SMB share, a locked file cannot be read or written through another
    descriptor. Instead, a lock file `.NAME.lock` beside it is locked, and deleted at the end. A lock file left by a
    killed run is used again. Nothing is locked on systems without `flock`, such as Windows, and on some network file
    systems.

    Raises:
        FolderError: If another run holds the lock.
    """
    lock = path if path.is_dir() else path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock, path)
    try:
        yield
    finally:
        if descriptor is not None:
            if lock != path:
                with suppress(OSError):
                    lock.unlink()  # before it is unlocked: later, it may be another run's
            _unlock(descriptor)


def _locked(lock: Path, path: Path) -> int | None:
    """Open the file or folder `lock`, lock it where the system can, and return its descriptor.

    Return None if `lock` cannot be opened, if other runs delete it again and again, and always on Windows. If another
    run has locked `lock`, raise a FolderError that names `path`.
    """
    for _ in range(_TRIES if fcntl is not None else 0):
        try:
            descriptor = _opened(lock)
        except OSError:
            return None
        _LOCKED.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # PermissionError: on SMB shares
            _unlock(descriptor)
            raise FolderError(f"{path} is being written by another run; wait for its end, or stop it.") from None
        except OSError:
            return descriptor
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        _unlock(descriptor)  # another run deleted the file after it was opened
    return None


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # NFS does not lock a file that is open for reading only
    except OSError:  # a folder, or another user's file
        return os.open(lock, os.O_RDONLY)


def _unlock(descriptor: int) -> None:
    _LOCKED.discard(descriptor)
    os.close(descriptor)


def _close_locked() -> None:
    for descriptor in _LOCKED:
        os.close(descriptor)
    _LOCKED.clear()


_TRIES = 100  # bounded, as some network file systems may number the same file differently each time
_LOCKED: set[int] = set()
if fcntl is not None:  # otherwise a worker process would keep the lock of a run that was killed
    os.register_at_fork(after_in_child=_close_locked)


def write_text(path: Path, text: str) -> None:
    """Write a text to a file in UTF-8, with the same bytes on every system, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a value to a file as indented JSON, whole or not at all; ValueError if it holds NaN or an infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def text_beside(module: str, name: str) -> str:
    """Return the text of the file `name` in a module's folder; `module` is the module's `__file__`."""
    return Path(module).with_name(name).read_text(encoding="utf-8")


def data_beside(module: str) -> Any:
    """Load the YAML file beside a module, `a.yaml` for `a.py`; `module` is the module's `__file__`."""
    return yaml.safe_load(text_beside(module, f"{Path(module).stem}.yaml"))


def require_empty(folder: Path, advice: str = "choose a new or empty folder") -> None:
    """Raise FolderError, with `advice` at the end of its message, unless a folder is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder} is not empty; {advice}.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Context manager: yield a temporary folder, to which the caller writes.

    At the end, the temporary folder is moved to `folder`; after an error, it is deleted. Both have the same name,
    such as "model", so that a caller who stores the folder's name stores the final one.

    Raises:
        FolderError: If `folder` exists and is not empty, or cannot be written.
        InputError: If the `with` block raises OSError about a file outside the temporary folder, such as one that it
            reads.
    """
    require_empty(folder)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".chexpert-hf-", dir=folder.parent, ignore_cleanup_errors=True) as beside:
            partial = Path(beside) / folder.name
            partial.mkdir()
            try:
                yield partial
            except OSError as error:
                file = error.filename
                if isinstance(file, str) and not Path(file).resolve().is_relative_to(Path(beside).resolve()):
                    raise InputError(f"{file} cannot be used ({_reason(error)}); {folder} was not written.") from error
                raise
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
    except OSError as error:
        raise FolderError(
            f"{folder} could not be written ({_reason(error)}); nothing of it was left. Choose another place."
        ) from error


def result_folder(folder: Path) -> None:
    """Create a folder for results unless it exists; FolderError if it is a file or cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be a folder for the results: {_reason(error)}.") from error


def make_readable(path: Path) -> None:
    """Make a file readable by all users; some libraries write files that only their owner can read."""
    path.chmod(_READABLE)


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file in hexadecimal digits; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def first_line(error: object, limit: int = 200) -> str:
    """Return the first line of an error's message, at most `limit` characters; the class's name if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def _reason(error: OSError) -> str:
    return error.strerror or first_line(error)
