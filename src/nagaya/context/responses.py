"""Responses: an answer of the tenant's model to an input, inside a conversation, after another response, or alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.approvals import TakenRequests, answers_in, take
from nagaya.context.assembly import assemble, window_for_history
from nagaya.context.conversations import Conversations, check_metadata
from nagaya.context.hosted_tools import shown_tools, toolbox_of
from nagaya.context.idempotency import Claim
from nagaya.context.items import FunctionCall, Item, ItemReference, Message, read_item
from nagaya.context.lone_records import put_unless_there, remove_all, remove_one
from nagaya.context.places import HEAD, partition_of, response_sort
from nagaya.context.recollection import RECALLED_TOKENS, asked_in, recollect
from nagaya.context.response_records import (
    INPUT,
    RECORD,
    Before,
    Meta,
    RecordedResponses,
    response_decoder,
    response_partition,
    split,
    stored,
)
from nagaya.context.response_requests import (
    check_readable,
    check_request,
    client_functions,
    cost_of_request,
    model_request,
)
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import ConversationRef, Event, Response, ResponseIn, Telling, replay
from nagaya.context.server_tools import MAX_STEPS, ServerTool, Toolbox
from nagaya.errors import ConditionFailed, Conflict, NotFound
from nagaya.kernel.ids import new_id, new_unplaced_id
from nagaya.models.driver import Finished, ModelRequest, ToolCall, Turn, Usage
from nagaya.models.line import ModelLine
from nagaya.models.tokens import estimated
from nagaya.records.sealed_store import Delete, Put, Record
from nagaya.usage.meter import Meter, Metric

FOLLOW_S: Final = 0.5
"""How often the record of a response that another process is making is looked at by those who follow it, in seconds."""
_ATTEMPTS: Final = 16

_APPENDED_AT_ONCE: Final = 40
"""Items in one batch: each takes two changes of the hundred that a store's batch may have."""

_encoder = msgspec.json.Encoder()


