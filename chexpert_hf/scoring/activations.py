"""Feature maps of one radiograph after each stage of the network.

Source: Zeiler & Fergus 2014, arXiv:1311.2901.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

STRONGEST = 5


class Stage(NamedTuple):
    """The feature maps `(channels, h, w)` of one radiograph after one stage of the network, such as "dense block 2"."""

    name: str
    maps: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the maps over the channels, `(h, w)`."""
        return self.maps.mean(dim=0)

    def strongest(self, count: int = STRONGEST) -> list[int]:
        """Return indices of the `count` channels with the largest standard deviation over the image, largest first."""
        return self.maps.flatten(1).std(dim=1).argsort(descending=True, stable=True)[:count].tolist()


@torch.inference_mode()
def feature_activations(model: CheXpertForImageClassification, pixel_values: Tensor) -> list[Stage]:
    """Run the network on one radiograph and return its feature maps after each stage, in float32 on the CPU.

    Args:
        model: In evaluation mode.
        pixel_values: `(1, num_channels, height, width)`.

    Raises:
        ValueError: If `pixel_values` does not hold exactly one radiograph.
    """
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(
            f"Expected pixel_values of one radiograph, (1, channels, height, width), got {pixel_values.shape}."
        )
    return [Stage(name, maps[0].float().cpu()) for name, maps in model.stages(pixel_values).items()]
