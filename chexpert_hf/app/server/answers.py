"""Computes the answers to requests for scores and maps, the same for Gradio, the HTTP API and agents."""

import asyncio
import io
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from chexpert_hf.app.server.scorer import SharedClassifier, Source, content_of
from chexpert_hf.errors import InputError
from chexpert_hf.models.loading import model_name
from chexpert_hf.radiographs.archives import ZIP_MAGIC, ArchiveMember, close_archives
from chexpert_hf.radiographs.finding import Found, archive_members
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import SaliencyMaps, overlay_of

MAX_BATCH = 500
"""Radiographs in one request, those in archives included."""

OPACITY = 0.5
"""Default opacity of a map over a radiograph."""

_ROWS_AT_ONCE = 8  # radiographs of one request that are scored at once, so that others are served meanwhile


class GateVerdict(TypedDict):
    """Whether the gate accepts an image as a chest radiograph, the reason if not, and its warnings."""

    is_chest_radiograph: bool
    reason: str
    warnings: list[str]


class Common(TypedDict):
    """The fields that the results of all APIs share, for one radiograph.

    `error` is null if the radiograph was scored. `gate` is null if it was not scored, or if the model has no gate.
    `notes` say which parts of the file were replaced or ignored in reading it.
    """

    error: str | None
    notes: list[str]
    gate: GateVerdict | None


class InputImage(NamedTuple):
    """A radiograph of a request: a file, or a member of a ZIP archive.

    An archive that cannot be read or holds nothing to score counts as one radiograph, whose scoring gives the error.
    """

    file: int  # number of the file or archive in the request, from 1
    member: int | None  # number in the archive, from 1; None if it is no member
    name: str | None  # in the archive; None if it is no member
    source: Path | BinaryIO | ArchiveMember


async def score(
    classifier: CheXpertClassifier, source: Source, *, saliency: bool = False, may_refuse: bool = False
) -> Prediction:
    """Score a radiograph without blocking the event loop.

    With `may_refuse`, a SharedClassifier raises UnavailableError if too many requests are waiting.
    """
    if isinstance(classifier, SharedClassifier):
        return await asyncio.wrap_future(classifier.scheduler.submit(source, saliency, may_refuse=may_refuse))
    return await run_in_threadpool(lambda: classifier.predict(content_of(source), saliency=saliency))


async def score_all(
    classifier: CheXpertClassifier, files: Sequence[Path | BinaryIO]
) -> list[tuple[InputImage, Prediction | RadiographError]]:
    """Score radiographs and those in ZIP archives; a file that cannot be read has an error in its place.

    Only the files that are being scored are in memory.

    Raises:
        InputError: If there are more than `MAX_BATCH` radiographs.
        UnavailableError: If too many requests are waiting when the first one is submitted.
    """
    with ExitStack() as stack:
        if any(map(_is_zip, files)):
            images = await run_in_threadpool(lambda: _images_of([_stored(file, stack) for file in files]))
        else:
            images = _images_of(files)
        slots = asyncio.Semaphore(_ROWS_AT_ONCE)

        async def one(image: InputImage, may_refuse: bool) -> Prediction | RadiographError:
            async with slots:
                try:
                    return await score(classifier, image.source, may_refuse=may_refuse)
                except RadiographError as error:
                    return error

        tasks = [asyncio.ensure_future(one(image, place == 0)) for place, image in enumerate(images)]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    return list(zip(images, results, strict=True))


async def draw(
    classifier: CheXpertClassifier, data: bytes, observation: object, opacity: object, raw: bool = False
) -> bytes:
    """Return a PNG of an observation's map over a radiograph; with `raw`, a PNG of the map alone.

    `data` are the bytes of the radiograph's file. If `opacity` is None, `OPACITY` is used.

    Raises:
        InputError: If the model has no such observation, the opacity is not in [0, 1], or the file cannot be read.
    """
    opacity = OPACITY if opacity is None else opacity  # JSON clients send null for "not given"
    if not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
        raise InputError("Expected an opacity from 0 to 1.")
    maps, name = await maps_of(classifier, data, observation), str(observation)

    def encode() -> bytes:
        levels = (np.clip(maps[name], 0, 1) * 255).round().astype(np.uint8)
        image = Image.fromarray(levels) if raw else overlay_of(read_radiograph(data), maps, name, opacity)
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    return await run_in_threadpool(encode)


async def maps_of(classifier: CheXpertClassifier, data: bytes, observation: object) -> SaliencyMaps:
    """Return the maps of all observations for a radiograph, given as a file's bytes.

    `observation` is the one that the request names. It must be one of the model's, but does not change the result.

    Raises:
        InputError: If the model lacks `observation`, the file cannot be read, or too many requests are waiting.
    """
    if observation not in classifier.observations:
        raise InputError(f"Expected an observation of this model: {', '.join(classifier.observations)}.")
    return (await score(classifier, data, saliency=True, may_refuse=True)).maps


def names_of(classifier: CheXpertClassifier) -> str:
    """Return the model's name, or the names of an ensemble's members; never a path."""
    return " + ".join(model_name(member.model) or "unnamed" for member in classifier.members)


def common_of(result: Prediction | RadiographError) -> Common:
    """Return the fields that the answers of all APIs share, for one radiograph's result."""
    if isinstance(result, RadiographError):
        return {"error": result.reason, "notes": [], "gate": None}
    if (gate := result.gate) is None:
        return {"error": None, "notes": [*result.notes], "gate": None}
    warnings = [*gate.warnings]
    verdict = GateVerdict(is_chest_radiograph=gate.is_chest_radiograph, reason=gate.reason, warnings=warnings)
    return {"error": None, "notes": [*result.notes], "gate": verdict}


def _images_of(files: Sequence[Path | BinaryIO]) -> list[InputImage]:
    images: list[InputImage] = []
    for number, file in enumerate(files, start=1):
        if isinstance(file, Path) and _is_zip(file):
            members = islice(archive_members(str(file), Found(), others=True), MAX_BATCH + 1)
            for place, member in enumerate(members, start=1):
                images.append(InputImage(number, place if member.name else None, member.name or None, member))
        else:
            images.append(InputImage(number, None, None, file))
        if len(images) > MAX_BATCH:
            raise InputError(f"Expected at most {MAX_BATCH} radiographs at once, got more; call again for the others.")
    return images


def _is_zip(file: Path | BinaryIO) -> bool:
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        head = stream.read(len(ZIP_MAGIC))
        stream.seek(0)
    return head == ZIP_MAGIC


def _stored(file: Path | BinaryIO, stack: ExitStack) -> Path | BinaryIO:
    """Return a file as it is, unless it is a ZIP archive in an open stream: then return the path of a copy.

    The copy is deleted when `stack` closes.
    """
    if isinstance(file, Path) or not _is_zip(file):
        return file
    path = Path(stack.enter_context(TemporaryDirectory(dir=get_upload_folder()))) / "archive.zip"
    stack.callback(close_archives)  # before the folder is deleted
    with path.open("wb") as stream:
        shutil.copyfileobj(file, stream)
    return path
