"""What the network makes of a radiograph on its way: feature maps of the stem, each dense block and each transition.

Source: Zeiler & Fergus 2014, arXiv:1311.2901 (looking at feature maps); names of the stages are torchvision's.
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

STRONGEST = 5
_LABELS = {"pool0": "stem", "norm5": "last feature maps"}
_STAGES = ("pool0", "denseblock", "transition", "norm5")


@dataclass(frozen=True)
class Stage:
    """The feature maps behind one stage of the network.

    Attributes:
        name: Such as "stem" or "dense block 2".
        maps: `(channels, h, w)`.
    """

    name: str
    maps: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over the channels, `(h, w)`."""
        return self.maps.mean(dim=0)

    def strongest(self, count: int = STRONGEST) -> list[int]:
        """The channels whose values differ most between places, by standard deviation: one that is the same everywhere
        says nothing about where."""
        deviation = self.maps.flatten(1).std(dim=1)
        return deviation.argsort(descending=True, stable=True)[:count].tolist()


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
    stages = []
    features = pixel_values
    for name, module in model.features.named_children():
        features = module(features)
        if name.startswith(_STAGES):
            kept = functional.relu(features) if name == "norm5" else features
            stages.append(Stage(_label(name), kept[0].float().cpu()))
    return stages


def activation_figure(image: Image.Image, stages: list[Stage], count: int = STRONGEST) -> Figure:
    """A row for each stage: the mean of its maps, and its strongest ones, in the radiograph's proportions.

    Args:
        image: The radiograph.
        stages: From `feature_activations`.
        count: How many of the strongest.
    """
    height = image.height / image.width
    size = (1.5 * (count + 1) + 1.4, (1.5 * height + 0.25) * len(stages) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(stages), count + 1, squeeze=False)
    for row, stage in zip(axes, stages, strict=True):
        channels = stage.strongest(count)
        titles = ["mean", *(f"channel {channel}" for channel in channels)]
        for place, (panel, title) in enumerate(zip(row, titles, strict=False)):
            values = stage.mean if place == 0 else stage.maps[channels[place - 1]]
            # The extent gives every map the radiograph's proportions, whatever the model resized it to.
            panel.imshow(values.numpy(), cmap="viridis", extent=(0, 1, 0, height), interpolation="nearest")
            panel.set_title(title, fontsize=7, pad=2)
        for panel in row:
            panel.set_axis_off()
        channel_count, map_height, map_width = stage.maps.shape
        text = f"{stage.name}\n{channel_count} maps\n{map_height} x {map_width}"
        row[0].text(-0.08, height / 2, text, fontsize=8, ha="right", va="center")
    return figure


def _label(name: str) -> str:
    if name in _LABELS:
        return _LABELS[name]
    kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    return f"{'dense block' if kind == 'denseblock' else kind} {number}"
