"""Finds radiographs: in files, folders, patterns, lists and ZIP archives, in an order that is always the same."""

import glob
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from chexpert_hf.data.radiograph import HEAD_BYTES, RadiographError
from chexpert_hf.data.raster import format_of
from chexpert_hf.errors import InputError
from chexpert_hf.inference.folders.archives import ArchiveMember, RadiographFile, is_archive, open_archive

# Only for the choice in folders, where a damaged radiograph should be reported: what a file is, its content tells.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})

_FOREIGN_FOLDER = "__MACOSX"  # what macOS packs beside the files: a small one for each, with the same suffix


@dataclass
class Found:
    """The radiographs that were found.

    Attributes:
        files: Each once, where it was given first; sorted within folders and archives.
        num_outside: Links that lead out of the folder they are in, which are not followed.
    """

    files: list[RadiographFile] = field(default_factory=list)
    num_outside: int = 0


def find_radiographs(paths: Sequence[str | Path], listed: Iterable[str] = ()) -> Found:
    """Finds the files among `paths` as they are given, and the radiographs in the folders and archives among them.

    In a folder or archive a file is taken by its suffix, or, whatever it is called, if its first bytes are those of an
    image; names that begin with a dot are left out, and so are archives in folders. Links to files are followed as long
    as they stay below the folder; links to folders never are, since what is below the folder is found anyway. An
    archive or folder that cannot be read is among the files itself, to be reported as one.

    Args:
        paths: Files, folders, ZIP archives, or patterns such as `scans/**/*.png`.
        listed: The same without patterns, as `read_list` gives them; what does not exist is left to be reported.

    Raises:
        InputError: If one of `paths` does not exist, or there is no file.
    """
    found = Found()
    # A dictionary, for its order. Names are cheap to compare and links are told by name too: a link and its target are
    # two radiographs, as they are for every other tool.
    files: dict[RadiographFile, None] = {}
    for path in map(_normal, paths):
        if os.path.lexists(path):
            files.update(dict.fromkeys(_expand(path, found)))
        else:
            for match in _matches(path, found):
                files.update(dict.fromkeys(_expand(match, found)))
    for path in listed:
        files.update(dict.fromkeys(_expand(_normal(path), found)))
    found.files = list(files)
    if not found.files:
        raise InputError(
            f"No radiographs found in {', '.join(map(str, paths)) or 'the list'}; looked for "
            f"{', '.join(sorted(SUFFIXES))}, and the content of all other files"
            + (
                f"; links that lead out of their folder were left out: {found.num_outside:,}."
                if found.num_outside
                else "."
            )
        )
    return found


def read_list(file: Path) -> Iterator[str]:
    """The paths in a text file, one a line, relative to the current folder as in `find ... > list.txt`.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        # Names are bytes to the operating system: they need not be UTF-8, nor in the locale's encoding.
        with file.open("rb") as lines:
            for line in lines:
                if path := line.removeprefix(BOM_UTF8).rstrip(b"\r\n"):
                    yield os.fsdecode(path)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; expected a list of paths, one a line.") from error


def _normal(path: str | Path) -> str:
    return str(Path(path))


def _expand(path: str, found: Found) -> Iterator[RadiographFile]:
    if os.path.isdir(path):
        return _walk(path, os.path.realpath(path), found)
    if is_archive(path):
        return _members(path)
    return iter([path])


def _walk(folder: str, root: str, found: Found) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder  # reported when it is read, instead of being left out without a word
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and _is_outside(entry.path, root):
            found.num_outside += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, root, found)
        elif _is_radiograph(entry):
            yield entry.path


def _is_outside(path: str, root: str) -> bool:
    target = os.path.realpath(path)
    return target != root and not target.startswith(root.rstrip(os.sep) + os.sep)


def _is_radiograph(entry: os.DirEntry[str]) -> bool:
    has_suffix = os.path.splitext(entry.name)[1].lower() in SUFFIXES
    if not entry.is_file():
        # A link whose target is gone is a radiograph that is missing.
        return has_suffix and entry.is_symlink() and not os.path.exists(entry.path)
    return has_suffix or _is_image(_head(entry.path))


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _is_image(head: bytes) -> bool:
    try:
        return head[128:] == b"DICM" or bool(format_of(head))
    except RadiographError:
        return False


def _matches(pattern: str, found: Found) -> list[str]:
    if not glob.has_magic(pattern):
        raise InputError(f"{pattern} does not exist; expected radiographs, folders of them, or ZIP archives.")
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    # pathlib's search and not glob's, which runs in circles along links to folders above.
    names = sorted(root.glob(str(PurePosixPath(*parts[first:])))) if root.is_dir() else []
    hidden_wanted = any(part.startswith(".") for part in parts[first:])
    visible = [str(path) for path in names if hidden_wanted or not _is_hidden(path.relative_to(root))]
    if not visible:
        raise InputError(f"{pattern} matches nothing; expected radiographs, folders of them, or ZIP archives.")
    real_root = os.path.realpath(root)
    inside = [path for path in visible if not _is_outside(path, real_root)]
    found.num_outside += len(visible) - len(inside)
    return inside


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _members(path: str) -> Iterator[RadiographFile]:
    try:
        archive = open_archive(path)
    except RadiographError:
        yield ArchiveMember(path, "")  # reported when it is read
        return
    names = [name for name in archive.names() if _is_wanted(name)]
    taken = False
    for name in names:
        # An archive in the archive is taken, to be reported: whoever packed it meant its radiographs.
        if os.path.splitext(name)[1].lower() in SUFFIXES or is_archive(name) or _is_image(archive.head(name)):
            taken = True
            yield ArchiveMember(path, name)
    if not taken:
        yield ArchiveMember(path, "")


def _is_wanted(name: str) -> bool:
    parts = name.split("/")
    return parts[0] != _FOREIGN_FOLDER and not any(part.startswith(".") and part not in (".", "..") for part in parts)
