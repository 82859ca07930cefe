"""The Responses API's objects and stream events, as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from nagaya.context.items import FunctionCall, FunctionCallOutput, Item, ItemIn, Message, OutputText
from nagaya.context.recollection import MemoriesIn, MemoryRef
from nagaya.context.tool_items import FileSearchCall, McpApprovalRequest, McpCall, McpListTools, ToolItem
from nagaya.errors import NagayaError
from nagaya.models.driver import Usage

ResponseStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]


ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class ConversationRef(msgspec.Struct):
    id: str


class ReasoningIn(msgspec.Struct, forbid_unknown_fields=True):
    """What may stand under ``reasoning``."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class _PlainText(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    pass


class _JsonObject(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    pass


class _JsonSchema(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextIn(msgspec.Struct, forbid_unknown_fields=True):
    """What may stand under ``text``."""

    format: _PlainText | _JsonObject | _JsonSchema | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptionsIn(msgspec.Struct, forbid_unknown_fields=True):
    """What may stand under ``stream_options``."""

    include_obfuscation: bool | None = None


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
    include: list[Includable] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: ServiceTier | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    max_steps: int | None = None
    """Nagaya's own: how often the model may be asked in a run with tools of the server."""
    memories: bool | MemoriesIn | None = None
    """Nagaya's own: whether memories that fit the question are sent to the model before the conversation."""
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
    """Why a response failed. ``code`` is one of OpenAI's; ``type`` is Nagaya's own, for programs to branch on."""

    code: str
    message: str
    type: str | None = None
    param: str | None = None

    @classmethod
    def of(cls, problem: NagayaError, language: str) -> ResponseError:
        """The error as a response shows it and keeps it, in ``en`` or ``ja``."""
        code = _ERROR_CODES.get(problem.type, "server_error")
        return cls(code, problem.message(language), problem.code, problem.param)


_ERROR_CODES = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}


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
    memories: list[MemoryRef] | msgspec.UnsetType = msgspec.UNSET
    """The memories that the model was sent, where the request asked for them."""

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
    arguments: str
    sequence_number: int
    type: str = "response.function_call_arguments.done"


class AnnotationEvent(msgspec.Struct):
    annotation: dict[str, Any]
    annotation_index: int
    content_index: int
    item_id: str
    output_index: int
    sequence_number: int
    type: str = "response.output_text.annotation.added"


class ToolProgressEvent(msgspec.Struct):
    """How far a call of a server's tool has come."""

    type: str
    item_id: str
    output_index: int
    sequence_number: int


class McpArgumentsDeltaEvent(msgspec.Struct):
    delta: str
    item_id: str
    output_index: int
    sequence_number: int
    type: str = "response.mcp_call_arguments.delta"


class McpArgumentsDoneEvent(msgspec.Struct):
    arguments: str
    item_id: str
    output_index: int
    sequence_number: int
    type: str = "response.mcp_call_arguments.done"


_PROGRESS = {"i": "in_progress", "s": "searching", "c": "completed", "x": "failed"}
_TOLD_OF: dict[type, str] = {FileSearchCall: "file_search_call", McpCall: "mcp_call", McpListTools: "mcp_list_tools"}


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
    | AnnotationEvent
    | ToolProgressEvent
    | McpArgumentsDeltaEvent
    | McpArgumentsDoneEvent
    | ErrorEvent
)


class Telling(msgspec.Struct, omit_defaults=True):
    """What it takes to tell a response again in the very events of its first stream.

    ``pieces`` names the events between the first and the last, in order: ``m`` opens a message, a number is a text
    delta of so many characters, ``.`` closes the message, ``f`` opens a function call, ``a1:5`` is a delta of five
    characters of the arguments of output 1, ``F1`` closes that call. Of a server's tools ``t`` opens a call, ``p1:s``
    says how far the call of output 1 has come, ``b1`` tells its arguments, ``T1`` closes it, and ``r`` is the whole
    result of a function. ``model`` is the model that was asked, where
    another one answered.
    """

    pieces: str = ""
    model: str | None = None


