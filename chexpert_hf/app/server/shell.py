"""The limits of requests, checked before Gradio or the HTTP API sees them: address, login, size and speed.

Paths are on an allow-list, since Gradio serves many that the page does not need: proxies, run history, recordings.
Bodies are counted as they arrive, since the announced length need not be true.
"""

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chexpert_hf.app.server.blocks import INTERNAL
from chexpert_hf.app.server.credentials import is_authorized
from chexpert_hf.app.server.scheduler import STOPPING


@dataclass(frozen=True)
class Limits:
    """Limits of the sizes, times and numbers of requests."""

    upload_bytes: int = 1_000_000_000  # one upload, all its files together
    json_bytes: int = 1_000_000  # any other body
    mcp_bytes: int = 40_000_000  # a call by MCP, which holds files as base64
    stall_seconds: float = 15  # between two parts of a body
    upload_seconds: float = 300  # for a whole body
    uploads: int = 300  # bodies that are being received at once
    waiting: int = 256  # calls in Gradio's queue


_API, _MCP, _HEALTH = "/api/v1/", "/gradio_api/mcp", "/api/v1/health"
_GET = re.compile(
    r"/(?:config/?|info/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|logout|pwa_icon(?:/\d+)?"
    r"|(?:assets|static|svelte)/.+"
    r"|gradio_api/(?:info/?|openapi\.json|app_id/?|user/?|login_check/?|startup-events|theme\.css"
    r"|queue/data|queue/status|upload_progress|file=/.+|heartbeat/[^/]+|call/(?:v2/)?[^/]+/[^/]+)"
    r"|docs|api/v1/(?:model|card|health|docs|openapi\.json))?"
)
_POST = re.compile(
    r"/(?:login/?|gradio_api/(?:upload|queue/join|cancel|reset/?|call/(?:v2/)?[^/]+/?)|api/v1/(?:predict|saliency))"
)
_SERVED = {"GET": _GET, "HEAD": _GET, "POST": _POST}
_UPLOADS = ("/gradio_api/upload", f"{_API}predict", f"{_API}saliency")
_ENDLESS = "/gradio_api/heartbeat/"  # open as long as a page is
_DRAINED_BYTES, _DRAIN_SECONDS = 10_000_000, 0.5  # most that is read of a refused body
_NO_STORE = (_API, "/gradio_api/file=", "/gradio_api/queue/", "/gradio_api/call/", "/gradio_api/upload")

# Gradio's page has inline scripts and runs the `js_on_load` of gr.HTML by `new Function`; Spaces show it in a frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer; they restrict the page in the browser."""


