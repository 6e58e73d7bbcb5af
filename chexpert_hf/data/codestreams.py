"""What the compressed image inside a DICOM file says about its own size, and who may decode it.

A DICOM header can claim 100 x 100 pixels around a JPEG 2000 image of 60,000 x 60,000, which the decoder would believe.
"""

import re
import struct

from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGExtended12Bit, RLELossless

from chexpert_hf.data.grey_levels import RadiographError

_MAX_TILES = 4096
"""OpenJPEG allocates some 6 kB per tile before it reads any; images of 4,000 x 4,000 in tiles of 64 x 64 have 3,906."""

_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0 to SOF15, and JPEG-LS


def check_codestream(codestream: bytes, syntax: UID, width: int, height: int, num_samples: int) -> None:
    """Compares the compressed image's own header with what the DICOM header says.

    Args:
        codestream: The image as it was compressed, without DICOM's fragments.
        syntax: The transfer syntax.
        width: The DICOM header's columns.
        height: Its rows.
        num_samples: Its samples per pixel.

    Raises:
        RadiographError: If they differ.
        struct.error: If the image has no complete header.

    Source: ISO/IEC 15444-1 annex A.5.1 (SIZ), ISO/IEC 10918-1 annex B.2.2 (SOF), ISO/IEC 14495-1 annex C.2.2.
    """
    if syntax == RLELossless:  # has no size of its own, and its decoder writes no further than the DICOM header's
        return
    found = _j2k_size(codestream) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(codestream)
    if found != (width, height, num_samples):
        raise RadiographError(
            f"The DICOM header declares {width} x {height} pixels of {num_samples} samples, the compressed image "
            f"{found[0]} x {found[1]} of {found[2]}; export it again."
        )


def _j2k_size(codestream: bytes) -> tuple[int, int, int]:
    if not codestream.startswith(_J2K_START):
        raise RadiographError(
            "Expected bare JPEG 2000 data in the DICOM file, got something else, such as a JP2 file; convert it."
        )
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, num_samples = struct.unpack_from(
        ">8LH", codestream, 8
    )
    if not tile_width or not tile_height:
        raise EOFError
    num_tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    if not 0 < num_tiles <= _MAX_TILES:
        raise RadiographError(f"Expected 1 to {_MAX_TILES} tiles in a JPEG 2000 image, got {num_tiles}; convert it.")
    return right - left, bottom - top, num_samples


def _jpeg_size(codestream: bytes) -> tuple[int, int, int]:
    position = 2
    while True:
        prefix, marker, length = struct.unpack_from(">BBH", codestream, position)
        if prefix != 0xFF:
            raise EOFError
        if marker in _JPEG_FRAME_HEADERS:
            height, width, num_samples = struct.unpack_from(">HHB", codestream, position + 5)
            return width, height, num_samples
        position += 1 if marker == 0xFF else 2 + length  # 0xFF: fill


def choose_plugin(syntax: UID, bits_stored: int) -> str:
    """Names the pydicom plugin that decodes a compressed transfer syntax.

    One plugin, always the same: pydicom itself tries one after the other, so that what else is installed could change
    pixels, and a decoder that forgives damage could follow one that found it.

    Raises:
        RadiographError: If none is installed.
    """
    is_ours = syntax in JPEG2000TransferSyntaxes or syntax == RLELossless  # the plugins that this package requires
    preferred = ("pylibjpeg", "pillow", "gdcm") if is_ours else ("pillow", "pylibjpeg", "pyjpegls", "gdcm")
    try:
        available = set(get_decoder(syntax).available_plugins)
    except NotImplementedError:  # video and other syntaxes that pydicom cannot decode
        available = set()
    if syntax == JPEGExtended12Bit and bits_stored > 8:
        available -= {"pillow"}
    for name in preferred:
        if name in available:
            return name
    name = re.split(r" ?[(/]", syntax.name)[0][:60]  # without process numbers and profiles
    raise RadiographError(
        f"The DICOM file is compressed as {name}, for which no decoder is installed; "
        "convert it to uncompressed, or install pylibjpeg-libjpeg."
    )
