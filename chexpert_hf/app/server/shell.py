"""What a request may be, before Gradio sees it: its address, its size, its pace, and the files that it names.

An allow-list of addresses, since Gradio serves many that this page has no use for: proxies, run history, recordings,
editing the app. Bodies are counted as they come, since a length that is announced need not be true.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chexpert_hf.app.server.agents import NO_DATA_URL, tool_error
from chexpert_hf.app.server.words import STOPPING

MAX_FILE_BYTES = 100_000_000
"""Of one uploaded file: a 16-bit radiograph of 50 megapixels."""


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        upload_bytes: Of one upload, all its files together.
        json_bytes: Of a call.
        mcp_bytes: Of a call by MCP, where files are in it as base64.
        stall_seconds: Without a byte, after which an upload is given up.
        upload_seconds: For a whole upload.
        uploads: At once. When one more comes, the one that has been silent longest gives way.
        yield_seconds: How long an upload must have been silent to give way.
        waiting: Calls in the queue.
    """

    upload_bytes: int = 1_000_000_000
    json_bytes: int = 1_000_000
    mcp_bytes: int = 40_000_000
    stall_seconds: float = 15
    upload_seconds: float = 300
    uploads: int = 300
    yield_seconds: float = 1
    waiting: int = 256


_API = "/gradio_api"
_FILE = f"{_API}/file="
_GET = re.compile(
    r"/(?:config/?|info/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|logout|pwa_icon(?:/\d+)?"
    r"|(?:assets|static|svelte)/.+"
    r"|gradio_api/(?:info/?|openapi\.json|app_id/?|user/?|login_check/?|startup-events|theme\.css"
    r"|queue/data|queue/status|upload_progress|file=/.+|heartbeat/[^/]+|call/(?:v2/)?[^/]+/[^/]+))?"
)
_POST = re.compile(r"/(?:login/?|gradio_api/(?:upload|queue/join|cancel|reset/?|call/(?:v2/)?[^/]+/?))")
_JOINS_QUEUE = re.compile(rf"{_API}/(?:queue/join|call/(?:v2/)?[^/]+)/?")
_MCP = re.compile(rf"{_API}/mcp(?:/.*)?")

_NOT_UPLOADED = "Expected a file that was uploaded to this server, got another path or address; upload it first."


