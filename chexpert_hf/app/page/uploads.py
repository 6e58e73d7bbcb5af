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
    """A field for files, whose events need `preprocess=False` and whose value `uploads_of` reads.

    Gradio's own preprocessing leaves an empty temporary file behind for each upload. No file types: Gradio would drop
    the many DICOM files without a suffix. The reader looks inside.
    """
    return gr.File(
        label=label,
        file_count="multiple",  # of a single file, the browser would drop the others silently
        height=140,
        elem_id=elem_id,
        elem_classes="upload-field",
    )


def uploads_of(value: list[dict[str, Any]] | None) -> list[Upload]:
    """The files in an unprocessed value of an upload field."""
    return [
        Upload(Path(file["path"]), (file["orig_name"] or Path(file["path"]).name)[:_MAX_NAME]) for file in value or ()
    ]
