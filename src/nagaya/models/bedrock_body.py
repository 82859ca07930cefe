"""A model request as Bedrock's Converse wants it, and Converse's events as a model's.

Converse is stricter than the APIs of OpenAI's kind: user and assistant take turns, no text is blank, every call is
followed by its result and every result stands behind its call, names are of 64 plain characters, and blocks of calls
are only for those who offer tools. What does not fit is written as text, so that a conversation goes on with any model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from nagaya.errors import AnswerNotUnderstood, ModelRefusedRequest
from nagaya.models.driver import FunctionTool, ModelEvent, ModelRequest, TextDelta, ToolCallDelta, Turn, Usage
from nagaya.models.shapes import chat_response_format, chat_tool_choice

_IMAGE: Final = re.compile(r"data:image/(png|jpe?g|gif|webp);base64,", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")
_OMITTED: Final = "…"
_JSON: Final = "Answer with one JSON object and nothing else."
_NO_OUTPUT: Final = "(no output)"
_REASONS: Final[dict[str, Literal["stop", "length", "tool_calls", "content_filter"]]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


class Asked(NamedTuple):
    """A request of Converse or ConverseStream, and the functions' own names by the names that they have in it."""

    body: dict[str, Any]
    names: dict[str, str]


def converse_body(request: ModelRequest, model: str) -> Asked:
    """The parameters of Converse. What the request leaves to the model is left out.

    ``seed``, ``user``, ``reasoning_effort`` and ``parallel_tool_calls`` have no place in Converse and are left out
    too; ``temperature`` above 1 is 1 there. Raises ``ModelRefusedRequest`` for an image that is no ``data:`` URL.
    """
    tools, choice = _tools(request)
    body: dict[str, Any] = {"modelId": model, "messages": _messages(request.turns, with_tools=bool(tools))}
    system = [{"text": turn.text} for turn in request.turns if _is_system(turn) and turn.text.strip()]
    wanted = chat_response_format(request.response_format)
    if wanted is not None and wanted.get("type") == "json_schema":
        body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": _schema(wanted)}}}
    elif wanted is not None:
        system.append({"text": _JSON})
    if system:
        body["system"] = system
    inference = {
        "maxTokens": request.max_output_tokens,
        "temperature": None if request.temperature is None else min(request.temperature, 1.0),
        "topP": request.top_p,
        "stopSequences": [mark for mark in request.stop if mark] or None,
    }
    inference = {name: value for name, value in inference.items() if value is not None}
    if inference:
        body["inferenceConfig"] = inference
    if tools:
        body["toolConfig"] = {"tools": [_tool(tool) for tool in tools]} | ({"toolChoice": choice} if choice else {})
    return Asked(body, {_fit(tool.name): tool.name for tool in tools})


def _tools(request: ModelRequest) -> tuple[Sequence[FunctionTool], dict[str, Any] | None]:
    """The functions to offer, and Converse's word for the choice among them."""
    choice = chat_tool_choice(request.tool_choice)
    if choice == "none":
        return (), None
    if choice == "required":
        return request.tools, {"any": {}}
    if not isinstance(choice, dict):
        return request.tools, None
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools") or {}
        names = {(tool.get("function") or {}).get("name") for tool in inner.get("tools", ())}
        allowed = tuple(tool for tool in request.tools if tool.name in names)
        return allowed, {"any": {}} if inner.get("mode") == "required" and allowed else None
    name = (choice.get("function") or {}).get("name")
    return request.tools, {"tool": {"name": _fit(name)}} if isinstance(name, str) else None


def _tool(tool: FunctionTool) -> dict[str, Any]:
    # `strict` is left out: most models refuse it, and many clients set it without needing it.
    spec: dict[str, Any] = {
        "name": _fit(tool.name),
        "inputSchema": {"json": {"type": "object"} | (tool.parameters or {})},
    }
    if tool.description:
        spec["description"] = tool.description
    return {"toolSpec": spec}


def _schema(wanted: Mapping[str, Any]) -> dict[str, str]:
    given = wanted.get("json_schema") or {}
    schema = {"schema": msgspec.json.encode(given.get("schema") or {"type": "object"}).decode()}
    return schema | {name: given[name] for name in ("name", "description") if isinstance(given.get(name), str)}


def _fit(name: str) -> str:
    """A name or an id in Bedrock's letters: always the same for the same, and never the same for two."""
    if _NAME.fullmatch(name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12]
    return f"{_UNFIT.sub('_', name)[:51]}_{mark}"


# --- messages ---------------------------------------------------------------------------------------------------


def _is_system(turn: Turn) -> bool:
    return turn.role in ("system", "developer")


