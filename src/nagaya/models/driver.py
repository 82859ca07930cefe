"""The model port: a request goes in, a stream of events comes out; a plain answer is a stream that was collected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A function call the model asks for. ``arguments`` is the model's JSON text, unparsed."""

    call_id: str
    name: str
    arguments: str


class Turn(msgspec.Struct, frozen=True):
    """One turn of the context sent to a model.

    ``text`` is plain text. ``tool_calls`` belong to an assistant's turn; ``tool_call_id`` to a ``tool`` turn.
    ``images`` are data or https URLs of a user's turn.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[str, ...] = ()


class FunctionTool(msgspec.Struct, frozen=True):
    """A function the model may call: JSON Schema in ``parameters``."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ModelRequest(msgspec.Struct, frozen=True):
    """What is asked of a model. ``None`` leaves a choice to the model's own default."""

    turns: tuple[Turn, ...]
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    user: str | None = None


class TextDelta(msgspec.Struct, frozen=True):
    """More text of the answer."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a function call. ``index`` tells calls of one answer apart; id and name come with the first piece."""

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call. ``estimated`` where the model did not count and Nagaya did."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


class Finished(msgspec.Struct, frozen=True):
    """The last event of every stream that was not cut: why it ended, what it used, which model answered."""

    reason: Literal["stop", "length", "tool_calls", "content_filter"]
    usage: Usage
    model: str


ModelEvent = TextDelta | ToolCallDelta | Finished


class ModelDriver(Protocol):
    """One model of one tenant's account. Raises the ``Model…`` errors of :mod:`nagaya.errors` or the vendor's own."""

    name: str
    """The model's id as clients see it in ``/v1/models``."""

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Answer; events in order, ``Finished`` last. Closing the iterator early cancels the call at the vendor."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class EmbeddingDriver(Protocol):
    """An optional power: turns texts into vectors."""

    name: str
    dimensions: int

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A unit vector per text, in order, and the tokens used."""
        ...
