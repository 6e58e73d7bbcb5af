"""Searches a folder for radiographs, in an order that is always the same, through links but never in circles."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chexpert_hf.radiographs.archives import RadiographFile, is_archive
from chexpert_hf.radiographs.kinds import Kind, has_radiographs_name, is_system_file, kind_of_file


@dataclass
class Found:
    """The radiographs that were found, and what was followed and skipped on the way.

    Attributes:
        files: Each once, where it was given first; sorted within folders and archives.
        num_links: Links that were followed.
        num_outside: Links that lead out of the folder they are in, which were not followed, though they may be
            radiographs.
        num_imageless: DICOM files without an image: DICOMDIR, structured reports, presentation states.
        num_archives: ZIP archives in folders.
    """

    files: list[RadiographFile] = field(default_factory=list)
    num_links: int = 0
    num_outside: int = 0
    num_imageless: int = 0
    num_archives: int = 0

    def notes(self) -> list[str]:
        """A line for each kind of file that was followed or skipped."""
        lines = {
            "Links followed (--no-follow-links skips those that lead out of their folder)": self.num_links,
            "Links that lead out of their folder were skipped (--no-follow-links)": self.num_outside,
            "DICOM files without an image (DICOMDIR, reports, presentation states) were skipped": self.num_imageless,
            "ZIP archives in folders were skipped; name them to score what is in them": self.num_archives,
        }
        return [f"{text}: {count:,}." for text, count in lines.items() if count]


class Walk:
    """A search below one folder, which enters no folder twice.

    Links to files are followed. Links to folders are followed if they lead out of the root: what is below it is found
    anyway.

    Args:
        root: The folder.
        found: Counts what is followed and skipped; its files stay as they are.
        follow_links: Whether to follow links that lead out of the root.
    """

    def __init__(self, root: str, found: Found, *, follow_links: bool) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._found, self._follow_links = found, follow_links
        # A link to a folder above the root leads in a circle, too.
        self._entered = {self._real_root, *map(str, Path(self._real_root).parents)}

    def files(self) -> Iterator[str]:
        """The radiographs, sorted by the parts of their paths."""
        return self._files(self._root, self._real_root)

    def folders(self) -> Iterator[str]:
        """The root and the folders below it."""
        return self._folders(self._root, self._real_root)

    def leads_outside(self, path: str) -> bool:
        """Whether a path leads out of the root, through whatever links."""
        return not _is_below(os.path.realpath(path), self._real_root)

    def _files(self, folder: str, real: str) -> Iterator[str]:
        try:
            entries = _entries(folder)
        except OSError:
            yield folder  # reported when it is read, instead of being left out without a word
            return
        for entry in entries:
            if entry.is_symlink():
                yield from self._behind(entry.path)
            elif entry.is_dir():
                if inside := self._enter(os.path.join(real, entry.name)):
                    yield from self._files(entry.path, inside)
            elif self._is_radiograph(entry.path):
                yield entry.path

    def _behind(self, link: str) -> Iterator[str]:
        is_outside = self.leads_outside(link)
        if os.path.isdir(link):
            if not is_outside:
                return
            if not self._follow_links:
                self._found.num_outside += 1
            elif inside := self._enter(os.path.realpath(link)):
                self._found.num_links += 1
                yield from self._files(link, inside)
        elif is_outside and not self._follow_links:
            self._found.num_outside += has_radiographs_name(link)
        elif self._is_radiograph(link):
            self._found.num_links += 1
            yield link

    def _folders(self, folder: str, real: str) -> Iterator[str]:
        yield folder
        try:
            entries = _entries(folder)
        except OSError:
            return
        for entry in entries:
            is_way = not entry.is_symlink() or (self._follow_links and self.leads_outside(entry.path))
            if is_way and os.path.isdir(entry.path):
                target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                if inside := self._enter(target):
                    yield from self._folders(entry.path, inside)

    def _enter(self, real: str) -> str | None:
        """The folder itself, without links, or None if it has been entered already."""
        if real in self._entered:
            return None
        self._entered.add(real)
        return real

    def _is_radiograph(self, path: str) -> bool:
        if is_archive(path):
            self._found.num_archives += 1
            return False
        kind = kind_of_file(path)
        self._found.num_imageless += kind is Kind.IMAGELESS
        return kind is Kind.RADIOGRAPH


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        wanted = [entry for entry in entries if not entry.name.startswith(".") and not is_system_file(entry.name)]
    return sorted(wanted, key=lambda entry: entry.name)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
