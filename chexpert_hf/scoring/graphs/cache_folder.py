"""The user's cache: what can be computed again, and is kept because that takes long."""

import os
import shutil
from pathlib import Path


def cache_folder() -> Path:
    """`$CHEXPERT_HF_CACHE`, else `chexpert-hf` in `$XDG_CACHE_HOME` or `~/.cache`. It may be deleted at any time."""
    if folder := os.environ.get("CHEXPERT_HF_CACHE"):
        return Path(folder)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "chexpert-hf"


def keep_newest(folder: Path, pattern: str, number: int) -> None:
    """Deletes the files and folders of a pattern but for those that were changed or touched last."""
    ages = {}
    for path in folder.glob(pattern):
        try:
            ages[path] = path.stat().st_mtime_ns
        except OSError:  # another process deleted it
            continue
    for path in sorted(ages, key=ages.__getitem__, reverse=True)[number:]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
