"""From maps at the resolution of the last feature map to overlays on the radiograph.

Source: Selvaraju et al. 2017, arXiv:1610.02391 (Grad-CAM keeps the positive part); Irvin et al. 2019, arXiv:1901.07031,
section 5.
"""

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

COLORMAP = "inferno"
"""Perceptually uniform, and told apart with any colour vision."""


def positive_maps(saliency: Tensor) -> Tensor:
    """The positive part of the maps of one image, on one scale, so that observations can be compared.

    Args:
        saliency: `(num_labels, h, w)`, as the model returns it.

    Returns:
        Of the same shape, in [0, 1]: 1 is the largest contribution to any observation's logit; all zeros for an
        observation that nothing speaks for.
    """
    maps = saliency.float().clamp(min=0)
    return maps / maps.amax().clamp(min=torch.finfo(maps.dtype).tiny)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear maps `(num_labels, height, width)` for an image of `size` (width, height), from `(num_labels, h, w)`."""
    width, height = size
    resized = functional.interpolate(maps[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return resized.cpu().numpy()


def overlay(image: Image.Image, saliency: NDArray[np.floating], opacity: float = 0.5) -> Image.Image:
    """Lays a map over a radiograph; where the map is 0 the radiograph stays as it is.

    Args:
        image: Any mode.
        saliency: `(height, width)` in [0, 1], of the image's size.
        opacity: In [0, 1], of the map at its strongest.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If the sizes differ or the opacity is outside [0, 1].
    """
    if saliency.shape != (image.height, image.width):
        raise ValueError(
            f"The map is {saliency.shape[1]} x {saliency.shape[0]}, expected the image's "
            f"{image.width} x {image.height}."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"The opacity is {opacity}, expected a value in [0, 1].")
    gray = np.asarray(image.convert("RGB"), dtype=np.float32)
    strength = np.clip(saliency, 0, 1)[..., None]
    color = colormaps[COLORMAP](strength[..., 0])[..., :3] * 255
    weight = opacity * strength
    return Image.fromarray((gray * (1 - weight) + color * weight).round().astype(np.uint8))
