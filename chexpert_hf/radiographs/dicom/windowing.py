"""Turns the stored values of a gray DICOM image into the 8-bit grey levels that a viewer shows.

The pipeline of DICOM PS3.4 section N.2: modality transformation (rescaling or lookup table), values of interest (VOI:
lookup table or window), inversion. Each step maps one value at a time, so all of it is done once per possible value (at
most 65,536), not per pixel. pydicom's own functions are not used: if a table's entries have 8 bits, version 3.0.2 reads
entry 44 (300 modulo 256) in place of entry 300.
"""

import math
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.radiographs.dicom.dicom_values import Header
from chexpert_hf.radiographs.grey_levels import WHITE, RadiographError, bit_depth, look_up

_RANGE_USED = "the range of the pixels was used instead"


def render(pixels: NDArray[np.integer], header: Header, photometric: str, bits_stored: int) -> NDArray[np.uint8]:
    """Render stored values `(rows, columns)` as a viewer would: bones bright, air dark.

    A VOI lookup table is applied if there is one, else the first usable window. If there is no table and no usable
    window, or the rescaling is not usable, images of up to 8 bits keep their full range, as in a PNG. Deeper images
    rarely fill their range: the smallest value that is not padding becomes black, the largest white. Small values are
    bright if `photometric` is "MONOCHROME1" or PresentationLUTShape is INVERSE, or both.

    Each unusable element adds a line to `header.notes`; an incomplete table is a RadiographError.

    Source: DICOM PS3.3, sections C.7.6.3, C.11.1, C.11.2 and C.11.6.
    """
    lowest, highest = int(pixels.min()), int(pixels.max())
    start, levels = lowest, np.arange(lowest, highest + 1)
    if bits_stored <= 8:
        start = -(1 << (bits_stored - 1)) if pixels.dtype.kind == "i" else 0
        levels = np.arange(start, start + (1 << bits_stored))
    values = _modality(levels, header, pixels.dtype)
    shown = None
    if values is not None:
        if (voi := _table(header, "VOILUTSequence", pixels.dtype)) is not None:
            first, table, bits = voi
            shown = _through_table(values, first, table) / ((1 << bits) - 1)
        else:
            shown = _window(values, values[lowest - start : highest - start + 1], header)
    if shown is None:
        values = levels.astype(np.float64) if values is None else values
        low, high = (start, int(levels[-1])) if bits_stored <= 8 else _used_range(pixels, header)
        possible = values[low - start : high - start + 1]
        black, white = float(possible.min()), float(possible.max())
        shown = np.clip((values - black) / ((white - black) or 1.0), 0.0, 1.0)  # or 1: a constant image is black
    grey = np.rint(shown * WHITE).astype(np.uint8)
    is_inverted = photometric == "MONOCHROME1" or header.text("PresentationLUTShape") == "INVERSE"
    return look_up(pixels, WHITE - grey if is_inverted else grey, start)


def _modality(levels: NDArray[np.integer], header: Header, dtype: np.dtype) -> NDArray[np.float64] | None:
    """Map stored values by the header's modality lookup table, or else by its rescale slope and intercept.

    `levels` are the stored values to map; `dtype` is the type of the image's pixels. Without a table, the values are
    returned unchanged if slope or intercept is missing, and None is returned if slope or intercept is not usable.
    """
    values = levels.astype(np.float64)
    if (modality := _table(header, "ModalityLUTSequence", dtype)) is not None:
        return _through_table(values, *modality[:2])
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if slope is None or intercept is None:  # one alone is ignored by dcmtk and pydicom, too
        if (slope, intercept) != (None, None):
            missing, given = ("Slope", "Intercept") if slope is None else ("Intercept", "Slope")
            header.notes.append(f"Rescale{missing} is missing; Rescale{given} was ignored.")
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        values = values * slope + intercept
    if slope == 0 or not np.isfinite(values).all():
        header.notes.append(f"RescaleSlope or RescaleIntercept is not usable; {_RANGE_USED}.")
        return None
    return values


