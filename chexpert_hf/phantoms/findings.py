"""The findings that phantoms can have, drawn as a radiologist would describe them, each with its exact mask.

Every `plant_*` function adds thickness to a `Scene` and yields the mask of each addition, `(height, width)` boolean.
Place, size and density come from the generator, which is the same for all views of a study. Descriptions follow Hansell
et al. 2008, "Fleischner Society: Glossary of Terms for Thoracic Imaging", Radiology 246(3).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import ndimage

from chexpert_hf.phantoms import opacities
from chexpert_hf.phantoms.drawing import Generator, Layer, smooth_step
from chexpert_hf.phantoms.frame import AIR_CONTRAST, LEFT, RIGHT, FrontalFrame, Mask, Scene, Shape, either_side, wall_at
from chexpert_hf.phantoms.skeleton import Break, fragments, posterior_ribs


def reshaped(streams: Mapping[str, Generator]) -> Shape:
    """The outlines of a chest with these findings, each with its stream of random numbers."""
    shape = Shape()
    if rng := streams.get("Cardiomegaly"):  # more than half the thorax's inner breadth
        shape.heart_left, shape.heart_right = float(rng.uniform(1.34, 1.5)), float(rng.uniform(1.3, 1.65))
    if rng := streams.get("Enlarged Cardiomediastinum"):  # its upper part about twice as broad as normal
        shape.mediastinum = float(rng.uniform(1.85, 2.6))
    if rng := streams.get("Atelectasis"):  # of the side that `plant_atelectasis` draws too
        shape.raised = {either_side(rng): float(rng.uniform(0.09, 0.16))}
    return shape


def break_ribs(rng: Generator) -> tuple[Break, ...]:
    """One to three neighbouring ribs, displaced."""
    side, first, count = either_side(rng), int(rng.integers(2, 6)), int(rng.choice([1, 2, 3], p=[0.1, 0.45, 0.45]))
    position, has_callus = rng.uniform(0.34, 0.58), bool(rng.random() < 0.4)
    breaks = []
    for rib in range(first, first + count):
        place = float(position + rng.normal(0, 0.03))
        step = float(rng.uniform(0.95, 1.4) * (1.15 if count == 1 else 1.0))
        breaks.append(Break(side, rib, place, step, has_callus))
    return tuple(breaks)


def fracture_mask(frame: FrontalFrame, breaks: tuple[Break, ...]) -> Mask:
    """The broken ends and the displaced stretch of each rib."""
    layer, width = Layer(frame.shape), 0.034 * frame.height
    for item in breaks:
        inner, outer = fragments(posterior_ribs(frame, item.side)[item.rib], item, width)
        layer.line(np.concatenate([inner[-5:], outer[:9]]), 3.8 * width, 1.0)
    return layer.array() > 0.5


def plant_pneumothorax(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """A fine pleural line with black, vessel-free space between it and the chest wall."""
    side, size = either_side(rng), float(rng.uniform(0.58, 0.84))
    frame, lung = scene.frame, scene.lungs[side]
    v, pivot_u, pivot_v = np.linspace(0.0, 1.08, 40), 0.2, 0.95
    u = pivot_u + (wall_at(v) - 0.01 - pivot_u) * (size + 0.06 * np.clip(v - 0.7, 0, 1))
    pleura = frame.place(side * u, pivot_v + (v - pivot_v) * (size + 0.04))
    collapsed, line = Layer(frame.shape), Layer(frame.shape)
    apex, base = frame.place(side * 0.02, (1 - size) * pivot_v), frame.place(side * np.array([0.9, 0.02]), 1.3)
    collapsed.polygon(np.concatenate([pleura, base, apex[None]]), 1.0)
    line.line(pleura, 1.5, 1.0)
    space = (1 - collapsed.array()) * (lung > 0.3)
    scene.vascular *= 1 - space
    # Free air instead of lung, and the collapsed lung is denser by the air that it lost.
    scene.extra -= np.float32(1 - AIR_CONTRAST) * lung * space
    scene.extra += np.float32(0.15 * (1 - size) * AIR_CONTRAST) * lung * ((1 - space) * (lung > 0.3))
    scene.extra += np.float32(1.5) * line.array() * (lung > 0.3)
    yield space > 0.5


def plant_pleural_effusion(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Fluid in the costophrenic angle, its upper edge a meniscus that climbs the chest wall."""
    frame, first, amount = scene.frame, either_side(rng), rng.uniform(0.1, 0.5) ** 1.1
    for side in (RIGHT, LEFT) if rng.random() < 0.35 else (first,):
        level = 1.02 - amount * (1.0 if side == first else rng.uniform(0.5, 0.9))
        across = frame.across(side)
        climb = 0.13 * across**4 + (0.05 * (1 - across) ** 4 if frame.is_frontal else 0.08 * (1 - across) ** 6)
        depth = frame.v[:, None] - (level + (0.0 if frame.is_frontal else 0.06) - climb)
        share = smooth_step(depth, -0.035, 0.06) * np.float32(0.96)
        yield scene.fill(side, share.astype(np.float32), 0.35)


def plant_pleural_other(scene: Scene, rng: Generator) -> Iterator[Mask]:
    """Pleural thickening along the lateral wall, and calcified plaques."""
    frame, rind, plaques = scene.frame, Layer(scene.frame.shape), Layer(scene.frame.shape)
    angles, t = np.linspace(0, 2 * np.pi, 15)[:-1], np.linspace(0, 1, 30)
    first, is_bilateral = either_side(rng), rng.random() < 0.5
    for side in (RIGHT, LEFT) if is_bilateral else (first,):
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


PLANTERS: dict[str, Callable[[Scene, Generator], Iterator[Mask]]] = {
    "Lung Opacity": opacities.plant_lung_opacity,
    "Lung Lesion": opacities.plant_lung_lesion,
    "Edema": opacities.plant_edema,
    "Consolidation": opacities.plant_consolidation,
    "Pneumonia": opacities.plant_pneumonia,
    "Atelectasis": opacities.plant_atelectasis,
    "Pneumothorax": plant_pneumothorax,
    "Pleural Effusion": plant_pleural_effusion,
    "Pleural Other": plant_pleural_other,
}
"""The findings that are added to the scene; the others change outlines, break ribs or lie on top (devices)."""

NOT_IN_LATERAL = ("Enlarged Cardiomediastinum", "Pneumothorax", "Pleural Other", "Fracture")
"""The findings that lateral views do not show."""
