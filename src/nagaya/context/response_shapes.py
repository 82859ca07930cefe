"""The Responses API's objects and stream events, as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from nagaya.context.items import FunctionCall, Item, ItemIn, Message, OutputText
from nagaya.models.driver import Usage

ResponseStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]


class ConversationRef(msgspec.Struct):
    id: str


class ResponseIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/responses``. Fields after ``user`` are known and refused when they are set."""

    input: str | list[ItemIn] | None = None
    model: str | None = None
    instructions: str | None = None
    conversation: str | ConversationRef | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    moderation: Any = None
    prompt: Any = None
    prompt_cache_options: Any = None


UNSUPPORTED = (
    "access_programs",
    "background_options",
    "context_management",
    "image",
    "moderation",
    "prompt",
    "prompt_cache_options",
)


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        return cls(
            usage.input_tokens,
            InputTokensDetails(usage.cached_tokens),
            usage.output_tokens,
            OutputTokensDetails(usage.reasoning_tokens),
            usage.input_tokens + usage.output_tokens,
        )


class ResponseError(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens", "content_filter"] | None = None


class Response(msgspec.Struct, kw_only=True):
    """A response: what was asked, how, and what was answered. Times are Unix seconds."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    conversation: ConversationRef | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool = True
    temperature: float | None = None
    text: dict[str, Any] = msgspec.field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}

    @property
    def output_text(self) -> str:
        """The text of all messages in the output, joined."""
        return "".join(item.text for item in self.output if isinstance(item, Message))


# --- events, in the order of their sequence numbers ---


class ResponseEvent(msgspec.Struct):
    """The response as a whole: created, in_progress, queued, completed, incomplete, failed."""

    type: str
    response: Response
    sequence_number: int


class OutputItemEvent(msgspec.Struct):
    type: str
    output_index: int
    item: Item
    sequence_number: int


class ContentPartEvent(msgspec.Struct):
    type: str
    item_id: str
    output_index: int
    content_index: int
    part: OutputText
    sequence_number: int


class TextDeltaEvent(msgspec.Struct):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    sequence_number: int
    logprobs: list[Any] = []
    type: str = "response.output_text.delta"


class TextDoneEvent(msgspec.Struct):
    item_id: str
    output_index: int
    content_index: int
    text: str
    sequence_number: int
    logprobs: list[Any] = []
    type: str = "response.output_text.done"


class ArgumentsDeltaEvent(msgspec.Struct):
    item_id: str
    output_index: int
    delta: str
    sequence_number: int
    type: str = "response.function_call_arguments.delta"


class ArgumentsDoneEvent(msgspec.Struct):
    item_id: str
    output_index: int
    name: str
    arguments: str
    sequence_number: int
    type: str = "response.function_call_arguments.done"


class ErrorEvent(msgspec.Struct):
    code: str | None
    message: str
    param: str | None
    sequence_number: int
    type: str = "error"


Event = (
    ResponseEvent
    | OutputItemEvent
    | ContentPartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
    | ErrorEvent
)


class EventWriter:
    """Makes a response's events, numbered, and builds its output from them."""

    def __init__(self, response: Response, *, first: int = 0) -> None:
        self.response = response
        self._number = first
        self._texts: list[str] = []

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def whole(self, name: str) -> ResponseEvent:
        """The response as it stands now: a copy, since the output goes on growing."""
        shown = msgspec.structs.replace(self.response, output=list(self.response.output))
        return ResponseEvent(f"response.{name}", shown, self._next())

    def open_message(self, item_id: str) -> list[Event]:
        """A new message in the output, with one empty part."""
        index = len(self.response.output)
        empty = Message(id=item_id, status="in_progress", role="assistant", content=[])
        self.response.output.append(Message(id=item_id, status="in_progress", role="assistant", content=[]))
        self._texts = []
        return [
            OutputItemEvent("response.output_item.added", index, empty, self._next()),
            ContentPartEvent("response.content_part.added", item_id, index, 0, OutputText(""), self._next()),
        ]

    def text(self, delta: str) -> TextDeltaEvent:
        self._texts.append(delta)
        index = len(self.response.output) - 1
        return TextDeltaEvent(self.response.output[index].id, index, 0, delta, self._next())

    def close_message(self, status: Literal["completed", "incomplete"] = "completed") -> list[Event]:
        index = len(self.response.output) - 1
        message = self.response.output[index]
        assert isinstance(message, Message)
        part = OutputText("".join(self._texts))
        message.content, message.status = [part], status
        return [
            TextDoneEvent(message.id, index, 0, part.text, self._next()),
            ContentPartEvent("response.content_part.done", message.id, index, 0, part, self._next()),
            OutputItemEvent("response.output_item.done", index, message, self._next()),
        ]

    def open_call(self, item_id: str, call_id: str, name: str) -> OutputItemEvent:
        index = len(self.response.output)
        call = FunctionCall(id=item_id, call_id=call_id, name=name, arguments="", status="in_progress")
        self.response.output.append(call)
        shown = FunctionCall(id=item_id, call_id=call_id, name=name, arguments="", status="in_progress")
        return OutputItemEvent("response.output_item.added", index, shown, self._next())

    def arguments(self, index: int, delta: str) -> ArgumentsDeltaEvent:
        call = self.response.output[index]
        assert isinstance(call, FunctionCall)
        call.arguments += delta
        return ArgumentsDeltaEvent(call.id, index, delta, self._next())

    def close_call(self, index: int, status: Literal["completed", "incomplete"] = "completed") -> list[Event]:
        call = self.response.output[index]
        assert isinstance(call, FunctionCall)
        call.status = status
        return [
            ArgumentsDoneEvent(call.id, index, call.name, call.arguments, self._next()),
            OutputItemEvent("response.output_item.done", index, call, self._next()),
        ]

    def error(self, code: str | None, message: str) -> ErrorEvent:
        return ErrorEvent(code, message, None, self._next())


def replay(response: Response) -> Iterator[Event]:
    """The events of a response that is already there, as a stream of it would have had them (one delta a text)."""
    output: Sequence[Item] = response.output
    began = msgspec.structs.replace(
        response, status="in_progress", output=[], usage=None, completed_at=None, error=None, incomplete_details=None
    )
    writer = EventWriter(began)
    yield writer.whole("created")
    yield writer.whole("in_progress")
    for item in output:
        if isinstance(item, Message):
            yield from writer.open_message(item.id)
            yield writer.text(item.text)
            yield from writer.close_message("completed" if item.status == "completed" else "incomplete")
        elif isinstance(item, FunctionCall):
            yield writer.open_call(item.id, item.call_id, item.name)
            index = len(writer.response.output) - 1
            yield writer.arguments(index, item.arguments)
            yield from writer.close_call(index, "completed" if item.status == "completed" else "incomplete")
    writer.response = response
    yield writer.whole(response.status if response.status in ("completed", "failed", "incomplete") else "incomplete")
