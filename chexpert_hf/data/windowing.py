"""From the stored values of a gray DICOM image to what a viewer shows, in 8 bits.

The pipeline of DICOM PS3.4 section N.2: modality transformation (rescale or table), values of interest (table or
window), inversion. Each step maps one value at a time, so all of it is done once per possible value (at most 65,536),
not per pixel. The steps are written out because pydicom 3.0.2 wraps indices into tables of 8-bit entries at 256.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.data.grey_levels import WHITE, RadiographError, bit_depth, look_up

if TYPE_CHECKING:
    from pydicom import Dataset


def render(pixels: NDArray[np.integer], header: "Dataset") -> NDArray[np.uint8]:
    """Renders stored values as a viewer would, bright where a radiograph on film is bright.

    A VOI table goes before a window, and the first of several before the others. Without either, images of up to 8 bits
    stored keep their full range, as the same image in a PNG would; of deeper ones, whose range is rarely used up, the
    smallest value becomes black and the largest white, padding not counted. MONOCHROME1 and the presentation shape
    INVERSE both say that small values are bright; DX images have both, so together they invert once.

    Args:
        pixels: `(rows, columns)`, stored values of at most 16 bits.
        header: Group 0028 and Presentation LUT Shape.

    Returns:
        `(rows, columns)`.

    Raises:
        RadiographError: If a window or rescale value is unusable.

    Source: DICOM PS3.3, sections C.7.6.3, C.11.1, C.11.2 and C.11.6.
    """
    lowest, highest = int(pixels.min()), int(pixels.max())
    values = _modality(np.arange(lowest, highest + 1), header)
    if _has_items(header, "VOILUTSequence"):
        first, table, bits = _read_table(header.VOILUTSequence[0], header)
        shown = _through_table(values, first, table) / ((1 << bits) - 1)
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        shown = _window(values, header)
    else:
        black, white = _range_without_window(pixels, lowest, values, header)
        shown = np.clip((values - black) / ((white - black) or 1.0), 0.0, 1.0)  # or 1: a constant image is black
    grey = np.rint(shown * WHITE).astype(np.uint8)
    return look_up(pixels, WHITE - grey if _is_inverted(header) else grey, lowest)


def _is_inverted(header: "Dataset") -> bool:
    return header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"


def _modality(levels: NDArray[np.integer], header: "Dataset") -> NDArray[np.float64]:
    if _has_items(header, "ModalityLUTSequence"):
        first, table, _ = _read_table(header.ModalityLUTSequence[0], header)
        return _through_table(levels.astype(np.float64), first, table)
    if header.get("RescaleSlope") is None or header.get("RescaleIntercept") is None:
        return levels.astype(np.float64)
    slope, intercept = _number(header.RescaleSlope), _number(header.RescaleIntercept)
    if slope == 0:
        raise RadiographError("Expected a DICOM rescale slope other than 0, got 0; export the image again.")
    return levels.astype(np.float64) * slope + intercept


def _window(values: NDArray[np.float64], header: "Dataset") -> NDArray[np.float64]:
    """The first window, in 0..1. Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    center, width = _number(header.WindowCenter), _number(header.WindowWidth)
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise RadiographError(
            "Expected the DICOM VOI LUT function LINEAR, LINEAR_EXACT or SIGMOID, got another; export the image again."
        )
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise RadiographError("Expected a DICOM window at least 1 wide, got a narrower one; export the image again.")
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))  # exp(710) overflows
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:  # one value wide: a threshold
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _range_without_window(
    pixels: NDArray[np.integer], lowest: int, values: NDArray[np.float64], header: "Dataset"
) -> tuple[float, float]:
    bits = int(header.BitsStored)
    if bits <= 8:
        start = -(1 << (bits - 1)) if header.PixelRepresentation else 0
        possible = _modality(np.arange(start, start + (1 << bits)), header)
    else:
        low, high = _used_range(pixels, header)
        possible = values[low - lowest : high - lowest + 1]
    return float(possible.min()), float(possible.max())


def _used_range(pixels: NDArray[np.integer], header: "Dataset") -> tuple[int, int]:
    """The smallest and largest stored value that is not padding. Source: DICOM PS3.3, C.7.5.1.1.2."""
    if header.get("PixelPaddingValue") is not None:
        ends = [_signed(header.PixelPaddingValue, header)]
        if header.get("PixelPaddingRangeLimit") is not None:
            ends.append(_signed(header.PixelPaddingRangeLimit, header))
        inside = pixels[(pixels < min(ends)) | (pixels > max(ends))]
        pixels = inside if inside.size else pixels
    return int(pixels.min()), int(pixels.max())


def _read_table(item: "Dataset", header: "Dataset") -> tuple[int, NDArray[np.unsignedinteger], int]:
    """First mapped value, entries, and bits per entry of a modality or VOI table.

    Entries of 8 bits may lie two in a word or one in a word, so their number decides.

    Source: DICOM PS3.3, C.11.1.1 and C.11.2.1.1.
    """
    num_entries, first, bits = (int(value) for value in item.LUTDescriptor)
    num_entries = num_entries % (1 << 16) or 1 << 16  # 65,536 is written as 0
    data = item.LUTData
    byte_order = "<" if header.original_encoding[1] else ">"
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data)).astype(f"{byte_order}u2").tobytes()
    is_word = len(data) >= 2 * num_entries
    table = np.frombuffer(data, dtype=f"{byte_order}u2" if is_word else np.uint8)[:num_entries]
    if len(table) < num_entries or not 8 <= bits <= 16:
        raise RadiographError("Expected a complete DICOM lookup table of 8 to 16 bits, got another; export it again.")
    return _signed(first, header), table, max(bits, bit_depth(int(table.max())))


def _through_table(values: NDArray[np.float64], first: int, table: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64)


def _signed(value: int, header: "Dataset") -> int:
    """Attributes of type "US or SS" are often written as US although the pixels are signed."""
    value = int(value)
    return value - (1 << 16) if header.PixelRepresentation and value >= 1 << 15 else value


def _has_items(header: "Dataset", keyword: str) -> bool:
    return bool(header.get(keyword))


def _number(value: Any) -> float:
    """The first of one or several decimal strings."""
    number = float(value[0] if isinstance(value, Sequence) else value)
    if not math.isfinite(number):
        raise RadiographError("Expected finite DICOM window and rescale values, got others; export the image again.")
    return number