def _messages(turns: Iterable[Turn], *, with_tools: bool) -> list[dict[str, Any]]:
    spoken = (turn for turn in turns if not _is_system(turn))
    groups = [(role, list(group)) for role, group in itertools.groupby(spoken, key=lambda turn: turn.role)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": []}]
    pairs: set[str] = set()
    for at, (role, group) in enumerate(groups):
        if role == "assistant":
            after = groups[at + 1] if at + 1 < len(groups) else ("", [])
            answered = {turn.tool_call_id for turn in after[1]} if with_tools and after[0] == "tool" else set()
            called = [call.call_id for turn in group for call in turn.tool_calls]
            pairs = {call_id for call_id in called if call_id in answered}
            content = _assistant(group, pairs)
        elif role == "tool":
            content = _results(group, pairs)
        else:
            pairs = set()
            content = [block for turn in group for block in _user(turn)]
        speaker = "assistant" if role == "assistant" else "user"
        if content and messages[-1]["role"] != speaker:
            messages.append({"role": speaker, "content": content})
        else:
            messages[-1]["content"] += content
    if not messages[0]["content"]:
        # A conversation begins with a user, even where its beginning was left out.
        messages[0]["content"].append({"text": _OMITTED})
    return messages


def _assistant(turns: Iterable[Turn], pairs: set[str]) -> list[dict[str, Any]]:
    texts: list[str] = []
    calls: dict[str, dict[str, Any]] = {}
    for turn in turns:
        texts.append(turn.text)
        for call in turn.tool_calls:
            if call.call_id in pairs and call.call_id not in calls:
                use = {"toolUseId": _fit(call.call_id), "name": _fit(call.name), "input": _object(call.arguments)}
                calls[call.call_id] = {"toolUse": use}
            else:
                texts.append(f"[called {call.name} with {call.arguments}]")
    return [*_texts(texts), *calls.values()]


def _results(turns: Iterable[Turn], pairs: set[str]) -> list[dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    texts: list[str] = []
    for turn in turns:
        call_id = turn.tool_call_id or ""
        if call_id in pairs and call_id not in results:
            content = [{"text": turn.text if turn.text.strip() else _NO_OUTPUT}]
            results[call_id] = {"toolResult": {"toolUseId": _fit(call_id), "content": content}}
        else:
            texts.append(f"[a function gave: {turn.text}]")
    return [*results.values(), *_texts(texts)]


def _user(turn: Turn) -> list[dict[str, Any]]:
    return [*_texts((turn.text,)), *({"image": _image(url)} for url in turn.images)]


def _texts(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts if text.strip()]


def _image(url: str) -> dict[str, Any]:
    head = _IMAGE.match(url)
    if head is None:
        raise ModelRefusedRequest(detail="images as data: URLs of PNG, JPEG, GIF or WebP only")
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ModelRefusedRequest(detail="an image that is not base64") from None
    return {"format": "jpeg" if head[1].lower() == "jpg" else head[1].lower(), "source": {"bytes": content}}


def _object(arguments: str) -> dict[str, Any]:
    """A call's arguments as the object that Converse wants; what a model wrote wrongly is kept as it is, in one."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


# --- events -----------------------------------------------------------------------------------------------------


class Reading:
    """What the events of one answer have told so far."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._calls: dict[int, list[Any]] = {}
        self.reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None
        self.usage = Usage(0, 0, estimated=True)

    def events(self, event: Mapping[str, Any]) -> list[ModelEvent]:
        """One event of ConverseStream. Raises ``AnswerNotUnderstood`` for what is none, and for a malformed answer."""
        if "contentBlockDelta" in event:
            return self._delta(event["contentBlockDelta"])
        if "contentBlockStart" in event:
            begun = event["contentBlockStart"]
            return self._begin(begun.get("contentBlockIndex", 0), (begun.get("start") or {}).get("toolUse"))
        if "contentBlockStop" in event:
            call = self._calls.get(event["contentBlockStop"].get("contentBlockIndex", 0))
            # A call without arguments has no text of any; it is the empty object elsewhere.
            return [ToolCallDelta(call[0], arguments="{}")] if call and not call[1] else []
        if "messageStop" in event:
            reason = event["messageStop"].get("stopReason", "")
            if reason.startswith("malformed_"):
                raise AnswerNotUnderstood(kind=reason)
            self.reason = _REASONS.get(reason, "stop")
        elif "metadata" in event:
            self.usage = _usage(event["metadata"].get("usage") or {})
        return []

    def _begin(self, block: int, use: Mapping[str, Any] | None) -> list[ModelEvent]:
        if use is None:
            return []
        call = self._calls[block] = [len(self._calls), False]
        name = use["name"]
        return [ToolCallDelta(call[0], use["toolUseId"], self._names.get(name, name))]

    def _delta(self, piece: Mapping[str, Any]) -> list[ModelEvent]:
        delta = piece.get("delta")
        if delta is None:
            # What botocore cannot parse it passes on empty; the answer would lack a piece that nobody missed.
            raise AnswerNotUnderstood(kind="an event without its content")
        call = self._calls.get(piece.get("contentBlockIndex", 0))
        arguments = (delta.get("toolUse") or {}).get("input")
        if call is not None and arguments:
            call[1] = True
            return [ToolCallDelta(call[0], arguments=arguments)]
        return [TextDelta(delta["text"])] if delta.get("text") else []


def whole_events(answer: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The answer of Converse as the events in which ConverseStream would have sent it."""
    for at, block in enumerate(answer["output"]["message"]["content"]):
        use = block.get("toolUse")
        if use is not None:
            yield {"contentBlockStart": {"start": {"toolUse": use}, "contentBlockIndex": at}}
            delta: dict[str, Any] = {"toolUse": {"input": msgspec.json.encode(use.get("input") or {}).decode()}}
        else:
            delta = block
        yield {"contentBlockDelta": {"delta": delta, "contentBlockIndex": at}}
        yield {"contentBlockStop": {"contentBlockIndex": at}}
    yield {"messageStop": {"stopReason": answer["stopReason"]}}
    yield {"metadata": {"usage": answer.get("usage")}}


def _usage(counted: Mapping[str, int]) -> Usage:
    # Bedrock counts what came from and went to its cache apart; elsewhere it is part of the input.
    read, written = counted.get("cacheReadInputTokens", 0), counted.get("cacheWriteInputTokens", 0)
    return Usage(counted.get("inputTokens", 0) + read + written, counted.get("outputTokens", 0), read)
