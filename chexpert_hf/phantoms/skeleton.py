"""Draws bones, airways and lung vessels of the frontal phantom, as thickness `(height, width)` in cm of water."""

from typing import NamedTuple

import numpy as np

from chexpert_hf.phantoms.drawing import (
    Floats,
    Generator,
    Layer,
    Points,
    curve,
    resampled,
    ribbon,
    smooth_path,
    smooth_step,
)
from chexpert_hf.phantoms.frame import LEFT, RIGHT, SIDES, FrontalFrame, Mask, either_side, wall_at

_NUM_RIBS = 10
_RIB_WIDTH = 0.034  # in lung heights


class Break(NamedTuple):
    """A displaced fracture of one rib: which rib, where along it, and how far its ends are displaced (`step`)."""

    side: int  # LEFT or RIGHT
    rib: int  # index, 0 is the topmost
    position: float  # along the posterior arc: 0 at the spine, 1 at the lateral wall
    step: float  # displacement across the rib, in rib widths
    has_callus: bool


def break_ribs(rng: Generator) -> tuple[Break, ...]:
    """Choose fractures of one to three neighbouring ribs at random; `ribs` draws them."""
    side, first, count = either_side(rng), int(rng.integers(2, 6)), int(rng.choice([1, 2, 3], p=[0.1, 0.45, 0.45]))
    position, has_callus = rng.uniform(0.34, 0.58), bool(rng.random() < 0.4)
    wider = 1.15 if count == 1 else 1.0
    return tuple(
        Break(side, rib, float(position + rng.normal(0, 0.03)), float(rng.uniform(0.95, 1.4) * wider), has_callus)
        for rib in range(first, first + count)
    )


def _rib_lines(frame: FrontalFrame, side: int, num_points: int = 18, is_anterior: bool = False) -> Points:
    """Return the centre lines of one side's ribs, `(_NUM_RIBS, num_points, 2)` in pixels, from spine to lateral wall.

    With `is_anterior`, they lead from that wall to the cartilage instead.
    """
    t, number = np.linspace(0, 1, num_points)[None, :], np.arange(_NUM_RIBS)[:, None]
    start, slope = 0.098 * number, frame.patient.rib_slope
    drop = np.where(number > 0, (0.1 + 0.012 * number) * slope, 0.06)
    wall = wall_at(start + drop) * np.where(number > 0, 0.995, 0.8)
    if is_anterior:
        u = wall - (wall - (0.24 + 0.36 * start)) * (1 - np.cos(np.pi / 2 * t)) ** 0.9
        v = start + drop + (0.17 + 0.12 * start) * slope * np.sin(np.pi / 2 * t) ** 1.15
    else:
        u = 0.1 + (wall - 0.1) * np.sin(np.pi / 2 * t) ** 0.92
        v = start - np.where(start > 0.1, 0.035, 0.02) * np.sin(np.pi * np.minimum(t * 1.25, 1)) + drop * t**2.4
    return frame.place(side * u, v)


