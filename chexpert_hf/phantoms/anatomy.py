"""Draws the normal chest of a phantom: thickness along each ray of X-rays, in centimetres of water.

A radiograph shows the logarithm of the transmitted intensity, so tissues one behind the other add up: each is drawn on
its own as a map of water-equivalent thickness. In lateral views the breast bone is on the image's left.

Proportions were set by eye and by textbook rules: cardiothoracic ratio below .5 in PA, the right hemidiaphragm higher
by half an interspace, the carina at T5, an AP view that magnifies the heart and shows less inspiration (Goodman,
*Felson's Principles of Chest Roentgenology*, 4th edition, chapters 1 to 4).
"""

import numpy as np

from chexpert_hf.phantoms import skeleton
from chexpert_hf.phantoms.drawing import Floats, Generator, Layer, cloud, curve, smooth_step
from chexpert_hf.phantoms.frame import AIR_CONTRAST, LEFT, RIGHT, SIDES, Frame, FrontalFrame, LateralFrame, Scene


def normal_chest(
    frame: Frame, rng: Generator, engorged: float, breaks: tuple[skeleton.Break, ...]
) -> tuple[Scene, Floats]:
    """Return the lungs and their vessels as a `Scene`, and the thickness of the chest without these vessels.

    The thickness, `(height, width)` in cm of water, is that of a body without air, plus the bones, minus the air in
    lungs, airways and bowel. `engorged` multiplies the width of lung vessels (1 is normal); `breaks` are fractures to
    draw into the ribs of a frontal view.
    """
    if isinstance(frame, FrontalFrame):
        solid = _body(frame, rng) + skeleton.ribs(frame, breaks) + skeleton.girdle(frame) + skeleton.spine(frame)
        solid = solid - skeleton.gas(frame, rng)
        lungs, vessels = _lung_depths(frame), skeleton.vessels(frame, engorged)
    else:
        solid = _lateral_body(frame) + _lateral_bones(frame) - _lateral_gas(frame, rng)
        lungs, vessels = _lateral_lungs(frame), _lateral_vessels(frame, engorged)
    air = sum(lungs.values(), np.float32(0))
    vascular = vessels * np.minimum(air / 8, 1) + np.float32(0.022) * cloud(rng, frame.shape, 8) * air
    return Scene(frame, lungs, np.zeros(frame.shape, np.float32), vascular), solid - np.float32(AIR_CONTRAST) * air


def _lung_depths(frame: FrontalFrame) -> dict[int, Floats]:
    """Return, for each side of the frontal chest, how many cm of aerated lung the ray to each pixel passes through.

    The keys are RIGHT and LEFT; the arrays are `(height, width)`. Where the heart is, the values are smaller.
    """
    by_row = curve(frame.v, ((-0.02, 0.0), (0.02, 4.5), (0.12, 9.5), (0.35, 13.0), (0.8, 13.5), (1.2, 11.5)), 3)
    right, left = frame.silhouette[RIGHT][:, None], frame.silhouette[LEFT][:, None]
    chord = np.maximum((frame.x - right) * (left - frame.x), 0) * (2 / (left - right)) ** 2
    taken = curve(frame.v, ((0.0, 0.8), (0.3, 0.85), (0.6, 0.93)), 4)[:, None]
    beside_heart = 1 - np.sqrt(chord) * taken
    depths = {}
    for side in SIDES:
        s = frame.across(side)
        profile = np.sqrt(np.sqrt(4 * s * (1 - s) * (0.65 + 0.35 * s)))
        below = frame.y - frame.dome[side]
        # The posterior recess reaches behind the dome: a faint darkening below the diaphragm.
        floor = np.clip(0.5 - below / 1.6, 0, 1) * (1 - 0.22 * np.exp(np.minimum(below, 0) / 22))
        recess = 0.13 * np.exp(-np.maximum(below, 0) / 16)
        depths[side] = by_row[:, None] * profile * np.maximum(floor, recess) * beside_heart
    return depths


