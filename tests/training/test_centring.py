"""Offsets between cells of a map and the image regions that drive them, for networks where they are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from chexpert_hf.training.losses import centring_loss, offsets_of_peaks


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
    np.testing.assert_allclose(found.detach(), [[down / 64, right / 96]] * 4, atol=1e-6)
    assert values.grad is None


def test_the_offsets_can_be_made_smaller_along_their_gradient(tiny_model):
    network = tiny_model.double()
    values = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    columns = torch.zeros(8, dtype=torch.long)
    before = centring_loss(offsets_of_peaks(network, values, columns))
    gradients = torch.autograd.grad(before, [*network.parameters()], allow_unused=True)
    length = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-4 * gradient / length
    after = centring_loss(offsets_of_peaks(network, values, columns))
    assert (before - after).item() == pytest.approx(1e-4 * length.item(), rel=0.1)
