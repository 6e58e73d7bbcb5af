"""Whether a file says that it is a frontal or a lateral view; of the formats that are read, only DICOM can."""

import numpy as np
from PIL import Image

from chexpert_hf.radiographs.radiograph import HEAD_BYTES, RadiographSource, _open_stream
from chexpert_hf.radiographs.raster import format_of


def is_said_lateral(source: RadiographSource) -> bool | None:
    """Whether a file says that it is a lateral view.

    Args:
        source: What `read_radiograph` takes and has read without an error, but no file object, which is read by then.

    Returns:
        None where nothing is said of either.
    """
    if isinstance(source, (np.ndarray, Image.Image)):
        return None
    with _open_stream(source) as stream:
        if format_of(stream.read(HEAD_BYTES)) != "DICOM":
            return None
        from chexpert_hf.radiographs.dicom.dicom_view import (
            read_is_lateral,  # pydicom takes .2 s to import; see `radiograph`
        )

        return read_is_lateral(stream)
