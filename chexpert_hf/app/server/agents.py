"""The endpoints as tools of the Model Context Protocol (MCP), for AI agents.

Agents send files as `data:` URLs. This server fetches no address and opens no path that an agent names, and keeps no
file on disk.
"""

import base64
import io
import json
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Mount, Route

from chexpert_hf.app.server.answers import OPACITY, draw
from chexpert_hf.app.server.blocks import INTERNAL
from chexpert_hf.app.server.endpoints import score_one, score_rows
from chexpert_hf.errors import InputError
from chexpert_hf.scoring.classifier import CheXpertClassifier

PATH = "/gradio_api/mcp"
FILE_FORMAT = "data: URL of the file, such as data:image/png;base64,..."
NO_DATA_URL = "Expected a file as a data: URL in base64; this server fetches no addresses and opens no paths."

_FILE = {
    "type": "string",
    "format": FILE_FORMAT,
    "description": "The bytes of a JPEG, PNG, TIFF, BMP, WebP or DICOM file as a data: URL.",
}
_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "predict": (
        "Scores one chest radiograph: the probability of each observation. Research software, not a medical device.",
        {"file": _FILE},
    ),
    "saliency": (
        "Draws where in a chest radiograph an observation's score comes from. Not a medical device.",
        {
            "file": _FILE,
            "observation": {"type": "string", "description": "One of the model's observations, such as Edema."},
            "opacity": {"type": "number", "default": OPACITY, "description": "Opacity of the map, from 0 to 1."},
            "raw": {"type": "boolean", "default": False, "description": "The map alone instead of the overlay."},
        },
    ),
    "batch": (
        "Scores many chest radiographs, and those in ZIP archives; a file that cannot be read is a row with an error.",
        {"files": {"type": "array", "items": _FILE}},
    ),
}


def agent_tools(classifier: CheXpertClassifier) -> tuple[list[BaseRoute], AbstractAsyncContextManager[None]]:
    """Return the routes that serve the MCP tools, and a context that must be open while they are served.

    Raises:
        InputError: If MCP is not installed.
    """
    try:
        from mcp.server import Server
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
        from mcp.types import ImageContent, TextContent, Tool
    except ImportError:
        raise InputError("MCP is not installed; pip install 'chexpert-hf[mcp]', or serve without --mcp.") from None

    server: Any = Server("chexpert-hf")  # its decorators have no types

    @server.list_tools()
    async def list_tools() -> list[Tool]:
        tools = []
        for name, (text, fields) in _TOOLS.items():
            required = [field for field, about in fields.items() if "default" not in about]
            schema = {"type": "object", "properties": fields, "required": required}
            tools.append(Tool(name=name, description=text, inputSchema=schema))
        return tools

    @server.call_tool()
    async def call_tool(name: str, given: dict[str, Any]) -> list[TextContent | ImageContent]:
        try:
            if name == "saliency":
                data, options = _bytes_of(given["file"]), (given.get("opacity"), given.get("raw", False))
                image = await draw(classifier, data, given["observation"], *options)
                return [ImageContent(type="image", data=base64.b64encode(image).decode(), mimeType="image/png")]
            if name == "predict":
                answer: object = await score_one(classifier, _bytes_of(given["file"]))
            else:
                answer = await score_rows(classifier, [io.BytesIO(_bytes_of(file)) for file in given["files"]])
            return [TextContent(type="text", text=json.dumps(answer))]
        except InputError:  # the library answers with its message
            raise
        except Exception as error:  # noqa: BLE001 - its text may hold contents of the request
            print(f"A request failed: {type(error).__name__}", file=sys.stderr)
            raise InputError(INTERNAL) from None

    async def redirect(_: Request) -> RedirectResponse:
        return RedirectResponse(f"{PATH}/", 307)

    manager = StreamableHTTPSessionManager(server, stateless=True)
    route = Route(PATH, redirect, methods=["GET", "POST", "DELETE"])
    return [route, Mount(PATH, manager.handle_request)], manager.run()


def _bytes_of(url: str) -> bytes:
    header, _, encoded = url.partition(",")
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise InputError(NO_DATA_URL)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise InputError(NO_DATA_URL) from None
