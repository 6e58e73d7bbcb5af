"""The normal lateral chest of a phantom: breast bone on the image's left, spine on its right.

Both lungs lie one over the other, so each contributes half of the air along a ray.
"""

import numpy as np

from chexpert_hf.phantoms.drawing import Floats, Generator, Layer, curve, smooth_path, smooth_step
from chexpert_hf.phantoms.frame import LEFT, RIGHT, LateralFrame
from chexpert_hf.phantoms.skeleton import draw_vessels, vessel_tree

_FRONT = ((-0.02, 0.5), (0.02, 0.4), (0.1, 0.26), (0.25, 0.12), (0.45, 0.05), (0.7, 0.02), (1.0, 0.03), (1.3, 0.08))
_BACK = ((-0.02, 0.52), (0.02, 0.7), (0.1, 0.83), (0.25, 0.94), (0.5, 1.0), (0.8, 1.0), (1.1, 0.96), (1.3, 0.93))


def lateral_chest(frame: LateralFrame, rng: Generator, engorged: float) -> tuple[dict[int, Floats], Floats, Floats]:
    """As `anatomy.frontal_chest`."""
    solid = _body(frame) + _bones(frame) - _gas(frame, rng)
    return _lung_depths(frame), _vessels(frame, engorged), solid


def _lung_depths(frame: LateralFrame) -> dict[int, Floats]:
    """Aerated lung along each ray, `(height, width)` in cm per side."""
    front, back = curve(frame.v, _FRONT, 3)[:, None], curve(frame.v, _BACK, 3)[:, None]
    s = np.clip((frame.w - front) / np.maximum(back - front, 0.02), 0, 1)
    profile = np.sqrt(np.sqrt(4 * s * (1 - s)))
    by_row = curve(frame.v, ((-0.02, 0.0), (0.03, 3.0), (0.15, 6.5), (0.4, 9.0), (0.9, 10.0), (1.3, 10.0)), 3)
    # The heart and the great vessels take their share of the lungs' place.
    arch = 0.3 * smooth_step(np.abs(frame.w - 0.47), 0.3, 0.05) * smooth_step(frame.v, 0.66, 0.2)[:, None]
    free = 1 - np.maximum(0.7 * np.sqrt(frame.heart_chord()), arch).astype(np.float32)
    depths = {}
    for side in (RIGHT, LEFT):
        above = np.clip((frame.dome[side][None, :] - frame.y) / 1.6 + 0.5, 0, 1)
        depths[side] = (by_row[:, None] * profile * above * free).astype(np.float32)
    return depths


def _body(frame: LateralFrame) -> Floats:
    """Soft tissue of trunk, neck and raised arms, `(height, width)` in cm, as if the lungs were solid."""
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


def _bones(frame: LateralFrame) -> Floats:
    """Spine, breast bone, ribs and shoulder blades, in cm."""
    bones, faint = Layer(frame.shape), Layer(frame.shape)
    corners = np.array(
        [[-1, -0.8], [-0.9, -1], [0.9, -1], [1, -0.8], [0.9, 0], [1, 0.8], [0.9, 1], [-0.9, 1], [-1, 0.8]]
    )
    for number in range(16):
        v = -0.15 + 0.092 * number
        centre = frame.place(0.76 + 0.1 * float(np.sin(np.pi * np.clip((v + 0.2) / 1.35, 0, 1.2))), v)
        half_width, half_height = (0.056 + 0.0014 * number) * frame.unit, 0.038 * frame.height
        lean = 0.35 * np.cos(np.pi * (v + 0.15) / 1.25) * half_height
        body = corners * [half_width, half_height] + np.stack([0 * corners[:, 0], lean * corners[:, 0]], axis=1)
        bones.polygon(centre + body, 0.62)
        bones.polygon(centre + 0.84 * body, 0.42)
        process = np.array([[1.1, -0.2], [1.7, -0.1], [2.6, 1.3], [2.3, 1.6], [1.6, 0.8], [1.1, 0.5]])
        faint.polygon(centre + process * [half_width, half_height], 0.5)
    sternum = smooth_path(frame.trace([(0.3, 0.09), (0.11, 0.26), (0.03, 0.5), (0.0, 0.75)]))
    bones.tube(sternum, 0.042 * frame.unit, 0.6, 0.4)
    for number in range(9):
        v = 0.03 + 0.098 * number
        nodes = [(0.84, v), (0.98, v + 0.05), (0.93, v + 0.17), (0.6, v + 0.33), (0.3, v + 0.42)]
        for shift in (0.0, 0.022):
            faint.tube(smooth_path(frame.trace(nodes, shift=(shift, shift))), 0.03 * frame.height, 0.6, 0.35)
    for shift in (0.0, 0.06):
        blade = frame.trace([(0.72, -0.05), (0.86, 0.15), (0.97, 0.42)], shift=(shift, 0.0))
        faint.line(smooth_path(blade), 3.0, 0.8)
    return bones.array() * np.float32(3.4) + faint.array() * np.float32(1.5)


def _vessels(frame: LateralFrame, engorged: float) -> Floats:
    """Hilar vessels and their branches, in cm."""
    rng = np.random.default_rng(frame.patient.vessel_seed)
    layer = Layer(frame.shape)
    hub = frame.place(0.5, 0.47)
    draw_vessels(layer, [vessel_tree(rng, hub, way, 0.2 * frame.height) for way in (-1, 1)], engorged)
    layer.disk(hub, (0.06 * frame.unit, 0.045 * frame.height), 0.4)
    below = hub + np.array([0.03 * frame.unit, 0.06 * frame.height])
    layer.disk(below, (0.04 * frame.unit, 0.05 * frame.height), 0.4)
    return layer.array() * np.float32(2.0)


def _gas(frame: LateralFrame, rng: Generator) -> Floats:
    """Air in trachea, main bronchi (seen end on) and stomach, in cm."""
    layer = Layer(frame.shape)
    trachea = smooth_path(frame.trace([(0.5, -0.4), (0.52, 0.0), (0.56, 0.4)]))
    layer.line(trachea, 0.065 * frame.unit, 0.42)
    layer.disk(frame.place(0.56, 0.42), 0.028 * frame.unit, 0.55)
    if rng.random() < 0.75:
        centre = frame.place(rng.uniform(0.35, 0.5), 1.06 + frame.patient.left_dome)
        layer.disk(centre, (0.12 * frame.unit, 0.05 * frame.height), 0.9)
    return layer.array(2) * np.float32(4.0)
