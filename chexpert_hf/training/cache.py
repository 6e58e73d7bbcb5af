"""Keeps a data set's decoded images in memory or in a file, so that later epochs read no image files."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from accelerate import PartialState
from numpy.typing import NDArray

from chexpert_hf.files import replacing
from chexpert_hf.folders.processes import ReadingProcesses, read_one
from chexpert_hf.folders.readers import FILES_FOR_PROCESSES, MAX_PROCESSES, Workers, read_ahead
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.machine import num_processors
from chexpert_hf.scoring.graphs.conversion import cache_folder
from chexpert_hf.scoring.preparation import Preparation
from chexpert_hf.training.recipe import RecipeError


def cached_images(
    files: Sequence[str], processor: CheXpertImageProcessor, cache: str, workers: Workers = 0
) -> NDArray[np.generic] | None:
    """Return all images as gray levels `(num_images, 1, height, width)`, or None if `cache` is "none".

    Args:
        files: Paths of images.
        processor: Resizes all images to one size. The gray levels are uint8, or float32 if its `resize_like` is set.
        cache: "none"; "ram" for an array in memory; or "disk" for a memory-mapped file in the user's cache folder. The
            file is reused while the paths, sizes and times of the images and the processor's settings are the same.
        workers: Number of decoding processes, "auto" for one per processor. Threads decode if it is 0, or if there are
            fewer than `FILES_FOR_PROCESSES` files.

    Raises:
        RadiographError: If a file cannot be read; the message names the file.
        RecipeError: If the disk has too little room.
    """
    if cache == "none":
        return None
    layout: dict[str, Any] = {
        "shape": (len(files), 1, *processor.output_size),
        "dtype": np.dtype(np.float32 if processor.resize_like else np.uint8),
    }
    if cache == "ram":
        images = np.empty(**layout)
        _fill(images, files, processor, workers)
        return images
    path = cache_folder() / "images" / f"{_fingerprint(files, processor)}.npy"
    with PartialState().local_main_process_first():
        found = _opened(path, **layout)
        if found is None:
            _write(path, files, processor, workers, layout)
            found = _opened(path, **layout)
    return found


def _write(
    path: Path, files: Sequence[str], processor: CheXpertImageProcessor, workers: Workers, layout: dict[str, Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = int(np.prod(layout["shape"], dtype=np.int64)) * layout["dtype"].itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise RecipeError(
            f"cache 'disk' needs {needed / 1e9:.1f} GB in {path.parent}, which has {free / 1e9:.1f} GB; free space, or "
            "set the environment variable CHEXPERT_HF_CACHE to another folder."
        )
    with replacing(path) as partial_path:
        images = np.lib.format.open_memmap(partial_path, mode="w+", **layout)
        _fill(images, files, processor, workers)
        images.flush()
        del images  # Windows renames no file that is mapped


def _opened(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[np.generic] | None:
    """Memory-map the images in a file; return None if it is missing, cut short, or of another shape or type."""
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return images if (images.shape, images.dtype) == (shape, dtype) else None


def _fill(
    images: NDArray[np.generic], files: Sequence[str], processor: CheXpertImageProcessor, workers: Workers
) -> None:
    preparation = Preparation((processor,))
    processes = min(num_processors() if workers == "auto" else workers, MAX_PROCESSES)
    if processes and len(files) >= FILES_FOR_PROCESSES:
        reading = ReadingProcesses(preparation, processes).read(files)
    else:
        reading = read_ahead(partial(read_one, preparation, for_gate=False), files)
    with closing(reading) as reads:
        for index, one in enumerate(reads):
            images[index] = one.prepared().gray[0].numpy()


def _fingerprint(files: Iterable[str], processor: CheXpertImageProcessor) -> str:
    """Return a hash of the files' paths, sizes and times, the processor's settings and the version of Pillow."""
    digest = sha256(f"{PIL.__version__} {processor.to_json_string()}".encode())
    for file in files:
        status = os.stat(file)
        digest.update(
            f"\0{os.path.abspath(file)}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:32]