def _window(values: NDArray[np.float64], used: NDArray[np.float64], header: Header) -> NDArray[np.float64] | None:
    """Apply the first usable window to `values`; return the result in 0..1, or None if no window is usable.

    Neither array is an image. `values` holds the result of `_modality` for each stored value: up to 8 bits for all that
    are possible, such as 0 to 255, else for those from the image's smallest to its largest. `used` is the slice of
    `values` from the image's smallest stored value to its largest. If a window, other than a SIGMOID, covers none of
    `used`, the image becomes all black or all white, and `header.notes` gets a line.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
    """
    centers, widths = header.numbers("WindowCenter"), header.numbers("WindowWidth")
    if not centers and not widths:
        return None
    function = header.text("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        header.notes.append(f"VOILUTFunction is none of LINEAR, LINEAR_EXACT and SIGMOID; {_RANGE_USED}.")
        return None
    for number, (center, width) in enumerate(zip_longest(centers, widths), start=1):
        if center is None or width is None or not (math.isfinite(center) and math.isfinite(width)):
            continue
        if width <= 0 or (function == "LINEAR" and width < 1):
            continue
        if number > 1:
            header.notes.append(f"Window {number} of WindowCenter and WindowWidth was used, the first that is usable.")
        if function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))  # exp(710) overflows
        if used.max() <= center - width / 2 or used.min() >= center + width / 2:
            header.notes.append("All pixels lie outside of the window; the image is all black or all white.")
        if function == "LINEAR":
            center, width = center - 0.5, width - 1.0
        if width == 0:  # one value wide: a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    header.notes.append(f"WindowCenter and WindowWidth are not usable; {_RANGE_USED}.")
    return None


def _used_range(pixels: NDArray[np.integer], header: Header) -> tuple[int, int]:
    """Return the smallest and the largest stored value that is not padding. Source: DICOM PS3.3, C.7.5.1.1.2."""
    keywords = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    padding, limit = (header.integer(keyword) for keyword in keywords)
    if padding is not None:
        ends = [_signed(end, pixels.dtype) for end in (padding, limit) if end is not None]
        inside = pixels[(pixels < min(ends)) | (pixels > max(ends))]
        pixels = inside if inside.size else pixels
    return int(pixels.min()), int(pixels.max())


def _table(header: Header, keyword: str, dtype: np.dtype) -> tuple[int, NDArray[np.unsignedinteger], int] | None:
    """Return a lookup table: the value that its first entry is for, its entries, and the bits per entry.

    None if the header has no such table. `keyword` is "ModalityLUTSequence" or "VOILUTSequence"; `dtype` is the type of
    the image's pixels. An entry of 8 bits is stored in one byte or in two; the length of the table's data tells which.
    Source: DICOM PS3.3, C.11.1.1.
    """
    items = header.items(keyword)
    if not items:
        return None
    data, byte_order, _ = items[0].bytes_of("LUTData")
    if not data or not items[0].bytes_of("LUTDescriptor")[0]:
        header.notes.append(f"{keyword} holds no table; it was ignored.")
        return None
    descriptor = [int(value or 0) for value in items[0].numbers("LUTDescriptor")]
    num_entries, first, bits = descriptor if len(descriptor) == 3 else (0, 0, 0)
    num_entries = num_entries % (1 << 16) or 1 << 16  # 65,536 is written as 0
    is_word = len(data) >= 2 * num_entries
    table = np.frombuffer(data[: (1 + is_word) * num_entries], dtype=f"{byte_order}u2" if is_word else np.uint8)
    if len(table) < num_entries or not 8 <= bits <= 16:
        raise RadiographError("Expected a complete DICOM lookup table of 8 to 16 bits by LUTDescriptor; export again.")
    return _signed(first, dtype), table, max(bits, bit_depth(int(table.max())))


def _through_table(values: NDArray[np.float64], first: int, table: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64)


def _signed(value: int, dtype: np.dtype) -> int:
    """Return a 16-bit value of an element as signed if the pixels' `dtype` is signed, else unchanged.

    Many files with signed pixels store such elements as unsigned numbers (US in place of SS).
    """
    return value - (1 << 16) if dtype.kind == "i" and value >= 1 << 15 else value