class RefusedError(Exception):
    """A request that is answered here.

    Attributes:
        status: Of the answer.
        reason: One line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(eq=False)
class _Upload:
    last_byte: float
    gives_way: "asyncio.Future[None]"


@dataclass
class ShellState:
    """What the middleware of one server knows.

    Attributes:
        limits: What a request may take.
        is_uploaded: Whether a path leads to an uploaded file.
        num_waiting: How many calls wait in the queue.
        has_mcp: Whether MCP is served.
        is_stopping: From then on, whatever is asked is refused.
        num_joining: Calls on their way into the queue.
        uploads: That have not come to an end.
    """

    limits: Limits
    is_uploaded: Callable[[str], bool]
    num_waiting: Callable[[], int]
    has_mcp: bool = False
    is_stopping: bool = False
    num_joining: int = 0
    uploads: set[_Upload] = field(default_factory=set)


class RequestShell:
    """ASGI middleware that lets through what `ShellState` allows, and answers the rest with one line."""

    def __init__(self, app: ASGIApp, state: ShellState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no use for websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._handle(scope, receive, watched_send)
        except RefusedError as refused:
            answer = refused
        except asyncio.CancelledError:
            if not self._state.is_stopping:
                raise
            return  # uvicorn would log it with a traceback
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with a traceback, in which names may be
            print(f"A request failed: {type(error).__name__}", file=sys.stderr)
            answer = RefusedError(500, "The server could not answer this.")
        else:
            return
        if not has_begun:
            await _answer(answer)(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, path, method = self._state, _path(scope), scope["method"]
        is_mcp = state.has_mcp and _MCP.fullmatch(path) is not None
        pattern = _GET if method in ("GET", "HEAD") else _POST
        if method not in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            raise RefusedError(405, "This method is not served here.")
        if not is_mcp and (method in ("OPTIONS", "DELETE") or not pattern.fullmatch(path)):
            raise RefusedError(404, "There is nothing at this address.")
        if method in ("GET", "HEAD"):
            if path.startswith(_FILE) and not state.is_uploaded(path[len(_FILE) :]):
                raise RefusedError(404, "There is nothing at this address.")
            await self._app(scope, receive, send)
            return
        if state.is_stopping:
            raise RefusedError(503, STOPPING)
        if path == f"{_API}/upload":
            await self._take_upload(scope, receive, send)
            return
        body = await _read_body(
            receive, _length(scope), state.limits.mcp_bytes if is_mcp else state.limits.json_bytes, state.limits
        )
        if is_mcp and (answer := _answer_to_agent(body)):
            await answer(scope, receive, send)
            return
        if path.rstrip("/") != "/login":
            self._check_files(body)
        if not _JOINS_QUEUE.fullmatch(path):
            await self._app(scope, _replay(body, receive), send)
            return
        waiting = state.num_waiting() + state.num_joining
        if waiting >= state.limits.waiting:
            raise RefusedError(503, f"The server is busy, {waiting} requests are waiting; try again in a minute.")
        state.num_joining += 1
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            state.num_joining -= 1

    def _check_files(self, body: bytes) -> None:
        """Refuses what names a file that nobody uploaded."""
        if not body:
            return
        call = _json(body)
        if not all(self._is_allowed(item) for item in _dicts(call)):
            raise RefusedError(400, _NOT_UPLOADED)

    def _is_allowed(self, item: dict[str, Any]) -> bool:
        if "path" not in item and "url" not in item:
            return True
        path = item.get("path")
        return isinstance(path, str) and not _is_address(path) and self._state.is_uploaded(path)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, limits = self._state, self._state.limits
        if _length(scope) > limits.upload_bytes:
            raise RefusedError(413, _too_large(limits.upload_bytes))
        self._make_room()
        upload = _Upload(time.monotonic(), asyncio.get_running_loop().create_future())
        state.uploads.add(upload)
        end = upload.last_byte + limits.upload_seconds
        num_bytes, is_whole = 0, False

        async def paced_receive() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # Gradio listens for the end of the connection
                return await receive()
            seconds = min(limits.stall_seconds, end - time.monotonic())
            message = await _next(receive, seconds, upload.gives_way)
            upload.last_byte = time.monotonic()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limits.upload_bytes:
                raise RefusedError(413, _too_large(limits.upload_bytes))
            is_whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, paced_receive, send)
        finally:
            state.uploads.discard(upload)

    def _make_room(self) -> None:
        uploads, limits = self._state.uploads, self._state.limits
        if len(uploads) < limits.uploads:
            return
        slowest = min(uploads, key=lambda upload: upload.last_byte)
        if time.monotonic() - slowest.last_byte < limits.yield_seconds:
            raise RefusedError(503, f"The server is busy with {len(uploads)} uploads; try again in a minute.")
        uploads.discard(slowest)
        slowest.gives_way.set_result(None)


async def _read_body(receive: Receive, length: int, max_bytes: int, limits: Limits) -> bytes:
    if length > max_bytes:
        raise RefusedError(413, _too_large(max_bytes))
    end = time.monotonic() + limits.stall_seconds
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await _next(receive, end - time.monotonic())
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "The connection was closed in the middle of the request.")
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise RefusedError(413, _too_large(max_bytes))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _next(receive: Receive, seconds: float, gives_way: "asyncio.Future[None] | None" = None) -> Message:
    coming = asyncio.ensure_future(receive())
    ends: list[asyncio.Future[Any]] = [coming] if gives_way is None else [coming, gives_way]
    try:
        await asyncio.wait(ends, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
    finally:
        coming.cancel()
    if gives_way is not None and gives_way.done():
        raise RefusedError(503, "The upload stood still and had to give way to others; try again.")
    raise RefusedError(408, "The request came too slowly; send it again.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever comes: Gradio listens for the end of the connection."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _path(scope: Scope) -> str:
    root = scope.get("root_path", "")
    path: str = scope["path"]
    return path[len(root) :] if root and path.startswith(root) else path


def _length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            try:
                return int(value)
            except ValueError:
                raise RefusedError(400, "Expected a number as Content-Length.") from None
    return 0


def _too_large(limit: int) -> str:
    return f"Expected a request of at most {limit // 1_000_000} MB, got more; send less at once."


def _answer(refused: RefusedError) -> JSONResponse:
    # `detail` is what Gradio's page and clients show. The rest of the body is not read, so the connection is of no use.
    headers = {"Connection": "close"}
    if refused.status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse({"detail": refused.reason}, refused.status, headers)


def _answer_to_agent(body: bytes) -> JSONResponse | None:
    """The answer to a call of a tool with an address for the server to fetch in it; None to what may pass."""
    calls = _json(body) if body else []
    for call in calls if isinstance(calls, list) else [calls]:
        is_call = isinstance(call, dict) and call.get("method") == "tools/call"
        if is_call and any(_is_address(text) for text in _strings(call.get("params"))):
            return JSONResponse(tool_error(call, NO_DATA_URL))
    return None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "Expected a body of JSON.") from None


def _dicts(value: Any) -> "list[dict[str, Any]]":
    found, open_values = [], [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, dict):
            found.append(item)
            open_values += item.values()
        elif isinstance(item, list):
            open_values += item
    return found


def _strings(value: Any) -> "list[str]":
    found, open_values = [], [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            open_values += item.values()
        elif isinstance(item, list):
            open_values += item
    return found


def _is_address(text: str) -> bool:
    return re.match(r"\s*[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None
