"""Draws one phantom: a synthetic chest radiograph with an exact mask of every finding in it.

The patient and the coordinates are in `frame`, tissues in `anatomy` and `skeleton`, findings in `findings` and
`devices`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from chexpert_hf.labels import OBSERVATIONS, PARENTS, ancestors, check_observations
from chexpert_hf.phantoms.anatomy import normal_chest
from chexpert_hf.phantoms.devices import plant_support_devices
from chexpert_hf.phantoms.drawing import Floats, Generator, enlarge
from chexpert_hf.phantoms.findings import NOT_IN_LATERAL, PLANTERS, draw_shape
from chexpert_hf.phantoms.frame import Frame, FrontalFrame, LateralFrame, Mask, Patient
from chexpert_hf.phantoms.skeleton import break_ribs, fracture_mask

Key = tuple[int, ...]

_font = cache(ImageFont.load_default)

PROJECTIONS = ("PA", "AP", "Lateral")

CHILDREN = {
    parent: tuple(name for name in OBSERVATIONS if parent in ancestors(name)) for parent in sorted({*PARENTS.values()})
}
"""Parent -> all observations below it in the label hierarchy; it is positive whenever one of them is."""


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph, with masks of the findings that its projection shows and of their parents."""

    image: NDArray[np.uint8]  # (height, width), bright where little radiation came through
    masks: dict[str, Mask]  # positive observation -> (height, width)


def render_phantom(seed: int, observations: Collection[str] = (), *, projection: str = "PA") -> Phantom:
    """Draw one synthetic radiograph.

    The same seed gives the same patient in the same position, with or without findings, and the same findings in every
    projection. A parent in the label hierarchy, such as Lung Opacity, is drawn only if none of its children is;
    otherwise it is implied, and its mask is the union of theirs.

    Args:
        seed: Seed of everything that is random, at least 0.
        observations: Findings to draw. No Finding, or nothing, is a normal chest, which may have Support Devices.
        projection: "PA", "AP" or "Lateral". Lateral views do not show Pneumothorax, Pleural Other, Fracture and
            Enlarged Cardiomediastinum, which are hard to see in them in reality, nor ports and chest tubes among the
            Support Devices. A finding that is not shown has no mask.

    Raises:
        ValueError: If an observation or the projection is unknown, the seed is negative, or No Finding is combined with
            a finding.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"Unknown projection {projection!r}; expected one of: {', '.join(PROJECTIONS)}.")
    if seed < 0:
        raise ValueError(f"Expected a seed of at least 0, got {seed}.")
    wanted = set(check_observations(observations, OBSERVATIONS)) if observations else set()
    if "No Finding" in wanted and wanted - {"No Finding", "Support Devices"}:
        raise ValueError(f"No Finding excludes other findings, got: {', '.join(sorted(wanted))}.")
    return render_study(Patient((seed,)), (seed,), wanted, projection)


def implied(observations: set[str]) -> set[str]:
    """Return the observations and all their parents in the label hierarchy."""
    return observations | {parent for parent, children in CHILDREN.items() if observations & set(children)}


def render_study(patient: Patient, key: Key, observations: Collection[str], projection: str) -> Phantom:
    """Draw one view of a study; `key` seeds posture, exposure and the appearance of findings."""
    chosen, hidden = implied(set(observations)), NOT_IN_LATERAL if projection == "Lateral" else ()
    shown = [name for name in OBSERVATIONS if name in chosen and name not in hidden]
    planted = [name for name in shown if not chosen & set(CHILDREN.get(name, ()))]
    view = PROJECTIONS.index(projection)
    frame = make_frame(patient, key, planted, projection)
    breaks = break_ribs(_stream(key, "Fracture")) if "Fracture" in planted else ()
    rng = np.random.default_rng([*key, 4, view])
    scene, solid = normal_chest(frame, rng, 1.35 if "Edema" in planted else 1.0, breaks)
    masks: dict[str, Mask] = {}
    for name in filter(PLANTERS.get, planted):
        masks[name] = np.logical_or.reduce(list(PLANTERS[name](scene, _stream(key, name))))
    if "Cardiomegaly" in planted:
        masks["Cardiomegaly"] = frame.heart_mask()
    if isinstance(frame, FrontalFrame):
        if "Enlarged Cardiomediastinum" in planted:
            masks["Enlarged Cardiomediastinum"] = frame.upper_mediastinum_mask()
        masks["Fracture"] = fracture_mask(frame, breaks)
    if "Support Devices" in planted:
        metal = plant_support_devices(frame, _stream(key, "Support Devices"))
        scene.extra += metal
        masks["Support Devices"] = metal > 0.4
    thickness = solid + scene.vascular + scene.extra
    grey = expose(thickness, np.random.default_rng([*key, 3, view]), projection, patient.fat)
    grey = stamp_marker(collimate(grey, rng), rng, projection)
    return Phantom(np.clip(grey + np.float32(0.5), 0, 255).astype(np.uint8), _with_parents(masks))


def make_frame(patient: Patient, key: Key, planted: Collection[str], projection: str) -> Frame:
    """Return the geometry of the chest in one view; findings in `planted` change it, and `key` seeds the posture."""
    change = draw_shape({name: _stream(key, name) for name in planted})
    frame = LateralFrame if projection == "Lateral" else FrontalFrame
    return frame(patient, np.random.default_rng([*key, 2, PROJECTIONS.index(projection)]), projection, change)


def _stream(key: Key, name: str) -> Generator:
    """Return an observation's own random generator, so that no finding depends on which others are drawn."""
    return np.random.default_rng([*key, 1, OBSERVATIONS.index(name)])


