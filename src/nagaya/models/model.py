"""The model as the rest of the house uses it: a driver with deadlines, error mapping and an end that can be trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final, NamedTuple

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span

from nagaya.errors import AnswerCut, AnswerEndless, AnswerNotUnderstood, InvalidValue, ModelUnreachable, NagayaError
from nagaya.kernel.clock import Clock, SystemClock
from nagaya.kernel.deadline import Patience
from nagaya.models.driver import (
    EmbeddingDriver,
    Finished,
    ModelDriver,
    ModelEvent,
    ModelRequest,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from nagaya.models.spans import Origin, answered, begin_answer, begin_embeddings, embedded, failed, first_came
from nagaya.models.tokens import THREAD_FROM_CHARACTERS, estimate_usage, request_characters

CLOSE_S: Final = 5.0
"""How long a driver may take to let go of a stream that nobody reads any more."""
MAX_ANSWER_CHARACTERS: Final = 4_000_000
"""An answer longer than this is an endless one; the stream is cut with an error."""
MAX_TEXTS: Final = 2048
"""Texts in one embeddings request, as OpenAI's."""
MAX_TEXT_CHARACTERS: Final = 100_000
"""Characters of one text to embed; far beyond what any embedding model reads."""

_tracer = trace.get_tracer("nagaya.models")
_log = structlog.get_logger("nagaya.models")


