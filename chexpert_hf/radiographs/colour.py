"""Whether an image is in colour, which a radiograph never is.

A side mark or a frame may be, and a photographed film is tinted all over but faintly.
"""

import numpy as np
from PIL import Image, JpegImagePlugin

from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError, check_size
from chexpert_hf.radiographs.radiograph import HEAD_BYTES, MAX_PIXELS, RadiographSource, _open_stream
from chexpert_hf.radiographs.raster import _open, format_of

COLOURFUL_SHARE = 0.1
"""From this share of colourful pixels on, an image is in colour."""

COLOURFUL_SPREAD = 32
"""A pixel is colourful if its red, green and blue differ by more than this, of 255."""

_SIDE = 64
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def has_colour(source: RadiographSource) -> bool:
    """Whether an image is in colour.

    Args:
        source: What `read_radiograph` takes and has read without an error, but no file object, which is read by then.
            DICOM files are not looked at.

    Raises:
        RadiographError: If it is of no known format, or too large.
    """
    if isinstance(source, Image.Image):
        return _is_colourful(source)
    if isinstance(source, np.ndarray):
        return source.ndim == 3 and source.shape[2] in (3, 4) and _is_colourful(Image.fromarray(source))
    with _open_stream(source) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if (file_format := format_of(head)) == "DICOM":
            return False
        try:
            return _is_colourful(_open(stream, file_format))
        except RadiographError:
            raise
        except MALFORMED:
            return False  # not for the gate to say; the reader has refused what it cannot read


def _is_colourful(image: Image.Image) -> bool:
    if image.mode not in _COLOUR_MODES:
        return False
    check_size(*image.size, MAX_PIXELS)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft("RGB", (_SIDE, _SIDE))
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    colours = np.asarray(small).astype(int)  # (_SIDE, _SIDE, 3)
    spread = colours.max(axis=2) - colours.min(axis=2)
    return float((spread > COLOURFUL_SPREAD).mean()) > COLOURFUL_SHARE
