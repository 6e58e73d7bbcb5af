"""Reads how the pixels of a DICOM file are stored (size, samples, bits, sign), and chooses a decoder.

Missing elements are derived from the others. A compressed image's own header must agree with the DICOM header, since
decoders go by the former: a JPEG 2000 image declared as 100 x 100 pixels could really have 60,000 x 60,000.
"""

import io
import re
import struct
from dataclasses import dataclass

from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from chexpert_hf.radiographs.dicom.dicom_values import Header
from chexpert_hf.radiographs.grey_levels import RadiographError, check_size
from chexpert_hf.radiographs.image_headers import FrameHeader, read_jpeg_header

_GRAYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_GRAY_OF_SHAPE = {"INVERSE": "MONOCHROME1", "IDENTITY": "MONOCHROME2"}
"""Photometric interpretation of DX images by PresentationLUTShape. Source: DICOM PS3.3, table C.8-71."""

_MAX_TILES = 4096  # OpenJPEG allocates 6 kB for each before it reads any


@dataclass(frozen=True)
class Frame:
    """Size and colour type of a file's only frame; the fields have the names of pydicom's decoding options."""

    columns: int
    rows: int
    samples_per_pixel: int  # 1, or 3 for colour
    photometric_interpretation: str
    planar_configuration: int

    @property
    def num_values(self) -> int:
        """Number of samples in the frame, such as rows x columns x 3 for RGB."""
        return self.rows * self.columns * self.samples_per_pixel


@dataclass(frozen=True)
class Bits:
    """The bits that a sample takes in the word it is stored in."""

    allocated: int  # bits of the word, 8 or 16
    stored: int  # bits of the sample
    high: int  # position of the sample's highest bit in the word, counted from 0
    is_signed: bool | None  # in two's complement; None if the file does not say


def read_frame(header: Header, is_compressed: bool) -> Frame:
    """Read and check size and colour type of a file's only frame.

    Each missing element that can be derived adds a line to `header.notes`. Raises RadiographError if the file has
    several frames, the size or colour type is not supported, or a missing element cannot be derived.
    """
    num_frames = _num_frames(header, is_compressed)
    if num_frames != 1:
        raise RadiographError(f"Expected a radiograph, the DICOM file has {num_frames} frames; export one of them.")
    rows, columns = (_required(header, keyword) for keyword in ("Rows", "Columns"))
    check_size(columns, rows)
    num_samples = header.integer("SamplesPerPixel")
    photometric = header.text("PhotometricInterpretation").replace(" ", "")
    if not photometric:
        shape = header.text("PresentationLUTShape")
        if num_samples not in (None, 1) or shape not in _GRAY_OF_SHAPE:
            raise RadiographError(
                "Expected the DICOM element PhotometricInterpretation, it is missing, so that nothing says whether "
                "small values are dark or bright; add it or export the image again."
            )
        photometric = _GRAY_OF_SHAPE[shape]
        header.notes.append(f"PhotometricInterpretation is missing; {photometric} was taken, by PresentationLUTShape.")
    if num_samples is None:
        num_samples = 3 if photometric in _COLOURS else 1
        header.notes.append(f"SamplesPerPixel is missing; {num_samples} was taken, by PhotometricInterpretation.")
    if photometric not in {1: _GRAYS, 3: _COLOURS}.get(num_samples, ()):
        raise _another_kind("PhotometricInterpretation or SamplesPerPixel")
    return Frame(columns, rows, num_samples, photometric, header.integer("PlanarConfiguration") or 0)


def read_bits(header: Header, frame: Frame, measured: int, precision: int | None) -> Bits:
    """Read which bits of a word hold a sample; derive missing elements, with a line in `header.notes` for each.

    `measured` is the number of bits per word, found from the amount or coding of the data. `precision` is the number of
    bits per sample in the compressed image's own header, None if there is no such header. Raises RadiographError if
    the bits are not supported or contradict each other.
    """
    keywords = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, sign = (header.integer(keyword) for keyword in keywords)
    if allocated is None:
        allocated = measured
        header.notes.append(f"BitsAllocated is missing; {allocated} was taken, by the amount of pixel data.")
    if stored is None:
        stored, reason = (precision, "the compressed image's header") if precision else (allocated, "BitsAllocated")
        stored, reason = (stored, reason) if high is None else (high + 1, "HighBit")
        header.notes.append(f"BitsStored is missing; {stored} was taken, by {reason}.")
    if high is None:
        high = stored - 1
        header.notes.append(f"HighBit is missing; {high} was taken, by BitsStored.")
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


