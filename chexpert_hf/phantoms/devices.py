"""Support devices of a phantom: tubes, lines, leads, pacemakers, ports and sternal wires, in cm of water."""

from collections.abc import Callable

import numpy as np

from chexpert_hf.phantoms.anatomy import FrontalFrame
from chexpert_hf.phantoms.drawing import Floats, Generator, Layer, Points, smooth_path
from chexpert_hf.phantoms.lateral import LateralFrame
from chexpert_hf.phantoms.patient import LEFT, RIGHT

Frame = FrontalFrame | LateralFrame
METAL, PLASTIC = 1.0, 0.45
_THICKNESS_OF_METAL = 9.0


def plant_support_devices(frame: Frame, rng: Generator) -> Floats:
    """One to three devices, `(height, width)` in cm; the mask of the devices is where this is positive."""
    names = sorted(_FRONTAL)
    odds = np.array([_ODDS[name] for name in names])
    chosen = rng.choice(names, size=int(rng.integers(1, 4)), replace=False, p=odds / odds.sum())
    seeds = rng.integers(2**31, size=len(chosen))
    layer = Layer(frame.shape)
    for name, seed in zip(chosen, seeds, strict=True):
        own = np.random.default_rng(int(seed))
        if isinstance(frame, FrontalFrame):
            _FRONTAL[str(name)](layer, frame, own)
        elif str(name) in _LATERAL:
            _LATERAL[str(name)](layer, frame, own)
    return layer.array() * np.float32(_THICKNESS_OF_METAL)


def _path(frame: Frame, nodes: list[tuple[float, float]], num: int = 40) -> Points:
    return smooth_path(frame.trace(nodes), num)


def _tube(layer: Layer, path: Points, width: float) -> None:
    # A plastic tube is faint; the radiopaque stripe along it is what one sees.
    layer.line(path, width, 0.16)
    layer.line(path, 1.0, 0.55)


