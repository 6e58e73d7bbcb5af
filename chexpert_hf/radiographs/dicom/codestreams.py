"""Size and decoder of the compressed image inside a DICOM file.

A DICOM header can claim 100 x 100 pixels around a JPEG 2000 image of 60,000 x 60,000, which the decoder would believe.
"""

import io
import re
import struct

from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from chexpert_hf.radiographs.dicom.dicom_layout import Frame
from chexpert_hf.radiographs.grey_levels import RadiographError
from chexpert_hf.radiographs.image_headers import FrameHeader, read_jpeg_header

_MAX_TILES = 4096
"""OpenJPEG allocates some 6 kB per tile before it reads any; images of 4,000 x 4,000 in tiles of 64 x 64 have 3,906."""


def inspect_codestream(codestream: bytes, syntax: UID, frame: Frame) -> tuple[str, FrameHeader | None]:
    """The pydicom plugin that decodes a compressed image, and the image's own header; None for RLE, which has none.

    One plugin, always the same: pydicom itself tries one after the other, so that what else is installed could change
    pixels, and a decoder that forgives damage could follow one that found it.

    Raises:
        RadiographError: If no decoder is installed, the image's header differs from the DICOM header, or the samples
            have more than 16 bits; EOFError or struct.error if the image has no complete header.
    """
    is_j2k, is_rle = syntax in JPEG2000TransferSyntaxes, syntax == RLELossless
    is_ours = is_j2k or is_rle  # the plugins that this package requires
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
    width, height, num_samples = frame.columns, frame.rows, frame.samples_per_pixel
    if found[:3] != (width, height, num_samples):
        raise RadiographError(
            f"The DICOM header declares {width} x {height} pixels of {num_samples} samples, the compressed image "
            f"{found.width} x {found.height} of {found.num_samples}; export it again."
        )
    if not 1 <= found.precision <= 16:
        raise RadiographError(f"Expected a compressed image of 1 to 16 bits, got {found.precision}; export it again.")
    return plugin, found


def _read_j2k_header(codestream: bytes) -> FrameHeader:
    """Source: ISO/IEC 15444-1 annex A.5.1 (SIZ)."""
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
