"""Examples on the page: real radiographs, then synthetic radiographs (drawings) of findings that the model detects.

A folder of examples holds radiographs as `*.jpg`, and drawings as `drawings/<observation>.jpg`.
"""

from collections.abc import Sequence
from pathlib import Path

from chexpert_hf.app.page.html import clinical_order, data_url, render
from chexpert_hf.app.page.reading import encode, shown_image
from chexpert_hf.scoring.classifier import CheXpertClassifier

DRAWINGS = "drawings"

_THUMBNAIL_SIZE = 240  # longest side in pixels: twice that on the page, for high-density screens


def find_examples(folder: Path, classifier: CheXpertClassifier | None) -> tuple[Path, ...]:
    """Return the radiographs in a folder of examples, then the drawings whose observation the model calls positive.

    Without a classifier there are no drawings.
    """
    radiographs = sorted(folder.glob("*.jpg"))
    if classifier is None:
        return tuple(radiographs)
    drawings = (drawing_of(observation, folder) for observation in clinical_order(classifier.observations))
    found = (path for path in drawings if path.is_file() and finds(classifier, path.stem, path.read_bytes()))
    return (*radiographs, *found)


def drawing_of(observation: str, folder: Path) -> Path:
    """Return the path of an observation's drawing in a folder of examples, `drawings/<observation>.jpg`."""
    return folder / DRAWINGS / f"{observation}.jpg"


def finds(classifier: CheXpertClassifier, observation: str, image: bytes) -> bool:
    """Whether the gate accepts an image, the bytes of a file, and the model calls the observation positive in it."""
    prediction = classifier.predict(image)
    is_accepted = prediction.gate is None or prediction.gate.is_chest_radiograph
    return is_accepted and prediction.positives[observation]


def examples_html(paths: Sequence[Path]) -> str:
    """Return buttons with a thumbnail and a title; each carries the index of its example in `paths`."""
    images = [data_url(encode(shown_image(path.read_bytes(), _THUMBNAIL_SIZE))) for path in paths]
    examples = [
        (title_of(path), image, path.parent.name == DRAWINGS) for path, image in zip(paths, images, strict=True)
    ]
    return render("examples.html", examples=examples)


def title_of(path: Path) -> str:
    """Return the title of an example, such as "Drawing: Edema" or "Radiograph RG1", from its file's name."""
    return f"{'Drawing:' if path.parent.name == DRAWINGS else 'Radiograph'} {path.stem}"
