"""Radiographs as the page keeps them between two clicks: scores, small maps, and the image in its displayed size.

The model is called for one radiograph at a time, so that a scheduler can batch the requests of several visitors.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.app.page.text import EXPIRED, describe_calls
from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, source_of
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.prediction import display_order, sorted_positives

DISPLAY_SIZE = 1024
"""Longest side in pixels of the image that comes with the scores. The model gets the file itself."""

DETAIL_SIZE = 4096
"""Longest side in pixels of the image that the viewer asks for when it is zoomed beyond the first image's pixels."""

_QUALITY = 90
_JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True, eq=False)
class Reading:
    """One radiograph with its scores and maps."""

    file: RadiographFile  # the upload, which may have been deleted
    jpeg: bytes  # the radiograph as it is shown, encoded from its gray levels: nothing else of the file is in it
    prediction: Prediction

    def image(self, size: int) -> Image.Image:
        """Return the radiograph as it is shown, but of at most `size` pixels a side."""
        image = Image.open(io.BytesIO(self.jpeg), formats=("JPEG",))
        image.thumbnail((size, size))
        return image


@dataclass(eq=False)
class Study:
    """The views of one patient's study; a single radiograph is a study of one view."""

    views: dict[int, Reading]  # by their numbers from 1, in upload order; empty if none could be scored
    failures: dict[int, str] = field(default_factory=dict)  # for each view without scores, the reason
    is_any_refused: bool = False  # whether the gate refused a view, which can be scored anyway
    is_numbered: bool = False  # whether to show the numbers of the views

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each observation: the maximum over the views, for No Finding the minimum.

        A finding in any view rules No Finding out. Source of the maximum: Irvin et al. 2019, arXiv:1901.07031, section
        4.
        """
        return {name: self.views[number].prediction.probabilities[name] for name, number in self.view_of().items()}

    @property
    def positives(self) -> dict[str, bool]:
        """Whether each observation reaches its operating point, in the view that `view_of` names."""
        return {name: self.views[number].prediction.positives[name] for name, number in self.view_of().items()}

    def view_of(self) -> dict[str, int]:
        """Return observation -> number of the view with its highest probability (No Finding: lowest).

        Of views with equal probabilities it is the first one.
        """
        scores = {number: view.prediction.probabilities for number, view in self.views.items()}
        return {
            name: (min if name == self.none_of_these else max)(scores, key=lambda number: scores[number][name])
            for name in next(iter(scores.values()))
        }

    @property
    def none_of_these(self) -> str | None:
        """The observation which says that all others are absent, such as No Finding; None if the model has none."""
        prediction = next(iter(self.views.values())).prediction
        name = prediction.labels.none_of_these
        return name if name in prediction.probabilities else None

    @property
    def above(self) -> list[str]:
        """The observations that are called positive, by falling probability, without No Finding or its equivalent."""
        return sorted_positives(self.probabilities, self.positives, self.none_of_these)

    @property
    def verdict(self) -> tuple[str, ...]:
        """Sentences on which observations are above their thresholds, from `text.describe_calls`."""
        none = self.none_of_these
        return describe_calls(self.above, none, bool(none and self.positives[none]))

    def display_order(self) -> list[str]:
        """Return the observations in the order of their maps, as `prediction.display_order` sorts them."""
        return display_order(self.probabilities, self.positives, self.none_of_these)

    @property
    def has_gate(self) -> bool:
        """Whether the model has a gate, so that the views were checked."""
        return any(view.prediction.gate is not None for view in self.views.values())

    def label(self, number: int) -> str:
        """Return the caption of a view: "View 2", or "Radiograph" if views are not numbered."""
        return f"View {number}" if self.is_numbered else "Radiograph"

    def warnings(self) -> list[str]:
        """Return notes on the files of the scored views, and the gate's warnings, as sentences."""
        return [
            f"View {number}: {text}" if self.is_numbered else text
            for number, view in self.views.items()
            for text in (*view.prediction.notes, *(view.prediction.gate.messages if view.prediction.gate else ()))
        ]

    def missing(self, names: Sequence[str] = ()) -> list[str]:
        """Return a sentence per view without scores: number, reason, and file if `names` are given (one per view)."""
        files = {number: f" ({name})" for number, name in enumerate(names, start=1)}
        return [f"View {number}{files.get(number, '')} has no scores: {why}" for number, why in self.failures.items()]


def read(classifier: CheXpertClassifier, file: RadiographFile, size: int = DISPLAY_SIZE) -> Reading:
    """Score an uploaded radiograph as `classifier.predict` does; keep its image at up to `size` pixels a side."""
    source = decode(classifier, bytes_of(file))
    prediction = classifier.predict(source, saliency=True)
    return Reading(file, encode(shown_image(source, size)), replace(prediction, source=None))


def read_study(
    classifier: CheXpertClassifier, files: Sequence[RadiographFile], *, is_gated: bool = True, is_numbered: bool = False
) -> Study:
    """Read and score the views of a study, numbered from 1 in upload order; a view that fails is in its `failures`."""
    study = Study({}, is_numbered=is_numbered)
    for number, file in enumerate(files, start=1):
        try:
            reading = read(classifier, file)
        except InputError as error:  # the file cannot be read, or the server is stopping
            study.failures[number] = str(error)
            continue
        gate = reading.prediction.gate
        if is_gated and gate is not None and not gate.is_chest_radiograph:
            study.failures[number] = " ".join(gate.messages)
            study.is_any_refused = True
        else:
            study.views[number] = reading
    return study


def decode(classifier: CheXpertClassifier, data: bytes) -> bytes | Radiograph:
    """Return a JPEG file's bytes as they are, since `predict` decodes them at reduced size; read other formats."""
    return data if data.startswith(_JPEG_MAGIC) else classifier.read(data)


def bytes_of(file: RadiographFile) -> bytes:
    """Return an upload's bytes; RadiographError if it has been deleted."""
    path = Path(file.archive) if isinstance(file, ArchiveMember) else Path(file)
    if not path.exists():
        raise RadiographError(EXPIRED)
    source = source_of(file)
    return source if isinstance(source, bytes) else path.read_bytes()


def shown_image(source: bytes | Radiograph, size: int = DISPLAY_SIZE) -> Image.Image:
    """Return a gray image (mode L) of at most `size` pixels a side, from a file's bytes or a read radiograph."""
    shown = read_radiograph(source, target_size=size) if isinstance(source, bytes) else source.image.copy()
    shown.thumbnail((size, size), Image.Resampling.LANCZOS)
    return shown


def encode(image: Image.Image) -> bytes:
    """Return an image as JPEG, without the metadata that Pillow would copy."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
