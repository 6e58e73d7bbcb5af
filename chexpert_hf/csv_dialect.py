"""Detect the encoding and the delimiter of a CSV file, which depend on the program and the language that wrote it."""

import codecs
from pathlib import Path

_HEAD_BYTES = 16_384  # the header line of a table, in any encoding


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text file from its first bytes: "utf-8", "utf-8-sig" or a kind of UTF-16."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a byte order mark: a header is ASCII, where every second byte is zero in UTF-16.
    if head[1:2] == b"\0" and head[:1] != b"\0":
        return "utf-16-le"
    return "utf-16-be" if head[:1] == b"\0" and head[1:2] not in (b"", b"\0") else "utf-8"


def dialect_of(file: Path) -> tuple[str, str]:
    """Return encoding and delimiter of a CSV file, which may be gzipped.

    The delimiter is whichever of `,`, `;` and tab is the most frequent in the header.
    """
    import pyarrow as pa  # not for scoring, which needs `encoding_of` alone

    with pa.input_stream(str(file)) as stream:
        head = stream.read(_HEAD_BYTES)
    encoding = encoding_of(head)
    lines = head.decode(encoding, errors="replace").splitlines() or [""]
    return encoding, max(",;\t", key=lines[0].count)
