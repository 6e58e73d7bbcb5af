"""A radiograph in the making: the normal chest that findings are planted in, and where its parts are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.phantoms.anatomy import AIR_CONTRAST, FrontalFrame
from chexpert_hf.phantoms.drawing import Floats, Generator, Points
from chexpert_hf.phantoms.lateral import LateralFrame
from chexpert_hf.phantoms.patient import LEFT, RIGHT

Mask = NDArray[np.bool_]


@dataclass
class Scene:
    """A radiograph in the making."""

    frame: FrontalFrame | LateralFrame
    lungs: dict[int, Floats]
    """Side -> aerated lung along each ray, `(height, width)` in cm."""
    extra: Floats
    """What findings add, `(height, width)` in cm of water."""
    vascular: Floats
    """Vessels and parenchymal texture, `(height, width)` in cm of water; absent where there is no lung."""

    @property
    def is_frontal(self) -> bool:
        return isinstance(self.frame, FrontalFrame)

    def spot(self, side: int, lateral: float, depth: float, v: float) -> Points:
        """Pixel (x, y) of a point in a lung: `lateral` 0 at the mediastinum, 1 at the wall; `depth` 0 front, 1 back."""
        frame = self.frame
        if isinstance(frame, FrontalFrame):
            wall = float(frame.wall_at(v))
            return frame.place(side * (0.2 + (wall - 0.2) * lateral), v)
        return frame.place(0.12 + 0.72 * depth, v)

    def across(self, side: int) -> Floats:
        """For every pixel, 0 at the midline (lateral view: front) to 1 at the wall (back), `(height, width)`."""
        frame = self.frame
        if isinstance(frame, FrontalFrame):
            inner, outer = frame.medial[side][:, None], frame.wall[side][:, None]
            return np.clip((frame.x - inner) / (outer - inner), 0, 1)
        return np.clip(frame.w, 0, 1)

    def fill(self, side: int, share: Floats, threshold: float = 0.25) -> Mask:
        """Replaces a share, in [0, 1], of a lung's air by fluid or tissue; returns where it is a fair part of it."""
        self.extra += np.float32(AIR_CONTRAST) * self.lungs[side] * share
        return (share > threshold) & (self.lungs[side] > 0.8)


def either_side(rng: Generator) -> int:
    """Draws a side."""
    return RIGHT if rng.random() < 0.5 else LEFT
