"""The middleware alone: requests as ASGI sees them, byte by byte."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from chexpert_hf.app.server.blocks import INTERNAL
from chexpert_hf.app.server.shell import HEADERS, Limits, Shell

LIMITS = Limits(upload_bytes=1000, json_bytes=200, mcp_bytes=400, stall_seconds=0.05, upload_seconds=0.5, uploads=2)
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


class Inner:
    """Stands for Gradio: reads the body and answers."""

    def __init__(self, error=None):
        self.bodies, self.error = [], error

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        if self.error:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def request(shell, path, *, method="POST", chunks=(b"",), length=None, stalls=False):
    """Status and text of the answer."""
    parts, sent = list(chunks), []

    async def receive():
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts) or stalls}
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": headers}
    await shell(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


def in_a_thread(coroutine):
    """In a loop of its own: a browser that other tests left open keeps one running in the main thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def ask(path, inner=None, has_mcp=False, is_stopping=False, refusal=str, **options):
    shell = Shell(inner or Inner(), limits=LIMITS, has_mcp=has_mcp, refusal=refusal)
    shell.is_stopping = is_stopping
    return in_a_thread(request(shell, path, **options))


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/info", "/static/x.svg"]
)
def test_what_the_page_needs_is_served(path):
    assert ask(path, method="GET") == (200, "ok")


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=etc/passwd",
        "/gradio_api/vibe-code/",
        "/gradio_api/dev/reload",
        "/gradio_api/stream/a/b/c",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/",
    ],
)
def test_what_the_page_does_not_need_is_not_there(path):
    assert ask(path, method="GET")[0] == 404


@pytest.mark.parametrize(
    "path", ["/gradio_api/api/predict", "/gradio_api/run/predict", "/gradio_api/process_recording"]
)
def test_nothing_goes_past_the_queue(path):
    assert ask(path)[0] == 404


def test_a_body_that_says_that_it_is_too_long_is_refused_unread():
    inner = Inner()
    assert ask(JOIN, inner, length=201)[0] == 413
    assert ask(UPLOAD, inner, length=1001)[0] == 413
    assert inner.bodies == []


def test_a_body_that_is_longer_than_it_says_is_refused_as_it_comes():
    status, text = ask(JOIN, chunks=[b"1" * 150, b"1" * 150], length=10)
    assert (status, json.loads(text)["detail"][:30]) == (413, "Expected a request of at most ")
    assert ask(UPLOAD, chunks=[b"1" * 600, b"1" * 600], length=10)[0] == 413


def test_a_body_within_the_limits_arrives_whole():
    inner = Inner()
    assert ask(JOIN, inner, chunks=[b'{"data":', b" [1]}"]) == (200, "ok")
    assert ask(UPLOAD, inner, chunks=[b"a" * 500, b"b" * 500]) == (200, "ok")
    assert inner.bodies == [b'{"data": [1]}', b"a" * 500 + b"b" * 500]


@pytest.mark.parametrize("path", [JOIN, UPLOAD])
def test_a_body_that_stands_still_is_given_up(path):
    assert ask(path, chunks=[b"{"], stalls=True)[0] == 408


def test_an_upload_that_drips_is_given_up_in_the_end():
    async def drip():
        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        sent = []

        async def send(message):
            sent.append(message)

        shell = Shell(Inner(), limits=LIMITS)
        scope = {"type": "http", "method": "POST", "path": UPLOAD, "root_path": "", "headers": []}
        await asyncio.wait_for(shell(scope, receive, send), 10)
        return sent[0]["status"]

    assert in_a_thread(drip()) == 408


