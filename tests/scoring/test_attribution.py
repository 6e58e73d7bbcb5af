import builtins

import pytest
import torch

from chexpert_hf.errors import InputError
from chexpert_hf.scoring.attribution import grad_cam, integrated_gradients, occlusion

LABEL = 5


@pytest.fixture
def bright_patch_model(tiny_model):
    """Its logit rises with the gray of one corner, because the input is masked before the network sees it."""
    mask = torch.zeros(64, 64)
    mask[8:24, 8:24] = 1
    tiny_model.features.conv0.register_forward_pre_hook(lambda module, inputs: (inputs[0] * mask,))
    return tiny_model


def test_integrated_gradients_add_up_to_the_logits_rise_above_a_black_image(tiny_model):
    pytest.importorskip("captum")
    pixel_values = torch.rand(2, 3, 64, 64)
    explained = integrated_gradients(tiny_model, pixel_values, LABEL, steps=200)
    black = pixel_values.amin(dim=(2, 3), keepdim=True).expand_as(pixel_values)
    with torch.no_grad():
        rise = (tiny_model(pixel_values).logits - tiny_model(black).logits)[:, LABEL]
    torch.testing.assert_close(explained.sum(dim=(1, 2)), rise, atol=0.02, rtol=0.02)


def test_what_the_network_cannot_see_gets_nothing(bright_patch_model):
    pytest.importorskip("captum")
    pixel_values = torch.rand(1, 3, 64, 64)
    unseen = torch.ones(64, 64, dtype=torch.bool)
    unseen[8:24, 8:24] = False
    explained = integrated_gradients(bright_patch_model, pixel_values, LABEL)[0]
    assert explained[unseen].abs().max() == 0
    assert explained[~unseen].abs().max() > 0
    hidden = occlusion(bright_patch_model, pixel_values, LABEL, patch=8, stride=8)[0]
    assert hidden[unseen].abs().max() < 1e-6
    assert hidden[~unseen].abs().max() > 1e-5


def test_grad_cam_leaves_no_gradients_behind(tiny_model):
    grad_cam(tiny_model, torch.rand(1, 3, 64, 64), LABEL)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_without_captum_the_pip_command_is_named(tiny_model, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("captum"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "chexpert-hf\[compare\]"'):
        occlusion(tiny_model, torch.rand(1, 3, 64, 64), LABEL)
