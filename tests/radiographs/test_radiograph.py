"""The reader's raster side: every container gives the same pixels, and nothing malformed gives any."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from chexpert_hf.radiographs import grey_levels
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.radiographs.limits import peak_growth_mb, takes_less_than

NAME = "Doe^Jane"


def film(height: int = 90, width: int = 120) -> np.ndarray:
    """A smooth 8-bit picture with some texture that uses 0 and 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    grey = 128 + 90 * np.sin(rows / 17) * np.cos(columns / 23) + np.random.default_rng(0).normal(0, 8, (height, width))
    grey = np.clip(grey, 0, 255).astype(np.uint8)
    grey[0, 0], grey[-1, -1] = 0, 255
    return grey


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def sixteen_bit(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint16))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 0, data: bytes = b"", between: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + between
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def check_refusal(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert 20 < len(text) <= 200
    assert "/" not in text
    assert "Doe" not in text
    assert "Jane" not in text


FILM = film()
CONTAINERS = {
    "png": encode(Image.fromarray(FILM), "PNG"),
    "png-interlaced-rgb": encode(Image.fromarray(FILM).convert("RGB"), "PNG", interlace=1),
    "png-palette": encode(Image.fromarray(FILM).convert("P"), "PNG"),
    "png-la": encode(Image.fromarray(FILM).convert("LA"), "PNG"),
    "png-16": encode(sixteen_bit(FILM * 257.0), "PNG"),
    "bmp": encode(Image.fromarray(FILM), "BMP"),
    "webp": encode(Image.fromarray(FILM), "WEBP", lossless=True),
    "tiff": encode(Image.fromarray(FILM), "TIFF"),
    "tiff-lzw": encode(Image.fromarray(FILM), "TIFF", compression="tiff_lzw"),
    "tiff-16": encode(sixteen_bit(FILM * 257.0), "TIFF"),
    "bigtiff": encode(Image.fromarray(FILM), "TIFF", big_tiff=True),
    "bigtiff-16-deflate": encode(sixteen_bit(FILM * 257.0), "TIFF", compression="tiff_deflate", big_tiff=True),
    "tiff-16-deflate": encode(sixteen_bit(FILM * 257.0), "TIFF", compression="tiff_deflate"),
}
LOSSY = {
    "jpeg": encode(Image.fromarray(FILM), "JPEG", quality=100),
    "jpeg-progressive": encode(Image.fromarray(FILM), "JPEG", quality=100, progressive=True),
    "jpeg-rgb": encode(Image.fromarray(FILM).convert("RGB"), "JPEG", quality=100),
    "jpeg-cmyk": encode(Image.fromarray(FILM).convert("RGB").convert("CMYK"), "JPEG", quality=100),
}


@pytest.mark.parametrize("data", CONTAINERS.values(), ids=CONTAINERS)
def test_every_lossless_container_gives_the_same_pixels(data):
    image = read_radiograph(data)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), FILM)


@pytest.mark.parametrize("data", LOSSY.values(), ids=LOSSY)
def test_jpeg_gives_the_same_pixels_within_its_own_loss(data):
    difference = np.abs(np.asarray(read_radiograph(data)).astype(int) - FILM)
    assert difference.max() <= 3
    assert difference.mean() < 0.6


def test_path_bytes_file_object_pillow_image_and_array_give_the_same_pixels(tmp_path):
    path = tmp_path / "view1_frontal.jpg"  # the name lies: it is a PNG
    path.write_bytes(CONTAINERS["png"])
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, Image.open(path), Image.fromarray(FILM), FILM]
        sources += [FILM[:, :, None], np.dstack([FILM] * 3), FILM.astype(np.uint16) * 257, FILM.astype(">u2") * 257]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(read_radiograph(source)), FILM)
        assert not file.closed


def test_file_object_is_read_from_where_it_stands():
    file = io.BytesIO(b"x" * 1000 + CONTAINERS["png"])
    file.seek(1000)
    np.testing.assert_array_equal(np.asarray(read_radiograph(file)), FILM)


def test_grey_jpeg_equals_pillows_decoding():
    for name in ("jpeg", "jpeg-progressive", "jpeg-cmyk"):
        with Image.open(io.BytesIO(LOSSY[name])) as reference:
            np.testing.assert_array_equal(np.asarray(read_radiograph(LOSSY[name])), np.asarray(reference.convert("L")))


