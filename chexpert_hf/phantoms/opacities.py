"""Findings of the lung itself: what fills, replaces or collapses aerated lung.

Conventions are those of `findings`.
"""

import numpy as np

from chexpert_hf.phantoms.drawing import (
    Floats,
    Generator,
    Layer,
    Points,
    cloud,
    distance_from,
    smooth_path,
    smooth_step,
)
from chexpert_hf.phantoms.frame import AIR_CONTRAST, LEFT, RIGHT, Mask, Scene, either_side


def plant_lung_opacity(scene: Scene, rng: Generator) -> Mask:
    """One to three hazy, ill-defined patches through which vessels still show (ground glass)."""
    mask = np.zeros(scene.frame.shape, dtype=bool)
    side = either_side(rng)
    for number in range(int(rng.integers(1, 4))):
        side = side if number != 1 else -side
        centre = scene.frame.spot(side, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.85))
        radii = (rng.uniform(0.2, 0.34) * scene.frame.half, rng.uniform(0.2, 0.36) * scene.frame.half)
        haze = patch(scene, rng, centre, radii, rough=0.16, grain=16, softness=1.3)
        mask |= scene.fill(side, haze * np.float32(rng.uniform(0.32, 0.5)), 0.12)
    return mask


def plant_lung_lesion(scene: Scene, rng: Generator) -> Mask:
    """Round, well-defined nodules or a mass, denser than vessels."""
    is_mass = rng.random() < 0.4
    count = 1 if is_mass else int(rng.choice([1, 2, 4, 6], p=[0.45, 0.25, 0.2, 0.1]))
    mask = np.zeros(scene.frame.shape, dtype=bool)
    for _ in range(count):
        side = either_side(rng)
        radius_cm = rng.uniform(2.2, 3.4) if is_mass else rng.uniform(1.4, 2.1)
        radius = radius_cm * scene.frame.half / 13
        # A large one keeps further from the chest wall, so that it stays within the lung.
        lateral, depth = rng.uniform(0.28, 0.95 - 0.11 * radius_cm), rng.uniform(0.15, 0.85)
        centre = scene.frame.spot(side, lateral, depth, rng.uniform(0.24, 0.84))
        stretch = rng.uniform(0.85, 1.15)
        r = distance_from(scene.frame.shape, centre, (radius * stretch, radius / stretch), rng.uniform(0, 3))
        scene.extra += np.float32(AIR_CONTRAST * (1.6 * radius_cm + 2.4)) * np.sqrt(np.clip(1 - r * r, 0, 1))
        mask |= r < 1
    return mask


def plant_edema(scene: Scene, rng: Generator) -> Mask:
    """Perihilar haze of both lungs in the shape of bat's wings, with septal (Kerley B) lines at the bases."""
    mask = np.zeros(scene.frame.shape, dtype=bool)
    strength, reach = rng.uniform(0.4, 0.68), rng.uniform(0.85, 1.15)
    ripple = cloud(rng, scene.frame.shape, 14)
    for side in (RIGHT, LEFT):
        centre = scene.frame.spot(side, 0.12, 0.5, 0.54)
        r = distance_from(
            scene.frame.shape, centre, (0.48 * reach * scene.frame.half, 0.36 * reach * scene.frame.height), 0
        )
        wings = np.exp(-(r**2)) * np.clip(1 + 0.16 * ripple, 0.5, 1.5)
        mask |= scene.fill(side, np.minimum(strength * wings, 0.85).astype(np.float32), 0.13)
    if scene.frame.is_frontal:
        lines = _kerley_lines(scene, rng)
        scene.extra += np.float32(1.3) * lines
        mask |= lines > 0.2
    return mask


def _kerley_lines(scene: Scene, rng: Generator) -> Floats:
    layer = Layer(scene.frame.shape)
    for side in (RIGHT, LEFT):
        for v in np.arange(0.72, 1.0, 0.035):
            outer = scene.frame.spot(side, 0.97, 0.5, v + rng.normal(0, 0.006))
            inner = scene.frame.spot(side, rng.uniform(0.78, 0.86), 0.5, v + rng.normal(0, 0.008))
            layer.line(np.array([outer, inner]), 1.2, 0.8)
    return layer.array()


def plant_consolidation(scene: Scene, rng: Generator) -> Mask:
    """A dense lobe with a straight fissure and air bronchograms."""
    lobe = str(rng.choice(["upper", "middle", "lower", "lower"]))
    side = RIGHT if lobe == "middle" else either_side(rng)
    density = np.float32(rng.uniform(0.66, 0.88))
    share = _lobe(scene, side, lobe, rng) * density
    share *= np.clip(1 + 0.06 * cloud(rng, scene.frame.shape, 12), 0.7, 1.2)
    bronchi = _bronchogram(scene, rng, side, {"upper": 0.5, "middle": 2.0, "lower": 2.3}[lobe])
    share = np.clip(share, 0, 0.96) * (1 - np.float32(0.5) * bronchi)
    return scene.fill(side, share, 0.3)


