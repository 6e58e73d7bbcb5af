"""The people of the phantoms, and where things are in one radiograph of them.

Positions are given as `(u, v)`. In frontal views `u` is in half breadths of the thorax from the midline, positive
towards the patient's left (the image's right); in lateral views it is 0 behind the breast bone and 1 at the back of the
ribs. `v` is in lung heights, 0 at the apex, 1 at the right dome.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.phantoms.drawing import Floats, Generator, Points

Mask = NDArray[np.bool_]

PROJECTIONS = ("PA", "AP", "Lateral")

RIGHT, LEFT = -1, 1
"""Sides of the patient, as the sign of `u`."""

AIR_CONTRAST = 0.74
"""Water replaced by a centimetre of aerated lung: lung has about a quarter of water's density."""


class Patient:
    """The build of a patient, the same in all radiographs; lengths relative to the average."""

    def __init__(self, rng: Generator) -> None:
        self.sex = "Female" if rng.random() < 0.45 else "Male"
        self.age = int(np.clip(rng.normal(60, 17), 18, 90))
        self.fat = float(rng.beta(1.6, 2.2))  # 0 is thin, 1 is obese
        self.breadth = float(rng.uniform(0.93, 1.04)) * (0.97 if self.sex == "Female" else 1.0)
        self.lung_height = float(rng.uniform(0.84, 1.0))  # apex to right dome, in breadths of the thorax
        # How far the heart reaches to the patient's left and right of the midline, in half breadths.
        self.heart_left = float(rng.uniform(0.52, 0.62))
        self.heart_right = float(rng.uniform(0.22, 0.29))
        self.aortic_knob = float(rng.uniform(0.17, 0.21) + 0.05 * (self.age > 60) * rng.random())
        self.scoliosis = float(rng.normal(0, 0.012))
        self.rib_slope = float(rng.uniform(0.8, 1.2))
        self.left_dome = float(rng.uniform(0.02, 0.075))  # how much lower it stands, in lung heights
        self.vessel_seed = int(rng.integers(2**31))


@dataclass
class Shape:
    """How findings change the outlines of the chest; the defaults change nothing."""

    heart_left: float = 1.0
    heart_right: float = 1.0
    mediastinum: float = 1.0
    raised: dict[int, float] = field(default_factory=dict)
    """Side -> how far volume loss raises that hemidiaphragm, in lung heights."""


class Frame(ABC):
    """Where things are in one radiograph: outlines in pixels, one value per image row or column.

    Args:
        patient: The patient.
        rng: Draws how the patient stood or lay.
        projection: One of `PROJECTIONS`.
        change: By the findings.
    """

    def __init__(self, patient: Patient, rng: Generator, projection: str, change: Shape) -> None:
        self.patient, self.change, self.is_ap = patient, change, projection == "AP"
        self.is_frontal = projection != "Lateral"
        long_side = int(rng.integers(382, 394))
        is_portrait = rng.random() < (0.35 if self.is_ap else 0.55) or not self.is_frontal
        self.shape = (long_side, 320) if is_portrait else (320, long_side)
        self.zoom = float(rng.uniform(0.92, 1.05))
        self.shift = (float(rng.normal(0, 0.018)), float(rng.normal(0, 0.015)))
        self.tilt = float(rng.normal(0, 0.03 if self.is_ap else 0.013))  # slope of the body's axis in the image
        # About the long axis of the thorax: moves the front (heart, clavicles) against the spine, in half breadths.
        self.rotation = float(rng.normal(0, 0.03 if self.is_ap else 0.015))
        self.inspiration = float(rng.uniform(0.78, 0.93) if self.is_ap else rng.uniform(0.93, 1.03))
        self.half, self.height, self.top = self._extent(*self.shape)
        self.v: Floats = ((np.arange(self.shape[0]) - self.top) / self.height).astype(np.float32)
        self.x = np.arange(self.shape[1], dtype=np.float32)[None, :]
        self.y = np.arange(self.shape[0], dtype=np.float32)[:, None]

    @abstractmethod
    def _extent(self, height: int, width: int) -> tuple[float, float, float]:
        """Half the breadth of the thorax, the lung height and the row of the apex, in pixels."""

    @abstractmethod
    def place(self, u: float | Points, v: float | Points) -> Points:
        """Pixel positions, `(..., 2)` as x, y."""

    def trace(
        self, nodes: Sequence[tuple[float, float]], *, side: int = LEFT, shift: tuple[float, float] = (0.0, 0.0)
    ) -> Points:
        """Pixel positions, `(n, 2)`, of a list of `(u, v)` given for the patient's left, mirrored and then shifted."""
        u, v = np.array(nodes).T
        return self.place(side * u + shift[0], v + shift[1])

    @cached_property
    def dome(self) -> dict[int, Floats]:
        """Side -> row of the hemidiaphragm in each column."""
        return {side: self._dome(side, self.change.raised.get(side, 0.0)) for side in (RIGHT, LEFT)}

    @abstractmethod
    def _dome(self, side: int, raised: float) -> Floats: ...

    def lost_lung(self, side: int) -> Mask:
        """Where volume loss has raised the hemidiaphragm into what was lung, `(height, width)`."""
        return self._within_lung(side) & (self.y > self.dome[side]) & (self.y < self._dome(side, 0.0))

    @abstractmethod
    def _within_lung(self, side: int) -> Mask: ...

    @abstractmethod
    def heart_mask(self) -> Mask:
        """The heart below the great vessels, `(height, width)`."""

    @abstractmethod
    def spot(self, side: int, lateral: float, depth: float, v: float) -> Points:
        """Pixel (x, y) of a point in a lung: `lateral` 0 at the mediastinum, 1 at the wall; `depth` 0 front, 1 back."""

    @abstractmethod
    def across(self, side: int) -> Floats:
        """For every pixel, 0 at the midline (lateral view: front) to 1 at the wall (back), `(height, width)`."""


@dataclass
class Scene:
    """A radiograph in the making: the normal chest that findings are planted in."""

    frame: Frame
    lungs: dict[int, Floats]
    """Side -> aerated lung along each ray, `(height, width)` in cm."""
    extra: Floats
    """Added by findings, `(height, width)` in cm of water."""
    vascular: Floats
    """Vessels and parenchymal texture, `(height, width)` in cm of water; absent where there is no lung."""

    def fill(self, side: int, share: Floats, threshold: float = 0.25) -> Mask:
        """Replaces a share, in [0, 1], of a lung's air by fluid or tissue; returns where it is a fair part of it."""
        self.extra += np.float32(AIR_CONTRAST) * self.lungs[side] * share
        return (share > threshold) & (self.lungs[side] > 0.8)


def either_side(rng: Generator) -> int:
    """Draws a side."""
    return RIGHT if rng.random() < 0.5 else LEFT
