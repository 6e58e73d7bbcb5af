"""Weights: torchvision's ImageNet weights, old and new names of a DenseNet's weights, storage in half precision."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

# Published checkpoints have 'norm.1' where torchvision's modules are now named 'norm1'.
_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


class WeightsError(InputError):
    """Weights that could not be fetched or do not fit, with the reason and what to do."""


def imagenet_cache_path() -> Path:
    """The file of torchvision's ImageNet weights in torch's cache, where it may also be copied to by hand."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(DenseNet121_Weights.IMAGENET1K_V1.url).name


def imagenet_state_dict() -> dict[str, Tensor]:
    """Torchvision's weights with current names, from the cache or downloaded; WeightsError if that fails."""
    weights = DenseNet121_Weights.IMAGENET1K_V1
    try:
        state_dict = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights could not be downloaded from {weights.url} ({first_line(error)}). Put that file at "
            f"{imagenet_cache_path()}; or train with --init random, or import with --file FILE."
        ) from error
    return with_todays_names(state_dict)


def with_todays_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DenseNet's weights with current names: 'norm1' for 'norm.1', and a counter of batches for each BatchNorm."""
    renamed = {_OLD_NAME.sub(r"\1\2", name): tensor for name, tensor in state_dict.items()}
    means = [name for name in renamed if name.endswith(".running_mean")]
    return {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in means} | renamed


def load_imagenet_backbone(model: CheXpertForImageClassification, state_dict: dict[str, Tensor] | None = None) -> None:
    """Copies ImageNet weights, torchvision's or `state_dict`, into a DenseNet121's backbone; the head stays as it is.

    A model with one channel gets the sum of the three channels' kernels: the same output as for three equal channels.
    Raises WeightsError if the weights cannot be fetched or do not fit the backbone.
    """
    source = imagenet_state_dict() if state_dict is None else state_dict
    backbone = {name: tensor for name, tensor in source.items() if name.startswith("features.")}
    if model.config.num_channels == 1:
        backbone["features.conv0.weight"] = backbone["features.conv0.weight"].sum(dim=1, keepdim=True)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith("features.")}
    if expected != {name: tensor.shape for name, tensor in backbone.items()}:
        raise WeightsError("ImageNet weights are for DenseNet121, but the model has another backbone; use init random.")
    model.load_state_dict(backbone, strict=False)  # without the head; all other names were compared above


def half_state_dict(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    """The weights as they are stored in half the space: float16 in convolutions and head, all else unchanged.

    BatchNorm stays in float32: its variances exceed float16's range, and it takes 1 % of the space. Raises
    OverflowError if a weight exceeds float16's largest number, 65,504.
    """
    stored = dict(model.state_dict())
    halved = [prefix for prefix, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for name in [name for name in stored if name.rpartition(".")[0] in halved]:
        stored[name] = stored[name].half()
        if not stored[name].isfinite().all():
            raise OverflowError(f"{name} has weights beyond 65,504, which float16 cannot hold; store it in fp32.")
    return stored
