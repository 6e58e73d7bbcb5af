"""The HTTP API behind the whole shell, as programs reach it."""

import asyncio
import io
import json
import os
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf.app.server.answers import score_all
from chexpert_hf.app.server.blocks import INTERNAL
from chexpert_hf.app.server.http_api import MAX_FILE_BYTES
from chexpert_hf.app.server.launch import serving
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.files import sha256_of
from chexpert_hf.gate import Verdict
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.saliency import overlay
from tests.app.server.conftest import MAX_WAITING, StubGate, empty_page, page_of, png
from tests.radiographs.test_dicom import FILM, make_dicom


def predict(server, *files):
    """Rows for files, given as contents or as (name, content)."""
    answer = server.http.post("/api/v1/predict", files=[("files", file) for file in files])
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_files_give_the_scores_that_predict_gives_to_the_last_bit(server, classifier):
    rows = predict(server, *((f"{seed}.png", png(seed)) for seed in range(3)))
    for seed, row in enumerate(rows):
        prediction = classifier.predict(png(seed))
        assert row == {
            "name": f"{seed}.png",
            "error": None,
            "probabilities": prediction.probabilities,
            "positives": prediction.positives,
            "gate": None,
            "notes": [],
        }


def test_a_file_that_cannot_be_read_is_a_row_with_an_error_beside_the_others(server):
    first, second, third = predict(server, ("a.png", png()), ("b.png", b"no image"), ("c.dcm", make_dicom(FILM)))
    assert (first["error"], third["error"]) == (None, None)
    assert "the content is none of these" in second["error"]
    assert second["probabilities"] is second["positives"] is second["gate"] is None


def test_the_radiographs_of_an_archive_are_rows_with_their_names(server, classifier):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scans/b.png", png(2))
        archive.writestr("a.txt", "no image")
    rows = predict(server, ("films.zip", buffer.getvalue()), ("c.png", png(3)), ("d.zip", b"PK\x03\x04 no archive"))
    assert [(row["name"], row["error"] is None) for row in rows] == [
        ("films.zip/a.txt", False),
        ("films.zip/scans/b.png", True),
        ("c.png", True),
        ("d.zip", False),
    ]
    assert rows[1]["probabilities"] == classifier.predict(png(2)).probabilities


def test_verdicts_and_notes_are_in_the_rows(server, monkeypatch):
    verdict = Verdict(False, "This does not look like a chest radiograph.", ("It may be inverted.",), 3.0)
    monkeypatch.setattr(server.classifier.members[0], "gate", StubGate(lambda image: verdict))
    data = make_dicom(FILM, RescaleSlope=0, RescaleIntercept=0)
    (row,) = predict(server, data)
    assert row["gate"] == {
        "is_chest_radiograph": False,
        "reason": "This does not look like a chest radiograph.",
        "warnings": ["It may be inverted."],
    }
    assert row["notes"] == [*read_radiograph(data).info["notes"]]


def test_many_clients_at_once_get_each_its_own_answer(server, classifier):
    with ThreadPoolExecutor(16) as clients:
        rows = list(clients.map(lambda seed: predict(server, png(seed))[0], range(64)))
    alone = [classifier.predict(png(seed)).probabilities for seed in range(64)]
    assert [list(row["probabilities"]) for row in rows] == [list(scores) for scores in alone]
    given, expected = (
        np.array([list(scores.values()) for scores in all_scores])
        for all_scores in ([row["probabilities"] for row in rows], alone)
    )
    gaps = np.abs(given[:, None] - expected).max(-1)
    # In PyTorch, the last bits depend on how many were scored together; the scores of others are further away.
    assert gaps.diagonal().max() < 1e-6 < 1e-5 < gaps[~np.eye(64, dtype=bool)].min()


