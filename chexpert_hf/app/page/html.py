"""HTML of the page from `templates`, which escape every value; style sheets and scripts from `assets`.

A line break in a template is dropped between tags or blocks, and becomes a space in a text.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from chexpert_hf import DISCLAIMER
from chexpert_hf.app.page import text
from chexpert_hf.app.page.model_facts import ModelFacts
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.scoring.prediction import by_probability

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
"""The system's fonts."""

_HERE = Path(__file__).parent


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


CSS, REPORT_CSS = _asset("page.css"), _asset("report.css")
VIEWER_JS, TABLE_JS, BUTTONS_JS = _asset("viewer.js"), _asset("table.js"), _asset("buttons.js")
DELIVERY_JS, PASTE_JS, RELOAD_JS = _asset("delivery.js"), _asset("paste.js"), _asset("reload.js")


def clinical_order(observations: Iterable[str]) -> list[str]:
    """Observations in the order of CheXpert's files; others come last, in the model's order."""
    return CHEXPERT.in_order(observations)


def _source_of(name: str) -> str:
    source = (_HERE / "templates" / name).read_text(encoding="utf-8").strip()
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=[>}])\s*\n\s*(?=[<{])", "", source))


_ENVIRONMENT = Environment(loader=FunctionLoader(_source_of), autoescape=True, undefined=StrictUndefined)
_ENVIRONMENT.globals |= {name: value for name, value in vars(text).items() if name.isupper()}
_ENVIRONMENT.globals |= {
    "DISCLAIMER": DISCLAIMER,
    "OBSERVATIONS": CHEXPERT.names,
    "by_probability": by_probability,
    "clinical_order": clinical_order,
}


def render(template: str, **values: Any) -> Markup:
    """HTML from a template; `Markup` among the values is not escaped again."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def data_url(data: bytes, media_type: str = "image/jpeg") -> str:
    """Bytes as an address that needs no request."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def error_html(reason: str) -> Markup:
    """One line, announced by screen readers."""
    return render("error.html", reason=reason)


def note_html(note: str) -> Markup:
    """A note that screen readers announce; empty without text."""
    return render("note.html", text=note) if note else Markup()


def delivery_html(content: bytes, name: str, media_type: str) -> Markup:
    """A file for `assets/delivery.js`, with an id of its own so that the same file can be downloaded twice."""
    file = base64.b64encode(content).decode()
    return render("delivery.html", id=uuid4().hex, name=name, media_type=media_type, file=file)


def header_html(facts: ModelFacts, count: int) -> Markup:
    """The page's title and purpose, in two lines."""
    return render("header.html", facts=facts, count=count)


def about_html(facts: ModelFacts, operating_points: Mapping[str, float]) -> Markup:
    """The model, its metrics, and the meaning of each observation."""
    return render("about.html", facts=facts, operating_points=operating_points)
