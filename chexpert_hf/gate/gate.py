"""The gate: decides from the pixels whether an image is a chest radiograph like those that the model was trained on.

It is fitted on radiographs alone, and is one file of the model folder. Inverted or rotated radiographs are accepted
with a warning if they pass after correction. Lateral views and radiographs of children are accepted with a warning, or
without a warning if the model was trained on such images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chexpert_hf.errors import ModelFolderError
from chexpert_hf.files import first_line, make_readable, replacing
from chexpert_hf.gate.children import child_scores
from chexpert_hf.gate.features import (
    NUM_FEATURES,
    NUM_STRUCTURES,
    RESOLUTION,
    STRUCTURES,
    THUMBNAIL,
    THUMBNAIL_SIDE,
    Floats,
    detail,
    gate_features,
    gray_levels,
    neighbour_correlation,
)
from chexpert_hf.radiographs.radiograph import Radiograph

GATE_FILE = "gate.safetensors"
_VERSION = "2"
_NUMBERS = ("limit", "strict_limit", "residual", "least_detail", "lateral_limit")
_POSITIVE = {"spread", "variances", "limit", "strict_limit", "residual", "least_detail"}

_MIN_SIDE = 64  # pixels; a smaller radiograph shows only lungs and heart
_MAX_ASPECT_RATIO = 2.5  # chest radiographs are up to 1.5 times as long on one side as on the other

_LATERAL = "This looks like a lateral view. The model was trained on frontal views only."
_RECORDED_LATERAL = "This is a lateral view, as the DICOM file says. The model was trained on frontal views only."

_CHILD = "This looks like a radiograph of a child. The model was trained on adults, or almost only on adults."

_MIN_CORRELATION = 0.6  # of neighbouring pixels at `RESOLUTION`; radiographs have at least .83, noise at most .28
_MAX_LATERAL_DISTANCE = 2.5  # in limits; frontal views are closer to each other than to lateral ones
_MIN_CONTRAST = 2.0  # standard deviation in gray levels
_REFUSED = "This does not look like a chest radiograph: "


class Pose(Enum):
    """Orientations and defects of radiographs, numbered as in the gate's weights."""

    UPRIGHT, INVERTED, LEFT, UPSIDE_DOWN, RIGHT, CROPPED = range(6)

    def applied(self, gray: Tensor, *, undo: bool = False) -> Tensor:
        """Return an upright image `(..., height, width)`, uint8, brought into this pose: rotated or inverted.

        With `undo`, `gray` is in this pose, and the upright image is returned. UPRIGHT and CROPPED change nothing.
        """
        if self is Pose.INVERTED:
            return 255 - gray
        quarters = {Pose.LEFT: 1, Pose.UPSIDE_DOWN: 2, Pose.RIGHT: 3}.get(self, 0)  # counter-clockwise
        return gray.rot90(-quarters if undo else quarters, (-2, -1))


_WARNINGS = {
    Pose.INVERTED: "This radiograph looks inverted: air seems to be bright and bone dark. Invert it for valid scores.",
    Pose.LEFT: "This radiograph looks turned by 90 degrees to the left. Turn it upright for valid scores.",
    Pose.UPSIDE_DOWN: "This radiograph looks upside down. Turn it by 180 degrees for valid scores.",
    Pose.RIGHT: "This radiograph looks turned by 90 degrees to the right. Turn it upright for valid scores.",
    Pose.CROPPED: "This radiograph looks cropped: less of the chest is in it than in those that the model knows.",
}

