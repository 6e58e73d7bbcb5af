"""The backbones: networks without their heads, which turn pixel values into the feature maps that the head pools.

In a saved model, the name of a backbone's weight is `features.` followed by its name in torchvision or timm. This file
is copied into saved models (remote code).

Sources: Huang et al. 2017, arXiv:1608.06993 (DenseNet); He et al. 2016, arXiv:1512.03385 (ResNet); Liu et al. 2022,
arXiv:2201.03545 (ConvNeXt); torchvision's and timm's networks of these names.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, convnext_tiny, resnet50
from torchvision.models.resnet import Bottleneck
from transformers import initialization as init

from .configuration_chexpert import DENSENET, DENSENET_FIELDS, TIMM_PREFIX, CheXpertConfig

LAST_STAGE = "last feature maps"


class BackboneError(ValueError):
    """A backbone cannot be built; the message gives the reason."""


class Backbone(nn.Sequential):
    """A network without its head; its last feature maps `(batch, num_features, h, w)` are ready for average pooling.

    Its children are the stages: groups of layers with a title, such as "stem" or "dense block 1".

    Attributes:
        num_channels: Channels of the pixel values.
        num_features: Channels of the last feature maps.
        block_title: Beginning of the titles of a network's main blocks. The maps after these blocks are a model's
            `hidden_states`; gradient checkpointing recomputes the blocks.
    """

    block_title = "stage"
    supports_gradient_checkpointing = supports_sync_batch_norm = True
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers

    def __init__(self, layers: Mapping[str, nn.Module], titles: Mapping[str, str], num_features: int) -> None:
        """Chain `layers` (name -> layer) in their order.

        A stage is one or more consecutive layers. `titles` has an entry for each stage: the name of its last layer ->
        the stage's title, such as "layer1" -> "stage 1".
        """
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.titles, self.num_features = dict(titles), num_features
        # On the meta device (`from_pretrained`), the library has not initialised any weights.
        self.is_initialised = not any(parameter.is_meta for parameter in self.parameters())

    @property
    def num_channels(self) -> int:
        """Channels of the pixel values."""
        return self.first_convolution[1].in_channels

    @property
    def first_convolution(self) -> tuple[str, nn.Conv2d]:
        """The name and the module of the convolution that takes the pixel values."""
        return next(item for item in self.named_modules() if isinstance(item[1], nn.Conv2d))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the last feature maps `(batch, num_features, h, w)`."""
        return self.stages(pixel_values)[LAST_STAGE]

    def stages(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return stage title -> feature maps `(batch, channels, h, w)` after the stage, in order.

        The last key is `LAST_STAGE`: the maps that `forward` returns.
        """
        features, stages = pixel_values, {}
        is_recomputed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for name, layer in self.named_children():
            title = self.titles.get(name, "")
            is_block = title.startswith(self.block_title)
            features = self._recomputed(layer, features) if is_recomputed and is_block else layer(features)
            if title:
                stages[title] = features
        return {**stages, LAST_STAGE: features}

    def _recomputed(self, block: Any, features: Tensor) -> Tensor:
        """Apply a block with gradient checkpointing: its layers are computed again in the backward pass."""
        # With use_reentrant=True, a layer's weights get gradients only if one of its inputs needs one (LoRA).
        features = features.requires_grad_()
        for layer in block.children():
            features = self._gradient_checkpointing_func(_updating_statistics_once(layer), features)
        return features

    def initialise(self, module: nn.Module, common: Callable[[nn.Module], None]) -> None:
        """Initialise a module whose weights are missing in a loaded file.

        Do nothing unless the backbone was built on the meta device, as in `from_pretrained`: any other was initialised
        by torchvision or timm. `common` is transformers' function that initialises common types of layers.
        """
        if self.is_initialised:
            return
        common(module)
        if not (isinstance(module, (nn.Conv2d, nn.Linear)) or "Norm" in type(module).__name__):
            for scale in module.parameters(recurse=False):  # such as ConvNeXt's
                init.ones_(scale)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the backbone's weights from a state dict of torchvision or timm, and name them as in this class."""
        own = {name for name, _ in self.named_children()}
        return {name: tensor for name, tensor in state_dict.items() if name.partition(".")[0] in own}

    def norms_before_convolutions(self) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
        """Return each BatchNorm whose output goes through a ReLU to one convolution only, paired with the convolution.

        Int8 quantisation multiplies the channels of such a BatchNorm by factors, and divides the weights of its
        convolution by them. The list is empty if the backbone has no such pairs.
        """
        return []

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the last feature maps of an image; (0, 0) if the image is too small for a layer."""
        try:
            shape = _output_shape(self, (1, self.num_channels, height, width))
        except (RuntimeError, AssertionError):
            return 0, 0
        return shape[2], shape[3]


class DenseNetBackbone(Backbone):
    """torchvision's DenseNet of any size."""

    block_title = "dense block"

    def __init__(self, config: CheXpertConfig) -> None:
        """Take the sizes from the config's DenseNet fields."""
        network = DenseNet(**{name: getattr(config, name) for name in (*DENSENET_FIELDS, "drop_rate")}, num_classes=1)
        layers = dict(network.features.named_children())
        layers["conv0"] = _with_channels(layers["conv0"], config.num_channels)
        titles = {"pool0": "stem"}
        for name in [name for name in layers if name.startswith("transition")]:
            layers[name] = _pooled_first(layers[name])
        for number in range(1, len(config.block_config) + 1):
            titles |= {f"denseblock{number}": f"dense block {number}", f"transition{number}": f"transition {number}"}
        super().__init__({**layers, "relu5": nn.ReLU(inplace=True)}, titles, network.classifier.in_features)

    def _recomputed(self, block: Any, features: Tensor) -> Tensor:
        maps = [features.requires_grad_()]  # as in `Backbone`
        for layer in block.values():
            maps.append(self._gradient_checkpointing_func(_updating_statistics_once(layer), *maps))
        return torch.cat(maps, dim=1)

    def initialise(self, module: nn.Module, common: Callable[[nn.Module], None]) -> None:
        """Initialise a module as torchvision does: one of a new model, or one whose weights a loaded file lacks.

        Convolutions are drawn from He's normal distribution. `common`, a function of transformers, initialises other
        types of layers.
        """
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)
        else:
            common(module)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _below("features.", state_dict)

    def norms_before_convolutions(self) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
        layers = [layer for layer in self.modules() if isinstance(layer, (nn.BatchNorm2d, nn.Conv2d))]
        pairs = pairwise(layers)
        return [(a, b) for a, b in pairs if isinstance(a, nn.BatchNorm2d) and isinstance(b, nn.Conv2d)]


