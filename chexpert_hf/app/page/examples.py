"""Examples on the page: real radiographs first, then drawings of findings that the model finds.

A folder of examples holds radiographs as `*.jpg` and drawings (phantoms) as `drawings/*.jpg`, each of which is named
after the observation that was planted in it.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from chexpert_hf.app.page.html import clinical_order, data_url
from chexpert_hf.app.page.reading import encode
from chexpert_hf.app.page.text import DRAWINGS_NOTE, RADIOGRAPHS_NOTE
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier

RADIOGRAPHS = "*.jpg"
DRAWINGS = "drawings"

_THUMBNAIL_SIZE = 176
"""Longest side in pixels: twice what the page shows, for screens of high density."""


def find_examples(folder: Path, classifier: CheXpertClassifier | None) -> tuple[Path, ...]:
    """Lists the radiographs of a folder, and those of its drawings in which a model finds what was planted.

    Args:
        folder: The examples.
        classifier: The model; None for no drawings.
    """
    radiographs = tuple(sorted(folder.glob(RADIOGRAPHS)))
    if classifier is None:
        return radiographs
    drawings = (drawing_of(observation, folder) for observation in clinical_order(classifier.observations))
    found = (path for path in drawings if path.is_file() and finds(classifier, path.stem, path.read_bytes()))
    return (*radiographs, *found)


def drawing_of(observation: str, folder: Path) -> Path:
    """Path of the drawing of an observation in a folder of examples."""
    return folder / DRAWINGS / f"{observation}.jpg"


def finds(classifier: CheXpertClassifier, observation: str, image: bytes) -> bool:
    """Whether a model calls an observation positive in an image that its gate accepts.

    Args:
        classifier: The model.
        observation: One that it judges.
        image: A file's bytes.
    """
    prediction = classifier.predict(image)
    is_accepted = prediction.gate is None or prediction.gate.is_chest_radiograph
    return is_accepted and prediction.positives[observation]


def examples_html(paths: Sequence[Path]) -> str:
    """Buttons with a small image and a name; each carries its place in `paths`."""
    buttons = "".join(_button(index, path) for index, path in enumerate(paths))
    are_drawn = [_is_drawn(path) for path in paths]
    notes = [RADIOGRAPHS_NOTE] * (not all(are_drawn)) + [DRAWINGS_NOTE] * any(are_drawn)
    return (
        f'<p class="examples-title">Or try an example:</p><div class="examples">{buttons}</div>'
        f'<p class="examples-note">{escape(" ".join(notes))}</p>'
    )


def _is_drawn(path: Path) -> bool:
    return path.parent.name == DRAWINGS


def _button(index: int, path: Path) -> str:
    image = read_radiograph(path)
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    name = f"{'Drawing:' if _is_drawn(path) else 'Radiograph'} {path.stem}"
    return (
        f'<button type="button" class="example" data-index="{index}">'
        f'<img src="{data_url(encode(image), "image/jpeg")}" alt=""><span>{escape(name)}</span></button>'
    )
