"""The people of the phantoms: build, posture for one radiograph, and how findings change the outlines of the chest."""

from dataclasses import dataclass, field

import numpy as np

from chexpert_hf.phantoms.drawing import Generator

RIGHT, LEFT = -1, 1
"""Sides of the patient, as the sign of `u`."""


@dataclass(frozen=True)
class Patient:
    """What stays the same from one radiograph of a patient to the next; lengths relative to the average."""

    sex: str
    age: int
    fat: float
    """0 is thin, 1 is obese."""
    breadth: float
    lung_height: float
    """Apex to right dome, in breadths of the thorax."""
    heart_left: float
    """How far the heart reaches to the patient's left and right of the midline, in half breadths."""
    heart_right: float
    aortic_knob: float
    scoliosis: float
    rib_slope: float
    left_dome: float
    """How much lower the left dome stands, in lung heights."""
    vessel_seed: int


def sample_patient(rng: Generator) -> Patient:
    """Draws a patient."""
    sex = "Female" if rng.random() < 0.45 else "Male"
    age = int(np.clip(rng.normal(60, 17), 18, 90))
    return Patient(
        sex=sex,
        age=age,
        fat=float(rng.beta(1.6, 2.2)),
        breadth=float(rng.uniform(0.93, 1.04)) * (0.97 if sex == "Female" else 1.0),
        lung_height=float(rng.uniform(0.84, 1.0)),
        heart_left=float(rng.uniform(0.52, 0.62)),
        heart_right=float(rng.uniform(0.22, 0.29)),
        aortic_knob=float(rng.uniform(0.17, 0.21) + 0.05 * (age > 60) * rng.random()),
        scoliosis=float(rng.normal(0, 0.012)),
        rib_slope=float(rng.uniform(0.8, 1.2)),
        left_dome=float(rng.uniform(0.02, 0.075)),
        vessel_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Posture:
    """How the patient stood or lay for one radiograph."""

    projection: str
    shape: tuple[int, int]
    zoom: float
    shift: tuple[float, float]
    tilt: float
    """Slope of the body's axis in the image."""
    rotation: float
    """Of the thorax about its long axis: moves the front (heart, clavicles) against the spine, in half breadths."""
    inspiration: float


def sample_posture(rng: Generator, projection: str) -> Posture:
    """Draws the posture of one radiograph."""
    is_ap = projection == "AP"
    long_side = int(rng.integers(382, 394))
    is_portrait = rng.random() < (0.35 if is_ap else 0.55) or projection == "Lateral"
    shape = (long_side, 320) if is_portrait else (320, long_side)
    return Posture(
        projection=projection,
        shape=shape,
        zoom=float(rng.uniform(0.92, 1.05)),
        shift=(float(rng.normal(0, 0.018)), float(rng.normal(0, 0.015))),
        tilt=float(rng.normal(0, 0.03 if is_ap else 0.013)),
        rotation=float(rng.normal(0, 0.03 if is_ap else 0.015)),
        inspiration=float(rng.uniform(0.78, 0.93) if is_ap else rng.uniform(0.93, 1.03)),
    )


@dataclass(frozen=True)
class Shape:
    """What findings change about the outlines of the chest; the defaults change nothing."""

    heart_left: float = 1.0
    heart_right: float = 1.0
    mediastinum: float = 1.0
    raised: dict[int, float] = field(default_factory=dict)
    """Side -> how far volume loss raises that hemidiaphragm, in lung heights."""
