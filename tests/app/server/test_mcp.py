"""The endpoints as tools of the Model Context Protocol, as an agent's own client finds and calls them."""

import asyncio
import base64
import io
import json
import os
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.app.server.agents import FILE_FORMAT, NO_DATA_URL
from chexpert_hf.app.server.launch import serving
from tests.app.server.conftest import page_of, png

pytest.importorskip("mcp", reason="the extra mcp is not installed")
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


@pytest.fixture(scope="module")
def url(classifier: CheXpertClassifier) -> Iterator[str]:
    with serving(page_of(classifier), classifier, mcp=True) as url:
        yield url


def as_agent(url: str, act: Callable[[ClientSession], Awaitable[Any]]) -> Any:
    """What `act` makes of an open session, in a loop of its own."""

    async def run() -> Any:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (receive, send, _),
            ClientSession(receive, send) as session,
        ):
            await session.initialize()
            return await act(session)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result(60)


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_an_agent_finds_three_tools_with_typed_arguments_and_what_they_are_for(url):
    tools = {tool.name: tool for tool in as_agent(url, lambda session: session.list_tools()).tools}
    assert set(tools) == {"predict", "saliency", "batch"}
    types = {
        name: {argument: about["type"] for argument, about in tool.inputSchema["properties"].items()}
        for name, tool in tools.items()
    }
    assert types == {
        "predict": {"file": "string"},
        "saliency": {"file": "string", "observation": "string", "opacity": "number", "raw": "boolean"},
        "batch": {"files": "array"},
    }
    assert tools["saliency"].inputSchema["required"] == ["file", "observation"]
    for about in (
        tools["predict"].inputSchema["properties"]["file"],
        tools["batch"].inputSchema["properties"]["files"]["items"],
    ):
        assert about["type"] == "string"
        assert about["format"] == FILE_FORMAT
        assert "required" not in about
    assert "JPEG, PNG, TIFF" in tools["predict"].inputSchema["properties"]["file"]["description"]
    for tool in tools.values():
        assert "chest radiograph" in tool.description


def test_an_agent_gets_the_scores_of_predict_for_a_data_url_and_a_map(url, classifier):
    async def act(session: ClientSession) -> Any:
        scores = await session.call_tool("predict", {"file": data_url(png(3))})
        drawn = await session.call_tool("saliency", {"file": data_url(png(3)), "observation": "Edema", "raw": True})
        rows = await session.call_tool("batch", {"files": [data_url(png(3)), data_url(b"no image")]})
        return scores, drawn, rows

    scores, drawn, rows = as_agent(url, act)
    assert not scores.isError
    answer = json.loads(scores.content[0].text)
    expected = classifier.predict(png(3), saliency=True)
    assert {name: score["probability"] for name, score in answer["observations"].items()} == expected.probabilities
    image = Image.open(io.BytesIO(base64.b64decode(drawn.content[0].data)))
    assert np.array_equal(np.asarray(image), (expected.maps["Edema"] * 255).round().astype(np.uint8))
    first, second = json.loads(rows.content[0].text)
    assert first["observations"] == answer["observations"]
    assert "the content is none of these" in second["error"]


def test_nothing_of_what_an_agent_sends_is_kept(url):
    def files():
        return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).parent.glob("**/*") if path.is_file()}

    before = files()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("film.png", png(4))

    async def act(session: ClientSession) -> Any:
        await session.call_tool("predict", {"file": data_url(png(4))})
        return await session.call_tool("batch", {"files": [data_url(buffer.getvalue())]})

    (row,) = json.loads(as_agent(url, act).content[0].text)
    assert (row["name"], row["error"]) == ("film.png", None)
    assert files() == before


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("predict", {"file": "http://127.0.0.1:9/x.png"}),
        ("predict", {"file": "/etc/passwd"}),
        ("predict", {"file": "data:image/png;base64,***"}),
        ("batch", {"files": ["/etc/passwd"]}),
        ("batch", {"files": ["file:///etc/passwd"]}),
    ],
)
def test_an_address_or_a_path_is_refused_in_one_line_and_the_session_goes_on(url, tool, arguments, capfd):
    async def act(session: ClientSession) -> Any:
        return await session.call_tool(tool, arguments), await session.list_tools()

    refused, tools = as_agent(url, act)
    assert refused.isError
    assert refused.content[0].text == NO_DATA_URL
    assert len(tools.tools) == 3
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log
    assert "passwd" not in log


def test_with_a_password_no_agent_is_served_without_it(classifier):
    users = [("ada", "correct horse")]
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream"}
    with serving(page_of(classifier), classifier, mcp=True, auth=users) as url:
        for path in ("gradio_api/mcp", "gradio_api/mcp/"):
            for auth, status in ((None, 401), (("ada", "wrong"), 401), (users[0], 200)):
                answer = httpx.post(f"{url}{path}", json=call, headers=headers, auth=auth, follow_redirects=True)
                assert answer.status_code == status
