"""The layout of a DICOM file's pixels: size, samples, bits and sign, with missing elements taken from the rest."""

from dataclasses import dataclass

from pydicom import Dataset

from chexpert_hf.radiographs.dicom.dicom_values import read_integer, read_text
from chexpert_hf.radiographs.grey_levels import RadiographError, check_size

_GRAYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_GRAY_OF_SHAPE = {"INVERSE": "MONOCHROME1", "IDENTITY": "MONOCHROME2"}
"""Photometric interpretation of DX images by PresentationLUTShape. Source: DICOM PS3.3, table C.8-71."""


@dataclass(frozen=True)
class Frame:
    """Size and kind of a file's one frame; names as pydicom's decoders take them."""

    columns: int
    rows: int
    samples_per_pixel: int  # 1, or 3 for colour
    photometric_interpretation: str
    planar_configuration: int

    @property
    def num_values(self) -> int:
        """Samples in the whole frame."""
        return self.rows * self.columns * self.samples_per_pixel


@dataclass(frozen=True)
class Bits:
    """Position of a sample in its word."""

    allocated: int  # bits of the word, 8 or 16
    stored: int  # bits of the sample
    high: int  # the sample's highest bit in the word, from 0
    is_signed: bool | None  # in two's complement; None if the file does not say


def read_frame(header: Dataset, is_compressed: bool, notes: list[str]) -> Frame:
    """Reads size and kind of the one frame, and checks the size.

    The number of compressed frames must be readable; of others, the amount of data is checked later. `notes` gets a
    line for each element that was supplied.
    """
    num_frames = _num_frames(header, is_compressed, notes)
    if num_frames != 1:
        raise RadiographError(f"Expected a radiograph, the DICOM file has {num_frames} frames; export one of them.")
    rows, columns = (_required(header, keyword) for keyword in ("Rows", "Columns"))
    check_size(columns, rows)
    num_samples = read_integer(header, "SamplesPerPixel")
    photometric = read_text(header, "PhotometricInterpretation").replace(" ", "")
    if not photometric:
        shape = read_text(header, "PresentationLUTShape")
        if num_samples not in (None, 1) or shape not in _GRAY_OF_SHAPE:
            raise RadiographError(
                "Expected the DICOM element PhotometricInterpretation, it is missing, so that nothing says whether "
                "small values are dark or bright; add it or export the image again."
            )
        photometric = _GRAY_OF_SHAPE[shape]
        notes.append(f"PhotometricInterpretation is missing; {photometric} was taken, by PresentationLUTShape.")
    if num_samples is None:
        num_samples = 3 if photometric in _COLOURS else 1
        notes.append(f"SamplesPerPixel is missing; {num_samples} was taken, by PhotometricInterpretation.")
    if photometric not in {1: _GRAYS, 3: _COLOURS}.get(num_samples, ()):
        raise _another_kind("PhotometricInterpretation or SamplesPerPixel")
    return Frame(columns, rows, num_samples, photometric, read_integer(header, "PlanarConfiguration") or 0)


def read_bits(header: Dataset, frame: Frame, measured: int, precision: int | None, notes: list[str]) -> Bits:
    """Reads the position of a sample in its word.

    Args:
        header: With the elements of group 0028.
        frame: The frame.
        measured: Bits of a sample's word by the amount of data.
        precision: Bits of a sample by the compressed image's own header, if it has one.
        notes: Gets a line for each element that was supplied.
    """
    keywords = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, sign = (read_integer(header, keyword) for keyword in keywords)
    if allocated is None:
        allocated = measured
        notes.append(f"BitsAllocated is missing; {allocated} was taken, by the amount of pixel data.")
    if stored is None:
        stored, reason = (precision, "the compressed image's header") if precision else (allocated, "BitsAllocated")
        stored, reason = (stored, reason) if high is None else (high + 1, "HighBit")
        notes.append(f"BitsStored is missing; {stored} was taken, by {reason}.")
    if high is None:
        high = stored - 1
        notes.append(f"HighBit is missing; {high} was taken, by BitsStored.")
    if allocated not in ((8,) if frame.samples_per_pixel == 3 else (8, 16)):
        raise _another_kind("BitsAllocated")
    if not 0 <= stored - 1 <= high < allocated:
        raise RadiographError(
            f"Expected a DICOM high bit that fits the bits stored, got BitsStored {stored}, HighBit {high} and "
            f"BitsAllocated {allocated}; correct them or export it again."
        )
    if sign not in (None, 0, 1):
        raise RadiographError(f"Expected 0 or 1 in the DICOM element PixelRepresentation, got {sign}; correct it.")
    return Bits(allocated, stored, high, None if sign is None else sign == 1)


def _num_frames(header: Dataset, is_compressed: bool, notes: list[str]) -> int:
    first, _, last = (part.strip() for part in read_text(header, "NumberOfFrames").partition(" OF "))
    if first.isdecimal() and last.isdecimal():
        return int(last)
    try:
        return read_integer(header, "NumberOfFrames") or 1
    except RadiographError:
        if is_compressed:
            raise
    notes.append("NumberOfFrames is not readable; 1 was taken, by the amount of pixel data.")
    return 1


def _required(header: Dataset, keyword: str) -> int:
    value = read_integer(header, keyword)
    if value is None:
        raise RadiographError(f"Expected the DICOM element {keyword}, it is missing; export the image again.")
    return value


def _another_kind(keywords: str) -> RadiographError:
    return RadiographError(
        "Expected DICOM pixels in MONOCHROME1 or 2 of 8 or 16 bits, or in 8-bit RGB or YBR, got another kind by "
        f"{keywords}; export the image as one of these."
    )
