"""Draws the support devices of a phantom: tubes, lines, leads, pacemakers, ports and sternal wires."""

from collections.abc import Callable

import numpy as np

from chexpert_hf.phantoms.drawing import Floats, Generator, Layer, Points, smooth_path
from chexpert_hf.phantoms.frame import LEFT, RIGHT, Frame, either_side

METAL = 1.0


def plant_support_devices(frame: Frame, rng: Generator) -> Floats:
    """Draw one to three devices; return their thickness, an array `(height, width)` in cm of water.

    The thickness is the depth of water that would absorb as much of the X-rays.
    Lateral views do not show ports and chest tubes.
    """
    odds = np.array([chance for chance, _ in _DEVICES])
    chosen = rng.choice(len(_DEVICES), size=int(rng.integers(1, 4)), replace=False, p=odds / odds.sum())
    layer = Layer(frame.shape)
    for device, seed in zip(chosen, rng.integers(2**31, size=len(chosen)), strict=True):
        draw = _DEVICES[device][1]
        if frame.is_frontal or draw not in (_port, _chest_tube):
            draw(layer, frame, np.random.default_rng(int(seed)))
    return layer.array() * np.float32(9.0)  # of metal


def _wire(layer: Layer, frame: Frame, nodes: list[tuple[float, float]], width: float, value: float) -> Points:
    path = smooth_path(frame.trace(nodes), 40)
    layer.line(path, width, value)
    return path


def _tube(layer: Layer, frame: Frame, nodes: list[tuple[float, float]], width: float) -> None:
    # A plastic tube is faint; the radiopaque stripe along it is visible.
    layer.line(_wire(layer, frame, nodes, width * frame.half, 0.16), 1.0, 0.55)


def _electrode(layer: Layer, frame: Frame, nodes: list[tuple[float, float]]) -> None:
    layer.line(_wire(layer, frame, nodes, 1.6, 0.75)[-3:], 3.0, METAL)


def _pacemaker(layer: Layer, frame: Frame, rng: Generator) -> None:
    r = 0.115 * frame.half
    if not frame.is_frontal:
        layer.disk(frame.place(0.06, 0.18), (0.32 * r, 1.15 * r), METAL)
        _electrode(layer, frame, [(0.06, 0.18), (0.25, 0.06), (0.42, 0.2), (0.48, 0.5), (0.36, 0.82), (0.14, 0.9)])
        return
    side = LEFT if rng.random() < 0.85 else RIGHT
    u, v = side * rng.uniform(0.68, 0.82), rng.uniform(0.14, 0.26)
    box = frame.place(u, v)
    layer.disk(box, (r, 1.15 * r), METAL)
    layer.disk(box + np.array([0.2, 0.25]) * r, 0.55 * r, 0.75)
    layer.polygon(box + np.array([[-0.7, -1.35], [0.7, -1.35], [0.8, -0.7], [-0.8, -0.7]]) * r, 0.8)
    lead = [(u, v - 0.05), (side * 0.5, 0.06), (side * 0.2, 0.12), (-0.13, 0.25), (-0.17, 0.55), (-0.16, 0.72)]
    for tip in ([(-0.2, 0.78)], [(0.05, 0.88), (0.34, 0.97)])[: int(rng.integers(1, 3))]:
        _electrode(layer, frame, [*lead, *tip])


def _ecg_leads(layer: Layer, frame: Frame, rng: Generator) -> None:
    if not frame.is_frontal:
        for v in (0.12, 0.85):
            layer.disk(frame.place(-0.02, v), (2.0, 4.6), METAL)
            lead = [(-0.02, v), (0.2 * rng.random(), v + 0.3), (0.1, v + 0.6), (-0.1, 1.6)]
            _wire(layer, frame, lead, 1.3, 0.55)
        return
    spots = [(-0.75, 0.08), (0.75, 0.06), (-0.8, 0.9), (0.82, 0.85), (0.2, 0.5)]
    for u, v in spots[: int(rng.integers(3, 6))]:
        u, v = u + rng.normal(0, 0.06), v + rng.normal(0, 0.05)
        drift, end = rng.normal(0, 0.25, 3), np.sign(u) * rng.uniform(0.6, 1.35)
        nodes = [(u, v), (u + 0.3 * drift[0], v + 0.25), (0.8 * u + drift[1], v + 0.5), (end, v + 0.95), (end, 2.0)]
        _wire(layer, frame, nodes, 1.3, 0.55)
        layer.disk(frame.place(u, v), 4.6, 0.5)
        layer.disk(frame.place(u, v), 2.8, METAL)


