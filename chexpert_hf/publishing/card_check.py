"""Problems of a model card: missing parts, empty fields, placeholders that were not filled in."""

import re
from itertools import zip_longest
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_REQUIRED_FIELDS = ("license", "library_name", "pipeline_tag", "tags")
_REQUIRED_SECTIONS = [
    "Intended use",
    "How to use",
    "Evaluation",
    "Calibration",
    "Operating points",
    "Limits",
    "Licence",
    "Citation",
]
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
_TEXT_PROBLEMS = (
    (_PLACEHOLDERS, "a placeholder was left: {line}"),
    (_EMPTY_ITEM, "nothing stands behind the colon: {line}"),
    (_EMPTY_CELL, "a cell is empty: {line}"),
    (_TABLE_RULE, "a table has no rows"),
)


def card_problems(text: str) -> list[str]:
    """One line per problem of a card; empty for a complete one."""
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
    return [*_field_problems(data), *_section_problems(_FENCE.sub("code", body)), *_text_problems(body)]


def _field_problems(data: dict[str, Any]) -> list[str]:
    lines = [f"the field {name} is missing" for name in _REQUIRED_FIELDS if name not in data]
    for name, value in _leaves(data):
        if value in (None, "", [], {}):
            lines.append(f"the field {name} is empty")
        elif isinstance(value, str) and _PLACEHOLDERS.search(value):
            lines.append(f"the field {name} holds a placeholder: {value}")
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
    headings = list(_HEADING.finditer(body))
    names = [heading[2].strip() for heading in headings]
    lines = [f"the section {name} is missing" for name in _REQUIRED_SECTIONS if name not in names]
    for heading, following in zip_longest(headings, headings[1:]):
        has_parts = following is not None and len(following[1]) > len(heading[1])
        if not has_parts and not body[heading.end() : following.start() if following else None].strip():
            lines.append(f"the section {heading[2]} is empty")
    if _WARNING not in body:
        lines.append(f"it does not say that this is {_WARNING}")
    return lines


def _text_problems(body: str) -> list[str]:
    plain = _FENCE.sub("", body)
    text_lines = plain.split("\n")
    lines = [
        message.format(line=text_lines[plain.count("\n", 0, found.start())].strip()[:100])
        for pattern, message in _TEXT_PROBLEMS
        for found in pattern.finditer(plain)
    ]
    if any(not "".join(found[0].splitlines()[1:-1]).strip() for found in _FENCE.finditer(body)):
        lines.append("a block of code is empty")
    return list(dict.fromkeys(lines))
