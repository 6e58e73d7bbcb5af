"""Weights in half the space: convolutions and the head as float16 in the file, computed in float32 when loaded.

BatchNorm stays in float32: its variances span more than float16's exponents do, and it takes 1 % of the space.
"""

import torch
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


@torch.no_grad()
def round_to_half(model: CheXpertForImageClassification) -> None:
    """Rounds in place what is stored as float16 to what it will be when it is loaded again.

    Args:
        model: In float32, and still so afterwards.

    Raises:
        OverflowError: If a weight is larger than float16's largest number, 65,504.
    """
    for name, tensor in model.state_dict().items():
        if name in _halved(model):
            tensor.copy_(_half(name, tensor))


def half_state_dict(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    """The weights as they are stored: float16 in convolutions and head, all else as it is.

    Raises:
        OverflowError: If a weight is larger than float16's largest number, 65,504.
    """
    halved = _halved(model)
    return {name: _half(name, tensor) if name in halved else tensor for name, tensor in model.state_dict().items()}


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not half.isfinite().all():
        raise OverflowError(f"{name} has weights beyond 65,504, which float16 cannot hold; store it in fp32.")
    return half


def _halved(model: nn.Module) -> set[str]:
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for parameter, _ in module.named_parameters(recurse=False)
    }
