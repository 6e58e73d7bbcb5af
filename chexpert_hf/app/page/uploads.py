"""The fields for files: by click, by dragging, and, with `assets/paste.js`, from the clipboard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

_MAX_NAME = 200


@dataclass(frozen=True)
class Upload:
    """An uploaded file: where it is now, and the visitor's name for it, which is shown to nobody else."""

    path: Path
    name: str


def upload_field(label: str, elem_id: str) -> gr.File:
    """A field whose value reaches handlers as a list of `Upload`.

    No file types: Gradio would drop the many DICOM files without a suffix. The reader looks inside.
    """
    field = gr.File(
        label=label,
        file_count="multiple",  # of a single file, the browser would drop the others silently
        height=140,
        elem_id=elem_id,
        elem_classes="upload-field",
    )
    # On the instance: a subclass would make Gradio write a stub file beside this one, and its own way of giving out
    # paths leaves an empty temporary file behind for each.
    field.preprocess = _uploads
    return field


def _uploads(payload: Any) -> list[Upload]:
    files = payload.root if payload is not None else []
    return [Upload(Path(file.path), (file.orig_name or Path(file.path).name)[:_MAX_NAME]) for file in files]
