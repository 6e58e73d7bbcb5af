import pytest
import torch
from torch import nn
from torchvision import models

from train.practice.densenet import CIFAR_BC_100, IMAGENET_121, DenseNet, densenet121


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def with_statistics(model):
    """BatchNorm with numbers that are not the initial ones."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.3)):
                tensor.data = low + torch.rand(tensor.shape, generator=generator)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return model.eval()


@torch.inference_mode()
def test_outputs_equal_torchvisions_with_its_weights():
    torch.manual_seed(0)
    theirs = with_statistics(models.densenet121())
    ours = densenet121()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 97, 64)  # an odd height: pooling drops the last row in both
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=0, atol=1e-5)


def test_training_steps_equal_torchvisions():
    torch.manual_seed(0)
    theirs, ours = models.DenseNet(4, (2, 3), 8, num_classes=3), DenseNet(4, (2, 3), 3, stem="imagenet")
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 33, 33)
    for model in (theirs, ours):
        model.train()(images).square().sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.features.norm5.running_var, theirs.features.norm5.running_var)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: DenseNet(12, CIFAR_BC_100), 769_162),  # "0.8M" in table 2
        (lambda: DenseNet(32, IMAGENET_121, 1000, stem="imagenet"), 7_978_856),  # torchvision's figure
    ],
)
def test_parameter_counts_are_the_papers(model, count):
    assert parameters_of(model()) == count


def test_depth_is_that_of_the_names_100_and_121():
    for blocks, stem, depth in ((CIFAR_BC_100, "cifar", 100), (IMAGENET_121, "imagenet", 121)):
        model = DenseNet(12, blocks, stem=stem)
        assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


@torch.inference_mode()
def test_every_layer_sees_the_maps_of_all_before_it():
    block = DenseNet(4, (3,), in_channels=1).features.denseblock1.eval()
    features = torch.randn(1, 8, 5, 5)
    out = block(features)
    assert out.shape == (1, 8 + 3 * 4, 5, 5)
    for number, layer in enumerate(block.children()):
        seen = 8 + number * 4
        torch.testing.assert_close(out[:, seen : seen + 4], layer(out[:, :seen]))


def test_dropout_is_behind_every_layer():
    model = DenseNet(4, (2, 2), drop_rate=0.2)
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.2 for module in model.modules()) == 4
    assert parameters_of(model) == parameters_of(DenseNet(4, (2, 2)))
