"""``/v1/responses``: create, stream, retrieve, delete, cancel, input items."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from nagaya.context.idempotency import Answer, Claim, claim
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import ErrorEvent, Event, Response, ResponseIn, Telling, replay
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NagayaError
from nagaya.server.calls import Call, Reply, Stream, encode, flag_of, frame_of, listed, number_of, order_of


async def create(call: Call) -> Reply | Stream:
    """Answer an input: whole, as a stream, or in the background, which a stream then follows."""
    context = await call.admit()
    try:
        body = await call.body()
        given = call.decode(body, ResponseIn)
        if given.stream:
            call.open_stream(context)
        held: Claim | None = None
        key = call.header(b"idempotency-key")
        if key is not None:
            found = await claim(context.session, key, f"{call.method} {call.path}\n".encode() + body)
            if isinstance(found, Answer):
                shown, _, told = found.body.partition(b"\n")
                telling = call.decode(told, Telling)
                return await _again(call, call.decode(shown, Response), telling, given, context)
            held = found
            before = await context.responses.find(held.id("resp"))
            if before is not None and before.status not in ("queued", "in_progress"):
                # The first attempt answered and was lost before it could say so.
                telling = await context.responses.telling(before.id)
                await held.finish(200, b"%b\n%b" % (encode(before), encode(telling)))
                return await _again(call, before, telling, given, context)
        try:
            run = await context.responses.begin(given, held, language=call.language)
            if given.background:
                began = await context.responses.start_background(run)
                if held is not None:
                    await held.finish(200, encode(began))
                if given.stream:
                    followed = _Frames(call.language, run.follow())
                    return followed.stream(context, lambda: None, ends_with_reader=True)
                return Reply(encode(began))
        except NagayaError:
            if held is not None:
                await held.abandon()
            raise
        if given.stream:
            return _Frames(call.language, _events(run)).stream(context, run.leave)
        response = await run.finish()
        if run.problem is not None:
            # This request's error; its response stays recorded as failed.
            raise run.problem
        return Reply(encode(response))
    finally:
        await context.close()


async def _events(run: ResponseRun) -> AsyncGenerator[Event, None]:
    while (event := await run.next()) is not None:
        yield event


async def _again(
    call: Call, response: Response, telling: Telling, given: ResponseIn, context: TenantContext
) -> Reply | Stream:
    """A response that is there already, in the form that is asked for."""
    if not given.stream:
        return Reply(encode(response))
    if response.background:
        return await _followed(call, response.id, context)
    return _Frames(call.language, _iterated(replay(response, telling))).stream(context, lambda: None)


async def _followed(call: Call, response_id: str, context: TenantContext, *, after: int = -1) -> Stream:
    """The events of a recorded response as a stream; raises first where there is no such response."""
    await context.responses.retrieve_wire(response_id)
    inside = context.lasting()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            async for event in inside.responses.follow(response_id, after=after, language=call.language):
                yield event
        finally:
            await inside.close()

    frames = _Frames(call.language, events(), next_number=after + 1)
    return frames.stream(context, lambda: context.session.background(inside.close()), ends_with_reader=True)


async def _iterated(events: Iterable[Event]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


class _Frames:
    """A response's events as they are sent, and the word that is said where there can be no more of them."""

    def __init__(self, language: str, events: AsyncGenerator[Event, None], *, next_number: int = 0) -> None:
        self._language = language
        self._events = events
        self._next = next_number

    def stream(self, context: TenantContext, leave: Callable[[], None], *, ends_with_reader: bool = False) -> Stream:
        entrance, is_current = context.session.entrance, context.session.is_current
        return Stream(
            self._sent(),
            lambda: is_current(entrance),
            leave,
            ends_with_reader=ends_with_reader,
            last_word=self._last_word,
        )

    async def _sent(self) -> AsyncGenerator[bytes, None]:
        try:
            async for event in self._events:
                self._next = event.sequence_number + 1
                yield frame_of(event.type, encode(event))
        except NagayaError as problem:
            yield self._last_word(problem)
        finally:
            await self._events.aclose()

    def _last_word(self, problem: NagayaError) -> bytes:
        said = ErrorEvent(problem.code, problem.message(self._language), problem.param, self._next)
        return frame_of(said.type, encode(said))


async def retrieve(call: Call) -> Reply | Stream:
    """A recorded response; with ``stream=true`` its events once more, or as they come."""
    async with await call.admit() as context:
        query = call.query({"stream": "", "starting_after": "", "include_obfuscation": ""})
        flag_of(query["include_obfuscation"], "include_obfuscation")
        after = -1
        if query["starting_after"]:
            after = number_of(query["starting_after"], "starting_after", lowest=0, highest=10**9)
        if flag_of(query["stream"], "stream"):
            call.open_stream(context)
            return await _followed(call, call.params[0], context, after=after)
        return Reply(await context.responses.retrieve_wire(call.params[0], language=call.language))


class ReplayIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/replay``: the model to answer (the preferred one, unless given)."""

    model: str | None = None


async def context(call: Call) -> Reply:
    """What the model was sent for a response."""
    async with await call.admit() as inside:
        call.query({})
        return Reply(encode(await inside.responses.context(call.params[0])))


async def replay_on(call: Call) -> Reply:
    """Answer a recorded response's context once more, on another model."""
    async with await call.admit() as inside:
        given = await call.json(ReplayIn)
        run = await inside.responses.replay(call.params[0], given.model, language=call.language)
        response = await run.finish()
        if run.problem is not None:
            raise run.problem
        return Reply(encode(response))


async def delete(call: Call) -> Reply:
    """Delete a response. Its items in a conversation stay."""
    async with await call.admit() as context:
        await context.responses.delete(call.params[0])
        return Reply(encode({"id": call.params[0], "object": "response", "deleted": True}))


async def cancel(call: Call) -> Reply:
    """Cancel a background response that is in progress."""
    async with await call.admit() as context:
        return Reply(encode(await context.responses.cancel(call.params[0], language=call.language)))


async def input_items(call: Call) -> Reply:
    """The items that a response was given."""
    async with await call.admit() as context:
        query = call.query({"after": "", "limit": "20", "order": "desc"})
        page = await context.responses.input_items(
            call.params[0],
            after=query["after"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            order=order_of(query["order"]),
        )
        return listed(page.data, has_more=page.has_more)
