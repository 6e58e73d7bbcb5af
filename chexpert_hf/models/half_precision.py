"""Weights in half the space: convolutions and the head as float16 in the file, computed in float32 when loaded.

BatchNorm stays in float32: its variances span more than float16's exponents do, and it takes 1 % of the space.
"""

import torch
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


@torch.no_grad()
def round_to_half(model: CheXpertForImageClassification) -> None:
    """Rounds the weights of a float32 model in place to the values that `half_state_dict` stores."""
    model.load_state_dict(half_state_dict(model))


def half_state_dict(model: CheXpertForImageClassification) -> dict[str, Tensor]:
    """The weights as they are stored: float16 in convolutions and head, all else unchanged.

    Raises:
        OverflowError: If a weight is larger than float16's largest number, 65,504.
    """
    stored = dict(model.state_dict())
    for prefix, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        for parameter, values in module.named_parameters(recurse=False):
            half = values.detach().half()
            if not half.isfinite().all():
                raise OverflowError(
                    f"{prefix}.{parameter} has weights beyond 65,504, which float16 cannot hold; store it in fp32."
                )
            stored[f"{prefix}.{parameter}"] = half
    return stored
