"""Where the places of a map look, for networks of which that is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertImageProcessor
from chexpert_hf.datasets.chexpert import load_chexpert
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.saliency import map_offsets, resize_maps
from chexpert_hf.training.losses import centring_loss
from chexpert_hf.training.registration import MIN_IMAGES, measure_map_offsets, offsets_of_peaks


def looking_beside(down: int, right: int):
    """A network of a map of cells of 8 x 8 pixels, each of which answers to the cell so many pixels beside it."""

    def network(values, output_saliency):
        assert output_saliency
        moved = torch.roll(values.mean(dim=1, keepdim=True), (-down, -right), dims=(2, 3))
        return SimpleNamespace(
            saliency=torch.cat([torch.zeros_like(moved[:, :, ::8, ::8]), functional.avg_pool2d(moved, 8)], 1)
        )

    return network


@pytest.mark.parametrize(("down", "right"), [(0, 0), (5, -3), (-8, 12)])
def test_the_offset_of_a_network_that_looks_beside_its_places_is_found(down, right):
    values = torch.zeros(4, 3, 64, 96)
    for row, (y, x) in enumerate([(16, 40), (24, 32), (32, 56), (40, 48)]):
        values[row, :, y + down : y + down + 8, x + right : x + right + 8] = 1
    found = offsets_of_peaks(looking_beside(down, right), values, torch.ones(4, dtype=torch.long))
    np.testing.assert_allclose(found, [[down / 64, right / 96]] * 4, atol=1e-6)
    assert values.grad is None


def test_maps_are_moved_by_their_own_offsets_and_nothing_comes_in_from_outside():
    maps = torch.zeros(2, 8, 8)
    maps[:, 4, 4] = 1
    placed = resize_maps(maps, (80, 160), offsets=torch.tensor([[0.25, -0.125], [0.0, 0.0]]))
    still = resize_maps(maps, (80, 160))
    np.testing.assert_allclose(placed[1], still[1], atol=1e-6)
    np.testing.assert_allclose(placed[0, 40:, :70], still[0, :120, 10:], atol=1e-6)
    cut = resize_maps(maps, (80, 160), (0, 0, 40, 160), torch.tensor([[0.0, 0.5]] * 2))
    assert (cut[:, :, 40:] == 0).all()


@pytest.fixture
def pair(shared_tiny_model, tiny_model):
    """A classifier, one whose maps of one observation are moved, an image, and that observation."""
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8))
    plain, moved = CheXpertClassifier(shared_tiny_model, processor), CheXpertClassifier(tiny_model, processor)
    maps = plain.predict(image, saliency=True).maps
    name = max(maps, key=lambda name: float(maps[name].std()))
    assert maps[name].std() > 0.05
    tiny_model.config.map_offsets = {name: [0.25, -0.125]}
    return plain, moved, image, name


def test_a_classifier_lays_its_maps_where_they_look(pair):
    plain, moved, image, name = pair
    before, after = plain.predict(image, saliency=True), moved.predict(image, saliency=True)
    assert after.probabilities == before.probabilities
    np.testing.assert_allclose(after.maps[name][32:, :112], before.maps[name][:96, 16:], atol=0.1)
    for other in set(before.maps) - {name}:
        np.testing.assert_allclose(after.maps[other], before.maps[other], atol=0.1)
        assert after.maps.is_empty(other) == before.maps.is_empty(other)


def test_members_of_an_ensemble_are_moved_before_they_are_averaged(pair):
    plain, moved, image, name = pair
    both = CheXpertClassifier(moved.model, moved.processor, [plain]).predict(image, saliency=True).maps[name]
    one, other = (member.predict(image, saliency=True).maps[name] for member in (moved, plain))
    assert np.corrcoef(both.ravel(), (one + other).ravel())[0, 1] > 0.95
    assert np.corrcoef(both.ravel(), other.ravel())[0, 1] < 0.9


def test_offsets_are_measured_for_observations_with_enough_images_and_kept_with_the_model(tmp_path, tiny_model):
    write_phantoms(tmp_path / "phantoms", num_studies=60, seed=3)
    dataset = load_chexpert(tmp_path / "phantoms", splits=["train"])["train"]
    classifier = CheXpertClassifier(tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))
    offsets = measure_map_offsets(classifier, dataset)
    positives = (np.asarray(dataset["labels"][:]) == 1).sum(axis=0)
    assert list(offsets) == [
        name for name, count in zip(classifier.observations, positives, strict=True) if count >= MIN_IMAGES
    ]
    assert 0 < len(offsets) < len(classifier.observations)
    assert offsets == measure_map_offsets(classifier, dataset)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    tiny_model.config.map_offsets = offsets
    tiny_model.save_pretrained(tmp_path / "model")
    loaded = CheXpertConfig.from_pretrained(tmp_path / "model")
    assert loaded.map_offsets == offsets
    column = classifier.observations.index(next(iter(offsets)))
    np.testing.assert_allclose(map_offsets(loaded)[column], next(iter(offsets.values())), rtol=1e-6)
    assert map_offsets(CheXpertConfig()) is None


@pytest.mark.parametrize("offsets", [{"Mass": [0, 0]}, {"Edema": [0.1]}, {"Edema": "ab"}, {"Edema": [0, 1.5]}])
def test_offsets_that_cannot_be_a_models_are_refused(offsets):
    with pytest.raises(Exception, match="offset"):
        CheXpertConfig(map_offsets=offsets)


def test_the_offsets_can_be_made_smaller_along_their_gradient(tiny_model):
    network = tiny_model.double()
    values = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    columns = torch.zeros(8, dtype=torch.long)
    before = centring_loss(offsets_of_peaks(network, values, columns, create_graph=True))
    gradients = torch.autograd.grad(before, [*network.parameters()], allow_unused=True)
    length = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-4 * gradient / length
    after = centring_loss(offsets_of_peaks(network, values, columns))
    assert (before - after).item() == pytest.approx(1e-4 * length.item(), rel=0.1)
