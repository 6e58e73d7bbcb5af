"""Searches a folder for radiographs, in an order that is always the same, through links but never in circles."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chexpert_hf.radiographs.archives import RadiographFile, is_archive
from chexpert_hf.radiographs.kinds import Kind, has_radiographs_name, is_system_file, kind_of_file


@dataclass
class Found:
    """The radiographs that were found, and counts of what was followed and skipped on the way."""

    files: list[RadiographFile] = field(default_factory=list)  # each once, sorted within folders and archives
    num_links: int = 0  # followed
    num_outside: int = 0  # links out of their folder that were not followed, though they may be radiographs
    num_imageless: int = 0  # DICOM files without an image: DICOMDIR, structured reports, presentation states
    num_archives: int = 0  # ZIP archives in folders

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
    """A search below one folder, which enters no folder twice and counts in `found` what it follows and skips.

    Links to files are followed. Links to folders are followed if they lead out of the root (what is below it is found
    anyway) and `follow_links` is set.
    """

    def __init__(self, root: str, found: Found, *, follow_links: bool) -> None:
        self._root, self._real_root = root, os.path.realpath(root)
        self._found, self._follow_links = found, follow_links
        # A link to a folder above the root leads in a circle, too.
        self._entered = {self._real_root, *map(str, Path(self._real_root).parents)}

    def files(self) -> Iterator[str]:
        """The radiographs, sorted by the parts of their paths; a folder that cannot be read, to be reported."""
        for path, is_folder in self._below(self._root, self._real_root):
            if is_folder:
                continue
            if self._is_radiograph(path):
                self._found.num_links += os.path.islink(path)
                yield path
            elif os.path.isdir(path):
                yield path

    def folders(self) -> Iterator[str]:
        """The root and the folders below it."""
        return (path for path, is_folder in self._below(self._root, self._real_root) if is_folder)

    def leads_outside(self, path: str) -> bool:
        """Whether a path leads out of the root, through whatever links."""
        real = os.path.realpath(path)
        return real != self._real_root and not real.startswith(self._real_root.rstrip(os.sep) + os.sep)

    def _below(self, folder: str, real: str) -> Iterator[tuple[str, bool]]:
        """A folder and what is below it, each with whether it is a folder to search."""
        yield folder, True
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder, False
            return
        for entry in found:
            if entry.name.startswith(".") or is_system_file(entry.name):
                continue
            is_link = entry.is_symlink()
            is_outside = is_link and self.leads_outside(entry.path)
            is_skipped = is_outside and not self._follow_links
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                self._found.num_outside += is_skipped
                target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                is_inner_link = is_link and not is_outside
                if not is_skipped and not is_inner_link and target not in self._entered:
                    self._entered.add(target)
                    self._found.num_links += is_link
                    yield from self._below(entry.path, target)
            elif is_skipped:
                self._found.num_outside += has_radiographs_name(entry.path)
            else:
                yield entry.path, False

    def _is_radiograph(self, path: str) -> bool:
        if is_archive(path):
            self._found.num_archives += 1
            return False
        kind = kind_of_file(path)
        self._found.num_imageless += kind is Kind.IMAGELESS
        return kind is Kind.RADIOGRAPH
