"""Chat completions: messages in, an answer out, nothing kept. For clients that keep their history themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import check_metadata
from nagaya.context.turns import function_tool, tool_choice
from nagaya.errors import InvalidValue, MissingParameter, UnsupportedParameter
from nagaya.kernel.ids import new_id
from nagaya.models.driver import Finished, ModelRequest, TextDelta, ToolCall, Turn, Usage
from nagaya.models.model import Gathering
from nagaya.models.tokens import estimated
from nagaya.usage.meter import Meter, Metric


class _TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class _RefusalPart(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    refusal: str


class _ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class _ImagePart(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: _ImageUrl


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class _ToolCallIn(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    function: _Function
    type: Literal["function"] = "function"


class ChatMessageIn(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart | _RefusalPart | _ImagePart] | None = None
    name: str | None = None
    tool_calls: list[_ToolCallIn] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/chat/completions``. Fields after ``user`` are known and refused when they are set."""

    messages: list[ChatMessageIn]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    metadata: dict[str, str] | None = None
    n: int | None = None
    parallel_tool_calls: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    service_tier: str | None = None
    stop: str | list[str] | None = None
    store: bool | None = None
    temperature: float | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_p: float | None = None
    user: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None


_UNSUPPORTED = (
    "audio", "function_call", "functions", "logit_bias", "logprobs", "moderation", "prediction",
    "prompt_cache_options", "top_logprobs", "web_search_options",
)  # fmt: skip


class _FunctionOut(msgspec.Struct):
    name: str
    arguments: str


class _ToolCallOut(msgspec.Struct):
    id: str
    function: _FunctionOut
    type: str = "function"


class _MessageOut(msgspec.Struct):
    role: str
    content: str | None
    refusal: str | None = None
    tool_calls: list[_ToolCallOut] | msgspec.UnsetType = msgspec.UNSET


class _Choice(msgspec.Struct):
    index: int
    message: _MessageOut
    finish_reason: str
    logprobs: None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int


class ChatUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails

    @classmethod
    def of(cls, usage: Usage) -> ChatUsage:
        return cls(
            usage.input_tokens,
            usage.output_tokens,
            usage.input_tokens + usage.output_tokens,
            _PromptDetails(usage.cached_tokens),
            _CompletionDetails(usage.reasoning_tokens),
        )


class ChatCompletion(msgspec.Struct):
    """An answer in the shape of OpenAI's chat completions."""

    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: ChatUsage
    object: str = "chat.completion"

    @property
    def text(self) -> str:
        """The answer's text; empty where it is only function calls."""
        return self.choices[0].message.content or ""


class _FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCallPiece(msgspec.Struct, omit_defaults=True):
    index: int
    function: _FunctionDelta
    id: str | None = None
    type: str | None = None


class _Delta(msgspec.Struct):
    role: str | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[_ToolCallPiece] | msgspec.UnsetType = msgspec.UNSET