def test_maps_are_drawn_over_the_radiograph_or_given_alone_or_as_numbers(server, classifier):
    name = classifier.observations[3]
    film, maps = Image.open(io.BytesIO(png(5))), classifier.predict(png(5), saliency=True).maps

    def ask(**fields):
        answer = server.http.post("/api/v1/saliency", files={"file": png(5)}, data={"observation": name, **fields})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        return answer

    for fields, expected in (
        ({}, overlay(film, maps[name], 0.5)),
        ({"opacity": "0.3"}, overlay(film, maps[name], 0.3)),
        ({"format": "map"}, Image.fromarray((maps[name] * 255).round().astype(np.uint8))),
    ):
        drawn = Image.open(io.BytesIO(ask(**fields).content), formats=["PNG"])
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    numbers = ask(format="json").json()
    assert (numbers["size"], numbers["box"]) == ([64, 80], list(maps.box))
    assert list(numbers["maps"]) == [*classifier.observations]
    assert np.allclose(numbers["maps"][name], maps.positive[3], atol=1e-4)


@pytest.mark.parametrize(
    ("path", "options", "status", "reason"),
    [
        ("predict", {}, 422, "files: Field required"),
        ("predict", {"json": {"files": ["Doe^Jane"]}}, 422, "files: Field required"),
        ("predict", {"data": {"files": "Doe^Jane"}}, 422, "files.0: "),
        ("saliency", {"files": {"file": png()}}, 422, "observation: Field required"),
        ("saliency", {"files": {"file": png()}, "data": {"observation": "Doe^Jane"}}, 400, "an observation of this"),
        ("saliency", {"files": {"file": b"no"}, "data": {"observation": "Edema"}}, 400, "the content is none of these"),
        ("saliency", {"files": {"file": png()}, "data": {"observation": "Edema", "opacity": "7"}}, 422, "opacity: "),
        ("saliency", {"files": {"file": png()}, "data": {"observation": "Edema", "format": "Doe^Jane"}}, 422, "format"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_what_was_sent(server, capfd, path, options, status, reason):
    answer = server.http.post(f"/api/v1/{path}", **options)
    detail = answer.json()["detail"]
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert reason in detail
    log = "".join(capfd.readouterr())
    assert "\n" not in detail
    assert "Doe" not in detail + log
    assert log == ""


def test_the_log_of_what_nobody_expected_has_its_kind_and_not_its_text(server, monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("PLANTED^NAME")

    monkeypatch.setattr(server.classifier.scheduler, "submit", fail)
    answer = server.http.post("/api/v1/predict", files={"files": ("PLANTED^NAME", png())})
    assert (answer.status_code, answer.json()) == (500, {"detail": INTERNAL})
    log, end = "", time.monotonic() + 10
    while not log.endswith("\n") and time.monotonic() < end:  # it is written after the answer has been sent
        time.sleep(0.01)
        log += "".join(capfd.readouterr())
    assert log == "A request failed: RuntimeError\n"


def test_too_many_radiographs_are_refused(server):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(501):
            archive.writestr(f"{number}.png", b"")
    answer = server.http.post("/api/v1/predict", files={"files": buffer.getvalue()})
    assert (answer.status_code, "at most 500 radiographs" in answer.json()["detail"]) == (400, True)


def test_a_file_that_is_too_large_is_refused(classifier):
    with serving(empty_page, classifier) as url:
        answer = httpx.post(f"{url}api/v1/predict", files={"files": bytes(MAX_FILE_BYTES + 1)}, timeout=60)
    assert (answer.status_code, "at most 100 MB" in answer.json()["detail"]) == (400, True)


class Held:
    """A runtime that waits until it is opened."""

    name, precision, reason, is_on_cpu = "held", "fp32", "", True
    device = torch.device("cpu")

    def __init__(self, runtime):
        self.runtime, self.opened = runtime, threading.Event()
        self.opened.set()

    def __call__(self, pixel_values, *, saliency=False):
        assert self.opened.wait(60)
        return self.runtime(pixel_values, saliency=saliency)

    def side_by_side(self):
        return [self]


@pytest.fixture
def held(classifier):
    return Held(classifier.runtime)


@pytest.fixture
def shared(classifier, held):
    alone = CheXpertClassifier(classifier.model, classifier.processor, runtime=held)
    return SharedClassifier(alone, max_waiting=MAX_WAITING)


def test_a_full_queue_refuses_and_nobody_who_got_in_is_lost(shared, held):
    held.opened.clear()
    with (
        serving(page_of(shared), shared) as url,
        httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http,
        ThreadPoolExecutor(MAX_WAITING + 10) as clients,
    ):
        refused = threading.Semaphore(0)

        def ask(seed):
            answer = http.post("/api/v1/predict", files={"files": png(seed)})
            if answer.status_code == 503:
                refused.release()
            return answer

        answers = [clients.submit(ask, seed) for seed in range(MAX_WAITING + 10)]
        for _ in range(10):
            assert refused.acquire(timeout=30)
        held.opened.set()
        answers = [answer.result(60) for answer in answers]
    busy = [answer for answer in answers if answer.status_code == 503]
    assert [answer.status_code for answer in answers].count(200) == MAX_WAITING
    assert all("40 requests are waiting" in answer.json()["detail"] for answer in busy)
    assert all(answer.headers["retry-after"] == "5" for answer in busy)


def test_who_waits_when_the_server_stops_is_told(shared, held):
    begun = threading.Event()

    class Begun(Held):
        def __call__(self, pixel_values, *, saliency=False):
            begun.set()
            return super().__call__(pixel_values, saliency=saliency)

    held.__class__ = Begun
    held.opened.clear()
    with ThreadPoolExecutor(4) as clients:
        with serving(page_of(shared), shared) as url:
            answers = [clients.submit(httpx.post, f"{url}api/v1/predict", files={"files": png()}) for _ in range(4)]
            assert begun.wait(20)
            threading.Timer(1, held.opened.set).start()
        statuses = [answer.result(20) for answer in answers]
    assert sorted(answer.status_code for answer in statuses) == [200, 503, 503, 503]
    assert {answer.json()["detail"] for answer in statuses if answer.status_code == 503} == {
        "The server is stopping; try again in a minute."
    }


def test_the_model_is_described_by_what_its_folder_says(tiny_folder):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder)
    with serving(empty_page, classifier) as url:
        about = httpx.get(f"{url}api/v1/model").json()
    assert about["observations"] == [*classifier.observations]
    assert about["operating_points"] == classifier.operating_points
    assert about["sha256"] == [sha256_of(tiny_folder / "model.safetensors")]
    assert about["input_size"] == [classifier.processor.size["height"], classifier.processor.size["width"]]
    assert about["num_parameters"] == sum(parameter.numel() for parameter in classifier.model.parameters())
    assert about["warnings"] == list(classifier.model.config.warnings or ())
    assert str(tiny_folder) not in json.dumps(about)


def test_the_api_describes_itself_without_anything_from_elsewhere(server):
    assert server.http.get("/api/v1/health").json() == {"status": "ok"}
    paths = server.http.get("/api/v1/openapi.json").json()["paths"]
    assert set(paths) == {f"/api/v1/{name}" for name in ("predict", "saliency", "model", "card", "health")}
    assert server.http.get("/api/v1/card").headers["content-type"].startswith("text/plain")
    assert server.http.get("/docs").headers["location"] == "/api/v1/docs"
    page = server.http.get("/api/v1/docs").text
    for text in (*paths, "probabilities", "is_chest_radiograph", "operating points", "opacity"):
        assert text in page
    assert "http://" not in page
    assert "https://" not in page


def test_nothing_that_was_sent_stays_on_the_disk(server):
    def files():
        return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).parent.glob("**/*") if path.is_file()}

    before = files()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", png(7))
    predict(server, png(6), buffer.getvalue())
    server.http.post("/api/v1/saliency", files={"file": png(5)}, data={"observation": "Edema"}).raise_for_status()
    assert files() == before


class RecordedFile(io.BytesIO):
    """A file that counts itself as read once its content was taken."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        type(self).num_read += size == -1
        return super().read(size)


def test_files_of_a_request_are_read_when_their_turn_comes():
    ahead, done = [], 0

    class Counting:
        def predict(self, data, *, saliency):
            nonlocal done
            content = data.read()
            ahead.append(RecordedFile.num_read - done)
            time.sleep(0.01)
            done += 1
            return content

    files = [RecordedFile(png(seed)) for seed in range(40)]
    with ThreadPoolExecutor(1) as thread:  # which has no loop of a browser that other tests left open
        results = thread.submit(asyncio.run, score_all(Counting(), files)).result()
    assert [data for _, data in results] == [png(seed) for seed in range(40)]
    assert max(ahead) < 20