def _endotracheal_tube(layer: Layer, frame: Frame, rng: Generator) -> None:
    tip = rng.uniform(0.2, 0.34)
    nodes = [(0.02, -0.6), (0.0, -0.1), (-0.02, tip)] if frame.is_frontal else [(0.48, -0.5), (0.52, -0.1), (0.54, tip)]
    _tube(layer, frame, nodes, 0.075 if frame.is_frontal else 0.07)


def _central_line(layer: Layer, frame: Frame, rng: Generator) -> None:
    tip = rng.uniform(0.45, 0.62)
    if not frame.is_frontal:
        nodes = [(0.4, -0.35), (0.38, 0.0), (0.42, 0.25), (0.45, tip)]
    elif rng.random() < 0.5:
        nodes = [(-0.42, -0.35), (-0.3, -0.1), (-0.2, 0.1), (-0.15, 0.25), (-0.16, tip)]
    else:
        side = -either_side(rng)
        arm = [(side * 1.35, 0.3), (side * 0.9, 0.06), (side * 0.45, 0.05), (side * 0.15, 0.14)]
        nodes = [*arm, (-0.14, 0.26), (-0.16, tip)]
    _wire(layer, frame, nodes, 2.0, 0.6)


def _nasogastric_tube(layer: Layer, frame: Frame, rng: Generator) -> None:
    if frame.is_frontal:
        nodes = [(0.04, -0.6), (0.03, 0.0), (0.04, 0.5), (0.07, 0.9), (0.2, 1.08), (0.42, 1.2 + rng.uniform(0, 0.1))]
    else:
        nodes = [(0.55, -0.5), (0.6, 0.0), (0.68, 0.6), (0.62, 0.95), (0.45, 1.15 + rng.uniform(0, 0.05))]
    _wire(layer, frame, nodes, 1.8, 0.6)


def _port(layer: Layer, frame: Frame, rng: Generator) -> None:
    u, v = -rng.uniform(0.5, 0.7), rng.uniform(0.25, 0.38)
    _wire(layer, frame, [(u, v), (-0.42, 0.06), (-0.25, 0.03), (-0.15, 0.2), (-0.16, 0.52)], 1.7, 0.6)
    for share, value in ((1.0, METAL), (0.6, 0.3), (0.3, 0.7)):
        layer.disk(frame.place(u, v), share * (0.075 * frame.half), value)


def _sternal_wires(layer: Layer, frame: Frame, rng: Generator) -> None:
    r, angles = 0.065 * frame.half, np.linspace(0.4, 2 * np.pi + 0.1, 16)
    for v in np.linspace(0.2, 0.82 if frame.is_frontal else 0.75, int(rng.integers(5, 8))):
        if frame.is_frontal:
            centre = frame.place(frame.rotation + rng.normal(0, 0.008), v + rng.normal(0, 0.006))
            layer.line(centre + np.stack([np.cos(angles) * r, np.sin(angles) * 0.6 * r], axis=1), 1.3, 0.85)
        else:
            u = float(np.interp(v, [0.1, 0.26, 0.5, 0.75], [0.27, 0.1, 0.02, -0.01]))
            layer.disk(frame.place(u, v), (0.03 * frame.half, 0.02 * frame.half), 0.9)


def _chest_tube(layer: Layer, frame: Frame, rng: Generator) -> None:
    side, v = -either_side(rng), rng.uniform(0.6, 0.85)
    _tube(layer, frame, [(side * 1.5, v + 0.2), (side * 0.97, v), (side * 0.72, v - 0.2), (side * 0.5, v - 0.5)], 0.06)


_DEVICES: tuple[tuple[float, Callable[[Layer, Frame, Generator], None]], ...] = (
    (0.22, _ecg_leads), (0.16, _central_line), (0.08, _chest_tube), (0.1, _endotracheal_tube),
    (0.1, _nasogastric_tube), (0.2, _pacemaker), (0.1, _port), (0.12, _sternal_wires),
)  # fmt: skip
"""Relative frequency of each device, about as on a mixed ward (not measured), and the function that draws it."""
