"""ImageNet weights for backbones, names of DenseNet weights in old files, and storage in half precision."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from chexpert_hf.configuration_chexpert import NETWORKS, TIMM_PREFIX
from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

# Published checkpoints have 'norm.1' where torchvision's modules are now named 'norm1'.
_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


class WeightsError(InputError):
    """Weights cannot be fetched or do not fit the model; the message says what to do."""


def _published(network: str) -> WeightsEnum:
    newest: WeightsEnum = get_model_weights(network).DEFAULT
    return newest


def imagenet_cache_path(network: str = "densenet121") -> Path:
    """Return the path at which torch caches torchvision's ImageNet weights; users may put the file there by hand."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_published(network).url).name


def imagenet_state_dict(network: str = "densenet121") -> dict[str, Tensor]:
    """Return ImageNet weights under torchvision's names or, for "timm:NAME", timm's; download them if not cached.

    Raises:
        WeightsError: If there are no such weights for this network, or they cannot be fetched.
    """
    if network.startswith(TIMM_PREFIX):
        return _timm_state_dict(network)
    if network not in NETWORKS:
        raise WeightsError(
            f"There are no ImageNet weights for a {network} of other sizes; use --init random, or one of: "
            f"{', '.join(NETWORKS)}."
        )
    weights = _published(network)
    try:
        state_dict = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        from_file = ", or import with --file FILE" if network == "densenet121" else ""
        raise WeightsError(
            f"ImageNet weights could not be downloaded from {weights.url} ({first_line(error)}). Put that file at "
            f"{imagenet_cache_path(network)}; or train with --init random{from_file}."
        ) from error
    return with_current_names(state_dict)


def _timm_state_dict(network: str) -> dict[str, Tensor]:
    import timm

    try:
        state_dict = timm.create_model(network.removeprefix(TIMM_PREFIX), pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"ImageNet weights of {network} could not be fetched by timm ({first_line(error)}); use --init random."
        ) from error
    return dict(state_dict)


def with_current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a DenseNet's weights from 'norm.1', as in old files, to 'norm1'; add missing `num_batches_tracked` (0)."""
    renamed = {_OLD_NAME.sub(r"\1\2", name): tensor for name, tensor in state_dict.items()}
    means = [name for name in renamed if name.endswith(".running_mean")]
    return {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in means} | renamed


def load_imagenet_backbone(model: CheXpertForImageClassification, state_dict: dict[str, Tensor] | None = None) -> None:
    """Copy ImageNet weights into a model's backbone; the head stays as it is.

    `state_dict` has the names of torchvision or timm; if None, the published weights are used. A model with one channel
    gets the sum of the three channels' kernels, which gives the same output as three equal channels.

    Raises:
        WeightsError: If the weights cannot be fetched or do not fit the backbone.
    """
    features, network = model.features, model.config.network
    backbone = features.published_weights(imagenet_state_dict(network) if state_dict is None else state_dict)
    name, _ = features.first_convolution
    if features.num_channels == 1 and f"{name}.weight" in backbone:
        backbone[f"{name}.weight"] = backbone[f"{name}.weight"].sum(dim=1, keepdim=True)
    expected = {name: tensor.shape for name, tensor in features.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in backbone.items()}:
        raise WeightsError(f"These ImageNet weights are not for the model's backbone ({network}); use init random.")
    features.load_state_dict(backbone)


def half_state_dict(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    """Return the model's weights for storage in half the space: float16 in convolutions and head, the rest unchanged.

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
