"""Starts the page and the HTTP API behind their limits, and stops them so that everybody gets an answer."""

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
from chexpert_hf.app.page.model_facts import ModelFacts, facts_of
from chexpert_hf.app.server.addresses import is_loopback, listening_socket, url_of
from chexpert_hf.app.server.agents import agent_tools
from chexpert_hf.app.server.blocks import Page
from chexpert_hf.app.server.http_api import MAX_FILE_BYTES, OPENAPI_URL, add_api, answer_error
from chexpert_hf.app.server.scorer import SharedClassifier
from chexpert_hf.app.server.shell import Limits, Shell
from chexpert_hf.app.server.temporary import private_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier

STOP_SECONDS = 5
"""Time for open requests to be answered, once the server was told to stop."""

_CLOSE_SECONDS = 1  # how long open pages are then given
_END_SECONDS = 2  # how long the server may take to end after that
_PAGE_AT_ONCE = 4  # calls of each of the page's handlers
_STATUS_SECONDS = 2  # between two reports of their place in the queue; by default Gradio sends all on each answer

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Gradio keeps who called what and when, for a page that is off, and summarises it with pandas after every call.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    # The RLE decoder panics on damaged data, which the reader turns into a refusal; its log entry stays a line.
    "RUST_BACKTRACE": "0",
}
# FastAPI would send addresses and stack traces wherever the environment or a library says.
_CLOSED: dict[str, Any] = {
    "docs_url": None,
    "redoc_url": None,
    "telemetry": {"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
}


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
"""Options of Gradio for a page with nothing but what it needs, mounted here or launched by Gradio in a Space."""


def queued(page: Page, limits: Limits) -> Page:
    """A page with its queue bounded, in a process that tells no collector of telemetry anything."""
    os.environ.update(_QUIET)
    page.queue(_STATUS_SECONDS, max_size=limits.waiting, default_concurrency_limit=_PAGE_AT_ONCE, api_open=False)
    return page


def launch(build: Callable[[], Page], classifier: CheXpertClassifier, **options: Any) -> None:
    """Serves as `serving` does, until SIGINT or SIGTERM, which end the process with exit code 0."""
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
    # Nothing is left to do, and what the runtimes do at an interpreter's end took up to ten seconds.
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
    **look: Any,
) -> Iterator[str]:
    """Serves a page and the HTTP API while the context is open; gives the address of the page.

    Args:
        build: Builds the page; called once the folder for its files is there.
        classifier: Computes the scores; a SharedClassifier is closed at the end.
        host: IPv4 or IPv6 address or host name to listen at; others than loopback get a warning without a password.
        port: The first free one from 7860 on if None.
        auth: (user, password) of those who may use the server; open to all if empty.
        mcp: Also serve the endpoints as tools for agents (MCP).
        limits: The limits of requests.
        facts: Facts about the model, from `facts_of`, which is called if None.
        look: Theme and css, for `gr.mount_gradio_app`.

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
        app = FastAPI(
            title="chexpert-hf",
            description=DISCLAIMER,
            openapi_url=OPENAPI_URL,
            routes=tools,
            lifespan=lambda _: running_tools,
            **_CLOSED,
        )
        add_api(app, classifier, facts or facts_of(classifier))
        page = queued(build(), limits)
        gr.mount_gradio_app(app, page, "/", auth=list(auth) or None, mcp_server=False, **PAGE_OPTIONS, **look)
        refusal = classifier.scheduler.refusal if isinstance(classifier, SharedClassifier) else str
        shell = Shell(app, auth, limits, mcp, refusal)
        server = uvicorn.Server(
            uvicorn.Config(
                shell,
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )
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
            end = time.monotonic() + STOP_SECONDS
            time.sleep(0.2)  # who has just been queued comes for the answer
            while shell.num_open and time.monotonic() < end:
                time.sleep(0.02)
            server.should_exit = True
            thread.join(_CLOSE_SECONDS + _END_SECONDS)  # what hangs in a library must not keep the process
