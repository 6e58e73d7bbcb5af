"""The look of the page and what runs in the browser, from the files in `assets`. Fonts are the system's."""

from pathlib import Path

_ASSETS = Path(__file__).with_name("assets")

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


CSS = _asset("page.css")
REPORT_CSS = _asset("report.css")

VIEWER_JS = _asset("viewer.js")
TABLE_JS = _asset("table.js")
BUTTONS_JS = _asset("buttons.js")
DELIVERY_JS = _asset("delivery.js")
PASTE_JS = _asset("paste.js")
