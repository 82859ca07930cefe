"""The client's word on calls that waited for it: what it approved is called once, and only what was really asked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.items import Item
from nagaya.context.mcp_tools import McpTools
from nagaya.context.places import approval_sort, partition_of
from nagaya.context.server_tools import RUN_S, Toolbox
from nagaya.context.tool_items import McpApprovalRequest, McpApprovalResponse
from nagaya.context.turns import mcp_name
from nagaya.errors import ConditionFailed, InvalidValue, NotFound
from nagaya.models.driver import ToolCall
from nagaya.records.sealed_store import ABSENT, Delete, Put

_TAKEN_US: Final = 2 * int(RUN_S) * 1_000_000
"""How long nobody else makes a call, where whoever was to make it says nothing more: longer than any run takes."""
_ANSWERED: Final = "this request was answered before"


class _Taken(msgspec.Struct):
    """Which response makes a call, and until when no other may."""

    by: str
    until_us: int


_taken_decoder: Final = msgspec.json.Decoder(_Taken)


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
            raise InvalidValue(param=place, at=place, detail=_ANSWERED)
        answered.add(request.id)
        if not item.approve:
            continue
        server = servers.get(request.server_label)
        if server is None:
            raise InvalidValue(param="tools", at="tools", detail=f"no tool with server_label '{request.server_label}'")
        server.approve([request])
        calls.append(ToolCall(request.id, mcp_name(request.server_label, request.name), request.arguments))
    return calls


async def take(session: TenantSession, conversation_id: str, calls: Sequence[ToolCall], response_id: str) -> None:
    """Note that this response makes these calls, so that no request that approves them at the same time does it too.

    Raises ``InvalidValue`` where another one makes one of them, or has made it. May be repeated for the same response.
    """
    records, partition, now_us = session.records, partition_of(conversation_id), session.clock.now_us()
    place = "input.approval_request_id"
    sorts = [approval_sort(call.call_id) for call in calls]
    there = await records.get_many(partition, sorts)
    for record in there:
        if record is not None:
            taken = _taken_decoder.decode(record.body)
            if taken.by != response_id and taken.until_us > now_us:
                raise InvalidValue(param=place, at=place, detail=_ANSWERED)
    mark = msgspec.json.encode(_Taken(response_id, now_us + _TAKEN_US))
    try:
        await records.write(
            partition,
            [
                Put(sort, mark, ABSENT if record is None else record.revision)
                for sort, record in zip(sorts, there, strict=True)
            ],
        )
    except ConditionFailed:
        raise InvalidValue(param=place, at=place, detail=_ANSWERED) from None


async def give_back(session: TenantSession, conversation_id: str, calls: Sequence[ToolCall], response_id: str) -> None:
    """Let these calls be approved again: nothing of this response came into the conversation. May be repeated."""
    records, partition = session.records, partition_of(conversation_id)
    there = await records.get_many(partition, [approval_sort(call.call_id) for call in calls])
    mine = [row for row in there if row is not None and _taken_decoder.decode(row.body).by == response_id]
    if mine:
        with contextlib.suppress(ConditionFailed):
            await records.write(partition, [Delete(row.sort, row.revision) for row in mine])
