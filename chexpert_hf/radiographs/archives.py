"""Reads radiographs from ZIP archives in memory, one at a time, without trusting the archive.

Nothing is written to disk, so that no member's name can lead out of a folder. Only stored and deflated members are
read, since their decompression can be stopped at any byte. Sizes are checked before anything is decompressed.
"""

import zipfile
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from threading import Lock
from typing import NamedTuple, TypeAlias

from chexpert_hf.radiographs.grey_levels import MAX_PIXELS, RadiographError, refusing
from chexpert_hf.radiographs.raster import HEAD_BYTES

MAX_MEMBERS = 100_000  # Python keeps about 500 bytes of each while the archive is open
MAX_MEMBER_BYTES = 4 * MAX_PIXELS  # decompressed: twice a 16-bit image of the largest size that is read
MAX_EXPANSION = 200  # decompressed to compressed size; radiographs reach 1 to 10, deflate's limit is 1,032
_ALWAYS_ACCEPTED_BYTES = 10_000_000  # decompressed; such an archive is harmless, whatever its expansion

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others decompress whole blocks, of any size
_ENCRYPTED, _UTF8_NAME = 0x1, 0x800  # flags of a member
ZIP_MAGIC = b"PK\x03\x04"


class ArchiveMember(NamedTuple):
    """A file in a ZIP archive: the archive's path, and the file's name in it."""

    archive: str
    name: str  # "" if the archive is unreadable or has no radiograph

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}" if self.name else self.archive


RadiographFile: TypeAlias = str | Path | ArchiveMember
"""A path or an archive's member; `str()` gives its name for messages, `source_of` what `open_radiograph` reads."""


class Archive:
    """An open ZIP archive. Raises RadiographError if it is damaged, has too many files, or is too large unpacked."""

    def __init__(self, path: str) -> None:
        with refusing("Expected a ZIP archive, this one is damaged or none; pack it again."):
            self._zip = zipfile.ZipFile(path)
        self._lock = Lock()  # zipfile's count of its open members is not safe between threads
        members = self._zip.infolist()
        if (count := len(members)) > MAX_MEMBERS:
            raise RadiographError(f"Expected at most {MAX_MEMBERS:,} files in an archive, got {count:,}; split it.")
        total = sum(member.file_size for member in members)
        if total > max(MAX_EXPANSION * Path(path).stat().st_size, _ALWAYS_ACCEPTED_BYTES):
            raise RadiographError(
                f"Expected an archive that becomes at most {MAX_EXPANSION} times its size, this one becomes "
                f"{total // 1_000_000:,} MB; unpack it."
            )
        last = {member.filename: member for member in members}
        counts = Counter(map(_name_of, last.values()))
        self._members = {stored if counts[name := _name_of(one)] > 1 else name: one for stored, one in last.items()}

    def names(self) -> list[str]:
        """Return the names of the files, not of folders, without duplicates and sorted folder by folder."""
        return sorted((name for name in self._members if not name.endswith("/")), key=lambda name: name.split("/"))

    def head(self, name: str) -> bytes | None:
        """Return a member's first `HEAD_BYTES` bytes, enough to tell its format; None if it cannot be read."""
        with suppress(RadiographError):
            return self._read(name, HEAD_BYTES)
        return None

    def read(self, name: str) -> bytes:
        """Return a member's content; RadiographError if it is missing, damaged, encrypted, too large or a ZIP."""
        data = self._read(name, MAX_MEMBER_BYTES + 1)
        if data.startswith(ZIP_MAGIC):
            raise RadiographError("Expected a radiograph, got an archive in an archive; unpack it.")
        return data

    def _read(self, name: str, num_bytes: int) -> bytes:
        with refusing("The archive is damaged here, expected a whole file; pack it again."):
            member = self._members[name]
            path = PureWindowsPath(member.filename)  # understands drives and both kinds of slashes
            if path.anchor or ".." in path.parts:
                raise RadiographError("Expected a name below the archive, this one leads out of it; pack it again.")
            if member.flag_bits & _ENCRYPTED:
                raise RadiographError("Expected a file without password; unpack the archive.")
            if member.compress_type not in _METHODS:
                raise RadiographError("Expected a stored or deflated file, got another compression; pack it again.")
            if member.file_size > MAX_MEMBER_BYTES:
                raise RadiographError(
                    f"Expected a file of at most {MAX_MEMBER_BYTES // 1_000_000} MB, got "
                    f"{member.file_size // 1_000_000:,} MB; export the radiograph alone."
                )
            with self._lock, self._zip.open(member) as stream:
                return stream.read(num_bytes)


def _name_of(member: zipfile.ZipInfo) -> str:
    """Return a member's name with "/" between folders.

    A name in UTF-8 should be marked by a flag, but macOS does not set it. So UTF-8 is recognised without the flag, too.
    """
    name = member.filename
    if not member.flag_bits & _UTF8_NAME:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def open_archive(path: str) -> Archive:
    """Open an archive. The last two archives stay open and are reused while size and modification time are the same."""
    with refusing("File not found, expected a ZIP archive; check the path."):
        status = Path(path).stat()
    return _open(path, status.st_mtime_ns, status.st_size)


# Reading an archive's directory for each member would take quadratic time. Two, since a thread may read ahead.
@lru_cache(maxsize=2)
def _open(path: str, *_version: int) -> Archive:
    return Archive(path)


def close_archives() -> None:
    """Forget the archives that `open_archive` keeps open; each is closed as soon as nothing reads from it."""
    _open.cache_clear()


def is_archive(path: str | Path) -> bool:
    """Return whether a path ends in `.zip`, in any case; the file itself is not looked at."""
    return str(path).lower().endswith(".zip")


def source_of(file: RadiographFile) -> str | Path | bytes:
    """Return a path unchanged, or the content of an archive's member; RadiographError if the member is unreadable."""
    if not isinstance(file, ArchiveMember):
        return file
    archive = open_archive(file.archive)
    if not file.name:
        raise RadiographError("The archive has no radiographs, or has changed since; try again.")
    return archive.read(file.name)
