"""DenseNet from scratch, to be read beside its paper.

Source: Huang et al. 2017, "Densely Connected Convolutional Networks", CVPR, arXiv:1608.06993. Shapes are at line ends:
B images, C channels, k the growth rate.

Modules are named as in torchvision, so that weights of its DenseNet121 can be loaded. The project's own model does not
use this file.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGENET_121 = (6, 12, 24, 16)
"""Layers in each dense block, of 2 convolutions each; with stem, 3 transitions and classifier 121 in all. Table 1."""

CIFAR_BC_100 = (16, 16, 16)
"""Layers per block of DenseNet-BC with 100 layers, (100 - 4) / 3 / 2 in three blocks of the same depth. Section 3."""

BOTTLENECK = 4
"""The 1 x 1 convolution makes 4k feature maps. Section 3, "Bottleneck layers"."""

COMPRESSION = 0.5
"""A transition keeps this share of the feature maps (theta). Section 3, "Compression"."""


class DenseLayer(nn.Sequential):
    """H_l of equation 2, with a bottleneck (DenseNet-B): BN-ReLU-Conv(1 x 1)-BN-ReLU-Conv(3 x 3).

    It adds k feature maps to those of all layers before it. However many those are, the 3 x 3 convolution takes 4k.
    """

    def __init__(self, in_channels: int, growth_rate: int, drop_rate: float) -> None:
        width = BOTTLENECK * growth_rate
        super().__init__(
            OrderedDict(
                norm1=nn.BatchNorm2d(in_channels),
                relu1=nn.ReLU(),
                conv1=nn.Conv2d(in_channels, width, kernel_size=1, bias=False),  # (B, 4k, h, w)
                norm2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(),
                conv2=nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False),  # (B, k, h, w)
                drop=nn.Dropout(drop_rate),
            )
        )


class DenseBlock(nn.Module):
    """Layers that each take the outputs of all before them: x_l = H_l([x_0, x_1, ..., x_(l-1)]), equation 2."""

    def __init__(self, num_layers: int, in_channels: int, growth_rate: int, drop_rate: float) -> None:
        super().__init__()
        for number in range(num_layers):
            layer = DenseLayer(in_channels + number * growth_rate, growth_rate, drop_rate)
            self.add_module(f"denselayer{number + 1}", layer)
        self.out_channels = in_channels + num_layers * growth_rate

    def forward(self, features: Tensor) -> Tensor:  # (B, C, h, w)
        for layer in self.children():
            features = torch.cat([features, layer(features)], dim=1)  # (B, C + l k, h, w)
        return features


class Transition(nn.Sequential):
    """Layers between two blocks: BN-ReLU-Conv(1 x 1) to theta m of m feature maps, then pooling to half the size.

    The paper's text omits the ReLU of transitions; its authors' code and torchvision's have it.
    """

    def __init__(self, in_channels: int) -> None:
        self.out_channels = int(in_channels * COMPRESSION)
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(in_channels),
                relu=nn.ReLU(),
                conv=nn.Conv2d(in_channels, self.out_channels, kernel_size=1, bias=False),  # (B, C / 2, h, w)
                pool=nn.AvgPool2d(kernel_size=2, stride=2),  # (B, C / 2, h / 2, w / 2)
            )
        )


class DenseNet(nn.Module):
    """DenseNet-BC: a stem, dense blocks with transitions between them, global average pooling, a linear classifier.

    Args:
        growth_rate: k, the feature maps that each layer adds.
        blocks: Layers in each dense block.
        num_classes: Number of outputs.
        stem: "cifar", a 3 x 3 convolution to 2k maps, or "imagenet", a 7 x 7 convolution of stride 2 to 2k maps and
            3 x 3 maximum pooling of stride 2, after which a quarter of height and width is left (table 1).
        in_channels: Channels of the images.
        drop_rate: Dropout after each layer; the paper uses .2 without augmentation.
    """

    def __init__(
        self,
        growth_rate: int = 12,
        blocks: Sequence[int] = CIFAR_BC_100,
        num_classes: int = 10,
        *,
        stem: Literal["cifar", "imagenet"] = "cifar",
        in_channels: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        channels = 2 * growth_rate
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "cifar":
            stages["conv0"] = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)  # (B, 2k, H, W)
        else:
            stages["conv0"] = nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False)
            stages["norm0"] = nn.BatchNorm2d(channels)
            stages["relu0"] = nn.ReLU()  # (B, 2k, H / 2, W / 2)
            stages["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)  # (B, 2k, H / 4, W / 4)
        for number, num_layers in enumerate(blocks, start=1):
            block = DenseBlock(num_layers, channels, growth_rate, drop_rate)
            stages[f"denseblock{number}"], channels = block, block.out_channels
            if number < len(blocks):
                transition = Transition(channels)
                stages[f"transition{number}"], channels = transition, transition.out_channels
        stages["norm5"] = nn.BatchNorm2d(channels)  # torchvision's name, from the four blocks of its networks
        self.features = nn.Sequential(stages)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015, as in section 4.2
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:  # (B, 3, H, W)
        features = functional.relu(self.features(pixel_values))  # (B, C, h, w)
        return self.classifier(features.mean(dim=(2, 3)))  # (B, num_classes)


def densenet121(num_classes: int = 1000) -> DenseNet:
    """DenseNet-121, for which torchvision has ImageNet weights: k = 32."""
    return DenseNet(32, IMAGENET_121, num_classes, stem="imagenet")