def ribs(frame: FrontalFrame, breaks: tuple[Break, ...]) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of all ribs with the given fractures."""
    posterior, anterior, width = Layer(frame.shape), Layer(frame.shape), _RIB_WIDTH * frame.height
    for side in SIDES:
        broken = [item.rib for item in breaks if item.side == side]
        for line in np.delete(_rib_lines(frame, side), broken, axis=0):
            posterior.tube(line, width, 0.78, 0.5)
        for line in _rib_lines(frame, side, 14, is_anterior=True)[:7]:
            anterior.tube(line, width * np.linspace(0.95, 1.25, 14), 0.5, 0.36)
    bones = posterior.array() * np.float32(1.35) + anterior.array() * np.float32(1.3)
    return bones + _broken_ribs(frame, breaks) if breaks else bones


def _broken_ribs(frame: FrontalFrame, breaks: tuple[Break, ...]) -> Floats:
    bone, ends, bruise, width = Layer(frame.shape), Layer(frame.shape), Layer(frame.shape), _RIB_WIDTH * frame.height
    for item in breaks:
        inner, outer = _fragments(frame, item, width)
        # Impacted bone is dense at once; in the weeks after, callus makes a spindle of the ends.
        spindle = np.array([0.45, 0.75, 1.0, 1.15, 0.95]) * width * (1.5 if item.has_callus else 1.0)
        for piece, end in ((inner, inner[-5:]), (outer, outer[4::-1])):
            bone.tube(piece, width, 0.78, 0.5)
            ends.polygon(ribbon(end, spindle), 0.9)
        if not item.has_callus:
            bruise.disk((inner[-1] + outer[0]) / 2, (3.0 * width, 1.9 * width), 0.9)
    cortex = bone.array() * np.float32(1.35)
    return cortex + ends.array(2) * np.float32(2.4) + bruise.array(6) * np.float32(1.7)


def _fragments(frame: FrontalFrame, fracture: Break, width: float) -> tuple[Points, Points]:
    """Return the centre lines of a broken rib's inner and outer piece, with a gap; `width` is the rib's, in pixels."""
    dense = resampled(_rib_lines(frame, fracture.side)[fracture.rib], 120)
    cut = round(fracture.position * 119)
    inner, outer = dense[: cut - 2], dense[cut + 2 :].copy()
    tangent = dense[cut] - dense[cut - 4]
    normal = np.array([-tangent[1], tangent[0]]) / max(float(np.hypot(*tangent)), 1e-6)
    normal *= np.sign(normal[1]) or 1.0
    # The step fades towards the wall, where the outer piece still hangs in its muscles.
    outer += normal * fracture.step * width * np.linspace(1, 0.35, len(outer))[:, None]
    return inner[::-3][::-1], outer[::3]


def fracture_mask(frame: FrontalFrame, breaks: tuple[Break, ...]) -> Mask:
    """Return the mask `(height, width)` of the broken ends and the displaced stretch of each broken rib."""
    layer, width = Layer(frame.shape), _RIB_WIDTH * frame.height
    for item in breaks:
        inner, outer = _fragments(frame, item, width)
        layer.line(np.concatenate([inner[-5:], outer[:9]]), 3.8 * width, 1.0)
    return layer.array() > 0.5


def girdle(frame: FrontalFrame) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of clavicles, scapulae and humeral heads."""
    layer, faint = Layer(frame.shape), Layer(frame.shape)
    lift, inward = (-0.03, -0.16) if frame.is_ap else (0.0, 0.0)
    elbow = (1.62, 1.0) if frame.is_ap else (1.95, 0.75)
    clavicle = [(0.1, 0.135), (0.32, 0.1), (0.6, 0.03), (0.85, -0.01), (1.1, 0.0)]
    medial = [(0.97 + inward, 0.03), (0.9 + inward, 0.2), (1.0 + inward, 0.48), (1.07 + inward, 0.5)]
    blade = [(1.12, 0.06), *medial, (1.2, 0.18)]
    for side in SIDES:
        path = frame.path(clavicle, side, shift=(frame.rotation, lift))
        layer.tube(path, frame.height * np.linspace(0.055, 0.04, 24), 0.8, 0.5, 1.2)
        outline = frame.trace(blade, side=side)
        faint.polygon(outline, 0.2)
        faint.line(smooth_path(outline[1:5]), 1.6, 0.5)
        faint.line(smooth_path(outline[3:6]), 2.4, 0.6)
        faint.line(frame.path([(0.92 + inward, 0.13), (1.1, 0.04), (1.24, -0.03)], side), 3.5, 0.55)
        head = frame.place(side * 1.31, 0.06)
        layer.tube(np.array([head, frame.place(side * elbow[0], elbow[1])]), 0.12 * frame.half, 0.75, 0.42, 2.0)
        layer.disk(head, 0.135 * frame.half, 0.62)
    return layer.array() * np.float32(1.9) + faint.array() * np.float32(1.2)


