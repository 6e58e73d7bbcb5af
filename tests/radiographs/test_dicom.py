"""The reader's DICOM side: rendered as the standard says, and nothing malformed is rendered."""

import io
import logging
import random
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.radiographs.limits import peak_growth_mb, takes_less_than

NAME = "Doe^Jane"
NUMBER = "MRN4711"


def film(height: int = 60, width: int = 80) -> np.ndarray:
    """A smooth 8-bit picture with some texture that uses 0 and 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    grey = 128 + 90 * np.sin(rows / 17) * np.cos(columns / 23) + np.random.default_rng(0).normal(0, 8, (height, width))
    grey = np.clip(grey, 0, 255).astype(np.uint8)
    grey[0, 0], grey[-1, -1] = 0, 255
    return grey


def stretched(grey: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(grey * ((2**bits - 1) / 255)).astype(np.uint16)


def make_dataset(pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **elements) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.Modality = NAME, NUMBER, "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    big = syntax == ExplicitVRBigEndian
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the wrong values that some tests want
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
    if "HighBit" not in elements:
        dataset.HighBit = dataset.BitsStored - 1
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_dicom(pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **elements) -> bytes:
    return to_bytes(make_dataset(pixels, syntax, **elements))


def compressed(pixels: np.ndarray, syntax: UID, **elements) -> bytes:
    dataset = make_dataset(pixels, **elements)
    dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    return to_bytes(dataset)


def encapsulated(pixels: np.ndarray, syntax: UID, codestream: bytes, **elements) -> bytes:
    dataset = make_dataset(pixels, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def read(source) -> np.ndarray:
    return np.asarray(read_radiograph(source))


def lut_item(descriptor: list[int], data: bytes, vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", descriptor)
    item.add_new(0x00283006, vr, data)
    return item


def check_refusal(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) <= 200
    assert not any(secret in text for secret in ("/", "Doe", "Jane", NUMBER))


def sample(name: str) -> Path:
    pytest.importorskip("data_store", reason="pydicom-data is not installed")
    return Path(get_testdata_file(f"{name}.dcm", download=False))


FILM = film()
TWELVE = stretched(FILM, 12)
SIXTEEN = stretched(FILM, 16)
WINDOW_12 = {"WindowCenter": 2048, "WindowWidth": 4096}
SAME_FILM = {
    "8 bits": make_dicom(FILM),
    "8 bits inverted": make_dicom(255 - FILM, PhotometricInterpretation="MONOCHROME1"),
    "12 bits": make_dicom(TWELVE, BitsStored=12),
    "12 bits inverted": make_dicom(4095 - TWELVE, BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
    "12 bits windowed": make_dicom(TWELVE, BitsStored=12, **WINDOW_12),
    "12 bits inverted windowed": make_dicom(
        4095 - TWELVE, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **WINDOW_12
    ),
    "12 bits rescaled and windowed": make_dicom(
        TWELVE, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8191
    ),
    "12 bits left in the word": make_dicom(TWELVE << 4, BitsStored=12, HighBit=15, **WINDOW_12),
    "12 bits under an overlay": make_dicom(TWELVE | np.uint16(0xA000), BitsStored=12),
    "16 bits": make_dicom(SIXTEEN),
    "16 bits, window of several": make_dicom(SIXTEEN, WindowCenter=[32768, 9], WindowWidth=[65536, 9]),
    "16 bits signed": make_dicom((SIXTEEN.astype(np.int32) - 32768).astype(np.int16)),
    "12 bits signed": make_dicom((TWELVE.astype(np.int16) - 2048), BitsStored=12),
    "implicit": make_dicom(TWELVE, ImplicitVRLittleEndian, BitsStored=12),
    "deflated": make_dicom(TWELVE, DeflatedExplicitVRLittleEndian, BitsStored=12),
    "big endian": make_dicom(TWELVE, ExplicitVRBigEndian, BitsStored=12),
    "RLE": compressed(TWELVE, RLELossless, BitsStored=12),
    "JPEG 2000": compressed(TWELVE, JPEG2000Lossless, BitsStored=12),
    "JPEG 2000, 8 bits": compressed(FILM, JPEG2000Lossless),
    "RGB": make_dicom(np.dstack([FILM] * 3)),
    "RGB, RLE": compressed(np.dstack([FILM] * 3), RLELossless),
}


@pytest.mark.parametrize("data", SAME_FILM.values(), ids=SAME_FILM)
def test_every_encoding_gives_the_pixels_of_the_png(data):
    image = read_radiograph(data)
    assert image.mode == "L"
    assert image.info == {"original_size": (80, 60)}
    assert np.abs(np.asarray(image).astype(int) - FILM).max() <= 1


def test_jpeg_in_dicom_equals_the_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(FILM).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()
    np.testing.assert_array_equal(read(encapsulated(FILM, JPEGBaseline8Bit, jpeg)), read(jpeg))


def test_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / f"{NAME}.jpg"
    path.write_bytes(SAME_FILM["8 bits"])
    for source in (path, io.BytesIO(SAME_FILM["8 bits"])):
        np.testing.assert_array_equal(read(source), FILM)


def test_monochrome1_is_inverted():
    levels = stretched(FILM, 10)
    normal = read(make_dicom(levels, BitsStored=10))
    inverted = read(make_dicom(levels, BitsStored=10, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(normal.astype(int) + inverted, 255)
    assert normal[0, 0] == 0


def test_presentation_shape_inverse_and_monochrome1_invert_once():
    for photometric, shape, is_inverted in [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ]:
        data = make_dicom(FILM, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
        np.testing.assert_array_equal(read(data), 255 - FILM if is_inverted else FILM)


def test_eight_bits_keep_their_levels_and_deeper_ones_are_stretched():
    narrow = (FILM // 4 + 50).astype(np.uint8)  # 50..113
    np.testing.assert_array_equal(read(make_dicom(narrow)), narrow)
    deep = read(make_dicom(narrow.astype(np.uint16) + 1000, BitsStored=12))
    np.testing.assert_array_equal(deep, np.rint((narrow.astype(float) - 50) * (255 / 63)))


@pytest.mark.parametrize("value", [0, 1000, 4095])
def test_constant_image_divides_by_nothing(value):
    constant = np.full((4, 6), value, np.uint16)
    with np.errstate(all="raise"):
        assert set(read(make_dicom(constant, BitsStored=12)).ravel()) == {0}
        assert set(read(make_dicom(constant, BitsStored=12, PhotometricInterpretation="MONOCHROME1")).ravel()) == {255}
    assert len(set(read(make_dicom(constant, BitsStored=12, **WINDOW_12)).ravel())) == 1


def test_padding_does_not_take_part_in_the_range():
    levels = np.array([[0, 1000], [1500, 2000]], np.uint16)
    assert read(make_dicom(levels, BitsStored=12)).tolist() == [[0, 128], [191, 255]]
    assert read(make_dicom(levels, BitsStored=12, PixelPaddingValue=0)).tolist() == [[0, 0], [128, 255]]
    ranged = make_dicom(levels, BitsStored=12, PixelPaddingValue=0, PixelPaddingRangeLimit=1000)
    assert read(ranged).tolist() == [[0, 0], [0, 255]]
    all_padding = make_dicom(levels, BitsStored=12, PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    assert read(all_padding).tolist() == [[0, 128], [191, 255]]
    signed = make_dataset(np.array([[-2000, -10], [0, 10]], np.int16))
    signed.add_new(0x00280120, "US", 65536 - 2000)  # written as US although the pixels are signed
    assert read(to_bytes(signed)).tolist() == [[0, 0], [128, 255]]


def test_windows_by_hand():
    levels = np.array([[0, 100, 150, 200, 300]], np.uint16)
    window = {"BitsStored": 12, "WindowCenter": 150, "WindowWidth": 101}
    # PS3.3 C.11.2.1.2.1: ((x - (c - .5)) / (w - 1) + .5), so 0 at 99.5 and 1 at 199.5
    assert read(make_dicom(levels, **window)).tolist() == [[0, 1, 129, 255, 255]]
    # C.11.2.1.3.2: (x - c) / w + .5
    exact = read(make_dicom(levels, **window, VOILUTFunction="LINEAR_EXACT")).tolist()
    assert exact == [[0, 1, 128, 254, 255]]
    # C.11.2.1.3.1: 1 / (1 + exp(-4 (x - c) / w))
    sigmoid = read(make_dicom(levels, **window, VOILUTFunction="SIGMOID")).tolist()
    assert sigmoid == [[1, 31, 128, 224, 254]]
    threshold = {"BitsStored": 12, "WindowCenter": 150.5, "WindowWidth": 1}
    assert read(make_dicom(levels, **threshold)).tolist() == [[0, 0, 0, 255, 255]]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_windows_equal_pydicoms(function, is_signed):
    generator = np.random.default_rng(5)
    for _ in range(10):
        levels = generator.integers(0, 4096, (20, 30)) - 2048 * is_signed
        slope, intercept = generator.uniform(0.1, 4), generator.uniform(-2000, 2000)
        elements = {
            "BitsStored": 12,
            "RescaleSlope": f"{slope:.6f}",
            "RescaleIntercept": f"{intercept:.4f}",
            "WindowCenter": f"{generator.uniform(-2000, 6000):.3f}",
            "WindowWidth": f"{generator.uniform(2, 8000):.3f}",
            "VOILUTFunction": function,
        }
        dataset = dcmread(io.BytesIO(make_dicom(levels.astype(np.int16 if is_signed else np.uint16), **elements)))
        shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
        low, high = (np.array([0, 4095]) - 2048 * is_signed) * float(dataset.RescaleSlope) + dataset.RescaleIntercept
        expected = (shown - float(low)) / float(high - low) * 255
        assert np.abs(read(to_bytes(dataset)) - expected).max() <= 0.5 + 1e-6


def test_negative_slope_inverts():
    data = make_dicom(TWELVE, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095)
    assert np.abs(read(data).astype(int) - (255 - FILM)).max() <= 1


def test_voi_tables_by_hand():
    levels = np.array([[0, 9, 10, 11, 12, 13, 4000]], np.uint16)
    words = np.array([0, 100, 2000, 4095], "<u2").tobytes()
    item = lut_item([4, 10, 12], words)
    expected = [[0, 0, 0, 6, 125, 255, 255]]  # 100 and 2000 of 4095; before the first and after the last: the ends
    data = make_dicom(levels, BitsStored=12, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    assert read(data).tolist() == expected  # the table goes before the window
    as_numbers = lut_item([4, 10, 12], [0, 100, 2000, 4095], "US")
    assert read(make_dicom(levels, BitsStored=12, VOILUTSequence=[as_numbers])).tolist() == expected
    big = make_dicom(levels, ExplicitVRBigEndian, BitsStored=12, VOILUTSequence=[as_numbers])
    assert read(big).tolist() == expected
    big_item = lut_item([4, 10, 12], np.array([0, 100, 2000, 4095], ">u2").tobytes())
    assert read(make_dicom(levels, ExplicitVRBigEndian, BitsStored=12, VOILUTSequence=[big_item])).tolist() == expected
    packed = lut_item([4, 10, 8], bytes([0, 6, 125, 255]))  # two entries of 8 bits in a word
    assert read(make_dicom(levels, BitsStored=12, VOILUTSequence=[packed])).tolist() == expected


def test_voi_table_of_8_bit_entries_may_have_more_than_256():
    entries = (np.arange(4096) // 16).astype("<u2").tobytes()
    data = make_dicom(TWELVE, BitsStored=12, VOILUTSequence=[lut_item([4096, 0, 8], entries)])
    np.testing.assert_array_equal(read(data), TWELVE // 16)


def test_table_for_signed_pixels_starts_below_zero():
    levels = np.array([[-3, -2, -1, 0, 1]], np.int16)
    item = lut_item([3, 65536 - 2, 8], np.array([10, 20, 30], "<u2").tobytes())
    assert read(make_dicom(levels, BitsStored=12, VOILUTSequence=[item])).tolist() == [[10, 10, 20, 30, 30]]


def test_modality_table_comes_before_the_window():
    levels = np.array([[0, 1, 2, 3]], np.uint16)
    item = lut_item([4, 0, 16], np.array([0, 1000, 3000, 4000], "<u2").tobytes())
    item.ModalityLUTType = "US"
    windowed = make_dicom(levels, BitsStored=12, ModalityLUTSequence=[item], WindowCenter=2000.5, WindowWidth=4001)
    assert read(windowed).tolist() == [[0, 64, 191, 255]]
    assert read(make_dicom(levels, BitsStored=12, ModalityLUTSequence=[item])).tolist() == [[0, 64, 191, 255]]


def test_colour_becomes_luma():
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[...] = (200, 100, 50)
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert abs(int(read(make_dicom(colours)).mean()) - expected) <= 1
    luma_first = np.zeros((4, 4, 3), np.uint8)
    luma_first[...] = (90, 128, 128)
    assert set(read(make_dicom(luma_first, PhotometricInterpretation="YBR_FULL")).ravel()) == {90}


@pytest.mark.parametrize(("one", "other"), [("RG1_UNCR", "RG1_J2KR"), ("RG3_UNCR", "RG3_J2KR")])
def test_compressed_siblings_are_equal(one, other):
    np.testing.assert_array_equal(read(sample(one)), read(sample(other)))


def test_lossy_sibling_is_equal_within_a_level():
    difference = read(sample("RG1_UNCI")).astype(int) - read(sample("RG1_J2KI"))
    assert np.abs(difference).max() <= 1


def test_rle_sibling_is_equal():
    dataset = dcmread(sample("RG3_UNCR"))
    dataset.compress(RLELossless, encoding_plugin="pylibjpeg")
    np.testing.assert_array_equal(read(to_bytes(dataset)), read(sample("RG3_J2KR")))
    np.testing.assert_array_equal(read(sample("MR_small_RLE")), read(sample("MR_small")))


def test_real_chest_equals_the_formula_and_shows_air_dark():
    dataset = dcmread(sample("RG1_UNCR"))
    levels = np.frombuffer(dataset.PixelData, "<u2").reshape(1955, 1841).astype(float)
    grey = read(sample("RG1_UNCR"))
    window = np.clip((levels - 14999.5) / 29999 + 0.5, 0, 1)  # center 15000, width 30000
    assert np.abs(grey - (255 - 255 * window)).max() <= 0.5 + 1e-6
    lung, mediastinum, outside = grey[600:700, 1250:1350], grey[900:1000, 900:1000], grey[60:140, 20:100]
    assert outside.mean() < lung.mean() < mediastinum.mean() - 30


@pytest.mark.parametrize(
    ("name", "other"), [("MR_small", "MR_small_bigendian"), ("MR_small", "MR_small_implicit"), ("SC_rgb", "SC_rgb_rle")]
)
def test_pydicoms_own_siblings_are_equal(name, other):
    np.testing.assert_array_equal(read(sample(name)), read(sample(other)))


@pytest.mark.parametrize("name", ["vlut_04", "mlut_18"])
def test_sample_tables_equal_pydicoms(name):
    dataset = dcmread(sample(name))
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    if name == "vlut_04":
        expected = shown / 255 if shown.max() <= 255 else shown / 65535
    else:
        expected = (shown - shown.min()) / (shown.max() - shown.min())
    assert np.abs(read(sample(name)) - 255 * expected).max() <= 0.5 + 1e-6


def with_elements(**elements) -> bytes:
    return make_dicom(TWELVE, **{"BitsStored": 12, **elements})


def without(*keywords: str) -> bytes:
    dataset = make_dataset(TWELVE, BitsStored=12)
    for keyword in keywords:
        delattr(dataset, keyword)
    return to_bytes(dataset)


def float_pixels() -> bytes:
    dataset = make_dataset(TWELVE, BitsStored=12)
    del dataset.PixelData
    dataset.FloatPixelData = FILM.astype("<f4").tobytes()
    return to_bytes(dataset)


def foreign_syntax() -> bytes:
    return with_elements().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.4711.9.2.1.\0")


def rle(*segments: bytes) -> bytes:
    """A frame of these segments. Source: DICOM PS3.5, annex G."""
    starts = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


J2K = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">8LHBBB", 80, 60, 0, 0, 80, 60, 0, 0, 1, 11, 1, 1)
REFUSED = {
    "two frames": (with_elements(NumberOfFrames=2), "2 frames"),
    "no pixels": (without("PixelData"), "no pixels"),
    "float pixels": (float_pixels(), "floating point"),
    "no rows": (without("Rows"), "DICOM element Rows, it is missing"),
    "zero rows": (with_elements(Rows=0), "80 x 0"),
    "palette": (with_elements(PhotometricInterpretation="PALETTE COLOR"), "got another kind"),
    "unknown colours": (with_elements(PhotometricInterpretation=NAME), "got another kind"),
    "32 bits": (make_dicom(FILM.astype(np.uint32)), "got another kind"),
    "16-bit colour": (make_dicom(np.dstack([SIXTEEN] * 3)), "got another kind"),
    "four samples": (with_elements(SamplesPerPixel=4), "got another kind"),
    "high bit below": (with_elements(HighBit=9), "high bit"),
    "high bit outside": (with_elements(HighBit=16), "high bit"),
    "pixels missing": (with_elements(Rows=61), "9,760 bytes of pixels by the DICOM header, got 9,600"),
    "pixels left over": (with_elements(Rows=30), "4,800 bytes of pixels by the DICOM header, got 9,600"),
    "foreign syntax": (foreign_syntax(), "standard DICOM transfer syntax"),
    "no syntax and no pixels": (bytes(128) + b"DICM" + b"\x08\0\x60\0CS\x02\0DX" * 20, "holds no pixels"),
    "JPEG lossless": (encapsulated(FILM, JPEGLosslessSV1, b"\xff\xd8" * 9), "JPEG Lossless.*no decoder.*convert"),
    "JPEG-LS": (encapsulated(FILM, JPEGLSLossless, b"\xff\xd8" * 9), "JPEG-LS Lossless.*no decoder.*convert"),
    "video": (encapsulated(FILM, MPEG4HP41, b"abcd"), "MPEG-4.*no decoder.*convert"),
    "short table": (with_elements(VOILUTSequence=[lut_item([99, 0, 12], b"\0\0" * 9)]), "complete DICOM lookup table"),
    "JPEG 2000 of another size": (
        encapsulated(TWELVE[:50], JPEG2000Lossless, J2K, BitsStored=12),
        "declares 80 x 50 pixels of 1 samples, the compressed image 80 x 60 of 1",
    ),
    "JPEG 2000 without data": (encapsulated(TWELVE, JPEG2000Lossless, J2K, BitsStored=12), "damaged or cut short"),
    "JP2 file": (encapsulated(TWELVE, JPEG2000Lossless, b"\0\0\0\x0cjP  ", BitsStored=12), "bare JPEG 2000"),
    "RLE of nothing": (encapsulated(TWELVE, RLELossless, bytes(64), BitsStored=12), "damaged"),
    "RLE beyond the image": (encapsulated(TWELVE, RLELossless, rle(b"\x81a" * 40, b"\x81a" * 40)), "RLE.*damaged"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_readable_radiograph_is_refused(data, reason, caplog, recwarn):
    with caplog.at_level(logging.DEBUG), pytest.raises(RadiographError, match=reason) as caught:
        read_radiograph(data)
    check_refusal(caught.value)
    assert NAME not in caplog.text
    assert not recwarn.list


@pytest.mark.parametrize("name", ["test-SR", "rtplan", "waveform_ecg", "rtdose", "emri_small", "badVR"])
def test_samples_that_are_no_radiographs_are_refused(name):
    with pytest.raises(RadiographError, match=r"no pixels|frames|BitsAllocated") as caught:
        read_radiograph(sample(name))
    check_refusal(caught.value)


def with_header_element(element: bytes) -> bytes:
    """A valid file with an element of any kind put before group 0028."""
    data = with_elements()
    position = data.index(struct.pack("<HH", 0x0028, 0x0002))
    return data[:position] + element + data[position:]


def sequence(items: bytes, length: int = 0xFFFFFFFF) -> bytes:
    return struct.pack("<HH2sHL", 0x0018, 0x9346, b"SQ", 0, length) + items


ITEM, ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF), struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def nested(depth: int) -> bytes:
    return (sequence(ITEM)) * depth + (ITEM_END + SEQUENCE_END) * depth


def test_nested_sequences_are_passed_over():
    np.testing.assert_array_equal(read(with_header_element(nested(20))), read(SAME_FILM["12 bits"]))
    many = sequence((ITEM + ITEM_END) * 1000 + SEQUENCE_END)
    np.testing.assert_array_equal(read(with_header_element(many)), read(SAME_FILM["12 bits"]))


def test_large_elements_that_do_not_describe_pixels_are_passed_over():
    element = struct.pack("<HH2sHL", 0x0018, 0x9346, b"OB", 0, 20_000_000) + bytes(20_000_000)
    np.testing.assert_array_equal(read(with_header_element(element)), read(SAME_FILM["12 bits"]))


def deflated_bomb() -> bytes:
    data = make_dicom(TWELVE, DeflatedExplicitVRLittleEndian, BitsStored=12)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return data[:400] + squeeze.compress(bytes(80_000_000)) + squeeze.flush()


def j2k(width: int, height: int, tile: int) -> bytes:
    size = struct.pack(">8LHBBB", width, height, 0, 0, tile, tile, 0, 0, 1, 11, 1, 1)
    return b"\xff\x4f\xff\x51\x00\x29\x00\x00" + size + bytes(100)


def jpeg(width: int, height: int) -> bytes:
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 17, 0) + bytes(100) + b"\xff\xd9"


BOMBS = {
    "4 gigapixels": lambda: with_elements(Rows=65_535, Columns=65_535),
    "a billion frames": lambda: with_elements(NumberOfFrames=1_000_000_000),
    "deflated": lambda: deflated_bomb(),
    "nested sequences": lambda: with_header_element(nested(200_000)),
    "a million items": lambda: with_header_element(sequence((ITEM + ITEM_END) * 1_000_000 + SEQUENCE_END)),
    "table of 4 GB": lambda: with_header_element(struct.pack("<HH2sHL", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFF0)),
    "endless unknown element": lambda: with_header_element(
        struct.pack("<HH2sHL", 0x0018, 0x9346, b"OB", 0, 0xFFFFFFFF) + bytes(60_000_000)
    ),
    "JPEG 2000 of 60,000": lambda: encapsulated(TWELVE, JPEG2000Lossless, j2k(60_000, 60_000, 60_000), BitsStored=12),
    "JPEG 2000 of 60,000, declared": lambda: encapsulated(
        TWELVE, JPEG2000Lossless, j2k(60_000, 60_000, 60_000), BitsStored=12, Rows=60_000, Columns=60_000
    ),
    "JPEG 2000 in 62,500 tiles": lambda: encapsulated(
        TWELVE, JPEG2000Lossless, j2k(7_000, 7_000, 28), BitsStored=12, Rows=7_000, Columns=7_000
    ),
    "JPEG of 65,000": lambda: encapsulated(FILM, JPEGBaseline8Bit, jpeg(65_000, 65_000)),
    "RLE that expands": lambda: encapsulated(FILM, RLELossless, rle(b"\x81a" * 10_000_000)),
    "fragments of nothing": lambda: encapsulated(FILM, RLELossless, b"ab").replace(
        SEQUENCE_END, b"\xfe\xff\0\xe0\0\0\0\0" * 10**6
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_fast_and_small(name, tmp_path):
    path = tmp_path / "bomb.dcm"
    path.write_bytes(BOMBS[name]())

    def refuse() -> None:
        with pytest.raises(RadiographError, match=r"Expected|damaged|declares") as caught:
            read_radiograph(path)
        check_refusal(caught.value)

    assert peak_growth_mb(refuse) < 50
    assert takes_less_than(0.1, refuse)


@pytest.mark.parametrize("data", SAME_FILM.values(), ids=SAME_FILM)
def test_truncated_files_are_never_read(data):
    generator = random.Random(len(data))
    cuts = {*range(len(data) - 12, len(data)), *(generator.randrange(len(data)) for _ in range(25))}
    for cut in cuts:
        with pytest.raises(RadiographError, match=r"Expected|damaged") as caught:
            read_radiograph(data[:cut])
        check_refusal(caught.value)


@pytest.mark.parametrize("data", SAME_FILM.values(), ids=SAME_FILM)
def test_mutants_raise_nothing_but_radiograph_error(data, caplog, recwarn):
    generator = random.Random(len(data))
    for _ in range(20):
        mutant = bytearray(data)
        for _ in range(generator.randint(1, 8)):
            end = len(mutant) if generator.random() < 0.3 else min(900, len(mutant))  # headers break most
            mutant[generator.randrange(132, end)] = generator.randrange(256)
        try:
            image = read_radiograph(bytes(mutant))
        except RadiographError as error:
            check_refusal(error)
        else:
            assert image.mode == "L"
    assert not recwarn.list
    assert not caplog.records


def test_patient_is_neither_kept_nor_logged(caplog, recwarn):
    data = make_dicom(FILM, StudyDate=NAME, PatientBirthDate=NAME, AccessionNumber=NUMBER)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        image = read_radiograph(data)
    assert image.info == {"original_size": (80, 60)}
    assert NAME not in repr(vars(image)) + caplog.text
    assert not recwarn.list


def test_file_without_its_padding_byte_is_not_read():
    data = make_dicom(FILM[:59, :79])
    assert read(data).shape == (59, 79)
    with pytest.raises(RadiographError, match="damaged or cut short"):
        read_radiograph(data[:-1])


def test_threads_read_the_same_and_leave_warnings_and_logging_alone():
    expected, filters = read(SAME_FILM["12 bits"]), list(warnings.filters)
    results: list[bool] = []

    def work() -> None:
        for data in (SAME_FILM["12 bits"], SAME_FILM["JPEG 2000"], SAME_FILM["RLE"]):
            results.append(np.array_equal(read(data), expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 24
    assert warnings.filters == filters
    assert logging.getLogger("pydicom").propagate
