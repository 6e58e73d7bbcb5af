"""A folder of its own for what visitors upload: nobody else may look into it, and nothing stays in it for long."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEEP_SECONDS = 600
"""Age at which a file is deleted, whether its upload came to an end or not."""

SWEEP_SECONDS = 30
"""How often is looked for such files."""

_PREFIX = "chexpert-hf-"
_OWNER_FILE = "owner.pid"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder, mode 0700, that Gradio uses, swept while it is there, and deleted at the end.

    Folders that killed servers of this user left behind are deleted at the start.
    """
    remove_orphans(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()  # mkdtemp gives 0700
    (folder / _OWNER_FILE).write_text(str(os.getpid()), encoding="ascii")
    uploads = folder / "uploads"
    uploads.mkdir(mode=0o700)
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    stop = threading.Event()
    janitor = threading.Thread(target=_sweep_until, args=(stop, uploads), name="janitor", daemon=True)
    janitor.start()
    try:
        yield uploads
    finally:
        stop.set()
        janitor.join()
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, older_than: float) -> int:
    """Deletes files by the time of their last change, and folders that are empty.

    Args:
        folder: Links in it are deleted, not followed.
        older_than: In seconds since the epoch.

    Returns:
        How many files went.
    """
    count = 0
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(FileNotFoundError):  # Gradio deletes, too
                path = os.path.join(parent, name)
                if os.lstat(path).st_mtime < older_than:
                    os.unlink(path)
                    count += 1
        for name in folders:
            with suppress(OSError):  # not empty, or a file came in between
                path = os.path.join(parent, name)
                if os.path.islink(path):
                    os.unlink(path)
                elif os.lstat(path).st_mtime < older_than:
                    os.rmdir(path)
    return count


def remove_orphans(parent: Path) -> None:
    """Deletes this user's folders whose server does not run any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            owner = int((folder / _OWNER_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):  # somebody else's, or being made just now
            continue
        if folder.is_symlink() or status.st_uid != os.getuid() or _runs(owner):
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sweep_until(stop: threading.Event, folder: Path) -> None:
    while not stop.wait(SWEEP_SECONDS):
        sweep(folder, time.time() - KEEP_SECONDS)
