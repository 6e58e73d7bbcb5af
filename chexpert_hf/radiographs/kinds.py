"""Tell radiographs from other files, by name where that is enough, else by content."""

import os
import stat
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import BinaryIO

from chexpert_hf.radiographs.grey_levels import NotFetchedError, RadiographError
from chexpert_hf.radiographs.raster import HEAD_BYTES, format_of

# Used only to choose files in folders, where a damaged radiograph must be reported; the content decides the format.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})

# In lower case; macOS and Windows add these to folders and archives.
_SYSTEM_NAMES = frozenset({"__macosx", ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"})


class Kind(Enum):
    """The kind of a file in a folder or archive."""

    RADIOGRAPH = auto()  # to be scored, or reported if it cannot be read
    IMAGELESS = auto()  # DICOM without an image: DICOMDIR, a structured report, a presentation state
    OTHER = auto()


def is_system_file(name: str) -> bool:
    """Whether the operating system added a file to those of the user, such as `._a.png`."""
    parts = name.lower().replace(os.sep, "/").split("/")
    return parts[-1].startswith("._") or not _SYSTEM_NAMES.isdisjoint(parts)


def has_radiographs_name(name: str) -> bool:
    """Whether a file's name is that of a radiograph: with a suffix of images, or without any, as `IM0001`."""
    return _suffix(name) in SUFFIXES or _may_be_dicom(name)


def kind_of(name: str, head: Callable[[str], bytes | None], whole: Callable[[str], BinaryIO]) -> Kind:
    """The kind of a file by its name, its first bytes (None if they cannot be read), and the whole of it if need be."""
    has_suffix = _suffix(name) in SUFFIXES
    if has_suffix and not _may_be_dicom(name):
        return Kind.RADIOGRAPH
    kind_by_name = Kind.RADIOGRAPH if has_radiographs_name(name) else Kind.OTHER  # reported when it is read
    start = head(name)
    if start is None:
        return kind_by_name
    try:
        if format_of(start) != "DICOM":
            return Kind.RADIOGRAPH
    except NotFetchedError:
        return kind_by_name
    except RadiographError:
        return Kind.RADIOGRAPH if has_suffix else Kind.OTHER
    from chexpert_hf.radiographs.dicom.dicom import holds_image  # pydicom takes .2 s to import

    return Kind.RADIOGRAPH if holds_image(start, partial(whole, name)) else Kind.IMAGELESS


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _may_be_dicom(name: str) -> bool:
    """Whether a DICOM file may have this name: with its suffix or without any, as `IM0001` and `1.2.840.1`."""
    suffix = _suffix(name)
    return suffix in ("", ".dcm", ".dicom") or suffix[1:].isdigit()


def kind_of_file(path: str) -> Kind:
    """The kind of a file on disk."""
    return kind_of(path, _head, lambda path: open(path, "rb"))


def _head(path: str) -> bytes | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return None
