"""What the page keeps of radiographs between two clicks: scores, small maps, and the image in the size it is shown in.

`score` is the one place of the page that asks the model, one radiograph at a time, so that what stands in front of the
model may gather the requests of several visitors.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.errors import InputError
from chexpert_hf.gate import Verdict
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, source_of
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import SaliencyMaps, overlay

DISPLAY_SIZE = 1280
"""Longest side in pixels of what is shown. Scores do not depend on it: the model gets the file itself."""

NO_FINDING = "No Finding"

_QUALITY = 90
_JPEG_MAGIC = b"\xff\xd8\xff"


class ExpiredError(RadiographError):
    """An upload that has been deleted since."""


class RefusedError(RadiographError):
    """The model's gate takes an image for something else than a chest radiograph.

    Attributes:
        verdict: With the reason.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


@dataclass(frozen=True, eq=False)
class Reading:
    """One radiograph with its scores and maps.

    Attributes:
        file: Where it was uploaded to; it may be gone.
        jpeg: The radiograph as it is shown, encoded from its gray levels: nothing else of the file is in it.
        prediction: The scores and what the model's gate says, without maps.
        maps: Of each observation `(height, width)` in the size in which it is shown, made when it is asked for.
    """

    file: RadiographFile
    jpeg: bytes
    prediction: Prediction
    maps: SaliencyMaps

    def image(self) -> Image.Image:
        """The radiograph as it is shown."""
        return Image.open(io.BytesIO(self.jpeg), formats=("JPEG",))

    def overlay(self, observation: str, opacity: float) -> Image.Image:
        """The radiograph as it is shown, under an observation's map."""
        return overlay(self.image(), self.maps[observation], opacity)


@dataclass(frozen=True)
class Failure:
    """A view that has no scores.

    Attributes:
        view: Its number, from 1.
        reason: One line.
        is_refused: Whether the gate refused it, so that it can be scored anyway.
    """

    view: int
    reason: str
    is_refused: bool = False


@dataclass(frozen=True, eq=False)
class Study:
    """The views of one patient's study; a single radiograph is a study of one view.

    Attributes:
        views: By their numbers from 1, in upload order; at least one.
        failures: The numbers that are missing in it, with reasons.
    """

    views: dict[int, Reading]
    failures: tuple[Failure, ...] = ()

    @property
    def probabilities(self) -> dict[str, float]:
        """The maximum over the views. Source: Irvin et al. 2019, arXiv:1901.07031, section 4."""
        return {name: self._scores(name)[number] for name, number in self.view_of().items()}

    @property
    def positives(self) -> dict[str, bool]:
        """Whether any view reaches the operating point."""
        views = self.views.values()
        return {name: any(view.prediction.positives[name] for view in views) for name in self.view_of()}

    def view_of(self) -> dict[str, int]:
        """The number of the view that has the maximum; the first of equal ones."""
        first = next(iter(self.views.values()))
        names = first.prediction.probabilities
        return {name: max(self.views, key=self._scores(name).__getitem__) for name in names}

    @property
    def most_probable(self) -> str:
        """The observation to show first: the highest score but that of No Finding, which has no place to point at."""
        scores = self.probabilities
        placed = [name for name in scores if name != NO_FINDING] or list(scores)
        return max(placed, key=scores.__getitem__)

    @property
    def has_gate(self) -> bool:
        """Whether the model could tell if these are chest radiographs."""
        return any(view.prediction.gate is not None for view in self.views.values())

    def warnings(self, *, is_study: bool) -> list[str]:
        """Notes on the files of the views that were scored, and what the gate says of them.

        Args:
            is_study: Whether to say of which view.
        """
        lines = []
        for number, view in self.views.items():
            texts = [*view.prediction.notes, *(view.prediction.gate.messages if view.prediction.gate else ())]
            place = f"View {number}: " if is_study else ""
            lines += [f"{place}{text}" for text in texts]
        return lines

    def missing(self) -> list[str]:
        """Which views have no scores, and why."""
        return [f"View {failure.view} has no scores: {failure.reason}" for failure in self.failures]

    def _scores(self, observation: str) -> dict[int, float]:
        return {number: view.prediction.probabilities[observation] for number, view in self.views.items()}


