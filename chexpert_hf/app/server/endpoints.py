"""What programs call: `/predict`, `/saliency` and `/batch`, typed, without the page.

A file goes in by `POST /gradio_api/upload`, and its path from the answer goes into the call; gradio_client does both.
An error is one line in the answer. Names of files come into no answer, but for those in an archive: they name its rows.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypedDict

import gradio as gr
import numpy as np
from gradio import FileData
from gradio.utils import get_upload_folder
from PIL import Image

from chexpert_hf.app.server.scorer import Scorer
from chexpert_hf.app.server.words import DISCLAIMER
from chexpert_hf.errors import InputError
from chexpert_hf.folders.scoring import read_ahead
from chexpert_hf.gate import Verdict
from chexpert_hf.models.identity import model_name
from chexpert_hf.radiographs.archives import ArchiveMember, source_of
from chexpert_hf.radiographs.finding import archive_members
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.radiographs.walk import Found
from chexpert_hf.scoring.classifier import Prediction
from chexpert_hf.scoring.saliency import overlay

MAX_BATCH = 500
"""Radiographs in one call of `/batch`, those in archives among them."""

OPACITY = 0.5
"""Default opacity of a map over a radiograph."""

AT_ONCE = 32
"""Calls of `/predict` that are worked on at once: enough to fill the passes through the network."""

_FEW_AT_ONCE = 4
"""Of `/saliency`, which encodes whole images."""

_BATCHES_AT_ONCE = 2
_ROWS_AT_ONCE = 8
"""Of one batch: few enough to leave room for others."""

_ZIP_MAGIC = b"PK\x03\x04"


class Score(TypedDict):
    probability: float
    operating_point: float
    is_positive: bool


class GateVerdict(TypedDict):
    is_chest_radiograph: bool
    reason: str
    warnings: list[str]


class Answer(TypedDict):
    observations: dict[str, Score]
    gate: GateVerdict | None
    notes: list[str]
    model: str
    disclaimer: str


class Row(TypedDict):
    file: int
    member: int | None
    name: str | None
    error: str | None
    observations: dict[str, Score] | None
    notes: list[str]
    gate: GateVerdict | None


def add_endpoints(classifier: Scorer) -> None:
    """Adds the endpoints to the page that is being built.

    Args:
        classifier: What computes.
    """

    def predict(file: FileData) -> Answer:
        """Scores one chest radiograph: the probability of each observation. Research software, not a medical device.

        Args:
            file: JPEG, PNG, TIFF, BMP, WebP or DICOM; an agent gives its bytes as a data: URL.
        """
        prediction = classifier.predict(uploaded_path(file))
        return Answer(
            observations=_scores(classifier, prediction),
            gate=_gate(prediction.gate),
            notes=list(prediction.notes),
            model=" + ".join(model_name(member.model) or "unnamed" for member in classifier.members),
            disclaimer=DISCLAIMER,
        )

    def saliency(file: FileData, observation: str, opacity: float = OPACITY, raw: bool = False) -> FileData:
        """Draws where in a chest radiograph an observation's score comes from. Not a medical device.

        Args:
            file: JPEG, PNG, TIFF, BMP, WebP or DICOM; an agent gives its bytes as a data: URL.
            observation: One of the model's observations, such as Edema.
            opacity: Of the map over the radiograph, from 0 to 1; 0.5 if null.
            raw: The map alone, white for the strongest evidence for any observation, instead of the overlay.
        """
        path = uploaded_path(file)
        opacity = OPACITY if opacity is None else opacity  # JSON clients send null for "not given"
        if observation not in classifier.observations:
            raise InputError(f"Expected an observation of this model: {', '.join(classifier.observations)}.")
        if not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
            raise InputError("Expected an opacity from 0 to 1.")
        values = classifier.predict(path, saliency=True).maps[observation]
        if raw:
            image = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
        else:
            image = overlay(read_radiograph(path), values, opacity)
        return _png(image)

    def batch(files: list[FileData]) -> list[Row]:
        """Scores many chest radiographs, and those in ZIP archives; a file that cannot be read is a row with an error.

        A row has the number of its file, and for a radiograph in an archive its number among them and its name there.

        Args:
            files: JPEG, PNG, TIFF, BMP, WebP, DICOM or ZIP.
        """
        if not isinstance(files, list):
            raise InputError("Expected a list of files, got something else.")
        paths = [uploaded_path(file) for file in files]
        return list(score_rows(classifier, paths))

    gr.api(predict, api_name="predict", concurrency_limit=AT_ONCE)
    gr.api(saliency, api_name="saliency", concurrency_limit=_FEW_AT_ONCE)
    gr.api(batch, api_name="batch", concurrency_limit=_BATCHES_AT_ONCE)


def uploaded_path(file: object) -> Path:
    """The path of an uploaded file, if it is one.

    Gradio checks what is marked as a file; what is not marked it hands through.

    Raises:
        InputError: If it is anything else than a file in the folder of uploads, or has been deleted since.
    """
    path = file.get("path") if isinstance(file, dict) else None
    if not isinstance(path, str) or "\0" in path or not is_uploaded(path):
        raise InputError("Expected a file that was uploaded to this server; upload it and pass the path you are given.")
    if not os.path.isfile(path):
        raise InputError("The file has been deleted since it was uploaded; upload it again.")
    return Path(path)


def is_uploaded(path: str) -> bool:
    """Whether a path leads into the folder of uploads, links followed."""
    folder = os.path.realpath(get_upload_folder())
    return os.path.realpath(path).startswith(folder + os.sep)


def score_rows(classifier: Scorer, paths: list[Path]) -> Iterator[Row]:
    """A row for each file, in order; archives are opened.

    Raises:
        InputError: If there are more than `MAX_BATCH`.
    """
    sources: list[tuple[int, int | None, Path | ArchiveMember]] = []
    for number, path in enumerate(paths, start=1):
        if _is_zip(path):
            members = islice(archive_members(str(path), Found(), others=True), MAX_BATCH + 1)
            sources += [(number, place if member.name else None, member) for place, member in enumerate(members, 1)]
        else:
            sources.append((number, None, path))
        if len(sources) > MAX_BATCH:
            raise InputError(f"Expected at most {MAX_BATCH} radiographs at once, got more; call again for the others.")
    score = functools.partial(_score, classifier)
    files = (file for *_, file in sources)
    with closing(read_ahead(score, files, threads=_ROWS_AT_ONCE, ahead=_ROWS_AT_ONCE)) as results:
        for (number, place, file), result in zip(sources, results, strict=True):
            row = Row(
                file=number,
                member=place,
                name=file.name or None if isinstance(file, ArchiveMember) else None,
                error=None,
                observations=None,
                gate=None,
                notes=[],
            )
            if isinstance(result, RadiographError):
                row["error"] = result.reason
            else:
                row["observations"] = _scores(classifier, result)
                row["gate"], row["notes"] = _gate(result.gate), list(result.notes)
            yield row


def _score(classifier: Scorer, file: Path | ArchiveMember) -> Prediction | RadiographError:
    try:
        return classifier.predict(source_of(file), saliency=False)
    except RadiographError as error:
        return error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ZIP_MAGIC


def _scores(classifier: Scorer, prediction: Prediction) -> dict[str, Score]:
    points = classifier.operating_points
    return {
        name: Score(probability=value, operating_point=points[name], is_positive=prediction.positives[name])
        for name, value in prediction.probabilities.items()
    }


def _gate(verdict: Verdict | None) -> GateVerdict | None:
    if verdict is None:
        return None
    return GateVerdict(
        is_chest_radiograph=verdict.is_chest_radiograph, reason=verdict.reason, warnings=list(verdict.warnings)
    )


def _png(image: Image.Image) -> FileData:
    """A file of its own in the folder of uploads, from which it is served and deleted."""
    folder = tempfile.mkdtemp(dir=get_upload_folder())
    path = os.path.join(folder, "map.png")
    image.save(path, compress_level=1)
    return FileData(path=path, mime_type="image/png", orig_name="map.png")
