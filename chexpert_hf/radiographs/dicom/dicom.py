"""Reads the pixels of a DICOM file with one frame, such as a CR or DX radiograph, without trusting the file.

pydicom parses and its plugins decode. Only the few elements that describe pixels and view are read. These elements, the
transfer syntax, the amount of pixel data, and the compressed image's own header are checked against each other before
anything is allocated or decoded.
"""

import logging
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from chexpert_hf.radiographs.dicom.dicom_file import InflatedStream, open_dataset, read_elements, read_meta
from chexpert_hf.radiographs.dicom.dicom_layout import Bits, Frame, inspect_codestream, read_bits, read_frame
from chexpert_hf.radiographs.dicom.dicom_values import Header
from chexpert_hf.radiographs.dicom.windowing import render
from chexpert_hf.radiographs.grey_levels import MALFORMED, RadiographError, refusing
from chexpert_hf.radiographs.image_headers import FrameHeader

_KEYWORDS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "ViewPosition", "PatientOrientation"),
    *("BodyPartExamined", "Modality"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
)
_TAGS = [cast(int, tag_for_keyword(keyword)) for keyword in _KEYWORDS]
_STORAGE_CLASS, _ROWS, _PIXEL_DATA = 0x00020002, 0x00280010, 0x7FE00010

_IS_LATERAL = {"AP": False, "PA": False, "LL": True, "RL": True, "LAT": True, "LATERAL": True}
"""ViewPosition -> whether the view is lateral. Source: DICOM PS3.3, C.8.1.1; some machines write the last two."""

