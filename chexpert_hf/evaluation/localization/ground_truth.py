"""The ground truth for saliency maps: locations of findings, from masks, boxes or cheXlocalize's segmentations.

In each class, `findings(path)` returns the observations with a known location in an image, and
`mask(path, observation, shape)` reads the mask of one of them. `path` is the image's path as in `load_dataset`, and
`shape` the image's (height, width).
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from chexpert_hf.datasets.label_sets import same_label
from chexpert_hf.datasets.layout import Layout, Masks, without_suffix
from chexpert_hf.datasets.reference import Box, Reference, boxes_of, observation_named, read_reference
from chexpert_hf.datasets.sources import find_layout
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.localization.chexlocalize import TASK_OF, image_id, read_segmentations
from chexpert_hf.evaluation.localization.localization import Mask, box_mask
from chexpert_hf.files import first_line
from chexpert_hf.labels import CHEXPERT, OBSERVATIONS

MASKS_FOLDER = "masks"
BOXES_FILE = "boxes.csv"

# CheXpert-v1.0-small is CheXpert scaled to a shorter side of 320: rounding changes the ratio of the sides by less.
_ASPECT_TOLERANCE = 0.02


class GroundTruthError(InputError):
    """A ground truth that is missing, damaged, or does not fit the images."""


class MaskFolder:
    """A folder with a mask per finding, such as `valid/patient00001/study1/view1_frontal/Edema.png`.

    `phantoms` writes such a folder beside its synthetic radiographs.
    """

    source = "masks"  # name in reports
    is_complete = True  # whether a finding without a mask or box is known to be absent

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def findings(self, path: str) -> tuple[str, ...]:
        """Return the observations that have a mask in this image."""
        names = {file.stem for file in self._of(path).glob("*.png")}
        return tuple(CHEXPERT.in_order(sorted(names)))

    def mask(self, path: str, observation: str, shape: tuple[int, int]) -> Mask:
        """Return the stored mask of a finding: of the image's size `shape`, or larger with the same proportions."""
        file = self._of(path) / f"{observation}.png"
        try:
            with Image.open(file) as image:
                mask = np.asarray(image.convert("L")) > 0
        except (OSError, ValueError) as error:
            raise GroundTruthError(f"{file} cannot be read as a mask: {first_line(error)}") from None
        if not mask.any():
            raise GroundTruthError(f"{file} marks no pixel; expected the place of a finding, or no file.")
        return _fitting(mask, shape, str(file))

    def _of(self, path: str) -> Path:
        return self._folder / without_suffix(path)


class Segmentations:
    """cheXlocalize's masks of ten observations, from a file such as `gt_segmentations_val.json`.

    The file holds images with at least one of these findings. Other images count as images without findings, as in
    cheXlocalize's own evaluation of its full set.
    """

    is_complete = True

    def __init__(self, file: Path) -> None:
        self.source = f"segmentations in {file.name}"
        self._masks = read_segmentations(file)

    def findings(self, path: str) -> tuple[str, ...]:
        masks = self._masks.get(image_id(path), {})
        return tuple(name for name in TASK_OF if name in masks and not masks[name].is_empty)

    def mask(self, path: str, observation: str, shape: tuple[int, int]) -> Mask:
        return _fitting(self._masks[image_id(path)][observation].decode(), shape, f"{image_id(path)}, {observation}")


class LayoutMasks:
    """Masks in a data set's own files, such as SIIM's, read by the data set's `Layout`.

    A finding without a mask counts as absent.
    """

    is_complete = True

    def __init__(self, layout: Layout, masks: Masks, observations: Sequence[str]) -> None:
        self.source = f"masks in the files of {layout.name}"
        self._masks = {
            path: {observation_named(name, observations): mask for name, mask in found.items()}
            for path, found in masks.items()
        }

    def findings(self, path: str) -> tuple[str, ...]:
        return tuple(CHEXPERT.in_order(self._masks.get(path, {})))

    def mask(self, path: str, observation: str, shape: tuple[int, int]) -> Mask:
        return _fitting(self._masks[path][observation](), shape, f"{path}, {observation}")


