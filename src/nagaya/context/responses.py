"""Responses: an answer of the tenant's model to an input, inside a conversation, after another response, or alone.

Partition ``response/<id>`` holds the response (sort ``h``: the client's JSON, a line feed, what only Nagaya needs) and
its own input items (sort ``i``, one JSON array).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.approvals import approved_calls
from nagaya.context.assembly import Recorded, assemble, recalled, window_for_history
from nagaya.context.conversations import Conversations, Order, check_limit, check_metadata
from nagaya.context.decode import refusal
from nagaya.context.hosted_tools import is_hosted, shown_tools, toolbox_of
from nagaya.context.idempotency import Claim
from nagaya.context.items import (
    FunctionCall,
    FunctionCallOutput,
    InputFile,
    InputImage,
    InputText,
    Item,
    ItemReference,
    Message,
    read_item,
)
from nagaya.context.lone_records import put_unless_there, remove_all, remove_one
from nagaya.context.places import HEAD, is_there, partition_of, response_sort
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import (
    UNSUPPORTED,
    ConversationRef,
    Event,
    ReasoningIn,
    Response,
    ResponseError,
    ResponseIn,
    StreamOptionsIn,
    Telling,
    TextIn,
    replay,
)
from nagaya.context.server_tools import MAX_STEPS, ServerTool, Toolbox
from nagaya.context.summaries import Numbered
from nagaya.context.summaries import shown as shown_summary
from nagaya.context.tool_items import McpCall
from nagaya.context.turns import FILE_SEARCH, function_tool, mcp_name, tool_choice, turns_of
from nagaya.errors import (
    ConditionFailed,
    Conflict,
    InvalidValue,
    MissingParameter,
    NagayaError,
    NotFound,
    UnsupportedParameter,
)
from nagaya.kernel.ids import is_id, new_id, new_unplaced_id
from nagaya.kernel.tokens import estimate_tokens
from nagaya.models.driver import Finished, FunctionTool, ModelRequest, ToolCall, Turn, Usage
from nagaya.models.line import ModelLine
from nagaya.models.tokens import estimated
from nagaya.records.sealed_store import Delete, Partition, Put, Record
from nagaya.tenancy.principal import Scope
from nagaya.usage.meter import Meter, Metric

_HEAD: Final = b"h"
_INPUT: Final = b"i"
MAX_CHAIN: Final = 1000
"""Responses followed back over ``previous_response_id``."""
BACKGROUND_LEASE_US: Final = 15 * 60 * 1_000_000
"""A background response whose record was not touched for this long was lost with its server and shows as failed."""
FOLLOW_S: Final = 0.5
"""How often the record of a response that another process is making is looked at by those who follow it, in seconds."""
_ATTEMPTS: Final = 16

_APPENDED_AT_ONCE: Final = 40
"""Items in one batch: each takes two changes of the hundred that a store's batch may have."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Response)
_items_decoder: msgspec.json.Decoder[list[Item]] = msgspec.json.Decoder(list[Item])


class _Meta(msgspec.Struct, omit_defaults=True):
    owner: str
    previous: str | None = None
    touched_at_us: int = 0
    telling: Telling = msgspec.field(default_factory=Telling)
    results: dict[str, str] = {}
    """What the model was told of calls whose results no client is shown, by the ids of their items."""
    context: Recorded | None = None
    """What was sent of a conversation, where the response has one."""
    conversation: str | None = None


class _Before(NamedTuple):
    """What comes before a request's own input."""

    items: Sequence[Item] = ()
    results: Mapping[str, str] = MappingProxyType({})
    summary: Numbered | None = None
    recorded: Recorded | None = None
    place: str | None = None
    """The conversation that it lies in: what is made of it is gone when that is."""

    def turns(self, own: Sequence[Item], known: Container[str]) -> list[Turn]:
        """All of it as turns, the request's own input last."""
        turns = turns_of([*self.items, *own], self.results, known)
        return [self.summary.turn, *turns] if self.summary else turns


class ResponseContext(msgspec.Struct, kw_only=True):
    """What a model was sent for a response: its turns in order, and the summary among them."""

    object: Literal["response.context"] = "response.context"
    response_id: str
    model: str
    turns: list[Turn]
    summary: dict[str, Any] | None = None
    missing: int = 0


