"""G5, G6, G7 and G16: many clients at once, more than the queue holds, many requests in a row, and a stop meanwhile.

Load goes to the HTTP API; what Gradio's queue does with it is shown beside it.
"""

import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import cycle, islice

import numpy as np

from tests.benchmarks.page_load import ApiClient, Client, put_under_load
from tests.hostile.client import JANITOR_SECONDS, RefusedError, Server, connect, score_by_api, served, upload
from tests.hostile.promises import Figure, Settings, judged

NUM_IMAGES = 40
ALONE = 60
"""Requests of one client alone, of which the median is what one takes."""

CLIENTS, REQUESTS, MAX_RATIO = 200, 400, 1.6
QUEUE, TOO_MANY, MAX_REFUSAL_SECONDS, HEALTHY_SECONDS = 64, 256, 1, 5
WARM_UP, COMPARED, MAX_DRIFT, MORE_DESCRIPTORS = 100, 200, 1.1, 4
WAITING, STOP_SECONDS = 20, 10


def answer_many(settings: Settings) -> Iterator[Figure]:
    """G5."""
    images = settings.images(NUM_IMAGES)
    with served(settings) as server:
        with connect(server.url) as http:
            truth = [score_by_api(http, data) for data in images]
        alone = float(np.median(latencies(server, images, ALONE)))
        load = put_under_load(server, images, truth, CLIENTS, REQUESTS, ApiClient)
        by_gradio = put_under_load(server, images, truth, CLIENTS, REQUESTS, Client)
    p95 = float(np.quantile(load.latencies, 0.95))
    ratio = p95 / alone / CLIENTS
    yield judged(
        f"{CLIENTS} clients, {REQUESTS} requests",
        {
            "lost": load.lost,
            "wrong": load.wrong,
            "one alone (ms, median)": round(alone * 1000),
            "p95 (s)": round(p95, 2),
            f"over {CLIENTS} x one alone": round(ratio, 2),
            "by Gradio's queue: lost": by_gradio.lost,
            "wrong by it": by_gradio.wrong,
            "p95 by it (s)": round(float(np.quantile(by_gradio.latencies, 0.95)), 2),
        },
        {"none lost": load.lost == 0, "none wrong": load.wrong == 0, f"p95 at most {MAX_RATIO}": ratio <= MAX_RATIO},
    )


def latencies(server: Server, images: Sequence[bytes], count: int) -> list[float]:
    """Of so many requests of one client, from the upload to the scores, in seconds."""
    found = []
    with connect(server.url) as http:
        for image in islice(cycle(images), count):
            start = time.perf_counter()
            score_by_api(http, image)
            found.append(time.perf_counter() - start)
    return found


def overfill(settings: Settings) -> Iterator[Figure]:
    """G6."""
    (image,) = settings.images(1)
    with served(settings, waiting=QUEUE) as server:
        refusals, lost = _ask_at_once(server, image)
        start = time.perf_counter()
        with connect(server.url) as http:
            score_by_api(http, image)
        seconds = time.perf_counter() - start
    slowest = max(refusals, default=0.0)
    yield judged(
        f"{TOO_MANY} clients at once on a queue of {QUEUE}",
        {
            "told that it is busy": len(refusals),
            "slowest of them (s)": round(slowest, 2),
            "lost": len(lost),
            "one request afterwards (s)": round(seconds, 2),
        },
        {
            "some are refused": bool(refusals),
            f"refusals within {MAX_REFUSAL_SECONDS} s": slowest < MAX_REFUSAL_SECONDS,
            "none lost": not lost,
            f"healthy within {HEALTHY_SECONDS} s": seconds < HEALTHY_SECONDS,
        },
    )


def _ask_at_once(server: Server, image: bytes) -> tuple[list[float], list[str]]:
    """How long each refusal took, and what became of those that were neither refused nor answered."""
    barrier = threading.Barrier(TOO_MANY)
    refusals: list[float] = []
    lost: list[str] = []

    def one(_: int) -> None:
        client = ApiClient(server.url)
        barrier.wait(300)
        start = time.perf_counter()
        try:
            client.score(image)
        except (RefusedError, HTTPException, OSError) as error:
            if str(error).startswith("503 ") and "is busy" in str(error):
                refusals.append(time.perf_counter() - start)
            else:
                lost.append(str(error))

    with ThreadPoolExecutor(TOO_MANY) as pool:
        list(pool.map(one, range(TOO_MANY)))
    return refusals, lost