class Boxes:
    """Boxes of some findings in some images; a finding without a box may still be present.

    All boxes of one observation in one image make one mask. Boxes come from a `Reference`, or from a CSV file with the
    columns Path, x, y, width and height, and either Observation or a column per observation (see `read_reference`).
    The argument `observations` has the names of the model's observations. The argument `images` has the paths of all
    images in the data set, to which the paths in a CSV file are matched.
    """

    is_complete = False

    def __init__(
        self, boxes: Path | Reference, observations: Sequence[str] = OBSERVATIONS, images: Sequence[str] = ()
    ) -> None:
        if isinstance(boxes, Path):
            others = (name for name in OBSERVATIONS if not same_label(name, observations))
            boxes = read_reference(boxes, [*observations, *others], images=images)
        self._file = boxes.file
        name = f" ({boxes.name})" if boxes.name != boxes.file else ""
        self.source = f"boxes in {boxes.file}{name}"
        self._boxes: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
        for target in boxes.targets:
            for path, found in target.boxes.items():
                self._boxes[path][target.observation].extend(found)
        if not self._boxes:
            raise GroundTruthError(f"{boxes.file} holds no box; expected rows with x, y, width, height, in pixels.")

    def findings(self, path: str) -> tuple[str, ...]:
        return tuple(CHEXPERT.in_order(self._boxes.get(path, {})))

    def mask(self, path: str, observation: str, shape: tuple[int, int]) -> Mask:
        mask = box_mask(self._boxes[path][observation], shape)
        if not mask.any():
            raise GroundTruthError(
                f"{self._file}: the box of {observation} lies outside of {path}, which is {shape[1]} x {shape[0]};"
                " expected pixels of the upright image."
            )
        return mask

    def images(self) -> list[str]:
        """Return the paths of the images that have boxes."""
        return list(self._boxes)


GroundTruth: TypeAlias = MaskFolder | Segmentations | LayoutMasks | Boxes


def find_ground_truth(
    root: str | Path,
    observations: Sequence[str],
    annotations: Path | None = None,
    layout: str | None = None,
    images: Sequence[str] = (),
) -> GroundTruth:
    """Find the ground truth of a data set, in the file `annotations` or, if that is None, in the folder `root`.

    The file is a CSV file of boxes or cheXlocalize's JSON. In the folder, these are tried in turn: `masks/`,
    `boxes.csv`, and masks or boxes in the data set's own files, whose names of findings are matched to `observations`.
    `layout` is the name of the data set's layout; if None, it is recognised. `images` are the paths in the data set, to
    which paths in a CSV file of boxes are matched.

    Raises:
        InputError: If a file cannot be read, or the layout is not recognised.
        GroundTruthError: If there is no ground truth.
    """
    if annotations is not None:
        if not annotations.is_file():
            raise GroundTruthError(f"{annotations} is not a file; expected a CSV file of boxes or cheXlocalize's JSON.")
        return (
            Boxes(annotations, observations, images)
            if annotations.suffix.lower() == ".csv"
            else Segmentations(annotations)
        )
    found, folder = find_layout(root, layout)
    if (folder / MASKS_FOLDER).is_dir():
        return MaskFolder(folder / MASKS_FOLDER)
    if (folder / BOXES_FILE).is_file():
        return Boxes(folder / BOXES_FILE, observations, images)
    if found.masks is not None:
        return LayoutMasks(found, found.masks(folder), observations)
    if boxes := boxes_of(found, folder, observations):
        return Boxes(boxes)
    raise GroundTruthError(
        f"{folder} has neither {MASKS_FOLDER}/ nor {BOXES_FILE}, and its layout has no masks or boxes, so the "
        "locations of its findings are unknown; pass --annotations with a CSV file of boxes or cheXlocalize's JSON."
    )


def _fitting(mask: Mask, shape: tuple[int, int], where: str) -> Mask:
    """Return `mask` if it has an image's `shape`, or is larger with the same proportions, else raise GroundTruthError.

    `where` names the mask in the error.
    """
    ratio = (mask.shape[0] / mask.shape[1]) / (shape[0] / shape[1])
    if mask.shape[0] < shape[0] or abs(ratio - 1) > _ASPECT_TOLERANCE:
        raise GroundTruthError(
            f"{where}: the mask is {mask.shape[1]} x {mask.shape[0]}, the image {shape[1]} x {shape[0]}; expected the "
            "image's size, or a larger one of the same proportions."
        )
    return mask
