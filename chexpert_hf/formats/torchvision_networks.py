"""Recognition of a network by its state dict in torchvision's names, and renaming of the weights to this package's."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from chexpert_hf.backbones_chexpert import Backbone, build_backbone
from chexpert_hf.configuration_chexpert import NETWORKS, CheXpertConfig, fields_of
from chexpert_hf.models.weights import WeightsError

HEAD = "classifier"


class Recognised(NamedTuple):
    """A network that `recognise` found, with its weights renamed to `features.*` and `classifier.*`."""

    network: str  # a key of `NETWORKS`
    tensors: Mapping[str, Tensor]
    num_channels: int  # of the images
    num_features: int  # channels of the last feature maps


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """Find out which torchvision network a state dict is of, and rename its weights to this package's names.

    It is the network that shares the most weights with the dict, by name and shape. The head is the one linear layer
    outside the backbone, whatever its name. Weights that the network does not have keep their names, and weights that
    the dict lacks are not added: for both, `ForeignModel.build` raises an error that names them.

    Raises:
        WeightsError: If no weight is one of a known network, or several linear layers could be the head.
    """
    with torch.device("meta"):
        backbones = {network: build_backbone(CheXpertConfig(**fields_of(network))) for network in NETWORKS}
    network = max(backbones, key=lambda name: _num_shared(backbones[name], tensors))
    backbone = backbones[network]
    if not _num_shared(backbone, tensors):
        raise WeightsError(f"None of the weights is one of torchvision's {', '.join(NETWORKS)}; expected one of these.")
    published = backbone.published_weights(tensors)
    used = {id(tensor) for tensor in published.values()}
    rest = {name: tensor for name, tensor in tensors.items() if id(tensor) not in used}
    layers = [name.removesuffix(".weight") for name in rest if name.endswith(".weight") and rest[name].ndim == 2]
    if len(layers) > 1:
        raise WeightsError(f"The head has several linear layers ({', '.join(layers)}); expected one.")
    head = {f"{layer}.{kind}": f"{HEAD}.{kind}" for layer in layers for kind in ("weight", "bias")}
    ours = {f"features.{name}": tensor for name, tensor in published.items()}
    ours |= {head.get(name, name): tensor for name, tensor in rest.items()}
    first = published.get(f"{backbone.first_convolution[0]}.weight")
    num_channels = 1 if first is not None and first.ndim == 4 and first.shape[1] == 1 else 3
    return Recognised(network, ours, num_channels, backbone.num_features)


def _num_shared(backbone: Backbone, tensors: Mapping[str, Tensor]) -> int:
    published = backbone.published_weights(tensors)
    expected = backbone.state_dict()
    return sum(name in expected and expected[name].shape == tensor.shape for name, tensor in published.items())