def go_on(settings: Settings) -> Iterator[Figure]:
    """G7: each request with a file that the server has not seen, or none would be added to its folder.

    What the machine does to the time that a request takes is told from what the requests before it do: a second server,
    which rests in between, is asked in turns with the first one at the beginning and at the end.
    """
    images, count = settings.images(NUM_IMAGES), settings.requests
    compared, each = min(COMPARED, count // 2), count // 20
    busy, resting = [], []  # seconds of each request
    num_files = []
    with (
        served(settings, keep_seconds=JANITOR_SECONDS) as server,
        served(settings, keep_seconds=JANITOR_SECONDS) as other,
        connect(server.url) as http,
        connect(other.url) as other_http,
    ):
        for number in range(WARM_UP):
            for client in (http, other_http):
                score_by_api(client, distinct(images[number % len(images)], number))
        descriptors, memory = server.num_descriptors(), server.memory()
        for number in range(count):
            image = distinct(images[number % len(images)], WARM_UP + number)
            is_compared = not compared <= number < count - compared
            asked = [(http, busy), (other_http, resting)] if is_compared else [(http, busy)]
            for client, seconds in asked if number % 2 else reversed(asked):
                start = time.perf_counter()
                score_by_api(client, image)
                seconds.append(time.perf_counter() - start)
                if number % 4 == 0:
                    upload(client, image)  # Gradio's, which are files until the janitor comes
            if number % each == each - 1:
                num_files.append(server.num_files())
        more = server.num_descriptors() - descriptors
        grown = server.memory() - memory
        left = files_left(server)
    first, last = np.median(busy[:compared]), np.median(busy[-compared:])
    other_first, other_last = np.median(resting[:compared]), np.median(resting[-compared:])
    drift = (last / other_last) / (first / other_first)
    early, late = max(num_files[: len(num_files) // 2]), max(num_files[len(num_files) // 2 :])
    yield judged(
        f"{count:,} requests after {WARM_UP} to warm up, uploads kept for {JANITOR_SECONDS} s",
        {
            f"p50 of the first {compared} (ms)": round(first * 1000, 1),
            f"of the last {compared}": round(last * 1000, 1),
            "of a server that rested meanwhile, at the same two times": (
                f"{other_first * 1000:.1f}, {other_last * 1000:.1f}"
            ),
            "slower than that by a factor of": round(float(drift), 3),
            "open descriptors before": descriptors,
            "more afterwards": more,
            "most files in the first half": early,
            "in the second": late,
            "left after the janitor": left,
            "memory grown (MiB)": grown,
        },
        {
            "p50 less than 10 % slower": bool(drift < MAX_DRIFT),
            "descriptors flat": more <= MORE_DESCRIPTORS,
            "files flat": late <= 1.25 * early + 5,
            "no file left": left == 0,
        },
    )


def distinct(image: bytes, number: int) -> bytes:
    """The same radiograph in other bytes: with a comment in it."""
    text = f"request {number}".encode()
    if image.startswith(b"\xff\xd8"):
        return image[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + image[2:]
    if image.startswith(b"\x89PNG"):
        chunk = b"tEXt" + b"Comment\0" + text
        length, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        return image[:33] + length + chunk + check + image[33:]  # after the header
    raise ValueError("Expected a JPEG or PNG, got another format.")


def files_left(server: Server) -> int:
    """How many files there are when the janitor has had its time, and some to spare."""
    end = time.monotonic() + JANITOR_SECONDS + 10
    while server.num_files() and time.monotonic() < end:
        time.sleep(0.5)
    return server.num_files()


def stop_while_many_wait(settings: Settings) -> Iterator[Figure]:
    """G16."""
    (image,) = settings.images(1)
    answers: list[str] = []
    asked = threading.Semaphore(0)
    with served(settings) as server:

        def one(_: int) -> None:
            with connect(server.url, 60) as http:
                path = upload(http, image)
                event = http.post("/gradio_api/call/predict", json={"data": [{"path": path}]}).json()["event_id"]
                with http.stream("GET", f"/gradio_api/call/predict/{event}") as stream:
                    asked.release()
                    answers.append("".join(stream.iter_text()))

        with ThreadPoolExecutor(WAITING) as pool:
            futures = [pool.submit(one, number) for number in range(WAITING)]
            for _ in range(WAITING):
                asked.acquire(timeout=60)
            start = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
            seconds = time.perf_counter() - start
            for future in futures:
                future.exception(30)
        told = sum("event: " in text for text in answers)
        code, folders = server.process.returncode, len(list(server.folder.glob("chexpert-hf-*")))
    yield judged(
        f"SIGTERM with {WAITING} requests on their way",
        {"answered or told": told, "out after (s)": round(seconds, 1), "exit code": code, "folders left": folders},
        {
            "all answered or told": told == WAITING,
            f"out within {STOP_SECONDS} s": seconds < STOP_SECONDS,
            "exit code 0": code == 0,
            "its folder gone": folders == 0,
        },
    )
