"""Feature maps of one radiograph after each stage of the network, and a figure of them.

Source: Zeiler & Fergus 2014, arXiv:1311.2901.
"""

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
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


def activation_figure(image: Image.Image, stages: list[Stage], count: int = STRONGEST) -> Figure:
    """Draw a row of panels per stage: the mean of its maps, then its `count` strongest channels.

    The panels have the proportions of `image`, the radiograph, which is not drawn itself.
    """
    height = image.height / image.width
    size = (1.5 * (count + 1) + 1.4, (1.5 * height + 0.25) * len(stages) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    for row, stage in zip(figure.subplots(len(stages), count + 1, squeeze=False), stages, strict=True):
        maps = [("mean", stage.mean), *((f"channel {one}", stage.maps[one]) for one in stage.strongest(count))]
        for panel, (title, values) in zip(row, maps, strict=False):
            panel.imshow(values.numpy(), cmap="viridis", extent=(0, 1, 0, height), interpolation="nearest")
            panel.set_title(title, fontsize=7, pad=2)
        for panel in row:
            panel.set_axis_off()
        channels, map_height, map_width = stage.maps.shape
        text = f"{stage.name}\n{channels} maps\n{map_height} x {map_width}"
        row[0].text(-0.08, height / 2, text, fontsize=8, ha="right", va="center")
    return figure
