"""Synthetic chest radiographs with exact masks of every planted finding.

`render_phantom` draws one radiograph; `folder` writes folders of them. The patient and the coordinates are in `frame`,
tissues in `anatomy`, `skeleton` and `lateral`, planted findings in `findings` and `devices`, and the way from
thickness to an image in `film`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.labels import OBSERVATIONS, PARENTS, ancestors, check_observations
from chexpert_hf.phantoms import film
from chexpert_hf.phantoms.anatomy import frontal_chest
from chexpert_hf.phantoms.devices import plant_support_devices
from chexpert_hf.phantoms.drawing import Floats, Generator, cloud
from chexpert_hf.phantoms.findings import NOT_IN_LATERAL, PLANTERS, reshaped
from chexpert_hf.phantoms.frame import AIR_CONTRAST, Frame, FrontalFrame, LateralFrame, Mask, Patient, Scene
from chexpert_hf.phantoms.lateral import lateral_chest
from chexpert_hf.phantoms.skeleton import Break, break_ribs, fracture_mask

Key = tuple[int, ...]

PROJECTIONS = ("PA", "AP", "Lateral")

CHILDREN: dict[str, tuple[str, ...]] = {
    parent: tuple(name for name in OBSERVATIONS if parent in ancestors(name))
    for parent in sorted(set(PARENTS.values()))
}
"""Parent -> all observations below it in the label hierarchy; it is positive whenever one of them is."""


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    `masks` is without No Finding, and without findings that this projection does not show.
    """

    image: NDArray[np.uint8]  # (height, width), bright where little radiation came through
    masks: dict[str, Mask]  # positive observation -> (height, width)


def render_phantom(seed: int, observations: Collection[str] = (), *, projection: str = "PA") -> Phantom:
    """Draws one radiograph.

    The same seed is the same patient in the same position, with or without findings, and the same findings in every
    projection. A parent in the label hierarchy is drawn on its own only where none of its children is asked for;
    otherwise it is implied, and its mask is the union of theirs.

    Args:
        seed: Not negative.
        observations: To plant. No Finding, or nothing, is a normal chest; Support Devices may be planted in one.
        projection: "PA", "AP" or "Lateral". Pneumothorax, Pleural Other, Fracture and a widened upper mediastinum are
            not drawn in lateral views, where they are hard to see in reality.

    Raises:
        ValueError: If an observation or the projection is unknown, if No Finding is combined with a finding, or if the
            seed is negative.
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
    """The observations and all their parents in the hierarchy."""
    return observations | {parent for parent, children in CHILDREN.items() if observations & set(children)}


def render_study(patient: Patient, key: Key, observations: Collection[str], projection: str) -> Phantom:
    """Draws one view of a study: `key` decides posture, exposure and what the findings look like."""
    chosen = implied(set(observations))
    planted = [name for name in OBSERVATIONS if name in chosen and not chosen & set(CHILDREN.get(name, ()))]
    if projection == "Lateral":
        planted = [name for name in planted if name not in NOT_IN_LATERAL]
    view = PROJECTIONS.index(projection)
    frame = make_frame(patient, key, planted, projection)
    breaks = break_ribs(_stream(key, "Fracture")) if "Fracture" in planted else ()
    rng = np.random.default_rng([*key, 4, view])
    scene, solid = _normal_chest(frame, rng, 1.35 if "Edema" in planted else 1.0, breaks)
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
    grey = film.expose(thickness, np.random.default_rng([*key, 3, view]), projection, patient.fat)
    grey = film.stamp_marker(film.collimate(grey, rng), rng, projection)
    return Phantom(np.clip(grey + np.float32(0.5), 0, 255).astype(np.uint8), _with_parents(masks))


def make_frame(patient: Patient, key: Key, planted: Collection[str], projection: str) -> Frame:
    """The outlines of the chest in one view, as the planted findings change them."""
    change = reshaped({name: _stream(key, name) for name in planted})
    frame = LateralFrame if projection == "Lateral" else FrontalFrame
    return frame(patient, np.random.default_rng([*key, 2, PROJECTIONS.index(projection)]), projection, change)


def _stream(key: Key, name: str) -> Generator:
    """Random numbers of an observation's own, so that no finding depends on which others are planted."""
    return np.random.default_rng([*key, 1, OBSERVATIONS.index(name)])


def _normal_chest(frame: Frame, rng: Generator, engorged: float, breaks: tuple[Break, ...]) -> tuple[Scene, Floats]:
    """The chest before findings: the scene that they are planted in, and everything else in cm of water."""
    if isinstance(frame, FrontalFrame):
        lungs, vessels, solid = frontal_chest(frame, rng, engorged, breaks)
    else:
        lungs, vessels, solid = lateral_chest(frame, rng, engorged)
    air = sum(lungs.values(), np.float32(0))
    vascular = vessels * np.minimum(air / 8, 1) + np.float32(0.022) * cloud(rng, frame.shape, 8) * air
    return Scene(frame, lungs, np.zeros(frame.shape, np.float32), vascular), solid - np.float32(AIR_CONTRAST) * air


def _with_parents(masks: dict[str, Mask]) -> dict[str, Mask]:
    """Adds the implied parents' masks, drops the empty ones, and sorts by the order of the labels."""
    full = dict(masks)
    for parent, children in CHILDREN.items():
        if parts := [masks[name] for name in (parent, *children) if name in masks]:
            full[parent] = np.logical_or.reduce(parts)
    return {name: full[name] for name in OBSERVATIONS if name in full and full[name].any()}
