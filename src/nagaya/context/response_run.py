"""One response in the making: it pulls the model's answer, makes the stream's events, and records the end once.

The run belongs to itself, not to the reader of its stream: a reader that goes away hands the run to the room's
background work, which finishes and records it. So an answer that was paid for is never half there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
import structlog
from opentelemetry import trace

from nagaya.connections.room import TenantSession
from nagaya.context.approvals import TakenRequests
from nagaya.context.idempotency import Claim
from nagaya.context.items import FunctionCallOutput, Message
from nagaya.context.notices import Notices
from nagaya.context.response_shapes import (
    Event,
    EventWriter,
    IncompleteDetails,
    Response,
    ResponseError,
    ResponseUsage,
    Telling,
)
from nagaya.context.server_tools import (
    MAX_STEPS,
    MAX_TOOL_CALLS,
    NO_MORE_CALLS,
    NOT_OFFERED,
    RUN_S,
    ServerTool,
    Source,
    Toolbox,
    ToolOutcome,
    added,
    after_first,
    cited,
    outcome_of,
    with_tools,
    without_tools,
)
from nagaya.context.tool_items import FileSearchCall, McpCall, ToolItem
from nagaya.errors import ContextTooLong, NagayaError, RunTooLong
from nagaya.kernel.ids import new_unplaced_id
from nagaya.models.driver import Finished, ModelEvent, ModelRequest, TextDelta, ToolCall, ToolCallDelta, Turn
from nagaya.models.line import ModelLine
from nagaya.models.spans import ToolKind, begin_tool, failed, tool_ended

_tracer = trace.get_tracer("nagaya.tools")
_log = structlog.get_logger(__name__)

_FEWEST_TURNS = 2
_OUTPUT_IDS = 1 << 24
"""Of the ids that a claim makes, those from here on are the output's; the input's come before."""
PROGRESS_S: Final = 1.0
"""How often at most a response that is made in the background shows in its record how far it has come, in seconds."""
_encoder = msgspec.json.Encoder()


Prepare = Callable[[str], Awaitable[ToolItem | None]]


class Recorder(Protocol):
    """Keeps the books of one response. ``finished`` is None where the model's answer did not come to its end."""

    async def end(self, run: ResponseRun, finished: Finished | None, telling: Telling) -> None:
        """Record the run's output, its items in the conversation, and what it used, once."""
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
        toolbox: Toolbox,
        taken: TakenRequests | None = None,
        max_steps: int = MAX_STEPS,
        claim: Claim | None = None,
        language: str = "en",
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
        self._language = language
        self._toolbox = toolbox
        self._taken = taken
        self._max_steps = max_steps
        limit = response.max_tool_calls
        self._calls_left = MAX_TOOL_CALLS if limit is None else min(limit, MAX_TOOL_CALLS)
        self._open_message = False
        self._open_calls: dict[int, int] = {}
        self._finished: Finished | None = None
        self._sources: list[Source] = []
        self._is_pending = False
        self._began_s = session.clock.monotonic_s()
        self.results: dict[str, str] = {}
        """What the model was told of calls whose results no client is shown, by the ids of their items."""
        self.dropped = 0
        """Turns left out because the model refused more."""
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
            await self._toolbox.close()
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

    async def give_up(self) -> None:
        """It is not made, instead of being begun: what its request answers may be answered again."""
        self.ended = True
        try:
            if self._taken is not None:
                with contextlib.suppress(NagayaError):  # then it is given back by its term
                    await self._taken.give_back()
        finally:
            await self._toolbox.close()
            await self.session.release()

    def _item_id(self) -> str:
        if self._claim is None:
            return new_unplaced_id("item")
        # An idempotent request that is repeated after a crash must make the same items.
        self._made_ids += 1
        return self._claim.id("item", _OUTPUT_IDS + self._made_ids)

    async def _run(self) -> AsyncGenerator[Event, None]:
        writer = self._writer
        for first in writer.begin():
            yield first
        del first  # a copy of the response, which would be held until its end
        await self._notice("run.started", model=self.response.model)
        steps = self._steps()
        try:
            async with contextlib.nullcontext() if self._claim is None else self._claim.kept():
                async for event in steps:
                    yield event
        except NagayaError as problem:
            self._failed(problem)
        except Exception as problem:
            _log.error("response failed", action="response.failed", error=type(problem).__name__)
            self._failed(NagayaError())
        except asyncio.CancelledError:
            # The server stops hard. What is there is recorded by somebody who is not being cancelled.
            if self._open_message:
                writer.close_message("incomplete")
            self._settle(None, whole=False)
            self.ended = True
            self.session.background(self._stop())
            raise
        finally:
            await steps.aclose()
        finished = self._finished
        whole = finished is not None and finished.reason in ("stop", "tool_calls")
        for closed in self._close_open("completed" if whole else "incomplete"):
            yield closed
        if self.problem is None:
            self._settle(finished, whole=whole)
        unrecorded = await self._close_books(finished)
        if unrecorded is not None:
            # Said instead of done: an answer that could not be kept must not look kept.
            self._failed(unrecorded)
        await self._answer_claim()
        await self._notice_end()
        yield writer.end()

    def _close_open(self, status: Literal["completed", "incomplete"]) -> list[Event]:
        """Close the message and the function calls that are open."""
        writer, events = self._writer, []
        if self._open_message:
            self._open_message = False
            events += writer.close_message(status, cited(writer.open_text, self._sources))
        for index in self._open_calls.values():
            events += writer.close_call(index, status)
        self._open_calls = {}
        return events

    async def _steps(self) -> AsyncGenerator[Event, None]:
        """Ask the model; do what it wants done by the server's tools and ask again, until it has answered."""
        toolbox, request = self._toolbox, self._request
        async for event in self._prepared():
            yield event
        taken = self._taken
        if taken is not None:
            await taken.settle()
        if toolbox:
            request = with_tools(request, toolbox)
            turns = list(request.turns)
            if taken is not None and taken.calls:
                async for event in self._use(taken.calls, "", turns):
                    yield event
                request = msgspec.structs.replace(request, turns=tuple(turns))
        for step in range(1, self._max_steps + 1):
            if toolbox and (step == self._max_steps or self._calls_left <= 0):
                request = without_tools(request)
            await self._notice("run.step", step=step)
            calls: list[ToolCall] = []
            said_before = len(self.response.output)
            async for event in self._one_answer(request, calls):
                yield event
            if not calls or self.cancelled:
                return
            is_client_next = bool(self._open_calls)
            said = "".join(one.text for one in self.response.output[said_before:] if isinstance(one, Message))
            if self._open_message:
                said += self._writer.open_text
            for closed in self._close_open("completed"):
                yield closed
            turns = list(request.turns)
            async for event in self._use(calls, said, turns):
                yield event
            if is_client_next or self._is_pending or self.cancelled:
                return
            request = msgspec.structs.replace(request, turns=tuple(turns), tool_choice=after_first(request.tool_choice))

    async def _one_answer(self, request: ModelRequest, calls: list[ToolCall]) -> AsyncGenerator[Event, None]:
        """One answer of the model; calls of server's tools are gathered, all else is told as it comes."""
        writer, response = self._writer, self.response
        gathered: dict[int, list[str]] = {}
        answer = self._answer(request)
        try:
            async for event in answer:
                if isinstance(event, TextDelta):
                    if not self._open_message:
                        self._open_message = True
                        for opened in writer.open_message(self._item_id()):
                            yield opened
                    yield writer.text(event.text)
                elif isinstance(event, ToolCallDelta):
                    if event.index in gathered:
                        gathered[event.index][2] += event.arguments
                    elif event.index not in self._open_calls and self._toolbox.find(event.name or "") is not None:
                        gathered[event.index] = [
                            event.call_id or f"call_{event.index}",
                            event.name or "",
                            event.arguments,
                        ]
                    else:
                        for told in self._client_call(event):
                            yield told
                else:
                    self._finish(event)
                if response.background:
                    await self._show_progress()
                if self.cancelled:
                    break
                self.session.check()
                self._check_time()
        finally:
            await answer.aclose()
        calls += [ToolCall(*gathered[index]) for index in sorted(gathered)]

    def _client_call(self, event: ToolCallDelta) -> list[Event]:
        """A piece of a call of one of the client's own functions."""
        writer, events = self._writer, []
        if self._open_message:
            self._open_message = False
            events += writer.close_message("completed", cited(writer.open_text, self._sources))
        if event.index not in self._open_calls:
            call_id = event.call_id or f"call_{event.index}"
            self._open_calls[event.index] = len(self.response.output)
            events.append(writer.open_call(self._item_id(), call_id, event.name or ""))
        if event.arguments:
            events.append(writer.arguments(self._open_calls[event.index], event.arguments))
        return events

    def _finish(self, event: Finished) -> None:
        """An answer of the model ended; its tokens are added to those of the answers before."""
        before = self._finished
        if before is not None:
            event = Finished(event.reason, added(before.usage, event.usage), event.model)
        self._finished = event

    async def _prepared(self) -> AsyncGenerator[Event, None]:
        """Let those tools get ready that must ask somebody what they offer."""
        for tool in self._toolbox.tools:
            prepare: Prepare | None = getattr(tool, "prepare", None)
            item = None if prepare is None else await prepare(self._item_id())
            if item is not None:
                index = len(self.response.output)
                for event in [*self._writer.open_tool(item), *self._writer.close_tool(index, item)]:
                    yield event

    async def _use(self, calls: Sequence[ToolCall], said: str, turns: list[Turn]) -> AsyncGenerator[Event, None]:
        """Do the calls one after the other, and add them with what came of them to the turns."""
        turns.append(Turn(role="assistant", text=said, tool_calls=tuple(calls)))
        for call in calls:
            self.session.check()
            self._check_time()
            tool = self._toolbox.find(call.name)
            if tool is None:
                # An approved call of a tool that is not there any more.
                turns.append(Turn(role="tool", text=NOT_OFFERED, tool_call_id=call.call_id))
                continue
            if self._calls_left <= 0:
                turns.append(Turn(role="tool", text=NO_MORE_CALLS, tool_call_id=call.call_id))
                continue
            self._calls_left -= 1
            item_id = self._item_id()
            await self._notice("run.tool_call", name=call.name, item_id=item_id)
            item = tool.begin(call, item_id)
            index = len(self.response.output)
            for event in self._begun(item, index, call, item_id):
                yield event
            if self._taken is not None:
                self._taken.begins(call)
            outcome = await self._outcome(tool, call, item)
            self._sources += outcome.sources
            self._is_pending = self._is_pending or outcome.pending
            if item is None:
                result = FunctionCallOutput(id=self._item_id(), call_id=call.call_id, output=outcome.output)
                for event in self._writer.function_result(result):
                    yield event
            else:
                if isinstance(outcome.item, FileSearchCall):
                    self.results[item_id] = outcome.output
                for event in self._writer.close_tool(index, outcome.item or item):
                    yield event
            await self._notice("run.tool_result", name=call.name, item_id=item_id, failed=outcome.failed)
            turns.append(Turn(role="tool", text=outcome.output, tool_call_id=call.call_id))
            if self.cancelled:
                return

    async def _outcome(self, tool: ServerTool, call: ToolCall, item: ToolItem | None) -> ToolOutcome:
        """What came of one call, with a span of its own."""
        kind: ToolKind = "function"
        if item is not None:
            kind = "datastore" if isinstance(item, FileSearchCall) else "extension"
        content = self._model.traces_content
        span = begin_tool(_tracer, call, kind, content=content)
        try:
            outcome = await outcome_of(tool, call, item, len(self._sources))
            tool_ended(span, outcome.output, has_failed=outcome.failed, content=content)
        except Exception as problem:
            failed(span, problem)
            raise
        finally:
            span.end()
        return outcome

    def _begun(self, item: ToolItem | None, index: int, call: ToolCall, item_id: str) -> list[Event]:
        writer = self._writer
        if item is None:
            opened = writer.open_call(item_id, call.call_id, call.name)
            told = [writer.arguments(index, call.arguments)] if call.arguments else []
            return [opened, *told, *writer.close_call(index)]
        events = writer.open_tool(item)
        if isinstance(item, FileSearchCall):
            events += writer.tool_searches(index)
        elif isinstance(item, McpCall):
            events += writer.tool_arguments(index, call.arguments)
        return events

    def _check_time(self) -> None:
        if self.session.clock.monotonic_s() - self._began_s > RUN_S:
            raise RunTooLong(limit_s=int(RUN_S))

    async def _notice(self, type_: str, **data: Any) -> None:
        """Tell the user of a run that nobody may be watching: one with tools, or one in the background."""
        if self._toolbox or self.response.background:
            await Notices(self.session).tell(type_, response_id=self.response.id, **data)

    async def _notice_end(self) -> None:
        response = self.response
        if response.status == "failed":
            await self._notice("run.failed", code=self.problem.code if self.problem else "server_error")
        else:
            await self._notice("run.finished", status=response.status)

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

    async def _answer(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The model's events; with truncation ``auto``, the oldest turns go until the window holds the rest."""
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
                self.dropped += len(request.turns) - len(kept.turns)
                request = kept
            finally:
                await stream.aclose()

    def _failed(self, problem: NagayaError) -> None:
        self.problem = problem
        self.response.status = "failed"
        self.response.usage = None
        self.response.error = ResponseError.of(problem, self._language)

    async def _stop(self) -> None:
        """What is left to do where the run itself was cancelled; nobody else may release the session before."""
        await self._close_books(None)
        await self._answer_claim()
        await self._toolbox.close()
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
            await asyncio.shield(self._books.end(self, finished, self._writer.telling))
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