class _ChunkChoice(msgspec.Struct):
    index: int
    delta: _Delta
    finish_reason: str | None = None
    logprobs: None = None


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat completion. ``usage`` is left out unless the client asked for it."""

    id: str
    created: int
    model: str
    choices: list[_ChunkChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: str = "chat.completion.chunk"


class Chat:
    """Chat completions of one caller."""

    __slots__ = ("_meter", "_session")

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self._session = session
        self._meter = meter

    async def create(self, given: ChatIn) -> ChatCompletion:
        """Answer as a whole. Nothing of it is stored. Raises the ``Model…`` errors."""
        self._session.may_write()
        request = _request(given)
        model = await self._session.model(given.model)
        answer = await model.complete(request)
        self._count(answer.finished.usage)
        calls = [_ToolCallOut(call.call_id, _FunctionOut(call.name, call.arguments)) for call in answer.tool_calls]
        return ChatCompletion(
            id=new_id("chatcmpl"),
            created=self._session.clock.now_us() // 1_000_000,
            model=answer.finished.model,
            choices=[
                _Choice(
                    0,
                    _MessageOut("assistant", answer.text or None, tool_calls=calls or msgspec.UNSET),
                    answer.finished.reason,
                )
            ],
            usage=ChatUsage.of(answer.finished.usage),
        )

    async def stream(self, given: ChatIn) -> AsyncGenerator[ChatChunk, None]:
        """Answer chunk by chunk. Closing it early cancels the call at the model and meters what was received."""
        self._session.may_write()
        request = _request(given)
        model = await self._session.model(given.model)
        made, created = new_id("chatcmpl"), self._session.clock.now_us() // 1_000_000
        wants_usage = given.stream_options is not None and given.stream_options.include_usage is True
        unset = None if wants_usage else msgspec.UNSET

        def chunk(delta: _Delta, reason: str | None = None) -> ChatChunk:
            return ChatChunk(made, created, model.name, [_ChunkChoice(0, delta, reason)], unset)

        gathered = Gathering()
        begun = False
        finished: Finished | None = None
        events = model.stream(request)
        try:
            async for event in events:
                self._session.check()
                gathered.add(event)
                if not begun:
                    # Not before the model has begun: a model that refuses is an error of the request itself.
                    begun = True
                    yield chunk(_Delta(role="assistant", content=""))
                if isinstance(event, TextDelta):
                    yield chunk(_Delta(content=event.text))
                elif isinstance(event, Finished):
                    finished = event
                else:
                    kind = "function" if event.call_id else None
                    function = _FunctionDelta(event.name, event.arguments)
                    yield chunk(_Delta(tool_calls=[_ToolCallPiece(event.index, function, event.call_id, kind)]))
        finally:
            await events.aclose()
            if finished is None and begun:
                # Left early or failed: what was asked and what was received is what the vendor bills at least.
                self._count(await estimated(request, gathered.text, gathered.tool_calls))
        assert finished is not None  # a model's stream ends with Finished or raises
        self._count(finished.usage)
        yield chunk(_Delta(), finished.reason)
        if wants_usage:
            yield ChatChunk(made, created, model.name, [], ChatUsage.of(finished.usage))

    def _count(self, usage: Usage) -> None:
        self._meter.count(self._session.tenant, Metric.INPUT_TOKENS, usage.input_tokens)
        self._meter.count(self._session.tenant, Metric.OUTPUT_TOKENS, usage.output_tokens)


def _request(given: ChatIn) -> ModelRequest:
    check_metadata(given.metadata or {})
    if given.stream_options is not None and not given.stream:
        raise InvalidValue(param="stream_options", at="stream_options", detail="only together with stream=true")
    for name in _UNSUPPORTED:
        if getattr(given, name):
            raise UnsupportedParameter(param=name, at=name)
    if given.modalities not in (None, ["text"]):
        raise UnsupportedParameter(param="modalities", at="modalities")
    if given.store:
        raise InvalidValue(param="store", at="store", detail="chat completions are not stored; use /v1/responses")
    if given.n not in (None, 1):
        raise InvalidValue(param="n", at="n", detail="only one choice is made")
    if not given.messages:
        raise MissingParameter(param="messages", at="messages")
    for name, value, lowest, highest in (
        ("temperature", given.temperature, 0, 2),
        ("top_p", given.top_p, 0, 1),
        ("presence_penalty", given.presence_penalty, -2, 2),
        ("frequency_penalty", given.frequency_penalty, -2, 2),
        ("max_completion_tokens", given.max_completion_tokens, 1, 10_000_000),
        ("max_tokens", given.max_tokens, 1, 10_000_000),
    ):
        if value is not None and not lowest <= value <= highest:
            raise InvalidValue(param=name, at=name, detail=f"expected {lowest} to {highest}")
    stop = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ())
    if len(stop) > 4:
        raise InvalidValue(param="stop", at="stop", detail="at most 4 sequences")
    tools = tuple(function_tool(tool, f"tools[{number}]", nested=True) for number, tool in enumerate(given.tools or ()))
    return ModelRequest(
        turns=tuple(_turn(message, f"messages[{number}]") for number, message in enumerate(given.messages)),
        tools=tools,
        tool_choice=tool_choice(given.tool_choice),
        parallel_tool_calls=given.parallel_tool_calls if tools else None,
        temperature=given.temperature,
        top_p=given.top_p,
        max_output_tokens=given.max_completion_tokens or given.max_tokens,
        stop=stop,
        seed=given.seed,
        response_format=given.response_format,
        reasoning_effort=given.reasoning_effort,
        user=given.safety_identifier or given.user,
    )


def _turn(message: ChatMessageIn, at: str) -> Turn:
    content = message.content
    if content is None and not message.tool_calls and not message.refusal:
        raise MissingParameter(param=f"{at}.content", at=f"{at}.content")
    if message.role == "tool" and message.tool_call_id is None:
        raise MissingParameter(param=f"{at}.tool_call_id", at=f"{at}.tool_call_id")
    images: list[str] = []
    if isinstance(content, list):
        texts = []
        for part in content:
            if isinstance(part, _ImagePart):
                images.append(part.image_url.url)
            else:
                texts.append(part.text if isinstance(part, _TextPart) else part.refusal)
        text = "".join(texts)
    else:
        text = content or message.refusal or ""
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    return Turn(role=message.role, text=text, tool_calls=calls, tool_call_id=message.tool_call_id, images=tuple(images))
