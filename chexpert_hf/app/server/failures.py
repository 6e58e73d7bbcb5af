"""Errors as one line for who asked, and nothing of what was asked in the log."""

import sys
from typing import Any

import gradio as gr

from chexpert_hf.errors import InputError

INTERNAL = "The server could not answer this; its log says what kind of error it was."


def say_errors_in_one_line(demo: gr.Blocks) -> None:
    """Makes what every handler of a page raises one line; Gradio would log a traceback, with the input in it.

    Args:
        demo: Whose handlers; what was wrong with the input is said, of anything else the log gets the kind.
    """
    process = demo.process_api

    async def process_quietly(*args: Any, **options: Any) -> Any:
        try:
            return await process(*args, **options)
        except gr.Error as error:
            raise gr.Error(error.message, error.duration, error.visible, error.title, print_exception=False) from None
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:  # noqa: BLE001 - whatever it is
            print(f"A request failed: {type(error).__name__}", file=sys.stderr)
            raise gr.Error(INTERNAL, print_exception=False) from None

    demo.process_api = process_quietly