def test_more_uploads_than_may_be_on_their_way_are_refused_and_those_that_are_whole_do_not_count():
    async def four():
        opened = asyncio.Event()

        async def slow(scope, receive, send):
            await receive()
            await opened.wait()
            await Inner()(scope, receive, send)

        shell = Shell(slow, limits=LIMITS)
        stalled = [asyncio.create_task(request(shell, UPLOAD, chunks=[b"x"], stalls=True)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        refused = await request(shell, UPLOAD, chunks=[b"new"])
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        whole = []
        for _ in range(4):
            whole.append(asyncio.create_task(request(shell, UPLOAD, chunks=[b"x"])))
            await asyncio.sleep(0.01)
        num_open = shell.num_open
        for task in whole:
            task.cancel()
        await asyncio.gather(*whole, return_exceptions=True)
        return refused, num_open, shell.num_open

    (status, text), *num_open = in_a_thread(four())
    assert (status, "is busy with 2 uploads" in text) == (503, True)
    assert num_open == [4, 0]


@pytest.mark.parametrize(
    "path", ["/api/v1/model", "/api/v1/card", "/api/v1/docs", "/api/v1/openapi.json", "/api/v1/health"]
)
def test_the_api_is_served(path):
    assert ask(path, method="GET") == (200, "ok")


@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v1/saliency"])
def test_uploads_to_the_api_are_bounded_as_others(path):
    assert ask(path, chunks=[b"x" * 900]) == (200, "ok")
    assert ask(path, length=1001)[0] == 413
    assert ask(path, chunks=[b"x" * 1001])[0] == 413
    assert ask(path, chunks=[b"x"], stalls=True)[0] == 408
    assert ask(path, method="GET")[0] == 404


def test_where_the_api_would_refuse_no_body_is_read_and_the_page_goes_on():
    inner = Inner()
    status, text = ask("/api/v1/predict", inner, chunks=[b"x"], refusal=lambda: "The server is busy.")
    assert (status, json.loads(text), inner.bodies) == (503, {"detail": "The server is busy."}, [])
    assert ask("/api/v1/health", inner, method="GET", refusal=lambda: "The server is busy.") == (200, "ok")
    assert ask(UPLOAD, inner, refusal=lambda: "The server is busy.") == (200, "ok")


def test_calls_by_mcp_are_bounded_and_only_served_where_they_are_wanted():
    assert ask("/gradio_api/mcp/", chunks=[b"x" * 400], has_mcp=True) == (200, "ok")
    assert ask("/gradio_api/mcp/", chunks=[b"x" * 401], has_mcp=True)[0] == 413
    assert ask("/gradio_api/mcp/", method="DELETE", has_mcp=True) == (200, "ok")
    assert ask("/gradio_api/mcp/")[0] == 404


@pytest.mark.parametrize(("method", "status"), [("DELETE", 404), ("OPTIONS", 404), ("PUT", 405)])
def test_other_methods_are_refused(method, status):
    assert ask("/config", method=method)[0] == status


def test_a_stopping_server_takes_nothing_in_and_still_gives_out():
    assert ask(JOIN, is_stopping=True, chunks=[b"{}"])[0] == 503
    assert ask(UPLOAD, is_stopping=True)[0] == 503
    assert ask("/api/v1/health", method="GET", is_stopping=True)[0] == 503
    assert ask("/gradio_api/queue/data", method="GET", is_stopping=True)[0] == 200


def test_what_goes_wrong_is_one_line_without_the_cause(capsys):
    status, text = ask(JOIN, Inner(KeyError("Doe^Jane.dcm")), chunks=[b"{}"])
    assert (status, json.loads(text)) == (500, {"detail": INTERNAL})
    assert capsys.readouterr().err == "A request failed: KeyError\n"


def test_every_answer_tells_browsers_what_the_page_may_do():
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/gradio_api/file=/x", "root_path": "", "headers": []}
        await Shell(Inner())(scope, receive, send)

    in_a_thread(run())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert headers == {**{name.lower(): value for name, value in HEADERS.items()}, "cache-control": "no-store"}
    assert "frame-ancestors 'self' https://huggingface.co" in headers["content-security-policy"]