_OTHER_SUBJECTS = {
    "BodyPartExamined": (
        *("ABDOMEN", "ANKLE", "ARM", "BLADDER", "BRAIN", "BREAST", "CALCANEUS", "COLON", "CSPINE"),
        *("ELBOW", "EXTREMITY", "EYE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD"),
        *("HIP", "HUMERUS", "JAW", "KIDNEY", "KNEE", "LEG", "LSPINE", "MANDIBLE", "MAXILLA"),
        *("NECK", "ORBIT", "PELVIS", "SHOULDER", "SKULL", "TOE", "WRIST", "ZYGOMA"),
    ),
    "Modality": ("MG", "CT", "MR", "US", "NM", "PT", "ES", "GM", "SM", "OP", "OPT", "IO", "PX", "BMD"),
}
"""Values that rule out a chest radiograph: regions that chest radiographs are never filed under, and other techniques.
Blank and unknown values rule out nothing. Source: DICOM PS3.16, annex L, and PS3.3, C.7.3.1.1.1."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_QUIET = threading.Lock()


def read_dicom(stream: BinaryIO) -> tuple[NDArray[np.uint8], bool | None, str, tuple[str, ...]]:
    """Read a DICOM file's only frame as 8-bit pixels; preamble and file meta information may be missing.

    Returns four values:

    - The pixels: gray levels `(rows, columns)`, or RGB `(rows, columns, 3)` for a colour image.
    - Whether the view is lateral; None if the header does not say.
    - The element that rules out a chest radiograph, such as "BodyPartExamined is BREAST"; "" if there is none.
    - A line for each missing element that was derived from others, and each unusable one that was ignored.

    Raises RadiographError if the file is damaged, or is not one image in a supported encoding.
    """
    damaged = "The DICOM file is damaged or cut short, expected a complete one; copy or export it again."
    try:
        with refusing(damaged), _silence():
            pixels, header = _read(stream)
            return pixels, _is_lateral(header), _other_subject(header), tuple(header.notes)
    except BaseException as error:
        # The RLE decoder is written in Rust; it panics where damaged data lead it out of bounds.
        if type(error).__name__ != "PanicException":
            raise
        raise RadiographError("The RLE data in the DICOM file are damaged; copy or export it again.") from None


def holds_image(head: bytes, whole: Callable[[], BinaryIO]) -> bool:
    """Return whether a DICOM file holds an image (a report or DICOMDIR does not); True if it is too damaged to tell.

    `head` is the file's first 512 bytes. The storage class in them decides, such as "Digital X-Ray Image Storage". If
    the class is private or missing, the file is searched for pixels; `whole` is called to open it.

    Source: DICOM PS3.4, B.5 (storage classes), PS3.10, 7.1 (file meta information).
    """
    with suppress(*MALFORMED), _silence():
        storage_class = UID(str(read_meta(BytesIO(head), last=_STORAGE_CLASS)[_STORAGE_CLASS].value)).name
        if "Storage" in storage_class:
            return "Image" in storage_class
    with suppress(*MALFORMED), whole() as stream, _silence():
        num_bytes = stream.seek(0, os.SEEK_END)
        data, syntax = open_dataset(stream, [])
        header = read_elements(data, syntax, [_ROWS])
        is_cut = data is stream and data.tell() > num_bytes
        return is_cut or bool(data.read(1)) or _ROWS in header
    return True


@contextmanager
def _silence() -> Iterator[None]:
    """Context manager that hides pydicom's warnings and logs, since they may quote patient data from the file.

    Warnings are hidden for the whole process. So only one thread at a time is in this context; others that enter wait.
    """
    logger = logging.getLogger("pydicom")
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        propagates, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagates


def _read(file: BinaryIO) -> tuple[NDArray[np.uint8], Header]:
    notes: list[str] = []
    stream, syntax = open_dataset(file, notes)
    header = Header(read_elements(stream, syntax, _TAGS), notes)
    vr, length = _read_pixel_element(stream, header)
    frame = read_frame(header, length == _UNDEFINED_LENGTH)
    if (length == _UNDEFINED_LENGTH) != syntax.is_encapsulated:
        raise RadiographError(
            f"Expected DICOM pixels as TransferSyntaxUID declares or implies, {syntax.name[:40]}; they are "
            f"{'un' if syntax.is_encapsulated else ''}compressed. Correct it or export the image again."
        )
    if syntax.is_encapsulated:
        codestream = _read_fragments(stream, max_bytes=4 * frame.num_values + 1_000_000)
        plugin, found = inspect_codestream(codestream, syntax, frame)
        bits = _compressed_bits(codestream, found, header, frame)
        data = encapsulate([codestream])
    else:
        plugin = ""
        bits = read_bits(header, frame, 8 if length < 2 * frame.num_values else 16, None)
        data = _read_native(stream, length, frame, bits)
    words = _decode(data, frame, syntax, plugin, vr, bits.allocated)
    if frame.samples_per_pixel == 3:
        return words.astype(np.uint8, copy=False), header
    pixels = _stored_values(words, bits, notes)
    return render(pixels, header, frame.photometric_interpretation, bits.stored), header


def _is_lateral(header: Header) -> bool | None:
    try:
        view, orientation = header.text("ViewPosition"), header.texts("PatientOrientation")
    except MALFORMED:
        return None
    if view:  # even an unknown one, such as the mammographic MLO: the orientation would not tell more
        return _IS_LATERAL.get(view)
    # Only in a lateral view, rows go to the front or back and columns towards the feet.
    rows, columns = (way[:1] for way in orientation) if len(orientation) == 2 else ("", "")
    return rows in ("A", "P") if columns == "F" and rows in ("A", "P", "L", "R") else None


def _other_subject(header: Header) -> str:
    """Return the element that rules out a chest radiograph, such as "BodyPartExamined is BREAST"; "" without one."""
    for keyword, values in _OTHER_SUBJECTS.items():
        with suppress(*MALFORMED):
            if (value := header.text(keyword)) in values:
                return f"{keyword} is {value}"
    return ""


def _read_pixel_element(stream: BinaryIO, header: Header) -> tuple[str, int]:
    """Read the pixel element up to its value; return its value representation and the value's length in bytes."""
    start = stream.read(8)
    if len(start) < 8:
        raise RadiographError("Expected an image, the DICOM file holds no pixels or is cut short; choose another file.")
    is_implicit, is_little = header.dataset.original_encoding  # as found, which may differ from the transfer syntax
    byte_order = "<" if is_little else ">"
    group, element = struct.unpack_from(f"{byte_order}HH", start)
    if (group << 16) + element != _PIXEL_DATA:
        raise RadiographError("Expected whole-number DICOM pixels, got floating point ones; choose another file.")
    if is_implicit:
        return "OW", struct.unpack_from(f"{byte_order}L", start, 4)[0]
    return start[4:6].decode("ascii"), struct.unpack(f"{byte_order}L", stream.read(4))[0]