def inspect_codestream(codestream: bytes, syntax: UID, frame: Frame) -> tuple[str, FrameHeader | None]:
    """Return the name of the pydicom plugin to decode a compressed image with, and the image's own header.

    The header is None for RLE, which has none. One plugin is chosen because pydicom would otherwise try all installed
    plugins in turn: damage that one reports could be ignored by the next, and pixels could differ between machines.
    Raises RadiographError if no decoder is installed, the image's header differs from the DICOM header, or samples have
    more than 16 bits; EOFError or struct.error if the image's header is not complete.
    """
    is_j2k = syntax in JPEG2000TransferSyntaxes
    is_ours = is_j2k or syntax == RLELossless  # for which this package requires plugins
    preferred = ("pylibjpeg", "pillow", "gdcm") if is_ours else ("pillow", "pylibjpeg", "pyjpegls", "gdcm")
    name = re.split(r" ?[(/]", syntax.name)[0][:60]  # without process numbers and profiles
    try:
        available = set(get_decoder(syntax).available_plugins)
    except NotImplementedError:  # video and other syntaxes that pydicom cannot decode
        available = set()
    found = _read_j2k_header(codestream) if is_j2k else None
    if available and not is_ours:
        found = read_jpeg_header(io.BytesIO(codestream))
        if found.rare_compression:
            available.discard("pillow")
            name = found.rare_compression
    plugin = next((plugin for plugin in preferred if plugin in available), None)
    if plugin is None:
        package = "pyjpegls or pylibjpeg-libjpeg" if syntax in JPEGLSTransferSyntaxes else "pylibjpeg-libjpeg"
        raise RadiographError(
            f"The DICOM file is compressed as {name}, for which no decoder is installed; "
            f"convert it to uncompressed, or install {package}."
        )
    if found is None:  # RLE has no size of its own, and its decoder writes no further than the DICOM header's
        return plugin, None
    if found[:3] != (frame.columns, frame.rows, frame.samples_per_pixel):
        raise RadiographError(
            f"The DICOM header declares {frame.columns} x {frame.rows} pixels of {frame.samples_per_pixel} samples, "
            f"the compressed image {found.width} x {found.height} of {found.num_samples}; export it again."
        )
    if not 1 <= found.precision <= 16:
        raise RadiographError(f"Expected a compressed image of 1 to 16 bits, got {found.precision}; export it again.")
    return plugin, found


def _num_frames(header: Header, is_compressed: bool) -> int:
    """Return the number of frames; 1 if the header does not state it.

    If the stated number cannot be read, raise RadiographError for compressed pixels. For uncompressed pixels return 1:
    the amount of pixel data is checked later.
    """
    first, _, last = (part.strip() for part in header.text("NumberOfFrames").partition(" OF "))
    if first.isdecimal() and last.isdecimal():
        return int(last)
    try:
        return header.integer("NumberOfFrames") or 1
    except RadiographError:
        if is_compressed:
            raise
    header.notes.append("NumberOfFrames is not readable; 1 was taken, by the amount of pixel data.")
    return 1


def _required(header: Header, keyword: str) -> int:
    value = header.integer(keyword)
    if value is None:
        raise RadiographError(f"Expected the DICOM element {keyword}, it is missing; export the image again.")
    return value


def _another_kind(keywords: str) -> RadiographError:
    return RadiographError(
        "Expected DICOM pixels in MONOCHROME1 or 2 of 8 or 16 bits, or in 8-bit RGB or YBR, got another kind by "
        f"{keywords}; export the image as one of these."
    )


def _read_j2k_header(codestream: bytes) -> FrameHeader:
    """Read size and precision from the header of JPEG 2000 data, which must not be in a JP2 container.

    Source: ISO/IEC 15444-1 annex A.5.1 (SIZ segment).
    """
    if not codestream.startswith(b"\xff\x4f\xff\x51"):
        raise RadiographError("Expected bare JPEG 2000 data in the DICOM file, got others, such as JP2; convert it.")
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, num_samples, depth = struct.unpack_from(
        ">8LHB", codestream, 8
    )
    if not tile_width or not tile_height:
        raise EOFError
    num_tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    if not 0 < num_tiles <= _MAX_TILES:
        raise RadiographError(f"Expected 1 to {_MAX_TILES} tiles in a JPEG 2000 image, got {num_tiles}; convert it.")
    return FrameHeader(right - left, bottom - top, num_samples, precision=(depth & 0x7F) + 1)
