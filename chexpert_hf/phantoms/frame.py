"""Patients, the geometry of the chest in one radiograph, and the scene that findings are added to.

Positions are given as `(u, v)`. In frontal views `u` is in half breadths of the thorax from the midline, positive
towards the patient's left (the image's right); in lateral views it is 0 behind the breast bone and 1 at the back of the
ribs. `v` is in lung heights, 0 at the apex, 1 at the right dome of the diaphragm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.phantoms.drawing import Floats, Generator, Points, curve, smooth_path

Mask = NDArray[np.bool_]

RIGHT, LEFT = SIDES = (-1, 1)  # sides of the patient, by the sign of `u`
AIR_CONTRAST = 0.74  # cm of water that a cm of aerated lung, with about a quarter of water's density, takes away


class Patient:
    """A patient's sex, age and build, chosen at random with the seed `key`."""

    def __init__(self, key: tuple[int, ...]) -> None:
        rng = np.random.default_rng([*key, 0])
        self.sex = "Female" if rng.random() < 0.45 else "Male"
        self.age = int(np.clip(rng.normal(60, 17), 18, 90))
        self.fat = float(rng.beta(1.6, 2.2))  # 0 is thin, 1 is obese
        self.breadth = float(rng.uniform(0.93, 1.04)) * (0.97 if self.sex == "Female" else 1.0)  # 1: average
        self.lung_height = float(rng.uniform(0.84, 1.0))  # apex to right dome, in breadths of the thorax
        # Extent of the heart to the patient's left and right of the midline, in half breadths.
        self.heart_left = float(rng.uniform(0.52, 0.62))
        self.heart_right = float(rng.uniform(0.22, 0.29))
        self.aortic_knob = float(rng.uniform(0.17, 0.21) + 0.05 * (self.age > 60) * rng.random())
        self.scoliosis = float(rng.normal(0, 0.012))
        self.rib_slope = float(rng.uniform(0.8, 1.2))
        self.left_dome = float(rng.uniform(0.02, 0.075))  # how much lower than the right one, in lung heights
        self.vessel_seed = int(rng.integers(2**31))


@dataclass
class Shape:
    """How findings change the outlines of the chest: factors of the normal sizes, and the rise of hemidiaphragms."""

    heart_left: float = 1.0
    heart_right: float = 1.0
    mediastinum: float = 1.0
    raised: dict[int, float] = field(default_factory=dict)  # side -> rise of the hemidiaphragm, in lung heights


