"""G8: what others notice of uploads that stall, break off or are too large, and what stays of them on the disk."""

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np

from tests.hostile.client import JANITOR_SECONDS, served
from tests.hostile.load import files_left, latencies
from tests.hostile.promises import Figure, Settings, judged

STALLED, ABORTED, LARGE = 150, 100, 20
LARGE_BYTES = 60_000_000
ASKED = 80
"""Requests of a visitor before, and as many meanwhile."""

MAX_RATIO = 2

_PATHS = (b"/gradio_api/upload", b"/api/v1/predict")
_UPLOAD = (
    b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b'Content-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
) + b"x" * 1000
_CALL = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_PIECE = b"1," * 32_768

Address = tuple[str, int]


def attack_uploads(settings: Settings) -> Iterator[Figure]:
    """The attackers are a process that the server and the visitor need not share a processor with, if both are busy."""
    images = settings.images(1)
    context = multiprocessing.get_context("spawn")
    with served(settings, keep_seconds=JANITOR_SECONDS) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        ours, theirs = context.Pipe()
        attackers = context.Process(target=attack, args=(address, theirs))
        attackers.start()
        ours.recv()  # it is there
        latencies(server, images, ASKED // 4)
        quiet = latencies(server, images, ASKED)
        ours.send(MAX_RATIO * sum(quiet))  # as long as that may take
        ours.recv()  # the first uploads stand still
        busy = latencies(server, images, ASKED)
        is_over = ours.poll()  # before the visitor had asked all
        refused, closed, accepted = ours.recv()
        attackers.join()
        left = files_left(server)
        peak = server.memory("VmHWM")
    before, meanwhile = (float(np.quantile(found, 0.95)) for found in (quiet, busy))
    yield judged(
        f"{STALLED} stalled and {ABORTED} aborted uploads, {LARGE} bodies of {LARGE_BYTES // 1_000_000} MB, while one "
        f"visitor asks {ASKED} times, as before",
        {
            "p95 before (ms)": round(before * 1000),
            "meanwhile": round(meanwhile * 1000),
            "ratio": round(meanwhile / before, 2),
            "p50 before": round(float(np.median(quiet)) * 1000),
            "p50 meanwhile": round(float(np.median(busy)) * 1000),
            "attack over before the visitor": is_over,
            "large bodies refused": refused,
            "cut off": closed,
            "accepted": accepted,
            f"files left after {JANITOR_SECONDS} s": left,
            "peak (MiB)": peak,
        },
        {
            f"others' p95 under {MAX_RATIO} times as long": meanwhile / before < MAX_RATIO,
            "no large body accepted": accepted == 0 and refused + closed == LARGE,
            "no file left": left == 0,
        },
    )


def attack(address: Address, visitor: Connection) -> None:
    """Stalls at once; breaks off, and sends what is too large, all through the time that the visitor says.

    With the lowest priority: attackers come from elsewhere, and do not take the server's processors.
    """
    os.nice(19)
    visitor.send("ready")
    seconds = visitor.recv()
    stalled = [_begin_upload(address, number) for number in range(STALLED)]
    visitor.send("begun")
    start = time.monotonic()
    with ThreadPoolExecutor(LARGE) as pool:
        sending = []
        for number in range(ABORTED):
            time.sleep(max(0.0, start + seconds * number / ABORTED - time.monotonic()))
            _begin_upload(address, number).close()
            if number % (ABORTED // LARGE) == 0:
                sending.append(pool.submit(send_large, address, has_length=bool(number % 2)))
        outcomes = [future.result() for future in sending]
    for connection in stalled:
        connection.close()
    visitor.send(tuple(outcomes.count(kind) for kind in ("refused", "closed", "accepted")))


def _begin_upload(address: Address, number: int) -> socket.socket:
    """Half of them to Gradio, half to the HTTP API."""
    connection = socket.create_connection(address)
    connection.sendall(_UPLOAD % _PATHS[number % 2])
    return connection


def send_large(address: Address, *, has_length: bool) -> str:
    """Sends a body as long as it is taken, with its length in front or in chunks that do not tell it."""
    head = f"Content-Length: {LARGE_BYTES}" if has_length else "Transfer-Encoding: chunked"
    chunk = _PIECE if has_length else f"{len(_PIECE):x}\r\n".encode() + _PIECE + b"\r\n"
    with socket.create_connection(address) as connection:
        try:
            connection.sendall(_CALL + head.encode() + b"\r\n\r\n")
            for _ in range(LARGE_BYTES // len(_PIECE)):
                connection.sendall(chunk)
        except OSError:
            pass  # it is not taken any more
        try:
            connection.settimeout(20)
            answer = connection.recv(64)
        except OSError:
            answer = b""
    if not answer:
        return "closed"
    return "refused" if answer.split()[1:2] == [b"413"] else "accepted"
