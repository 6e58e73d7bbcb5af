"""Examples on the page: real radiographs, then synthetic radiographs (drawings) of findings that the model detects.

A folder of examples holds radiographs as `*.jpg` and drawings as `drawings/*.jpg`, each named after its observation.
"""

from collections.abc import Sequence
from pathlib import Path

from chexpert_hf.app.page.html import clinical_order, data_url, render
from chexpert_hf.app.page.reading import encode, shown_image
from chexpert_hf.scoring.classifier import CheXpertClassifier

DRAWINGS = "drawings"

_THUMBNAIL_SIZE = 240  # longest side in pixels: twice that on the page, for high-density screens


def find_examples(folder: Path, classifier: CheXpertClassifier | None) -> tuple[Path, ...]:
    """Lists the radiographs of a folder, and the drawings whose observation a model calls positive."""
    radiographs = sorted(folder.glob("*.jpg"))
    if classifier is None:
        return tuple(radiographs)
    drawings = (drawing_of(observation, folder) for observation in clinical_order(classifier.observations))
    found = (path for path in drawings if path.is_file() and finds(classifier, path.stem, path.read_bytes()))
    return (*radiographs, *found)


def drawing_of(observation: str, folder: Path) -> Path:
    """Path of the drawing of an observation in a folder of examples."""
    return folder / DRAWINGS / f"{observation}.jpg"


def finds(classifier: CheXpertClassifier, observation: str, image: bytes) -> bool:
    """Whether a model calls an observation positive in an image file that its gate accepts."""
    prediction = classifier.predict(image)
    is_accepted = prediction.gate is None or prediction.gate.is_chest_radiograph
    return is_accepted and prediction.positives[observation]


def examples_html(paths: Sequence[Path]) -> str:
    """Buttons with a small image and a name; each carries its place in `paths`."""
    images = [data_url(encode(shown_image(path.read_bytes(), _THUMBNAIL_SIZE))) for path in paths]
    examples = [
        (title_of(path), image, path.parent.name == DRAWINGS) for path, image in zip(paths, images, strict=True)
    ]
    return render("examples.html", examples=examples)


def title_of(path: Path) -> str:
    """The name of an example."""
    return f"{'Drawing:' if path.parent.name == DRAWINGS else 'Radiograph'} {path.stem}"
