"""Gradio's typed endpoints for programs: `/predict`, `/saliency` and `/batch`.

A program uploads a file by `POST /gradio_api/upload`, and passes the path from the answer to the call; gradio_client
does both. Answers do not hold the names of uploaded files. In `/batch`, the row of a radiograph in an archive has the
radiograph's name within that archive.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import gradio as gr
from gradio import FileData
from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from chexpert_hf import DISCLAIMER
from chexpert_hf.app.server.answers import OPACITY, Common, GateVerdict, common_of, draw, names_of, score, score_all
from chexpert_hf.app.server.blocks import uploaded_path
from chexpert_hf.errors import InputError
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction

# Calls of each endpoint that are worked on at once: /predict fills the batches, /saliency encodes whole images.
_PREDICT_AT_ONCE, _SALIENCY_AT_ONCE, _BATCHES_AT_ONCE = 32, 4, 2


class Score(TypedDict):
    """The score of an observation."""

    probability: float
    operating_point: float
    is_positive: bool


class Answer(TypedDict):
    """The answer of `/predict`, for one radiograph: scores by observation; `gate` is null for a model without one.

    `notes` say which parts of the file were replaced or ignored in reading it. `model` is the model's name.
    """

    observations: dict[str, Score]
    gate: GateVerdict | None
    notes: list[str]
    model: str
    disclaimer: str


class Row(Common):
    """A row of the answer of `/batch`: the scores of one radiograph."""

    file: int  # number of the file or archive in the request, from 1
    member: int | None  # number in the archive, from 1; None if it is in no archive
    name: str | None  # in the archive; None if it is in no archive
    observations: dict[str, Score] | None  # None if there is an error


def add_endpoints(classifier: CheXpertClassifier) -> None:
    """Add the endpoints to the page that is being built."""

    async def predict(file: FileData) -> Answer:
        """Scores one chest radiograph: the probability of each observation. Research software, not a medical device.

        Args:
            file: JPEG, PNG, TIFF, BMP, WebP or DICOM.
        """
        return await score_one(classifier, await _content(file))

    async def saliency(file: FileData, observation: str, opacity: float = OPACITY, raw: bool = False) -> FileData:
        """Draws where in a chest radiograph an observation's score comes from. Not a medical device.

        Args:
            file: JPEG, PNG, TIFF, BMP, WebP or DICOM.
            observation: One of the model's observations, such as Edema.
            opacity: Opacity of the map over the radiograph, from 0 to 1; 0.5 if null.
            raw: Draw the map alone, in gray: white is the strongest evidence for any observation in the radiograph.
        """
        image = await draw(classifier, await _content(file), observation, opacity, raw)
        path = Path(tempfile.mkdtemp(dir=get_upload_folder())) / "map.png"
        path.write_bytes(image)
        return FileData(path=str(path), mime_type="image/png", orig_name="map.png")

    async def batch(files: list[FileData]) -> list[Row]:
        """Scores many chest radiographs, and those in ZIP archives; a file that cannot be read is a row with an error.

        A row has the number of its file, from 1; for a radiograph in an archive also its number and name in it.

        Args:
            files: JPEG, PNG, TIFF, BMP, WebP, DICOM or ZIP.
        """
        if not isinstance(files, list):
            raise InputError("Expected a list of files, got something else.")
        return await score_rows(classifier, [uploaded_path(file) for file in files])

    gr.api(predict, api_name="predict", concurrency_limit=_PREDICT_AT_ONCE)
    gr.api(saliency, api_name="saliency", concurrency_limit=_SALIENCY_AT_ONCE)
    gr.api(batch, api_name="batch", concurrency_limit=_BATCHES_AT_ONCE)


async def score_one(classifier: CheXpertClassifier, data: bytes) -> Answer:
    """Return the answer of `/predict` to the bytes of a file."""
    prediction = await score(classifier, data, may_refuse=True)
    common, observations = common_of(prediction), _scores(classifier, prediction)
    return Answer(
        observations=observations,
        gate=common["gate"],
        notes=common["notes"],
        model=names_of(classifier),
        disclaimer=DISCLAIMER,
    )


async def score_rows(classifier: CheXpertClassifier, files: Sequence[Path | BinaryIO]) -> list[Row]:
    """Return the answer of `/batch`, a row for each radiograph."""
    rows: list[Row] = []
    for image, result in await score_all(classifier, files):
        scores = _scores(classifier, result) if isinstance(result, Prediction) else None
        file, member, name, _ = image
        rows.append({"file": file, "member": member, "name": name, "observations": scores, **common_of(result)})
    return rows


async def _content(file: object) -> bytes:
    return await run_in_threadpool(uploaded_path(file).read_bytes)


def _scores(classifier: CheXpertClassifier, prediction: Prediction) -> dict[str, Score]:
    points = classifier.operating_points
    return {
        name: Score(probability=value, operating_point=points[name], is_positive=prediction.positives[name])
        for name, value in prediction.probabilities.items()
    }
