"""``/v1/events``: the caller's notices as server-sent events, resumable with ``Last-Event-ID``."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from nagaya.context.notices import Notices
from nagaya.errors import InvalidValue, NagayaError, SessionClosed
from nagaya.server.calls import Call, Stream, encode, frame_of

RETRY_MS = 2000
"""How long a reader waits before it connects again (the standard's ``retry`` field)."""


async def events(call: Call) -> Stream:
    """The caller's notices of agents and library, as they happen; resumable with `Last-Event-ID`."""
    context = await call.admit()
    try:
        query = call.query({"from": "latest"})
        if query["from"] not in ("latest", "earliest"):
            raise InvalidValue(param="from", at="from", detail="expected 'latest' or 'earliest'")
        notices = Notices(context.session)
        last = call.header(b"last-event-id")
        if last:
            after = await notices.place(last)
        else:
            after = 0 if query["from"] == "earliest" else await notices.newest()
    except BaseException:
        await context.close()
        raise

    nagaya = call.nagaya

    def last_word(problem: NagayaError) -> bytes:
        shown = {
            "type": "error",
            "code": problem.code,
            "message": problem.message(call.language),
            "param": problem.param,
        }
        return frame_of("error", encode(shown))

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            # The place is said at once, so that a reader who is cut off before the first notice misses none.
            yield b"retry: %d\nid: %b\n\n" % (RETRY_MS, (await notices.cursor(after)).encode())
            # A server that is to stop lets its readers go to another one, which goes on from the last id.
            async for notice in notices.follow(after, until=lambda: not nagaya.ready):
                cursor = (await notices.cursor(notice.number)).encode()
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor, notice.type.encode(), notice.data)
        except SessionClosed as closed:
            yield last_word(closed)
        finally:
            await context.close()

    entrance, is_current = context.session.entrance, context.session.is_current
    return Stream(frames(), lambda: is_current(entrance), lambda: None, ends_with_reader=True, last_word=last_word)
