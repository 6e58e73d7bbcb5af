"""Values of DICOM elements, whatever value representation and multiplicity they were written with.

pydicom converts a value by the representation in the file and leaves text that is not a number as `str`. Here an
element's bytes are parsed instead: what is unambiguous is read, and the rest is a RadiographError that names it.
"""

import math
import re
import struct
from collections.abc import Sequence

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence as DicomSequence

from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError

_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d", "OW": "H"}
_TEXT = ("DS", "IS", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "UR", "AE", "AS", "PN", "UI")

_SEPARATORS = re.compile(r"\\|;|,\s")
_NUMBER = re.compile(r"([+-]?[\d.,]+(?:[eE][+-]?\d+)?)\s*(?:\[?[A-Za-z]{2,8}\]?)?")  # the end: a unit, such as HU
_NOT_A_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity|1\.#\w+)", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # "2,048": a decimal comma or thousands
_ENGLISH_THOUSANDS = re.compile(r"[+-]?\d{1,3}((?:,\d{3})+\.\d+|(?:,\d{3}){2,})")
_GERMAN_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+")

_MAX_SHOWN = 24


def read_numbers(header: Dataset, keyword: str) -> list[float | None]:
    """All values of an element as numbers; None for each blank one, empty if the element is missing or empty.

    A decimal comma, a trailing unit, semicolons between values, and any numeric or text representation are accepted,
    but no ambiguous number such as "2,048". NaN and infinity are possible.
    """
    data, order, written = read_bytes(header, keyword)
    # Otherwise as the dictionary says: the first of alternatives.
    representation = written if written in (*_BINARY, *_TEXT) else dictionary_VR(keyword).split(" ")[0]
    code = _BINARY.get(representation)
    if code is None:
        text = data.decode("ascii", "replace")
        parts = _SEPARATORS.split(text) if text.strip(" \0") else []
        return [_parse(part.strip(" \0\t\r\n"), keyword) for part in parts]
    count, left = divmod(len(data), struct.calcsize(f"={code}"))
    if left:
        raise RadiographError(f"Expected whole numbers in the DICOM element {keyword}, got {len(data)} bytes; fix it.")
    return list(struct.unpack(f"{order}{count}{code}", data))


def read_number(header: Dataset, keyword: str) -> float | None:
    """The one number of an element; None if it is missing or empty. Several equal ones are one."""
    values = {value for value in read_numbers(header, keyword) if value is not None}
    if len(values) > 1:
        raise RadiographError(f"Expected one number in the DICOM element {keyword}, got {len(values)}; correct it.")
    return values.pop() if values else None


def read_integer(header: Dataset, keyword: str) -> int | None:
    """The one whole number of an element; None if it is missing or empty."""
    value = read_number(header, keyword)
    if value is not None and (not math.isfinite(value) or value != int(value)):
        raise RadiographError(f"Expected a whole number in the DICOM element {keyword}, got {value:.6g}; correct it.")
    return None if value is None else int(value)


def read_text(header: Dataset, keyword: str) -> str:
    """The first value of an element as text in capitals; empty if it is missing or empty."""
    return read_texts(header, keyword)[0]


def read_texts(header: Dataset, keyword: str) -> list[str]:
    """All values of an element as text in capitals; one empty text if it is missing or empty."""
    text = read_bytes(header, keyword)[0].decode("ascii", "replace")
    return [part.strip(" \0").upper() for part in text.split("\\")]


def read_items(header: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; empty if it is missing or empty."""
    try:
        items = header.get(keyword)
    except MALFORMED:
        items = keyword  # neither empty nor a sequence
    if items and not isinstance(items, DicomSequence):
        raise RadiographError(f"Expected a sequence in the DICOM element {keyword}, got something else; correct it.")
    return items or []


def read_bytes(header: Dataset, keyword: str) -> tuple[bytes, str, str | None]:
    """The bytes of an element, empty if it is missing; their order, "<" or ">"; and the representation, if written."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in header:
        return b"", "<", None
    element = header.get_item(tag, keep_deferred=True)  # which here means: without turning empty ones into values
    if not isinstance(element, RawDataElement):
        raise RadiographError(f"Expected a value in the DICOM element {keyword}, got a sequence; correct it.")
    return bytes(element.value or b""), "<" if element.is_little_endian else ">", element.VR


def _parse(text: str, keyword: str) -> float | None:
    if not text:
        return None
    if _NOT_A_NUMBER.fullmatch(text):
        return math.nan
    match = _NUMBER.fullmatch(text)
    try:
        return float(_with_decimal_point(match[1]) if match else "")
    except ValueError:
        shown = "text that is not one"
        if re.match(r"[+-]?[\d.,]", text):  # letters are masked: they could be a name
            masked = re.sub(r"[^0-9.,+\- ]", "?", text)
            shown = f"'{masked[:_MAX_SHOWN]}{'...' if len(masked) > _MAX_SHOWN else ''}'"
        raise RadiographError(f"Expected a number in the DICOM element {keyword}, got {shown}; correct it.") from None


def _with_decimal_point(number: str) -> str:
    """A number as Python writes it; empty where a comma may mean two things."""
    if _ENGLISH_THOUSANDS.fullmatch(number):
        return number.replace(",", "")
    if _GERMAN_THOUSANDS.fullmatch(number):
        return number.replace(".", "").replace(",", ".")
    is_decimal = number.count(",") == 1 and "." not in number and not _AMBIGUOUS.fullmatch(number)
    return number.replace(",", ".") if is_decimal or "," not in number else ""
