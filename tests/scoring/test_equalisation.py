"""Equalisation before int8: the function stays, and the channels get similar ranges."""

import copy

import pytest
import torch
from torch import nn

from chexpert_hf.scoring.graphs.quantisation import equalise


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(shared_tiny_model):
    """With channels of very different ranges, one of them silent."""
    model = copy.deepcopy(shared_tiny_model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight *= torch.exp(0.5 * torch.randn(len(norm.weight), generator=generator))
            norm.bias += 0.3 * torch.randn(len(norm.bias), generator=generator)
        silent = model.features.denseblock1.denselayer1.norm1
        silent.weight[0], silent.bias[0] = 0, -1
    return model


def spread(model, images) -> dict[str, float]:
    """The largest range of a channel over the median range, for the input of each convolution but the first."""
    spreads = {}

    def measure(name):
        def hook(_, inputs):
            peaks = inputs[0].amax(dim=(0, 2, 3))
            spreads[name] = (peaks.max() / peaks.median()).item()

        return hook

    convolutions = [item for item in model.features.named_modules() if isinstance(item[1], nn.Conv2d)][1:]
    hooks = [convolution.register_forward_pre_hook(measure(name)) for name, convolution in convolutions]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return spreads


def test_equalising_changes_neither_the_logits_nor_the_maps_nor_the_model_given(model, images):
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted, got = (one(images, output_saliency=True) for one in (model, equalise(model, images)))
    torch.testing.assert_close(got.logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.saliency, wanted.saliency, atol=1e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_equalised_channels_have_similar_ranges(model, images):
    before, after = spread(model, images), spread(equalise(model, images), images)
    assert sum(after.values()) < 0.8 * sum(before.values())


def test_a_channels_weights_and_inputs_get_the_same_range(model, images):
    equal = equalise(model, images)
    peaks = {}
    convolution = equal.features.denseblock1.denselayer1.conv2
    convolution.register_forward_pre_hook(lambda _, inputs: peaks.update(inputs=inputs[0].amax(dim=(0, 2, 3))))
    with torch.no_grad():
        equal(images)
    torch.testing.assert_close(peaks["inputs"], convolution.weight.abs().amax(dim=(0, 2, 3)), rtol=1e-4, atol=0)
