"""The encoding and the delimiter of a CSV file, which differ with the program and the language that wrote it."""

import codecs
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

DELIMITERS = ",;\t"

_HEAD_BYTES = 16_384  # the header line of a table, in any encoding

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Dialect(NamedTuple):
    """How a CSV file is written."""

    encoding: str
    delimiter: str


def encoding_of(head: bytes) -> str:
    """The encoding of a text file by its first bytes: UTF-8, or UTF-16 with or without a byte order mark."""
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            return encoding
    # A header of CheXpert's tables is ASCII, of which every second byte is zero in UTF-16.
    if head[1:2] == b"\0" and head[:1] != b"\0":
        return "utf-16-le"
    return "utf-16-be" if head[:1] == b"\0" and head[1:2] not in (b"", b"\0") else "utf-8"


def dialect_of(file: Path) -> Dialect:
    """The dialect of a CSV file, possibly gzipped; the delimiter is the most frequent one in the header.

    Raises:
        OSError: If the file cannot be read.
        pa.ArrowInvalid: If it is named `.gz` and is damaged.
    """
    with pa.input_stream(str(file)) as stream:
        head = stream.read(_HEAD_BYTES)
    encoding = encoding_of(head)
    lines = head.decode(encoding, errors="replace").splitlines() or [""]
    return Dialect(encoding, max(DELIMITERS, key=lines[0].count))
