"""The gate: says from the pixels whether an image is a chest radiograph like those that the model was trained on.

It is fitted on radiographs alone, and it is one file of the model folder. Radiographs that are inverted or turned are
accepted with a warning if they look like radiographs once they are put right. Lateral views are accepted with a
warning, and without one if the model was trained on some.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chexpert_hf.errors import ModelFolderError
from chexpert_hf.gate.distance import Discriminant, Distance, Floats, Poses
from chexpert_hf.gate.features import (
    NUM_FEATURES,
    NUM_STRUCTURES,
    RESOLUTION,
    THUMBNAIL_SIDE,
    detail,
    gate_features,
    gray_levels,
    structures,
    thumbnails,
)

GATE_FILE = "gate.safetensors"
VERSION = "2"

LEAST_SIDE = 64
"""Smaller images in pixels cannot be judged: a radiograph of 64 x 64 shows no more than lungs and heart."""

LONGEST_PROPORTION = 2.5
"""Chest radiographs are up to 1.5 times as long as wide, or as wide as long."""

_LATERAL = "This looks like a lateral view. The model was trained on frontal views only."
_SAID_LATERAL = "This is a lateral view, as the DICOM file says. The model was trained on frontal views only."

# A lateral view is farther from frontal ones than they are from each other; what is farther still is no radiograph.
_LATERAL_REACH = 2.5
_LEAST_CONTRAST = 2.0  # standard deviation in gray levels
_REFUSED = "This does not look like a chest radiograph: "


class Pose(str, Enum):
    """A way in which a radiograph may lie."""

    UPRIGHT = "upright"
    INVERTED = "inverted"
    LEFT = "turned to the left"
    UPSIDE_DOWN = "upside down"
    RIGHT = "turned to the right"
    CROPPED = "cropped"

    def applied(self, gray: Tensor) -> Tensor:
        """An upright image `(..., height, width)`, uint8, in this pose; CROPPED needs the whole image."""
        if self is Pose.INVERTED:
            return 255 - gray
        return gray.rot90(_QUARTERS.get(self, 0), (-2, -1))

    def undone(self, gray: Tensor) -> Tensor:
        """An image in this pose put upright; one that is cropped stays as it is."""
        return 255 - gray if self is Pose.INVERTED else gray.rot90(-_QUARTERS.get(self, 0), (-2, -1))


_QUARTERS = {Pose.LEFT: 1, Pose.UPSIDE_DOWN: 2, Pose.RIGHT: 3}  # counter-clockwise

POSES = tuple(Pose)

_WARNINGS = {
    Pose.INVERTED: "This radiograph looks inverted: air seems to be bright and bone dark. Invert it for valid scores.",
    Pose.LEFT: "This radiograph looks turned by 90 degrees to the left. Turn it upright for valid scores.",
    Pose.UPSIDE_DOWN: "This radiograph looks upside down. Turn it by 180 degrees for valid scores.",
    Pose.RIGHT: "This radiograph looks turned by 90 degrees to the right. Turn it upright for valid scores.",
    Pose.CROPPED: "This radiograph looks cropped: less of the chest is in it than in those that the model knows.",
}


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one image.

    Attributes:
        is_chest_radiograph: Whether the model should judge it.
        reason: One sentence why not; empty if it should.
        warnings: Sentences on how the image seems to lie.
        distance: How far the image, put upright if it is accepted so, is from the training images, as a multiple of
            the limit; infinite if it was refused without looking at that.
    """

    is_chest_radiograph: bool
    reason: str
    warnings: tuple[str, ...]
    distance: float

    @property
    def messages(self) -> tuple[str, ...]:
        """The reason, if the image is refused, and the warnings."""
        return (self.reason, *self.warnings) if self.reason else self.warnings


@dataclass(frozen=True)
class GateInput:
    """One image, prepared for the gate.

    Attributes:
        gray: The gray levels `(1, RESOLUTION, RESOLUTION)`, uint8.
        size: (width, height) of the whole image in pixels.
        is_colour: Whether the image was in colour before it was read.
        is_lateral: Whether the file says that the view is lateral; None if it does not say.
    """

    gray: Tensor
    size: tuple[int, int]
    is_colour: bool = False
    is_lateral: bool | None = None