def _lobe(scene: Scene, side: int, lobe: str, rng: Generator) -> Floats:
    """Extent of a lobe, `(height, width)` in [0, 1]: straight at a fissure, fading elsewhere."""
    across, ripple = scene.frame.across(side), cloud(rng, scene.frame.shape, 30)
    v = scene.frame.v[:, None] + 0.03 * ripple
    fissure = scene.frame.v[:, None] + 0.07 * (across - 0.5) + 0.006 * ripple - rng.uniform(-0.05, 0.05)
    if lobe == "upper":
        return smooth_step(fissure, 0.485, 0.465) * smooth_step(v, 0.02, 0.2)
    if lobe == "middle":
        return smooth_step(fissure, 0.52, 0.545) * smooth_step(across + 0.3 * (v - 0.75), 0.8, 0.45)
    # Seen from the side, the oblique fissure keeps the lower lobe from the front of the chest.
    behind = np.float32(1) if scene.frame.is_frontal else smooth_step(across - 0.5 * (0.9 - v), 0.4, 0.48)
    return smooth_step(v - rng.uniform(-0.05, 0.05), 0.56, 0.78) * behind


def _bronchogram(scene: Scene, rng: Generator, side: int, heading: float) -> Floats:
    layer = Layer(scene.frame.shape)
    hilum = scene.frame.spot(side, 0.1, 0.55, 0.5)
    way = side if scene.frame.is_frontal else 1
    for _ in range(4):
        angle = heading + rng.uniform(-0.5, 0.5) + rng.normal(0, 0.15) * np.linspace(0, 1, 5)
        steps = np.linspace(0.15, 1, 5) * rng.uniform(0.25, 0.45) * scene.frame.height
        path = hilum + np.stack([way * np.sin(angle) * steps, -np.cos(angle) * steps], axis=1)
        layer.line(path, 2.6, 1.0)
        layer.line(path[2] + (path[3:] - path[2]) @ np.array([[0.8, 0.6], [-0.6, 0.8]]), 1.8, 0.9)
    return layer.array()


def plant_pneumonia(scene: Scene, rng: Generator) -> Mask:
    """A segmental consolidation: patchy, confluent, denser than haze, not bound to a lobe."""
    mask = np.zeros(scene.frame.shape, dtype=bool)
    side = either_side(rng)
    for number in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
        side = -side if number else side
        centre = scene.frame.spot(side, rng.uniform(0.35, 0.7), rng.uniform(0.25, 0.8), rng.uniform(0.3, 0.86))
        radii = (rng.uniform(0.2, 0.32) * scene.frame.half, rng.uniform(0.17, 0.27) * scene.frame.half)
        share = patch(scene, rng, centre, radii, rough=0.2, grain=12, softness=0.8)
        bronchi = _bronchogram(scene, rng, side, 1.9)
        mottle = np.clip(0.92 + 0.1 * cloud(rng, scene.frame.shape, 10), 0.5, 1.12)
        share = share * mottle * np.float32(rng.uniform(0.7, 0.85)) * (1 - np.float32(0.25) * bronchi)
        mask |= scene.fill(side, share, 0.2)
    return mask


def patch(
    scene: Scene,
    rng: Generator,
    centre: Points,
    radii: tuple[float, float],
    *,
    rough: float,
    grain: float,
    softness: float,
) -> Floats:
    """An irregular patch, `(height, width)` in [0, 1]: `softness` 0 cuts its edge, `rough` breaks it up."""
    r: Points = distance_from(scene.frame.shape, centre, radii, float(rng.uniform(-0.6, 0.6)))
    r = r + np.float32(rough) * (
        0.6 * cloud(rng, scene.frame.shape, grain) + 0.4 * cloud(rng, scene.frame.shape, 3 * grain)
    )
    return smooth_step(r, 1 + softness * 0.5, 1 - softness * 0.5 - 0.1)


def plant_atelectasis(scene: Scene, rng: Generator) -> Mask:
    """Plate-like bands above a raised hemidiaphragm (`reshape_atelectasis`); the mask has both: both are airless."""
    side = either_side(rng)
    layer = Layer(scene.frame.shape)
    count, common = int(rng.integers(1, 4)), rng.normal(0.0, 0.05)
    for level_v in rng.uniform(0.64, 0.7) + 0.085 * np.arange(count):
        v, tilt = level_v + rng.normal(0, 0.01), common + rng.normal(0, 0.012)
        start, stop = rng.uniform(0.12, 0.3), rng.uniform(0.68, 0.92)
        nodes = [(start, v + tilt), ((start + stop) / 2, v + rng.normal(0, 0.012)), (stop, v - tilt)]
        path = smooth_path(np.array([scene.frame.spot(side, at, at, level) for at, level in nodes]))
        width = rng.uniform(0.034, 0.055) * scene.frame.height
        layer.polygon(_plate(path, width), rng.uniform(0.8, 1.0))
    bands = layer.array(2)
    scene.extra += np.float32(rng.uniform(2.8, 3.6)) * bands * np.minimum(scene.lungs[side] / 4, 1)
    return ((bands > 0.25) & (scene.lungs[side] > 0.8)) | scene.frame.lost_lung(side)


def _plate(path: Points, width: float) -> Points:
    from_start = np.linspace(0, 1, len(path))
    thickness = width * np.sqrt(np.clip(4 * from_start * (1 - from_start), 0.05, 1))
    upper, lower = path.copy(), path.copy()
    upper[:, 1] -= thickness / 2
    lower[:, 1] += thickness / 2
    return np.concatenate([upper, lower[::-1]])
