"""The whole table: a row for each promise, with its figure.

python -m tests.hostile --model MODEL --radiographs FOLDER
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np

from chexpert_hf.inference.classifier import CheXpertClassifier
from chexpert_hf.inference.folders.scoring import score_files
from tests.benchmarks.page_load import put_under_load
from tests.hostile.attacks import NAME, NUMBER, Attack, attacks, bombs, identities, mutants
from tests.hostile.client import RefusedError, Server, ask, running_server, score, upload
from tests.hostile.reading import read_all

STALLED, ABORTED, LARGE = 150, 100, 20
LARGE_BYTES = 60_000_000
QUEUE = 64
DECIMALS = 6
"""Of what `predict` writes."""


def read_apart(found: "list[Attack]") -> dict[str, float]:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(read_all, (found,))


def row(name: str, figures: object) -> None:
    text = ", ".join(f"{key}: {value}" for key, value in figures.items()) if isinstance(figures, dict) else str(figures)
    print(f"| {name} | {text} |", flush=True)


def same_everywhere(server: Server, model: str, files: list[Path], runtime: str, precision: str) -> dict[str, float]:
    """G4: endpoint, batch endpoint and, as it writes them, command line on the same files."""
    with httpx.Client(base_url=server.url, timeout=120) as http:
        one = [score(http, file.read_bytes()) for file in files]
        rows = ask(http, "batch", [{"path": upload(http, file.read_bytes())} for file in files])
    batch = [{name: item["probability"] for name, item in line["observations"].items()} for line in rows]  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "chexpert_hf.cli", "predict", *map(str, files), "--model", model]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.jsonl"
        command += ["--output", str(output), "--runtime", runtime, "--precision", precision]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
    classifier = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision)
    scored = [dict(result.prediction.probabilities) for result in score_files(classifier, files) if result.prediction]
    written = [{name: line[name] for name in one[0]} for line in lines]
    rounded = [{name: round(value, DECIMALS) for name, value in line.items()} for line in one]
    return {
        "files": len(files),
        "batch differs": sum(a != b for a, b in zip(one, batch, strict=True)),
        "folder scoring differs": sum(a != b for a, b in zip(one, scored, strict=True)),
        f"written with {DECIMALS} decimals, differs": sum(a != b for a, b in zip(rounded, written, strict=True)),
    }


def answer_many(server: Server, images: list[bytes], clients: int = 200, requests: int = 400) -> dict[str, float]:
    """G5."""
    with httpx.Client(base_url=server.url, timeout=120) as http:
        truth = [score(http, data) for data in images]
    alone = float(np.median(_latencies(server, images[0], 20)))
    load = put_under_load(server, images, truth, clients, requests)
    p95 = float(np.quantile(load.latencies, 0.95))
    return {
        "lost": load.lost,
        "wrong": load.wrong,
        "p95, s": round(p95, 2),
        f"over {clients} x one alone": round(p95 / alone / clients, 2),
    }


def overfill(server: Server, image: bytes, clients: int = 256) -> dict[str, float]:
    """G6: more clients at once than the queue holds."""
    barrier = threading.Barrier(clients)
    refusals: list[float] = []
    lost: list[str] = []

    def one(_: int) -> None:
        with httpx.Client(base_url=server.url, timeout=300) as http:
            path = None
            while path is None:  # uploads are bounded, too
                try:
                    path = upload(http, image)
                except RefusedError:
                    time.sleep(0.1)
            barrier.wait(300)
            start = time.perf_counter()
            answer = http.post("/gradio_api/call/predict", json={"data": [{"path": path}]})
            if answer.status_code == 503 and "is busy" in answer.text:
                refusals.append(time.perf_counter() - start)
            elif answer.status_code == 200:
                events = http.get(f"/gradio_api/call/predict/{answer.json()['event_id']}").text
                if "event: complete" not in events:
                    lost.append(events)
            else:
                lost.append(answer.text)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    with httpx.Client(base_url=server.url, timeout=60) as http:
        start = time.perf_counter()
        score(http, image)
    return {
        "clients": clients,
        "refused as busy": len(refusals),
        "slowest refusal, s": round(max(refusals, default=0), 2),
        "lost": len(lost),
        "then one request, s": round(time.perf_counter() - start, 2),
    }


def attack_uploads(server: Server, image: bytes) -> dict[str, float]:
    """G8: stalled, aborted and large uploads, while others ask."""
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    quiet = _latencies(server, image, 20)
    files = server.num_files()
    start = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 1000
    stalled = []
    for _ in range(STALLED):
        connection = socket.create_connection(address)
        connection.sendall(start + b"Content-Length: 1000000\r\n\r\n" + part)
        stalled.append(connection)
    for _ in range(ABORTED):
        with socket.create_connection(address) as connection:
            connection.sendall(start + b"Content-Length: 1000000\r\n\r\n" + part)
    statuses: list[int] = []

    def send_large(_: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            try:
                statuses.append(
                    http.post("/gradio_api/queue/join", content=b"[" + b"1," * (LARGE_BYTES // 2)).status_code
                )
            except httpx.HTTPError:
                statuses.append(0)  # closed while it was still sending

    with ThreadPoolExecutor(LARGE) as pool:
        sending = [pool.submit(send_large, number) for number in range(LARGE)]
        busy = _latencies(server, image, 20)
        for future in sending:
            future.result()
    left = server.num_files() - files
    for connection in stalled:
        connection.close()
    return {
        "p95 quiet, ms": round(np.quantile(quiet, 0.95) * 1000),
        "p95 under attack, ms": round(np.quantile(busy, 0.95) * 1000),
        "ratio": round(float(np.quantile(busy, 0.95) / np.quantile(quiet, 0.95)), 2),
        "large bodies accepted": sum(status == 200 for status in statuses),
        "files left now, for the janitor": left,
        "peak MiB": server.memory("VmHWM"),
    }


def _latencies(server: Server, image: bytes, count: int) -> list[float]:
    found = []
    with httpx.Client(base_url=server.url, timeout=120) as http:
        for _ in range(count):
            start = time.perf_counter()
            score(http, image)
            found.append(time.perf_counter() - start)
    return found


def look_for_identity(server: Server) -> dict[str, float]:
    """G9: answers, the log, and what is in the temporary folder but the uploads themselves."""
    answers = []
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for attack in identities():
            path = upload(http, attack.data, attack.name)
            for endpoint, arguments in (
                ("predict", [{"path": path}]),
                ("saliency", [{"path": path}, "Edema", 0.5, False]),
                ("batch", [[{"path": path}]]),
            ):
                try:
                    answer = ask(http, endpoint, *arguments)
                    answers.append(json.dumps(answer))
                    if endpoint == "saliency":
                        answers.append(http.get(answer["url"]).content.decode("latin-1"))  # type: ignore[index]
                except RefusedError as error:
                    answers.append(str(error))
    made = [path.read_bytes().decode("latin-1") for path in server.folder.rglob("map.png")]
    places = {"answers": answers, "log": [server.log.read_text()], "files made": made}
    return {name: sum(NAME in text or NUMBER in text for text in texts) for name, texts in places.items()}


def stop_while_many_wait(server: Server, image: bytes, clients: int = 20) -> dict[str, float]:
    """G16."""
    answers: list[str] = []
    asked = threading.Semaphore(0)

    def one(_: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            path = upload(http, image)
            event = http.post("/gradio_api/call/predict", json={"data": [{"path": path}]}).json()["event_id"]
            with http.stream("GET", f"/gradio_api/call/predict/{event}") as stream:
                asked.release()
                answers.append("".join(stream.iter_text()))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(one, number) for number in range(clients)]
        for _ in range(clients):
            asked.acquire(timeout=60)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        seconds = time.perf_counter() - start
        for future in futures:
            future.exception(30)
    return {
        "clients": clients,
        "answered or told": sum("event: " in text for text in answers),
        "out after, s": round(seconds, 1),
        "exit code": server.process.returncode,
        "folders left": len(list(server.folder.glob("chexpert-hf-*"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--radiographs", required=True, type=Path)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    radiographs = sorted(path for path in options.radiographs.rglob("*") if path.suffix in (".jpg", ".png"))
    image = radiographs[0].read_bytes()
    print("| promise | figures |\n| --- | --- |", flush=True)
    row("G1", read_apart([attack for attack in attacks(0, 0) if attack.kind != "archive"]))
    row("G2", read_apart(list(mutants(0, options.mutants))))
    worst = [read_apart([bomb]) for bomb in bombs() if bomb.kind.startswith("bomb")]
    largest = {key: max(figures[key] for figures in worst) for key in ("read", "slowest, s", "growth, MiB", "crashes")}
    row("G3", {"bombs": len(worst), **largest})
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(options.model, Path(folder) / "tmp", options.runtime, options.precision) as server,
    ):
        paths = list(islice(radiographs, 40))
        row("G4", same_everywhere(server, options.model, paths, options.runtime, options.precision))
        row("G5", answer_many(server, [path.read_bytes() for path in paths]))
        row("G8", attack_uploads(server, image))
        row("G9", look_for_identity(server))
        row("G16", stop_while_many_wait(server, image))
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(options.model, Path(folder) / "tmp", options.runtime, options.precision, QUEUE) as server,
    ):
        row("G6", overfill(server, image))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
