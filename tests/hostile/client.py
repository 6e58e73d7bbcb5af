"""A client of the endpoints over one connection, and a server process to talk to."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from chexpert_hf.serving.shell import Limits

Scores = dict[str, float]


class RefusedError(Exception):
    """The server said no; the message is what it said."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Without a slash at the end.
        process: Its process.
        folder: For its temporary files.
        log: What it writes.
    """

    url: str
    process: subprocess.Popen
    folder: Path
    log: Path

    def memory(self, what: str = "VmRSS") -> int:
        """Of the process in MiB; VmHWM is the largest that it ever was."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) // 1024

    def num_files(self) -> int:
        """Files in its temporary folder."""
        return sum(path.is_file() for path in self.folder.rglob("*")) - 1  # but for the owner's number

    def num_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def running_server(
    model: str, folder: Path, runtime: str = "auto", precision: str = "auto", waiting: int = Limits.waiting
) -> Iterator[Server]:
    """Starts a server, and stops it by SIGTERM if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / "server.log"
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tests.hostile.server", model, runtime, precision, str(waiting)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        assert process.stdout is not None
        url = ""
        while not url.startswith("http"):
            line = process.stdout.readline().decode()
            if not line:
                raise RuntimeError(f"The server did not start: {log.read_text()[-500:]}")
            url = line.split()[-1].rstrip("/")
        try:
            yield Server(url, process, folder, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(20)


def upload(http: httpx.Client, data: bytes, name: str = "film.png") -> str:
    answer = http.post("/gradio_api/upload", files={"files": (name, data)})
    if answer.status_code != 200:
        raise RefusedError(answer.text)
    return str(answer.json()[0])


def ask(http: httpx.Client, endpoint: str, *arguments: object) -> object:
    """What an endpoint answers.

    Raises:
        RefusedError: If it answers with an error.
    """
    answer = http.post(f"/gradio_api/call/{endpoint}", json={"data": list(arguments)})
    if answer.status_code != 200:
        raise RefusedError(f"{answer.status_code} {answer.json()['detail']}")
    events = http.get(f"/gradio_api/call/{endpoint}/{answer.json()['event_id']}").text
    data = json.loads(events.rpartition("data: ")[2])
    if not events.rpartition("event: ")[2].startswith("complete"):
        raise RefusedError(data["error"] if data else "no reason")
    return data[0]


def score(http: httpx.Client, data: bytes, name: str = "film.png") -> Scores:
    """Uploads and scores one radiograph."""
    answer = ask(http, "predict", {"path": upload(http, data, name)})
    return {observation: one["probability"] for observation, one in answer["observations"].items()}  # type: ignore[index]