def _pacemaker(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    side = LEFT if rng.random() < 0.85 else RIGHT
    u, v = side * rng.uniform(0.68, 0.82), rng.uniform(0.14, 0.26)
    box, r = frame.place(u, v), 0.115 * frame.half
    layer.disk(box, (r, 1.15 * r), METAL)
    layer.disk(box + np.array([0.2, 0.25]) * r, (0.55 * r, 0.55 * r), 0.75)
    layer.polygon(box + np.array([[-0.7, -1.35], [0.7, -1.35], [0.8, -0.7], [-0.8, -0.7]]) * r, 0.8)
    for tip in ([(-0.2, 0.78)], [(0.05, 0.88), (0.34, 0.97)])[: int(rng.integers(1, 3))] or ():
        nodes = [
            (u, v - 0.05),
            (side * 0.5, 0.06),
            (side * 0.2, 0.12),
            (-0.13, 0.25),
            (-0.17, 0.55),
            (-0.16, 0.72),
            *tip,
        ]
        path = _path(frame, nodes)
        layer.line(path, 1.6, 0.75)
        layer.line(path[-3:], 3.0, METAL)


def _ecg_leads(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    spots = [(-0.75, 0.08), (0.75, 0.06), (-0.8, 0.9), (0.82, 0.85), (0.2, 0.5)]
    for u, v in spots[: int(rng.integers(3, 6))]:
        u, v = u + rng.normal(0, 0.06), v + rng.normal(0, 0.05)
        clip = frame.place(u, v)
        drift = rng.normal(0, 0.25, 3)
        exit_u = np.sign(u) * rng.uniform(0.6, 1.35)
        nodes = [
            (u, v),
            (u + 0.3 * drift[0], v + 0.25),
            (0.8 * u + drift[1], v + 0.5),
            (exit_u, v + 0.95),
            (exit_u, 2.0),
        ]
        layer.line(_path(frame, nodes), 1.3, 0.55)
        layer.disk(clip, 4.6, 0.5)
        layer.disk(clip, 2.8, METAL)


def _endotracheal_tube(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    tip = rng.uniform(0.2, 0.34)
    _tube(layer, _path(frame, [(0.02, -0.6), (0.0, -0.1), (-0.02, tip)]), 0.075 * frame.half)


def _central_line(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    tip = rng.uniform(0.45, 0.62)
    if rng.random() < 0.5:
        nodes = [(-0.42, -0.35), (-0.3, -0.1), (-0.2, 0.1), (-0.15, 0.25), (-0.16, tip)]
    else:
        side = either = LEFT if rng.random() < 0.5 else RIGHT
        nodes = [
            (either * 1.35, 0.3),
            (side * 0.9, 0.06),
            (side * 0.45, 0.05),
            (side * 0.15, 0.14),
            (-0.14, 0.26),
            (-0.16, tip),
        ]
    layer.line(_path(frame, nodes), 2.0, 0.6)


def _nasogastric_tube(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    nodes = [(0.04, -0.6), (0.03, 0.0), (0.04, 0.5), (0.07, 0.9), (0.2, 1.08), (0.42, 1.2 + rng.uniform(0, 0.1))]
    layer.line(_path(frame, nodes), 1.8, 0.6)


def _port(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    u, v = -rng.uniform(0.5, 0.7), rng.uniform(0.25, 0.38)
    centre, r = frame.place(u, v), 0.075 * frame.half
    layer.line(_path(frame, [(u, v), (-0.42, 0.06), (-0.25, 0.03), (-0.15, 0.2), (-0.16, 0.52)]), 1.7, 0.6)
    layer.disk(centre, r, METAL)
    layer.disk(centre, 0.6 * r, 0.3)
    layer.disk(centre, 0.3 * r, 0.7)


def _sternal_wires(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    turn = frame.posture.rotation
    for v in np.linspace(0.2, 0.82, int(rng.integers(5, 8))):
        centre = frame.place(turn + rng.normal(0, 0.008), v + rng.normal(0, 0.006))
        r = 0.065 * frame.half
        angles = np.linspace(0.4, 2 * np.pi + 0.1, 16)
        layer.line(centre + np.stack([np.cos(angles) * r, np.sin(angles) * 0.6 * r], axis=1), 1.3, 0.85)


def _chest_tube(layer: Layer, frame: FrontalFrame, rng: Generator) -> None:
    side = LEFT if rng.random() < 0.5 else RIGHT
    v = rng.uniform(0.6, 0.85)
    nodes = [(side * 1.5, v + 0.2), (side * 0.97, v), (side * 0.72, v - 0.2), (side * 0.5, v - 0.5)]
    _tube(layer, _path(frame, nodes), 0.06 * frame.half)


def _lateral_pacemaker(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    rng.random()
    v = 0.18
    box, r = frame.place(0.06, v), 0.115 * frame.half
    layer.disk(box, (0.32 * r, 1.15 * r), METAL)
    path = _path(frame, [(0.06, v), (0.25, 0.06), (0.42, 0.2), (0.48, 0.5), (0.36, 0.82), (0.14, 0.9)])
    layer.line(path, 1.6, 0.75)
    layer.line(path[-3:], 3.0, METAL)


def _lateral_ecg_leads(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    for v in (0.12, 0.85):
        layer.disk(frame.place(-0.02, v), (2.0, 4.6), METAL)
        layer.line(_path(frame, [(-0.02, v), (0.2 * rng.random(), v + 0.3), (0.1, v + 0.6), (-0.1, 1.6)]), 1.3, 0.55)


def _lateral_endotracheal_tube(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    _tube(layer, _path(frame, [(0.48, -0.5), (0.52, -0.1), (0.54, rng.uniform(0.2, 0.34))]), 0.07 * frame.half)


def _lateral_central_line(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    layer.line(_path(frame, [(0.4, -0.35), (0.38, 0.0), (0.42, 0.25), (0.45, rng.uniform(0.45, 0.62))]), 2.0, 0.6)


def _lateral_nasogastric_tube(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    layer.line(
        _path(frame, [(0.55, -0.5), (0.6, 0.0), (0.68, 0.6), (0.62, 0.95), (0.45, 1.15 + 0.05 * rng.random())]),
        1.8,
        0.6,
    )


def _lateral_sternal_wires(layer: Layer, frame: LateralFrame, rng: Generator) -> None:
    for v in np.linspace(0.2, 0.75, int(rng.integers(5, 8))):
        w = float(np.interp(v, [0.1, 0.26, 0.5, 0.75], [0.27, 0.1, 0.02, -0.01]))
        layer.disk(frame.place(w, v), (0.03 * frame.half, 0.02 * frame.half), 0.9)


_Draw = Callable[[Layer, FrontalFrame, Generator], None]
_DrawLateral = Callable[[Layer, LateralFrame, Generator], None]

_FRONTAL: dict[str, _Draw] = {
    "pacemaker": _pacemaker,
    "ECG leads": _ecg_leads,
    "endotracheal tube": _endotracheal_tube,
    "central line": _central_line,
    "nasogastric tube": _nasogastric_tube,
    "port": _port,
    "sternal wires": _sternal_wires,
    "chest tube": _chest_tube,
}
_LATERAL: dict[str, _DrawLateral] = {
    "pacemaker": _lateral_pacemaker,
    "ECG leads": _lateral_ecg_leads,
    "endotracheal tube": _lateral_endotracheal_tube,
    "central line": _lateral_central_line,
    "nasogastric tube": _lateral_nasogastric_tube,
    "sternal wires": _lateral_sternal_wires,
}
_ODDS = {
    "pacemaker": 0.2, "ECG leads": 0.22, "endotracheal tube": 0.1, "central line": 0.16, "nasogastric tube": 0.1,
    "port": 0.1, "sternal wires": 0.12, "chest tube": 0.08,
}  # fmt: skip
"""How often each device is chosen: about what one sees on a mixed ward, not measured."""
