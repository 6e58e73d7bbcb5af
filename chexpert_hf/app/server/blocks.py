"""Gradio's Blocks with one-line errors and access to uploaded files only."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from chexpert_hf.errors import InputError

INTERNAL = "The server could not answer this; its log says what kind of error it was."

_NOT_UPLOADED = "Expected a file that was uploaded to this server, got another path or address; upload it first."
SESSIONS = 200  # sessions whose state Gradio keeps; each call by a program is one


class Page(gr.Blocks):
    """Gradio's Blocks whose handlers answer with one line on errors; the contents of requests are never logged."""

    def __init__(self, **options: Any) -> None:
        super().__init__(analytics_enabled=False, **options)
        self.state_session_capacity = SESSIONS
        self._has_queue = False

    def run_startup_events(self) -> None:
        """Do nothing: Gradio's queue polls a thousand times a second, so it is started at the first request instead."""

    def start_queue(self) -> None:
        """Start Gradio's queue, if it has not been started; each request calls this, see `launch.PAGE_OPTIONS`."""
        if not self._has_queue:
            self._has_queue = True
            super().run_startup_events()

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **options: Any) -> dict[str, Any]:
        """Call a handler as Gradio does, but refuse inputs that name a file which was not uploaded.

        Raises:
            gr.Error: For every error. It has the message of a gr.Error or InputError; for any other error its message
                is `INTERNAL`. Gradio logs no traceback.
        """
        try:
            if not all(_is_allowed(item) for item in _dicts(inputs)):
                raise InputError(_NOT_UPLOADED)
            return dict(await super().process_api(block_fn, inputs, *args, **options))
        except gr.Error as error:
            raise gr.Error(error.message, error.duration, error.visible, error.title, print_exception=False) from None
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:  # noqa: BLE001 - Gradio would log a traceback, which may hold request contents
            print(f"A request failed: {type(error).__name__}", file=sys.stderr)
            raise gr.Error(INTERNAL, print_exception=False) from None


def uploaded_path(file: object) -> Path:
    """Return the path of an uploaded file, which Gradio gives as a dictionary with `path`.

    Raises:
        InputError: If the path, with links resolved, is outside the folder of uploads, or the file has been deleted.
    """
    path = file.get("path") if isinstance(file, dict) else None
    if path is None or not is_uploaded(path):
        raise InputError(_NOT_UPLOADED)
    if not os.path.isfile(path):
        raise InputError("The file has been deleted since it was uploaded; upload it again.")
    return Path(path)


def is_uploaded(path: object) -> bool:
    """Whether a path, with links resolved, is inside the folder of uploads."""
    if not isinstance(path, str) or "\0" in path:
        return False
    return os.path.realpath(path).startswith(os.path.realpath(get_upload_folder()) + os.sep)


def _is_allowed(item: dict[str, Any]) -> bool:
    """Whether a dictionary in a call's inputs names no file, or an uploaded file.

    Gradio itself would also fetch files at other paths and URLs.
    """
    return not {"path", "url"} & item.keys() or is_uploaded(item.get("path"))


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    open_values = [value]
    while open_values:
        item = open_values.pop()
        if isinstance(item, dict):
            yield item
            open_values += item.values()
        elif isinstance(item, list):
            open_values += item
