"""Finds radiographs in files, folders, glob patterns, lists and ZIP archives, always in the same order."""

import glob
import os
import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from chexpert_hf.csv_dialect import encoding_of
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, is_archive, open_archive
from chexpert_hf.radiographs.grey_levels import NotFetchedError, RadiographError
from chexpert_hf.radiographs.raster import HEAD_BYTES, format_of

# Used only to choose files in folders, where a damaged radiograph must be reported; the content decides the format.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
_OTHER_THAN_DICOM = IMAGE_SUFFIXES - {".dcm", ".dicom"}

# In lower case; macOS and Windows add these to folders and archives.
_SYSTEM_NAMES = frozenset({"__macosx", ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"})

_Sort: TypeAlias = Literal["folder", "unreadable folder", "file", "link"]


@dataclass
class Found:
    """The radiographs that a search found, and counts of the links it followed and the files it skipped."""

    files: list[RadiographFile] = field(default_factory=list)  # each once, sorted within folders and archives
    num_links: int = 0  # symbolic links that were followed
    num_outside: int = 0  # links that lead out of the searched folder and were skipped, though they may be radiographs
    num_imageless: int = 0  # skipped DICOM files without an image: DICOMDIR, structured reports, presentation states
    num_archives: int = 0  # skipped ZIP archives in folders

    def notes(self) -> list[str]:
        """Return a sentence for the user for each count that is not zero."""
        lines = {
            "Links followed (--no-follow-links skips those that lead out of their folder)": self.num_links,
            "Links that lead out of their folder were skipped (--no-follow-links)": self.num_outside,
            "DICOM files without an image (DICOMDIR, reports, presentation states) were skipped": self.num_imageless,
            "ZIP archives in folders were skipped; name them to score what is in them": self.num_archives,
        }
        return [f"{text}: {count:,}." for text, count in lines.items() if count]


def find_radiographs(paths: Sequence[str | Path], listed: Iterable[str] = (), *, follow_links: bool = True) -> Found:
    """Find radiographs: each given file, and all radiographs in the given folders and ZIP archives.

    In folders and archives, a file counts as a radiograph if it has the suffix of an image or its first bytes are those
    of an image. Names that begin with a dot are skipped, and so are ZIP archives in folders. Files that the operating
    system adds (`Thumbs.db`) and DICOM files without an image are skipped even if they are given by name. Broken links
    and unreadable folders and archives are returned like radiographs, so that reading them reports the error.

    Args:
        paths: Files, folders, ZIP archives, or glob patterns such as `scans/**/*.png`.
        listed: Further paths, such as from `read_list`, without patterns; missing ones are returned like radiographs.
        follow_links: Whether to follow links that lead out of a folder that is searched, as in snapshots of the Hub's
            cache, datalad and DVC. A link that is itself in `paths` or `listed` is always followed.

    Raises:
        InputError: If one of `paths` does not exist or a pattern matches nothing, or if no radiograph is found at all.
    """
    found = Found()
    named = [match for path in paths for match in _matches(str(Path(path)), found, follow_links)]
    # A dictionary, for its order. Files are compared by name: a link and its target are two radiographs, as they are
    # for every other tool.
    files: dict[RadiographFile, None] = {}
    for path in [*named, *(str(Path(path)) for path in listed)]:
        files.update(dict.fromkeys(radiographs_in(path, found, follow_links=follow_links)))
    found.files = list(files)
    if not found.files:
        suffixes, notes = ", ".join(sorted(IMAGE_SUFFIXES)), " ".join(found.notes())
        raise InputError(
            f"No radiographs found in {', '.join(map(str, paths)) or 'the list'}; looked for {suffixes}, and the "
            f"content of all other files. {notes}".rstrip()
        )
    return found


def read_list(file: Path) -> list[str]:
    """Read a text file with one path per line, such as the output of `find`; InputError if it cannot be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; expected a list of paths, one a line.") from error
    encoding = encoding_of(data[:4])
    # Names are bytes to the operating system: they need not be UTF-8, nor in the locale's encoding.
    text = data.decode(encoding) if encoding.startswith("utf-16") else os.fsdecode(data.removeprefix(BOM_UTF8))
    return [name.rstrip("\r") for name in text.split("\n") if name.rstrip("\r")]


def radiographs_in(path: str, found: Found, *, follow_links: bool = True) -> Iterator[RadiographFile]:
    """Yield the radiographs in the folder or archive `path`, or `path` itself if it is a file.

    A path that does not exist is yielded, too, so that reading it raises an error that the user sees. Followed links
    and skipped files are counted in `found`. The radiographs are not added to `found.files`.
    """
    if os.path.isdir(path):
        return _Walk(path, found, follow_links).files()
    if is_archive(path):
        return archive_members(path, found)
    is_imageless = _kind_of_file(path) is _Kind.IMAGELESS
    found.num_imageless += is_imageless
    return iter([] if is_imageless or is_system_file(path) else [path])


def archive_members(path: str, found: Found, *, others: bool = False) -> Iterator[ArchiveMember]:
    """Yield the radiographs in an archive. DICOM files without an image are skipped and counted in `found`.

    Archives in the archive are yielded, too, since reading them raises an error that the user sees. With `others`,
    files that are neither images nor archives are yielded for the same reason. If the archive cannot be read, or there
    is nothing in it to yield, one member with an empty name is yielded.
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
        kind = _kind_of(name, archive.head, lambda name: BytesIO(archive.read(name)))
        found.num_imageless += kind is _Kind.IMAGELESS
        # An archive in the archive is reported, since it was probably packed for the radiographs in it.
        if kind is _Kind.RADIOGRAPH or is_archive(name) or (others and kind is _Kind.OTHER):
            taken = True
            yield ArchiveMember(path, name)
    if not taken:
        yield ArchiveMember(path, "")


def _matches(path: str, found: Found, follow_links: bool) -> list[str]:
    """Return the path if it exists, else the paths that match it as a glob pattern; InputError if nothing matches.

    Matches that really lie outside the pattern's folder, behind a link, are kept only with `follow_links`; else they
    are counted in `found.num_outside`, and the result may be empty. With `follow_links`, they and all other links among
    the matches are counted in `found.num_links`.
    """
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(path):
        raise InputError(f"{path} does not exist; expected radiographs, folders of them, or ZIP archives.")
    parts = Path(path).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    names = sorted(set(_glob(root, parts[first:], follow_links))) if root.is_dir() else []
    if not any(part.startswith(".") for part in parts[first:]):
        names = [name for name in names if not any(part.startswith(".") for part in name.relative_to(root).parts)]
    if not names:
        raise InputError(f"{path} matches nothing; expected radiographs, folders of them, or ZIP archives.")
    matches = list(map(str, names))
    walk = _Walk(str(root), found, follow_links)
    outside = {match for match in matches if walk.is_outside(os.path.realpath(match))}
    if follow_links:
        found.num_links += sum(match in outside or os.path.islink(match) for match in matches)
        return matches
    found.num_outside += len(outside)
    return [match for match in matches if match not in outside]


def _glob(root: Path, parts: Sequence[str], follow_links: bool) -> Iterator[Path]:
    """Yield the files and folders below `root` that match a glob pattern, given as its parts between "/".

    `**` matches any number of folders; with `follow_links`, also those behind links that lead out of `root`.
    """
    if "**" not in parts:
        yield from root.glob("/".join(parts))
        return
    start = parts.index("**")
    rest = parts[start + 1 :]
    for base in root.glob("/".join(parts[:start])) if start else [root]:
        # Not by `glob`, which follows links to folders in circles, and not by `pathlib`, which skips such links.
        for folder in _Walk(str(base), Found(), follow_links).folders():
            yield from _glob(Path(folder), rest, follow_links) if rest else [Path(folder)]


class _Walk:
    """A recursive search of one folder, the root, that enters no folder twice.

    A link that leads out of the root is followed only if the search was created with `follow_links`. A link to a file
    within the root is always followed. A link to a folder within the root never is, since the search reaches the folder
    anyway. Followed links and skipped files are counted in the `Found` that the search was created with.
    """

    def __init__(self, root: str, found: Found, follow_links: bool) -> None:
        self._root, self._real_root = root, os.path.realpath(root)
        self._found, self._follow_links = found, follow_links
        # A link to a folder above the root leads in a circle, too.
        self._entered = {self._real_root, *map(str, Path(self._real_root).parents)}

        # Resolving each of a million links in full takes most of the time; they lead into few folders.
        self._real_folder = lru_cache(maxsize=4096)(os.path.realpath)
        self._sort_of = lru_cache(maxsize=4096)(self._is_outside_or_folder)

    def files(self) -> Iterator[str]:
        """Yield the radiographs, sorted folder by folder.

        Unreadable folders are yielded, too, so that reading them like a radiograph raises an error that the user sees.
        """
        for path, sort in self._below(self._root, self._real_root):
            if sort == "unreadable folder" or (sort != "folder" and self._is_radiograph(path)):
                self._found.num_links += sort == "link"
                yield path

    def folders(self) -> Iterator[str]:
        """Yield the root and all folders below it."""
        return (path for path, sort in self._below(self._root, self._real_root) if sort == "folder")

    def _target(self, link: str, real_folder: str) -> tuple[bool, bool]:
        """Return whether a link leads out of the root, and whether it leads to a folder.

        `real_folder` is the folder that holds the link, with all links in its own path resolved.
        """
        try:
            return self._sort_of(os.path.join(real_folder, os.readlink(link)))
        except OSError:  # it has gone since the folder was listed
            return False, False

    def _is_outside_or_folder(self, target: str) -> tuple[bool, bool]:
        folder, name = os.path.split(target)
        real = os.path.join(self._real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(target)
        return self.is_outside(real), os.path.isdir(real)

    def is_outside(self, real: str) -> bool:
        """Return whether a path in which all links are resolved is outside the root."""
        return real != self._real_root and not real.startswith(self._real_root.rstrip(os.sep) + os.sep)

    def _below(self, folder: str, real: str) -> Iterator[tuple[str, _Sort]]:
        yield folder, "folder"
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder, "unreadable folder"
            return
        for entry in found:
            if entry.name.startswith(".") or is_system_file(entry.name):
                continue
            is_link = entry.is_symlink()
            is_outside, is_folder = self._target(entry.path, real) if is_link else (False, entry.is_dir())
            is_skipped = is_outside and not self._follow_links
            if is_folder:
                self._found.num_outside += is_skipped
                target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                is_inner_link = is_link and not is_outside
                if not is_skipped and not is_inner_link and target not in self._entered:
                    self._entered.add(target)
                    self._found.num_links += is_link
                    yield from self._below(entry.path, target)
            elif is_skipped:
                self._found.num_outside += _may_be_radiograph(entry.path)
            else:
                yield entry.path, "link" if is_link else "file"

    def _is_radiograph(self, path: str) -> bool:
        if is_archive(path):
            self._found.num_archives += 1
            return False
        kind = _kind_of_file(path)
        self._found.num_imageless += kind is _Kind.IMAGELESS
        return kind is _Kind.RADIOGRAPH


class _Kind(Enum):
    """Kind of a file, as far as name and content tell without decoding."""

    RADIOGRAPH = auto()  # to be scored, or reported if it cannot be read
    IMAGELESS = auto()  # DICOM without an image: DICOMDIR, a structured report, a presentation state
    OTHER = auto()


def _kind_of(name: str, head: Callable[[str], bytes | None], whole: Callable[[str], BinaryIO]) -> _Kind:
    """Return a file's kind by its name, its first bytes (`head` reads them), or all of it (`whole` opens it)."""
    suffix = _suffix(name)
    if suffix in _OTHER_THAN_DICOM:
        return _Kind.RADIOGRAPH
    has_suffix = suffix in IMAGE_SUFFIXES
    kind_by_name = _Kind.RADIOGRAPH if _may_be_radiograph(name) else _Kind.OTHER  # reported when it is read
    start = head(name)
    if start is None:
        return kind_by_name
    try:
        if format_of(start) != "DICOM":
            return _Kind.RADIOGRAPH
    except NotFetchedError:
        return kind_by_name
    except RadiographError:
        return _Kind.RADIOGRAPH if has_suffix else _Kind.OTHER
    from chexpert_hf.radiographs.dicom.dicom import holds_image  # pydicom takes .2 s to import

    return _Kind.RADIOGRAPH if holds_image(start, lambda: whole(name)) else _Kind.IMAGELESS


def _kind_of_file(path: str) -> _Kind:
    return _kind_of(path, _head, lambda path: open(path, "rb"))


def _head(path: str) -> bytes | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return None


def is_system_file(name: str) -> bool:
    """Return whether the operating system made a file or folder, such as `Thumbs.db`, `__MACOSX/` or `._a.png`."""
    parts = name.lower().replace(os.sep, "/").split("/")
    return parts[-1].startswith("._") or not _SYSTEM_NAMES.isdisjoint(parts)


def _may_be_radiograph(name: str) -> bool:
    """Return whether a name has no suffix, the suffix of an image such as `.png`, or a number as its suffix.

    Names without suffix, or with a number (`1.2.840.1`), are common for DICOM files.
    """
    suffix = _suffix(name)
    return not suffix or suffix in IMAGE_SUFFIXES or suffix[1:].isdigit()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
