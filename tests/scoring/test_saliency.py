import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.scoring.classifier import CheXpertEnsemble
from chexpert_hf.scoring.saliency import SaliencyMaps, overlay, positive_maps, resize_maps


def test_maps_of_one_image_share_a_scale():
    maps = positive_maps(torch.tensor([[[4.0, -1.0]], [[1.0, 2.0]]]))
    assert torch.equal(maps, torch.tensor([[[1.0, 0.0]], [[0.25, 0.5]]]))


def test_a_map_that_is_nowhere_positive_is_empty_and_not_stretched():
    maps = positive_maps(torch.tensor([[[-1.0, -5.0]], [[0.0, 3.0]]]))
    assert torch.equal(maps[0], torch.zeros(1, 2))
    assert torch.equal(positive_maps(-torch.ones(2, 3, 3)), torch.zeros(2, 3, 3))


def test_a_resized_map_keeps_its_places():
    maps = torch.zeros(1, 4, 8)
    maps[0, 1, 6] = 1
    resized = resize_maps(maps, (160, 40))
    assert resized.shape == (1, 40, 160)
    row, column = np.unravel_index(resized[0].argmax(), (40, 160))
    assert (row // 10, column // 20) == (1, 6)


def test_an_overlay_leaves_the_radiograph_where_the_map_is_empty():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    saliency = np.zeros((20, 30))
    saliency[5:10, 5:10] = 1
    laid = np.asarray(overlay(image, saliency, opacity=0.6)).astype(int)
    gray = np.asarray(image.convert("RGB")).astype(int)
    changed = np.abs(laid - gray).sum(axis=2) > 0
    assert changed[5:10, 5:10].mean() > 0.9
    assert not changed[saliency == 0].any()


def test_opacity_zero_shows_the_radiograph():
    image = Image.new("L", (4, 4), 90)
    assert np.array_equal(np.asarray(overlay(image, np.ones((4, 4)), opacity=0)), np.full((4, 4, 3), 90))


@pytest.mark.parametrize(
    ("shape", "opacity", "message"),
    [((4, 5), 0.5, "map is 5 x 4, expected the image's 6 x 4"), ((4, 6), 1.5, "opacity is 1.5")],
)
def test_a_map_that_does_not_fit_is_refused(shape, opacity, message):
    with pytest.raises(ValueError, match=message):
        overlay(Image.new("L", (6, 4)), np.ones(shape), opacity)


CROPS = {
    "all of it": {"size": {"height": 64, "width": 64}},
    "shortest side, then the middle": {
        "size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64},
    },
    "the middle of it": {
        "size": {"height": 96, "width": 80}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64},
    },
    "with a border": {
        "do_resize": False, "do_center_crop": True, "crop_size": {"height": 320, "width": 352},
    },
}  # fmt: skip


@pytest.mark.parametrize("options", CROPS.values(), ids=CROPS)
@pytest.mark.parametrize("size", [(300, 220), (200, 310)])
def test_a_map_lies_where_the_model_saw_it_whatever_the_processor_cuts(options, size):
    processor = CheXpertImageProcessor(**options, image_mean=[0.0], image_std=[1.0], do_normalize=False)
    width, height = size
    gray = np.zeros((height, width), dtype=np.uint8)
    gray[120:140, 110:135] = 255  # in the middle, so that every crop keeps it
    seen = processor(Image.fromarray(gray), return_tensors="pt")["pixel_values"][0, :1]
    placed = resize_maps(seen, size, processor.seen_box(*size))[0]
    assert placed.shape == (height, width)
    rows, columns = np.nonzero(placed > 0.5)
    assert (rows.min(), rows.max() + 1) == pytest.approx((120, 140), abs=3)
    assert (columns.min(), columns.max() + 1) == pytest.approx((110, 135), abs=3)


def test_what_the_model_did_not_see_is_outside_the_map():
    placed = resize_maps(torch.ones(1, 2, 2), (100, 50), (25, 0, 75, 50))
    np.testing.assert_allclose(placed[0, :, 25:75], 1, atol=1e-6)
    assert (placed[0, :, :25] == 0).all()
    assert (placed[0, :, 75:] == 0).all()


def test_placing_a_map_on_a_part_is_the_same_interpolation_as_on_the_whole():
    maps = torch.rand(2, 5, 7)
    part = resize_maps(maps, (140, 100), (20, 10, 90, 60))
    np.testing.assert_allclose(part[:, 10:60, 20:90], resize_maps(maps, (70, 50)), atol=1e-5)


def test_padding_to_the_size_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="do_pad is set"):
        CheXpertImageProcessor(do_pad=True).seen_box(10, 10)


def some_maps() -> SaliencyMaps:
    positive = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.25, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    return SaliencyMaps(positive, ("Edema", "Fracture", "Pneumonia"), (40, 20), (0, 0, 40, 20))


def test_maps_are_a_mapping_that_resizes_when_asked():
    maps = some_maps()
    assert list(maps) == ["Edema", "Fracture", "Pneumonia"]
    assert len(maps) == 3
    np.testing.assert_array_equal(maps["Fracture"], resize_maps(maps.positive, (40, 20))[1])
    assert maps.at_size((80, 60))["Edema"].shape == (60, 80)
    with pytest.raises(KeyError, match="expected one of Edema, Fracture"):
        maps["Mass"]


def test_an_empty_map_is_said_to_be_empty():
    maps = some_maps()
    assert [maps.is_empty(name) for name in maps] == [False, False, True]
    assert maps.peak("Fracture") == 0.25


def test_maps_at_another_size_keep_the_part_that_was_seen():
    maps = SaliencyMaps(torch.ones(1, 2, 2), ("Edema",), (100, 50), (25, 0, 75, 50))
    assert maps.at_size((200, 200)).box == (50, 0, 150, 200)


@pytest.mark.parametrize("same", [True, False])
def test_an_ensembles_map_is_the_mean_on_the_radiograph_also_where_its_members_see_different_parts(tiny_model, same):
    whole = CheXpertImageProcessor(size={"height": 64, "width": 64})
    middle = CheXpertImageProcessor(
        size={"shortest_edge": 64}, do_center_crop=True, crop_size={"height": 64, "width": 64}
    )
    first = CheXpertClassifier(tiny_model, whole)
    second = CheXpertClassifier(tiny_model, whole if same else middle)
    both = CheXpertEnsemble([first, second])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120), dtype=np.uint8))

    def signed(one: CheXpertClassifier) -> np.ndarray:
        pixel_values = one.processor(image, return_tensors="pt")["pixel_values"].to(one.model.device)
        with torch.no_grad():
            maps = one.model(pixel_values, output_saliency=True).saliency[0]
        return resize_maps(maps, image.size, one.processor.seen_box(*image.size))

    mean = np.maximum((signed(first) + signed(second)) / 2, 0)
    maps = both.predict(image, saliency=True).saliency
    got = np.stack([maps[name] for name in maps])
    # Clipping and resizing do not commute, so the edges of the positive part differ a little.
    correlation = np.corrcoef(mean.ravel(), got.ravel())[0, 1]
    assert correlation > 0.98