def _body(frame: FrontalFrame, rng: Generator) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of the frontal body as if the lungs were solid."""
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
    for side in SIDES:  # arms
        centre = curve(frame.v, ((0.0, 1.3), (0.1, 1.42), (1.3, lateral_end)), 4) * side * half + frame.midline
        chord = np.maximum(1 - ((frame.x - centre[:, None]) / ((0.17 + 0.07 * patient.fat) * half)) ** 2, 0)
        trunk = np.maximum(trunk, np.sqrt(chord) * (9.0 * smooth_step(frame.v, -0.02, 0.14)[:, None]))
    trunk += 1.2 * smooth_step(frame.y, frame.top + 0.95 * frame.height, frame.top + 1.35 * frame.height) * (trunk > 5)
    if patient.sex == "Female":
        size = 0.6 + 0.6 * patient.fat + 0.15 * rng.random()
        level = 0.72 + 0.12 * patient.fat + 0.05 * rng.random()
        rx, ry = 0.46 * half * (0.8 + 0.25 * size), 0.28 * frame.height * (0.75 + 0.3 * size)
        for side in SIDES:  # breasts
            cx, cy = (float(value) for value in frame.place(side * 0.58, level))
            dy = frame.y - cy
            # Tissue hangs down: the lower edge is a crisp crescent, the upper fades out.
            dy = np.where(dy > 0, dy / ry, dy / (2.2 * ry))
            inside = np.maximum(1 - ((frame.x - cx) / rx) ** 2 - dy * dy, 0)
            trunk += 2.6 * size * np.where(dy > 0, np.sqrt(inside), inside)
    return trunk


_FRONT = ((-0.02, 0.5), (0.02, 0.4), (0.1, 0.26), (0.25, 0.12), (0.45, 0.05), (0.7, 0.02), (1.0, 0.03), (1.3, 0.08))
_BACK = ((-0.02, 0.52), (0.02, 0.7), (0.1, 0.83), (0.25, 0.94), (0.5, 1.0), (0.8, 1.0), (1.1, 0.96), (1.3, 0.93))


def _lateral_lungs(frame: LateralFrame) -> dict[int, Floats]:
    """Return, for each side of the lateral chest, how many cm of aerated lung the ray to each pixel passes through.

    The keys are RIGHT and LEFT; the arrays are `(height, width)`.
    """
    front, back = curve(frame.v, _FRONT, 3)[:, None], curve(frame.v, _BACK, 3)[:, None]
    s = np.clip((frame.w - front) / np.maximum(back - front, 0.02), 0, 1)
    profile = np.sqrt(np.sqrt(4 * s * (1 - s)))
    by_row = curve(frame.v, ((-0.02, 0.0), (0.03, 3.0), (0.15, 6.5), (0.4, 9.0), (0.9, 10.0), (1.3, 10.0)), 3)
    arch = 0.3 * smooth_step(np.abs(frame.w - 0.47), 0.3, 0.05) * smooth_step(frame.v, 0.66, 0.2)[:, None]
    free = 1 - np.maximum(0.7 * np.sqrt(frame.heart_chord()), arch).astype(np.float32)
    above = {side: np.clip((frame.dome[side][None, :] - frame.y) / 1.6 + 0.5, 0, 1) for side in SIDES}
    return {side: (by_row[:, None] * profile * above[side] * free).astype(np.float32) for side in SIDES}


def _lateral_body(frame: LateralFrame) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of the lateral body as if the lungs were solid."""
    fat = frame.patient.fat
    fronts = ((-0.35, 0.3), (-0.2, 0.3), (-0.05, 0.1), (0.2, -0.08 - 0.1 * fat), (1.0, -0.1 - 0.2 * fat))
    backs = ((-0.35, 0.85), (-0.2, 0.9), (-0.02, 1.08), (0.2, 1.16 + 0.1 * fat), (1.3, 1.14 + 0.1 * fat))
    front, back = curve(frame.v, fronts, 6), curve(frame.v, backs, 6)
    thick = curve(frame.v, ((-0.3, 13.0), (-0.12, 16.0), (0.0, 20.0), (0.2, 24.0), (0.5, 26.0), (1.4, 26.0)), 6)
    s = np.clip((frame.w - front[:, None]) / (back - front)[:, None], 0, 1)
    trunk = (thick + 3 * fat)[:, None] * np.sqrt(np.sqrt(4 * s * (1 - s)) * 0.55 + 0.45 * 4 * s * (1 - s))
    arm = Layer(frame.shape)
    arm.polygon(frame.trace([(0.15, 0.1), (-0.6, -0.5), (0.6, -0.5), (0.85, 0.12)]), 1.0)
    trunk += 2.0 * arm.array(8) * (trunk > 1)
    if frame.patient.sex == "Female":
        centre = frame.place(0.02, 0.72)
        r = ((frame.x - centre[0]) / (0.17 * frame.unit)) ** 2 + ((frame.y - centre[1]) / (0.2 * frame.height)) ** 2
        trunk = np.maximum(trunk, np.float32(13.0) * np.sqrt(np.clip(1 - r, 0, 1)))
    return trunk.astype(np.float32)