class ResNetBackbone(Backbone):
    """torchvision's ResNet-50."""

    def __init__(self, config: CheXpertConfig) -> None:
        """Take the number of channels from the config."""
        network = resnet50()
        layers = {name: layer for name, layer in network.named_children() if name not in ("avgpool", "fc")}
        layers["conv1"] = _with_channels(layers["conv1"], config.num_channels)
        titles = {"maxpool": "stem"} | {f"layer{number}": f"stage {number}" for number in range(1, 5)}
        super().__init__(layers, titles, network.fc.in_features)

    def norms_before_convolutions(self) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
        # A block's third BatchNorm has no pair: the shortcut is added before the ReLU.
        blocks: list[Any] = [block for block in self.modules() if isinstance(block, Bottleneck)]
        return [pair for block in blocks for pair in ((block.bn1, block.conv2), (block.bn2, block.conv3))]


class PooledLayerNorm(nn.LayerNorm):
    """A network's LayerNorm of pooled features, moved before pooling: it normalises the maps `(batch, channels, h, w)`.

    Every cell is divided by the standard deviation of the pooled features, not by its own. So pooling the result gives
    the LayerNorm of the pooled features, and the mean of a saliency map plus the bias is the logit.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps `(batch, channels, h, w)`."""
        pooled = maps.mean(dim=(2, 3), keepdim=True)  # (batch, channels, 1, 1)
        deviation = (pooled.var(dim=1, correction=0, keepdim=True) + self.eps).sqrt()
        scaled = (maps - maps.mean(dim=1, keepdim=True)) / deviation
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


class ConvNeXtBackbone(Backbone):
    """torchvision's ConvNeXt-Tiny, except that its last LayerNorm comes before the pooling, not after it.

    The logits are the same, see `PooledLayerNorm`.
    """

    def __init__(self, config: CheXpertConfig) -> None:
        """Take the number of channels from the config."""
        network = convnext_tiny()
        layers = dict(network.features.named_children())
        stem: Any = layers["0"]
        stem[0] = _with_channels(stem[0], config.num_channels)
        titles = {"0": "stem"}
        for number in range(1, 5):
            titles |= {str(2 * number - 1): f"stage {number}", str(2 * number): f"downsampling {number}"}
        norm, _, last = network.classifier
        layers["norm"] = PooledLayerNorm(last.in_features, eps=norm.eps)
        super().__init__(layers, titles, last.in_features)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        norm = {f"norm.{name}": tensor for name, tensor in _below("classifier.0.", state_dict).items()}
        return {**_below("features.", state_dict), **norm}


