import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from chexpert_hf import CheXpertImageProcessor

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (90, 70), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (90, 70, 3), dtype=np.uint8)


def pixels(image, **options):
    return CheXpertImageProcessor(size={"height": 64, "width": 48}, **options)(image, return_tensors="pt")[
        "pixel_values"
    ]


def test_pixel_values_follow_from_resize_rescale_and_normalise():
    resized = transforms.resize(torch.from_numpy(GRAY)[None], [64, 48], antialias=True).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(pixels(GRAY)[0], (resized - mean) / std, atol=1e-6, rtol=1e-6)


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
    ],
)
def test_what_is_not_an_8_bit_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        pixels(image)


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
