"""The normal frontal chest of a phantom: thickness that X-rays meet on their way, in centimetres of water.

A radiograph shows the logarithm of the transmitted intensity, so tissues that lie one behind the other add up: each is
drawn on its own as a map of water-equivalent thickness, and overlap (ribs through the heart, vessels under the
diaphragm) comes by itself.

Proportions were set by eye and by textbook rules: cardiothoracic ratio below .5 in PA, the right hemidiaphragm higher
by half an interspace, the carina at T5, an AP view that magnifies the heart and shows less inspiration
(Goodman, *Felson's Principles of Chest Roentgenology*, 4th edition, chapters 1 to 4).
"""

import numpy as np

from chexpert_hf.phantoms import skeleton
from chexpert_hf.phantoms.drawing import Floats, Generator, curve, smooth_step
from chexpert_hf.phantoms.frame import LEFT, RIGHT, FrontalFrame


def frontal_chest(
    frame: FrontalFrame, rng: Generator, engorged: float, breaks: tuple[skeleton.Break, ...]
) -> tuple[dict[int, Floats], Floats, Floats]:
    """Aerated lung per side, vessels, and everything else as if the lungs were solid, each `(height, width)` in cm."""
    solid = _body(frame, rng) + skeleton.ribs(frame, breaks) + skeleton.girdle(frame) + skeleton.spine(frame)
    return _lung_depths(frame), skeleton.vessels(frame, engorged), solid - skeleton.gas(frame, rng)


def _lung_depths(frame: FrontalFrame) -> dict[int, Floats]:
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


def _body(frame: FrontalFrame, rng: Generator) -> Floats:
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