class TimmBackbone(Backbone):
    """A network of timm whose last feature maps are `(batch, channels, h, w)`.

    Layers that the network has between pooling and classifier are applied to each cell of the maps, before pooling.
    """

    # timm's checkpointing updates the statistics of BatchNorm twice. timm's BatchNorm layers contain the activation,
    # which PyTorch's conversion to SyncBatchNorm would drop.
    supports_gradient_checkpointing = supports_sync_batch_norm = False

    def __init__(self, config: CheXpertConfig) -> None:
        """Take timm's name and the number of channels from the config; BackboneError if timm cannot build it."""
        try:
            import timm  # in a try block, without which transformers refuses to load any model unless timm is installed
        except ImportError as error:
            raise BackboneError(f"The backbone {config.backbone} needs timm; pip install timm.") from error
        try:
            network: Any = timm.create_model(
                config.backbone.removeprefix(TIMM_PREFIX), num_classes=0, global_pool="", in_chans=config.num_channels
            )
            shape = _output_shape(network, (1, config.num_channels, *network.pretrained_cfg["input_size"][1:]))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise BackboneError(f"timm cannot build the backbone {config.backbone}: {error}") from error
        sizes = (network.num_features, getattr(network, "head_hidden_size", None))
        if len(shape) != 4 or shape[1] not in sizes:
            raise BackboneError(
                f"The backbone {config.backbone} gives features of shape {tuple(shape)}, expected feature maps (batch, "
                "channels, h, w), as convolutional networks do."
            )
        if odd := _lost_on_loading(network):
            raise BackboneError(
                f"The backbone {config.backbone} has values that weights do not hold, such as {odd[0]}."
            )
        super().__init__({"network": network}, {}, shape[1])

    def stages(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return stage title -> feature maps `(batch, channels, h, w)` after the stage, in order.

        The last key is `LAST_STAGE`: the maps that the head pools. It is the only one if timm's network has no
        `forward_intermediates`.
        """
        network: Any = self[0]
        if not hasattr(network, "forward_intermediates"):
            return {LAST_STAGE: network(pixel_values)}
        features, maps = network.forward_intermediates(pixel_values)
        stages = {f"{self.block_title} {number}": each for number, each in enumerate(maps, start=1)}
        return {**stages, LAST_STAGE: network.forward_head(features)}

    def initialise(self, module: nn.Module, common: Callable[[nn.Module], None]) -> None:
        """Initialise a module whose weights are missing in a loaded file, and recreate buffers that no file holds.

        The weights are initialised by `Backbone.initialise`, which calls `common`, a function of transformers.
        """
        super().initialise(module, common)
        remake: Any = getattr(module, "init_non_persistent_buffers", None)
        if remake is not None:
            remake()

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"network.{name}": tensor for name, tensor in state_dict.items()}


_FAMILIES: Mapping[str, Callable[[CheXpertConfig], Backbone]] = {
    DENSENET: DenseNetBackbone,
    "resnet50": ResNetBackbone,
    "convnext_tiny": ConvNeXtBackbone,
}


def build_backbone(config: CheXpertConfig) -> Backbone:
    """Build the backbone that a config names, with random weights from torch's global generator.

    Raises:
        BackboneError: If the backbone is one of timm, and timm is not installed or cannot build it.
    """
    return _FAMILIES.get(config.backbone, TimmBackbone)(config)


def _with_channels(convolution: Any, num_channels: int) -> nn.Conv2d:
    """Return the convolution if it has `num_channels` inputs, else a new one with random weights, otherwise alike."""
    if convolution.in_channels == num_channels:
        return convolution
    same = {name: getattr(convolution, name) for name in ("out_channels", "kernel_size", "stride", "padding")}
    return nn.Conv2d(num_channels, **same, bias=convolution.bias is not None)


def _pooled_first(transition: Any) -> nn.Sequential:
    """Return a DenseNet transition that pools before its 1 x 1 convolution, not after it.

    Average pooling and the convolution are both linear; one combines cells, the other channels. So the result is the
    same, with a quarter of the arithmetic.
    """
    return nn.Sequential(OrderedDict((name, getattr(transition, name)) for name in ("norm", "relu", "pool", "conv")))


def _below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


@torch.no_grad()
def _output_shape(network: nn.Module, shape: tuple[int, ...]) -> torch.Size:
    """Return the shape of a network's output for an input of `shape`, without computing the output."""
    probe = copy.deepcopy(network).to("meta").eval()
    return probe(torch.empty(shape, device="meta", dtype=next(probe.parameters()).dtype)).shape


def _lost_on_loading(network: nn.Module) -> list[str]:
    """Return names of buffers that `from_pretrained` cannot restore: not saved, and not recreated by their module."""
    remade = [name for name, module in network.named_modules() if hasattr(module, "init_non_persistent_buffers")]
    unsaved = [name for name, _ in network.named_buffers() if name not in network.state_dict()]
    return [name for name in unsaved if name.rpartition(".")[0] not in remade]


def _updating_statistics_once(layer: nn.Module) -> Callable[..., Tensor]:
    """Wrap a layer for gradient checkpointing: its second computation leaves the running statistics unchanged."""
    is_recomputed = False

    def compute(*maps: Tensor) -> Tensor:
        nonlocal is_recomputed
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()} if is_recomputed else {}
        is_recomputed = True
        return torch.func.functional_call(layer, buffers, (list(maps) if len(maps) > 1 else maps[0],))

    return compute