class Shell:
    """ASGI middleware that forwards requests within the limits, and answers others with a one-line error.

    Args:
        app: The application.
        users: (user, password) pairs for the HTTP API and MCP; open if empty. Gradio has its own login.
        limits: The limits.
        has_mcp: Whether MCP is served.
        refusal: Called before the body of a call of the HTTP API or MCP is read; returns why to refuse it, or "".

    Attributes:
        is_stopping: Set to refuse new requests.
        num_open: Number of requests without an answer, not counting the heartbeat of each open page.
    """

    def __init__(
        self,
        app: ASGIApp,
        users: Sequence[tuple[str, str]] = (),
        limits: Limits = Limits(),
        has_mcp: bool = False,
        refusal: Callable[[], str] = str,
    ) -> None:
        self._app, self._users, self._limits, self._has_mcp, self._refusal = app, users, limits, has_mcp, refusal
        self.is_stopping = False
        self.num_open = 0
        self._uploads: set[Receive] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here uses websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if path.startswith(_NO_STORE):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        answer = None
        counts = not path.startswith(_ENDLESS)
        self.num_open += counts
        try:
            await self._handle(scope, path, receive, send_with_headers)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            is_expecting = Headers(scope=scope).get("Expect", "").lower() == "100-continue"  # client has sent no body
            if scope["method"] == "POST" and refusal.status_code != 408 and not is_expecting:
                await _drain(receive)
        except asyncio.CancelledError:
            if not self.is_stopping:  # while stopping, uvicorn would log it with a traceback
                raise
        except Exception as error:  # noqa: BLE001 - uvicorn would log a traceback, which may hold request contents
            print(f"A request failed: {type(error).__name__}", file=sys.stderr)
            answer = JSONResponse({"detail": INTERNAL}, 500)
        finally:
            self.num_open -= counts
        if answer is not None and not has_begun:
            await answer(scope, receive, send_with_headers)

    async def _handle(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        method, limits, headers = scope["method"], self._limits, Headers(scope=scope)
        is_mcp = self._has_mcp and (path == _MCP or path.startswith(f"{_MCP}/"))
        if method not in (*_SERVED, "OPTIONS", "DELETE"):
            raise _refusal(405, "This method is not served here.")
        if not is_mcp and not (method in _SERVED and _SERVED[method].fullmatch(path)):
            raise _refusal(404, "There is nothing at this address.")
        if self.is_stopping and (method == "POST" or path == _HEALTH):
            raise _refusal(503, STOPPING)
        needs_login = self._users and (is_mcp or path.startswith(_API)) and path != _HEALTH
        if needs_login and not is_authorized(headers.get("Authorization", ""), self._users):
            raise HTTPException(401, "Expected user and password.", {"WWW-Authenticate": "Basic"})
        if is_mcp and method == "GET":  # would open an endless stream, which a server without sessions never uses
            raise _refusal(405, "This method is not served here.")
        if method != "POST":
            await self._app(scope, receive, send)
            return
        if (is_mcp or path.startswith(_API)) and (reason := self._refusal()):
            raise _refusal(503, reason)
        max_bytes = limits.upload_bytes if path in _UPLOADS else limits.mcp_bytes if is_mcp else limits.json_bytes
        length = headers.get("Content-Length", "0")
        if not length.isdecimal():
            raise _refusal(400, "Expected a number as Content-Length.")
        if int(length) > max_bytes:
            raise _too_large(max_bytes)
        if len(self._uploads) >= limits.uploads:
            raise _refusal(503, f"The server is busy with {len(self._uploads)} uploads; try again in a minute.")
        bounded = self._bounded(receive, max_bytes)
        self._uploads.add(bounded)
        try:
            await self._app(scope, bounded, send)
        finally:
            self._uploads.discard(bounded)

    def _bounded(self, receive: Receive, max_bytes: int) -> Receive:
        """Return a `receive` that raises an HTTPException if a body exceeds `max_bytes` or arrives too slowly."""
        end = time.monotonic() + self._limits.upload_seconds
        num_bytes, is_whole = 0, False

        async def bounded() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # the application waits for the client to disconnect
                return await receive()
            try:
                seconds = min(self._limits.stall_seconds, end - time.monotonic())
                message = await asyncio.wait_for(receive(), max(seconds, 0))
            except asyncio.TimeoutError:
                raise _refusal(408, "The request came too slowly; send it again.") from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            if not message.get("more_body", False):
                is_whole = True
                self._uploads.discard(bounded)
            return message

        return bounded


async def _drain(receive: Receive) -> None:
    """Read part of a refused body: else a client that is still sending would see a reset instead of the answer."""
    end, num_bytes = time.monotonic() + _DRAIN_SECONDS, 0
    while num_bytes < _DRAINED_BYTES and (seconds := end - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), seconds)
        except asyncio.TimeoutError:
            return
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _too_large(limit: int) -> HTTPException:
    return _refusal(413, f"Expected a request of at most {limit // 1_000_000} MB, got more; send less at once.")


def _refusal(status: int, reason: str) -> HTTPException:
    # The rest of a large body is not read, so the connection cannot be reused.
    return HTTPException(status, reason, {"Connection": "close"} | ({"Retry-After": "5"} if status == 503 else {}))
