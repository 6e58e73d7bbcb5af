"""The normal frontal chest of a phantom: thickness that X-rays meet on their way, in centimetres of water.

A radiograph shows the logarithm of the transmitted intensity, so tissues that lie one behind the other add up: each is
drawn on its own as a map of water-equivalent thickness, and overlap (ribs through the heart, vessels under the
diaphragm) comes by itself.

Proportions were set by eye and by textbook rules: cardiothoracic ratio below .5 in PA, the right hemidiaphragm higher
by half an interspace, the carina at T5, an AP view that magnifies the heart and shows less inspiration
(Goodman, *Felson's Principles of Chest Roentgenology*, 4th edition, chapters 1 to 4).
"""

import numpy as np

from chexpert_hf.phantoms.drawing import Floats, Generator, Points, curve, smooth_step
from chexpert_hf.phantoms.frame import LEFT, RIGHT, Frame, Mask, Patient, Shape

_WALL = (
    (0.0, 0.36), (0.02, 0.48), (0.06, 0.6), (0.14, 0.735), (0.27, 0.85), (0.45, 0.945), (0.65, 0.99), (0.85, 1.0),
    (1.0, 0.985), (1.3, 0.95),
)  # fmt: skip
_MEDIAL = ((0.0, 0.34), (0.03, 0.2), (0.08, 0.13), (0.2, 0.07), (1.3, 0.05))


def wall_at(v: float | Points) -> Points:
    """Distance of the inner chest wall from the midline at `v`, in half breadths."""
    positions, values = zip(*_WALL, strict=True)
    return np.asarray(np.interp(v, positions, values))


