"""Scores for files and folders of radiographs: a bad file is reported and the rest goes on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from chexpert_hf.data.radiograph import HEAD_BYTES, RadiographError, read_radiograph
from chexpert_hf.data.raster import format_of
from chexpert_hf.errors import InputError
from chexpert_hf.inference.classifier import BATCH_SIZE, CheXpertClassifier, Prediction
from chexpert_hf.inference.saliency import overlay

# Only for the choice in folders, where a damaged radiograph should be reported: what a file is, its content tells.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})

# zlib's fastest: overlays are looked at once, and level 6 takes four times as long for files a tenth smaller.
_PNG_COMPRESSION = 1


@dataclass(frozen=True)
class FileResult:
    """A file's prediction, or why there is none."""

    path: Path
    prediction: Prediction | None = None
    error: str | None = None


def find_radiographs(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths` as they are given, and the radiographs below the folders among them, sorted.

    In a folder a file is taken by its suffix, or, whatever it is called, if its first bytes are those of an image.

    Raises:
        InputError: If a path does not exist, or there is no file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and not file.name.startswith(".")
                and (file.suffix.lower() in SUFFIXES or _looks_like_image(file))
            )
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; expected radiographs or folders of them.")
    if not found:
        raise InputError(f"No radiographs found in {', '.join(map(str, paths))}; looked for {_suffixes()}.")
    return found


def score_files(
    classifier: CheXpertClassifier, files: Iterable[Path], *, saliency: bool = False, batch_size: int = BATCH_SIZE
) -> Iterator[FileResult]:
    """Reads and scores files, in order."""
    files = iter(files)
    while batch := list(islice(files, batch_size)):
        read = [_read(classifier, path) for path in batch]
        images = [image for image in read if isinstance(image, Image.Image)]
        predictions = classifier.predict_images(images, saliency=saliency, batch_size=batch_size)
        for path, image in zip(batch, read, strict=True):
            if isinstance(image, RadiographError):
                yield FileResult(path, error=str(image))
            else:
                yield FileResult(path, prediction=next(predictions))


def write_overlays(result: FileResult, folder: Path, observations: Iterable[str]) -> list[Path]:
    """Writes one PNG per observation into a folder: the radiograph at its full size under the map.

    Args:
        result: With a prediction that has maps.
        folder: Made if it is not there.
        observations: Which maps.

    Returns:
        The files.

    Raises:
        ValueError: If the prediction has no maps.
    """
    if result.prediction is None or result.prediction.saliency is None:
        raise ValueError(f"{result.path} has no maps; ask for them with saliency=True.")
    folder.mkdir(parents=True, exist_ok=True)
    image = read_radiograph(result.path)
    written = []
    for observation in observations:
        path = folder / f"{observation}.png"
        overlay(image, result.prediction.saliency[observation]).save(path, compress_level=_PNG_COMPRESSION)
        written.append(path)
    return written


def overlay_folders(files: Sequence[Path], root: Path) -> dict[Path, Path]:
    """A folder of its own for each file below `root`, laid out as the files are."""
    parents = [file.absolute().parent for file in files]
    common = Path(os.path.commonpath(parents))
    return {
        file: root / parent.relative_to(common) / file.name.replace(".", "_")
        for file, parent in zip(files, parents, strict=True)
    }


def _looks_like_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return head[128:] == b"DICM" or bool(format_of(head))
    except (OSError, RadiographError):
        return False


def _read(classifier: CheXpertClassifier, path: Path) -> Image.Image | RadiographError:
    try:
        return classifier.read(path)
    except RadiographError as error:
        return error


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES)) + ", and the content of all other files"