def spine(frame: FrontalFrame) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of vertebrae, their discs, pedicles and processes."""
    reach = 0.17 * frame.half
    columns = slice(max(0, int(frame.midline.min() - reach)), int(frame.midline.max() + reach))
    halfwidth = frame.half * curve(frame.v, ((-0.3, 0.095), (0.1, 0.1), (1.3, 0.13)), 4)[:, None]
    dx = np.abs(frame.x[:, columns] - frame.midline[:, None]) / halfwidth
    phase = (frame.v / 0.092 + 0.3) % 1.0
    disc = _bump(phase, 0.5, 0.09)[:, None]
    plates = (_bump(phase, 0.36, 0.05) + _bump(phase, 0.64, 0.05))[:, None]
    waist = dx * (1 - 0.06 * np.cos(2 * np.pi * phase)[:, None] ** 2)
    pedicles = _bump(phase, 0.85, 0.11)[:, None] * _bump(dx, 0.62, 0.17)
    process = _bump(phase, 0.2, 0.2)[:, None] * _bump(dx, 0, 0.14)
    bone = np.zeros(frame.shape, dtype=np.float32)
    bone[:, columns] = smooth_step(waist, 1.12, 0.85) * (1.5 - 0.55 * disc + 0.35 * plates)
    bone[:, columns] += 0.6 * pedicles + 0.7 * process + 0.25 * _bump(waist, 0.93, 0.1)
    return bone


def _bump(array: Floats, centre: float, width: float) -> Floats:
    scaled = (array - np.float32(centre)) * np.float32(1 / width)
    return np.exp(-(scaled * scaled))


def vessels(frame: FrontalFrame, engorged: float) -> Floats:
    """Return the thickness `(height, width)`, in cm of water, of the lung vessels; `engorged` scales their width."""
    rng, hila = np.random.default_rng(frame.patient.vessel_seed), ((RIGHT, 0.5), (LEFT, 0.46))
    roots = [(side, frame.place(side * 0.17 + frame.rotation * 0.5, v)) for side, v in hila]
    trees = [vessel_tree(rng, hilum, side, 0.22 * frame.height) for side, hilum in roots]
    layer = Layer(frame.shape)
    draw_vessels(layer, trees, engorged)
    for side, v in hila:
        for dv, size in ((-0.03, 0.05), (0.03, 0.065), (0.1, 0.045)):
            centre = frame.place(side * (0.18 + 0.2 * abs(dv)), v + dv)
            layer.disk(centre, (size * frame.half, size * 1.4 * frame.half), 0.42)
    return layer.array() * np.float32(1.9)


def draw_vessels(layer: Layer, trees: list[list[Points]], engorged: float) -> None:
    """Draw trees from `vessel_tree`, the finest and faintest branches first; `engorged` multiplies their width."""
    widths, values = (3.4, 2.6, 1.8, 1.2, 0.9), (0.46, 0.42, 0.37, 0.3, 0.22)
    for level in reversed(range(len(widths))):
        layer.lines(np.concatenate([tree[level] for tree in trees]), widths[level] * engorged, values[level])


def vessel_tree(rng: Generator, hilum: Points, side: int, length: float) -> list[Points]:
    """Return the vessels of one lung: an array for each level of branching, the largest vessels first.

    An array is `(num_branches, 5, 2)`: each branch is a line through five pixels (x, y). The vessels fan out from
    `hilum` (x, y), wind and fork; `length` is about the length of a first branch, in pixels.
    """
    count = 8
    # 0 points up, pi down; more and larger vessels run to the base, where gravity sends the blood.
    angles = np.linspace(0.15, 2.85, count) + rng.normal(0, 0.14, count)
    starts = hilum + length * np.stack([np.zeros(count), np.linspace(-0.35, 0.6, count)], axis=1)
    lengths = length * (0.7 + 0.35 * (angles > 1.5)) * rng.uniform(0.6, 1.2, count)
    t = np.linspace(0, 1, 5)[None, :]
    levels: list[Points] = []
    for level in range(5):
        bends = rng.normal(0, 0.4, len(angles))
        heading = angles[:, None] + bends[:, None] * t**2 + rng.normal(0, 0.05, (len(angles), 5))
        steps = lengths[:, None] * t
        lines = starts[:, None] + np.stack([side * np.sin(heading) * steps, -np.cos(heading) * steps], axis=2)
        levels.append(lines)
        spread = rng.uniform(0.25, 0.7, len(angles)) * rng.choice([-1, 1], len(angles))
        forks, side_branches = angles + bends * 0.8 - spread * 0.5, angles + bends + spread
        starts = np.concatenate([lines[:, -1], lines[:, rng.integers(1, 4)]])
        # Only half of the finest twigs are drawn: the others would be lost in the noise.
        parents = slice(0, len(angles)) if level == 3 else slice(0, 2 * len(angles))
        angles, starts = np.concatenate([forks, side_branches])[parents], starts[parents]
        lengths = np.tile(lengths, 2)[parents] * rng.uniform(0.5, 0.85, len(angles))
    return levels


def gas(frame: FrontalFrame, rng: Generator) -> Floats:
    """Return the thickness `(height, width)`, in cm, of air in trachea, main bronchi, stomach and bowel."""
    layer, half, turn = Layer(frame.shape), frame.half, frame.rotation * 0.5
    trachea = [(0.0, -0.5), (0.0, 0.0), (-0.025, 0.25), (-0.02, 0.41)]
    right, left = [(-0.02, 0.395), (-0.1, 0.47), (-0.16, 0.55)], [(-0.02, 0.395), (0.09, 0.455), (0.2, 0.5)]
    for nodes, width, value in ((trachea, 0.115, 0.5), (right, 0.075, 0.34), (left, 0.075, 0.34)):
        layer.line(frame.path(nodes, shift=(turn, 0.0)), width * half, value)
    if rng.random() < 0.75:
        centre = frame.place(rng.uniform(0.3, 0.5), 1.06 + frame.patient.left_dome + rng.uniform(0.06, 0.1))
        radius = rng.uniform(0.1, 0.2) * half
        layer.disk(centre, (radius, 0.55 * radius), 0.85)
        layer.disk(centre + np.array([0.5, 0.25]) * radius, (0.7 * radius, 0.4 * radius), 0.75)
    for _ in range(int(rng.integers(0, 5))):
        rx, ry = rng.uniform(0.04, 0.1, 2) * half
        layer.disk(frame.place(rng.uniform(-0.6, 0.7), rng.uniform(1.28, 1.5)), (rx, ry), 0.4)
    return layer.array(2) * np.float32(3.6)
