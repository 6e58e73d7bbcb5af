"""The HTTP API for programs: files in as multipart/form-data, JSON or PNG out; described at `/api/v1/docs`."""

from importlib.resources import files as package_files
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import Template
from typing_extensions import TypedDict

from chexpert_hf import DISCLAIMER
from chexpert_hf.app.model_facts import ModelFacts
from chexpert_hf.app.server.answers import OPACITY, Common, InputImage, common_of, draw, maps_of, names_of, score_all
from chexpert_hf.app.server.blocks import INTERNAL
from chexpert_hf.app.server.scheduler import UnavailableError
from chexpert_hf.errors import InputError, printable
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction

PREFIX = "/api/v1"
OPENAPI_URL = f"{PREFIX}/openapi.json"

MAX_FILE_BYTES = 100_000_000
"""Largest uploaded file: a 16-bit radiograph of 50 megapixels."""

_MAX_NAME = 200


class Row(Common):
    """Scores of a radiograph, null if there is an error; `name` is the uploaded file's, or "archive.zip/file.png"."""

    name: str
    probabilities: dict[str, float] | None
    positives: dict[str, bool] | None


class Maps(TypedDict):
    """Maps by observation, as rows of values in [0, 1].

    `size` is the image's (width, height). `box` is the part of the image that the maps cover: (left, top, right,
    bottom). Both are in pixels.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    maps: dict[str, list[list[float]]]


def add_api(app: FastAPI, classifier: CheXpertClassifier, facts: ModelFacts) -> None:
    """Add the HTTP API, its description and its error handlers to an application."""
    router = APIRouter(prefix=PREFIX)
    model = {
        "name": names_of(classifier),
        "observations": classifier.observations,
        "operating_points": classifier.operating_points,
        "input_size": facts.input_size,
        "num_parameters": facts.num_parameters,
        "has_gate": classifier.has_gate,
        "warnings": facts.warnings,
        "sha256": facts.sha256,
        "disclaimer": DISCLAIMER,
    }

    @router.post("/predict", response_model=list[Row])
    async def predict(
        files: Annotated[list[UploadFile], File(description="JPEG, PNG, TIFF, BMP, WebP, DICOM or ZIP.")],
    ) -> Response:
        """Score radiographs, also those in ZIP archives. Answers with a list of Row, one for each radiograph."""
        scored = await score_all(classifier, [_checked(file).file for file in files])
        return JSONResponse([_row(files[image.file - 1], image, result) for image, result in scored])

    @router.post("/saliency", response_model=Maps, responses={200: {"content": {"image/png": {}}}})
    async def saliency(
        file: Annotated[UploadFile, File(description="JPEG, PNG, TIFF, BMP, WebP or DICOM.")],
        observation: Annotated[str, Form(description="One of the model's observations, such as Edema.")],
        opacity: Annotated[float, Form(description="Opacity of the map over the radiograph.", ge=0, le=1)] = OPACITY,
        format: Annotated[
            Literal["overlay", "map", "json"],
            Form(description="PNG of the map over the radiograph, PNG of the map alone, or all maps as numbers."),
        ] = "overlay",
    ) -> Response:
        """Show where in a radiograph an observation's score comes from: a PNG, or with format json all Maps."""
        content = await _checked(file).read()
        if format != "json":
            image = await draw(classifier, content, observation, opacity, format == "map")
            return Response(image, media_type="image/png")
        maps = await maps_of(classifier, content, observation)
        values = np.asarray(maps.positive.float()).round(4).tolist()
        return JSONResponse(Maps(size=maps.size, box=maps.box, maps=dict(zip(maps.observations, values, strict=True))))

    @router.get("/model")
    async def describe_model() -> dict[str, Any]:
        """Describe the model: name, observations, operating points, input size (height, width), warnings, checksums."""
        return model

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server takes requests; asks for no password."""
        return {"status": "ok"}

    @router.get("/card", response_class=PlainTextResponse)
    async def card() -> str:
        """Return the model's card as Markdown; empty if it has none."""
        return facts.card

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        template = package_files(__package__).joinpath("docs.html").read_text(encoding="utf-8")
        return HTMLResponse(Template(template, autoescape=True).render(api=app.openapi()))

    app.include_router(router)
    app.add_api_route("/docs", lambda: RedirectResponse(f"{PREFIX}/docs"), include_in_schema=False)
    for kind in (InputError, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer_error)


def _checked(file: UploadFile) -> UploadFile:
    if (file.size or 0) > MAX_FILE_BYTES:
        raise InputError(f"Expected a file of at most {MAX_FILE_BYTES // 1_000_000} MB, got more; export it smaller.")
    return file


def _row(file: UploadFile, image: InputImage, result: Prediction | RadiographError) -> Row:
    name = printable((file.filename or "")[:_MAX_NAME])
    return {
        "name": f"{name}/{image.name}" if image.name else name,
        "probabilities": dict(result.probabilities) if isinstance(result, Prediction) else None,
        "positives": dict(result.positives) if isinstance(result, Prediction) else None,
        **common_of(result),
    }


async def answer_error(_: Request, error: Exception) -> Response:
    """Answer an error with its HTTP status and one line, without the contents of the request."""
    if isinstance(error, RequestValidationError):
        lines = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": f"{'; '.join(lines)}; see {PREFIX}/docs."}, 422)
    if isinstance(error, UnavailableError):
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})
    is_input = isinstance(error, InputError)
    return JSONResponse({"detail": str(error) if is_input else INTERNAL}, 400 if is_input else 500)