class Answer(NamedTuple):
    """A collected stream."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finished: Finished


class Gathering:
    """What an answer consists of so far. Feed it every event of one stream, in order."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._calls: dict[int, list[str]] = {}
        self.size = 0
        """Characters of text, names and arguments so far."""

    def add(self, event: ModelEvent) -> None:
        """Take one event in. ``Finished`` changes nothing."""
        if isinstance(event, TextDelta):
            self._text += event.text.encode("utf-8", "surrogatepass")
            self.size += len(event.text)
        elif isinstance(event, ToolCallDelta):
            call = self._calls.setdefault(event.index, ["", "", ""])
            # The id and the name come whole with the first piece; some servers repeat them with every piece.
            call[0] = call[0] or event.call_id or f"call_{event.index}"
            call[1] = call[1] or event.name or ""
            call[2] += event.arguments
            self.size += len(event.name or "") + len(event.arguments)

    @property
    def text(self) -> str:
        return self._text.decode("utf-8", "surrogatepass")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in the order of their index."""
        return tuple(ToolCall(*self._calls[index]) for index in sorted(self._calls))


async def collected(events: AsyncIterator[ModelEvent]) -> Answer:
    """The whole answer of a stream that ends with ``Finished``. Raises what the stream raises."""
    gathered = Gathering()
    finished: Finished | None = None
    async for event in events:
        if isinstance(event, Finished):
            finished = event
        gathered.add(event)
    assert finished is not None  # such a stream ends with it or raises
    return Answer(gathered.text, gathered.tool_calls, finished)


class Model:
    """One model of one tenant.

    ``deadline_s`` bounds the wait for the first event, and each wait after it unless ``idle_s`` says otherwise;
    ``total_s`` (ten deadlines unless given) bounds the whole answer. Every stream ends with exactly one ``Finished``
    or raises: ``ModelUnreachable`` for silence, another ``ModelFailed`` for everything else. Closes the driver.
    """

    def __init__(
        self,
        driver: ModelDriver,
        *,
        deadline_s: float = 120.0,
        clock: Clock | None = None,
        idle_s: float | None = None,
        total_s: float | None = None,
        origin: Origin | None = None,
        context_tokens: int | None = None,
    ) -> None:
        self.context_tokens = context_tokens
        """Tokens of its window, question and answer together; None: not known."""
        self._driver = driver
        self._origin = origin or Origin()
        self._clock = clock or SystemClock()
        self._deadline_s = deadline_s
        self._idle_s = deadline_s if idle_s is None else idle_s
        self._total_s = deadline_s * 10 if total_s is None else total_s

    @property
    def name(self) -> str:
        """The model's id as clients see it."""
        return self._driver.name

    @property
    def quotes_only(self) -> bool:
        """Whether it only quotes what it is given."""
        return bool(getattr(self._driver, "quotes_only", False))

    @property
    def traces_content(self) -> bool:
        """Whether traces may hold what is said."""
        return self._origin.content

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Answer. Events come in order, ``Finished`` last; nothing empty is passed on.

        Closing the iterator, or cancelling the task that reads it, cancels the call at the vendor before it returns.
        Not repeatable for nothing: a second call is a second bill.
        """
        # Not the current span: a generator's context would leak into whoever reads it.
        span = begin_answer(_tracer, self.name, request, self._origin)
        gathered, patience = Gathering(), Patience()
        events: AsyncIterator[ModelEvent] | None = None
        try:
            started_s = self._clock.monotonic_s()
            events = self._driver.stream(request)
            wait_s = self._deadline_s
            while True:
                left_s = self._total_s - (self._clock.monotonic_s() - started_s)
                if left_s <= 0:
                    raise TimeoutError
                try:
                    with patience.of(min(wait_s, left_s)):
                        event = await anext(events)
                except StopAsyncIteration:
                    raise AnswerCut() from None
                wait_s = self._idle_s
                if isinstance(event, Finished):
                    break
                if event == _EMPTY:
                    continue
                if not gathered.size:
                    first_came(span, self._clock.monotonic_s() - started_s)
                gathered.add(event)
                if gathered.size > MAX_ANSWER_CHARACTERS:
                    raise AnswerEndless(limit_characters=MAX_ANSWER_CHARACTERS)
                yield event
            if request_characters(request) > THREAD_FROM_CHARACTERS:
                finished = await asyncio.to_thread(_settled, event, request, gathered)
            else:
                finished = _settled(event, request, gathered)
            answered(span, finished, gathered.text, gathered.tool_calls, self._origin)
            # Closed before the last event: who stops reading at Finished leaves nothing open.
            await _close(events)
            yield finished
        except Exception as problem:
            raise _ours(problem, span) from None
        finally:
            span.end()
            patience.end()
            if events is not None:
                await _close(events)

    async def complete(self, request: ModelRequest) -> Answer:
        """Collect a whole answer. Raises what :meth:`stream` raises."""
        return await collected(self.stream(request))

    async def close(self) -> None:
        """Close the driver. May be called again."""
        await self._driver.close()


class Embeddings:
    """One embedding model of one tenant: at most ``MAX_TEXTS`` texts per call, each call within ``deadline_s``. Closes
    the driver, where it has something to close."""

    def __init__(self, driver: EmbeddingDriver, *, deadline_s: float = 120.0, origin: Origin | None = None) -> None:
        self._driver = driver
        self._deadline_s = deadline_s
        self._origin = origin or Origin()

    @property
    def name(self) -> str:
        """The model's id as clients see it."""
        return self._driver.name

    @property
    def dimensions(self) -> int:
        """How long each vector is."""
        return self._driver.dimensions

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A unit vector of ``dimensions`` floats per text, in order, and the tokens used. May be repeated.

        Raises ``InvalidValue`` for no texts, too many or too long ones, ``ModelUnreachable`` past the deadline, else
        ``ModelFailed``.
        """
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise InvalidValue(at="input", detail=f"1 to {MAX_TEXTS} texts, not {len(texts)}", param="input")
        if any(len(text) > MAX_TEXT_CHARACTERS for text in texts):
            raise InvalidValue(at="input", detail=f"a text over {MAX_TEXT_CHARACTERS} characters", param="input")
        span = begin_embeddings(_tracer, self.name, self.dimensions, self._origin)
        try:
            async with asyncio.timeout(self._deadline_s):
                vectors, tokens = await self._driver.embed(texts)
            if len(vectors) != len(texts) or any(len(vector) != self.dimensions for vector in vectors):
                raise AnswerNotUnderstood(kind="vectors of another number or size")
            embedded(span, self.name, tokens)
        except Exception as problem:
            raise _ours(problem, span) from None
        finally:
            span.end()
        return vectors, tokens

    async def close(self) -> None:
        """Close the driver. May be called again."""
        close = getattr(self._driver, "close", None)
        if close is not None:
            await close()


_EMPTY: Final = TextDelta("")


async def _close(events: AsyncIterator[ModelEvent]) -> None:
    """Close the driver's stream; a driver that fails or dawdles in closing is not the reader's business."""
    close = getattr(events, "aclose", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await close()
    except Exception as problem:
        _log.warning("a model's stream did not close", action="model.close_failed", error=type(problem).__name__)


def _settled(finished: Finished, request: ModelRequest, gathered: Gathering) -> Finished:
    """``finished`` with the reason and the usage that the events before it prove."""
    reason, usage = finished.reason, finished.usage
    calls = gathered.tool_calls
    if calls and reason == "stop":
        # Several compatible servers say "stop" after a function call; clients then never run the function.
        reason = "tool_calls"
    if usage.input_tokens <= 0:
        usage = estimate_usage(request, gathered.text, calls)
    elif usage.output_tokens <= 0 and gathered.size:
        guess = estimate_usage(ModelRequest(turns=()), gathered.text, calls)
        usage = Usage(usage.input_tokens, guess.output_tokens, usage.cached_tokens, usage.reasoning_tokens, True)
    return Finished(reason, usage, finished.model)


def _ours(problem: Exception, span: Span) -> NagayaError:
    """The error of our own for whatever a driver raised. A vendor's words never pass: they may quote a prompt."""
    kind = type(problem).__name__
    failed(span, problem)
    if isinstance(problem, NagayaError):
        return problem
    if isinstance(problem, TimeoutError | OSError):
        return ModelUnreachable()
    at = problem.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f"{at.tb_frame.f_code.co_qualname}:{at.tb_lineno}" if at is not None else None
    _log.warning("a model's driver failed", action="model.failed", error=kind, at=place)
    return AnswerNotUnderstood(kind=kind)
