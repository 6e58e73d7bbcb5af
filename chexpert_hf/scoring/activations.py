"""The feature maps of a radiograph after each stage of the network.

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
    """The feature maps `(channels, h, w)` after one stage, such as "stem" or "dense block 2"."""

    name: str
    maps: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over the channels, `(h, w)`."""
        return self.maps.mean(dim=0)

    def strongest(self, count: int = STRONGEST) -> list[int]:
        """The channels that vary most over the image, by standard deviation."""
        return self.maps.flatten(1).std(dim=1).argsort(descending=True, stable=True)[:count].tolist()


@torch.inference_mode()
def feature_activations(model: CheXpertForImageClassification, pixel_values: Tensor) -> list[Stage]:
    """The feature maps of one radiograph, stage by stage.

    Args:
        model: In evaluation mode.
        pixel_values: `(1, num_channels, height, width)`.

    Raises:
        ValueError: If there is not one radiograph.
    """
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(
            f"Expected pixel_values of one radiograph, (1, channels, height, width), got {pixel_values.shape}."
        )
    return [Stage(name, maps[0].float().cpu()) for name, maps in model.stages(pixel_values).items()]


def activation_figure(image: Image.Image, stages: list[Stage], count: int = STRONGEST) -> Figure:
    """A row for each stage: the mean of its maps, and the `count` strongest ones, in the radiograph's proportions."""
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
