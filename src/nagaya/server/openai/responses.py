"""``/v1/responses``: create, stream, retrieve, delete, cancel, input items."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from nagaya.context.idempotency import Answer, Claim, claim
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import Response, ResponseIn, replay
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NagayaError
from nagaya.server.calls import Call, Reply, Stream, encode, flag_of, number_of, order_of
from nagaya.server.streams import frame_of


async def create(call: Call) -> Reply | Stream:
    """Answer an input: whole, as a stream, or in the background."""
    context = await call.admit()
    try:
        body = await call.body()
        given = call.decode(body, ResponseIn)
        held: Claim | None = None
        key = call.header(b"idempotency-key")
        if key is not None:
            found = await claim(context.session, key, f"{call.method} {call.path}\n".encode() + body)
            if isinstance(found, Answer):
                return _again(call.decode(found.body, Response), context) if given.stream else Reply(found.body)
            held = found
            before = await context.responses.find(held.id("resp"))
            if before is not None and before.status not in ("queued", "in_progress"):
                # The first attempt answered and was lost before it could say so.
                await held.finish(200, encode(before))
                return _again(before, context) if given.stream else Reply(encode(before))
        try:
            run = await context.responses.begin(given, held)
            if given.background:
                began = encode(await context.responses.start_background(run))
                if held is not None:
                    await held.finish(200, began)
                return Reply(began)
        except NagayaError:
            if held is not None:
                await held.abandon()
            raise
        if given.stream:
            return Stream(_frames(run), _still(context), run.leave)
        response = await run.finish()
        if run.problem is not None:
            # This request's error; its response stays recorded as failed.
            raise run.problem
        return Reply(encode(response))
    finally:
        await context.close()


async def _frames(run: ResponseRun) -> AsyncGenerator[bytes, None]:
    while (event := await run.next()) is not None:
        yield frame_of(event.type, encode(event))


def _again(response: Response, context: TenantContext) -> Stream:
    """A stream of a response that is there already."""

    async def frames() -> AsyncGenerator[bytes, None]:
        for event in replay(response):
            yield frame_of(event.type, encode(event))

    return Stream(frames(), _still(context), lambda: None)


def _still(context: TenantContext) -> Callable[[], bool]:
    entrance, is_current = context.session.entrance, context.session.is_current
    return lambda: is_current(entrance)


async def retrieve(call: Call) -> Reply | Stream:
    """A recorded response; with ``stream=true`` its events once more."""
    async with await call.admit() as context:
        query = call.query({"stream": "", "starting_after": "", "include_obfuscation": ""})
        if flag_of(query["stream"], "stream"):
            response = await context.responses.retrieve(call.params[0])
            after = -1
            if query["starting_after"]:
                after = number_of(query["starting_after"], "starting_after", lowest=0, highest=10**9)

            async def frames() -> AsyncGenerator[bytes, None]:
                for event in replay(response):
                    if event.sequence_number > after:
                        yield frame_of(event.type, encode(event))

            return Stream(frames(), _still(context), lambda: None)
        return Reply(await context.responses.retrieve_wire(call.params[0]))


async def delete(call: Call) -> Reply:
    """Delete a response. Its items in a conversation stay."""
    async with await call.admit() as context:
        await context.responses.delete(call.params[0])
        return Reply(encode({"id": call.params[0], "object": "response", "deleted": True}))


async def cancel(call: Call) -> Reply:
    """Cancel a background response that is in progress."""
    async with await call.admit() as context:
        return Reply(encode(await context.responses.cancel(call.params[0])))


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
        shown = {
            "object": "list",
            "data": page.data,
            "first_id": page.data[0].id if page.data else None,
            "last_id": page.data[-1].id if page.data else None,
            "has_more": page.has_more,
        }
        return Reply(encode(shown))