def _compressed_bits(codestream: bytes, found: FrameHeader | None, header: Header, frame: Frame) -> Bits:
    if found is None:
        (num_segments,) = struct.unpack_from("<L", codestream)  # RLE: one for each byte of a sample
        return read_bits(header, frame, 8 * num_segments // frame.samples_per_pixel, None)
    measured = 8 if found.precision <= 8 else 16
    bits = read_bits(header, frame, measured, found.precision)
    stored = min(bits.stored, found.precision)
    # If only the samples were compressed, they are in the lowest bits; if whole words were, samples kept their place.
    high = bits.high if stored <= bits.high < found.precision else stored - 1
    return replace(bits, allocated=measured, high=high, stored=stored)


def _read_native(stream: BinaryIO, length: int, frame: Frame, bits: Bits) -> bytes:
    num_bytes = frame.num_values * bits.allocated // 8
    if frame.photometric_interpretation == "YBR_FULL_422":  # two pixels share their colour
        num_bytes = num_bytes // 3 * 2
    if not num_bytes <= length < 2 * num_bytes + num_bytes % 2:
        raise RadiographError(f"Expected {num_bytes:,} bytes of pixels by the DICOM header, got {length:,}; re-export.")
    data = stream.read_last(length) if isinstance(stream, InflatedStream) else stream.read(length)
    if len(data) < length:
        raise EOFError
    return data[: num_bytes + num_bytes % 2]


def _read_fragments(stream: BinaryIO, max_bytes: int) -> bytes:
    """Read and join the fragments of a frame; EOFError if they exceed `max_bytes`. Source: DICOM PS3.5, A.4."""
    fragments: list[bytes] = []
    while True:
        *tag, length = struct.unpack("<HHL", stream.read(8))
        if tuple(tag) == _SEQUENCE_END:
            return b"".join(fragments[1:])  # the first holds offsets of frames
        max_bytes -= 8 + length
        if tuple(tag) != _ITEM or max_bytes < 0:
            raise EOFError
        fragments.append(stream.read(length))  # if this one is cut short, reading the next item's header fails


def _decode(
    data: bytes, frame: Frame, syntax: UID, plugin: str, vr: str, bits_allocated: int
) -> NDArray[np.unsignedinteger]:
    """Decode a gray frame to unsigned words `(rows, columns)`, a colour frame to RGB `(rows, columns, 3)`.

    `syntax` is the transfer syntax. `plugin` names the pydicom plugin that decodes; it is "" if `data` are not
    compressed. `vr` is the value representation of the pixel element, `bits_allocated` the number of bits of a word.
    Raises EOFError if the decoded image has another size than `frame`.
    """
    options: dict[str, Any] = {
        **asdict(frame),
        "number_of_frames": 1,
        "bits_allocated": bits_allocated,
        "bits_stored": bits_allocated,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
        "pixel_vr": vr,
        "apply_j2k_sign_correction": False,
    }
    words, _ = get_decoder(syntax).as_array(data, index=0, decoding_plugin=plugin, **options)
    if words.shape[:2] != (frame.rows, frame.columns):
        raise EOFError
    return words


def _stored_values(words: NDArray[np.unsignedinteger], bits: Bits, notes: list[str]) -> NDArray[np.integer]:
    """Extract the samples, signed or unsigned, from the words of `_decode`; drop a word's other bits, such as overlays.

    If `bits.is_signed` is None, guess from the words whether samples are signed, and add a line on that to `notes`.
    """
    width, is_signed = 8 * words.itemsize, bits.is_signed
    if is_signed is None:
        # Only signed samples have a reason to repeat their highest bit in the bits above.
        upper, ones = words >> bits.high, (1 << (width - bits.high)) - 1
        is_signed = ones > 1 and bool((upper == ones).any()) and bool(((upper == ones) | (upper == 0)).all())
        notes.append(f"PixelRepresentation is missing; the pixels were read as {'' if is_signed else 'un'}signed.")
    shifted = words << (width - 1 - bits.high)
    return (shifted.view(f"i{words.itemsize}") if is_signed else shifted) >> (width - bits.stored)
