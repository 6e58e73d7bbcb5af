"""The whole page of a tiny model behind its shell, in this process, and what is sent to it."""

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import httpx
import pytest

from chexpert_hf import CheXpertClassifier, CheXpertImageProcessor
from chexpert_hf.app.demo import appearance, build_demo
from chexpert_hf.app.server.launch import serving
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits
from tests.hostile.attacks import Attack, attacks
from tests.hostile.client import connect

LIMITS = Limits(upload_bytes=20_000_000, json_bytes=100_000, waiting=40)
NUM_MUTANTS = 250


@dataclass(frozen=True)
class Page:
    """The page, and a connection to it.

    Attributes:
        demo: What is served.
        http: The connection.
        alone: The classifier that nobody else uses.
    """

    demo: gr.Blocks
    http: httpx.Client
    alone: CheXpertClassifier


@pytest.fixture(scope="session")
def sample() -> list[Attack]:
    return list(attacks(seed=0, num_mutants=NUM_MUTANTS))


@pytest.fixture(scope="module")
def page(shared_tiny_model) -> Iterator[Page]:
    alone = CheXpertClassifier(shared_tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))
    shared, built = SharedClassifier(alone, max_waiting=LIMITS.waiting), []

    def build() -> gr.Blocks:
        built.append(build_demo(shared))
        return built[0]

    with serving(build, shared, limits=LIMITS, **appearance()) as url, connect(url.rstrip("/"), 60) as http:
        yield Page(built[0], http, alone)
