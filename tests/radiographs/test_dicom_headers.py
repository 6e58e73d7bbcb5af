"""DICOM headers that are odd, incomplete or contradictory: read as what they mean, or refused by the element's name."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.radiographs.limits import peak_growth_mb, takes_less_than
from tests.radiographs.test_dicom import (
    FILM,
    NAME,
    NUMBER,
    TWELVE,
    WINDOW_12,
    check_refusal,
    encapsulated,
    lut_item,
    make_dataset,
    make_dicom,
    read,
    to_bytes,
)

_LONG = (b"UN", b"UT", b"OB", b"OW", b"SQ", b"UC", b"UR")
OVERLAY = np.uint16(0xA000)

RANGE = make_dicom(TWELVE, BitsStored=12)
WINDOWED = make_dicom(TWELVE, BitsStored=12, WindowCenter=2000, WindowWidth=3000)


def with_raw(elements: dict[str, tuple[str, bytes]], **others) -> bytes:
    """A 12-bit radiograph with elements of any value representation and content."""
    data = make_dicom(TWELVE, **{"BitsStored": 12, **others})
    position = data.index(struct.pack("<HH", 0x0028, 0x0002))
    return data[:position] + b"".join(raw(*item) for item in elements.items()) + data[position:]


def raw(keyword: str, element: tuple[str, bytes]) -> bytes:
    tag, (vr, value) = tag_for_keyword(keyword), element
    value += b" " * (len(value) % 2)
    length = struct.pack("<HL" if vr.encode() in _LONG else "<H", *([0] if vr.encode() in _LONG else []), len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


def with_window(center: bytes, width: bytes = b"3000", vr: str = "DS", **others) -> bytes:
    return with_raw({"WindowCenter": (vr, center), "WindowWidth": (vr if width else "DS", width)}, **others)


def without(*keywords: str, pixels: np.ndarray = TWELVE, **elements) -> bytes:
    dataset = make_dataset(pixels, **{"BitsStored": 12, **elements})
    for keyword in keywords:
        delattr(dataset, keyword)
    return to_bytes(dataset)


def recoded(pixels: np.ndarray, syntax: UID, bits_of_codestream: int, **elements) -> bytes:
    """Compressed with other bits than the header then declares."""
    dataset = make_dataset(pixels, BitsStored=bits_of_codestream)
    dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    for keyword, value in {"BitsStored": 12, "HighBit": 11, **elements}.items():
        setattr(dataset, keyword, value)
    return to_bytes(dataset)


def notes_of(data: bytes) -> str:
    return " ".join(read_radiograph(data).info.get("notes", ()))


NUMBERS = {
    "decimal comma": ("DS", b"2000,0"),
    "unit": ("DS", b"2000 HU"),
    "unit in brackets": ("DS", b"2000[HU]"),
    "semicolon": ("DS", b"2000;1000"),
    "comma and space": ("DS", b"2000, 1000"),
    "several": ("DS", b"2000\\1000"),
    "thousands, English": ("DS", b"2,000.0"),
    "thousands, German": ("DS", b"2.000,0"),
    "sign and spaces": ("DS", b" +2000  "),
    "exponent": ("DS", b"2.0E+03"),
    "zeros at the end": ("DS", b"2000\0\0"),
    "IS": ("IS", b"2000.0"),
    "LO": ("LO", b"2000"),
    "SH, comma": ("SH", b"2000,0"),
    "UT": ("UT", b"2000"),
    "UN": ("UN", b"2000"),
    "US": ("US", struct.pack("<H", 2000)),
    "SL": ("SL", struct.pack("<l", 2000)),
    "FL": ("FL", struct.pack("<f", 2000)),
    "FD, several": ("FD", struct.pack("<2d", 2000, 5)),
}


@pytest.mark.parametrize(("vr", "value"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_read_however_they_are_written(vr, value):
    data = with_raw({"WindowCenter": (vr, value), "WindowWidth": ("DS", b"3000")})
    np.testing.assert_array_equal(read(data), read(WINDOWED))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(b"2,5", b"-100,5"), (b"2.5 HU", b"-100.5\\-100.5"), (b"2,500", b"-100,500")]
)
def test_rescale_numbers_are_read_however_they_are_written(slope, intercept):
    window = {"WindowCenter": 5000, "WindowWidth": 9000}
    data = with_raw({"RescaleSlope": ("DS", slope), "RescaleIntercept": ("LO", intercept)}, **window)
    if slope == b"2,500":  # 2.5 or 2500
        with pytest.raises(RadiographError, match=r"RescaleSlope, got '2,500'"):
            read(data)
        return
    expected = make_dicom(TWELVE, BitsStored=12, RescaleSlope="2.5", RescaleIntercept="-100.5", **window)
    np.testing.assert_array_equal(read(data), read(expected))


UNCLEAR = {
    "decimal or thousands": (b"2,048", r"WindowCenter, got '2,048'"),
    "range": (b"2000-4000", r"WindowCenter, got '2000-4000'"),
    "words": (b"2000 to 4000", r"WindowCenter, got '2000 \?\? 4000'"),
    "SI prefix": (b"2k", r"WindowCenter, got '2\?'"),
    "hexadecimal": (b"0x7D0", r"WindowCenter, got '0\?7\?0'"),
    "two points": (b"2.0.0", r"WindowCenter, got '2\.0\.0'"),
    "name": (NAME.encode(), "WindowCenter, got text that is not one"),
    "number of a patient": (NUMBER.encode(), "WindowCenter, got text that is not one"),
    "endless": (b"9" * 30 + b"x" * 9000, r"WindowCenter, got '9{24}\.\.\.'"),
}


@pytest.mark.parametrize(("value", "reason"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_no_clear_number_is_refused_by_element_and_value(value, reason):
    with pytest.raises(RadiographError, match=reason) as caught:
        read_radiograph(with_window(value))
    check_refusal(caught.value)


WRONG = {
    "slopes differ": ({"RescaleSlope": ("DS", b"1\\2.5")}, "one number in the DICOM element RescaleSlope, got 2"),
    "sequence": ({"RescaleSlope": ("SQ", b"")}, None),
    "rows of 3 bytes": ({"HighBit": ("US", b"\0\0\0")}, None),
    "rows not whole": ({"PixelPaddingValue": ("DS", b"1.5")}, "whole number in the DICOM element PixelPaddingValue"),
    "table as text": ({"VOILUTSequence": ("LO", b"LINEAR")}, "sequence in the DICOM element VOILUTSequence"),
    "frames": ({"NumberOfFrames": ("IS", b"1 of 2 ")}, "has 2 frames"),
}


@pytest.mark.parametrize(("elements", "reason"), WRONG.values(), ids=WRONG)
def test_other_elements_are_refused_by_name(elements, reason):
    if reason is None:  # an empty or too short element is none
        np.testing.assert_array_equal(read(with_raw(elements)), read(RANGE))
        return
    with pytest.raises(RadiographError, match=reason) as caught:
        read_radiograph(with_raw(elements))
    check_refusal(caught.value)


@pytest.mark.parametrize("text", [b"one", b"1A", b"1\\2"])
def test_an_unreadable_number_of_frames_follows_from_the_amount_of_pixels(text):
    data = with_raw({"NumberOfFrames": ("IS", text)})
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert "NumberOfFrames is not readable; 1 was taken" in notes_of(data)
    two = make_dataset(TWELVE, BitsStored=12)
    two.add_new("NumberOfFrames", "LO", text.decode())
    two.PixelData *= 2
    with pytest.raises(RadiographError, match="9,600 bytes of pixels by the DICOM header, got 19,200"):
        read_radiograph(to_bytes(two))
    rle = make_dataset(TWELVE, BitsStored=12)
    rle.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    rle.add_new("NumberOfFrames", "LO", text.decode())
    with pytest.raises(RadiographError, match="NumberOfFrames"):
        read_radiograph(to_bytes(rle))


@pytest.mark.parametrize(
    "elements",
    [
        {"Rows": ("IS", b"60"), "Columns": ("UL", struct.pack("<L", 80))},
        {"BitsStored": ("UN", struct.pack("<H", 12)), "HighBit": ("DS", b"11.0")},
        {"NumberOfFrames": ("IS", b"1 of 1")},
        {"NumberOfFrames": ("LO", b"1 frame")},
        {"SamplesPerPixel": ("US", struct.pack("<2H", 1, 1)), "PhotometricInterpretation": ("LO", b"monochrome 2")},
    ],
)
def test_elements_of_pixels_may_have_any_representation(elements):
    dataset = make_dataset(TWELVE, BitsStored=12)
    for keyword in set(elements) & set(dataset.dir()):
        delattr(dataset, keyword)
    data = to_bytes(dataset)
    position = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    changed = data[:position] + b"".join(raw(*item) for item in elements.items()) + data[position:]
    np.testing.assert_array_equal(read(changed), read(RANGE))


SIGNED = (TWELVE.astype(np.int16) - 2048) & 0xFFF  # two's complement in 12 bits
UNUSED_BITS = {
    "native": make_dicom(TWELVE | OVERLAY, BitsStored=12),
    "big endian": make_dicom(TWELVE | OVERLAY, ExplicitVRBigEndian, BitsStored=12),
    "RLE": recoded(TWELVE | OVERLAY, RLELossless, 16),
    "JPEG 2000": recoded(TWELVE | OVERLAY, JPEG2000Lossless, 16),
    "JPEG 2000 of 13 bits": recoded(TWELVE | np.uint16(0x1000), JPEG2000Lossless, 13),
    "native, signed": make_dicom(SIGNED.astype(np.uint16) | OVERLAY, BitsStored=12, PixelRepresentation=1),
    "RLE, signed": recoded(SIGNED.astype(np.uint16), RLELossless, 16, PixelRepresentation=1),
    "JPEG 2000, signed": recoded(SIGNED.astype(np.uint16), JPEG2000Lossless, 12, PixelRepresentation=1),
    "JPEG 2000, signed, overlay": recoded(
        SIGNED.astype(np.uint16) | OVERLAY, JPEG2000Lossless, 16, PixelRepresentation=1
    ),
    "JPEG 2000 of a signed word": recoded(TWELVE.astype(np.int16) - 2048, JPEG2000Lossless, 16, PixelRepresentation=1),
    "JPEG 2000, high in the word": recoded(TWELVE << 4, JPEG2000Lossless, 16, HighBit=15),
    "JPEG 2000, alone but said high": recoded(TWELVE, JPEG2000Lossless, 12, HighBit=15),
    "native, high in the word, signed": make_dicom(
        (SIGNED << 4).astype(np.uint16) | np.uint16(5), BitsStored=12, HighBit=15, PixelRepresentation=1
    ),
}


@pytest.mark.parametrize("data", UNUSED_BITS.values(), ids=UNUSED_BITS)
def test_only_the_stored_bits_count_after_every_decoder(data):
    np.testing.assert_array_equal(read(data), read(RANGE))


@pytest.mark.parametrize(("pixels", "sign"), [(TWELVE | OVERLAY, 0), (SIGNED.astype(np.uint16), 1)])
def test_only_the_stored_bits_count_in_jpeg_ls(pixels, sign):
    codec = pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    codestream = bytes(codec.encode_array(np.ascontiguousarray(pixels)))
    data = encapsulated(pixels, JPEGLSLossless, codestream, BitsStored=12, PixelRepresentation=sign)
    np.testing.assert_array_equal(read(data), read(RANGE))


def jpeg_of_8_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FILM).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_jpeg_of_8_bits_in_words_of_16():
    jpeg = jpeg_of_8_bits()
    data = encapsulated(FILM, JPEGBaseline8Bit, jpeg, BitsAllocated=16, BitsStored=8)
    np.testing.assert_array_equal(read(data), read(jpeg))


@pytest.mark.parametrize(
    ("marker", "precision", "name"), [(0xC1, 12, "12-bit JPEG"), (0xC3, 12, "lossless JPEG"), (0xF7, 8, "JPEG-LS")]
)
def test_a_compression_that_the_transfer_syntax_hides_is_named(marker, precision, name):
    header = struct.pack(">BBBBHBHHB", 0xFF, 0xD8, 0xFF, marker, 11, precision, 60, 80, 1) + bytes(40)
    data = encapsulated(TWELVE, JPEGBaseline8Bit, header, BitsStored=12)
    if "pylibjpeg" in get_decoder(JPEGBaseline8Bit).available_plugins:
        pytest.skip("pylibjpeg-libjpeg is installed and decodes it")
    with pytest.raises(RadiographError, match=f"compressed as {name}, .*install pylibjpeg-libjpeg") as caught:
        read_radiograph(data)
    check_refusal(caught.value)


SUPPLIED = {
    "BitsStored": (without("BitsStored"), "BitsStored is missing; 12 was taken, by HighBit"),
    "BitsStored and HighBit": (
        without("BitsStored", "HighBit"),
        "BitsStored is missing; 16 was taken, by BitsAllocated. HighBit is missing; 15",
    ),
    "HighBit": (without("HighBit"), "HighBit is missing; 11 was taken, by BitsStored"),
    "BitsAllocated": (without("BitsAllocated"), "BitsAllocated is missing; 16 was taken"),
    "SamplesPerPixel": (without("SamplesPerPixel"), "SamplesPerPixel is missing; 1 was taken"),
    "PixelRepresentation": (without("PixelRepresentation"), "PixelRepresentation is missing.*read as unsigned"),
    "PixelRepresentation of signed pixels": (
        without("PixelRepresentation", pixels=TWELVE.astype(np.int16) - 2048),
        "PixelRepresentation is missing.*read as signed",
    ),
    "PhotometricInterpretation": (
        without("PhotometricInterpretation", PresentationLUTShape="IDENTITY"),
        "PhotometricInterpretation is missing; MONOCHROME2 was taken",
    ),
    "PhotometricInterpretation, inverse": (
        without("PhotometricInterpretation", pixels=4095 - TWELVE, PresentationLUTShape="INVERSE"),
        "PhotometricInterpretation is missing; MONOCHROME1 was taken",
    ),
}


@pytest.mark.parametrize(("data", "note"), SUPPLIED.values(), ids=SUPPLIED)
def test_a_missing_element_that_follows_from_the_rest_is_supplied_with_a_note(data, note):
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert re.search(note, notes_of(data))


@pytest.mark.parametrize(
    "keyword", ["BitsStored", "BitsAllocated", "HighBit", "SamplesPerPixel", "PixelRepresentation"]
)
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_a_missing_element_is_supplied_for_compressed_pixels(keyword, syntax):
    dataset = make_dataset(TWELVE, BitsStored=12)
    dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    delattr(dataset, keyword)
    data = to_bytes(dataset)
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert f"{keyword} is missing" in notes_of(data)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_an_empty_element_is_a_missing_one(syntax):
    keywords = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTFunction", "VOILUTSequence")
    keywords += ("NumberOfFrames", "PixelPaddingValue", "PlanarConfiguration", "PresentationLUTShape")
    data = make_dicom(TWELVE, syntax, BitsStored=12, HighBit=None, **dict.fromkeys(keywords))
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert notes_of(data) == "HighBit is missing; 11 was taken, by BitsStored."


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "PhotometricInterpretation"])
def test_a_missing_element_that_does_not_follow_is_named(keyword):
    with pytest.raises(RadiographError, match=f"DICOM element {keyword}, it is missing") as caught:
        read_radiograph(without(keyword))
    check_refusal(caught.value)


def bare(syntax: UID, *, with_meta: bool) -> bytes:
    """Without the preamble, and also without the file meta information."""
    data = make_dicom(TWELVE, syntax, BitsStored=12)[132:]
    if with_meta:
        return data
    (length,) = struct.unpack_from("<L", data, 8)  # the value of the first element, the group's length
    return data[12 + length :]


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_dicom_without_preamble_and_without_file_meta_information(syntax, with_meta):
    data = bare(syntax, with_meta=with_meta)
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert ("TransferSyntaxUID is missing" in notes_of(data)) is not with_meta
    after_preamble = bytes(128) + b"DICM" + data
    np.testing.assert_array_equal(read(after_preamble), read(RANGE))


@pytest.mark.parametrize("with_meta", [True, False])
def test_dicom_without_preamble_is_never_read_cut_short(with_meta):
    data = bare(ExplicitVRLittleEndian, with_meta=with_meta)
    for end in (*range(0, 400, 7), len(data) - 1, len(data) - 2):
        with pytest.raises(RadiographError, match=r"Expected|damaged"):
            read_radiograph(data[:end])


def test_pixels_that_are_not_as_the_transfer_syntax_declares_are_named():
    native = make_dicom(TWELVE, BitsStored=12).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    with pytest.raises(RadiographError, match=r"TransferSyntaxUID declares or implies, RLE.*uncompressed") as caught:
        read_radiograph(native)
    check_refusal(caught.value)
    rle = recoded(TWELVE, RLELossless, 12).replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0")
    with pytest.raises(
        RadiographError, match=r"TransferSyntaxUID declares or implies, Explicit.*are compressed"
    ) as caught:
        read_radiograph(rle)
    check_refusal(caught.value)


def deflated(body: bytes, tail: bytes = b"") -> bytes:
    data = make_dicom(TWELVE, DeflatedExplicitVRLittleEndian, BitsStored=12)
    (length,) = struct.unpack_from("<L", data, 140)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return data[: 144 + length] + squeeze.compress(body) + squeeze.flush() + tail


def data_set() -> bytes:
    return bare(ExplicitVRLittleEndian, with_meta=False)


def test_a_deflated_file_is_inflated_up_to_its_image_only():
    np.testing.assert_array_equal(read(deflated(data_set())), read(RANGE))
    np.testing.assert_array_equal(read(deflated(data_set() + bytes(40_000_000))), read(RANGE))
    np.testing.assert_array_equal(read(deflated(data_set(), tail=b"\0")), read(RANGE))


PRIVATE = struct.pack("<HH2sHL", 0x0009, 0x1010, b"OB", 0, 200_000_000)
DEFLATED_BOMBS = {
    "zeros": bytes(200_000_000),
    "long element": PRIVATE + bytes(200_000_000),
    "long element, then an image": PRIVATE + bytes(200_000_000) + data_set(),
    "million elements": struct.pack("<HH2sH", 0x0009, 0x1010, b"LO", 0) * 1_000_000 + data_set(),
    "undefined length": struct.pack("<HH2sHL", 0x0009, 0x1010, b"OB", 0, 0xFFFFFFFF) + bytes(200_000_000),
    "more pixels than declared": data_set().replace(
        struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 9600),
        struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 200_000_000),
    )
    + bytes(200_000_000),
}


@pytest.mark.parametrize("name", DEFLATED_BOMBS)
def test_deflated_bombs_are_refused_fast_and_small(name, tmp_path):
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated(DEFLATED_BOMBS[name]))

    def refuse() -> None:
        with pytest.raises(RadiographError, match=r"Expected|damaged") as caught:
            read_radiograph(path)
        check_refusal(caught.value)

    assert peak_growth_mb(refuse) < 50
    assert takes_less_than(0.1, refuse)


USELESS = {
    "width 0": {"WindowCenter": 9, "WindowWidth": 0},
    "negative width": {"WindowCenter": 9, "WindowWidth": -5},
    "LINEAR, width below 1": {"WindowCenter": 9, "WindowWidth": 0.5},
    "all of several": {"WindowCenter": [9, 9], "WindowWidth": [0, -1]},
    "center alone": {"WindowCenter": 9},
    "width alone": {"WindowWidth": 9},
    "unknown function": {"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "LOG"},
    "SIGMOID, width 0": {"WindowCenter": 9, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
    "slope 0": {"RescaleSlope": 0, "RescaleIntercept": 0},
    "slope 0 with a window": {"RescaleSlope": 0, "RescaleIntercept": 0, "WindowCenter": 9, "WindowWidth": 9},
    "slope too large": {"RescaleSlope": "1e308", "RescaleIntercept": 0},
    "sequence of nothing": {"VOILUTSequence": [Dataset()]},
}


@pytest.mark.parametrize("elements", USELESS.values(), ids=USELESS)
def test_a_useless_window_falls_back_to_the_range_of_the_pixels_with_a_note(elements):
    data = make_dicom(TWELVE, BitsStored=12, **elements)
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert any(keyword in notes_of(data) for keyword in elements)


@pytest.mark.parametrize(("center", "width"), [(b"nan", b"10"), (b"10", b"NaN"), (b"10", b"1.#QNAN"), (b"inf", b"9")])
def test_windows_that_are_not_finite_fall_back_with_a_note(center, width):
    data = with_window(center, width)
    np.testing.assert_array_equal(read(data), read(RANGE))
    assert "WindowCenter and WindowWidth are not usable" in notes_of(data)


def test_useless_rescaling_of_8_bits_keeps_their_levels():
    narrow = (FILM // 4 + 50).astype(np.uint8)
    data = make_dicom(narrow, RescaleSlope=0, RescaleIntercept=5)
    np.testing.assert_array_equal(read(data), narrow)


@pytest.mark.parametrize(
    ("center", "width"), [(b"\\2000", b"\\3000"), (b"9\\2000", b"0\\3000"), (b"\\2000;7", b"5\\3000")]
)
def test_the_first_usable_window_is_taken_with_a_note(center, width):
    data = with_window(center, width)
    np.testing.assert_array_equal(read(data), read(WINDOWED))
    assert "Window 2 of" in notes_of(data)


def test_a_window_beside_all_pixels_is_applied_with_a_note():
    data = make_dicom(TWELVE, BitsStored=12, WindowCenter=-5000, WindowWidth=100)
    assert set(read(data).ravel()) == {255}
    assert "outside of the window" in notes_of(data)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_half_of_a_rescaling_is_ignored_with_a_note(keyword):
    window = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    data = make_dicom(TWELVE, **window, **{keyword: 9})
    np.testing.assert_array_equal(read(data), read(WINDOWED))
    assert f"{keyword} was ignored" in notes_of(data)


def test_a_table_may_have_any_representation():
    levels = np.array([[0, 9, 10, 11, 12, 13, 4000]], np.uint16)
    item = Dataset()
    item.add_new(0x00283002, "SS", [4, 10, 12])
    item.add_new(0x00283006, "UN", np.array([0, 100, 2000, 4095], "<u2").tobytes())
    data = make_dicom(levels, BitsStored=12, VOILUTSequence=[item])
    assert read(data).tolist() == [[0, 0, 0, 6, 125, 255, 255]]
    broken = lut_item([4, 10], b"\0" * 8)
    with pytest.raises(RadiographError, match="lookup table of 8 to 16 bits by LUTDescriptor"):
        read_radiograph(make_dicom(levels, BitsStored=12, VOILUTSequence=[broken]))


def test_ordinary_files_have_no_notes():
    for data in (RANGE, WINDOWED, make_dicom(FILM, **WINDOW_12), deflated(data_set())):
        assert "notes" not in read_radiograph(data).info
