"""cheXlocalize's file formats: segmentations as JSON with COCO's run lengths, saliency maps as pickles.

cheXlocalize's own scripts can read the files that are written here.

Source: Saporta et al. 2022, Nature Machine Intelligence 4; README.md, eval.py and utils.py of
github.com/rajpurkarlab/cheXlocalize; the string form of run lengths: cocodataset/cocoapi, common/maskApi.c.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chexpert_hf.datasets.layout import mask_of_runs, without_suffix
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.localization.localization import Mask
from chexpert_hf.files import first_line, write_text
from chexpert_hf.radiographs.radiograph import MAX_PIXELS

TASKS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema", "Consolidation",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Support Devices",
)  # fmt: skip
"""The tasks in cheXlocalize's order and names. Source: cheXlocalize, eval_constants.py."""

_OBSERVATION_OF = {task: task.replace("Airspace Opacity", "Lung Opacity") for task in TASKS}

TASK_OF = {observation: task for task, observation in _OBSERVATION_OF.items()}
"""Observation -> cheXlocalize's name of it, for the ten that have masks, in cheXlocalize's order."""


class CheXlocalizeFileError(InputError):
    """A file that is not in cheXlocalize's format."""


@dataclass(frozen=True)
class RunLengths:
    """A compressed mask, as in the JSON files: (height, width), and COCO's string of run lengths."""

    size: tuple[int, int]
    counts: str

    @classmethod
    def encode(cls, mask: Mask) -> "RunLengths":
        """Compress a mask `(height, width)`."""
        # Column by column; runs of zeros and ones alternate, zeros first, so the first run may have the length 0.
        pixels = np.asarray(mask, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(np.diff(pixels, prepend=False))
        runs = np.diff(changes, prepend=0, append=pixels.size).tolist()
        height, width = mask.shape
        text = bytearray()
        for place, run in enumerate(runs):
            # From the fourth run on, the difference from the run two places before is written. A character, counted
            # from "0", holds six bits: five of the number, lowest first, and whether more follow.
            value, is_done = run - runs[place - 2] if place > 2 else run, False
            while not is_done:
                bits, value = value & 31, value >> 5
                is_done = value == (-1 if bits & 16 else 0)  # the last five bits carry the sign
                text.append(48 + bits + (0 if is_done else 32))
        return cls((height, width), text.decode("ascii"))

    def decode(self) -> Mask:
        """Return the mask `(height, width)`.

        Raises CheXlocalizeFileError if the run lengths are invalid or do not add up to height * width.
        """
        height, width = self.size
        runs = _from_text(self.counts)
        if min(runs, default=0) < 0 or sum(runs) != height * width:
            raise CheXlocalizeFileError(f"Expected run lengths of {height} x {width} pixels, got {sum(runs):,} pixels.")
        return mask_of_runs(runs, self.size)

    @property
    def is_empty(self) -> bool:
        """Whether no pixel of the mask is set; read from the run lengths, without making the mask."""
        return not any(_from_text(self.counts)[1::2])


def image_id(path: str) -> str:
    """Return `patient64622_study1_view1_frontal` for a path that ends in `patient64622/study1/view1_frontal.jpg`."""
    return "_".join(without_suffix(path).split("/")[-3:])


def read_segmentations(file: Path) -> dict[str, dict[str, RunLengths]]:
    """Read a file such as `gt_segmentations_val.json`: image id -> observation -> mask, for ten observations.

    Raises:
        CheXlocalizeFileError: If the file cannot be read, an image lacks an observation or has masks of several sizes,
            or an entry is not a mask.
    """
    try:
        images = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheXlocalizeFileError(f"{file} cannot be read as JSON: {first_line(error)}") from None
    if not isinstance(images, dict) or not images:
        raise CheXlocalizeFileError(f"{file}: expected an object with an entry for each image id.")
    return {name: _read_image(entries, f"{file}, {name!r:.80}") for name, entries in images.items()}


def _read_image(entries: object, where: str) -> dict[str, RunLengths]:
    if not isinstance(entries, dict):
        raise CheXlocalizeFileError(f"{where}: expected an object with a mask for each task.")
    by_observation = {_OBSERVATION_OF.get(task, task): entry for task, entry in entries.items()}
    if missing := [task for name, task in TASK_OF.items() if name not in by_observation]:
        raise CheXlocalizeFileError(f"{where} lacks {', '.join(missing)}; expected all ten tasks.")
    masks = {name: _read_mask(by_observation[name], f"{where}, {task}") for name, task in TASK_OF.items()}
    sizes = {mask.size for mask in masks.values()}
    if len(sizes) > 1:
        raise CheXlocalizeFileError(f"{where}: the masks have several sizes, {sorted(sizes)}; expected one.")
    return masks


def _read_mask(entry: object, where: str) -> RunLengths:
    match entry:
        case {"size": [int(height), int(width)], "counts": str(counts)} if (
            type(height) is type(width) is int and min(height, width) > 0 and height * width <= MAX_PIXELS
        ):
            return RunLengths((height, width), counts)
    raise CheXlocalizeFileError(
        f'{where}: expected {{"size": [height, width], "counts": string}} of at most {MAX_PIXELS:,} pixels, '
        f"got {entry!r:.80}."
    )


def write_segmentations(file: Path, masks: Mapping[str, Mapping[str, RunLengths]]) -> None:
    """Write image id -> observation -> mask as cheXlocalize's `eval.py` reads it, replacing the file.

    Each image needs at least one mask, and all its masks one size, else ValueError. Those of cheXlocalize's ten
    observations that have no mask get an empty one; other observations are skipped.
    """
    images: dict[str, dict[str, dict[str, Any]]] = {}
    for name, by_observation in masks.items():
        sizes = {mask.size for mask in by_observation.values()}
        if len(sizes) != 1:
            raise ValueError(f"Expected masks of one size for {name}, got sizes {sorted(sizes)}.")
        empty = RunLengths.encode(np.zeros(sizes.pop(), dtype=bool))
        chosen = {task: by_observation.get(observation, empty) for observation, task in TASK_OF.items()}
        images[name] = {task: {"size": list(mask.size), "counts": mask.counts} for task, mask in chosen.items()}
    write_text(file, json.dumps(images))


def write_map(
    folder: Path,
    image: str,
    observation: str,
    saliency: NDArray[np.floating],
    *,
    probability: float,
    is_positive: bool,
    size: tuple[int, int],
    picture: NDArray[np.floating],
) -> Path:
    """Write one saliency map as a pickle, named as cheXlocalize's scripts expect, and return its path.

    Args:
        folder: An existing folder.
        image: The image's id; see `image_id`.
        observation: One of the ten that cheXlocalize has masks for: a key of `TASK_OF`.
        saliency: `(h, w)` of any resolution; cheXlocalize's scripts resize it bilinearly to `size`.
        probability: The model's probability of this observation.
        is_positive: Whether the observation is present according to the ground truth.
        size: (width, height) of the radiograph, in pixels.
        picture: The radiograph for display, `(any height, any width)` in [0, 1].
    """
    values = {
        "map": torch.from_numpy(np.ascontiguousarray(saliency, dtype=np.float32))[None, None],
        "prob": float(probability),
        "task": TASK_OF[observation],
        "gt": int(is_positive),
        # Three channels, as in cheXlocalize's own pickles; as they are equal, one is stored and expanded.
        "cxr_img": torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).expand(3, -1, -1),
        "cxr_dims": tuple(size),
    }
    path = folder / f"{image}_{TASK_OF[observation]}_map.pkl"
    path.write_bytes(pickle.dumps(values, protocol=4))  # cheXlocalize's scripts are for Python 3.8
    return path


def _from_text(text: str) -> list[int]:
    """Decode COCO's string into run lengths; CheXlocalizeFileError if it is invalid or incomplete."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise CheXlocalizeFileError(f"Run lengths with {character!r} in them; expected COCO's compressed string.")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise CheXlocalizeFileError("The run lengths break off within a number.")
    return runs
