import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms import InterpolationMode

from chexpert_hf import CheXpertImageProcessor
from chexpert_hf.image_processing_chexpert import to_gray_range
from chexpert_hf.radiographs.radiograph import read_radiograph

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (90, 70), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (90, 70, 3), dtype=np.uint8)


def pixels(image, **options):
    return CheXpertImageProcessor(size={"height": 64, "width": 48}, **options)(image, return_tensors="pt")[
        "pixel_values"
    ]


def test_pixel_values_follow_from_resize_rescale_and_normalise():
    resized = (
        torch.from_numpy(np.array(Image.fromarray(GRAY).resize((48, 64), Image.Resampling.BILINEAR))).float() / 255
    )
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(pixels(GRAY)[0], (resized - mean) / std, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_pixel_values_are_the_same_bits_whatever_the_processor_can_do():
    program = """
import hashlib
import numpy as np
import torch
from chexpert_hf import CheXpertImageProcessor

image = np.random.default_rng(5).integers(0, 256, (397, 391), dtype=np.uint8)
processor = CheXpertImageProcessor(gray_range={"low": 0.5, "high": 99.5, "median": 0.5})
values = processor(image)["pixel_values"][0].numpy()
print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(values.tobytes()).hexdigest())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        )
        for capability in ("default", "avx2")
    ]
    (plain, one), (vectorised, other) = (process.communicate()[0].split() for process in processes)
    assert plain != vectorised
    assert one == other


def test_one_mean_makes_one_channel():
    # torchxrayvision's convention: gray levels in [-1024, 1024]
    values = pixels(np.array([[0, 255]] * 2, dtype=np.uint8), image_mean=[0.5], image_std=[0.5 / 1024])
    assert values.shape == (1, 1, 64, 48)
    assert (values.min().item(), values.max().item()) == pytest.approx((-1024, 1024), abs=1e-3)


@pytest.mark.parametrize(
    "same",
    [
        Image.fromarray(GRAY),
        Image.fromarray(GRAY).convert("RGB"),  # what a pipeline passes
        GRAY[..., None],
        GRAY[None],
        torch.from_numpy(GRAY),
        torch.from_numpy(GRAY)[None].expand(3, -1, -1),
        np.repeat(GRAY[..., None], 3, axis=2),
        [[Image.fromarray(GRAY)]],
        [GRAY[None, None]],
    ],
)
def test_one_image_in_any_form_gives_the_same_pixel_values(same):
    assert torch.equal(pixels(same), pixels(GRAY))


def test_color_becomes_the_same_gray_from_arrays_as_from_pil():
    from_pil = pixels(Image.fromarray(COLOR))
    assert torch.equal(pixels(COLOR), from_pil)
    assert torch.equal(pixels(torch.from_numpy(COLOR).permute(2, 0, 1)), from_pil)
    assert torch.equal(from_pil, pixels(np.array(Image.fromarray(COLOR).convert("L"))))


def test_transparent_pixels_are_black():
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (70, 90), 0)])
    assert torch.equal(pixels(image), pixels(np.zeros_like(GRAY)))


def test_images_of_different_sizes_make_one_batch_in_order():
    batch = pixels([GRAY, Image.fromarray(GRAY[:50]), GRAY])
    assert batch.shape == (3, 3, 64, 48)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[1:2], pixels(GRAY[:50]))


def test_without_rescaling_gray_levels_come_back_and_can_be_normalised_later():
    processor = CheXpertImageProcessor(size={"height": 64, "width": 48})
    gray = processor(GRAY, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert gray.dtype == torch.uint8
    assert gray.shape == (1, 1, 64, 48)
    later = processor.rescale_and_normalize(gray, True, 1 / 255, True, processor.image_mean, processor.image_std)
    assert torch.equal(later, pixels(GRAY))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GRAY.astype(np.float32) / 255, "values of type float32"),
        (GRAY.astype(np.uint16), "values of type uint16"),
        (Image.fromarray(GRAY.astype(np.uint16)), "more than 8 bits"),
        (Image.fromarray(GRAY.astype(np.float32)), "more than 8 bits"),
        (RNG.integers(0, 256, (4, 90, 70), dtype=np.uint8), r"shape \(4, 90, 70\)"),
        (np.zeros((0, 70), dtype=np.uint8), "no pixels"),
        (b"a file's content", "^Got bytes; expected an 8-bit image"),
        ([], "Got an empty list"),
        ([None], "Got NoneType"),
    ],
)
def test_what_is_not_an_8_bit_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        pixels(image)


def test_channels_that_are_said_to_be_elsewhere_are_refused():
    with pytest.raises(ValueError, match=r"shape \(90, 70, 3\) with channels_first"):
        CheXpertImageProcessor()(np.repeat(GRAY[..., None], 3, axis=2), input_data_format="channels_first")


def test_a_file_is_named_by_text_or_a_path(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "film.png")
    for name in (tmp_path / "film.png", str(tmp_path / "film.png")):
        assert torch.equal(pixels(name), pixels(GRAY))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_an_image_is_turned_by_its_exif_orientation_as_the_reader_does(orientation, mode, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = tmp_path / "film.png"
    Image.fromarray(GRAY).convert(mode).save(file, exif=exif)
    upright = read_radiograph(file)
    for image in (str(file), Image.open(file)):
        assert torch.equal(pixels(image), pixels(upright))


def test_damaged_exif_data_are_refused_since_they_may_say_how_to_turn_the_image():
    image = Image.fromarray(GRAY)
    image.info["exif"] = b"Exif\0\0no data"
    with pytest.raises(ValueError, match="The image has damaged EXIF data"):
        pixels(image)


@pytest.mark.parametrize("method", ["bicubic", InterpolationMode.BICUBIC, Image.Resampling.BICUBIC])
def test_a_method_of_resampling_is_named_by_number_name_or_torchvisions_mode(method):
    assert torch.equal(pixels(GRAY, resample=method), pixels(GRAY, resample=3))
    assert not torch.equal(pixels(GRAY, resample=method), pixels(GRAY))
    with pytest.raises(ValueError, match="resample is 'cubic', expected a method of Pillow: bicubic, "):
        pixels(GRAY, resample="cubic")


def test_a_16_bit_file_is_refused_and_not_saturated(tmp_path):
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="read_radiograph reads such files"):
        pixels(str(tmp_path / "deep.png"))


def test_a_saved_processor_is_the_same(tmp_path):
    processor = CheXpertImageProcessor(size={"height": 64, "width": 48}, image_mean=[0.5], image_std=[0.25])
    processor.save_pretrained(tmp_path)
    loaded = CheXpertImageProcessor.from_pretrained(tmp_path)
    assert loaded.num_channels == 1
    expected = processor(GRAY, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(GRAY, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("statistics", [{}, {"image_mean": [0.5], "image_std": [0.25]}, {"do_normalize": False}])
def test_resizing_first_and_normalising_in_a_batch_later_gives_the_same_pixel_values(statistics):
    processor = CheXpertImageProcessor(size={"height": 40, "width": 32}, **statistics)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (60 + place, 50), dtype=np.uint8)) for place in range(3)]
    gray = [
        processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        for image in images
    ]
    assert gray[0].dtype == torch.uint8
    later = processor.pixel_values_of(torch.stack(gray))
    assert torch.equal(later, processor(images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [((390, 320), 0, 256), ((60, 200), 0, 256), ((48, 48), 0, 256), ((17, 40), 150, 256), ((90, 91), 150, 256)],
)
def test_resizing_like_scikit_image_gives_its_gray_levels(shape, low, high):
    resize = pytest.importorskip("skimage.transform").resize
    gray = np.random.default_rng(1).integers(low, high, shape, dtype=np.uint8)
    centred = gray.astype(np.float32) - 127.5  # what lies outside is 0
    expected = resize(centred, (48, 48), mode="constant", preserve_range=True) + 127.5
    processor = CheXpertImageProcessor(size={"height": 48, "width": 48}, resize_like="scikit-image")
    ours = processor(gray, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(("width", "height", "box"), [(7, 4, (1, 0, 5, 4)), (4, 7, (0, 1, 4, 5)), (6, 6, (0, 0, 6, 6))])
def test_the_square_in_the_middle_is_what_the_model_sees(width, height, box):
    gray = RNG.integers(0, 256, (height, width), dtype=np.uint8)
    processor = CheXpertImageProcessor(size={"height": 8, "width": 8}, do_square_crop=True)
    left, top, right, bottom = box
    expected = CheXpertImageProcessor(size={"height": 8, "width": 8})(gray[top:bottom, left:right], return_tensors="pt")
    assert torch.equal(processor(gray, return_tensors="pt")["pixel_values"], expected["pixel_values"])
    assert processor.seen_box(width, height) == box


def test_the_options_for_torchxrayvisions_models_are_saved_and_unknown_ones_refused(tmp_path):
    options = {"size": {"height": 48, "width": 48}, "do_square_crop": True, "resize_like": "scikit-image"}
    CheXpertImageProcessor(**options, image_mean=[0.5], image_std=[0.5 / 1024]).save_pretrained(tmp_path)
    loaded = CheXpertImageProcessor.from_pretrained(tmp_path)
    assert (loaded.do_square_crop, loaded.resize_like, loaded.decoded_side) == (True, "scikit-image", None)
    gray = loaded([GRAY, GRAY[:50]], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    whole = loaded([GRAY, GRAY[:50]], return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded.pixel_values_of(gray), whole)
    assert CheXpertImageProcessor().decoded_side == 320
    with pytest.raises(ValueError, match="resize_like is 'pillow', expected 'scikit-image' or none"):
        pixels(GRAY, resize_like="pillow")
    with pytest.raises(ValueError, match="resize_like needs a size of height and width"):
        CheXpertImageProcessor(size={"shortest_edge": 48}, resize_like="scikit-image")(GRAY)


RANGE = {"low": 0.5, "high": 99.5, "median": 0.5}


def film(height=200, width=180):
    """A smooth image that uses gray levels from 30 to 220, with some noise."""
    rows, columns = np.mgrid[:height, :width] / (height, width)[0]
    image = 125 + 80 * np.sin(7 * rows) * np.cos(5 * columns) + RNG.normal(0, 5, (height, width))
    return image.clip(30, 220)


def framed(image, level):
    wide = np.full([side * 6 // 5 for side in image.shape], level)
    top, left = (wide.shape[0] - image.shape[0]) // 2, (wide.shape[1] - image.shape[1]) // 2
    wide[top : top + image.shape[0], left : left + image.shape[1]] = image
    return wide


@pytest.mark.parametrize(
    "change",
    [
        lambda levels: levels * 0.4,  # the dark end of the range only
        lambda levels: 40 + levels * 0.75,
        lambda levels: 127.5 + (levels - 127.5) / 2,  # half the contrast
        lambda levels: 255 * (levels / 255) ** 0.5,
        lambda levels: 255 * (levels / 255) ** 2,
    ],
    ids=["dark", "bright", "flat", "gamma .5", "gamma 2"],
)
def test_one_film_in_any_gray_range_gives_nearly_the_same_gray_levels(change):
    image = film()
    before, after = (
        to_gray_range(torch.from_numpy(levels.round().astype(np.uint8))[None], **RANGE).float()
        for levels in (image, change(image))
    )
    assert (before - after).abs().mean() < 4  # of 255; the change itself moves them by 30 to 80
    height, width = image.shape
    middle = before[0, height // 10 : height - height // 10, width // 10 : width - width // 10]
    assert middle.median() == pytest.approx(127.5, abs=4)


@pytest.mark.parametrize("level", [0, 255], ids=["black", "white"])
def test_a_frame_around_the_film_does_not_decide_its_gray_range(level):
    image = film().round().astype(np.uint8)
    inside = to_gray_range(torch.from_numpy(image)[None], **RANGE)[0]
    wide = to_gray_range(torch.from_numpy(framed(image, level).astype(np.uint8))[None], **RANGE)[0]
    cut = framed(np.ones_like(image), 0).astype(bool)
    difference = (wide.numpy()[cut].astype(float) - inside.numpy().ravel()).__abs__().mean()
    assert difference < 10


def test_the_gray_range_by_hand():
    ramp = torch.arange(100, 201, dtype=torch.uint8).repeat(101, 1)[None]  # the middle holds 110 to 190
    stretched = to_gray_range(ramp, low=0, high=100)
    assert stretched[0, 0, [0, 10, 50, 90, 100]].tolist() == [0, 0, 128, 255, 255]
    bent = to_gray_range(ramp, low=0, high=100, median=0.25)
    assert bent[0, 0, [10, 50, 90]].tolist() == [0, 64, 255]
    uniform = torch.full((1, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(to_gray_range(uniform, **RANGE), uniform)


@pytest.mark.parametrize("wrong", [{"low": 60, "high": 40}, {"low": 1, "high": 99, "median": 1.0}])
def test_a_gray_range_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="gray_range is low"):
        pixels(GRAY, gray_range=wrong)


def test_the_gray_range_is_applied_to_each_image_and_saved(tmp_path):
    processor = CheXpertImageProcessor(size={"height": 64, "width": 48}, gray_range=RANGE)
    processor.save_pretrained(tmp_path)
    loaded = CheXpertImageProcessor.from_pretrained(tmp_path)
    assert loaded.gray_range == RANGE
    dark = film() * 0.4
    both = loaded([film().astype(np.uint8), dark.astype(np.uint8)], return_tensors="pt")["pixel_values"]
    assert (both[0] - both[1]).abs().mean() < 0.1  # standard deviations
    resized = np.array(Image.fromarray(GRAY).resize((48, 64), Image.Resampling.BILINEAR))
    expected = to_gray_range(torch.from_numpy(resized)[None], **RANGE)
    gray = loaded(GRAY, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(gray, expected)
