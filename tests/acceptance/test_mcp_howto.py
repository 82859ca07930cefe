"""The requests that docs/howto/mcp.md shows are sent as they stand there, to a tool server that is really there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs_support.pages import ROOT, blocks
from nagaya.context.decode import decode
from nagaya.context.items import Message
from nagaya.context.response_shapes import ResponseIn
from nagaya.context.tool_items import McpApprovalRequest, McpCall, McpListTools
from nagaya.testing.models import call, say
from support.inside import inside
from support.mcp_server import ToolsServer, running_tools

PAGE = (ROOT / "docs" / "howto" / "mcp.md").read_text("utf-8")
BODIES = [block.body for block in blocks(PAGE) if block.language == "json" and block.file is None]
"""What the page says to send to ``/v1/responses``; what it says to write into a file is run with the page."""
SHOWN_PLACE = "https://tools.example.com/mcp"
WEATHER = call("roofs__weather", '{"city":"Nara"}')


@pytest.fixture(scope="module")
def tools() -> Iterator[ToolsServer]:
    with running_tools() as server:
        yield server


def asked(tools: ToolsServer, body: str, **shown: str) -> ResponseIn:
    """The request in a block, with the tool server's real place and the ids of this run; decoded as the route does."""
    assert SHOWN_PLACE in body
    body = body.replace(SHOWN_PLACE, f"http://{tools.place}/good/mcp")
    for placeholder, real in shown.items():
        assert f"{placeholder}_…" in body
        body = body.replace(f"{placeholder}_…", real)
    return decode(body.encode(), ResponseIn)


async def test_the_first_request_of_the_page_calls_the_tool(tmp_path: Path, monkeypatch, tools: ToolsServer):
    first, _ = BODIES
    async with (
        inside(tmp_path, monkeypatch, WEATHER, say("Rain."), allowed_hosts=(tools.place,)) as house,
        house.as_user() as tenant,
    ):
        listed, called, said = (await tenant.responses.create(asked(tools, first))).output
        assert isinstance(listed, McpListTools)
        assert [tool.name for tool in listed.tools] == ["weather"], "the page allows this one alone"
        assert isinstance(called, McpCall)
        assert called.output == "Rain in Nara."
        assert isinstance(said, Message)
    token = json.loads(first)["tools"][0]["authorization"]
    assert f"Bearer {token}" in tools.credentials


async def test_the_second_request_of_the_page_approves_a_call(tmp_path: Path, monkeypatch, tools: ToolsServer):
    _, second = BODIES
    ask: dict[str, Any] = {"input": "Weather?", "tools": json.loads(second)["tools"]}
    async with (
        inside(tmp_path, monkeypatch, WEATHER, say("Rain."), allowed_hosts=(tools.place,)) as house,
        house.as_user() as tenant,
    ):
        waiting = await tenant.responses.create(asked(tools, json.dumps(ask)))
        request = waiting.output[-1]
        assert isinstance(request, McpApprovalRequest), "without require_approval each call waits"
        answer = await tenant.responses.create(asked(tools, second, resp=waiting.id, item=request.id))
        called = next(item for item in answer.output if isinstance(item, McpCall))
        assert (called.approval_request_id, called.output) == (request.id, "Rain in Nara.")
