"""Finds radiographs: in files, folders, patterns, lists and ZIP archives, in an order that is always the same."""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from chexpert_hf.data.csv_dialect import encoding_of
from chexpert_hf.data.radiograph import RadiographError
from chexpert_hf.data.raster import format_of
from chexpert_hf.errors import InputError
from chexpert_hf.inference.folders.archives import (
    HEAD_BYTES,
    Archive,
    ArchiveMember,
    RadiographFile,
    is_archive,
    open_archive,
)

# Only for the choice in folders, where a damaged radiograph should be reported: what a file is, its content tells.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_SYSTEM_NAMES = frozenset({"__macosx", ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"})
"""What macOS and Windows leave in folders and archives, in lower case."""


@dataclass
class Found:
    """The radiographs that were found, and what was skipped on the way.

    Attributes:
        files: Each once, where it was given first; sorted within folders and archives.
        num_outside: Links that lead out of the folder they are in, which are not followed.
        num_imageless: DICOM files without an image: DICOMDIR, structured reports, presentation states.
        num_archives: ZIP archives in folders.
    """

    files: list[RadiographFile] = field(default_factory=list)
    num_outside: int = 0
    num_imageless: int = 0
    num_archives: int = 0

    def notes(self) -> list[str]:
        """A line for each kind of file that was skipped."""
        lines = {
            "Links that lead out of their folder were skipped": self.num_outside,
            "DICOM files without an image (DICOMDIR, reports, presentation states) were skipped": self.num_imageless,
            "ZIP archives in folders were skipped; name them to score what is in them": self.num_archives,
        }
        return [f"{text}: {count:,}." for text, count in lines.items() if count]


def find_radiographs(paths: Sequence[str | Path], listed: Iterable[str] = ()) -> Found:
    """Finds the files among `paths` as they are given, and the radiographs in the folders and archives among them.

    In a folder or archive a file is taken by its suffix, or, whatever it is called, if its first bytes are those of an
    image; names that begin with a dot are left out, and so are archives in folders. Files of the operating system and
    DICOM files without an image are skipped wherever they are. Links to files are followed as long as they stay below
    the folder; links to folders never are, since what is below the folder is found anyway. An archive or folder that
    cannot be read is among the files itself, to be reported as one.

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
        for match in [path] if os.path.lexists(path) else _matches(path, found):
            files.update(dict.fromkeys(radiographs_in(match, found)))
    for path in listed:
        files.update(dict.fromkeys(radiographs_in(_normal(path), found)))
    found.files = list(files)
    if not found.files:
        raise InputError(
            f"No radiographs found in {', '.join(map(str, paths)) or 'the list'}; looked for "
            f"{', '.join(sorted(SUFFIXES))}, and the content of all other files. {' '.join(found.notes())}".rstrip()
        )
    return found


def read_list(file: Path) -> Iterator[str]:
    """The paths in a text file, one a line, relative to the current folder as in `find ... > list.txt`.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            encoding = encoding_of(stream.read(4))
        # Names need not be UTF-8; what is not is kept as the operating system's functions keep it.
        with file.open(encoding=encoding, errors="surrogateescape") as lines:
            for line in lines:
                if path := line.rstrip("\r\n"):
                    yield path
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; expected a list of paths, one a line.") from error


def _normal(path: str | Path) -> str:
    return str(Path(path))


def radiographs_in(path: str, found: Found) -> Iterator[RadiographFile]:
    """The radiographs in a folder or archive, or the file itself.

    Args:
        path: What is there, or not: then it is left to be reported.
        found: Counts what is skipped.
    """
    if os.path.isdir(path):
        return _walk(path, os.path.realpath(path), found)
    if is_archive(path):
        return archive_members(path, found)
    if is_system_file(path) or (_may_be_dicom(path) and _is_imageless(_head(path), partial(_open, path), found)):
        return iter([])
    return iter([path])


def is_system_file(name: str) -> bool:
    """Whether a file is what an operating system puts beside the files of its users, such as `._a.png`."""
    parts = name.lower().replace(os.sep, "/").split("/")
    return parts[-1].startswith("._") or not _SYSTEM_NAMES.isdisjoint(parts)


def _walk(folder: str, root: str, found: Found) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder  # reported when it is read, instead of being left out without a word
        return
    for entry in entries:
        if entry.name.startswith(".") or is_system_file(entry.name):
            continue
        if entry.is_symlink() and _is_outside(entry.path, root):
            found.num_outside += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, root, found)
        elif not os.path.isdir(entry.path) and _is_radiograph_on_disk(entry.path, found):
            yield entry.path


def _is_outside(path: str, root: str) -> bool:
    target = os.path.realpath(path)
    return target != root and not target.startswith(root.rstrip(os.sep) + os.sep)


def _is_radiograph_on_disk(path: str, found: Found) -> bool:
    if is_archive(path):
        found.num_archives += 1
        return False
    return _is_radiograph(path, partial(_head, path), partial(_open, path), found)


def _is_radiograph(name: str, head: Callable[[], bytes | None], whole: Callable[[], BinaryIO], found: Found) -> bool:
    """Whether a file in a folder or archive is one to score, or to report if it cannot be read.

    Args:
        name: Whose suffix decides where the content need not be looked at.
        head: Gives its first bytes, None if it cannot be read.
        whole: Opens it.
        found: Counts the DICOM files without an image.
    """
    has_suffix = _suffix(name) in SUFFIXES
    if has_suffix and not _may_be_dicom(name):
        return True
    start = head()
    if start is None:
        return has_suffix or _may_be_dicom(name)
    return (has_suffix or _is_image(start)) and not _is_imageless(start, whole, found)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _may_be_dicom(name: str) -> bool:
    """Whether a name is one of DICOM files: with their suffix, or without any, as in `IM0001` and `1.2.840.1`."""
    suffix = _suffix(name)
    return suffix in _DICOM_SUFFIXES or not suffix or suffix[1:].isdigit()


def _head(path: str) -> bytes | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return None


def _open(path: str) -> BinaryIO:
    return open(path, "rb")


def _is_image(head: bytes) -> bool:
    try:
        return _is_dicom(head) or bool(format_of(head))
    except RadiographError:
        return False


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_imageless(head: bytes | None, whole: Callable[[], BinaryIO], found: Found) -> bool:
    """Whether a file is DICOM without an image, which is then counted."""
    if head is None or not _is_dicom(head):
        return False
    from chexpert_hf.data.dicom_kind import describes_an_image, names_an_image  # pydicom takes .2 s to import

    is_image = names_an_image(head)
    if is_image is None:
        try:
            with whole() as stream:
                is_image = describes_an_image(stream)
        except (OSError, RadiographError):
            is_image = True  # reported when it is read
    found.num_imageless += not is_image
    return not is_image


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


def archive_members(path: str, found: Found) -> Iterator[ArchiveMember]:
    """The radiographs in an archive; the archive itself, with an empty name, if it has none or cannot be read.

    Args:
        path: The archive.
        found: Counts what is skipped.
    """
    try:
        archive = open_archive(path)
    except RadiographError:
        yield ArchiveMember(path, "")  # reported when it is read
        return
    taken = False
    for name in archive.names():
        if is_system_file(name) or any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
            continue
        whole = partial(_open_member, archive, name)
        # An archive in the archive is taken, to be reported: whoever packed it meant its radiographs.
        if is_archive(name) or _is_radiograph(name, partial(archive.head, name), whole, found):
            taken = True
            yield ArchiveMember(path, name)
    if not taken:
        yield ArchiveMember(path, "")


def _open_member(archive: Archive, name: str) -> BinaryIO:
    return BytesIO(archive.read(name))
