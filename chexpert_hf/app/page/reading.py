"""Radiographs as the page keeps them between two clicks: scores, small maps, and the image in its displayed size.

The model is called for one radiograph at a time, so that a scheduler can batch the requests of several visitors.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.errors import NotANumberError
from chexpert_hf.folders.scoring import FileResult
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, source_of
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction

DISPLAY_SIZE = 1024
"""Longest side in pixels of the image that comes with the scores. The model gets the file itself."""

DETAIL_SIZE = 4096
"""Longest side in pixels of the image that the viewer asks for when it is zoomed beyond the first image's pixels."""

_QUALITY = 90
_JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True, eq=False)
class Item(FileResult):
    """A visitor's radiograph, and once it has been read its result and its image."""

    name: str = ""  # of the upload, such as "archive.zip/a.png"; the file's path may have been deleted
    jpeg: bytes = b""  # the radiograph as it is shown, encoded from its gray levels: nothing else of the file is in it

    @property
    def above(self) -> list[str]:
        """The positive observations by falling probability, without No Finding or its equivalent."""
        return self.prediction.sorted_positives() if self.prediction else []

    @property
    def is_refused(self) -> bool:
        """Whether the gate refused the radiograph, which can be scored anyway."""
        return self.prediction is None and self.is_no_radiograph

    @property
    def kinds(self) -> list[str]:
        """The filters that show this row: one or more of "scored", "warned", "refused" (by the gate), "unreadable"."""
        refused = ["refused"] if self.is_no_radiograph else []
        if self.prediction is None:
            return refused or ["unreadable"]
        return ["scored", *refused, *(["warned"] if self.warnings else [])]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the visitor: notes on the file, then everything that the gate says.

        If the radiograph has no scores, `error` says why, and this holds only the gate's warnings, such as on its pose.
        """
        if self.prediction is None:
            return self.gate.warnings if self.gate else ()
        return (*self.prediction.notes, *(self.gate.messages if self.gate else ()))


@dataclass(frozen=True, eq=False)
class Study:
    """The views of one patient's study; a single radiograph is a study of one view."""

    items: Sequence[Item]  # in upload order, by which views are numbered from 1

    @property
    def is_numbered(self) -> bool:
        """Whether there are several views, so that each is shown with its number ("View 2")."""
        return len(self.items) > 1

    @cached_property
    def views(self) -> dict[int, Prediction]:
        """The predictions of the views that have scores, by the numbers of the views."""
        return {number: item.prediction for number, item in enumerate(self.items, start=1) if item.prediction}

    @cached_property
    def view_of(self) -> dict[str, int]:
        """Observation -> number of the view with its highest probability (No Finding: lowest).

        Of views with equal probabilities it is the first one. A finding in any view rules No Finding out. Source of the
        maximum: Irvin et al. 2019, arXiv:1901.07031, section 4.
        """
        first = next(iter(self.views.values()))
        scores = {number: view.probabilities for number, view in self.views.items()}
        return {
            name: (min if name == first.labels.none_of_these else max)(scores, key=lambda number: scores[number][name])
            for name in first.probabilities
        }

    @cached_property
    def prediction(self) -> Prediction:
        """Each observation's probability and call, from the view where it is most probable (No Finding: least)."""
        views = {name: self.views[number] for name, number in self.view_of.items()}
        probabilities = {name: view.probabilities[name] for name, view in views.items()}
        positives = {name: view.positives[name] for name, view in views.items()}
        return Prediction(probabilities, positives, labels=next(iter(views.values())).labels)

    @property
    def has_gate(self) -> bool:
        """Whether the model has a gate, so that the views were checked."""
        return any(item.gate is not None for item in self.items)

    def label(self, number: int) -> str:
        """Return the caption of a view: "View 2", or "Radiograph" if views are not numbered."""
        return f"View {number}" if self.is_numbered else "Radiograph"

    def warnings(self) -> list[str]:
        """Return notes on the files of the scored views, and the gate's warnings, as sentences."""
        texts = [(number, text) for number in self.views for text in self.items[number - 1].warnings]
        return [f"View {number}: {text}" if self.is_numbered else text for number, text in texts]

    def missing(self, *, is_named: bool = False) -> list[str]:
        """Return a text for each view that has no scores: the reason.

        With several views, it begins with the view's number and, with `is_named`, the name of its file.
        """
        reasons = []
        for number, item in enumerate(self.items, start=1):
            if item.error is not None:
                view = f"View {number}{f' ({item.name})' if is_named else ''} has no scores: "
                reasons.append((view if self.is_numbered else "") + " ".join((item.error, *item.warnings)))
        return reasons


def read(classifier: CheXpertClassifier, item: Item, *, size: int = DISPLAY_SIZE, is_gated: bool = True) -> Item:
    """Score a radiograph as `classifier.predict` does; keep its image at up to `size` pixels a side.

    The result has an error instead of scores if the file cannot be read or, with `is_gated`, the gate refuses it.
    """
    item = Item(item.path, name=item.name)
    try:
        source = decode(classifier, bytes_of(item.path))
        prediction = classifier.predict(source, saliency=True)
        item = replace(item, gate=prediction.gate, jpeg=encode(shown_image(source, size)))
    except (RadiographError, NotANumberError) as error:
        return replace(item, error=str(error))
    if is_gated and item.gate is not None and item.is_no_radiograph:
        return replace(item, error=item.gate.reason)
    return replace(item, prediction=replace(prediction, source=None))


def decode(classifier: CheXpertClassifier, data: bytes) -> bytes | Radiograph:
    """Decode a file, or raise RadiographError. A JPEG is returned as it is: `predict` decodes it at reduced size."""
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