class Responses(RecordedResponses):
    """One caller's responses: made here, or recorded already."""

    __slots__ = ()

    async def begin(
        self,
        given: ResponseIn,
        claim: Claim | None = None,
        *,
        tools: Sequence[ServerTool] = (),
        language: str = "en",
    ) -> ResponseRun:
        """Check a request, assemble its context, and give the run that answers it. Nothing is recorded yet. ``tools``:
        what the server can do besides what the request names. ``language`` (``en`` or ``ja``): in which it is said why
        the response failed."""
        session = self._session
        session.may_write()
        check_request(given)
        toolbox = toolbox_of(given.tools or (), session, self._meter, tools)
        toolbox.functions(client_functions(given))
        await toolbox.check(shows_results="file_search_call.results" in (given.include or ()))
        model = await session.model(given.model)
        conversation_id = (
            given.conversation.id if isinstance(given.conversation, ConversationRef) else given.conversation
        )
        before = Before()
        if conversation_id is not None:
            await self._conversations.head(conversation_id, writing=True)
            other = cost_of_request(given, toolbox) + (RECALLED_TOKENS if given.memories else 0)
            window = window_for_history(model.context_tokens, given.max_output_tokens, other)
            found = await assemble(session, self._meter, conversation_id, model, window)
            before = Before(found.items, found.results, found.summary, found.recorded, conversation_id)
        elif given.previous_response_id is not None:
            before = await self._chain(given.previous_response_id)
        own = await self._own_input(given, before.items, conversation_id)
        for number, item in enumerate(own):
            item.id = new_unplaced_id("item") if claim is None else claim.id("item", number)
        memories = await recollect(session, self._meter, given.memories, asked_in(own, before.items))
        before = before._replace(memories=memories)
        answers = answers_in(toolbox, before.items, own)
        places = before.asked_in
        if conversation_id is not None:
            places = dict.fromkeys(answers.request_ids, partition_of(conversation_id))
        response_id = claim.id("resp") if claim is not None else new_id("resp")
        taken = await take(session, places, answers, response_id)
        return await self._start(
            given,
            model,
            toolbox,
            before,
            own,
            conversation_id,
            claim,
            taken,
            response_id=response_id,
            language=language,
        )

    async def _start(
        self,
        given: ResponseIn,
        model: ModelLine,
        toolbox: Toolbox,
        before: Before,
        own: list[Item],
        conversation_id: str | None,
        claim: Claim | None,
        taken: TakenRequests | None = None,
        *,
        response_id: str,
        language: str,
    ) -> ResponseRun:
        session = self._session
        turns = before.turns(own, toolbox)
        if given.instructions:
            turns.insert(0, Turn(role="developer", text=given.instructions))
        response = Response(
            id=response_id,
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
            memories=before.memories.refs if before.memories else msgspec.UNSET,
        )
        request = model_request(given, turns)
        own_session = session.lease()
        toolbox.work_in(own_session)
        if taken is not None:
            taken.work_in(own_session)
        books = _Books(own_session, self._meter, request, own, before, taken)
        return ResponseRun(
            own_session,
            model,
            request,
            response,
            books,
            toolbox=toolbox,
            taken=taken,
            max_steps=given.max_steps or MAX_STEPS,
            claim=None if claim is None else claim.lasting(own_session),
            language=language,
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
        began = stored(response, Meta(self._me, touched_at_us=self._session.clock.now_us(), conversation=place))
        try:
            await self._note_place(response.id, place)
            await self._session.records.put(response_partition(response.id), RECORD, began)
        except BaseException:
            await run.give_up()
            raise
        shown = msgspec.structs.replace(response, output=[])
        runs[response.id] = run

        async def work() -> None:
            try:
                await run.finish()
            finally:
                runs.pop(response.id, None)

        self._session.background(work())
        return shown

    async def follow(self, response_id: str, *, after: int = -1, language: str = "en") -> AsyncGenerator[Event, None]:
        """The events of a recorded response's stream after that number, each as it was the first time. ``language`` as
        for :meth:`retrieve_wire`.

        One that is still being made is followed to its end, whichever server makes it. Raises ``NotFound``, also where
        it is deleted meanwhile.
        """
        while True:
            response, meta = await self._read(response_id, language)
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

    async def _record(self, run: ResponseRun, own: Sequence[Item], telling: Telling, before: Before) -> None:
        """Record a response that has its last state, and its items in the conversation. For its own run."""
        session, response = self._session, run.response
        partition = response_partition(response.id)
        conversation = response.conversation
        is_appended = conversation is None
        for _ in range(_ATTEMPTS):
            there = await session.records.get(partition, RECORD)
            if response.background:
                if there is None:
                    # Deleted meanwhile: nothing of it is to come back.
                    response.status = "cancelled"
                    return
                if response_decoder.decode(split(there)[0]).status == "cancelled":
                    response.status, response.completed_at = "cancelled", None
            if conversation is not None and not is_appended and response.status in ("completed", "incomplete"):
                if there is not None and response.background:
                    # Said before: who cancels it from here on comes too late, and before that nothing is appended.
                    there = await self._as_ending(there)
                    if there is None:
                        continue
                await self._append(conversation.id, response, own, run.results)
                is_appended = True
            if not response.store:
                return
            now_us = session.clock.now_us()
            place = before.place
            meta = Meta(
                self._me,
                response.previous_response_id,
                now_us,
                telling,
                run.results,
                before.recorded,
                place,
                before.memories.refs if before.memories else [],
            )
            await self._note_place(response.id, place)
            changes: list[Put | Delete] = [Put(RECORD, stored(response, meta), there.revision if there else 0)]
            if await session.records.get(partition, INPUT) is None:
                changes.append(Put(INPUT, _encoder.encode(list(own))))
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

    async def _as_ending(self, there: Record) -> Record | None:
        """The record of a background response, marked as ending. None where somebody else has changed it meanwhile."""
        shown, meta = split(there)
        response, meta.ending = response_decoder.decode(shown), True
        body = stored(response, meta)
        try:
            revision = await self._session.records.put(
                response_partition(response.id), RECORD, body, expect=there.revision
            )
        except ConditionFailed:
            return None
        return Record(there.sort, revision, body)

    async def _note_place(self, response_id: str, conversation_id: str | None) -> None:
        """Note in a conversation that a response is made of it, before there is one, so that they end together."""
        if conversation_id is not None:
            await put_unless_there(self._session, partition_of(conversation_id), response_sort(response_id))

    async def _show(self, response: Response, telling: Telling) -> bool:
        """Record how far a background response has come. False where it was cancelled or deleted. For its own run."""
        session = self._session
        partition = response_partition(response.id)
        there = await session.records.get(partition, RECORD)
        if there is None or response_decoder.decode(split(there)[0]).status == "cancelled":
            return False
        place = response.conversation.id if response.conversation else None
        meta = Meta(self._me, response.previous_response_id, session.clock.now_us(), telling, conversation=place)
        try:
            await session.records.put(partition, RECORD, stored(response, meta), expect=there.revision)
        except ConditionFailed:
            return False
        return True

    async def _append(
        self, conversation_id: str, response: Response, own: Sequence[Item], results: Mapping[str, str]
    ) -> None:
        answered = [item for item in response.output if not isinstance(item, Message) or item.text]
        await self._append_items(conversation_id, response, [*own, *answered], results)

    async def _append_items(
        self,
        conversation_id: str,
        response: Response,
        made: Sequence[Item],
        results: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
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
                    check_readable(item, f"input[{number}]")
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

    async def replay(self, response_id: str, model: str | None = None, *, language: str = "en") -> ResponseRun:
        """A run that answers a recorded response's context once more, on another model where one is named. ``language``
        as for :meth:`begin`.

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
        toolbox.functions(client_functions(given))
        await toolbox.check(shows_results=False)
        line = await session.model(model)
        return await self._start(
            given, line, toolbox, before, own, None, None, response_id=new_id("resp"), language=language
        )


class _Books:
    """The books of one response being made, kept with the session that lasts as long as it is made."""

    def __init__(
        self,
        session: TenantSession,
        meter: Meter,
        request: ModelRequest,
        own: Sequence[Item],
        before: Before,
        taken: TakenRequests | None,
    ) -> None:
        self._taken = taken
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
        is_recorded = False
        try:
            await self._responses()._record(run, self._own, telling, before)
            is_recorded = run.response.status in ("completed", "incomplete")
        finally:
            if self._taken is not None and not is_recorded:
                await self._taken.give_back()
                if place := run.response.conversation:
                    approvals, calls = self._taken.begun_in(self._own, run.response.output)
                    await self._responses()._append_items(place.id, run.response, [*approvals, *calls])

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
