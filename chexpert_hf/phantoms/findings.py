"""Draws the findings of phantoms as radiologists describe them, each with its exact mask.

Every `plant_*` function is a generator that adds thickness to a `Scene` and yields `(height, width)` boolean masks.
`rng` begins in the same state for all views of a study, so that they show the same finding. Descriptions follow
Hansell et al. 2008, "Fleischner Society: Glossary of Terms for Thoracic Imaging", Radiology 246(3).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import ndimage

from chexpert_hf.phantoms.drawing import Floats, Generator, Layer, cloud, distance_from, smooth_path, smooth_step
from chexpert_hf.phantoms.frame import AIR_CONTRAST, LEFT, RIGHT, SIDES, Frame, Mask, Scene, Shape, either_side, wall_at


def draw_shape(streams: Mapping[str, Generator]) -> Shape:
    """Choose at random how findings change the outlines of the chest.

    `streams` maps each finding in the radiograph to its random generator.
    """
    shape = Shape()
    if rng := streams.get("Cardiomegaly"):  # more than half the thorax's inner breadth
        shape.heart_left, shape.heart_right = float(rng.uniform(1.34, 1.5)), float(rng.uniform(1.3, 1.65))
    if rng := streams.get("Enlarged Cardiomediastinum"):  # its upper part about twice as broad as normal
        shape.mediastinum = float(rng.uniform(1.85, 2.6))
    if rng := streams.get("Atelectasis"):  # on the side on which `plant_atelectasis` draws the bands
        shape.raised = {either_side(rng): float(rng.uniform(0.09, 0.16))}
    return shape


def plant_pneumothorax(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add a fine pleural line and black, vessel-free space between it and the chest wall; yield the space's mask."""
    side, size = either_side(rng), float(rng.uniform(0.58, 0.84))
    frame, lung = scene.frame, scene.lungs[side]
    v, pivot_u, pivot_v = np.linspace(0.0, 1.08, 40), 0.2, 0.95
    u = pivot_u + (wall_at(v) - 0.01 - pivot_u) * (size + 0.06 * np.clip(v - 0.7, 0, 1))
    pleura = frame.place(side * u, pivot_v + (v - pivot_v) * (size + 0.04))
    collapsed, line, is_lung = Layer(frame.shape), Layer(frame.shape), lung > 0.3
    apex, base = frame.place(side * 0.02, (1 - size) * pivot_v), frame.place(side * np.array([0.9, 0.02]), 1.3)
    collapsed.polygon(np.concatenate([pleura, base, apex[None]]), 1.0)
    line.line(pleura, 1.5, 1.0)
    space = (1 - collapsed.array()) * is_lung
    scene.vascular *= 1 - space
    # Free air instead of lung, and the collapsed lung is denser by the air that it lost.
    scene.extra -= np.float32(1 - AIR_CONTRAST) * lung * space
    scene.extra += np.float32(0.15 * (1 - size) * AIR_CONTRAST) * lung * ((1 - space) * is_lung)
    scene.extra += np.float32(1.5) * line.array() * is_lung
    yield space > 0.5


