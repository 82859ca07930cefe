"""One response in the making: it pulls the model's answer, makes the stream's events, and records the end once.

The run belongs to itself, not to the reader of its stream: a reader that goes away hands the run to the room's
background work, which finishes and records it. So an answer that was paid for is never half there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final, Protocol

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.idempotency import Claim
from nagaya.context.response_shapes import (
    Event,
    EventWriter,
    IncompleteDetails,
    Response,
    ResponseError,
    ResponseUsage,
    Telling,
)
from nagaya.errors import ContextTooLong, NagayaError
from nagaya.kernel.ids import new_unplaced_id
from nagaya.models.driver import Finished, ModelEvent, ModelRequest, TextDelta, ToolCallDelta
from nagaya.models.line import ModelLine

_log = structlog.get_logger(__name__)

_FEWEST_TURNS = 2
_OUTPUT_IDS = 1 << 24
"""Of the ids that a claim makes, those from here on are the output's; the input's come before."""
PROGRESS_S: Final = 1.0
"""How often at most a response that is made in the background shows in its record how far it has come, in seconds."""
_encoder = msgspec.json.Encoder()


class Recorder(Protocol):
    """Keeps the books of one response. ``finished`` is None where the model's answer did not come to its end."""

    async def end(self, response: Response, finished: Finished | None, telling: Telling) -> None:
        """Record its output, its items in the conversation, and what it used, once."""
        ...

    async def progress(self, response: Response, telling: Telling) -> bool:
        """Record how far it has come. False where somebody has cancelled or deleted it."""
        ...