def test_colour_becomes_luma():
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[...] = (200, 100, 50)
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)  # ITU-R BT.601
    for source in (colours, encode(Image.fromarray(colours), "PNG"), encode(Image.fromarray(colours), "JPEG")):
        assert abs(int(np.asarray(read_radiograph(source)).mean()) - expected) <= 1


def test_one_bit_is_black_and_white():
    bits = Image.fromarray(FILM > 128)
    assert bits.mode == "1"
    for source in (bits, encode(bits, "PNG"), encode(bits, "TIFF", compression="group4")):
        np.testing.assert_array_equal(np.asarray(read_radiograph(source)), np.where(FILM > 128, 255, 0))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
def test_full_scale_of_each_bit_depth_becomes_255(bits):
    top = 2**bits - 1
    levels = np.linspace(0, top, 4000).round().reshape(50, 80)
    expected = np.rint(levels * (255 / top))
    for source in (levels.astype(np.uint16), encode(sixteen_bit(levels), "PNG"), sixteen_bit(levels)):
        grey = np.asarray(read_radiograph(source)).astype(float)
        assert np.abs(grey - expected).max() <= (0 if bits == 8 else 1)
        assert grey.max() == 255
        assert abs(grey.mean() - 127.5) < 0.5


def test_sixteen_bits_are_scaled_and_not_clipped():
    levels = np.full((10, 10), 30_000, np.uint16)
    levels[0, 0] = 65_535
    grey = np.asarray(read_radiograph(encode(sixteen_bit(levels), "PNG")))
    assert grey[5, 5] == round(30_000 * 255 / 65_535) == 117
    with Image.open(io.BytesIO(encode(sixteen_bit(levels), "PNG"))) as clipped:
        assert np.asarray(clipped.convert("L"))[5, 5] != 117  # what Pillow does, and why this is done here


def test_sixteen_bit_tiff_with_white_as_zero_is_inverted():
    data = encode(sixteen_bit(FILM * 257.0), "TIFF")
    entry = struct.pack("<HHLHH", 262, 3, 1, 1, 0)  # PhotometricInterpretation: BlackIsZero
    assert data.count(entry) == 1
    inverted = data.replace(entry, struct.pack("<HHLHH", 262, 3, 1, 0, 0))
    np.testing.assert_array_equal(np.asarray(read_radiograph(inverted)), 255 - FILM)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, file_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100} if file_format == "JPEG" else {"lossless": True} if file_format == "WEBP" else {}
    data = encode(Image.fromarray(FILM), file_format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("L")
    image = read_radiograph(data)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    upright = (120, 90) if orientation < 5 else (90, 120)
    assert image.size == upright
    assert image.info == {"original_size": upright}
    assert read_radiograph(data, target_size=20).info == {"original_size": upright}


def test_transparent_parts_become_black():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[...] = (100, 100, 100, 128)
    rgba[0] = (255, 255, 255, 0)
    rgba[1] = (200, 200, 200, 255)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 255, 255, 90, 90, 90])
    for source in (rgba, encode(Image.fromarray(rgba), "PNG"), encode(Image.fromarray(rgba).convert("LA"), "PNG")):
        assert np.asarray(read_radiograph(source))[:, 0].tolist() == [0, 200, 50, 50]
    assert np.asarray(read_radiograph(encode(palette, "PNG", transparency=0))).tolist() == [[0, 90]]


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_images_keep_their_level(value):
    constant = np.full((20, 30), value, np.uint8)
    for source in (constant, encode(Image.fromarray(constant), "PNG"), constant.astype(np.uint16)):
        np.testing.assert_array_equal(np.asarray(read_radiograph(source)), constant)


def test_scaled_decoding_differs_little_after_resizing():
    # A full-size radiograph: smooth anatomy, edges, and the noise of a detector.
    small = Image.fromarray(film(400, 330)).resize((2320, 2828), Image.Resampling.BICUBIC)
    levels = np.asarray(small) + np.random.default_rng(1).normal(0, 3, (2828, 2320))
    data = encode(Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)), "JPEG", quality=90)
    whole, scaled = read_radiograph(data), read_radiograph(data, target_size=320)
    assert whole.size == (2320, 2828)
    assert scaled.size == (580, 707)
    assert whole.info == scaled.info == {"original_size": (2320, 2828)}
    resized = [np.asarray(image.resize((320, 320), Image.Resampling.BILINEAR), float) for image in (whole, scaled)]
    assert np.abs(resized[0] - resized[1]).mean() < 0.3
    assert read_radiograph(data, target_size=320).tobytes() == scaled.tobytes()