class _Frame:
    """Geometry of the chest in one radiograph: outlines in pixels, and the conversion of positions in it to pixels.

    A position is `(u, v)`. `u` runs across the chest: in frontal views it is 0 at the midline and 1 at the left chest
    wall, in lateral views 0 at the front and 1 at the back. `v` is 0 at the top of the lungs and 1 at the diaphragm.
    `rng` is for the patient's posture and the size of the image, which are random; `change` is a result of
    `findings.draw_shape`.
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
        self.bend, self.slope = (patient.scoliosis, self.tilt) if self.is_frontal else (0.0, 0.0)

    def _lay_out(self, half: float, height: float, top: float, origin: float, unit: float) -> None:
        """Set the place and size of the chest in the image, in pixels.

        `half` is half the breadth of the thorax. `height` is the height of the lungs, and `top` the row of their top.
        In frontal views, `origin` is the column of the midline, and `unit` the distance from there to the chest wall.
        In lateral views, `origin` is the column of the chest's front, and `unit` the distance from there to its back.
        """
        self.half, self.height, self.top, self.origin, self.unit = half, height, top, origin, unit
        self.v: Floats = ((np.arange(self.shape[0]) - self.top) / self.height).astype(np.float32)
        self.x = np.arange(self.shape[1], dtype=np.float32)[None, :]
        self.y = np.arange(self.shape[0], dtype=np.float32)[:, None]

    def place(self, u: float | Points, v: float | Points) -> Points:
        """Return positions in the chest as pixels, `(..., 2)` as x, y.

        In frontal views `u` is 0 at the midline and 1 at the left chest wall; in lateral views it is 0 at the front
        and 1 at the back. `v` is 0 at the top of the lungs and 1 at the diaphragm.
        """
        u, v = np.broadcast_arrays(np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64))
        rows = self.top + v * self.height + self.slope * u * self.half
        return np.stack([self._axis(v) + u * self.unit, rows], axis=-1)

    def trace(self, nodes: Sequence[tuple[float, float]], side: int = LEFT, shift: Sequence[float] = (0, 0)) -> Points:
        """Return the pixels of an outline's corners, `(n, 2)` as x, y.

        `nodes` are the corners as positions (u, v); see `place`. With side RIGHT they are mirrored at the midline: u
        changes its sign. Then `shift`, how far to move in u and in v, is added to each.
        """
        u, v = np.array(nodes).T
        return self.place(side * u + shift[0], v + shift[1])

    def path(self, nodes: Sequence[tuple[float, float]], side: int = LEFT, shift: Sequence[float] = (0, 0)) -> Points:
        """Return a smooth line, 24 points (x, y) in pixels, close to the corners of an outline.

        `nodes` are the corners as positions (u, v) in the chest; see `place`. With side RIGHT they are mirrored at the
        midline. Then `shift`, how far to move in u and in v, is added to each.
        """
        return smooth_path(self.trace(nodes, side, shift))

    def _axis(self, v: Points | Floats) -> Points:
        bend = self.bend * np.sin(2 * np.pi * (np.asarray(v) - 0.1)) * self.half
        return np.asarray(self.origin - self.tilt * (np.asarray(v) - 0.5) * self.height + bend)


_WALL = (
    (0.0, 0.36), (0.02, 0.48), (0.06, 0.6), (0.14, 0.735), (0.27, 0.85), (0.45, 0.945), (0.65, 0.99), (0.85, 1.0),
    (1.0, 0.985), (1.3, 0.95),
)  # fmt: skip
_DOME = (
    (0.0, 1.07), (0.15, 1.045), (0.3, 1.01), (0.48, 1.0), (0.66, 1.015), (0.82, 1.055), (0.92, 1.1), (1.02, 1.16)
)  # fmt: skip
_MEDIAL = ((0.0, 0.34), (0.03, 0.2), (0.08, 0.13), (0.2, 0.07), (1.3, 0.05))


def wall_at(v: float | Points) -> Points:
    """Return how far the inner chest wall is from the midline, in units of half the chest's breadth.

    `v` is the height of a point, 0 at the top of the lungs and 1 at their bottom.
    """
    positions, values = zip(*_WALL, strict=True)
    return np.asarray(np.interp(v, positions, values))


class FrontalFrame(_Frame):
    """Geometry of the chest in a frontal radiograph."""

    def __init__(self, patient: Patient, rng: Generator, projection: str, change: Shape) -> None:
        super().__init__(patient, rng, projection, change)
        height, width = self.shape
        half = min(0.385 * width, 0.405 * height) * patient.breadth * self.zoom
        lungs = 2 * half * patient.lung_height * self.inspiration * 0.97
        top = height * (0.115 + self.shift[1]) + max(0.0, 0.68 * height - lungs) * 0.3
        self._lay_out(half, lungs, top, width * (0.5 + self.shift[0]), half)
        self.midline = self._axis(self.v).astype(np.float32)
        self.wall = {side: self._border(side, _WALL, 0.9) for side in SIDES}
        self.medial = {side: self._border(side, _MEDIAL, 0.1) for side in SIDES}
        self.dome = {side: self._dome(side, change.raised.get(side, 0.0)) for side in SIDES}
        self.silhouette = self._silhouette()

    def _border(self, side: int, knots: tuple[tuple[float, float], ...], u: float) -> Floats:
        v = self.v - np.float32(self.tilt * side * u * self.half / self.height)
        return self.midline + np.float32(side * self.half * (1 + 0.5 * side * self.rotation)) * curve(v, knots, 2.5)

    def _dome(self, side: int, raised: float) -> Floats:
        u = side * (self.x[0] - self._axis(np.ones(1))) / self.half
        lower = self.patient.left_dome if side == LEFT else 0.0
        base = 0.0 if self.inspiration > 0.93 else -0.02
        dome = curve(u[::side], _DOME, 6)[::side] + lower + base
        lift = raised * np.exp(-(((u - 0.45) / 0.45) ** 2))
        return (self.top + (dome - lift) * self.height + self.tilt * side * 0.5 * self.half).astype(np.float32)

    def _silhouette(self) -> dict[int, Floats]:
        heart, knob = (1.1, 1.04 * self.patient.aortic_knob) if self.is_ap else (1.0, self.patient.aortic_knob)
        left = self.patient.heart_left * heart * self.change.heart_left
        right = self.patient.heart_right * heart * self.change.heart_right
        wide, flare = self.change.mediastinum, 1 + 0.7 * (self.change.mediastinum - 1)
        left_knots = (
            (-0.3, 0.24), (-0.02, 0.17 * flare), (0.1, 0.155 * flare), (0.19, 0.85 * knob * flare),
            (0.25, knob * flare), (0.31, 0.97 * knob * flare), (0.37, 0.165 * (0.4 + 0.6 * wide)),
            (0.44, max(0.33 * left + 0.035, 0.13 * wide)), (0.54, 0.55 * left), (0.66, 0.79 * left),
            (0.78, 0.95 * left), (0.88, left), (0.98, 0.96 * left), (1.1, 0.72 * left),
        )  # fmt: skip
        right_knots = (
            (-0.3, 0.24), (-0.02, 0.165 * flare), (0.15, 0.15 * wide), (0.35, 0.16 * wide), (0.46, 0.16 * flare),
            (0.56, max(0.64 * right, 0.15)), (0.68, 0.9 * right), (0.8, right), (0.92, 0.92 * right),
            (1.05, 0.7 * right),
        )  # fmt: skip
        middle, half = self.midline + np.float32(self.rotation * self.half), np.float32(self.half)
        edges = [curve(self.v, knots, 0.022 * self.height) for knots in (left_knots, right_knots)]
        return {LEFT: middle + half * edges[0], RIGHT: middle - half * edges[1]}

    def spot(self, side: int, lateral: float, depth: float, v: float) -> Points:
        """Return a point in a lung as a pixel (x, y).

        `side` is the patient's RIGHT (-1) or LEFT (1). `lateral` is 0 at the mediastinum and 1 at the chest wall;
        `depth` is 0 in front and 1 at the back; `v` is 0 at the top of the lungs and 1 at the diaphragm. Lateral views
        ignore `side` and `lateral`; frontal views ignore `depth`.
        """
        return self.place(side * (0.2 + (float(wall_at(v)) - 0.2) * lateral), v)

    def across(self, side: int) -> Floats:
        """Return how far across a lung each pixel is, `(height, width)` in [0, 1].

        In frontal views 0 is the inner edge and 1 the chest wall; in lateral views 0 is the front and 1 the back.
        """
        inner, outer = self.medial[side][:, None], self.wall[side][:, None]
        return np.clip((self.x - inner) / (outer - inner), 0, 1)

    def lost_lung(self, side: int) -> Mask:
        """Return the mask of the region that was lung before the hemidiaphragm was raised, `(height, width)`."""
        x, inner, outer = side * self.x, side * self.medial[side][:, None], side * self.wall[side][:, None]
        return (x > inner) & (x < outer) & (self.y > self.dome[side]) & (self.y < self._dome(side, 0.0))

    def heart_mask(self) -> Mask:
        """Return the mask of the heart below the great vessels, `(height, width)`."""
        floor = self.top + self.height * 1.06 + 0.05 * self.height * (self.x - self.midline.mean()) / self.half
        return self._mediastinum() & (self.v[:, None] > 0.44) & (self.y < floor)

    def upper_mediastinum_mask(self) -> Mask:
        """Return the mask of the mediastinum above the heart, `(height, width)`."""
        return self._mediastinum() & (self.v[:, None] > 0.04) & (self.v[:, None] < 0.44)

    def _mediastinum(self) -> Mask:
        return (self.x > self.silhouette[RIGHT][:, None]) & (self.x < self.silhouette[LEFT][:, None])


class LateralFrame(_Frame):
    """Geometry of the chest in a lateral radiograph."""

    def __init__(self, patient: Patient, rng: Generator, projection: str, change: Shape) -> None:
        super().__init__(patient, rng, projection, change)
        height, width = self.shape
        half = 0.385 * width * patient.breadth * self.zoom
        lungs = min(2 * half * patient.lung_height * 0.97, 0.72 * height)
        depth = 1.58 * half * (1 + 0.1 * patient.fat)
        front = width * (0.47 + self.shift[0]) - 0.5 * depth
        self._lay_out(half, lungs, height * (0.13 + self.shift[1]), front, depth)
        self.w: Floats = ((self.x - self._axis(self.v)[:, None]) / depth).astype(np.float32)
        self.dome = {side: self._dome(side, change.raised.get(side, 0.0)) for side in SIDES}

    def _dome(self, side: int, raised: float) -> Floats:
        knots = ((0.0, 1.02), (0.12, 0.96), (0.3, 0.92), (0.5, 0.95), (0.7, 1.05), (0.85, 1.17), (1.0, 1.3))
        lower = self.patient.left_dome if side == LEFT else 0.0
        w = (self.x[0] - self.origin) / self.unit
        lift = raised * np.exp(-(((w - 0.4) / 0.4) ** 2))
        return (self.top + (curve(w, knots, 6) + lower - lift) * self.height).astype(np.float32)

    def spot(self, side: int, lateral: float, depth: float, v: float) -> Points:
        return self.place(0.12 + 0.72 * depth, v)

    def across(self, side: int) -> Floats:
        return np.clip(self.w, 0, 1)

    def lost_lung(self, side: int) -> Mask:
        within = (self.w > 0.03) & (self.w < 0.95)
        return within & (self.y > self.dome[side]) & (self.y < self._dome(side, 0.0))

    def heart_mask(self) -> Mask:
        floor = np.maximum(self.dome[RIGHT], self.dome[LEFT])
        return (self.heart_chord() > 0) & (self.w > 0.02) & (self.y < floor)

    def heart_chord(self) -> Floats:
        """Return the heart's squared thickness along each ray, `(height, width)`: 1 where it is thickest, 0 outside."""
        size = 0.5 * (self.change.heart_left + self.change.heart_right) - 1
        dw, dv = self.w - (0.27 + 0.1 * size), (self.v[:, None] - (0.79 - 0.07 * size)) * (self.height / self.unit)
        long, short = 0.36 * (1 + 0.42 * size), 0.23 * (1 + 0.55 * size) * (0.8 + 0.35 * self.patient.heart_left)
        along, across = (dw * 0.62 - dv * 0.78) / long, (dw * 0.78 + dv * 0.62) / short
        # Broader at the apex than at the root of the vessels.
        return np.clip(1 - along**2 - (across * (1 + 0.3 * along)) ** 2, 0, 1)


Frame = FrontalFrame | LateralFrame


@dataclass
class Scene:
    """The lungs of a phantom, their vessels, and the thickness that findings have added so far."""

    frame: Frame
    lungs: dict[int, Floats]  # side -> aerated lung along each ray, (height, width) in cm
    extra: Floats  # added by findings, (height, width) in cm of water
    vascular: Floats  # vessels and texture of the lungs, (height, width) in cm of water; 0 outside them

    def fill(self, side: int, share: Floats, threshold: float = 0.25) -> Mask:
        """Replace a share, `(height, width)` in [0, 1], of a lung's air by fluid; return the finding's mask.

        The mask is where `share` exceeds `threshold` and rays pass through more than .8 cm of lung.
        """
        self.extra += np.float32(AIR_CONTRAST) * self.lungs[side] * share
        return (share > threshold) & (self.lungs[side] > 0.8)


def either_side(rng: Generator) -> int:
    """Return RIGHT or LEFT at random."""
    return RIGHT if rng.random() < 0.5 else LEFT
