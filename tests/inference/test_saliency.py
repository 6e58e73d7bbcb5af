import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf.inference.saliency import overlay, positive_maps, resize_maps


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