class InputPage(NamedTuple):
    """A page of a response's input items."""

    data: list[Item]
    has_more: bool


def _split(record: Record) -> tuple[bytes, _Meta]:
    end = record.body.index(b"\n")
    return record.body[:end], msgspec.json.decode(record.body[end + 1 :], type=_Meta)


def _partition(response_id: str) -> Partition:
    return Partition("response", response_id)


class Responses:
    """One caller's responses. Somebody else's response and one that does not exist answer alike: ``NotFound``."""

    __slots__ = ("_conversations", "_me", "_meter", "_session")

    def __init__(self, session: TenantSession, conversations: Conversations, meter: Meter) -> None:
        self._session = session
        self._conversations = conversations
        self._meter = meter
        self._me = session.entrance.principal.user_key

    async def begin(
        self, given: ResponseIn, claim: Claim | None = None, *, tools: Sequence[ServerTool] = ()
    ) -> ResponseRun:
        """Check a request, assemble its context, and give the run that answers it. Nothing is recorded yet. ``tools``:
        what the server can do besides what the request names."""
        session = self._session
        session.may_write()
        _check(given)
        toolbox = toolbox_of(given.tools or (), session, self._meter, tools)
        toolbox.functions(_client_functions(given))
        await toolbox.check(shows_results="file_search_call.results" in (given.include or ()))
        model = await session.model(given.model)
        conversation_id = (
            given.conversation.id if isinstance(given.conversation, ConversationRef) else given.conversation
        )
        before = _Before()
        if conversation_id is not None:
            await self._conversations.head(conversation_id, writing=True)
            other = _cost_of_request(given, toolbox)
            window = window_for_history(model.context_tokens, given.max_output_tokens, other)
            found = await assemble(session, self._meter, conversation_id, model, window)
            before = _Before(found.items, found.results, found.summary, found.recorded, conversation_id)
        elif given.previous_response_id is not None:
            items, results = await self._chain(given.previous_response_id)
            before = _Before(items, results)
        own = await self._own_input(given, before.items, conversation_id)
        for number, item in enumerate(own):
            item.id = new_unplaced_id("item") if claim is None else claim.id("item", number)
        approved = approved_calls(toolbox, before.items, own)
        return await self._start(given, model, toolbox, before, own, conversation_id, claim, approved)

    async def _start(
        self,
        given: ResponseIn,
        model: ModelLine,
        toolbox: Toolbox,
        before: _Before,
        own: list[Item],
        conversation_id: str | None,
        claim: Claim | None,
        approved: Sequence[ToolCall] = (),
    ) -> ResponseRun:
        session = self._session
        turns = before.turns(own, toolbox)
        if given.instructions:
            turns.insert(0, Turn(role="developer", text=given.instructions))
        response = Response(
            id=claim.id("resp") if claim is not None else new_id("resp"),
            created_at=session.clock.now_us() // 1_000_000,
            status="queued" if given.background else "in_progress",
            model=model.name,
            background=bool(given.background),
            instructions=given.instructions,
            max_output_tokens=given.max_output_tokens,
            max_tool_calls=given.max_tool_calls,
            parallel_tool_calls=given.parallel_tool_calls is not False,
            previous_response_id=given.previous_response_id,
            conversation=ConversationRef(conversation_id) if conversation_id else None,
            prompt_cache_key=given.prompt_cache_key,
            prompt_cache_retention=given.prompt_cache_retention,
            reasoning=given.reasoning,
            safety_identifier=given.safety_identifier,
            service_tier=given.service_tier,
            store=given.store is not False,
            temperature=given.temperature,
            text={"format": {"type": "text"}, **(given.text or {})},
            tool_choice=given.tool_choice or "auto",
            tools=shown_tools(given.tools or ()),
            top_p=given.top_p,
            truncation=given.truncation or "disabled",
            user=given.user,
            metadata=given.metadata or {},
        )
        request = _model_request(given, turns)
        own_session = session.lease()
        toolbox.work_in(own_session)
        books = _Books(own_session, self._meter, request, own, before)
        return ResponseRun(
            own_session,
            model,
            request,
            response,
            books,
            toolbox=toolbox,
            approved=approved,
            max_steps=given.max_steps or MAX_STEPS,
            claim=None if claim is None else claim.lasting(own_session),
        )

    async def create(self, given: ResponseIn | str, **options: Any) -> Response:
        """Answer and record. ``create("text", conversation=…)`` or a whole ``ResponseIn``."""
        if isinstance(given, str):
            given = ResponseIn(input=given, **options)
        return await (await self.begin(given)).finish()

    async def stream(self, conversation_id: str | None, text: str | ResponseIn, **options: Any) -> AsyncIterator[Event]:
        """Answer event by event, in the conversation where one is given.

        Leaving the iterator early does not lose the answer: it is finished and recorded in the background.
        """
        given = text if isinstance(text, ResponseIn) else ResponseIn(input=text, **options)
        if conversation_id is not None:
            given.conversation = conversation_id
        run = await self.begin(given)
        try:
            while (event := await run.next()) is not None:
                yield event
        finally:
            run.leave()

    async def start_background(self, run: ResponseRun) -> Response:
        """Record the response as queued and answer it as the room's background work."""
        runs, response = self._session.room.runs, run.response
        place = response.conversation.id if response.conversation else None
        await self._note_place(response.id, place)
        began = _stored(response, _Meta(self._me, touched_at_us=self._session.clock.now_us(), conversation=place))
        await self._session.records.put(_partition(response.id), _HEAD, began)
        shown = msgspec.structs.replace(response, output=[])
        runs[response.id] = run

        async def work() -> None:
            try:
                await run.finish()
            finally:
                runs.pop(response.id, None)

        self._session.background(work())
        return shown

    async def follow(self, response_id: str, *, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events of a recorded response's stream after that number, each as it was the first time.

        One that is still being made is followed to its end, whichever server makes it. Raises ``NotFound``, also where
        it is deleted meanwhile.
        """
        while True:
            response, meta = await self._read(response_id)
            run = self._session.room.runs.get(response_id)
            if isinstance(run, ResponseRun):
                async for event in run.follow(after):
                    yield event
                return
            for event in replay(response, meta.telling):
                if event.sequence_number > after:
                    after = event.sequence_number
                    yield event
            if response.status not in ("queued", "in_progress"):
                return
            await asyncio.sleep(FOLLOW_S)

    async def _record(self, run: ResponseRun, own: Sequence[Item], telling: Telling, before: _Before) -> None:
        """Record a response that has its last state, and its items in the conversation. For its own run."""
        session, response = self._session, run.response
        partition = _partition(response.id)
        conversation = response.conversation
        is_appended = conversation is None
        for _ in range(_ATTEMPTS):
            there = await session.records.get(partition, _HEAD)
            if response.background:
                if there is None:
                    # Deleted meanwhile: nothing of it is to come back.
                    response.status = "cancelled"
                    return
                if _decoder.decode(_split(there)[0]).status == "cancelled":
                    response.status, response.completed_at = "cancelled", None
            if conversation is not None and not is_appended and response.status in ("completed", "incomplete"):
                await self._append(conversation.id, response, own, run.results)
                is_appended = True
            if not response.store:
                return
            now_us = session.clock.now_us()
            place = before.place
            meta = _Meta(self._me, response.previous_response_id, now_us, telling, run.results, before.recorded, place)
            await self._note_place(response.id, place)
            changes: list[Put | Delete] = [Put(_HEAD, _stored(response, meta), there.revision if there else 0)]
            if await session.records.get(partition, _INPUT) is None:
                changes.append(Put(_INPUT, _encoder.encode(list(own))))
            try:
                await session.records.write(partition, changes)
            except ConditionFailed:
                if not response.background:
                    raise Conflict from None
                continue
            if place is not None and await session.records.get(partition_of(place), HEAD) is None:
                # Removed for good while this was being written.
                await remove_all(session, partition)
                await remove_one(session, partition_of(place), response_sort(response.id))
            return
        raise Conflict

    async def _note_place(self, response_id: str, conversation_id: str | None) -> None:
        """Note in a conversation that a response is made of it, before there is one, so that they end together."""
        if conversation_id is not None:
            await put_unless_there(self._session, partition_of(conversation_id), response_sort(response_id))

    async def _show(self, response: Response, telling: Telling) -> bool:
        """Record how far a background response has come. False where it was cancelled or deleted. For its own run."""
        session = self._session
        partition = _partition(response.id)
        there = await session.records.get(partition, _HEAD)
        if there is None or _decoder.decode(_split(there)[0]).status == "cancelled":
            return False
        place = response.conversation.id if response.conversation else None
        meta = _Meta(self._me, response.previous_response_id, session.clock.now_us(), telling, conversation=place)
        try:
            await session.records.put(partition, _HEAD, _stored(response, meta), expect=there.revision)
        except ConditionFailed:
            return False
        return True

    async def _append(
        self, conversation_id: str, response: Response, own: Sequence[Item], results: Mapping[str, str]
    ) -> None:
        answered = [item for item in response.output if not isinstance(item, Message) or item.text]
        made: list[Item] = [*own, *answered]
        for start in range(0, len(made), _APPENDED_AT_ONCE):
            try:
                await self._conversations.append_bodies(
                    conversation_id,
                    made[start : start + _APPENDED_AT_ONCE],
                    response=response.id,
                    model=response.model,
                    keep_ids=True,
                    results=results,
                )
            except ConditionFailed:
                # These very items are there already: a repeat of an idempotent request after a crash.
                continue

    async def _own_input(self, given: ResponseIn, history: Sequence[Item], conversation_id: str | None) -> list[Item]:
        if isinstance(given.input, str):
            own: list[Item] = [Message.user(given.input)]
        else:
            own = []
            known = {item.id for item in history}
            for number, one in enumerate(given.input or ()):
                item = read_item(one, f"input[{number}]")
                if not isinstance(item, ItemReference):
                    _check_readable(item, f"input[{number}]")
                    own.append(item)
                elif item.id not in known and not await self._is_summed_up(conversation_id, item.id):
                    raise NotFound("item", param=f"input[{number}].id")
        return own

    async def _is_summed_up(self, conversation_id: str | None, item_id: str) -> bool:
        """Whether an item is in the conversation, though only its summary is sent."""
        if conversation_id is None:
            return False
        try:
            await self._conversations.item_wire(conversation_id, item_id)
        except NotFound:
            return False
        return True

    async def _chain(self, response_id: str) -> tuple[list[Item], dict[str, str]]:
        """The items of a response and all before it, oldest first, and the results of its calls."""
        found: list[list[Item]] = []
        results: dict[str, str] = {}
        at: str | None = response_id
        while at is not None and len(found) < MAX_CHAIN:
            try:
                record = await self._head(at)
            except NotFound:
                if at == response_id:
                    raise NotFound("response", param="previous_response_id") from None
                break
            shown, meta = _split(record)
            own = await self._session.records.get(_partition(at), _INPUT)
            output = _decoder.decode(shown).output
            found.append([*(_items_decoder.decode(own.body) if own else ()), *output])
            results |= meta.results
            at = meta.previous
        return [item for items in reversed(found) for item in items], results

    async def _head(self, response_id: str) -> Record:
        self._session.entrance.require(Scope.READ)
        if not is_id("resp", response_id):
            raise NotFound("response")
        record = await self._session.records.get(_partition(response_id), _HEAD)
        if record is None:
            raise NotFound("response")
        meta = _split(record)[1]
        if not self._session.entrance.may_see(meta.owner, shared=False, writing=False):
            raise NotFound("response")
        if meta.conversation is not None:
            there = await self._session.records.get(partition_of(meta.conversation), HEAD)
            if there is None or not is_there(there, self._session.clock.now_us()):
                # It went with its conversation.
                raise NotFound("response")
        return record

    async def retrieve_wire(self, response_id: str) -> bytes:
        """A recorded response as the JSON a client sees."""
        shown, meta = _split(await self._head(response_id))
        if self._may_be_lost(meta):
            return _encoder.encode(self._unless_lost(_decoder.decode(shown), meta))
        return shown

    def _may_be_lost(self, meta: _Meta) -> bool:
        return bool(meta.touched_at_us) and self._session.clock.now_us() - meta.touched_at_us > BACKGROUND_LEASE_US

    def _unless_lost(self, response: Response, meta: _Meta) -> Response:
        """The response; as failed where the server that made it in the background must have gone."""
        if response.status in ("queued", "in_progress") and self._may_be_lost(meta):
            response.status, response.error = "failed", ResponseError.of(NagayaError())
        return response

    async def _read(self, response_id: str) -> tuple[Response, _Meta]:
        shown, meta = _split(await self._head(response_id))
        return self._unless_lost(_decoder.decode(shown), meta), meta

    async def retrieve(self, response_id: str) -> Response:
        """A recorded response, or ``NotFound``."""
        return (await self._read(response_id))[0]

    async def find(self, response_id: str) -> Response | None:
        """A recorded response, or None; None also for a caller that may not read any."""
        if Scope.READ not in self._session.entrance.principal.scopes:
            return None
        try:
            return await self.retrieve(response_id)
        except NotFound:
            return None

    async def telling(self, response_id: str) -> Telling:
        """How a recorded response was told, or ``NotFound``."""
        return (await self._read(response_id))[1].telling

    async def delete(self, response_id: str) -> None:
        """Delete a response and its input. Its items in a conversation stay."""
        self._session.may_write()
        record = await self._head(response_id)
        partition = _partition(response_id)
        changes: list[Put | Delete] = [Delete(_HEAD, record.revision)]
        own = await self._session.records.get(partition, _INPUT)
        if own is not None:
            changes.append(Delete(_INPUT, own.revision))
        try:
            await self._session.records.write(partition, changes)
        except ConditionFailed:
            raise Conflict from None
        place = _split(record)[1].conversation
        if place is not None:
            await remove_one(self._session, partition_of(place), response_sort(response_id))
        self._stop(response_id)

    def _stop(self, response_id: str) -> None:
        """Let a background response that is being made here stop at its next step."""
        run = self._session.room.runs.get(response_id)
        if run is not None:
            run.cancelled = True

    async def context(self, response_id: str) -> ResponseContext:
        """What the model was sent first of all for a response. Raises ``NotFound``.

        It is kept by reference, so what was deleted since is missing here too, and ``missing`` says how much.
        """
        response, meta = await self._read(response_id)
        before, missing = await self._before(response, meta)
        own = await self._input_of(response_id)
        turns = before.turns(own, _names_called(before.items))
        if response.instructions:
            turns.insert(0, Turn(role="developer", text=response.instructions))
        turns = _without_dropped(turns, meta.context.dropped if meta.context else 0)
        return ResponseContext(
            response_id=response.id,
            model=meta.telling.model or response.model,
            turns=turns,
            summary=shown_summary(before.summary) if before.summary else None,
            missing=missing,
        )

    async def replay(self, response_id: str, model: str | None = None) -> ResponseRun:
        """A run that answers a recorded response's context once more, on another model where one is named.

        It becomes a response of its own, outside the conversation, with ``replay_of`` in its metadata. Raises
        ``NotFound``, also for a model that the tenant has not.
        """
        session = self._session
        session.may_write()
        response, meta = await self._read(response_id)
        before, _ = await self._before(response, meta)
        own = await self._input_of(response_id)
        given = ResponseIn(
            input=[],
            instructions=response.instructions,
            max_output_tokens=response.max_output_tokens,
            max_tool_calls=response.max_tool_calls,
            parallel_tool_calls=response.parallel_tool_calls,
            previous_response_id=response.previous_response_id,
            temperature=response.temperature,
            text=response.text,
            reasoning=response.reasoning,
            tool_choice=response.tool_choice,
            tools=response.tools,
            top_p=response.top_p,
            truncation=response.truncation,
            metadata={**response.metadata, "replay_of": response.id},
        )
        check_metadata(given.metadata or {})
        toolbox = toolbox_of(response.tools, session, self._meter)
        toolbox.functions(_client_functions(given))
        await toolbox.check(shows_results=False)
        return await self._start(given, await session.model(model), toolbox, before, own, None, None)

    async def _before(self, response: Response, meta: _Meta) -> tuple[_Before, int]:
        """What came before a recorded response's own input, read again, and how much of it is missing."""
        if meta.context is not None and meta.conversation is not None:
            try:
                await self._conversations.head(meta.conversation, writing=False)
            except NotFound:
                return _Before(recorded=meta.context, place=meta.conversation), meta.context.count
            found, missing = await recalled(self._session, self._meter, meta.conversation, meta.context)
            return _Before(found.items, found.results, found.summary, meta.context, meta.conversation), missing
        if response.previous_response_id is not None:
            try:
                return _Before(*await self._chain(response.previous_response_id)), 0
            except NotFound:
                return _Before(), 1
        return _Before(), 0

    async def _input_of(self, response_id: str) -> list[Item]:
        record = await self._session.records.get(_partition(response_id), _INPUT)
        return _items_decoder.decode(record.body) if record is not None else []

    async def input_items(
        self, response_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> InputPage:
        """A page of the items the response was given, newest first unless ``order`` is ``asc``."""
        check_limit(limit)
        await self._head(response_id)
        record = await self._session.records.get(_partition(response_id), _INPUT)
        items = _items_decoder.decode(record.body) if record is not None else []
        if order == "desc":
            items.reverse()
        if after is not None:
            places = [place for place, item in enumerate(items) if item.id == after]
            if not places:
                raise NotFound("item", param="after")
            items = items[places[0] + 1 :]
        return InputPage(items[:limit], len(items) > limit)

    async def cancel(self, response_id: str) -> Response:
        """Cancel a background response that is still in progress, whichever server is making it.

        The record says so at once; the server that makes it stops at its next step where it is this one, and throws
        its answer away where it is another.
        """
        self._session.may_write()
        record = await self._head(response_id)
        shown, meta = _split(record)
        response = _decoder.decode(shown)
        if not response.background:
            raise InvalidValue(
                param="response_id", at="response_id", detail="only a response made with background=true is cancelled"
            )
        if response.status not in ("queued", "in_progress"):
            return response
        response.status = "cancelled"
        try:
            await self._session.records.put(
                _partition(response_id), _HEAD, _stored(response, meta), expect=record.revision
            )
        except ConditionFailed:
            # It ended just now.
            return await self.retrieve(response_id)
        self._stop(response_id)
        return response


class _Books:
    """The books of one response being made, kept with the session that lasts as long as it is made."""

    def __init__(
        self,
        session: TenantSession,
        meter: Meter,
        request: ModelRequest,
        own: Sequence[Item],
        before: _Before,
    ) -> None:
        self._before = before
        self._session = session
        self._meter = meter
        self._request = request
        self._own = own

    async def end(self, run: ResponseRun, finished: Finished | None, telling: Telling) -> None:
        usage = finished.usage if finished is not None else await _estimated(self._request, run.response)
        if usage is not None:
            self._meter.count(self._session.tenant, Metric.INPUT_TOKENS, usage.input_tokens)
            self._meter.count(self._session.tenant, Metric.OUTPUT_TOKENS, usage.output_tokens)
        before = self._before
        if before.recorded is not None and run.dropped:
            before = before._replace(recorded=msgspec.structs.replace(before.recorded, dropped=run.dropped))
        await self._responses()._record(run, self._own, telling, before)

    async def progress(self, response: Response, telling: Telling) -> bool:
        return await self._responses()._show(response, telling)

    def _responses(self) -> Responses:
        return Responses(self._session, Conversations(self._session), self._meter)


async def _estimated(request: ModelRequest, response: Response) -> Usage | None:
    """What an answer that was cancelled or cut will have been billed; None where the model said nothing at all."""
    if not response.output:
        return None
    calls = [ToolCall(one.call_id, one.name, one.arguments) for one in response.output if isinstance(one, FunctionCall)]
    return await estimated(request, response.output_text, calls)


def _stored(response: Response, meta: _Meta) -> bytes:
    return b"%b\n%b" % (_encoder.encode(response), _encoder.encode(meta))


def _check(given: ResponseIn) -> None:
    for name in UNSUPPORTED:
        if getattr(given, name) is not None:
            raise UnsupportedParameter(param=name, at=name)
    if given.input is None or given.input == []:
        raise MissingParameter(param="input", at="input")
    if given.conversation is not None and given.previous_response_id is not None:
        raise InvalidValue(
            param="previous_response_id", at="previous_response_id", detail="not together with 'conversation'"
        )
    check_metadata(given.metadata or {})
    _check_inside("reasoning", given.reasoning, ReasoningIn)
    _check_inside("text", given.text, TextIn)
    _check_inside("stream_options", given.stream_options, StreamOptionsIn)
    if given.stream_options is not None and not given.stream:
        raise InvalidValue(param="stream_options", at="stream_options", detail="only together with stream=true")
    if "message.output_text.logprobs" in (given.include or ()):
        raise UnsupportedParameter(param="include", at="include")
    if given.background and given.store is False:
        raise InvalidValue(param="background", at="background", detail="needs store=true")
    _in_range(given.temperature, 0, 2, "temperature")
    _in_range(given.top_p, 0, 1, "top_p")
    _in_range(given.max_tool_calls, 1, 1_000, "max_tool_calls")
    _in_range(given.max_steps, 1, MAX_STEPS, "max_steps")
    _in_range(given.max_output_tokens, 1, 10_000_000, "max_output_tokens")
    if given.top_logprobs:
        raise UnsupportedParameter(param="top_logprobs", at="top_logprobs")


def _check_readable(item: Item, at: str) -> None:
    """Refuse what would be kept but never reach the model: an answer must not be about less than was asked."""
    if isinstance(item, Message):
        for number, part in enumerate(item.content):
            if isinstance(part, InputFile) or (isinstance(part, InputImage) and part.image_url is None):
                raise UnsupportedParameter(param=f"{at}.content[{number}]", at=f"{at}.content[{number}]")
    elif isinstance(item, FunctionCallOutput) and not isinstance(item.output, str):
        for number, part in enumerate(item.output):
            if not isinstance(part, InputText):
                raise UnsupportedParameter(param=f"{at}.output[{number}]", at=f"{at}.output[{number}]")


def _check_inside(at: str, given: dict[str, Any] | None, type_: type[msgspec.Struct]) -> None:
    """Raise what :func:`nagaya.context.decode.decode` raises, for what a body holds under ``at``."""
    if given is not None:
        try:
            msgspec.convert(given, type_)
        except msgspec.ValidationError as wrong:
            raise refusal(wrong, at) from None


def _in_range(value: float | None, lowest: float, highest: float, at: str) -> None:
    if value is not None and not lowest <= value <= highest:
        raise InvalidValue(param=at, at=at, detail=f"expected {lowest} to {highest}")


def _names_called(items: Sequence[Item]) -> frozenset[str]:
    """The functions of server's tools that were called in these items."""
    remote = {mcp_name(item.server_label, item.name) for item in items if isinstance(item, McpCall)}
    return frozenset({FILE_SEARCH, *remote})


def _without_dropped(turns: list[Turn], dropped: int) -> list[Turn]:
    """The turns without the oldest that were left out because the model refused more."""
    kept = []
    for turn in turns:
        if dropped and turn.role not in ("system", "developer"):
            dropped -= 1
        else:
            kept.append(turn)
    return kept


def _client_functions(given: ResponseIn) -> tuple[FunctionTool, ...]:
    """The functions among a request's tools that the client itself will call."""
    return tuple(
        function_tool(tool, f"tools[{number}]", nested=False)
        for number, tool in enumerate(given.tools or ())
        if not is_hosted(tool)
    )


def _cost_of_request(given: ResponseIn, toolbox: Toolbox) -> int:
    """About how many tokens of a model's window everything but the history takes."""
    own = given.input if isinstance(given.input, str) else _encoder.encode(given.input).decode()
    described = _encoder.encode([given.tools, [tool.functions for tool in toolbox.tools]]).decode()
    return sum(estimate_tokens(text) for text in (own, described, given.instructions or ""))


def _model_request(given: ResponseIn, turns: list[Turn]) -> ModelRequest:
    tools = _client_functions(given)
    wanted = (given.text or {}).get("format")
    effort = (given.reasoning or {}).get("effort")
    return ModelRequest(
        turns=tuple(turns),
        tools=tools,
        tool_choice=tool_choice(given.tool_choice),
        parallel_tool_calls=given.parallel_tool_calls if tools else None,
        temperature=given.temperature,
        top_p=given.top_p,
        max_output_tokens=given.max_output_tokens,
        response_format=wanted if wanted and wanted.get("type") != "text" else None,
        reasoning_effort=effort if isinstance(effort, str) else None,
        user=given.safety_identifier or given.user,
    )
