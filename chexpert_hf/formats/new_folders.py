"""A folder that is there as a whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chexpert_hf.errors import InputError


class FolderError(InputError):
    """A folder that cannot be written to, with what to do."""


def refuse_used(folder: Path) -> None:
    """Refuses a folder that is not new or empty.

    Raises:
        FolderError: If it is a file, or something is in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder} is not empty; expected a new or empty folder.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder of the same name to write into, which becomes `folder` at the end, or is removed after an error.

    Args:
        folder: Must be new or empty.

    Raises:
        FolderError: If it is not, or cannot be made.
    """
    refuse_used(folder)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".chexpert-hf-", dir=folder.parent))
    except OSError as error:
        raise FolderError(f"{folder} cannot be made ({error.strerror}); choose another place.") from error
    try:
        partial = beside / folder.name
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise FolderError(f"{folder} could not be written ({error.strerror}); nothing of it was left.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
