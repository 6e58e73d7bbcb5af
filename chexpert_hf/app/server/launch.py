"""Starts the page behind its shell, and stops it so that nobody waits in vain and nothing is left."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import gradio as gr
import httpx
from starlette.middleware import Middleware

from chexpert_hf.app.server.addresses import is_loopback, listening_address, without_proxies
from chexpert_hf.app.server.agents import prepare_tools, require_mcp
from chexpert_hf.app.server.endpoints import is_uploaded
from chexpert_hf.app.server.failures import say_errors_in_one_line
from chexpert_hf.app.server.headers import SecurityHeaders
from chexpert_hf.app.server.shell import MAX_FILE_BYTES, Limits, RequestShell, ShellState
from chexpert_hf.app.server.temporary import private_folder
from chexpert_hf.app.server.threads import spare_threads
from chexpert_hf.errors import InputError

STOP_SECONDS = 5
"""How long those who wait are given to get their answer, once the server was told to stop."""

_CLOSE_SECONDS = 1
"""How long connections are then given to end by themselves."""

_WORKERS = 48
"""Calls that are worked on at once, of all kinds: more than `endpoints.AT_ONCE`, so that the page gets its turn."""

_PAGE_AT_ONCE = 4
"""Of each of the page's own handlers."""

_STATUS_SECONDS = 2
"""How often those who wait are told their place; by itself Gradio tells all of them whenever one is served, which with
200 of them took longer than serving."""

_SESSIONS = 200
"""Whose state Gradio keeps; each call by a program is one."""

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Gradio keeps who called what and when, for a page that is off, and summarises it with pandas after every call.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    # The RLE decoder panics on damaged data, which the reader turns into a refusal; its log entry stays a line.
    "RUST_BACKTRACE": "0",
}


_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI would send addresses and stack traces wherever the environment or a library says."""


def launch(
    demo: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: Sequence[tuple[str, str]] = (),
    mcp: bool = False,
    on_stop: Callable[[], None] | None = None,
    limits: Limits | None = None,
    prevent_thread_lock: bool = False,
    **look: Any,
) -> str:
    """Serves the page until SIGINT or SIGTERM, which end the process with exit code 0, and prints its address.

    Args:
        demo: From `build_demo`.
        host: IPv4 or IPv6 address or host name to listen at. Any that other machines reach gets a warning where there
            is no password.
        port: The first free one from 7860 on if None.
        auth: (user, password) of those who may open the page; open to all if empty.
        mcp: Also serve the endpoints as tools of the Model Context Protocol.
        on_stop: Called when the server begins to stop, so that what computes answers those who wait.
        limits: What requests may take.
        prevent_thread_lock: Return at once and serve in the background, until the interpreter ends or `demo.close()`.
        look: Theme, css, head and the like, for `gr.Blocks.launch`.

    Returns:
        The address of the page, where it is served in the background.

    Raises:
        InputError: If the port is taken, the address is not this machine's, or MCP is not installed.
    """
    host = listening_address(host)
    if not is_loopback(host) and not auth:
        print(f"Warning: at {host} the page is open, without a password, to all who can reach it.", file=sys.stderr)
    if mcp:
        require_mcp()
    os.environ.update(_QUIET)
    limits = limits or Limits()
    state = ShellState(limits, is_uploaded, num_waiting=lambda: len(demo._queue), has_mcp=mcp)
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        _keep_files_in(demo, folder)
        say_errors_in_one_line(demo)
        spare_threads()
        demo.queue(_STATUS_SECONDS, max_size=limits.waiting, default_concurrency_limit=_PAGE_AT_ONCE, api_open=False)
        url = _start(demo, state, host, port, auth, mcp, look)
        _remember_configurations(demo)
        if mcp:
            prepare_tools(demo, folder)
        print(f"The page is at {url}", flush=True)
        if prevent_thread_lock:
            _close_with(demo, stack.pop_all())
            return url
        with _stop_signal() as is_told:
            is_told.wait()
            stop(demo, state, on_stop)
    # Nothing is left to do, and what the runtimes do at an interpreter's end took up to ten seconds.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def stop(demo: gr.Blocks, state: ShellState, on_stop: Callable[[], None] | None) -> None:
    """Refuses what comes, answers those who wait, and closes the server, within some seconds."""
    end = time.monotonic() + STOP_SECONDS
    state.is_stopping = True
    if on_stop is not None:
        on_stop()
    queue = demo._queue
    while time.monotonic() < end and (len(queue) or any(queue.active_jobs)):
        time.sleep(0.05)
    time.sleep(0.2)  # the last answers are on their way
    demo.server.config.timeout_graceful_shutdown = _CLOSE_SECONDS  # open pages listen for ever
    demo.close(verbose=False)


@without_proxies()
def _start(
    demo: gr.Blocks,
    state: ShellState,
    host: str,
    port: int | None,
    auth: Sequence[tuple[str, str]],
    mcp: bool,
    look: dict[str, Any],
) -> str:
    try:
        _, url, _ = demo.launch(
            server_name=host,
            server_port=port,
            auth=list(auth) or None,
            mcp_server=mcp,
            app_kwargs={
                "middleware": [Middleware(SecurityHeaders), Middleware(RequestShell, state=state)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
                "telemetry": _NO_TELEMETRY,
            },
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            show_error=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=MAX_FILE_BYTES,
            max_threads=_WORKERS,
            state_session_capacity=_SESSIONS,
            allowed_paths=[],
            **look,
        )
    # ValueError and HTTPError: the server started, but did not answer Gradio's request.
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(f"The page cannot be served at {host}, port {port or 'from 7860 on'}: {error}") from error
    return str(url).replace("[::]", "[::1]")


def _keep_files_in(demo: gr.Blocks, folder: Path) -> None:
    """Components remember the folder that was set when they were made."""
    for block in demo.blocks.values():
        block.GRADIO_CACHE = str(folder)


def _remember_configurations(demo: gr.Blocks) -> None:
    """Gradio asks all components for their configuration in each new session, and each call by a program is one.

    Of 11 ms that its loop takes for a call, these were 5. What changes in a session is a component of its own.
    """
    for block in demo.blocks.values():
        block.get_config = partial(dict, block.get_config())


def _close_with(demo: gr.Blocks, stack: ExitStack) -> None:
    """Whatever comes first, `demo.close()` or the end of the interpreter, takes the folder with it."""
    atexit.register(stack.close)
    close = demo.close

    def close_all(verbose: bool = True) -> None:
        close(verbose=verbose)
        stack.close()

    demo.close = close_all


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    is_told = threading.Event()

    def tell(number: int, _frame: FrameType | None) -> None:
        if is_told.is_set():
            os._exit(128 + number)
        is_told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
