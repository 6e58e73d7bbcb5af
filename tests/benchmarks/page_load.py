"""How a server holds up under load, next to `predict` on the same radiographs in the same run.

    python -m tests.benchmarks.page_load MODEL RADIOGRAPHS [--clients 32 --requests 640] [--clients 200 --requests 400]

For each pair: requests lost, answers that differ in any bit from the one that a single client got, requests per second
and as a share of `predict`'s, median and 95th percentile of a request (from the upload to the scores), the server's
memory. Before: seconds from the start of the process to the first answer. Clients and server share the processors.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

import numpy as np

from chexpert_hf.radiographs.finding import find_radiographs
from tests.hostile.client import RefusedError, Scores, Server, running_server

NUM_IMAGES = 64
TIMEOUT = 300

_BOUNDARY = "film-of-a-benchmark"
_MULTIPART = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_JSON = {"Content-Type": "application/json"}
_HEAD = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="film.png"\r\n\r\n'.encode()
_TAIL = f"\r\n--{_BOUNDARY}--\r\n".encode()


@dataclass(frozen=True)
class Load:
    """What a load did.

    Attributes:
        lost: Requests without an answer.
        wrong: Answers that are not those of a single client.
        seconds: Of the whole.
        latencies: `(num_requests,)`, in seconds.
    """

    lost: int
    wrong: int
    seconds: float
    latencies: np.ndarray

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


class Client:
    """Scores radiographs by Gradio's endpoint over one connection, with as little work as that takes.

    The clients share the processors with the server: httpx needs two milliseconds for the three requests of a score.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        self._http = HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)

    def score(self, image: bytes) -> Scores:
        """What `/predict` says of a file.

        Raises:
            HTTPException, OSError: If the connection breaks.
            RefusedError: If the answer is an error.
        """
        (path,) = json.loads(self._ask("POST", "/gradio_api/upload", _HEAD + image + _TAIL, _MULTIPART))
        call = json.dumps({"data": [{"path": path}]}).encode()
        event = json.loads(self._ask("POST", "/gradio_api/call/predict", call, _JSON))["event_id"]
        events = self._ask("GET", f"/gradio_api/call/predict/{event}", b"", {})
        kind, data = events.rpartition(b"event: ")[2].split(b"\ndata: ")
        if kind != b"complete":
            raise RefusedError(data.decode())
        return {name: one["probability"] for name, one in json.loads(data)[0]["observations"].items()}

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        self._http.request(method, path, body, headers)
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RefusedError(f"{answer.status} {content.decode()}")
        return content


class ApiClient(Client):
    """Scores radiographs by the HTTP API, in one request each."""

    def score(self, image: bytes) -> Scores:
        (row,) = json.loads(self._ask("POST", "/api/v1/predict", _HEAD + image + _TAIL, _MULTIPART))
        if row["error"]:
            raise RefusedError(row["error"])
        scores: Scores = row["probabilities"]
        return scores


def put_under_load(
    server: Server,
    images: Sequence[bytes],
    truth: Sequence[Scores],
    clients: int,
    requests: int,
    kind: type[Client] = Client,
) -> Load:
    """Clients of a kind, each with its own connection, ask as fast as they are answered."""
    own = local()
    lost = wrong = 0
    latencies = np.zeros(requests)

    def one(number: int) -> None:
        nonlocal lost, wrong
        if not hasattr(own, "client"):
            own.client = kind(server.url)
        start = time.perf_counter()
        try:
            answer = own.client.score(images[number % len(images)])
            wrong += answer != truth[number % len(images)]
        except (RefusedError, HTTPException, OSError) as error:
            lost += 1
            print(f"lost: {type(error).__name__} {error}", file=sys.stderr)
        latencies[number] = time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(requests)))
    return Load(lost, wrong, time.perf_counter() - start, latencies)


def predict_rate(model: str, files: Sequence[str], times: int, runtime: str, precision: str) -> tuple[float, float]:
    """Of `chexpert-hf predict`, which asks the gate if there is one, without its start.

    Returns:
        Radiographs per second, and processor seconds per radiograph.
    """
    code = (
        "import sys, time\n"
        "from chexpert_hf.folders.score_table import GateMode\n"
        "from chexpert_hf.scoring.classifier import CheXpertClassifier\n"
        "from chexpert_hf.folders.scoring import score_files\n"
        "model, runtime, precision, times, *files = sys.argv[1:]\n"
        "classifier = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision)\n"
        "gate = GateMode.FLAG if classifier.has_gate else GateMode.OFF\n"
        "list(score_files(classifier, files[:16], gate=gate))\n"
        "start, busy = time.perf_counter(), time.process_time()\n"
        "count = sum(1 for _ in score_files(classifier, files * int(times), gate=gate))\n"
        "print(count / (time.perf_counter() - start), (time.process_time() - busy) / count)\n"
    )
    command = [sys.executable, "-c", code, model, runtime, precision, str(times), *files]
    rate, busy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(rate), float(busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("radiographs")
    parser.add_argument("--clients", type=int, action="append")
    parser.add_argument("--requests", type=int, action="append")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    loads = list(zip(options.clients or [32, 200], options.requests or [640, 400], strict=True))
    files = [str(file) for file in find_radiographs([options.radiographs]).files[:NUM_IMAGES]]
    images = [Path(file).read_bytes() for file in files]

    before, _ = predict_rate(options.model, files, 5, options.runtime, options.precision)
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(options.model, Path(folder) / "tmp", options.runtime, options.precision) as server,
    ):
        client = Client(server.url)
        client.score(images[0])
        print(f"cold start to the first answer: {time.perf_counter() - start:.1f} s")
        alone = []
        truth = []
        for image in images:
            begin = time.perf_counter()
            truth.append(client.score(image))
            alone.append(time.perf_counter() - begin)
        print(f"one client: {np.median(alone) * 1000:.0f} ms a request (median), {server.memory()} MiB")
        results = []
        for clients, requests in loads:
            result = put_under_load(server, images, truth, clients, requests)
            state = server.memory("VmHWM"), server.num_descriptors(), server.num_files()
            results.append((clients, requests, result, state))
    after, _ = predict_rate(options.model, files, 5, options.runtime, options.precision)
    print(
        f"predict: {before:.1f} radiographs a second before, {after:.1f} after; load average {os.getloadavg()[0]:.1f}"
    )
    for clients, requests, result, (peak, descriptors, left) in results:
        share = result.rate / ((before + after) / 2)
        p50, p95 = np.quantile(result.latencies, 0.5), np.quantile(result.latencies, 0.95)
        print(f"{clients} clients, {requests} requests: lost {result.lost}, wrong {result.wrong}")
        print(f"  {result.rate:.1f} a second, {share:.2f} of predict")
        print(f"  p50 {p50:.2f} s, p95 {p95:.2f} s, {p95 / (clients * np.median(alone)):.2f} x clients x one alone")
        print(f"  peak {peak} MiB, {descriptors} descriptors, {left} files left")


if __name__ == "__main__":
    main()