class EventWriter:
    """Makes a response's events, numbered, and builds its output from them."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self._asked = response.model
        self._number = 0
        self._text = bytearray()
        self._pieces = bytearray()

    @property
    def telling(self) -> Telling:
        """How the response was told so far."""
        asked = None if self._asked == self.response.model else self._asked
        return Telling(self._pieces.decode().rstrip(), asked)

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def begin(self) -> Iterator[Event]:
        """The first events; one that is made in the background is queued for a moment."""
        if self.response.background:
            self.response.status = "queued"
            yield self.whole("created")
            yield self.whole("queued")
            self.response.status = "in_progress"
        else:
            yield self.whole("created")
        yield self.whole("in_progress")

    def end(self) -> ResponseEvent:
        """The last event, of a response that has its last state. OpenAI has no event for a cancelled one."""
        status = self.response.status
        return self.whole(status if status in ("completed", "failed") else "incomplete")

    def whole(self, name: str) -> ResponseEvent:
        """The response as it stands now: a copy, since the output goes on growing."""
        shown = msgspec.structs.replace(self.response, output=list(self.response.output))
        return ResponseEvent(f"response.{name}", shown, self._next())

    def open_message(self, item_id: str) -> list[Event]:
        """A new message in the output, with one empty part."""
        self._pieces += b"m "
        index = len(self.response.output)
        empty = Message(id=item_id, status="in_progress", role="assistant", content=[])
        self.response.output.append(Message(id=item_id, status="in_progress", role="assistant", content=[]))
        self._text = bytearray()
        return [
            OutputItemEvent("response.output_item.added", index, empty, self._next()),
            ContentPartEvent("response.content_part.added", item_id, index, 0, OutputText(""), self._next()),
        ]

    def text(self, delta: str) -> TextDeltaEvent:
        self._pieces += b"%d " % len(delta)
        self._text += delta.encode("utf-8", "surrogatepass")
        index = len(self.response.output) - 1
        return TextDeltaEvent(self.response.output[index].id, index, 0, delta, self._next())

    def show_text(self) -> None:
        """Put the text so far into the message that is open, where one is."""
        message = self.response.output[-1] if self.response.output else None
        if isinstance(message, Message) and message.status == "in_progress":
            message.content = [OutputText(self.open_text)]

    def close_message(
        self, status: Literal["completed", "incomplete"] = "completed", annotations: Sequence[Any] = ()
    ) -> list[Event]:
        self._pieces += b". "
        index = len(self.response.output) - 1
        message = self.response.output[index]
        assert isinstance(message, Message)
        part = OutputText(self.open_text, list(annotations))
        message.content, message.status = [part], status
        noted = [
            AnnotationEvent(note, number, 0, message.id, index, self._next()) for number, note in enumerate(annotations)
        ]
        return [
            *noted,
            TextDoneEvent(message.id, index, 0, part.text, self._next()),
            ContentPartEvent("response.content_part.done", message.id, index, 0, part, self._next()),
            OutputItemEvent("response.output_item.done", index, message, self._next()),
        ]

    @property
    def open_text(self) -> str:
        """The text of the message that is open."""
        return self._text.decode("utf-8", "surrogatepass")

    def open_tool(self, item: ToolItem) -> list[Event]:
        """A call of a server's tool in the output, as it looks when it begins."""
        self._pieces += b"t "
        index = len(self.response.output)
        self.response.output.append(item)
        opened: list[Event] = [OutputItemEvent("response.output_item.added", index, item.begun(), self._next())]
        return [*opened, *self._progress(index, "i")] if type(item) in _TOLD_OF else opened

    def _progress(self, index: int, code: str) -> list[Event]:
        item = self.response.output[index]
        name = f"response.{_TOLD_OF[type(item)]}.{_PROGRESS[code]}"
        return [ToolProgressEvent(name, item.id, index, self._next())]

    def tool_searches(self, index: int) -> list[Event]:
        """A search has begun to search."""
        self._pieces += b"p%d:s " % index
        return self._progress(index, "s")

    def tool_arguments(self, index: int, arguments: str) -> list[Event]:
        """The arguments of a remote tool's call, which are known as a whole."""
        self._pieces += b"b%d " % index
        item = self.response.output[index]
        return [
            McpArgumentsDeltaEvent(arguments, item.id, index, self._next()),
            McpArgumentsDoneEvent(arguments, item.id, index, self._next()),
        ]

    def close_tool(self, index: int, item: ToolItem) -> list[Event]:
        """The call has ended; ``item`` says how."""
        self._pieces += b"T%d " % index
        self.response.output[index] = item
        ended: list[Event] = []
        if type(item) in _TOLD_OF:
            failed = not isinstance(item, FileSearchCall | McpApprovalRequest) and item.error is not None
            ended = self._progress(index, "x" if failed else "c")
        return [*ended, OutputItemEvent("response.output_item.done", index, item, self._next())]

    def function_result(self, item: FunctionCallOutput) -> list[Event]:
        """What a function that the server called gave back."""
        self._pieces += b"r "
        index = len(self.response.output)
        self.response.output.append(item)
        return [
            OutputItemEvent("response.output_item.added", index, item, self._next()),
            OutputItemEvent("response.output_item.done", index, item, self._next()),
        ]

    def open_call(self, item_id: str, call_id: str, name: str) -> OutputItemEvent:
        self._pieces += b"f "
        index = len(self.response.output)
        call = FunctionCall(id=item_id, call_id=call_id, name=name, arguments="", status="in_progress")
        self.response.output.append(call)
        shown = FunctionCall(id=item_id, call_id=call_id, name=name, arguments="", status="in_progress")
        return OutputItemEvent("response.output_item.added", index, shown, self._next())

    def arguments(self, index: int, delta: str) -> ArgumentsDeltaEvent:
        self._pieces += b"a%d:%d " % (index, len(delta))
        call = self.response.output[index]
        assert isinstance(call, FunctionCall)
        call.arguments += delta
        return ArgumentsDeltaEvent(call.id, index, delta, self._next())

    def close_call(self, index: int, status: Literal["completed", "incomplete"] = "completed") -> list[Event]:
        self._pieces += b"F%d " % index
        call = self.response.output[index]
        assert isinstance(call, FunctionCall)
        call.status = status
        return [
            ArgumentsDoneEvent(call.id, index, call.arguments, self._next()),
            OutputItemEvent("response.output_item.done", index, call, self._next()),
        ]