class ResponseRun:
    """A response being made. ``next`` is for one reader; one in the background keeps its events for any number."""

    def __init__(
        self,
        session: TenantSession,
        model: ModelLine,
        request: ModelRequest,
        response: Response,
        books: Recorder,
        *,
        claim: Claim | None = None,
    ) -> None:
        self.response = response
        self.session = session
        self.cancelled = False
        self.problem: NagayaError | None = None
        """Why the response failed, once it has."""
        self._model = model
        self._request = request
        self._books = books
        self._claim = claim
        self._made_ids = 0
        self._writer = EventWriter(response)
        self._shown_s = session.clock.monotonic_s()
        self._events = self._run()
        self._kept: list[Event] = []
        self._news: asyncio.Event | None = None
        self._is_over = False
        self.ended = False

    async def next(self) -> Event | None:
        """The next event; None after the last. Raises only what is a fault of the server itself."""
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self.ended = True
            self._tell(None)
            await self.session.release()
            return None
        except BaseException:
            self._tell(None)
            raise
        if self.response.background:
            self._tell(event)
        return event

    def _tell(self, event: Event | None) -> None:
        """Let those who follow know of an event, or that none comes any more."""
        if event is None:
            self._is_over = True
        else:
            self._kept.append(event)
        news, self._news = self._news, None
        if news is not None:
            news.set()

    async def follow(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events after that number as they come, to the last. For any number of readers of a response that is
        made in the background; one that goes away changes nothing."""
        at = after + 1
        while True:
            for event in self._kept[at:]:
                at += 1
                yield event
            if at < len(self._kept):
                continue
            if self._is_over:
                return
            if self._news is None:
                self._news = asyncio.Event()
            await self._news.wait()

    async def finish(self) -> Response:
        """Run to the end without a reader."""
        while await self.next() is not None:
            pass
        return self.response

    def leave(self) -> None:
        """The reader goes away: the rest is done as the room's background work. May be called again."""
        if not self.ended:
            self.ended = True
            self.session.background(self.finish())

    def _item_id(self) -> str:
        if self._claim is None:
            return new_unplaced_id("item")
        # An idempotent request that is repeated after a crash must make the same items.
        self._made_ids += 1
        return self._claim.id("item", _OUTPUT_IDS + self._made_ids)

    async def _run(self) -> AsyncGenerator[Event, None]:
        response, writer = self.response, self._writer
        finished: Finished | None = None
        for first in writer.begin():
            yield first
        open_message = False
        open_calls: dict[int, int] = {}
        answer = self._answer()
        try:
            async for event in answer:
                if isinstance(event, TextDelta):
                    if not open_message:
                        open_message = True
                        for opened in writer.open_message(self._item_id()):
                            yield opened
                    yield writer.text(event.text)
                elif isinstance(event, ToolCallDelta):
                    if open_message:
                        open_message = False
                        for closed in writer.close_message():
                            yield closed
                    if event.index not in open_calls:
                        call_id = event.call_id or f"call_{event.index}"
                        open_calls[event.index] = len(response.output)
                        yield writer.open_call(self._item_id(), call_id, event.name or "")
                    if event.arguments:
                        yield writer.arguments(open_calls[event.index], event.arguments)
                else:
                    finished = event
                if response.background:
                    await self._show_progress()
                if self.cancelled:
                    break
                self.session.check()
        except NagayaError as problem:
            self._failed(problem)
        except Exception as problem:
            _log.error("response failed", action="response.failed", error=type(problem).__name__)
            self._failed(NagayaError())
        except asyncio.CancelledError:
            # The server stops hard. What is there is recorded by somebody who is not being cancelled.
            if open_message:
                writer.close_message("incomplete")
            self._settle(None, whole=False)
            self.ended = True
            self.session.background(self._stop())
            raise
        finally:
            await answer.aclose()
        whole = finished is not None and finished.reason in ("stop", "tool_calls")
        if open_message:
            for closed in writer.close_message("completed" if whole else "incomplete"):
                yield closed
        for index in open_calls.values():
            for closed in writer.close_call(index, "completed" if whole else "incomplete"):
                yield closed
        if self.problem is None:
            self._settle(finished, whole=whole)
        unrecorded = await self._close_books(finished)
        if unrecorded is not None:
            # Said instead of done: an answer that could not be kept must not look kept.
            self._failed(unrecorded)
        await self._answer_claim()
        yield writer.end()

    async def _show_progress(self) -> None:
        now_s = self.session.clock.monotonic_s()
        if now_s - self._shown_s < PROGRESS_S:
            return
        self._shown_s = now_s
        self._writer.show_text()
        try:
            goes_on = await self._books.progress(self.response, self._writer.telling)
        except NagayaError as problem:
            # The end is recorded with more patience; until then those who look see less.
            _log.warning("progress was not recorded", action="response.progress_unrecorded", code=problem.code)
            return
        if not goes_on:
            self.cancelled = True

    def _settle(self, finished: Finished | None, *, whole: bool) -> None:
        """The response's last state, where nothing failed."""
        response = self.response
        if finished is not None:
            response.model = finished.model
            response.usage = ResponseUsage.of(finished.usage)
        if self.cancelled:
            response.status = "cancelled"
        elif whole:
            response.status = "completed"
            response.completed_at = self.session.clock.now_us() // 1_000_000
        else:
            response.status = "incomplete"
            filtered = finished is not None and finished.reason == "content_filter"
            response.incomplete_details = IncompleteDetails("content_filter" if filtered else "max_output_tokens")

    async def _answer(self) -> AsyncGenerator[ModelEvent, None]:
        """The model's events; with truncation ``auto``, the oldest turns go until the window holds the rest."""
        request = self._request
        while True:
            began = False
            stream = self._model.stream(request)
            try:
                async for event in stream:
                    began = True
                    yield event
                return
            except ContextTooLong:
                kept = _without_oldest(request)
                if began or self.response.truncation != "auto" or kept is None:
                    raise
                request = kept
            finally:
                await stream.aclose()

    def _failed(self, problem: NagayaError) -> None:
        self.problem = problem
        self.response.status = "failed"
        self.response.usage = None
        self.response.error = ResponseError.of(problem)

    async def _stop(self) -> None:
        """What is left to do where the run itself was cancelled; nobody else may release the session before."""
        await self._close_books(None)
        await self._answer_claim()
        await self.session.release()

    async def _answer_claim(self) -> None:
        """Keep the answer for repeats of an idempotent request, or give its key back where it failed.

        Before the last event, so that whoever has seen that may repeat at once.
        """
        if self._claim is None:
            return
        try:
            if self.problem is None:
                told = _encoder.encode(self._writer.telling)
                await self._claim.finish(200, b"%b\n%b" % (_encoder.encode(self.response), told))
            else:
                await self._claim.abandon()
        except NagayaError as problem:
            # The claim ends with its lease; a repeat then finds the recorded response.
            _log.warning("claim was not settled", action="response.claim_unsettled", code=problem.code)

    async def _close_books(self, finished: Finished | None) -> NagayaError | None:
        try:
            await asyncio.shield(self._books.end(self.response, finished, self._writer.telling))
        except NagayaError as problem:
            _log.warning("response was not recorded", action="response.unrecorded", code=problem.code)
            return problem
        return None


def _without_oldest(request: ModelRequest) -> ModelRequest | None:
    """The request without the oldest third of its turns, instructions kept; None where nothing more can go."""
    kept_always = [turn for turn in request.turns if turn.role in ("system", "developer")]
    rest = [turn for turn in request.turns if turn.role not in ("system", "developer")]
    if len(rest) <= _FEWEST_TURNS:
        return None
    rest = rest[max(1, len(rest) // 3) :]
    while rest and rest[0].role == "tool":
        # A tool's answer without its question confuses every vendor.
        rest.pop(0)
    if not rest:
        return None
    return ModelRequest(
        turns=(*kept_always, *rest),
        **{name: getattr(request, name) for name in request.__struct_fields__ if name != "turns"},
    )