def _lateral_bones(frame: LateralFrame) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of spine, breast bone, ribs and shoulder blades."""
    bones, faint = Layer(frame.shape), Layer(frame.shape)
    corners = [[-1, -0.8], [-0.9, -1], [0.9, -1], [1, -0.8], [0.9, 0], [1, 0.8], [0.9, 1], [-0.9, 1], [-1, 0.8]]
    vertebra = np.array(corners)
    process = np.array([[1.1, -0.2], [1.7, -0.1], [2.6, 1.3], [2.3, 1.6], [1.6, 0.8], [1.1, 0.5]])
    for number in range(16):
        v = -0.15 + 0.092 * number
        centre = frame.place(0.76 + 0.1 * float(np.sin(np.pi * np.clip((v + 0.2) / 1.35, 0, 1.2))), v)
        half = np.array([(0.056 + 0.0014 * number) * frame.unit, 0.038 * frame.height])
        lean = 0.35 * np.cos(np.pi * (v + 0.15) / 1.25) * half[1]
        body = vertebra * half + vertebra[:, :1] * [0, lean]
        bones.polygon(centre + body, 0.62)
        bones.polygon(centre + 0.84 * body, 0.42)
        faint.polygon(centre + process * half, 0.5)
    bones.tube(frame.path([(0.3, 0.09), (0.11, 0.26), (0.03, 0.5), (0.0, 0.75)]), 0.042 * frame.unit, 0.6, 0.4)
    for number in range(9):
        v = 0.03 + 0.098 * number
        nodes = [(0.84, v), (0.98, v + 0.05), (0.93, v + 0.17), (0.6, v + 0.33), (0.3, v + 0.42)]
        for shift in (0.0, 0.022):
            faint.tube(frame.path(nodes, shift=(shift, shift)), 0.03 * frame.height, 0.6, 0.35)
    for shift in (0.0, 0.06):
        faint.line(frame.path([(0.72, -0.05), (0.86, 0.15), (0.97, 0.42)], shift=(shift, 0.0)), 3.0, 0.8)
    return bones.array() * np.float32(3.4) + faint.array() * np.float32(1.5)


def _lateral_vessels(frame: LateralFrame, engorged: float) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of hila and vessels; `engorged` scales vessels' width."""
    rng = np.random.default_rng(frame.patient.vessel_seed)
    layer, hub = Layer(frame.shape), frame.place(0.5, 0.47)
    skeleton.draw_vessels(layer, [skeleton.vessel_tree(rng, hub, way, 0.2 * frame.height) for way in (-1, 1)], engorged)
    layer.disk(hub, (0.06 * frame.unit, 0.045 * frame.height), 0.4)
    layer.disk(hub + np.array([0.03 * frame.unit, 0.06 * frame.height]), (0.04 * frame.unit, 0.05 * frame.height), 0.4)
    return layer.array() * np.float32(2.0)


def _lateral_gas(frame: LateralFrame, rng: Generator) -> Floats:
    """Return the thickness `(height, width)`, in cm, of air in trachea, main bronchi (seen end on) and stomach."""
    layer = Layer(frame.shape)
    layer.line(frame.path([(0.5, -0.4), (0.52, 0.0), (0.56, 0.4)]), 0.065 * frame.unit, 0.42)
    layer.disk(frame.place(0.56, 0.42), 0.028 * frame.unit, 0.55)
    if rng.random() < 0.75:
        centre = frame.place(rng.uniform(0.35, 0.5), 1.06 + frame.patient.left_dome)
        layer.disk(centre, (0.12 * frame.unit, 0.05 * frame.height), 0.9)
    return layer.array(2) * np.float32(4.0)
