"""A server around a tiny model, in this process: endpoints behind the whole shell."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.server.endpoints import add_endpoints
from chexpert_hf.app.server.launch import launch
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits

LIMITS = Limits(upload_bytes=3_000_000, json_bytes=100_000, waiting=40)


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

    def prepare(self, image, **_):
        return image

    def judge_batch(self, inputs):
        return [self.judged(one) for one in inputs]


@pytest.fixture(scope="package")
def classifier(shared_tiny_model) -> CheXpertClassifier:
    return CheXpertClassifier(shared_tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture(scope="package")
def server(classifier) -> Iterator[Server]:
    shared = SharedClassifier(classifier)
    with gr.Blocks(analytics_enabled=False) as demo:
        add_endpoints(shared)
    url = launch(demo, limits=LIMITS, on_stop=shared.close, prevent_thread_lock=True)
    with httpx.Client(base_url=url.rstrip("/"), timeout=30) as http:
        yield Server(url, shared, http)
    demo.close(verbose=False)
    shared.close()
