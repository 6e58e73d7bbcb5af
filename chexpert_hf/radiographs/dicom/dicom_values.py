"""Reads values of DICOM elements, whatever value representation and number of values they were written with.

pydicom converts a value by the representation in the file and leaves text that is not a number as `str`. Here an
element's bytes are parsed instead; a RadiographError names the element if its value is ambiguous.
"""

import math
import re
import struct
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence

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


@dataclass(frozen=True)
class Header:
    """A DICOM header, read by keyword ("WindowCenter"). An ambiguous value is a RadiographError naming its element."""

    dataset: Dataset
    notes: list[str]  # a line for each element that was missing and derived, or unusable and ignored

    def numbers(self, keyword: str) -> list[float | None]:
        """Return all values of an element as numbers, None for blank ones; `[]` if the element is missing or empty.

        A decimal comma, a trailing unit, semicolons between values, and any numeric or text representation are
        accepted. Raises RadiographError for an ambiguous number such as "2,048". NaN and infinity are possible.
        """
        data, order, written = self.bytes_of(keyword)
        # If the file states none that is known, take the first in pydicom's dictionary, such as US of "US or SS".
        representation = written if written in (*_BINARY, *_TEXT) else dictionary_VR(keyword).split(" ")[0]
        code = _BINARY.get(representation)
        if code is None:
            text = data.decode("ascii", "replace")
            parts = _SEPARATORS.split(text) if text.strip(" \0") else []
            return [_parse(part.strip(" \0\t\r\n"), keyword) for part in parts]
        count, left = divmod(len(data), struct.calcsize(f"={code}"))
        if left:
            raise RadiographError(
                f"Expected whole numbers in the DICOM element {keyword}, got {len(data)} bytes; fix it."
            )
        return list(struct.unpack(f"{order}{count}{code}", data))

    def number(self, keyword: str) -> float | None:
        """Return the only number of an element, None if missing or blank; RadiographError if several differ."""
        values = {value for value in self.numbers(keyword) if value is not None}
        if len(values) > 1:
            raise RadiographError(f"Expected one number in the DICOM element {keyword}, got {len(values)}; correct it.")
        return values.pop() if values else None

    def integer(self, keyword: str) -> int | None:
        """Return the only number of an element as an integer, None if missing or blank.

        Raises RadiographError if several numbers differ, or if the number is not whole.
        """
        value = self.number(keyword)
        if value is not None and (not math.isfinite(value) or value != int(value)):
            raise RadiographError(
                f"Expected a whole number in the DICOM element {keyword}, got {value:.6g}; correct it."
            )
        return None if value is None else int(value)

    def texts(self, keyword: str) -> list[str]:
        """Return all values of an element as text in capitals; `[""]` if it is missing or empty."""
        text = self.bytes_of(keyword)[0].decode("ascii", "replace")
        return [part.strip(" \0").upper() for part in text.split("\\")]

    def text(self, keyword: str) -> str:
        """Return the first value of an element as text in capitals; "" if it is missing or empty."""
        return self.texts(keyword)[0]

    def items(self, keyword: str) -> "list[Header]":
        """Return the items of a sequence element as headers; empty if it is missing or empty."""
        try:
            items = self.dataset.get(keyword)
        except MALFORMED:
            items = keyword  # neither empty nor a sequence
        if items and not isinstance(items, Sequence):
            raise RadiographError(
                f"Expected a sequence in the DICOM element {keyword}, got something else; correct it."
            )
        return [Header(item, self.notes) for item in items or []]

    def bytes_of(self, keyword: str) -> tuple[bytes, str, str | None]:
        """Return an element's bytes (b"" if missing), byte order (< or >), and stated value representation, if any."""
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in self.dataset:
            return b"", "<", None
        element = self.dataset.get_item(tag, keep_deferred=True)  # keep_deferred: an empty element is not converted
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
    """Return a number with a decimal point and without thousands separators; "" if a comma could be either."""
    if _ENGLISH_THOUSANDS.fullmatch(number):
        return number.replace(",", "")
    if _GERMAN_THOUSANDS.fullmatch(number):
        return number.replace(".", "").replace(",", ".")
    is_decimal = number.count(",") == 1 and "." not in number and not _AMBIGUOUS.fullmatch(number)
    return number.replace(",", ".") if is_decimal or "," not in number else ""
