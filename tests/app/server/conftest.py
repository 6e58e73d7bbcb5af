"""A server around a tiny model, in this process: endpoints behind the whole shell."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.launch import serving
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits

LIMITS = Limits(upload_bytes=3_000_000, json_bytes=100_000, waiting=40)
MAX_WAITING = 40


@dataclass(frozen=True)
class Server:
    url: str
    classifier: SharedClassifier
    http: httpx.Client

    def upload(self, data: bytes, name: str = "film.png") -> str:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return answer.json()[0]

    def call(self, endpoint: str, *arguments: object) -> httpx.Response:
        return self.http.post(f"/gradio_api/call/{endpoint}", json={"data": list(arguments)})

    def result(self, endpoint: str, *arguments: object) -> str:
        """What the stream of events ends with: `complete` or `error`, and the data."""
        event = self.call(endpoint, *arguments).raise_for_status().json()["event_id"]
        return self.http.get(f"/gradio_api/call/{endpoint}/{event}").text


def png(seed: int = 0, size: tuple[int, int] = (80, 64)) -> bytes:
    """A gray image that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class StubGate:
    """Verdicts of `judged`, which gets what `prepare` was given."""

    def __init__(self, judged):
        self.judged = judged

    def prepare(self, radiograph):
        return radiograph.image

    def judge_batch(self, inputs):
        return [self.judged(one) for one in inputs]


def page_of(classifier: CheXpertClassifier) -> Callable[[], Page]:
    """Builds a page that has nothing but the endpoints."""

    def build() -> Page:
        with Page() as page:
            add_endpoints(classifier)
        return page

    return build


def empty_page() -> Page:
    with Page() as page:
        pass
    return page


@pytest.fixture(scope="package")
def classifier(shared_tiny_model) -> CheXpertClassifier:
    return CheXpertClassifier(shared_tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture(scope="package")
def server(classifier) -> Iterator[Server]:
    shared = SharedClassifier(classifier, max_waiting=MAX_WAITING)
    with (
        serving(page_of(shared), shared, limits=LIMITS) as url,
        httpx.Client(base_url=url.rstrip("/"), timeout=30) as http,
    ):
        yield Server(url, shared, http)
