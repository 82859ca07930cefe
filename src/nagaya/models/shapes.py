"""The two shapes in which OpenAI's APIs write the same wish, and the smallest value that fits a JSON Schema.

Chat completions nests (``{"type": "function", "function": {"name": …}}``); responses is flat
(``{"type": "function", "name": …}``). A model request may carry either.
"""

from __future__ import annotations

from typing import Any, Final

from nagaya.models.driver import FunctionTool, ModelRequest

_DEPTH: Final = 16


def chat_tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """``tool_choice`` as chat completions writes it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and "allowed_tools" not in choice:
        tools = [chat_tool_choice(tool) for tool in choice.get("tools", ())]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": tools}}
    return choice


def chat_response_format(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    """``response_format`` as chat completions writes it; None for plain text."""
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_schema" and "json_schema" not in wanted:
        return {"type": "json_schema", "json_schema": {key: value for key, value in wanted.items() if key != "type"}}
    return wanted


def forced_tool(request: ModelRequest) -> FunctionTool | None:
    """The function that the request forces a model to call, or None where it leaves the choice."""
    choice = chat_tool_choice(request.tool_choice)
    allowed = [tool.name for tool in request.tools]
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            inner = choice.get("allowed_tools") or {}
            if inner.get("mode") != "required":
                return None
            allowed = [tool.get("function", {}).get("name") for tool in inner.get("tools", ())]
        else:
            allowed = [choice.get("function", {}).get("name")]
    elif choice != "required":
        return None
    return next((tool for tool in request.tools if tool.name in allowed), None)


def smallest(schema: object, text: str) -> Any:
    """A small value that fits a JSON Schema, with ``text`` where it wants a string.

    Knows ``type``, ``enum``, ``const``, ``properties``, ``required``, ``anyOf``, ``minimum`` and ``minItems``; what
    is nested deeper than 16 levels becomes null. An object gets its required properties, or its first where none is.
    """
    return _smallest(schema, text, _DEPTH)


def _smallest(schema: object, text: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth == 0:
        return None
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list) and schema[union]:
            return _smallest(schema[union][0], text, depth - 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    match kind:
        case "string":
            return text
        case "integer" | "number":
            minimum = schema.get("minimum", 0)
            return minimum if isinstance(minimum, int | float) else 0
        case "boolean":
            return False
        case "array":
            count = schema.get("minItems", 0)
            return [_smallest(schema.get("items"), text, depth - 1)] * (min(count, 8) if isinstance(count, int) else 0)
        case "null":
            return None
        case _:
            return _object(schema, text, depth)


def _object(schema: dict[str, Any], text: str, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        return {}
    required = [name for name in schema.get("required") or () if name in properties] or [next(iter(properties))]
    return {name: _smallest(properties[name], text, depth - 1) for name in required}