class FrontalFrame(Frame):
    """Outlines of a frontal radiograph."""

    def __init__(self, patient: Patient, rng: Generator, projection: str, change: Shape) -> None:
        super().__init__(patient, rng, projection, change)
        self.centre = self.shape[1] * (0.5 + self.shift[0])
        self.midline = self._midline(self.v).astype(np.float32)
        self.wall = {side: self._border(side, _WALL, 0.9) for side in (RIGHT, LEFT)}
        self.medial = {side: self._border(side, _MEDIAL, 0.1) for side in (RIGHT, LEFT)}
        self.silhouette = self._silhouette(change)

    def _extent(self, height: int, width: int) -> tuple[float, float, float]:
        half = min(0.385 * width, 0.405 * height) * self.patient.breadth * self.zoom
        lung_height = 2 * half * self.patient.lung_height * self.inspiration * 0.97
        return half, lung_height, height * (0.115 + self.shift[1]) + max(0.0, 0.68 * height - lung_height) * 0.3

    def place(self, u: float | Points, v: float | Points) -> Points:
        u, v = np.broadcast_arrays(np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64))
        x = self._midline(v) + u * self.half
        return np.stack([x, self.top + v * self.height + self.tilt * u * self.half], axis=-1)

    def spot(self, side: int, lateral: float, depth: float, v: float) -> Points:
        return self.place(side * (0.2 + (float(wall_at(v)) - 0.2) * lateral), v)

    def across(self, side: int) -> Floats:
        inner, outer = self.medial[side][:, None], self.wall[side][:, None]
        return np.clip((self.x - inner) / (outer - inner), 0, 1)

    def _midline(self, v: Points | Floats) -> Points:
        bend = self.patient.scoliosis * np.sin(2 * np.pi * (np.asarray(v) - 0.1)) * self.half
        return self.centre - self.tilt * (np.asarray(v) - 0.5) * self.height + bend

    def _border(self, side: int, knots: tuple[tuple[float, float], ...], u: float) -> Floats:
        v = self.v - np.float32(self.tilt * side * u * self.half / self.height)
        widening = 1 + 0.5 * side * self.rotation
        return self.midline + np.float32(side * self.half * widening) * curve(v, knots, 2.5)

    def _dome(self, side: int, raised: float) -> Floats:
        u = side * (self.x[0] - self._midline(np.ones(1))) / self.half
        lower = self.patient.left_dome if side == LEFT else 0.0
        base = 0.0 if self.inspiration > 0.93 else -0.02
        knots = (
            (0.0, 1.07), (0.15, 1.045), (0.3, 1.01), (0.48, 1.0), (0.66, 1.015), (0.82, 1.055), (0.92, 1.1),
            (1.02, 1.16),
        )  # fmt: skip
        dome = curve(u if side == LEFT else u[::-1], knots, 6)
        dome = (dome if side == LEFT else dome[::-1]) + lower + base
        lift = raised * np.exp(-(((u - 0.45) / 0.45) ** 2))
        return (self.top + (dome - lift) * self.height + self.tilt * side * 0.5 * self.half).astype(np.float32)

    def _silhouette(self, change: Shape) -> dict[int, Floats]:
        magnified = 1.1 if self.is_ap else 1.0
        left = self.patient.heart_left * magnified * change.heart_left
        right = self.patient.heart_right * magnified * change.heart_right
        knob = self.patient.aortic_knob * (1.04 if magnified > 1 else 1.0)
        wide, flare = change.mediastinum, 1 + 0.7 * (change.mediastinum - 1)
        left_knots = (
            (-0.3, 0.24), (-0.02, 0.17 * flare), (0.1, 0.155 * flare), (0.19, 0.85 * knob * flare),
            (0.25, knob * flare), (0.31, 0.97 * knob * flare), (0.37, 0.165 * (0.4 + 0.6 * wide)),
            (0.44, max(0.33 * left + 0.035, 0.13 * wide)),
            (0.54, 0.55 * left), (0.66, 0.79 * left), (0.78, 0.95 * left), (0.88, left),
            (0.98, 0.96 * left), (1.1, 0.72 * left),
        )  # fmt: skip
        right_knots = (
            (-0.3, 0.24), (-0.02, 0.165 * flare), (0.15, 0.15 * wide), (0.35, 0.16 * wide), (0.46, 0.16 * flare),
            (0.56, max(0.64 * right, 0.15)), (0.68, 0.9 * right), (0.8, right), (0.92, 0.92 * right),
            (1.05, 0.7 * right),
        )  # fmt: skip
        turn = np.float32(self.rotation * self.half)
        smoothing = 0.022 * self.height
        return {
            LEFT: self.midline + turn + np.float32(self.half) * curve(self.v, left_knots, smoothing),
            RIGHT: self.midline + turn - np.float32(self.half) * curve(self.v, right_knots, smoothing),
        }

    def _within_lung(self, side: int) -> Mask:
        return (side * self.x > side * self.medial[side][:, None]) & (side * self.x < side * self.wall[side][:, None])

    def heart_mask(self) -> Mask:
        floor = self.top + self.height * 1.06 + 0.05 * self.height * (self.x - self.midline.mean()) / self.half
        rows = (self.v[:, None] > 0.44) & (self.y < floor)
        return rows & (self.x > self.silhouette[RIGHT][:, None]) & (self.x < self.silhouette[LEFT][:, None])

    def upper_mediastinum_mask(self) -> Mask:
        """The mediastinum above the heart, `(height, width)`."""
        rows = (self.v[:, None] > 0.04) & (self.v[:, None] < 0.44)
        return rows & (self.x > self.silhouette[RIGHT][:, None]) & (self.x < self.silhouette[LEFT][:, None])


