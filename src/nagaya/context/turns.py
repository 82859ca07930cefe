"""From items to the turns a model is sent."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from nagaya.context.items import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    Item,
    Message,
    Refusal,
)
from nagaya.context.tool_items import FileSearchCall, McpApprovalRequest, McpApprovalResponse, McpCall
from nagaya.errors import InvalidType, InvalidValue, MissingParameter
from nagaya.models.driver import FunctionTool, ToolCall, Turn

FILE_SEARCH: Final = "file_search"
encode: Final = msgspec.json.Encoder().encode


def turns_of(
    items: Iterable[Item], results: Mapping[str, str] = MappingProxyType({}), known: Container[str] = frozenset()
) -> list[Turn]:
    """The items as turns, in order; function calls made together become one assistant's turn.

    A server's tool that the request has again is shown with its calls and what came of them (``results``, by item);
    ``known`` are the names of its functions. Of others only the answers stay: vendors refuse calls of unknown tools.
    """
    turns: list[Turn] = []
    requests: dict[str, McpApprovalRequest] = {}
    for item in items:
        if isinstance(item, Message):
            refusals = "".join(part.refusal for part in item.content if isinstance(part, Refusal))
            images = tuple(
                part.image_url for part in item.content if isinstance(part, InputImage) and part.image_url is not None
            )
            turns.append(Turn(role=item.role, text=item.text + refusals, images=images))
        elif isinstance(item, FunctionCall):
            call = ToolCall(call_id=item.call_id, name=item.name, arguments=item.arguments)
            last = turns[-1] if turns else None
            if last is not None and last.role == "assistant" and last.tool_calls:
                turns[-1] = Turn(role="assistant", text=last.text, tool_calls=(*last.tool_calls, call))
            else:
                turns.append(Turn(role="assistant", text="", tool_calls=(call,)))
        elif isinstance(item, FunctionCallOutput):
            turns.append(Turn(role="tool", text=item.text, tool_call_id=item.call_id))
        elif isinstance(item, FileSearchCall) and FILE_SEARCH in known and item.id in results:
            asked = encode({"query": " ".join(item.queries)}).decode()
            turns += tool_turns(ToolCall(item.id, FILE_SEARCH, asked), results[item.id])
        elif isinstance(item, McpCall) and mcp_name(item.server_label, item.name) in known:
            call = ToolCall(item.id, mcp_name(item.server_label, item.name), item.arguments)
            turns += tool_turns(call, item.output if item.output is not None else item.error or "")
        elif isinstance(item, McpApprovalRequest):
            requests[item.id] = item
        elif isinstance(item, McpApprovalResponse) and not item.approve:
            asked_for = requests.get(item.approval_request_id)
            name = "" if asked_for is None else mcp_name(asked_for.server_label, asked_for.name)
            if asked_for is not None and name in known:
                said = f"Error: The user did not approve this call. {item.reason or ''}".strip()
                turns += tool_turns(ToolCall(asked_for.id, name, asked_for.arguments), said)
    return turns


def tool_turns(call: ToolCall, told: str) -> list[Turn]:
    """A call and its result, as a model is shown them."""
    return [
        Turn(role="assistant", text="", tool_calls=(call,)),
        Turn(role="tool", text=told, tool_call_id=call.call_id),
    ]


def mcp_name(server_label: str, tool: str) -> str:
    """The function name under which a model calls an MCP server's tool."""
    return f"{server_label}__{tool}"


def function_tool(tool: Any, at: str, *, nested: bool) -> FunctionTool:
    """A function tool as a client describes it: flat in the Responses API, nested under ``function`` in chat."""
    if not isinstance(tool, dict):
        raise InvalidType(param=at, at=at, detail="expected an object")
    if tool.get("type") != "function":
        raise InvalidValue(param=f"{at}.type", at=f"{at}.type", detail="only 'function' tools are supported here")
    given = tool.get("function") if nested else tool
    if not isinstance(given, dict):
        raise MissingParameter(param=f"{at}.function", at=f"{at}.function")
    name, description = given.get("name"), given.get("description")
    parameters, strict = given.get("parameters"), given.get("strict")
    if not isinstance(name, str) or not 1 <= len(name) <= 128:
        raise InvalidValue(param=f"{at}.name", at=f"{at}.name", detail="expected 1 to 128 characters")
    if description is not None and not isinstance(description, str):
        raise InvalidType(param=f"{at}.description", at=f"{at}.description", detail="expected a string")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidType(param=f"{at}.parameters", at=f"{at}.parameters", detail="expected a JSON Schema object")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidType(param=f"{at}.strict", at=f"{at}.strict", detail="expected a boolean")
    return FunctionTool(name=name, description=description, parameters=parameters, strict=strict)


def tool_choice(given: Any, at: str = "tool_choice") -> str | dict[str, Any] | None:
    """The choice in the chat form: ``none``, ``auto``, ``required`` or one function by name."""
    if given is None or given in ("none", "auto", "required"):
        return given if isinstance(given, str) else None
    if isinstance(given, dict) and given.get("type") == "function":
        function = given.get("function")
        name = given.get("name") or (function.get("name") if isinstance(function, dict) else None)
        if isinstance(name, str):
            return {"type": "function", "function": {"name": name}}
    if isinstance(given, dict) and given.get("type") == FILE_SEARCH:
        return {"type": "function", "function": {"name": FILE_SEARCH}}
    if isinstance(given, dict) and given.get("type") == "mcp":
        label, name = given.get("server_label"), given.get("name")
        if isinstance(label, str) and isinstance(name, str):
            return {"type": "function", "function": {"name": mcp_name(label, name)}}
    raise InvalidValue(param=at, at=at, detail="expected 'none', 'auto', 'required' or one function tool")
