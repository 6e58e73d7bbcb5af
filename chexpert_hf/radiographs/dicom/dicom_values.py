"""Values of DICOM elements, whatever value representation and multiplicity they were written with.

pydicom converts a value by the representation in the file and leaves text that is not a number as `str`, a sequence of
characters. Here an element's bytes are parsed instead: what is unambiguous is read, and the rest is refused by name.
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
_THOUSANDS = (re.compile(r"[+-]?\d{1,3}((?:,\d{3})+\.\d+|(?:,\d{3}){2,})"), re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+"))

_MAX_SHOWN = 24


def read_numbers(header: Dataset, keyword: str) -> list[float | None]:
    """All values of an element as numbers.

    A decimal comma, a trailing unit, semicolons between values, and any numeric or text representation are accepted.

    Args:
        header: As `pydicom.filereader.read_dataset` gives it, or an item of one of its sequences.
        keyword: Of the element.

    Returns:
        None for each blank value; empty if the element is missing or empty. NaN and infinity are possible.

    Raises:
        RadiographError: If a value is not a number, or an ambiguous one such as "2,048".
    """
    element = _raw(header, keyword)
    if element is None:
        return []
    code = _BINARY.get(_representation(element, keyword))
    if code is None:
        return [_parse(part, keyword) for part in _split(element)]
    order = "<" if element.is_little_endian else ">"
    data = element.value or b""
    count, left = divmod(len(data), struct.calcsize(f"={code}"))
    if left:
        raise RadiographError(f"Expected whole numbers in the DICOM element {keyword}, got {len(data)} bytes; fix it.")
    return list(struct.unpack(f"{order}{count}{code}", data))


def read_number(header: Dataset, keyword: str) -> float | None:
    """The one number of an element; None if it is missing or empty. Several equal ones are one.

    Raises:
        RadiographError: If it is not one number.
    """
    values = {value for value in read_numbers(header, keyword) if value is not None}
    if len(values) > 1:
        raise RadiographError(f"Expected one number in the DICOM element {keyword}, got {len(values)}; correct it.")
    return values.pop() if values else None


def read_integer(header: Dataset, keyword: str) -> int | None:
    """The one whole number of an element; None if it is missing or empty.

    Raises:
        RadiographError: If it is not one whole number.
    """
    value = read_number(header, keyword)
    if value is None:
        return None
    if not math.isfinite(value) or value != int(value):
        raise RadiographError(f"Expected a whole number in the DICOM element {keyword}, got {value:.6g}; correct it.")
    return int(value)


def read_text(header: Dataset, keyword: str) -> str:
    """The first value of an element as text in capitals; empty if it is missing or empty."""
    return read_texts(header, keyword)[0]


def read_texts(header: Dataset, keyword: str) -> list[str]:
    """All values of an element as text in capitals; one empty text if it is missing or empty."""
    element = _raw(header, keyword)
    return [part.strip(" \0").upper() for part in _text(element).split("\\")] if element else [""]


def read_items(header: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; empty if it is missing or empty.

    Raises:
        RadiographError: If the element is no sequence.
    """
    try:
        items = header.get(keyword)
    except MALFORMED:
        items = keyword  # neither empty nor a sequence
    if not items:
        return []
    if not isinstance(items, DicomSequence):
        raise RadiographError(f"Expected a sequence in the DICOM element {keyword}, got something else; correct it.")
    return items


def read_bytes(header: Dataset, keyword: str) -> tuple[bytes, str]:
    """The bytes of an element as they are in the file, empty if it is missing, and their order: "<" or ">"."""
    element = _raw(header, keyword)
    return (bytes(element.value or b""), "<" if element.is_little_endian else ">") if element else (b"", "<")


def _raw(header: Dataset, keyword: str) -> RawDataElement | None:
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in header:
        return None
    element = header.get_item(tag, keep_deferred=True)  # which here means: without turning empty ones into values
    if not isinstance(element, RawDataElement):
        raise RadiographError(f"Expected a value in the DICOM element {keyword}, got a sequence; correct it.")
    return element


def _representation(element: RawDataElement, keyword: str) -> str:
    """As written, or as the dictionary says where none was written; the first of alternatives."""
    written = element.VR
    known = written if written in _BINARY or written in _TEXT else dictionary_VR(keyword)
    return known.split(" ")[0]


def _text(element: RawDataElement) -> str:
    return bytes(element.value or b"").decode("ascii", "replace")


def _split(element: RawDataElement) -> list[str]:
    text = _text(element)
    return [part.strip(" \0\t\r\n") for part in _SEPARATORS.split(text)] if text.strip(" \0") else []


def _parse(text: str, keyword: str) -> float | None:
    if not text:
        return None
    if _NOT_A_NUMBER.fullmatch(text):
        return math.nan
    match = _NUMBER.fullmatch(text)
    number = _plain(match[1]) if match else ""
    try:
        return float(number)
    except ValueError:
        raise RadiographError(
            f"Expected a number in the DICOM element {keyword}, got {_shown(text)}; correct it or export it again."
        ) from None


def _plain(number: str) -> str:
    """A number as Python writes it; empty where a comma may mean two things."""
    english, german = _THOUSANDS
    if english.fullmatch(number):
        return number.replace(",", "")
    if german.fullmatch(number):
        return number.replace(".", "").replace(",", ".")
    if "," not in number:
        return number
    is_decimal = number.count(",") == 1 and "." not in number and not _AMBIGUOUS.fullmatch(number)
    return number.replace(",", ".") if is_decimal else ""


def _shown(text: str) -> str:
    """A value without what could be a name: its letters are masked, and only what begins like a number is shown."""
    if not re.match(r"[+-]?[\d.,]", text):
        return "text that is not one"
    masked = re.sub(r"[^0-9.,+\- ]", "?", text)
    return f"'{masked[:_MAX_SHOWN]}{'...' if len(masked) > _MAX_SHOWN else ''}'"
