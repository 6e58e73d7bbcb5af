"""Networks as others build and save them, freshly initialised, with BatchNorm statistics that hide nothing."""

import copy
from functools import lru_cache
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import nn

from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import render_phantom

STANFORD_TASKS = [{"Lung Opacity": "Airspace Opacity"}.get(name, name) for name in OBSERVATIONS]


def with_own_statistics(network: nn.Module, pixel_values: torch.Tensor) -> nn.Module:
    """In evaluation mode, with statistics of these images, and scales and shifts that are not 1 and 0."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=generator) + 0.5
            module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
            module.momentum = 0.7
    network.train()
    with torch.no_grad():
        for half in pixel_values.chunk(2):
            network(half)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network.eval()


@lru_cache(maxsize=1)
def _backbone() -> nn.Module:
    torch.manual_seed(0)
    return with_own_statistics(torchvision.models.densenet121(), torch.randn(4, 3, 64, 64))


def densenet(num_outputs: int = 1000, head: nn.Module | None = None) -> nn.Module:
    """Torchvision's DenseNet121, always with the same backbone."""
    network = copy.deepcopy(_backbone())
    torch.manual_seed(num_outputs)
    network.classifier = head if head is not None else nn.Linear(1024, num_outputs)
    return network.eval()


def student_network() -> nn.Module:
    """As in the original student project."""
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 5), nn.Sigmoid())
    return densenet(head=head)


class StanfordModel(nn.Module):
    """As the CheXpert paper's authors wrap torchvision's network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.model.features(pixel_values).relu().mean(dim=(2, 3))
        return self.model.classifier(features)


def save_stanford(network: nn.Module, path: Path, **beside: object) -> Path:
    """A checkpoint with `module.model.` before each name."""
    state_dict = nn.DataParallel(StanfordModel(network)).state_dict()
    torch.save({"ckpt_info": {"epoch": 3, "iteration": 4800}, **beside, "model_state": state_dict}, path)
    return path


def phantom_image(seed: int = 5) -> Image.Image:
    return Image.fromarray(render_phantom(seed, ["Edema"]).image)
