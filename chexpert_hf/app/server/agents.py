"""The endpoints as tools of the Model Context Protocol: what agents may send, and how they are answered.

Gradio serves the tools. By itself it tells agents to send addresses, which this server does not fetch, takes no lists
of files, leaves what was sent in a folder that is never emptied, and answers in Python's notation; that is replaced.
"""

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import handle_file, is_file_obj_with_meta

from chexpert_hf.errors import InputError

FILE_FORMAT = "data: URL of the file, such as data:image/png;base64,..."

NO_DATA_URL = "Expected a file as a data: URL in base64; this server fetches no addresses and opens no paths."

_GRADIOS_ADVICE = " If a user passes a file as an input"
"""The beginning of what Gradio adds to a description: to use a tool that is not served here."""

Position = list[str | int]


def require_mcp() -> None:
    """Raises InputError if MCP is not installed."""
    try:
        import gradio.mcp  # noqa: F401 - an optional extra
    except ImportError:
        raise InputError("MCP is not installed; pip install 'chexpert-hf[mcp]', or serve without --mcp.") from None


def prepare_tools(demo: gr.Blocks, folder: Path) -> None:
    """Changes what the tools of a page that has been launched say, take and answer.

    Args:
        demo: The page.
        folder: Of uploads, in which what agents send is kept as long as these.

    Raises:
        InputError: If the tools are not served.
    """
    server: Any = demo.mcp_server_obj
    if not demo.mcp_server or server is None:
        raise InputError(f"The tools for MCP cannot be served: {demo.mcp_error}")
    simplify, describe, answer = (
        server.simplify_filedata_schema,
        server.get_fn_description,
        server.postprocess_output_data,
    )
    server.simplify_filedata_schema = lambda schema: with_format(*simplify(schema))
    server.get_fn_description = lambda *which: _without_advice(*describe(*which))
    server.convert_strings_to_filedata = lambda values, positions: with_files(values, positions, folder)
    server.postprocess_output_data = lambda data, *where: answer([_as_json(one) for one in data], *where)


def with_format(schema: dict[str, Any], positions: list[Position]) -> tuple[dict[str, Any], list[Position]]:
    """A tool's schema in which each file says what it is, and the positions of the files in it."""
    for position in positions:
        node: Any = schema["properties"]
        for step in position:
            node = node[step]
        node["format"] = FILE_FORMAT
        node.pop("required", None)  # of the object that a file is for other programs
    return schema, positions


def with_files(values: dict[str, Any], positions: list[Position], folder: Path) -> dict[str, Any]:
    """A tool's arguments with files, as clients of Gradio send them, for data: URLs.

    Args:
        values: By name.
        positions: Of files in the schema; a list of them is at `[name, "items"]`.
        folder: For the files.

    Raises:
        InputError: If one is anything else than a data: URL.
    """
    values = dict(values)
    for name, *is_list in positions:
        if name in values:
            given = values[name]
            if is_list and not isinstance(given, list):
                raise InputError(NO_DATA_URL)
            values[name] = [_file(one, folder) for one in given] if is_list else _file(given, folder)
    return values


def tool_error(call: dict[str, Any], reason: str) -> dict[str, Any]:
    """The answer to a call that is refused: an agent reads it, where an HTTP status would end its session."""
    result = {"content": [{"type": "text", "text": reason}], "isError": True}
    return {"jsonrpc": "2.0", "id": call.get("id"), "result": result}


def _file(given: object, folder: Path) -> Any:
    header, _, encoded = given.partition(",") if isinstance(given, str) else ("", "", "")
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise InputError(NO_DATA_URL)
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise InputError(NO_DATA_URL) from None
    path = Path(tempfile.mkdtemp(dir=folder)) / "file"
    path.write_bytes(content)
    return handle_file(str(path))


def _without_advice(description: str, parameters: dict[str, str]) -> tuple[str, dict[str, str]]:
    return description.partition(_GRADIOS_ADVICE)[0], parameters


def _as_json(output: Any) -> Any:
    if isinstance(output, (dict, list)) and not is_file_obj_with_meta(output):
        return json.dumps(output)
    return output