def plant_pleural_effusion(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add fluid in one or both costophrenic angles, with a meniscus up the chest wall; yield a mask per side."""
    frame, first, amount = scene.frame, either_side(rng), rng.uniform(0.1, 0.5) ** 1.1
    for side in SIDES if rng.random() < 0.35 else (first,):
        level = 1.02 - amount * (1.0 if side == first else rng.uniform(0.5, 0.9))
        across = frame.across(side)
        climb = 0.13 * across**4 + (0.05 * (1 - across) ** 4 if frame.is_frontal else 0.08 * (1 - across) ** 6)
        depth = frame.v[:, None] - (level + (0.0 if frame.is_frontal else 0.06) - climb)
        share = smooth_step(depth, -0.035, 0.06) * np.float32(0.96)
        yield scene.fill(side, share.astype(np.float32), 0.35)


def plant_pleural_other(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add pleural thickening along the lateral wall, and calcified plaques; yield one mask of both."""
    frame, rind, plaques = scene.frame, Layer(scene.frame.shape), Layer(scene.frame.shape)
    angles, t = np.linspace(0, 2 * np.pi, 15)[:-1], np.linspace(0, 1, 30)
    first, is_bilateral = either_side(rng), rng.random() < 0.5
    for side in SIDES if is_bilateral else (first,):
        v = np.linspace(rng.uniform(0.12, 0.35), rng.uniform(0.7, 0.98), 30)
        bumps = ndimage.gaussian_filter1d(rng.standard_normal(30), 2.0) * 1.6
        thickness = rng.uniform(0.07, 0.12) * np.clip(1 + 0.6 * bumps, 0.4, 2) * np.sqrt(np.clip(6 * t * (1 - t), 0, 1))
        outer, inner = frame.place(side * (wall_at(v) + 0.03), v), frame.place(side * (wall_at(v) - thickness), v)
        rind.polygon(np.concatenate([outer, inner[::-1]]), 1.0)
        for _ in range(int(rng.integers(2, 6))):
            centre = frame.spot(side, rng.uniform(0.45, 0.85), 0.5, rng.uniform(0.35, 0.9))
            # The "holly leaf": an irregular, sharp-edged outline with a denser rim.
            leaf = np.stack([np.cos(angles) * 0.75, np.sin(angles) * 1.2], axis=1) * rng.uniform(0.6, 1.35, (14, 1))
            leaf *= 0.055 * frame.half
            plaques.polygon(centre + leaf, 0.95)
            plaques.polygon(centre + 0.65 * leaf, 0.7)
    lung = np.minimum((scene.lungs[RIGHT] + scene.lungs[LEFT]) / 3, 1)
    thickened, calcified = rind.array(), plaques.array()
    scene.extra += (np.float32(4.0) * thickened + np.float32(2.6) * calcified) * lung
    yield ((thickened > 0.4) | (calcified > 0.2)) & (lung > 0.1)


def plant_lung_opacity(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add one to three hazy, ill-defined patches through which vessels show (ground glass); yield a mask of each."""
    frame, side = scene.frame, either_side(rng)
    for number in range(int(rng.integers(1, 4))):
        side = side if number != 1 else -side
        centre = frame.spot(side, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.85))
        radii = (rng.uniform(0.2, 0.34) * frame.half, rng.uniform(0.2, 0.36) * frame.half)
        distance = distance_from(frame.shape, centre, radii, rng.uniform(-0.6, 0.6))
        haze = _patch(rng, distance, rough=0.16, grain=16, softness=1.3)
        yield scene.fill(side, haze * np.float32(rng.uniform(0.32, 0.5)), 0.12)


def plant_lung_lesion(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add round, well-defined nodules or a mass, denser than vessels; yield a mask of each."""
    frame, is_mass = scene.frame, rng.random() < 0.4
    for _ in range(1 if is_mass else int(rng.choice([1, 2, 4, 6], p=[0.45, 0.25, 0.2, 0.1]))):
        side = either_side(rng)
        radius_cm = rng.uniform(2.2, 3.4) if is_mass else rng.uniform(1.4, 2.1)
        radius = radius_cm * frame.half / 13
        # A large lesion keeps further from the chest wall, so that it stays within the lung.
        lateral, depth = rng.uniform(0.28, 0.95 - 0.11 * radius_cm), rng.uniform(0.15, 0.85)
        centre, stretch = frame.spot(side, lateral, depth, rng.uniform(0.24, 0.84)), rng.uniform(0.85, 1.15)
        r = distance_from(frame.shape, centre, (radius * stretch, radius / stretch), rng.uniform(0, 3))
        scene.extra += np.float32(AIR_CONTRAST * (1.6 * radius_cm + 2.4)) * np.sqrt(np.clip(1 - r * r, 0, 1))
        yield r < 1


def plant_edema(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add bat's-wing haze at both hila, and in frontal views septal (Kerley B) lines at the bases of the lungs.

    Yield a mask of the haze on each side, then one mask of all lines.
    """
    frame, strength, reach = scene.frame, rng.uniform(0.4, 0.68), rng.uniform(0.85, 1.15)
    ripple, lines = cloud(rng, frame.shape, 14), Layer(frame.shape)
    for side in SIDES:
        radii = (0.48 * reach * frame.half, 0.36 * reach * frame.height)
        r = distance_from(frame.shape, frame.spot(side, 0.12, 0.5, 0.54), radii, 0)
        wings = np.exp(-(r**2)) * np.clip(1 + 0.16 * ripple, 0.5, 1.5)
        yield scene.fill(side, np.minimum(strength * wings, 0.85).astype(np.float32), 0.13)
    for side in SIDES if frame.is_frontal else ():
        for v in np.arange(0.72, 1.0, 0.035):
            outer = frame.spot(side, 0.97, 0.5, v + rng.normal(0, 0.006))
            inner = frame.spot(side, rng.uniform(0.78, 0.86), 0.5, v + rng.normal(0, 0.008))
            lines.line(np.array([outer, inner]), 1.2, 0.8)
    scene.extra += np.float32(1.3) * lines.array()
    yield lines.array() > 0.2


def plant_consolidation(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add a dense lobe with a straight fissure and air bronchograms; yield its mask."""
    lobe = str(rng.choice(["upper", "middle", "lower", "lower"]))
    side = RIGHT if lobe == "middle" else either_side(rng)
    density = np.float32(rng.uniform(0.66, 0.88))
    share = _lobe(scene.frame, side, lobe, rng) * density
    share *= np.clip(1 + 0.06 * cloud(rng, scene.frame.shape, 12), 0.7, 1.2)
    bronchi = _bronchogram(scene.frame, rng, side, {"upper": 0.5, "middle": 2.0, "lower": 2.3}[lobe])
    yield scene.fill(side, np.clip(share, 0, 0.96) * (1 - np.float32(0.5) * bronchi), 0.3)


def _lobe(frame: Frame, side: int, lobe: str, rng: Generator) -> Floats:
    """Return a soft mask of the "upper", "middle" or "lower" lobe, `(height, width)` in [0, 1].

    Only at a fissure is its edge sharp.
    """
    across, ripple = frame.across(side), cloud(rng, frame.shape, 30)
    v = frame.v[:, None] + 0.03 * ripple
    fissure = frame.v[:, None] + 0.07 * (across - 0.5) + 0.006 * ripple - rng.uniform(-0.05, 0.05)
    if lobe == "upper":
        return smooth_step(fissure, 0.485, 0.465) * smooth_step(v, 0.02, 0.2)
    if lobe == "middle":
        return smooth_step(fissure, 0.52, 0.545) * smooth_step(across + 0.3 * (v - 0.75), 0.8, 0.45)
    # Seen from the side, the oblique fissure keeps the lower lobe from the front of the chest.
    behind = np.float32(1) if frame.is_frontal else smooth_step(across - 0.5 * (0.9 - v), 0.4, 0.48)
    return smooth_step(v - rng.uniform(-0.05, 0.05), 0.56, 0.78) * behind


def _bronchogram(frame: Frame, rng: Generator, side: int, heading: float) -> Floats:
    """Return air-filled bronchi that spread from the hilum of a lung, `(height, width)` in [0, 1].

    `heading` is their mean direction in radians: 0 is up, pi / 2 is outwards (in lateral views, to the back).
    """
    layer, hilum = Layer(frame.shape), frame.spot(side, 0.1, 0.55, 0.5)
    way = side if frame.is_frontal else 1
    for _ in range(4):
        angle = heading + rng.uniform(-0.5, 0.5) + rng.normal(0, 0.15) * np.linspace(0, 1, 5)
        steps = np.linspace(0.15, 1, 5) * rng.uniform(0.25, 0.45) * frame.height
        path = hilum + np.stack([way * np.sin(angle) * steps, -np.cos(angle) * steps], axis=1)
        layer.line(path, 2.6, 1.0)
        layer.line(path[2] + (path[3:] - path[2]) @ np.array([[0.8, 0.6], [-0.6, 0.8]]), 1.8, 0.9)
    return layer.array()


def plant_pneumonia(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add one or two patchy, confluent consolidations, denser than haze, not bound to a lobe; yield a mask of each."""
    frame, side = scene.frame, either_side(rng)
    for number in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
        side = -side if number else side
        centre = frame.spot(side, rng.uniform(0.35, 0.7), rng.uniform(0.25, 0.8), rng.uniform(0.3, 0.86))
        radii = (rng.uniform(0.2, 0.32) * frame.half, rng.uniform(0.17, 0.27) * frame.half)
        distance = distance_from(frame.shape, centre, radii, rng.uniform(-0.6, 0.6))
        share = _patch(rng, distance, rough=0.2, grain=12, softness=0.8)
        bronchi = _bronchogram(frame, rng, side, 1.9)
        share *= np.clip(0.92 + 0.1 * cloud(rng, frame.shape, 10), 0.5, 1.12)
        yield scene.fill(side, share * np.float32(rng.uniform(0.7, 0.85)) * (1 - np.float32(0.25) * bronchi), 0.2)


def _patch(rng: Generator, distance: Floats, rough: float, grain: float, softness: float) -> Floats:
    """Return an irregular patch, `(height, width)`: 1 where `distance` is well below 1, 0 where it is well above 1.

    `distance` is a result of `distance_from`. `softness` blurs the patch's edge; `rough` breaks the edge up by noise
    with structures of about `grain` pixels.
    """
    shape = (distance.shape[0], distance.shape[1])
    r = distance + np.float32(rough) * (0.6 * cloud(rng, shape, grain) + 0.4 * cloud(rng, shape, 3 * grain))
    return smooth_step(r, 1 + softness * 0.5, 1 - softness * 0.5 - 0.1)


def plant_atelectasis(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Add plate-like bands above the hemidiaphragm that `draw_shape` raised.

    `rng` must be a new generator with the seed of the one that `draw_shape` got for Atelectasis: the first number drawn
    from it decides the side. Yield one mask: the bands, and the strip of lung that the raised hemidiaphragm now covers.
    """
    frame, side, layer = scene.frame, either_side(rng), Layer(scene.frame.shape)
    count, common = int(rng.integers(1, 4)), rng.normal(0.0, 0.05)
    for level in rng.uniform(0.64, 0.7) + 0.085 * np.arange(count):
        v, tilt = level + rng.normal(0, 0.01), common + rng.normal(0, 0.012)
        start, stop = rng.uniform(0.12, 0.3), rng.uniform(0.68, 0.92)
        nodes = [(start, v + tilt), ((start + stop) / 2, v + rng.normal(0, 0.012)), (stop, v - tilt)]
        path = smooth_path(np.array([frame.spot(side, across, across, v) for across, v in nodes]))
        t = np.linspace(0, 1, len(path))
        thickness = rng.uniform(0.034, 0.055) * frame.height * np.sqrt(np.clip(4 * t * (1 - t), 0.05, 1))
        half = np.stack([np.zeros_like(t), thickness / 2], axis=1)
        layer.polygon(np.concatenate([path - half, (path + half)[::-1]]), rng.uniform(0.8, 1.0))
    bands = layer.array(2)
    scene.extra += np.float32(rng.uniform(2.8, 3.6)) * bands * np.minimum(scene.lungs[side] / 4, 1)
    yield ((bands > 0.25) & (scene.lungs[side] > 0.8)) | frame.lost_lung(side)


PLANTERS: dict[str, Callable[[Scene, Generator], Iterator[Mask]]] = {
    "Lung Opacity": plant_lung_opacity, "Lung Lesion": plant_lung_lesion, "Edema": plant_edema,
    "Consolidation": plant_consolidation, "Pneumonia": plant_pneumonia, "Atelectasis": plant_atelectasis,
    "Pneumothorax": plant_pneumothorax, "Pleural Effusion": plant_pleural_effusion,
    "Pleural Other": plant_pleural_other,
}  # fmt: skip
"""Finding -> function that adds it to a scene; the other findings change outlines, break ribs or are devices."""

NOT_IN_LATERAL = ("Enlarged Cardiomediastinum", "Pneumothorax", "Pleural Other", "Fracture")
"""The findings that lateral views do not show."""