@dataclass(frozen=True)
class Gate:
    """A fitted gate; `fit_gate` makes one.

    Attributes:
        distance: From the training images.
        limit: Of the distance.
        strict_limit: Of the distance of an image that must be put upright first: each further way to pass is one more
            for what is no radiograph.
        poses: Tells how an image lies, in the order of `POSES`.
        lateral: Tells lateral views from frontal ones by their thumbnails.
        least_detail: Smoother images are refused; see `features.detail`.
        num_images: That it was fitted on.
        data_name: Of the data that these are from.
        date: Of the fit.
        knows_laterals: Whether there were lateral views among them, so that none is warned of.
    """

    distance: Distance
    limit: float
    strict_limit: float
    poses: Poses
    lateral: Discriminant
    least_detail: float
    num_images: int
    data_name: str
    date: str
    knows_laterals: bool = False

    def judge(self, image: Image.Image, *, is_colour: bool = False, is_lateral: bool | None = None) -> Verdict:
        """Judges one image.

        Args:
            image: As `read_radiograph` gives it.
            is_colour: Whether it was in colour before that; `Radiograph.is_colour` tells.
            is_lateral: Whether the file says that the view is lateral; `Radiograph.is_lateral` tells.
                If it is None, the pixels are asked.
        """
        return self.judge_batch([self.prepare(image, is_colour=is_colour, is_lateral=is_lateral)])[0]

    def prepare(self, image: Image.Image, *, is_colour: bool = False, is_lateral: bool | None = None) -> GateInput:
        """Prepares an image for `judge_batch`; arguments as for `judge`. Several threads may call it."""
        size = image.info.get("original_size", image.size)
        return GateInput(gray_levels(image), size, is_colour, is_lateral)

    def judge_batch(self, inputs: Sequence[GateInput]) -> list[Verdict]:
        """Judges several images.

        Args:
            inputs: From `prepare`.
        """
        if not inputs:
            return []
        grays = torch.stack([one.gray for one in inputs])
        details = detail(grays)
        reasons = [self._plain_reason(one, float(fine)) for one, fine in zip(inputs, details, strict=True)]
        rest = [place for place, reason in enumerate(reasons) if not reason]
        rows = iter(gate_features(grays[rest])) if rest else iter(())
        return [
            Verdict(False, _REFUSED + reason, (), float("inf")) if reason else self._verdict(one, next(rows)[None])
            for one, reason in zip(inputs, reasons, strict=True)
        ]

    def _verdict(self, one: GateInput, features: Floats) -> Verdict:
        """The verdict on an image with these features `(1, num_features)`."""
        distance = self._relative(features)
        pose = POSES[int(self.poses(features)[0])]
        warnings: tuple[str, ...] = ()
        if pose is not Pose.UPRIGHT:
            undone = gate_features(pose.undone(one.gray)[None])
            put_right = self._relative(undone)
            # Cropping cannot be undone, so it leaves the distance as it is.
            if put_right <= 1 and (put_right < distance or pose is Pose.CROPPED):
                warnings = (_WARNINGS[pose],)
                if distance <= 1 or put_right <= self.strict_limit / self.limit:
                    return Verdict(True, "", warnings, put_right)
        views = self._view_warnings(features, one.is_lateral)
        if distance <= (_LATERAL_REACH if views else 1):
            return Verdict(True, "", views, distance)
        reason = (
            f"its features are far from those of the {self.num_images:,} radiographs that the model was fitted on "
            f"({distance:.1f} times the limit)."
        )
        return Verdict(False, _REFUSED + reason, warnings or views, distance)

    def _view_warnings(self, features: Floats, is_lateral: bool | None) -> tuple[str, ...]:
        if self.knows_laterals:
            return ()
        if is_lateral:
            return (_SAID_LATERAL,)
        return (_LATERAL,) if is_lateral is None and self.lateral(thumbnails(features))[0] else ()

    def _plain_reason(self, one: GateInput, fine: float) -> str:
        """Why an image is refused without looking at its features, as the end of a sentence; empty if not."""
        width, height = one.size
        if one.is_colour:
            return "it is a colour photograph or drawing."
        if min(width, height) < LEAST_SIDE:
            return f"it has only {width} x {height} pixels."
        if max(width, height) > LONGEST_PROPORTION * min(width, height):
            return f"it is {max(width, height) / min(width, height):.1f} times as long on one side as on the other."
        if float(one.gray.float().std()) < _LEAST_CONTRAST:
            return "all of it is of about the same brightness."
        if fine < self.least_detail:
            return "it is smooth everywhere and shows no structure."
        return ""

    def _relative(self, features: Floats) -> float:
        return float(self.distance(structures(features))[0]) / self.limit

    def save(self, folder: Path) -> None:
        """Writes `gate.safetensors` into a model folder, whole or not at all."""
        tensors = {
            "centre": self.distance.centre,
            "spread": self.distance.spread,
            "directions": self.distance.directions,
            "variances": self.distance.variances,
            "pose_weights": self.poses.weights,
            "pose_biases": self.poses.biases,
            "pose_margins": self.poses.margins,
            "lateral_weights": self.lateral.weights,
        }
        about = {
            "version": VERSION,
            "n": str(self.num_images),
            "data": self.data_name,
            "date": self.date,
            "resolution": str(RESOLUTION),
            "limit": repr(self.limit),
            "strict_limit": repr(self.strict_limit),
            "residual": repr(self.distance.residual),
            "least_detail": repr(self.least_detail),
            "lateral_limit": repr(self.lateral.limit),
        }
        if self.knows_laterals:  # a file that does not say is of frontal views
            about["laterals"] = "yes"
        partial = folder / f".{GATE_FILE}.{os.getpid()}"
        arrays = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in tensors.items()}
        try:
            save_file(arrays, partial, metadata=about)
            partial.chmod(0o644)  # others may read the weights, too
            partial.replace(folder / GATE_FILE)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Gate":
        """Reads a gate from a model folder, or from the file itself.

        Raises:
            ModelFolderError: If there is none, or it is not what `save` writes.
        """
        file = path / GATE_FILE if path.is_dir() else path
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{file} cannot be read as a gate ({_first_line(error)}); fit it again.") from error
        if about.get("version") != VERSION or about.get("resolution") != str(RESOLUTION):
            raise ModelFolderError(
                f"{file} is a gate of another version or resolution, expected version {VERSION} at {RESOLUTION} "
                "pixels; fit it again with `chexpert-hf gate`."
            )
        _check_tensors(file, tensors)
        try:
            return _gate_from(tensors, about)
        except (KeyError, ValueError) as error:
            raise ModelFolderError(f"{file} is damaged ({_first_line(error)}); fit it again.") from error