# Shapes of the file's tensors; -1 is the number of principal directions.
_SHAPES = {
    "centre": (NUM_STRUCTURES,),
    "spread": (NUM_STRUCTURES,),
    "directions": (-1, NUM_STRUCTURES),
    "variances": (-1,),
    "pose_weights": (NUM_FEATURES, len(Pose)),
    "pose_biases": (len(Pose),),
    "pose_margins": (len(Pose),),
    "lateral_weights": (THUMBNAIL_SIDE**2,),
}


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict on one image.

    If the image was accepted after its pose was corrected, `distance` is that of the corrected image.
    """

    is_chest_radiograph: bool
    reason: str  # one sentence why the image is refused; empty if it is accepted
    warnings: tuple[str, ...]  # sentences about pose and view
    distance: float  # from the training images, divided by `Gate.limit`; infinite if it was not computed

    @property
    def state(self) -> str:
        """The verdict as a word for tables: "pass", "warning", or "flagged" if it is no chest radiograph."""
        return "flagged" if not self.is_chest_radiograph else "warning" if self.warnings else "pass"

    @property
    def messages(self) -> tuple[str, ...]:
        """The sentences to show: the reason, if the image is refused, and the warnings."""
        return (self.reason, *self.warnings) if self.reason else self.warnings


@dataclass(frozen=True)
class GateInput:
    """One image, prepared for the gate by `Gate.prepare`."""

    gray: Tensor  # (1, RESOLUTION, RESOLUTION), uint8
    size: tuple[int, int]  # (width, height) of the whole image in pixels
    is_colour: bool = False  # also False if it was not checked
    is_lateral: bool | None = None  # if None, the pixels decide
    other_subject: str = ""  # the DICOM element that rules out a chest, such as "BodyPartExamined is HIP"


class Distance(NamedTuple):
    """A Mahalanobis-like distance of features `(batch, num_features)` from those of the training images."""

    centre: Floats  # (num_features,), the mean
    spread: Floats  # (num_features,), the standard deviation
    directions: Floats  # (num_directions, num_features), the principal directions, orthonormal
    variances: Floats  # (num_directions,), of the features along the directions
    residual: float  # mean squared length of the part of the features that is outside of the directions

    def __call__(self, features: Floats) -> Floats:
        """Return the distance of each image from the training images, `(batch,)`.

        The features are standardised by `centre` and `spread`. The distance is a sum of two terms. The first is the
        mean, over the principal directions, of the squared component divided by its variance. The second is the squared
        length of the rest of the features, divided by the mean of this squared length on the training images. So each
        term is 1 on average for the training images.
        Sources: Lee et al. 2018, arXiv:1807.03888; Wang et al. 2022, arXiv:2203.10807.
        """
        scaled = (features - self.centre) / self.spread
        along = scaled @ self.directions.T
        outside = np.maximum((scaled**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return (along**2 / self.variances).mean(axis=1) + outside / self.residual


@dataclass(frozen=True)
class Gate:
    """A fitted gate, from `fit_gate` or `Gate.load`: accepts images as chest radiographs, and warns of pose and view.

    An image is accepted if its `distance` from the training images is at most `limit`, or at most `strict_limit` once
    its pose is corrected. If the gate was fitted on frontal views alone, lateral views may be further away: up to
    `_MAX_LATERAL_DISTANCE` times `limit`.
    """

    distance: Distance
    limit: float  # the largest distance that is accepted
    strict_limit: float  # the same once the pose is corrected; lower, since a second try lets more wrong images pass
    pose_weights: Floats  # (NUM_FEATURES, num_poses), of linear discriminants of the poses
    pose_biases: Floats  # (num_poses,)
    pose_margins: Floats  # (num_poses,), by how much a pose's score must exceed that of UPRIGHT
    lateral_weights: Floats  # (THUMBNAIL_SIDE ** 2,), of a linear discriminant of lateral thumbnails
    lateral_limit: float  # a thumbnail whose weighted sum is larger is a lateral view
    least_detail: float  # smoother images are refused; see `features.detail`
    num_images: int  # number of images that it was fitted on
    data_name: str  # name of the data that it was fitted on
    date: str  # when it was fitted, such as "2025-01-31"
    child_limit: float = math.inf  # a frontal view with larger `child_scores` is a child's; infinite: no warning
    knows_laterals: bool = False  # whether lateral views were among the images, so that they get no warning

    @staticmethod
    def prepare(radiograph: Radiograph) -> GateInput:
        """Prepare a radiograph for `judge_batch`; thread-safe."""
        gray = gray_levels(radiograph.image)
        size, is_colour = radiograph.original_size, radiograph.is_colour
        return GateInput(gray, size, is_colour, radiograph.is_lateral, radiograph.other_subject)

    def judge_batch(self, inputs: Sequence[GateInput]) -> list[Verdict]:
        """Return a verdict for each image from `prepare`."""
        if not inputs:
            return []
        grays = torch.stack([one.gray for one in inputs])
        measured = zip(inputs, detail(grays).tolist(), neighbour_correlation(grays).tolist(), strict=True)
        reasons = [self._plain_reason(*each) for each in measured]
        rest = [index for index, reason in enumerate(reasons) if not reason]
        rows = iter(gate_features(grays[rest])) if rest else iter(())
        return [
            Verdict(False, _REFUSED + reason, (), float("inf")) if reason else self._verdict(one, next(rows)[None])
            for one, reason in zip(inputs, reasons, strict=True)
        ]

    def _verdict(self, one: GateInput, features: Floats) -> Verdict:
        """Return the verdict on one image, given its features `(1, NUM_FEATURES)`."""
        distance = self._relative(features)
        scores = features @ self.pose_weights + self.pose_biases
        pose = Pose(int((scores - scores[:, :1] - self.pose_margins).argmax()))
        warnings: tuple[str, ...] = ()
        if pose is not Pose.UPRIGHT:
            corrected = self._relative(gate_features(pose.applied(one.gray, undo=True)[None]))
            # Cropping cannot be undone, so its distance stays the same.
            if corrected <= 1 and (corrected < distance or pose is Pose.CROPPED):
                warnings = (_WARNINGS[pose], *(self._child_warnings(features) if pose is Pose.CROPPED else ()))
                if distance <= 1 or corrected <= self.strict_limit / self.limit:
                    return Verdict(True, "", warnings, corrected)
        views = self._view_warnings(features, one.is_lateral)
        if distance <= (_MAX_LATERAL_DISTANCE if views else 1):
            return Verdict(True, "", views or self._child_warnings(features), distance)
        reason = (
            f"its features are far from those of the {self.num_images:,} radiographs that the model was fitted on "
            f"({distance:.1f} times the limit)."
        )
        return Verdict(False, _REFUSED + reason, warnings or views, distance)

    def _view_warnings(self, features: Floats, is_lateral: bool | None) -> tuple[str, ...]:
        if self.knows_laterals:
            return ()
        if is_lateral is None:
            is_lateral = (features[:, THUMBNAIL] @ self.lateral_weights).item() > self.lateral_limit
            return (_LATERAL,) if is_lateral else ()
        return (_RECORDED_LATERAL,) if is_lateral else ()

    def _child_warnings(self, features: Floats) -> tuple[str, ...]:
        return (_CHILD,) if child_scores(features).item() > self.child_limit else ()

    def _plain_reason(self, one: GateInput, fine: float, correlation: float) -> str:
        """Return why the simple checks refuse an image, as the end of a sentence; "" if they accept it.

        The simple checks are made before features and `distance` are computed. `fine` is the result of `detail` for the
        image, `correlation` that of `neighbour_correlation`.
        """
        width, height = one.size
        if one.other_subject:
            return f"its DICOM header says that {one.other_subject}."
        if one.is_colour:
            return "it is a colour photograph or drawing."
        if min(width, height) < _MIN_SIDE:
            return f"it has only {width} x {height} pixels."
        if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
            return f"it is {max(width, height) / min(width, height):.1f} times as long on one side as on the other."
        if float(one.gray.float().std()) < _MIN_CONTRAST:
            return "all of it has about the same brightness."
        if correlation < _MIN_CORRELATION:
            return "it is noise: neighbouring pixels have nothing to do with each other."
        return "it is smooth everywhere and shows no structure." if fine < self.least_detail else ""

    def _relative(self, features: Floats) -> float:
        return float(self.distance(features[:, STRUCTURES])[0]) / self.limit

    def save(self, folder: Path) -> None:
        """Write the gate as `gate.safetensors` into a model folder, in place of an earlier one."""
        values = {**self.distance._asdict(), **vars(self)}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values[name], dtype=np.float32)) for name in _SHAPES}
        about = {name: repr(values[name]) for name in _NUMBERS}
        about |= {"version": _VERSION, "resolution": str(RESOLUTION)}
        about |= {"n": str(self.num_images), "data": self.data_name, "date": self.date}
        if self.knows_laterals:  # absent from a gate of frontal views
            about["laterals"] = "yes"
        if math.isfinite(self.child_limit):
            about["child_limit"] = repr(self.child_limit)
        with replacing(folder / GATE_FILE) as partial:
            save_file(tensors, partial, metadata=about)
            make_readable(partial)

    @classmethod
    def load(cls, path: Path) -> "Gate":
        """Read a gate from a model folder or file; ModelFolderError if it is missing, damaged or of another version."""
        file = path / GATE_FILE if path.is_dir() else path
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(
                f"{file} cannot be read as a gate ({first_line(error, 120)}); fit it again."
            ) from error
        if about.get("version") != _VERSION or about.get("resolution") != str(RESOLUTION):
            raise ModelFolderError(
                f"{file} is a gate of another version or resolution, expected version {_VERSION} at {RESOLUTION} "
                "pixels; fit it again with `chexpert-hf gate`."
            )
        try:
            _check_tensors(tensors)
            values: dict[str, Any] = {name: tensor.double().numpy() for name, tensor in tensors.items()}
            values |= {name: float(about[name]) for name in _NUMBERS}
            if "child_limit" in about:
                values["child_limit"] = float(about["child_limit"])
            for name, value in values.items():
                if not np.isfinite(value).all() or (name in _POSITIVE and not np.all(value > 0)):
                    raise ValueError(f"{name} must be {'positive and ' if name in _POSITIVE else ''}finite")
            return cls(
                distance=Distance(*(values.pop(name) for name in Distance._fields)),
                num_images=int(about["n"]),
                data_name=about["data"],
                date=about["date"],
                knows_laterals=about.get("laterals") == "yes",
                **values,
            )
        except (KeyError, ValueError) as error:
            raise ModelFolderError(f"{file} is damaged ({first_line(error)}); fit it again.") from error


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless `tensors` are those of a gate, in float32, with shapes that fit together."""
    count = tensors["variances"].numel() if "variances" in tensors else 0
    for name in sorted({*tensors, *_SHAPES}):
        expected = tuple(count if side == -1 else side for side in _SHAPES.get(name, ()))
        found = tuple(tensors[name].shape) if name in tensors else None
        if name not in _SHAPES or found != expected or 0 in expected or tensors[name].dtype != torch.float32:
            raise ValueError(f"not the tensors of a gate: {name[:40]!r} is {found}, expected float32 {expected}")
