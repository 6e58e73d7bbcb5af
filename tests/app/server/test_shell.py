"""The middleware alone: requests as ASGI sees them, byte by byte."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from chexpert_hf.app.server.headers import HEADERS, SecurityHeaders
from chexpert_hf.app.server.shell import Limits, RequestShell, ShellState

LIMITS = Limits(
    upload_bytes=1000, json_bytes=200, stall_seconds=0.05, upload_seconds=0.5, uploads=2, yield_seconds=0, waiting=3
)
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


def state(waiting=0, **options):
    return ShellState(LIMITS, lambda path: path.startswith("/uploads/"), lambda: waiting, **options)


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


def ask(path, inner=None, shell_state=None, **options):
    shell = RequestShell(inner or Inner(), shell_state or state())
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
        "/docs",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/file=http://169.254.169.254/latest",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=/uploads/../etc/passwd/",
        "/gradio_api/vibe-code/",
        "/gradio_api/dev/reload",
        "/gradio_api/stream/a/b/c",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/",
    ],
)
def test_what_the_page_does_not_need_is_not_there(path):
    shell_state = ShellState(LIMITS, lambda path: path == "/uploads/x", lambda: 0)
    assert ask(path, method="GET", shell_state=shell_state)[0] == 404


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

        shell = RequestShell(Inner(), state())
        scope = {"type": "http", "method": "POST", "path": UPLOAD, "root_path": "", "headers": []}
        await asyncio.wait_for(shell(scope, receive, send), 10)
        return sent[0]["status"]

    assert in_a_thread(drip()) == 408


def test_the_upload_that_has_been_silent_longest_gives_way_to_a_new_one():
    async def three():
        shell = RequestShell(Inner(), state())
        stalled = [asyncio.create_task(request(shell, UPLOAD, chunks=[b"x"], stalls=True)) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        new = await request(shell, UPLOAD, chunks=[b"new"])
        return new, [(await task)[0] for task in stalled]

    assert in_a_thread(three()) == ((200, "ok"), [503, 408])


@pytest.mark.parametrize(
    "argument",
    [
        {"path": "/etc/passwd"},
        {"path": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}},
        {"url": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}},
        {"path": None},
        [[{"a": {"path": "file:///etc/passwd"}}]],
    ],
)
def test_a_call_that_names_a_file_that_nobody_uploaded_is_refused(argument):
    inner = Inner()
    status, text = ask(JOIN, inner, chunks=[json.dumps({"data": [argument]}).encode()])
    assert (status, inner.bodies) == (400, [])
    assert "was uploaded" in text


def test_a_call_that_names_an_uploaded_file_passes():
    body = json.dumps({"data": [{"path": "/uploads/a/b.png", "url": "http://127.0.0.1/x"}]}).encode()
    assert ask(JOIN, chunks=[body])[0] == 200


@pytest.mark.parametrize("body", [b"{", b"[" * 150, b"\xff"])
def test_what_is_no_json_is_refused(body):
    assert ask(JOIN, chunks=[body])[0] == 400


def test_an_agent_may_send_bytes_and_is_told_that_no_address_is_fetched():
    def call(file, method="tools/call"):
        body = json.dumps({"id": 7, "method": method, "params": {"arguments": {"file": file}}}).encode()
        return ask("/gradio_api/mcp/", chunks=[body], shell_state=state(has_mcp=True))

    assert call("data:image/png;base64,AAAA") == (200, "ok")
    assert call("https://example.org/", method="initialize") == (200, "ok")
    for address in ("http://169.254.169.254/", " HTTPS://example.org/"):
        status, text = call(address)
        answer = json.loads(text)
        assert (status, answer["id"], answer["result"]["isError"]) == (200, 7, True)
        assert "fetches no addresses" in answer["result"]["content"][0]["text"]


def test_a_full_queue_says_so():
    status, text = ask(JOIN, shell_state=state(waiting=3), chunks=[b"{}"])
    assert status == 503
    assert json.loads(text)["detail"].startswith("The server is busy, 3 requests are waiting")
    assert ask(JOIN, shell_state=state(waiting=2), chunks=[b"{}"])[0] == 200


def test_of_many_who_come_at_the_same_moment_no_more_get_in_than_the_queue_holds():
    async def five():
        opened = asyncio.Event()

        async def slow(scope, receive, send):
            await opened.wait()
            await Inner()(scope, receive, send)

        shell = RequestShell(slow, state())
        tasks = [asyncio.create_task(request(shell, JOIN, chunks=[b"{}"])) for _ in range(5)]
        for _ in range(10):
            await asyncio.sleep(0)
        opened.set()
        return sorted([(await task)[0] for task in tasks])

    assert in_a_thread(five()) == [200, 200, 200, 503, 503]


def test_a_stopping_server_takes_nothing_in_and_still_gives_out():
    shell_state = state(is_stopping=True)
    assert ask(JOIN, shell_state=shell_state, chunks=[b"{}"])[0] == 503
    assert ask(UPLOAD, shell_state=shell_state)[0] == 503
    assert ask("/gradio_api/queue/data", method="GET", shell_state=shell_state)[0] == 200


def test_what_goes_wrong_is_one_line_without_the_cause(capsys):
    status, text = ask(JOIN, Inner(KeyError("Doe^Jane.dcm")), chunks=[b"{}"])
    assert (status, json.loads(text)) == (500, {"detail": "The server could not answer this."})
    assert capsys.readouterr().err == "A request failed: KeyError\n"


def test_every_answer_tells_browsers_what_the_page_may_do():
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/gradio_api/file=/x", "root_path": "", "headers": []}
        await SecurityHeaders(Inner())(scope, receive, send)

    in_a_thread(run())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert headers == {**{name.lower(): value for name, value in HEADERS.items()}, "cache-control": "no-store"}
    assert "frame-ancestors 'self' https://huggingface.co" in headers["content-security-policy"]
