"""What is wrong with a card: a part that is missing, a field that is empty, a placeholder that nobody filled in."""

import re
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_REQUIRED_FIELDS = ("license", "library_name", "pipeline_tag", "tags")
_REQUIRED_SECTIONS = (
    "Intended use",
    "How to use",
    "Evaluation",
    "Calibration",
    "Operating points",
    "Limits",
    "Licence",
    "Citation",
)
_WARNING = "not a medical device"
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_PLACEHOLDERS = re.compile(
    r"\{\{|\}\}|\{%|\bTODO\b|\bTBD\b|\bFIXME\b|\bXXX\b|\[?[Mm]ore [Ii]nformation [Nn]eeded\]?|[Ll]orem [Ii]psum|"
    r"\b[Yy]our[-_ ](?:name|model|username)\b|\bNone\b|\b[Nn]a[nN]\b|\bUndefined\b|<[A-Za-z_ -]*(?:name|id|here)>"
)
_EMPTY_ITEM = re.compile(r"^- [^:\n]+:[ \t]*\.?$(?!\n +-)", re.MULTILINE)
_EMPTY_CELL = re.compile(r"^\|(?:.*\|)?[ \t]*\|", re.MULTILINE)
_HEADING = re.compile(r"^(#{1,6}) (.*)$", re.MULTILINE)
_TABLE_RULE = re.compile(r"^\|(?: ?:?-+:? ?\|)+$(?!\n\|)", re.MULTILINE)


def card_problems(text: str) -> list[str]:
    """What is wrong with a card, a line for each; an empty list for a complete one."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return ["it has no front matter between two lines of ---"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return ["its front matter is no YAML"]
    if not isinstance(data, dict):
        return ["its front matter is no mapping of fields to values"]
    body = text[found.end() :]
    return [*_field_problems(data), *_section_problems(body), *_text_problems(body)]


def _field_problems(data: dict[str, Any]) -> list[str]:
    lines = [f"the field {name} is missing" for name in _REQUIRED_FIELDS if name not in data]
    lines += [f"the field {name} is empty" for name, value in _leaves(data) if value in (None, "", [], {})]
    lines += [
        f"the field {name} holds a placeholder: {value}"
        for name, value in _leaves(data)
        if isinstance(value, str) and _PLACEHOLDERS.search(value)
    ]
    if data.get("license") == "other" and not data.get("license_name"):
        lines.append("license is other, which needs a license_name")
    return lines


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and value:
        return [leaf for item in value for leaf in _leaves(item, name)]
    return [(name, value)]


def _section_problems(body: str) -> list[str]:
    plain = _FENCE.sub("code", body)
    headings = list(_HEADING.finditer(plain))
    lines = [
        f"the section {name} is missing"
        for name in _REQUIRED_SECTIONS
        if name not in [heading[2].strip() for heading in headings]
    ]
    ends = [*(heading.start() for heading in headings[1:]), len(plain)]
    following = [*headings[1:], None]
    for heading, end, next_one in zip(headings, ends, following, strict=True):
        has_parts = next_one is not None and len(next_one[1]) > len(heading[1])
        if not plain[heading.end() : end].strip() and not has_parts:
            lines.append(f"the section {heading[2]} is empty")
    if not headings:
        lines.append("it has no headings")
    if _WARNING not in plain:
        lines.append(f"it does not say that this is {_WARNING}")
    return lines


def _text_problems(body: str) -> list[str]:
    plain = _FENCE.sub("", body)
    lines = [f"a placeholder was left: {_line_at(plain, found.start())}" for found in _PLACEHOLDERS.finditer(plain)]
    lines += [f"nothing stands behind the colon: {found[0]}" for found in _EMPTY_ITEM.finditer(plain)]
    lines += [f"a cell is empty: {_line_at(plain, found.start())}" for found in _EMPTY_CELL.finditer(plain)]
    lines += ["a table has no rows" for _ in _TABLE_RULE.finditer(plain)]
    lines += [
        "a block of code is empty"
        for found in _FENCE.finditer(body)
        if not "".join(found[0].splitlines()[1:-1]).strip()
    ]
    return list(dict.fromkeys(lines))


def _line_at(text: str, position: int) -> str:
    start, end = text.rfind("\n", 0, position) + 1, text.find("\n", position)
    return text[start : end if end != -1 else len(text)].strip()[:100]
