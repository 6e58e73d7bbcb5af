"""Images for quantisation and comparison: radiographs of a folder, or phantoms."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.layout import SPLITS
from chexpert_hf.datasets.loading import has_dataset, load_dataset
from chexpert_hf.errors import InputError
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.phantoms import PROJECTIONS, render_phantom
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph

_FEWEST = 10  # ranges of activations from fewer images are chance


def phantoms(count: int, *, seed: int) -> list[Image.Image]:
    """Phantoms of all projections and observations in turn; `seed` and the `count - 1` after it are the patients."""
    return [
        Image.fromarray(
            render_phantom(
                seed + number, [OBSERVATIONS[number % len(OBSERVATIONS)]], projection=PROJECTIONS[number % 3]
            ).image
        )
        for number in range(count)
    ]


def reference_phantom(folder: Path) -> list[Image.Image]:
    """The phantom of a model folder's `reference.json`; none if there is no such file.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / "reference.json"
    if not path.exists():
        return []
    try:
        phantom = render_phantom(**json.loads(path.read_text(encoding="utf-8"))["phantom"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; expected the values of a phantom under 'phantom'.") from error
    return [Image.fromarray(phantom.image)]


def radiographs(folder: Path, count: int, *, target_size: int) -> list[Image.Image]:
    """A random sample, the same each time, of at most `count` radiographs of a folder, read for this size in pixels.

    The folder is a CheXpert folder, whose train split is taken if there is one, or any folder with radiographs.

    Raises:
        InputError: If there are too few, or one cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a CheXpert folder or one with radiographs.")
    split = next((split for split in SPLITS if has_dataset(folder, [split])), None)
    if split is None:
        paths = sorted(map(str, find_radiographs([folder]).files))
    else:  # without the check of all 223,414 files: only a few hundred of them are read
        paths = image_files(load_dataset(folder, splits=[split], check_files=False, valid_fraction=0)[split])
    if len(paths) < _FEWEST:
        raise InputError(f"{folder} holds {len(paths)} radiographs; expected at least {_FEWEST}.")
    images = []
    for place in np.random.default_rng(0).permutation(len(paths))[:count]:
        try:
            images.append(read_radiograph(paths[place], target_size=target_size))
        except RadiographError as error:
            raise InputError(f"{paths[place]}: {error}") from error
    return images
