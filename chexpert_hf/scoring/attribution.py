"""Other ways to ask where a score comes from, to compare the model's own maps with: slower, and by other people's code.

Grad-CAM by autograd is the reference that the one-pass maps equal. Integrated Gradients and occlusion are captum's
(`pip install "chexpert-hf[compare]"`).

Sources: Selvaraju et al. 2017, arXiv:1610.02391; Sundararajan et al. 2017, arXiv:1703.01365; Zeiler & Fergus 2014,
arXiv:1311.2901.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.errors import InputError
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


def grad_cam(model: CheXpertForImageClassification, pixel_values: Tensor, label: int) -> Tensor:
    """Signed Grad-CAM at the last feature maps, after the last ReLU, by a backward pass.

    Args:
        model: In evaluation mode.
        pixel_values: `(batch, num_channels, height, width)`.
        label: Index of the observation among the model's outputs.

    Returns:
        `(batch, h, w)`: the feature maps, each weighted by the sum of the logit's gradient over its places. It is what
        `output_saliency=True` gives for every observation without a backward pass.
    """
    with torch.no_grad():
        features = model.feature_maps(pixel_values)  # (B, C, h, w)
    with torch.enable_grad():
        live = features.detach().requires_grad_()
        logits = model.logits_from(live)
        gradients = torch.autograd.grad(logits[:, label].sum(), live)[0]  # (B, C, h, w)
    return (gradients.sum(dim=(2, 3), keepdim=True) * features).sum(dim=1)


def integrated_gradients(
    model: CheXpertForImageClassification, pixel_values: Tensor, label: int, *, steps: int = 32
) -> Tensor:
    """Integrated Gradients of one logit, from a black image, summed over the channels.

    Args:
        model: In evaluation mode.
        pixel_values: `(batch, num_channels, height, width)`.
        label: Index of the observation among the model's outputs.
        steps: Of the integral.

    Returns:
        `(batch, height, width)`: their sum is about the logit's difference from that of the black image.

    Raises:
        InputError: If captum is not installed.
    """
    captum = _captum()
    black = pixel_values.amin(dim=(2, 3), keepdim=True).expand_as(pixel_values)
    explained = captum.IntegratedGradients(_logits_of(model)).attribute(
        pixel_values, baselines=black, target=label, n_steps=steps, internal_batch_size=len(pixel_values)
    )
    return explained.sum(dim=1).detach()


def occlusion(
    model: CheXpertForImageClassification, pixel_values: Tensor, label: int, *, patch: int = 32, stride: int = 16
) -> Tensor:
    """How much one logit falls when a patch of the image is replaced by its mean gray.

    Args:
        model: In evaluation mode.
        pixel_values: `(batch, num_channels, height, width)`.
        label: Index of the observation among the model's outputs.
        patch: Side of the patch in pixels of the model's input.
        stride: From one patch to the next.

    Returns:
        `(batch, height, width)`: above 0 where what is hidden spoke for the observation.

    Raises:
        InputError: If captum is not installed.
    """
    captum = _captum()
    channels = pixel_values.shape[1]
    explained = captum.Occlusion(_logits_of(model)).attribute(
        pixel_values,
        sliding_window_shapes=(channels, patch, patch),
        strides=(channels, stride, stride),
        baselines=pixel_values.mean(dim=(2, 3), keepdim=True).expand_as(pixel_values),
        target=label,
    )
    return explained.mean(dim=1).detach()


def _logits_of(model: CheXpertForImageClassification) -> Callable[[Tensor], Tensor]:
    return lambda pixel_values: model(pixel_values).logits


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise InputError('This comparison needs captum: pip install "chexpert-hf[compare]".') from error
    return captum.attr
