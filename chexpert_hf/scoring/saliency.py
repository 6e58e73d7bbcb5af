"""Scale saliency maps to the radiograph's resolution, and draw them over it.

Sources: Selvaraju et al. 2017, arXiv:1610.02391 (the positive part); Irvin et al. 2019, arXiv:1901.07031, section 5.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

COLORMAP = "inferno"  # perceptually uniform, and distinguishable with any colour vision
_MIN_TEXT_HEIGHT = 8  # smallest height of a line of text in pixels
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right and bottom in pixels


def positive_maps(saliency: Tensor) -> Tensor:
    """Set the negative values of one image's maps `(num_labels, h, w)` to 0, and scale the maps to [0, 1].

    All maps are divided by the largest value in any of them, so that they can be compared. If no value is positive, all
    become 0.
    """
    maps = saliency.float().clamp(min=0)
    return maps / maps.amax().clamp(min=torch.finfo(maps.dtype).tiny)


def resize_maps(maps: Tensor, size: tuple[int, int], box: Box | None = None) -> NDArray[np.float32]:
    """Resize maps bilinearly to the part of the image that the model saw, and pad them to the whole image with 0.

    Args:
        maps: `(num_labels, h, w)`.
        size: (width, height) of the image.
        box: The part of the image that the model saw, from `CheXpertImageProcessor.seen_box`; all of it if None.

    Returns:
        `(num_labels, height, width)`; 0 outside `box`.
    """
    width, height = size
    left, top, right, bottom = box or (0, 0, width, height)
    if (left, top, right, bottom) == (0, 0, width, height):
        return functional.interpolate(maps[None], size=(height, width), mode="bilinear")[0].cpu().numpy()
    # The centre of each pixel, as a fraction of the box's sides.
    x = (torch.arange(width, device=maps.device) + 0.5 - left) / (right - left)
    y = (torch.arange(height, device=maps.device) + 0.5 - top) / (bottom - top)
    grid = torch.stack(torch.meshgrid(2 * x - 1, 2 * y - 1, indexing="xy"), dim=2)[None].to(maps.dtype)
    placed = functional.grid_sample(maps[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    is_seen = ((y >= 0) & (y <= 1))[:, None] & ((x >= 0) & (x <= 1))
    return (placed * is_seen).cpu().numpy()


@dataclass(frozen=True, eq=False)
class SaliencyMaps(Mapping[str, NDArray[np.float32]]):
    """The maps of one radiograph by observation: `maps["Edema"]` is `(height, width)` in [0, 1].

    They are resized on access, since each takes 26 MB for a full-size radiograph.

    Attributes:
        positive: The maps `(num_labels, h, w)` at the model's resolution, from `positive_maps`.
        observations: Names of the maps, in order.
        size: (width, height) of the radiograph, to which maps are resized.
        box: The part of the radiograph that the model saw, in pixels of `size`.
    """

    positive: Tensor
    observations: Sequence[str]
    size: tuple[int, int]
    box: Box

    def __getitem__(self, observation: str) -> NDArray[np.float32]:
        return resize_maps(self._positive_of(observation)[None], self.size, self.box)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.observations)

    def __len__(self) -> int:
        return len(self.observations)

    def __eq__(self, other: object) -> bool:
        """Return whether maps, observations, size and box are equal."""
        if not isinstance(other, SaliencyMaps):
            return NotImplemented
        own, others = ((tuple(maps.observations), maps.size, maps.box) for maps in (self, other))
        return own == others and torch.equal(self.positive, other.positive)

    __hash__ = None  # type: ignore[assignment]  # as of all mappings that are compared by value

    def peak(self, observation: str) -> float:
        """Return the largest value of an observation's map before it is resized, in [0, 1].

        1 is the strongest positive evidence for any observation in this image.
        """
        return float(self._positive_of(observation).max())

    def is_empty(self, observation: str) -> bool:
        """Return whether there is no positive evidence for the observation: its map is 0 everywhere."""
        return self.peak(observation) == 0

    def at_size(self, size: tuple[int, int]) -> "SaliencyMaps":
        """Return the same maps for the radiograph at another size (width, height)."""
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        left, top, right, bottom = self.box
        return replace(self, size=size, box=(left * x, top * y, right * x, bottom * y))

    def _positive_of(self, observation: str) -> Tensor:
        if observation not in self.observations:
            raise unknown_observation(observation, self.observations)
        return self.positive[list(self.observations).index(observation)]


class NoMaps(Mapping[str, NDArray[np.float32]]):
    """The empty mapping of a prediction without maps; looking up an observation raises ValueError."""

    ERROR = "There are no maps; ask for them with saliency=True."

    def __getitem__(self, observation: str) -> NDArray[np.float32]:
        raise ValueError(self.ERROR)

    def __contains__(self, observation: object) -> bool:
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def unknown_observation(observation: str, observations: Iterable[str]) -> KeyError:
    """Return the KeyError for an unknown observation; its message lists the valid names, `observations`."""
    return KeyError(f"{observation!r}; expected one of {', '.join(observations)}.")


def overlay(image: Image.Image, saliency: NDArray[np.floating], opacity: float = 0.5) -> Image.Image:
    """Draw a map over a radiograph in colour; where the map is 0, the radiograph stays as it is.

    Args:
        image: A radiograph in any mode.
        saliency: A map `(height, width)` in [0, 1], of the image's size.
        opacity: Opacity where the map is 1, in [0, 1].

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
    levels = (np.clip(saliency, 0, 1) * 255).round().astype(np.uint8)
    weight = opacity * np.linspace(0, 1, 256, dtype=np.float32)[:, None]  # (256, 1)
    from matplotlib import colormaps  # takes a while, and only overlays need it

    colors = np.asarray(colormaps[COLORMAP](np.linspace(0, 1, 256))[:, :3] * 255, dtype=np.float32)  # (256, 3)
    gray = np.asarray(image.convert("RGB"), dtype=np.float32)
    return Image.fromarray((gray * (1 - weight)[levels] + (colors * weight)[levels]).round().astype(np.uint8))


def overlay_of(image: Image.Image, maps: SaliencyMaps, observation: str, opacity: float = 0.5) -> Image.Image:
    """Draw the map of an observation over its radiograph, like `overlay`.

    If the map is empty, a text on the picture says so. `maps` must have the image's size (see `SaliencyMaps.at_size`).
    """
    picture = overlay(image, maps[observation], opacity)
    if not maps.is_empty(observation):
        return picture
    text = f"{observation}: empty map, no positive evidence"
    draw, size = ImageDraw.Draw(picture), picture.width / 24
    while size > _MIN_TEXT_HEIGHT and draw.textlength(text, ImageFont.load_default(size)) > 0.95 * picture.width:
        size *= 0.9
    draw.rectangle((0, 0, picture.width, 1.8 * size), fill="black")
    draw.text((size / 3, size / 3), text, fill="white", font=ImageFont.load_default(size))
    return picture