def replay(response: Response, telling: Telling) -> Iterator[Event]:
    """The events of a response's stream once more, each as it was and with its number; those so far, where the
    response is still being made."""
    began = msgspec.structs.replace(
        response,
        status="in_progress",
        model=telling.model or response.model,
        output=[],
        usage=None,
        completed_at=None,
        error=None,
        incomplete_details=None,
    )
    writer = EventWriter(began)
    yield from writer.begin()
    said: dict[int, int] = {}
    for piece in telling.pieces.split():
        yield from _told(writer, piece, response.output, said)
    if response.status not in ("queued", "in_progress"):
        writer.response = response
        yield writer.end()


def _told(writer: EventWriter, piece: str, output: Sequence[Item], said: dict[int, int]) -> Iterator[Event]:
    """The events of one piece. ``said``: of each output item, how many characters were told."""
    opened = len(writer.response.output)
    if piece == "m":
        yield from writer.open_message(output[opened].id)
    elif piece == "f":
        call = output[opened]
        assert isinstance(call, FunctionCall)
        yield writer.open_call(call.id, call.call_id, call.name)
    elif piece == ".":
        message = output[opened - 1]
        assert isinstance(message, Message)
        notes = message.content[0].annotations if message.content and isinstance(message.content[0], OutputText) else ()
        yield from writer.close_message(_ended(message), notes)
    elif piece == "t":
        item = output[opened]
        assert isinstance(item, ToolItem)
        yield from writer.open_tool(item)
    elif piece == "r":
        result = output[opened]
        assert isinstance(result, FunctionCallOutput)
        yield from writer.function_result(result)
    elif piece[0] == "p":
        yield from writer.tool_searches(int(piece[1:].partition(":")[0]))
    elif piece[0] == "b":
        called = output[int(piece[1:])]
        assert isinstance(called, McpCall)
        yield from writer.tool_arguments(int(piece[1:]), called.arguments)
    elif piece[0] == "T":
        item = output[int(piece[1:])]
        assert isinstance(item, ToolItem)
        yield from writer.close_tool(int(piece[1:]), item)
    elif piece[0] == "F":
        index = int(piece[1:])
        call = output[index]
        assert isinstance(call, FunctionCall)
        yield from writer.close_call(index, _ended(call))
    elif piece[0] == "a":
        at, _, size = piece[1:].partition(":")
        call = output[int(at)]
        assert isinstance(call, FunctionCall)
        yield writer.arguments(int(at), _more(call.arguments, int(at), int(size), said))
    else:
        message = output[opened - 1]
        assert isinstance(message, Message)
        yield writer.text(_more(message.text, opened - 1, int(piece), said))


def _more(whole: str, index: int, size: int, said: dict[int, int]) -> str:
    start = said.get(index, 0)
    said[index] = start + size
    return whole[start : start + size]


def _ended(item: Message | FunctionCall) -> Literal["completed", "incomplete"]:
    return "completed" if item.status == "completed" else "incomplete"
