"""Finds radiographs: in files, folders, patterns, lists and ZIP archives, in an order that is always the same."""

import glob
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from chexpert_hf.csv_dialect import encoding_of
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, is_archive, open_archive
from chexpert_hf.radiographs.kinds import SUFFIXES, Kind, is_system_file, kind_of, kind_of_file
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.radiographs.walk import Found, Walk


def find_radiographs(paths: Sequence[str | Path], listed: Iterable[str] = (), *, follow_links: bool = True) -> Found:
    """Finds the files among `paths` as they are given, and the radiographs in the folders and archives among them.

    In a folder or archive a file is taken by its suffix, or, whatever it is called, if its first bytes are those of an
    image; names that begin with a dot are skipped, and so are archives in folders. Files of the operating system and
    DICOM files without an image are skipped wherever they are. Links are followed, but never in circles. A link whose
    target is gone, and an archive or folder that cannot be read, is among the files itself, to be reported as one.

    Args:
        paths: Files, folders, ZIP archives, or patterns such as `scans/**/*.png`.
        listed: The same without patterns, as `read_list` gives them; what does not exist is left to be reported.
        follow_links: Whether to follow links below a folder that lead out of it, as in snapshots of the Hub's cache,
            datalad and DVC. What is named itself is always followed.

    Raises:
        InputError: If one of `paths` does not exist, or there is no file.
    """
    found = Found()
    # A dictionary, for its order. Names are cheap to compare and links are told by name too: a link and its target are
    # two radiographs, as they are for every other tool.
    files: dict[RadiographFile, None] = {}
    for path in (str(Path(path)) for path in paths):
        for match in [path] if os.path.lexists(path) else _matches(path, found, follow_links):
            files.update(dict.fromkeys(radiographs_in(match, found, follow_links=follow_links)))
    for path in (str(Path(path)) for path in listed):
        files.update(dict.fromkeys(radiographs_in(path, found, follow_links=follow_links)))
    found.files = list(files)
    if not found.files:
        raise InputError(
            f"No radiographs found in {', '.join(map(str, paths)) or 'the list'}; looked for "
            f"{', '.join(sorted(SUFFIXES))}, and the content of all other files. {' '.join(found.notes())}".rstrip()
        )
    return found


def read_list(file: Path) -> list[str]:
    """The paths in a text file, one a line, relative to the current folder as in `find ... > list.txt`."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; expected a list of paths, one a line.") from error
    encoding = encoding_of(data[:4])
    if encoding.startswith("utf-16"):
        names = data.decode(encoding).split("\n")
    else:  # names are bytes to the operating system: they need not be UTF-8, nor in the locale's encoding
        names = os.fsdecode(data.removeprefix(BOM_UTF8)).split("\n")
    return [name.rstrip("\r") for name in names if name.rstrip("\r")]


def radiographs_in(path: str, found: Found, *, follow_links: bool = True) -> Iterator[RadiographFile]:
    """The radiographs in a folder or archive, or the file itself, which may be missing: that is reported later.

    What is followed and skipped is counted in `found`, whose files stay as they are.
    """
    if os.path.isdir(path):
        return Walk(path, found, follow_links=follow_links).files()
    if is_archive(path):
        return archive_members(path, found)
    is_imageless = kind_of_file(path) is Kind.IMAGELESS
    found.num_imageless += is_imageless
    return iter([] if is_imageless or is_system_file(path) else [path])


def _matches(pattern: str, found: Found, follow_links: bool) -> list[str]:
    if not glob.has_magic(pattern):
        raise InputError(f"{pattern} does not exist; expected radiographs, folders of them, or ZIP archives.")
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    names = sorted(set(_glob(root, parts[first:], follow_links))) if root.is_dir() else []
    if not any(part.startswith(".") for part in parts[first:]):
        names = [path for path in names if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not names:
        raise InputError(f"{pattern} matches nothing; expected radiographs, folders of them, or ZIP archives.")
    matches = list(map(str, names))
    walk = Walk(str(root), found, follow_links=follow_links)
    outside = {path for path in matches if walk.leads_outside(path)}
    if follow_links:
        found.num_links += sum(path in outside or os.path.islink(path) for path in matches)
        return matches
    found.num_outside += len(outside)
    return [path for path in matches if path not in outside]


def _glob(root: Path, parts: Sequence[str], follow_links: bool) -> Iterator[Path]:
    """The files that match a glob pattern below a folder; `**` includes linked folders, as in the shell."""
    if "**" not in parts:
        yield from root.glob("/".join(parts))
        return
    start = parts.index("**")
    for base in root.glob("/".join(parts[:start])) if start else [root]:
        # Not by `glob` and `pathlib`: of links to folders, one runs in circles along them and the other passes by them.
        for folder in Walk(str(base), Found(), follow_links=follow_links).folders():
            rest = parts[start + 1 :]
            yield from _glob(Path(folder), rest, follow_links) if rest else [Path(folder)]


def archive_members(path: str, found: Found, *, others: bool = False) -> Iterator[ArchiveMember]:
    """The radiographs in an archive; the archive itself, with an empty name, if it has none or cannot be read.

    What is skipped is counted in `found`. With `others`, files that are no images are given too, to be reported.
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
        kind = kind_of(name, archive.head, archive.open)
        found.num_imageless += kind is Kind.IMAGELESS
        # An archive in the archive is taken, to be reported: whoever packed it meant its radiographs.
        if kind is Kind.RADIOGRAPH or is_archive(name) or (others and kind is Kind.OTHER):
            taken = True
            yield ArchiveMember(path, name)
    if not taken:
        yield ArchiveMember(path, "")
