"""The client's word on calls that waited for it: what it approved is called once, and only what was really asked."""

from __future__ import annotations

from collections.abc import Sequence

from nagaya.context.items import Item
from nagaya.context.mcp_tools import McpTools
from nagaya.context.server_tools import Toolbox
from nagaya.context.tool_items import McpApprovalRequest, McpApprovalResponse
from nagaya.context.turns import mcp_name
from nagaya.errors import InvalidValue, NotFound
from nagaya.models.driver import ToolCall


def approved_calls(toolbox: Toolbox, before: Sequence[Item], own: Sequence[Item]) -> list[ToolCall]:
    """The calls that the request's own input approves, of those that the history before it asked about.

    Raises ``NotFound`` for an approval of what that history does not hold, ``InvalidValue`` for a second answer and for
    a server that the request does not name.
    """
    servers = {tool.label: tool for tool in toolbox.tools if isinstance(tool, McpTools)}
    asked = {item.id: item for item in before if isinstance(item, McpApprovalRequest)}
    answered = {item.approval_request_id for item in before if isinstance(item, McpApprovalResponse)}
    calls = []
    for number, item in enumerate(own):
        if not isinstance(item, McpApprovalResponse):
            continue
        place = f"input[{number}].approval_request_id"
        request = asked.get(item.approval_request_id)
        if request is None:
            raise NotFound("item", param=place)
        if request.id in answered:
            raise InvalidValue(param=place, at=place, detail="this request was answered before")
        answered.add(request.id)
        if not item.approve:
            continue
        server = servers.get(request.server_label)
        if server is None:
            raise InvalidValue(param="tools", at="tools", detail=f"no tool with server_label '{request.server_label}'")
        server.approve([request])
        calls.append(ToolCall(request.id, mcp_name(request.server_label, request.name), request.arguments))
    return calls
