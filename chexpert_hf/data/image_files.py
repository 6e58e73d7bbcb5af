"""Whether image files are there and can be radiographs, found out before a run starts and without decoding any.

`datasets.Image` fails on the first bad file that it meets, hours into an epoch, and opens whatever a path leads to.
"""

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

_THREADS = 16  # for network shares, where each answer is a round trip; a warm local disk needs one
_CHUNK = 4096


def find_bad_files(folder: str | Path, paths: Sequence[str]) -> dict[str, str]:
    """Finds files that cannot be radiographs, without opening any.

    Args:
        folder: The folder that the paths are relative to.
        paths: Relative paths with "/" between their parts and without "..".

    Returns:
        For each bad path, in the order given, what is wrong: "missing", "empty", "not a file", "outside the folder" (a
        link leads there), or what the operating system answered.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(partial(_faults, os.path.realpath(folder)), chunks)
        return {path: fault for faults in found for path, fault in faults.items()}


def _faults(root: str, paths: Sequence[str]) -> dict[str, str]:
    is_link = cache(lambda directory: os.path.islink(os.path.join(root, directory)))
    faults = {path: _fault(root, path, is_link) for path in paths}
    return {path: fault for path, fault in faults.items() if fault}


def _fault(root: str, path: str, is_link: Callable[[str], bool]) -> str | None:
    file = os.path.join(root, path)
    try:
        status = os.lstat(file)
        # To resolve each path would cost several times the rest; only through a link can one lead outside.
        if stat.S_ISLNK(status.st_mode) or any(is_link(directory) for directory in _directories(path)):
            if os.path.commonpath([root, os.path.realpath(file)]) != root:
                return "outside the folder"
            status = os.stat(file)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    return None if status.st_size else "empty"


def _directories(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