def score(
    classifier: CheXpertClassifier, data: bytes, *, is_gated: bool, decoded: Radiograph | None = None
) -> Prediction:
    """Scores and maps of one radiograph, and what the gate says of it.

    Args:
        classifier: The model.
        data: A file's bytes.
        is_gated: Whether to refuse what the gate refuses.
        decoded: From `decode_once`, if there is reason to have it; decoding again gives the same scores.

    Raises:
        RadiographError: If it cannot be read.
        RefusedError: If the gate refuses it.
    """
    prediction = classifier.predict(data if decoded is None else decoded, saliency=True)
    if is_gated and prediction.gate is not None and not prediction.gate.is_chest_radiograph:
        raise RefusedError(prediction.gate)
    return prediction


def read(classifier: CheXpertClassifier, file: RadiographFile, *, is_gated: bool = True) -> Reading:
    """Scores an uploaded radiograph as `classifier.predict` does, and keeps what the page shows of it.

    Args:
        classifier: The model.
        file: The upload, or a member of an uploaded archive.
        is_gated: Whether to refuse what the gate refuses.

    Raises:
        RadiographError: If it cannot be read.
        ExpiredError: If it has been deleted.
        RefusedError: If the gate refuses it.
    """
    data = bytes_of(file)
    decoded = decode_once(classifier, data)
    prediction = score(classifier, data, is_gated=is_gated, decoded=decoded)
    shown = shown_image(data, decoded)
    return Reading(
        file=file,
        jpeg=encode(shown),
        prediction=replace(prediction, saliency=None),
        maps=prediction.maps.at_size(shown.size),
    )


def read_study(
    classifier: CheXpertClassifier, files: Sequence[RadiographFile], *, is_gated: bool = True
) -> tuple[Study | None, tuple[Failure, ...]]:
    """Reads the views of a study, numbered from 1 as they come.

    Returns:
        The study, None if no view could be scored; and the views that could not.
    """
    views: dict[int, Reading] = {}
    failures = []
    for number, file in enumerate(files, start=1):
        try:
            views[number] = read(classifier, file, is_gated=is_gated)
        except RefusedError as refusal:
            reason = " ".join(refusal.verdict.messages)
            failures.append(Failure(number, reason, is_refused=True))
        except InputError as error:  # it cannot be read, or the server is stopping
            failures.append(Failure(number, str(error)))
    return (Study(views, tuple(failures)) if views else None), tuple(failures)


def decode_once(classifier: CheXpertClassifier, data: bytes) -> Radiograph | None:
    """What the gate, the model and the eye all take; None for a JPEG, which is decoded smaller for the first two.

    Raises:
        RadiographError: If it cannot be read.
    """
    return None if data.startswith(_JPEG_MAGIC) else classifier.read(data)


def bytes_of(file: RadiographFile) -> bytes:
    """An upload's bytes.

    Raises:
        RadiographError: If they cannot be read.
        ExpiredError: If the upload has been deleted.
    """
    path = Path(file.archive) if isinstance(file, ArchiveMember) else Path(file)
    if not path.exists():
        raise ExpiredError(EXPIRED)
    source = source_of(file)
    return source if isinstance(source, bytes) else path.read_bytes()


def shown_image(data: bytes, decoded: Radiograph | None = None) -> Image.Image:
    """A radiograph in the size in which it is shown, mode L.

    Args:
        data: A file's bytes.
        decoded: From `decode_once`, if there is one already.

    Raises:
        RadiographError: If it cannot be read.
    """
    shown = read_radiograph(data, target_size=DISPLAY_SIZE) if decoded is None else decoded.image.copy()
    shown.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE), Image.Resampling.LANCZOS)
    return shown


def encode(image: Image.Image) -> bytes:
    """A JPEG of an image's pixels, without what else Pillow would take over from it."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
