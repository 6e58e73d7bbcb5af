"""Cross-layer equalisation: the same function with channels of similar ranges, which int8 rounds more finely.

All channels of an activation share one scale in int8, so a channel of small values gets few levels. Between a
BatchNorm and the convolution behind its ReLU, each channel can be multiplied by a positive factor on one side and
divided by it on the other: `relu(s * x) = s * relu(x)`.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1, with ranges of activations measured on images.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

_BATCH = 8
_SMALLEST = 0.01  # of the largest range; a channel silent on these images may be active on others
_TINY = 1e-6


@torch.no_grad()
def equalise(model: CheXpertForImageClassification, pixel_values: Tensor) -> CheXpertForImageClassification:
    """Returns a model with the same outputs, up to rounding in float32, whose channels have similar ranges.

    Args:
        model: In evaluation mode; stays as it is.
        pixel_values: `(num_images, num_channels, height, width)`, on which the ranges of the channels are measured.
    """
    equal = copy.deepcopy(model)
    layers = [layer for layer in equal.features.modules() if isinstance(layer, (nn.BatchNorm2d, nn.Conv2d))]
    pairs = [
        pair for pair in pairwise(layers) if isinstance(pair[0], nn.BatchNorm2d) and isinstance(pair[1], nn.Conv2d)
    ]
    peaks: dict[nn.Module, Tensor] = {}

    def measure(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].amax(dim=(0, 2, 3))  # (in_channels,)
        peaks[convolution] = torch.maximum(peaks.get(convolution, peak), peak)

    hooks = [convolution.register_forward_pre_hook(measure) for _, convolution in pairs]
    for batch in pixel_values.split(_BATCH):
        equal(batch)
    for hook in hooks:
        hook.remove()
    for norm, convolution in pairs:
        weights = _floored(convolution.weight.abs().amax(dim=(0, 2, 3)))  # (in_channels,)
        factors = (weights / _floored(peaks[convolution])).sqrt()
        for parameter in norm.parameters():  # weight and bias
            parameter.mul_(factors)
        convolution.weight.div_(factors[:, None, None])
    return equal


def _floored(ranges: Tensor) -> Tensor:
    return ranges.clamp(min=max(ranges.max().item() * _SMALLEST, _TINY))
