"""Starts the page and the HTTP API with limits on requests, and stops them so that open requests are answered."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import gradio as gr
import uvicorn
from fastapi import Depends, FastAPI, Request

from chexpert_hf import DISCLAIMER
from chexpert_hf.app.model_facts import ModelFacts, facts_of
from chexpert_hf.app.server.addresses import is_loopback, listening_socket, url_of
from chexpert_hf.app.server.agents import agent_tools
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.http_api import MAX_FILE_BYTES, OPENAPI_URL, add_api, answer_error
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits, Shell
from chexpert_hf.app.server.temporary import private_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier

_STOP_SECONDS = 5  # to answer open requests after the signal to stop
_CLOSE_SECONDS = 1  # to close open pages after that
_END_SECONDS = 2  # for the server to end after that
_PAGE_AT_ONCE = 4  # calls of each of the page's handlers
_STATUS_SECONDS = 2  # between two reports of a place in the queue; by default Gradio sends one to all on each answer

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Gradio records every call for its analytics page, which is off, and summarises them with pandas each time.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    # The RLE decoder panics on damaged data. The reader refuses the file then; this keeps the log entry to one line.
    "RUST_BACKTRACE": "0",
}
# By default FastAPI sends addresses and stack traces to collectors that the environment or a library names.
_NO_TELEMETRY = dict.fromkeys(("tracing", "metrics", "logs", "auto_configure"), False)
_CLOSED: dict[str, Any] = {"docs_url": None, "redoc_url": None, "telemetry": _NO_TELEMETRY}


async def _start_queue(request: Request) -> None:
    request.app.get_blocks().start_queue()


PAGE_OPTIONS: dict[str, Any] = {
    "app_kwargs": {
        **_CLOSED,
        "openapi_url": None,
        "exception_handlers": {Exception: answer_error},
        "dependencies": [Depends(_start_queue)],
    },
    "show_error": False,
    "max_file_size": MAX_FILE_BYTES,
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "footer_links": [],
}
"""Gradio's options for the page, whether it is mounted here or launched by Gradio in a Space."""


def queued(page: Page, limits: Limits) -> Page:
    """Set the `limits` of a page's queue and return the page; also switch telemetry off in this process."""
    os.environ.update(_QUIET)
    page.queue(_STATUS_SECONDS, max_size=limits.waiting, default_concurrency_limit=_PAGE_AT_ONCE, api_open=False)
    return page


def launch(build: Callable[[], Page], classifier: CheXpertClassifier, **options: Any) -> None:
    """Serve the page until SIGINT or SIGTERM, then end the process with exit code 0; does not return.

    `build` builds the page, `classifier` computes the scores, and `options` are arguments of `serving`, such as `port`.
    """
    is_told = threading.Event()

    def tell(number: int, _: object) -> None:
        if is_told.is_set():  # a second signal ends the process at once
            os._exit(128 + number)
        is_told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    with serving(build, classifier, **options) as url:
        print(f"The page is at {url}", flush=True)
        while not is_told.wait(1):  # a signal that another thread received does not end a wait without a limit
            pass
    # A normal exit would wait up to ten seconds for the runtimes to clean up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def serving(
    build: Callable[[], Page],
    classifier: CheXpertClassifier,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
    limits: Limits | None = None,
    facts: ModelFacts | None = None,
    **appearance: Any,
) -> Iterator[str]:
    """Serve a page and the HTTP API while this context is open; yield the URL of the page.

    Args:
        build: Builds the page; called after the folder for uploads is created.
        classifier: Computes the scores; a SharedClassifier is closed at the end.
        host: IPv4 or IPv6 address or host name to listen at. If others can reach it without a password, a warning is
            shown.
        port: The port to listen at; if None, chosen as in `listening_socket`.
        auth: (user, password) pairs; open to all if empty.
        mcp: Whether to serve the endpoints also as tools for agents (MCP).
        limits: The limits of requests.
        facts: Facts about the model; those of `facts_of` if None.
        appearance: Theme, css and head, for `gr.mount_gradio_app`.

    Raises:
        InputError: If the port is taken, the address is not this machine's, or MCP is not installed.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        listener = stack.enter_context(listening_socket(host, port))
        if not is_loopback(host) and not auth:
            print(f"Warning: at {host} the page is open, without a password, to all who can reach it.", file=sys.stderr)
        stack.enter_context(private_folder())
        tools, running_tools = agent_tools(classifier) if mcp else ([], nullcontext())
        about: dict[str, Any] = {"title": "chexpert-hf", "description": DISCLAIMER, "openapi_url": OPENAPI_URL}
        app = FastAPI(routes=tools, lifespan=lambda _: running_tools, **about, **_CLOSED)
        add_api(app, classifier, facts or facts_of(classifier))
        page = queued(build(), limits)
        gr.mount_gradio_app(app, page, "/", auth=list(auth) or None, mcp_server=False, **PAGE_OPTIONS, **appearance)
        refusal = classifier.scheduler.refusal if isinstance(classifier, SharedClassifier) else str
        shell = Shell(app, auth, limits, mcp, refusal)
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(shell, timeout_graceful_shutdown=_CLOSE_SECONDS, **quiet))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.001)
        if not server.started:
            raise RuntimeError("The server did not start; its log says why.")
        try:
            yield url_of(host, listener)
        finally:
            shell.is_stopping = True
            if isinstance(classifier, SharedClassifier):
                classifier.close()
            end = time.monotonic() + _STOP_SECONDS
            time.sleep(0.2)  # lets clients whose call has just been queued ask for the answer
            while shell.num_open and time.monotonic() < end:
                time.sleep(0.02)
            server.should_exit = True
            thread.join(_CLOSE_SECONDS + _END_SECONDS)  # a call that hangs in a library must not keep the process