def _with_parents(masks: dict[str, Mask]) -> dict[str, Mask]:
    """Unite each observation's mask with those of the observations below it in the label hierarchy.

    The mask of Lung Opacity, for instance, then covers that of Edema, and is added if it was missing. Empty masks are
    dropped. The result is in the order of `OBSERVATIONS`.
    """
    parts = {name: [masks[each] for each in (name, *CHILDREN.get(name, ())) if each in masks] for name in OBSERVATIONS}
    full = {name: np.logical_or.reduce(each) for name, each in parts.items() if each}
    return {name: mask for name, mask in full.items() if mask.any()}


def expose(thickness: Floats, rng: Generator, projection: str, fat: float) -> Floats:
    """Turn thickness, an array `(height, width)` in cm of water, into grey levels: 0 black, 255 white, not yet clipped.

    Exposure follows the patient's build (`fat`, 0 thin, 1 obese), as with automatic exposure control; portable AP views
    are noisier, softer and flatter.
    """
    is_ap, is_lateral = projection == "AP", projection == "Lateral"
    centre = float(12.4 + 4.4 * fat + 2.2 * is_lateral + rng.normal(0, 0.55))  # shown as mid grey
    latitude = float(rng.uniform(2.6, 3.3) + 0.45 * is_ap + 0.3 * is_lateral)
    noise = float(rng.uniform(1.6, 3.6) + 1.2 * is_ap + 2.0 * fat)  # standard deviation at mid grey, in grey levels
    blur = float(rng.uniform(0.45, 0.75) + 0.2 * is_ap)  # of focal spot and motion, in pixels
    detail = float(rng.uniform(0.25, 0.6))  # strength of the unsharp masking that computed radiography applies
    noise_rng = np.random.default_rng(int(rng.integers(2**31)))
    grey = 1 / (1 + np.exp((np.float32(centre) - thickness) / np.float32(latitude))) * np.float32(255)
    small = np.asarray(Image.fromarray(grey).reduce(6))
    grey += np.float32(detail) * (grey - enlarge(ndimage.gaussian_filter(small, 3.0), (grey.shape[0], grey.shape[1])))
    # Fewer photons reach the detector where the patient is thick; blurring below halves the deviation.
    sigma = np.float32(2.0 * noise) * (0.35 + grey * np.float32(0.65 / 255))
    # Uniform noise is four times as fast to draw, and Gaussian enough once it is blurred.
    grey += sigma * np.float32(12**0.5) * (noise_rng.random(grey.shape, dtype=np.float32) - np.float32(0.5))
    return ndimage.gaussian_filter(grey, blur, truncate=3.0)


def collimate(grey: Floats, rng: Generator) -> Floats:
    """Return the image, in some cases (chosen at random) with dark borders as a collimator's blades leave them."""
    if rng.random() < 0.55:
        return grey
    height, width = grey.shape
    inset = rng.uniform(0, 0.045, 4) * (rng.random(4) < 0.7)
    slant = rng.normal(0, 0.008, 4)
    left, right = inset[0] * width, (1 - inset[1]) * width
    top, bottom = inset[2] * height, (1 - inset[3]) * height
    upper = [(left + slant[0] * height, top), (right + slant[1] * height, top + slant[2] * width)]
    corners = [*upper, (right, bottom), (left, bottom + slant[3] * width)]
    field = Image.new("L", (width, height), 8)
    ImageDraw.Draw(field).polygon(corners, fill=255)
    return grey * (np.asarray(field, dtype=np.float32) * np.float32(1 / 255))


def stamp_marker(grey: Floats, rng: Generator, projection: str) -> Floats:
    """Return the image with a side marker: L on the patient's left or R on the right.

    On some AP views, text such as "PORTABLE" stands below the marker.
    """
    height, width = grey.shape
    is_left = projection == "Lateral" or rng.random() < 0.75
    size = int(rng.integers(15, 23))
    plate = Image.new("L", (96, 96))
    draw = ImageDraw.Draw(plate)
    style = rng.choice(["plain", "ring", "initials"])
    if style == "ring":
        draw.circle((48, 48), size * 0.75, outline=255, width=2)
    draw.text((48, 48), "L" if is_left else "R", fill=255, font=_font(size), anchor="mm")
    if style == "initials":
        letters = "".join(rng.choice(list("ABCDEFGHJKMNPSTVW"), 2))
        draw.text((48, 48 + size), letters, fill=235, font=_font(9), anchor="mm")
    if projection == "AP" and rng.random() < 0.7:
        text = str(rng.choice(["AP", "PORTABLE", "AP PORTABLE", "SUPINE", "UPRIGHT"]))
        draw.text((48, 48 + 1.9 * size), text, fill=245, font=_font(9), anchor="mm")
    plate = plate.rotate(float(rng.normal(0, 5)), Image.Resampling.BILINEAR)
    x = rng.uniform(0.87, 0.92) * width if is_left else rng.uniform(0.08, 0.13) * width
    y = rng.uniform(0.08, 0.3) * height
    layer = Image.new("L", (width, height))
    layer.paste(plate, (round(x) - 48, round(y) - 48))
    ink = np.asarray(layer, dtype=np.float32) * np.float32(1 / 255)
    return grey * (1 - ink) + 248 * ink
