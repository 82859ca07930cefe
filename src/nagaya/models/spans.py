"""What a trace tells of a model's call, by the names of OpenTelemetry's semantic conventions for generative AI.

Always: which model of whom, how it was asked, how much it took, why it ended. What was said only with ``content``,
which is off unless the operator sets ``telemetry_content``. Never: keys, who asked, a vendor's error text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from nagaya.errors import NagayaError
from nagaya.models.address import ModelAddress
from nagaya.models.driver import Finished, FunctionTool, ModelRequest, ToolCall, Turn

PROVIDERS: Final = {
    "builtin": "nagaya", "openai": "openai", "azure-openai": "azure.ai.openai", "bedrock": "aws.bedrock",
}  # fmt: skip
"""``gen_ai.provider.name`` by the kind of a model's address; the conventions' own names where they have one."""

ToolKind = Literal["function", "extension", "datastore"]
"""``gen_ai.tool.type``: a function of the program's, somebody else's tool, a search in documents."""

_FINISH_REASONS: Final = {"tool_calls": "tool_call"}


class Origin(NamedTuple):
    """Where a model is: its provider's name and the server that is asked (none for a model of this process), and
    whether traces may hold what is said to it."""

    provider: str = "nagaya"
    host: str = ""
    port: int = 0
    content: bool = False

    @classmethod
    def of(cls, url: str, address: ModelAddress, *, content: bool) -> Origin:
        """The origin of a tenant's model by its address."""
        provider = PROVIDERS.get(address.kind) or url.partition("://")[0]
        return cls(provider, address.host, address.port, content)


def begin_answer(tracer: Tracer, model: str, request: ModelRequest, origin: Origin) -> Span:
    """The span of one answer. Not made the current one."""
    span = _begin(tracer, "chat", model, origin)
    if not span.is_recording():
        return span
    for name, value in (
        ("gen_ai.request.temperature", request.temperature),
        ("gen_ai.request.top_p", request.top_p),
        ("gen_ai.request.max_tokens", request.max_output_tokens),
        ("gen_ai.request.seed", request.seed),
        ("gen_ai.request.stop_sequences", request.stop or None),
        ("gen_ai.output.type", _output_type(request)),
    ):
        if value is not None:
            span.set_attribute(name, value)
    if origin.content:
        instructions = [turn for turn in request.turns if turn.role in ("system", "developer")]
        said = [turn for turn in request.turns if turn.role not in ("system", "developer")]
        if instructions:
            parts = [part for turn in instructions for part in _parts(turn)]
            span.set_attribute("gen_ai.system_instructions", _json(parts))
        span.set_attribute(
            "gen_ai.input.messages", _json([{"role": turn.role, "parts": _parts(turn)} for turn in said])
        )
        if request.tools:
            span.set_attribute("gen_ai.tool.definitions", _json(list(map(_definition, request.tools))))
    return span


def first_came(span: Span, after_s: float) -> None:
    """The first piece of the answer is there, so many seconds after it was asked for."""
    span.set_attribute("gen_ai.response.time_to_first_chunk", after_s)


def answered(span: Span, finished: Finished, text: str, calls: Sequence[ToolCall], origin: Origin) -> None:
    """The answer is whole."""
    if not span.is_recording():
        return
    usage = finished.usage
    span.set_attribute("gen_ai.response.model", finished.model)
    span.set_attribute("gen_ai.response.finish_reasons", (finished.reason,))
    span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
    if usage.cached_tokens:
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
    if usage.reasoning_tokens:
        span.set_attribute("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens)
    if origin.content:
        reason = _FINISH_REASONS.get(finished.reason, finished.reason)
        parts = _parts(Turn("assistant", text, tool_calls=tuple(calls)))
        said = [{"role": "assistant", "parts": parts, "finish_reason": reason}]
        span.set_attribute("gen_ai.output.messages", _json(said))


def begin_embeddings(tracer: Tracer, model: str, dimensions: int, origin: Origin) -> Span:
    """The span of one call of an embedding model. What is embedded is never told."""
    span = _begin(tracer, "embeddings", model, origin)
    span.set_attribute("gen_ai.embeddings.dimension.count", dimensions)
    return span


def embedded(span: Span, model: str, tokens: int) -> None:
    """The vectors are there."""
    span.set_attribute("gen_ai.response.model", model)
    span.set_attribute("gen_ai.usage.input_tokens", tokens)


def begin_tool(tracer: Tracer, call: ToolCall, kind: ToolKind, *, content: bool) -> Span:
    """The span of one call of a tool that runs here. Not made the current one."""
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call.name,
        "gen_ai.tool.call.id": call.call_id,
        "gen_ai.tool.type": kind,
    }
    span = tracer.start_span(f"execute_tool {call.name}", kind=SpanKind.INTERNAL, attributes=attributes)
    if content:
        span.set_attribute("gen_ai.tool.call.arguments", call.arguments)
    return span


def tool_ended(span: Span, output: str, *, has_failed: bool, content: bool) -> None:
    """The tool gave its answer, or said why it cannot."""
    if content:
        span.set_attribute("gen_ai.tool.call.result", output)
    if has_failed:
        span.set_attribute("error.type", "tool_failed")
        span.set_status(Status(StatusCode.ERROR, "tool_failed"))


def failed(span: Span, problem: BaseException) -> None:
    """The call failed: only of which kind is told, for a vendor's words may quote what was said."""
    kind = problem.code if isinstance(problem, NagayaError) else type(problem).__name__
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))


def _begin(tracer: Tracer, operation: str, model: str, origin: Origin) -> Span:
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": origin.provider,
        "gen_ai.request.model": model,
    }
    if origin.host:
        attributes["server.address"] = origin.host
        if origin.port:
            attributes["server.port"] = origin.port
    kind = SpanKind.CLIENT if origin.host else SpanKind.INTERNAL
    return tracer.start_span(f"{operation} {model}", kind=kind, attributes=attributes)


def _output_type(request: ModelRequest) -> str | None:
    if request.response_format is None:
        return None
    return "text" if request.response_format.get("type") == "text" else "json"


def _parts(turn: Turn) -> list[dict[str, Any]]:
    if turn.role == "tool":
        return [{"type": "tool_call_response", "id": turn.tool_call_id, "response": turn.text}]
    parts: list[dict[str, Any]] = [{"type": "text", "content": turn.text}] if turn.text else []
    # A picture itself may be megabytes: where it is inside the message, only that there is one.
    parts += [
        {"type": "uri", "modality": "image", "uri": "data:" if image.startswith("data:") else image}
        for image in turn.images
    ]
    return parts + [
        {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": call.arguments}
        for call in turn.tool_calls
    ]


def _definition(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