@pytest.mark.parametrize(("size", "target_size", "expected"), [(560, 320, 560), (1119, 320, 1119), (1120, 320, 560)])
def test_both_sides_stay_at_least_one_and_three_quarters_of_the_target(size, target_size, expected):
    data = encode(Image.new("L", (size, size + 100), 9), "JPEG")
    assert read_radiograph(data, target_size=target_size).width == expected


def test_nothing_but_pixels_and_the_original_size_comes_out(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = NAME
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", NAME)
    text.add_text("Patient", NAME, zip=True)
    path = tmp_path / f"{NAME}.png"
    path.write_bytes(encode(Image.fromarray(FILM), "PNG", exif=exif, pnginfo=text, dpi=(300, 300)))
    jpeg = encode(Image.fromarray(FILM), "JPEG", exif=exif, comment=NAME.encode())
    for source in (path, jpeg, Image.open(path), encode(Image.fromarray(FILM), "TIFF", exif=exif)):
        image = read_radiograph(source)
        assert type(image) is Image.Image
        assert image.info == {"original_size": (120, 90)}
        assert NAME not in repr(vars(image))
        assert not dict(image.getexif())
        assert NAME.encode() not in encode(image, "PNG")


def tiff_with(entry: str, old: int, new: int, **options) -> bytes:
    """A TIFF image, in colour if `entry` is "colours", with that entry changed to what Pillow does not decode."""
    tag = {"compression": 259, "bits": 258, "colours": 262}[entry]
    count = "Q" if options.get("big_tiff") else "L"
    before, after = (struct.pack(f"<HH{count}H", tag, 3, 1, number) for number in (old, new))
    image = Image.fromarray(FILM)
    data = encode(image.convert("RGB") if entry == "colours" else image, "TIFF", **options)
    assert data.count(before) == 1
    return data.replace(before, after)


def jpeg_with(marker: int, bits: int) -> bytes:
    """A JPEG image whose frame header declares another process or precision."""
    data = encode(Image.fromarray(FILM), "JPEG")
    position = data.index(b"\xff\xc0\x00\x0b\x08")
    return data[: position + 1] + bytes([marker, 0, 11, bits]) + data[position + 5 :]


REFUSED_FILES = {
    "LERC tiff": (tiff_with("compression", 1, 34887), "TIFF image with LERC compression.*imagecodecs"),
    "JPEG XL bigtiff": (tiff_with("compression", 1, 50002, big_tiff=True), "BigTIFF image with JPEG XL compression"),
    "tiff of unknown compression": (tiff_with("compression", 1, 4711), r"with unknown \(4711\) compression"),
    "tiff of 24 bits": (tiff_with("bits", 8, 24), "another layout, 24 bits per sample"),
    "tiff of unknown colours": (tiff_with("colours", 2, 4711), "got a TIFF image of another layout; convert"),
    "12-bit jpeg": (jpeg_with(0xC1, 12), "got 12-bit JPEG.*16-bit PNG.*imagecodecs"),
    "lossless jpeg": (jpeg_with(0xC3, 8), "got lossless JPEG"),
    "JPEG-LS": (jpeg_with(0xF7, 8), "got JPEG-LS"),
    "hierarchical jpeg": (jpeg_with(0xC5, 8), "got hierarchical JPEG"),
    "empty": (b"", "empty"),
    "text": (f"Patient: {NAME}\n".encode() * 40, "none of these"),
    "gif": (encode(Image.fromarray(FILM), "GIF"), "none of these"),
    "zeros": (bytes(5000), "none of these"),
    "beginning of a dicom data set": (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "DICOM file holds no pixels"),
    "animated png": (
        encode(Image.fromarray(FILM), "PNG", save_all=True, append_images=[Image.fromarray(255 - FILM)]),
        "several frames",
    ),
    "animated webp": (
        encode(Image.fromarray(FILM), "WEBP", save_all=True, append_images=[Image.fromarray(255 - FILM)]),
        "several frames",
    ),
    "two-page tiff": (
        encode(Image.fromarray(FILM), "TIFF", save_all=True, append_images=[Image.fromarray(FILM)]),
        "several frames",
    ),
    "float tiff": (encode(Image.fromarray(FILM.astype(np.float32)), "TIFF"), "got mode F"),
    "32-bit tiff": (encode(Image.fromarray(FILM.astype(np.int32) - 300), "TIFF"), "0..65535"),
    "16-bit rgb png": (png(4, 4, bits=16, colour=2, data=bytes(4 * 25)), "16-bit colour"),
    "16-bit alpha png": (png(4, 4, bits=16, colour=4, data=bytes(4 * 17)), "16-bit colour"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_what_is_not_one_radiograph_is_refused(data, reason, tmp_path):
    path = tmp_path / f"{NAME}.png"
    path.write_bytes(data)
    for source in (data, path, io.BytesIO(data)):
        with pytest.raises(RadiographError, match=reason) as caught:
            read_radiograph(source)
        check_refusal(caught.value)


REFUSED_ARRAYS = {
    "bool": (np.zeros((4, 4), bool), "bool, of ambiguous scale"),
    "float": (np.zeros((4, 4), np.float32), "float32, of ambiguous scale"),
    "int64": (np.zeros((4, 4), int), "int64, of ambiguous scale"),
    "channels first": (np.zeros((4, 64, 64), np.uint8), "channels last"),
    "16-bit colour": (np.zeros((64, 64, 3), np.uint16), r"\(64, 64, 3\) in uint16"),
    "batch": (np.zeros((2, 64, 64, 3), np.uint8), "pass one image"),
    "one row only": (np.zeros(64, np.uint8), "pass one image"),
    "no rows": (np.zeros((0, 64), np.uint8), "64 x 0"),
    "text": (np.array([NAME]), "of ambiguous scale"),
}


@pytest.mark.parametrize(("array", "reason"), REFUSED_ARRAYS.values(), ids=REFUSED_ARRAYS)
def test_ambiguous_arrays_are_refused(array, reason):
    with pytest.raises(RadiographError, match=reason) as caught:
        read_radiograph(array)
    check_refusal(caught.value)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(FILM.astype(np.float32)), "got mode F"),
        (Image.fromarray(FILM.astype(np.int32) * 1000), "0..65535"),
        (Image.fromarray(FILM).convert("RGB").convert("HSV"), "got mode HSV"),
        (Image.new("L", (0, 5)), "0 x 5"),
    ],
    ids=["F", "I beyond 16 bits", "HSV", "no pixels"],
)
def test_pillow_images_without_clear_grey_levels_are_refused(image, reason):
    with pytest.raises(RadiographError, match=reason) as caught:
        read_radiograph(image)
    check_refusal(caught.value)


