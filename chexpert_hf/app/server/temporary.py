"""A folder for uploads that only its owner may open, and whose old files are deleted."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEEP_SECONDS = 600  # age at which a file is deleted, whether its upload was finished or not
SWEEP_SECONDS = 30  # time between two sweeps

_PREFIX = "chexpert-hf-"
_OWNER_FILE = "owner.pid"


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables within this context; afterwards they are as before."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder (mode 0700) for Gradio's files; yield it, and delete it at the end of the context.

    Files in it are deleted at the age of `KEEP_SECONDS`. The folders of earlier servers of this user that were killed
    are deleted at the start.
    """
    remove_orphans(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # mkdtemp gives 0700
    (folder / _OWNER_FILE).write_text(str(os.getpid()), encoding="ascii")
    uploads = folder / "uploads"
    uploads.mkdir(mode=0o700)
    stop = threading.Event()
    janitor = threading.Thread(target=_sweep_until, args=(stop, uploads), name="janitor", daemon=True)
    janitor.start()
    try:
        with environment(GRADIO_TEMP_DIR=str(uploads)):
            yield uploads
    finally:
        stop.set()
        janitor.join()
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, older_than: float) -> None:
    """Delete files, links and empty folders below a folder that were last changed before `older_than`, in Unix time."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = os.path.join(parent, name)
            with suppress(OSError):  # deleted by Gradio, or a folder that is not empty
                if os.lstat(path).st_mtime < older_than:
                    (os.unlink if name in files or os.path.islink(path) else os.rmdir)(path)


def remove_orphans(parent: Path) -> None:
    """Delete folders in `parent` that `private_folder` made for servers of this user which are not running any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            owner = int((folder / _OWNER_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):  # another user's, or being created
            continue
        if not folder.is_symlink() and status.st_uid == os.getuid() and not _is_running(owner):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _sweep_until(stop: threading.Event, folder: Path) -> None:
    while not stop.wait(SWEEP_SECONDS):
        sweep(folder, time.time() - KEEP_SECONDS)
