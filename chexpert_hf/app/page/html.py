"""Renders the page's HTML from `templates`, which escape every value; reads style sheets and scripts from `assets`.

A line break in a template is dropped between tags or blocks, and becomes a space in a text.
"""

import base64
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from chexpert_hf import DISCLAIMER, __version__
from chexpert_hf.app.model_facts import FEW_STUDIES
from chexpert_hf.app.page import text
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.scoring.prediction import by_probability

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
"""Fonts of the visitor's system, for the page's style."""

_HERE = Path(__file__).parent


def asset(name: str) -> str:
    """Return the text of a file in `assets`."""
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


def _source_of(name: str) -> str:
    source = (_HERE / "templates" / name).read_text(encoding="utf-8").strip()
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=[>}])\s*\n\s*(?=[<{])", "", source))


def data_url(data: bytes, media_type: str = "image/jpeg") -> str:
    """Return bytes as a `data:` URL, which needs no request."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


_ENVIRONMENT = Environment(loader=FunctionLoader(_source_of), autoescape=True, undefined=StrictUndefined)
_ENVIRONMENT.globals |= {
    **{name: value for name, value in vars(text).items() if name.isupper()},
    "DISCLAIMER": DISCLAIMER,
    "FEW_STUDIES": FEW_STUDIES,
    "OBSERVATIONS": CHEXPERT.names,
    "asset": asset,
    "by_probability": by_probability,
    "clinical_order": CHEXPERT.in_order,
    "data_url": data_url,
    "describe_calls": text.describe_calls,
    "version": __version__,
}


def render(template: str, **values: Any) -> Markup:
    """Return HTML from a template; `Markup` among the values is not escaped again."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def message_html(*reasons: str, note: str = "", is_of_file: bool = False, can_score: bool = False) -> Markup:
    """Return a note, and an error message with the `reasons`, as HTML that screen readers announce.

    With `is_of_file`, the browser puts the uploaded file's name before the error; `can_score` adds a button to score
    the file anyway. Without a note and reasons, the result is empty.
    """
    return render("message.html", reasons=reasons, note=note, is_of_file=is_of_file, can_score=can_score)


def delivery_html(content: bytes, name: str, media_type: str) -> Markup:
    """Return an invisible link that holds the `content` of a file, for the browser to save under `name`.

    Each link has a new id, since the script `assets/delivery.js` saves a file only when the link has changed.
    """
    link = Markup('<a data-id="{}" href="{}" download="{}"></a>')
    return link.format(uuid4().hex, data_url(content, media_type), name)
