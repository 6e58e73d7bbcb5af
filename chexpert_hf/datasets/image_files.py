"""Checks, before a run starts, that image files exist, are images and are complete.

`datasets.Image` fails on the first bad file that it meets, hours into an epoch, and opens files outside the data set,
too. Here, the first and last bytes of JPEG and PNG images are read: a truncated file lacks its end mark. Suspicious
files are decoded, so that no good one is refused.
"""

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path

import datasets

from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.grey_levels import NotFetchedError
from chexpert_hf.radiographs.radiograph import HEAD_BYTES, RadiographError, read_radiograph
from chexpert_hf.radiographs.raster import format_of
from chexpert_hf.radiographs.unfetched import why_missing

_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Ends of complete files. Source: ITU T.81, B.1.1.3 (EOI); PNG (Third Edition), 11.2.4 (IEND and its checksum)."""

_TAIL_BYTES = 64  # some writers pad with zeros to an even or a round length

_THREADS = 16  # for network shares, where each answer is a round trip; a warm local disk needs one
_CHUNK = 4096


def find_bad_files(
    folder: str | Path, paths: Sequence[str], *, follow_links: bool = False, say: Callable[[str], None] | None = None
) -> dict[str, str]:
    """Find the files that cannot be radiographs, among paths below a folder ("/" between parts, no "..").

    JPEG and PNG files pass if their first and last bytes are right, DICOM files (which have no end mark) if the first
    ones are. All other files are decoded. With `follow_links`, links may lead out of the folder, as they do in
    snapshots of the Hub's cache, datalad and DVC. If good files are reached through links, `say` is called with a line
    that counts them.

    Returns:
        Bad path -> fault, in the order of `paths`: "missing", "empty", "not a file", "outside the folder" (by a link),
        "not an image", or a message that says why the file cannot be opened or decoded.
    """
    root = os.path.realpath(folder)
    is_link = cache(lambda directory: os.path.islink(os.path.join(root, directory)))
    links: list[str] = []

    def faults(chunk: Sequence[str]) -> list[str | None]:
        return [_fault(root, path, is_link, follow_links, links) for path in chunk]

    with ThreadPoolExecutor(_THREADS) as threads:
        chunks = threads.map(faults, [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)])
        found = zip(paths, chain.from_iterable(chunks), strict=True)
        bad = {path: fault for path, fault in found if fault}
    num_links = len([path for path in links if path not in bad])
    if num_links and say:
        say(f"Radiographs reached through links: {num_links:,} of {len(paths):,}.")
    return bad


def _fault(root: str, path: str, is_link: Callable[[str], bool], follow_links: bool, links: list[str]) -> str | None:
    """Return the fault of the file at `path` below `root`; None if it has none.

    If links are followed to reach the file, append `path` to `links`. `is_link` says of a folder, given by its path
    below `root`, whether it is a link.
    """
    file, parts = os.path.join(root, path), path.split("/")
    try:
        status = os.lstat(file)
        # Resolving each path would take several times as long as all else; only a link can lead outside.
        directories = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if stat.S_ISLNK(status.st_mode) or any(map(is_link, directories)):
            if not follow_links and os.path.commonpath([root, os.path.realpath(file)]) != root:
                return "outside the folder"
            status = os.stat(file)
            links.append(path)
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        return _content_fault(file, status.st_size) if status.st_size else "empty"
    except FileNotFoundError:
        return why_missing(file) or "missing"
    except OSError as error:
        return str(error.strerror)


def _content_fault(file: str, num_bytes: int) -> str | None:
    with open(file, "rb", buffering=0) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, num_bytes - _TAIL_BYTES))
        tail = stream.read(_TAIL_BYTES)
    try:
        file_format = format_of(head)
    except NotFetchedError as error:
        return str(error)
    except RadiographError:
        return "not an image"
    mark = _END_MARKS.get(file_format)
    if file_format == "DICOM" or (mark and tail.rstrip(b"\0").endswith(mark)):
        return None
    try:
        read_radiograph(file)
    except RadiographError as error:
        return str(error).partition(";")[0]
    return None


def image_files(dataset: datasets.Dataset) -> list[str]:
    """Return the path of each image of a split, in the order of its rows, without decoding any.

    Raises:
        InputError: If an image is in memory, such as one that `Dataset.map` made, and not a file.
    """
    images = dataset.with_format(None).cast_column("image", datasets.Image(decode=False))["image"][:]
    for row, image in enumerate(images):
        if image is None or image["bytes"] is not None or not image["path"]:
            raise InputError(f"The image of row {row} is no file; expected a split as load_dataset returns it.")
    return [image["path"] for image in images]