def _check_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Raises ModelFolderError unless all tensors are there, of shapes that belong together, and finite."""
    count = len(tensors["variances"]) if "variances" in tensors and tensors["variances"].ndim == 1 else 0
    shapes = {
        "centre": (NUM_STRUCTURES,),
        "spread": (NUM_STRUCTURES,),
        "directions": (count, NUM_STRUCTURES),
        "variances": (count,),
        "pose_weights": (NUM_FEATURES, len(POSES)),
        "pose_biases": (len(POSES),),
        "pose_margins": (len(POSES),),
        "lateral_weights": (THUMBNAIL_SIDE**2,),
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes or not count:
        wrong = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name)) or ["variances"]
        raise ModelFolderError(
            f"{file} does not hold the tensors of a gate ({wrong[0][:40]!r} is {found.get(wrong[0])}, expected "
            f"{shapes.get(wrong[0])}); fit it again."
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ModelFolderError(f"{file} is damaged: {name} is not all finite float32; fit it again.")
    if not all(bool((tensors[name] > 0).all()) for name in ("spread", "variances")):
        raise ModelFolderError(f"{file} is damaged: spread and variances must be positive; fit it again.")


def _gate_from(tensors: dict[str, Tensor], about: dict[str, str]) -> Gate:
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    numbers = {name: float(about[name]) for name in ("limit", "strict_limit", "residual", "least_detail")}
    if not all(np.isfinite(value) and value > 0 for value in numbers.values()):
        raise ValueError("its limits must be positive numbers")
    return Gate(
        distance=Distance(
            arrays["centre"], arrays["spread"], arrays["directions"], arrays["variances"], numbers["residual"]
        ),
        limit=numbers["limit"],
        strict_limit=numbers["strict_limit"],
        poses=Poses(arrays["pose_weights"], arrays["pose_biases"], arrays["pose_margins"]),
        lateral=Discriminant(arrays["lateral_weights"], float(about["lateral_limit"])),
        least_detail=numbers["least_detail"],
        num_images=int(about["n"]),
        data_name=about["data"],
        date=about["date"],
        knows_laterals=about.get("laterals") == "yes",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
