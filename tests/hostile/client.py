"""A client of the endpoints over one connection, a visitor of the page, and a server process to talk to."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from chexpert_hf.app.server.shell import Limits
from tests.hostile.promises import Settings

Scores = dict[str, float]

JANITOR_SECONDS = 10
"""How long uploads are kept where a row asks what the janitor leaves."""


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

    def processor_seconds(self) -> float:
        """That the process has taken since its start, of all processors together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> list[Path]:
        """In its temporary folder, but for the owner's number."""
        # Unlike `rglob`, `walk` does not mind that the server deletes folders meanwhile.
        found = [Path(root) / name for root, _, names in os.walk(self.folder) for name in names]
        return [path for path in found if path.name != "owner.pid"]

    def num_files(self) -> int:
        return len(self.files())

    def num_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def running_server(
    model: str,
    folder: Path,
    runtime: str = "auto",
    precision: str = "auto",
    waiting: int = Limits.waiting,
    *,
    keep_seconds: float = 0,
    outside: Path | None = None,
) -> Iterator[Server]:
    """Starts a server, and stops it by SIGTERM if it still runs.

    Args:
        model: A model folder.
        folder: For its temporary files.
        runtime: What computes.
        precision: In which it does.
        waiting: Calls that its queue holds.
        keep_seconds: How long the janitor keeps uploads, if not as long as usual.
        outside: Gets a line for each address outside of this machine that the server looks up or connects to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / "server.log"
    environment = {**os.environ, "TMPDIR": str(folder)}
    module = ["tests.hostile.server", model, runtime, precision, str(waiting), str(keep_seconds)]
    watched = ["tests.hostile.watched", str(outside)] if outside else []
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", *watched, *module], stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
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


@contextmanager
def served(settings: Settings, **options: Any) -> Iterator[Server]:
    """`running_server` with the table's model, and a folder of its own."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_server(settings.model, Path(name) / "tmp", settings.runtime, settings.precision, **options) as server,
    ):
        yield server


def connect(url: str, seconds: float = 120) -> httpx.Client:
    """A client with a connection of its own.

    httpx loads the list of certificates for each, 23 ms of a processor that the server has to share; there is no TLS
    here that would need it.
    """
    return httpx.Client(base_url=url, timeout=seconds, verify=_no_certificates())


@cache
def _no_certificates() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def upload(http: httpx.Client, data: bytes, name: str = "film.png") -> str:
    return upload_all(http, [(name, data)])[0]


def upload_all(http: httpx.Client, files: Sequence[tuple[str, bytes]]) -> list[str]:
    """Uploads files, given as names and contents, in one request; gives their paths.

    Raises:
        RefusedError: If it is refused.
    """
    answer = http.post("/gradio_api/upload", files=[("files", file) for file in files])
    if answer.status_code != 200:
        raise RefusedError(_detail(answer))
    return [str(path) for path in answer.json()]


def ask(http: httpx.Client, endpoint: str, *arguments: object) -> object:
    """What an endpoint answers.

    Raises:
        RefusedError: If it answers with an error.
    """
    answer = http.post(f"/gradio_api/call/{endpoint}", json={"data": list(arguments)})
    if answer.status_code != 200:
        raise RefusedError(_detail(answer))
    events = http.get(f"/gradio_api/call/{endpoint}/{answer.json()['event_id']}").text
    data = json.loads(events.rpartition("data: ")[2])
    if not events.rpartition("event: ")[2].startswith("complete"):
        raise RefusedError(data["error"] if data else "no reason")
    return data[0]


def score_by_api(http: httpx.Client, data: bytes, name: str = "film.png") -> Scores:
    """Scores one radiograph by the HTTP API.

    Raises:
        RefusedError: If it is refused.
    """
    answer = http.post("/api/v1/predict", files={"files": (name, data)})
    if answer.status_code != 200:
        raise RefusedError(_detail(answer))
    (row,) = answer.json()
    if row["error"]:
        raise RefusedError(row["error"])
    scores: Scores = row["probabilities"]
    return scores


def score(http: httpx.Client, data: bytes, name: str = "film.png") -> Scores:
    """Uploads and scores one radiograph by Gradio's endpoint."""
    answer = ask(http, "predict", {"path": upload(http, data, name)})
    return {observation: one["probability"] for observation, one in answer["observations"].items()}  # type: ignore[index]


def _detail(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.json()['detail']}"


_TABLE = re.compile(r'class="list-head" data-id="(\w+)"')


@dataclass
class Visitor:
    """What a browser does with the page: one session, and the handlers behind the page's events through the queue.

    Attributes:
        http: A connection.
        session: Its name, under which the server keeps what the visitor was shown last.
        table: The id of the last list's table.
    """

    http: httpx.Client
    session: str = field(default_factory=lambda: uuid4().hex)
    table: str = ""

    def __post_init__(self) -> None:
        config = self.http.get("/config").json()
        self._names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self._handlers = {
            (self._names.get(component), event): item
            for item in config["dependencies"]
            for component, event in item["targets"]
        }

    def act(self, component: str, event: str, *data: object, event_data: object = None) -> dict[str, str]:
        """Triggers an event as the page would.

        Args:
            component: Its id in the page.
            event: Of the component.
            data: The values of the inputs; None for what the server keeps itself, which may be left out at the end.
            event_data: What the event tells.

        Returns:
            What each component shows then, as text, by id; what stays as it was is left out.

        Raises:
            RefusedError: If the answer is an error.
        """
        handler = self._handlers[component, event]
        values = [*data, *[None] * (len(handler["inputs"]) - len(data))]
        call = {"data": values, "fn_index": handler["id"], "session_hash": self.session, "event_data": event_data}
        answer = self.http.post("/gradio_api/queue/join", json=call)
        if answer.status_code != 200:
            raise RefusedError(_detail(answer))
        text = self.http.get("/gradio_api/queue/data", params={"session_hash": self.session}).text
        messages = [json.loads(line[len("data: ") :]) for line in text.splitlines() if line.startswith("data: ")]
        (end,) = (message for message in messages if message["msg"] == "process_completed")
        if not end["success"]:
            raise RefusedError(str(end["output"].get("error")))
        shown = zip(handler["outputs"], end["output"]["data"], strict=True)
        told = {self._names[part]: _text(value) for part, value in shown if self._names.get(part) and value is not None}
        if table := _TABLE.search(told.get("list", "")):
            self.table = table[1]
        return told

    def scored_list(self) -> str:
        """Scores the list that an upload began, and fetches its rows, as the page's script does; their HTML."""
        self.act("list", "run", None, event_data={"id": self.table})
        return self.list_rows()

    def list_rows(self) -> str:
        """The rows of a list that is scored."""
        rows, part = "", " data-place="
        while " data-place=" in part:
            part = self.act("list", "more", None, event_data={"id": self.table, "start": rows.count(" data-place=")})[
                "list"
            ]
            rows += part
        return rows


def _text(value: object) -> str:
    """What a component shows, or the rows that are added to a list."""
    if isinstance(value, dict):
        rows = value.get("rows")
        value = rows["html"] if isinstance(rows, dict) else value.get("value", value)
    return str(value)


def as_upload(path: str, name: str) -> dict[str, object]:
    """A file in a call by the page: where it was uploaded to, and what the visitor calls it."""
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