def lung_depths(frame: FrontalFrame) -> dict[int, Floats]:
    """Aerated lung along each ray, `(height, width)` in cm per side, in front of and behind the heart included."""
    by_row = curve(frame.v, ((-0.02, 0.0), (0.02, 4.5), (0.12, 9.5), (0.35, 13.0), (0.8, 13.5), (1.2, 11.5)), 3)
    right, left = frame.silhouette[RIGHT][:, None], frame.silhouette[LEFT][:, None]
    chord = np.maximum((frame.x - right) * (left - frame.x), 0) * (2 / (left - right)) ** 2
    taken = curve(frame.v, ((0.0, 0.8), (0.3, 0.85), (0.6, 0.93)), 4)[:, None]
    beside_heart = 1 - np.sqrt(chord) * taken
    depths = {}
    for side in (RIGHT, LEFT):
        s = frame.across(side)
        profile = np.sqrt(np.sqrt(4 * s * (1 - s) * (0.65 + 0.35 * s)))
        below = frame.y - frame.dome[side]
        # The posterior recess reaches behind the dome: a faint darkening below the diaphragm.
        floor = np.clip(0.5 - below / 1.6, 0, 1) * (1 - 0.22 * np.exp(np.minimum(below, 0) / 22))
        recess = 0.13 * np.exp(-np.maximum(below, 0) / 16)
        depths[side] = by_row[:, None] * profile * np.maximum(floor, recess) * beside_heart
    return depths


def body(frame: FrontalFrame, rng: Generator) -> Floats:
    """Soft tissue of trunk, neck, shoulders, arms and breasts, `(height, width)` in cm, as if the lungs were solid."""
    patient, half = frame.patient, frame.half
    depth, flank, neck = 19.5 + 5.5 * patient.fat, 1.14 + 0.18 * patient.fat, 0.42 + 0.12 * patient.fat
    outline = (
        (-0.6, neck * 1.1), (-0.22, neck), (-0.15, neck + 0.07), (-0.09, 0.8), (-0.03, 1.2), (0.05, 1.5), (0.2, 1.5),
        (0.42, 1.28), (0.62, flank), (1.0, flank), (1.4, flank + 0.05),
    )  # fmt: skip
    halfwidth = curve(frame.v, outline, 5) * np.float32(half)
    thick = curve(frame.v, ((-0.25, 13.0), (-0.12, 14.0), (0.05, 0.82 * depth), (0.35, depth), (1.5, depth)), 8)
    u = (frame.x - frame.midline[:, None]) / halfwidth[:, None]
    u2 = np.minimum(u * u, 1)
    trunk = thick[:, None] * np.sqrt(1 - u2 * (0.45 + 0.55 * u2))
    lateral_end = 1.87 if frame.is_ap else 2.37
    for side in (RIGHT, LEFT):  # arms
        centre = curve(frame.v, ((0.0, 1.3), (0.1, 1.42), (1.3, lateral_end)), 4) * side * half + frame.midline
        chord = np.maximum(1 - ((frame.x - centre[:, None]) / ((0.17 + 0.07 * patient.fat) * half)) ** 2, 0)
        trunk = np.maximum(trunk, np.sqrt(chord) * (9.0 * smooth_step(frame.v, -0.02, 0.14)[:, None]))
    trunk += 1.2 * smooth_step(frame.y, frame.top + 0.95 * frame.height, frame.top + 1.35 * frame.height) * (trunk > 5)
    if patient.sex == "Female":
        size = 0.6 + 0.6 * patient.fat + 0.15 * rng.random()
        level = 0.72 + 0.12 * patient.fat + 0.05 * rng.random()
        rx, ry = 0.46 * half * (0.8 + 0.25 * size), 0.28 * frame.height * (0.75 + 0.3 * size)
        for side in (RIGHT, LEFT):  # breasts
            cx, cy = (float(value) for value in frame.place(side * 0.58, level))
            dy = frame.y - cy
            # Tissue hangs down: the lower edge is a crisp crescent, the upper fades out.
            dy = np.where(dy > 0, dy / ry, dy / (2.2 * ry))
            inside = np.maximum(1 - ((frame.x - cx) / rx) ** 2 - dy * dy, 0)
            trunk += 2.6 * size * np.where(dy > 0, np.sqrt(inside), inside)
    return trunk
