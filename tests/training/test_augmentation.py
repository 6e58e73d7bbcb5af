import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf.training.augmentation import RadiographAugmentation
from chexpert_hf.training.recipe import Recipe

ALL = RadiographAugmentation(Recipe(rotation_degrees=10, translation=0.05, scaling=0.1, contrast=0.2, seed=3))


def images(count: int, size: int = 48) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8))


def test_an_image_changes_by_seed_epoch_and_index_alone():
    batch = images(4)
    together = ALL(batch, epoch=2, indices=torch.tensor([7, 1, 5, 9]))
    alone = ALL(batch[2:3], epoch=2, indices=torch.tensor([5]))
    torch.testing.assert_close(together[2:3], alone, atol=1e-3, rtol=0)
    assert not torch.equal(together[2:3], ALL(batch[2:3], epoch=3, indices=torch.tensor([5])))
    assert not torch.equal(together[2:3], ALL(batch[2:3], epoch=2, indices=torch.tensor([6])))


def test_it_does_not_touch_the_global_generators():
    before = torch.random.get_rng_state()
    ALL(images(1), epoch=0, indices=torch.tensor([0]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_switched_on_changes_nothing():
    augmentation = RadiographAugmentation(Recipe())
    assert not augmentation.is_active
    assert torch.equal(augmentation(images(2), epoch=0, indices=torch.arange(2)), images(2).float())


def test_a_rotation_is_the_rotation_that_pillow_makes():
    # A smooth image, so that the two interpolations agree; a rectangle, so that the aspect ratio counts.
    y, x = np.mgrid[0:60, 0:90]
    smooth = (127 + 80 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    augmentation = RadiographAugmentation(Recipe(rotation_degrees=20, seed=1))
    tensor = torch.from_numpy(smooth)[None, None]
    angle = 20 * np.random.default_rng((1, 0, 4)).uniform(-1, 1)  # seed, epoch, index
    rotated = augmentation(tensor, epoch=0, indices=torch.tensor([4]))[0, 0].numpy()
    expected = np.asarray(Image.fromarray(smooth).rotate(angle, Image.Resampling.BILINEAR), dtype=float)
    inside = (slice(20, 40), slice(30, 60))
    assert abs(angle) > 3
    assert np.abs(rotated - expected)[inside].mean() < 2
    assert np.abs(rotated - smooth)[inside].mean() > 8


def test_the_heart_stays_on_its_side():
    # No flip: a bright half stays on its side in every draw.
    image = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    image[..., 32:] = 200
    for index in range(50):
        changed = ALL(image, epoch=0, indices=torch.tensor([index]))
        assert changed[..., 32:].mean() > changed[..., :32].mean() + 100


def test_gray_levels_stay_in_their_range():
    changed = ALL(images(16), epoch=0, indices=torch.arange(16))
    assert changed.min() >= 0
    assert changed.max() <= 255


@pytest.mark.parametrize("field", ["rotation_degrees", "translation", "scaling", "contrast", "gamma"])
def test_each_part_alone_changes_the_image(field):
    augmentation = RadiographAugmentation(Recipe(**{field: 0.2}))
    changed = augmentation(images(1), epoch=0, indices=torch.tensor([0]))
    assert (changed - images(1).float()).abs().mean() > 0.1


def test_three_images_in_ten_get_a_frame_that_is_black_or_white_and_no_wider_than_asked():
    gray = torch.full((400, 1, 50, 40), 100, dtype=torch.uint8)
    changed = RadiographAugmentation(Recipe(border=0.2))(gray, epoch=0, indices=torch.arange(400))
    assert (changed[..., 10:40, 8:32] == 100).all()
    levels = {level: (changed == level).flatten(1).any(dim=1) for level in (0, 255)}
    assert not (levels[0] & levels[255]).any()
    assert (levels[0] | levels[255]).float().mean() == pytest.approx(0.3, abs=0.07)
    assert levels[255].float().mean() == pytest.approx(0.09, abs=0.05)
    assert sorted(changed.unique().tolist()) == [0, 100, 255]


def test_gamma_is_a_power_of_the_gray_levels():
    gray = torch.tensor([0, 51, 102, 204, 255], dtype=torch.uint8).reshape(1, 1, 1, 5)
    changed = RadiographAugmentation(Recipe(gamma=0.6))(gray, epoch=3, indices=torch.tensor([4]))[0, 0, 0]
    power = changed[1].div(255).log() / torch.tensor(0.2).log()
    assert 1 / 1.83 < power < 1.83
    torch.testing.assert_close(changed, 255 * (gray[0, 0, 0] / 255) ** power)
