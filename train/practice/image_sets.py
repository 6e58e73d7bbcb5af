"""Data sets of small images with one class each: CIFAR-10 from the Hub or a folder, and scikit-learn's digits.

Sources: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (CIFAR-10 and its binary layout,
https://www.cs.toronto.edu/~kriz/cifar.html); the digits are the test set of Alpaydin & Kaynak 1998, "Optical
Recognition of Handwritten Digits", UCI, as scikit-learn ships it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from chexpert_hf.errors import InputError

CIFAR10_REPOSITORY = "uoft-cs/cifar10"
CIFAR_SHAPE = (3, 32, 32)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS_TEST_SHARE = 1 / 3
DIGITS_SEED = 0
_DIGITS_WHITE = 16
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageSetError(InputError):
    """Images that cannot be used; says what was expected and what to do."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        images: `(num_images, channels, height, width)` uint8.
        labels: `(num_images,)`, indices of `classes`.
        classes: The names of the classes.
        mirrors: Whether mirrored images are valid: yes for CIFAR-10, not for digits.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mirrors: bool


def load_image_sets(data: str) -> tuple[ImageSet, ImageSet]:
    """Return the training and test images.

    Args:
        data: "digits"; "cifar10", from the Hub; or a folder with CIFAR's binary files (`data_batch_1.bin`, ...,
            `test_batch.bin`), or with `train/CLASS/*.png` and `test/CLASS/*.png`.

    Raises:
        ImageSetError: If there are none, or they do not fit each other.
    """
    if data == "digits":
        return _digits()
    if data == "cifar10":
        return _from_hub()
    folder = Path(data)
    if (folder / "test_batch.bin").is_file():
        return _cifar_binary(folder)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return _class_folders(folder)
    if (folder / "data_batch_1").exists():
        raise ImageSetError(
            f"{folder} holds CIFAR-10's Python version, pickles that can run code; use its binary version (*.bin)."
        )
    raise ImageSetError(
        f"{data!r} is not 'digits', 'cifar10' or a folder with CIFAR-10's *.bin files or train/CLASS and test/CLASS."
    )


def _digits() -> tuple[ImageSet, ImageSet]:
    digits: Any = load_digits()
    images = np.rint(digits.images * (255 / _DIGITS_WHITE)).astype(np.uint8)[:, None]  # (N, 1, 8, 8)
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_SHARE, random_state=DIGITS_SEED, stratify=labels
    )
    classes = tuple(str(name) for name in digits.target_names)
    return (
        ImageSet(images[train], labels[train], classes, mirrors=False),
        ImageSet(images[test], labels[test], classes, mirrors=False),
    )


def _from_hub() -> tuple[ImageSet, ImageSet]:
    try:
        splits = datasets.load_dataset(CIFAR10_REPOSITORY)
    except (OSError, HfHubHTTPError) as error:
        raise ImageSetError(
            f"CIFAR-10 could not be loaded from {CIFAR10_REPOSITORY} ({str(error).splitlines()[0]}). Give a folder "
            "with its binary version, or use --data digits."
        ) from error
    return from_dataset(splits["train"]), from_dataset(splits["test"])


def from_dataset(split: datasets.Dataset) -> ImageSet:
    """Convert a split of CIFAR-10 from the Hub, with the columns `img` and `label`."""
    images = np.stack([np.asarray(image.convert("RGB")) for image in split["img"]])
    classes = tuple(split.features["label"].names)
    return ImageSet(images.transpose(0, 3, 1, 2), np.asarray(split["label"][:], np.int64), classes, mirrors=True)


def _cifar_binary(folder: Path) -> tuple[ImageSet, ImageSet]:
    batches = sorted(folder.glob("data_batch_*.bin"))
    if not batches:
        raise ImageSetError(f"{folder} holds test_batch.bin, but no data_batch_1.bin to train on.")
    names = folder / "batches.meta.txt"
    classes = tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else CIFAR_CLASSES
    return _records(batches, classes), _records([folder / "test_batch.bin"], classes)


def _records(files: Sequence[Path], classes: tuple[str, ...]) -> ImageSet:
    """Read CIFAR's binary layout: for each image a byte for the class, then red, green and blue, row by row."""
    size = 1 + int(np.prod(CIFAR_SHAPE))
    parts = []
    for file in files:
        raw = np.fromfile(file, np.uint8)
        if raw.size == 0 or raw.size % size:
            raise ImageSetError(f"{file} has {raw.size:,} bytes, expected a multiple of {size:,}; copy it again.")
        parts.append(raw.reshape(-1, size))
    records = np.concatenate(parts)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(classes):
        raise ImageSetError(f"{files[0].parent} has class {labels.max()}, expected 0 to {len(classes) - 1}.")
    return ImageSet(records[:, 1:].reshape(-1, *CIFAR_SHAPE), labels, classes, mirrors=True)


def _class_folders(folder: Path) -> tuple[ImageSet, ImageSet]:
    classes = tuple(sorted(item.name for item in (folder / "train").iterdir() if item.is_dir()))
    if len(classes) < 2:
        raise ImageSetError(f"{folder / 'train'} has {len(classes)} folders of classes, expected at least 2.")
    train, test = (_split_folder(folder / name, classes) for name in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ImageSetError(f"The images in {folder / 'train'} and in {folder / 'test'} differ in size.")
    return train, test


def _split_folder(folder: Path, classes: tuple[str, ...]) -> ImageSet:
    unknown = sorted({item.name for item in folder.iterdir() if item.is_dir()} - set(classes))
    if unknown:
        raise ImageSetError(
            f"{folder} has a class {unknown[0]!r} that is not in train; expected: {', '.join(classes)}."
        )
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).glob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not files:
        raise ImageSetError(f"{folder} holds no {', '.join(_IMAGE_SUFFIXES)} in its folders {', '.join(classes)}.")
    images = [_read(file) for file, _ in files]
    if len({image.shape for image in images}) > 1:
        raise ImageSetError(f"The images in {folder} differ in size; bring them to one, such as 32 x 32.")
    labels = np.array([label for _, label in files], np.int64)
    return ImageSet(np.stack(images).transpose(0, 3, 1, 2), labels, classes, mirrors=True)


def _read(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageSetError(f"{file} cannot be read as PNG or JPEG.") from error
