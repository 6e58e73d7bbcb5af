"""Style sheets and scripts of the page, from the files in `assets`. Fonts are the system's."""

from pathlib import Path

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


def _asset(name: str) -> str:
    return (Path(__file__).with_name("assets") / name).read_text(encoding="utf-8")


CSS = _asset("page.css")
REPORT_CSS = _asset("report.css")

VIEWER_JS = _asset("viewer.js")
TABLE_JS = _asset("table.js")
BUTTONS_JS = _asset("buttons.js")
DELIVERY_JS = _asset("delivery.js")
PASTE_JS = _asset("paste.js")