def test_pillow_image_of_32_bits_that_fits_16_is_read():
    levels = Image.fromarray(FILM.astype(np.int32) * 257)
    assert levels.mode == "I"
    np.testing.assert_array_equal(np.asarray(read_radiograph(levels)), FILM)


def test_pillow_image_of_a_truncated_file_is_refused():
    opened = Image.open(io.BytesIO(LOSSY["jpeg"][:-500]))
    with pytest.raises(RadiographError, match="open it again"):
        read_radiograph(opened)


def test_bad_sources_are_refused_without_naming_them(tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    os.mkfifo(tmp_path / f"{NAME}.fifo")
    closed = io.BytesIO(CONTAINERS["png"])
    closed.close()
    refusals = [
        (folder / f"{NAME}.png", "not found"),
        (folder, "folder or device"),
        (tmp_path / f"{NAME}.fifo", "folder or device"),
        (f"{NAME}\0.png", "cannot be opened"),
        (NAME * 1000, "cannot be opened"),
        (closed, "cannot be read"),
        (io.StringIO(NAME), "does not give bytes"),
        (None, "got NoneType"),
        ([NAME], "got list"),
    ]
    for source, reason in refusals:
        with pytest.raises(RadiographError, match=reason) as caught:
            read_radiograph(source)
        check_refusal(caught.value)


def test_file_beyond_the_size_limit_is_refused_unread(tmp_path):
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        file.truncate(600_000_000)  # sparse: takes no room on disk
    with pytest.raises(RadiographError, match="at most 500 MB, got 600 MB"):
        read_radiograph(path)


def test_target_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        read_radiograph(FILM, target_size=0)


def test_size_limit_is_that_of_the_full_image(monkeypatch):
    data = encode(Image.new("L", (400, 300)), "JPEG")
    monkeypatch.setattr(grey_levels, "MAX_PIXELS", 120_000)
    assert read_radiograph(data).size == (400, 300)
    monkeypatch.setattr(grey_levels, "MAX_PIXELS", 119_999)
    for source in (data, Image.new("L", (400, 300)), np.zeros((300, 400), np.uint8)):
        with pytest.raises(RadiographError, match="at most 119,999 pixels, got 400 x 300"):
            read_radiograph(source, target_size=10)


ZEROS = bytes(30_000_000)
BOMBS = {
    "177 megapixels": png(13_300, 13_300, data=ZEROS),
    "2 billion squared": png(2**31 - 1, 2**31 - 1, data=ZEROS),
    "16 bits": png(9_000, 9_000, bits=16, data=ZEROS),
    "one bit": png(60_000, 60_000, bits=1, data=ZEROS),
    "text that inflates": png(1, 1, data=b"\0\0", between=chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS))),
    "profile that inflates": png(1, 1, data=b"\0\0", between=chunk(b"iCCP", b"a\0\0" + zlib.compress(ZEROS))),
    "60 texts": png(1, 1, data=b"\0\0", between=chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS[:900_000])) * 60),
    "a million texts": png(1, 1, data=b"\0\0", between=chunk(b"tEXt", b"a\0b") * 1_000_000),
    "webp": b"RIFF\x2a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + CONTAINERS["webp"][12:],
    "bmp": b"BM" + struct.pack("<LLLLllHHLLllLL", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_fast_and_small(data, recwarn):
    def refuse():
        with pytest.raises(RadiographError, match=r"Expected|damaged") as caught:
            read_radiograph(data)
        check_refusal(caught.value)

    assert peak_growth_mb(refuse) < 50
    assert takes_less_than(0.1, refuse)
    assert not recwarn.list  # Pillow warns of large images


@pytest.mark.parametrize("data", [*CONTAINERS.values(), *LOSSY.values()], ids=[*CONTAINERS, *LOSSY])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_truncated_files_are_never_read(data):
    generator = random.Random(len(data))
    cuts = {*range(len(data) - 30, len(data)), *(generator.randrange(len(data)) for _ in range(60))}
    for cut in cuts:
        for target_size in (None, 20):
            with pytest.raises(RadiographError, match=r"damaged or cut short|empty|none of these") as caught:
                read_radiograph(data[:cut], target_size=target_size)
            check_refusal(caught.value)


def test_bmp_without_its_last_padding_is_not_read():
    data = encode(Image.fromarray(film(width=121)), "BMP")  # rows are padded to 124 bytes
    assert read_radiograph(data).size == (121, 90)
    with pytest.raises(RadiographError, match="BMP image is damaged or cut short"):
        read_radiograph(data[:-1])


def test_damaged_png_is_never_read_as_another_image():
    generator = random.Random(3)
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(CONTAINERS["png"])
        damaged[generator.randrange(8, len(damaged))] ^= 1 << generator.randrange(8)
        try:
            image = read_radiograph(bytes(damaged))
        except RadiographError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(np.asarray(image), FILM)
    assert num_refused == 300


@pytest.mark.parametrize("data", [*CONTAINERS.values(), *LOSSY.values()], ids=[*CONTAINERS, *LOSSY])
@pytest.mark.filterwarnings("ignore")
def test_mutants_raise_nothing_but_radiograph_error(data):
    generator = random.Random(len(data))
    for _ in range(40):
        mutant = bytearray(data)
        for _ in range(generator.randint(1, 8)):
            end = len(mutant) if generator.random() < 0.5 else min(200, len(mutant))  # headers break most
            mutant[generator.randrange(end)] = generator.randrange(256)
        try:
            image = read_radiograph(bytes(mutant), target_size=20)
        except RadiographError as error:
            check_refusal(error)
        else:
            assert image.mode == "L"


def test_importing_the_reader_imports_no_other_heavy_library():
    heavy = "{'pydicom', 'torch', 'pandas', 'scipy'}"
    code = f"import sys, chexpert_hf.radiographs.radiograph; print(*{heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("CHEXPERT_HF_REAL_DATA")
    if not folder:
        pytest.skip("CHEXPERT_HF_REAL_DATA names no folder with NIH-originals and NIH-mini")
    return Path(folder)


def test_real_originals_equal_pillows_reading(real_data):
    paths = sorted((real_data / "NIH-originals").glob("*.png"))
    assert paths
    for path in paths:
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(read_radiograph(path)), np.asarray(image.convert("L")))


def test_real_small_jpegs_equal_pillows_reading_at_any_target(real_data):
    paths = sorted((real_data / "NIH-mini").rglob("*.jpg"))[::30]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L"))
        for target_size in (None, 320, 224):
            np.testing.assert_array_equal(np.asarray(read_radiograph(path, target_size=target_size)), expected)
