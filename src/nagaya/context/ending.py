"""How conversations end: deleted ones after the days in which they can be restored, those with a term when it is over,
and unused ones after the tenant's retention.

``conversations-ending/all`` holds what ends by itself, by when (sort: 8 bytes of microseconds, then the id). The
conversation's head decides; an entry is only the reason to look at it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.items import ItemMeta
from nagaya.context.lone_records import put_unless_there, remove_all, remove_one
from nagaya.context.memory_records import forget_derived
from nagaya.context.places import (
    HEAD,
    ITEM,
    ITEMS_END,
    RESPONSE,
    RESPONSES_END,
    SHARED,
    ConversationHead,
    deleted_of,
    item_places,
    item_sort,
    list_of,
    partition_of,
)
from nagaya.errors import ConditionFailed, Conflict
from nagaya.records.sealed_store import Delete, Partition, Put

ENDING: Final = Partition("conversations-ending", "all")
_DAY_US: Final = 86_400 * 1_000_000
_BEGUN_US: Final = 60_000_000
_PAGE: Final = 90
_ATTEMPTS: Final = 16

_log = structlog.get_logger(__name__)
_head_decoder = msgspec.json.Decoder(ConversationHead)
_meta_decoder = msgspec.json.Decoder(ItemMeta)


class _MadeIn(msgspec.Struct):
    """What a response's record says of where it was made."""

    conversation: str | None = None


_made_in_decoder = msgspec.json.Decoder(_MadeIn)


def ends_at_us(head: ConversationHead, restore_days: int) -> int | None:
    """When a conversation ends by itself; None: never. The tenant's retention is looked at apart from this."""
    ends = [head.expires_at_us] if head.expires_at_us else []
    if head.deleted_at_us:
        ends.append(head.deleted_at_us + restore_days * _DAY_US)
    return min(ends, default=None)


async def note_ending(session: TenantSession, conversation_id: str, when_us: int) -> None:
    """Have the conversation looked at when it is to end. May be repeated."""
    await put_unless_there(session, ENDING, _ending_sort(conversation_id, when_us))


def _ending_sort(conversation_id: str, when_us: int) -> bytes:
    return when_us.to_bytes(8, "big") + conversation_id.encode()


async def purge(
    session: TenantSession,
    conversation_id: str,
    *,
    is_due: Callable[[ConversationHead], Awaitable[bool]] | None = None,
) -> bool:
    """Remove every record of a conversation and what was derived from it: items, summaries, memories, and the
    responses made in it.

    After it returns nothing of it can be read or appended to. Once begun it is finished by the daily work, if whoever
    began it dies. May be repeated. ``is_due`` is asked of the very state that would be removed: one that was restored,
    renewed or appended to since somebody found it at its end stays, and False is given.
    """
    partition, records, room = partition_of(conversation_id), session.records, session.room
    # Noted before: without its head nobody else would find what is left of it.
    noted = _ending_sort(conversation_id, session.clock.now_us())
    await put_unless_there(session, ENDING, noted)
    for _ in range(_ATTEMPTS):
        head = await records.get(partition, HEAD)
        if head is None:
            break
        rows = await records.query(partition, after=ITEM, before=ITEMS_END, limit=1, descending=True)
        tail = int.from_bytes(rows[0].sort[1:], "big") + 1 if rows else 0
        if is_due is not None and not await is_due(_head_decoder.decode(head.body)):
            await remove_one(session, ENDING, noted)
            return False
        try:
            # The next place is taken too, so that no append can slip in behind the deletion.
            await records.write(partition, [Delete(HEAD, head.revision), Put(item_sort(tail), b"")])
        except ConditionFailed:
            continue
        finally:
            # Also where nobody says that it was written.
            room.forget_tail(conversation_id)
        await _unlist(session, _head_decoder.decode(head.body))
        break
    else:
        raise Conflict
    async for response_id in _responses_in(session, conversation_id):
        if not await _is_anothers(session, response_id, conversation_id):
            await remove_all(session, Partition("response", response_id))
    await forget_derived(session, conversation_id)
    newest = await records.query(partition, after=ITEM, before=ITEMS_END, limit=1, descending=True)
    await remove_all(session, partition, keep=newest[0].sort if newest and not newest[0].body else b"")
    await remove_one(session, ENDING, noted)
    return True


async def _responses_in(session: TenantSession, conversation_id: str) -> AsyncIterator[str]:
    """The responses made in a conversation, as their items say and as is noted of each; some of them twice."""
    first = 0
    while page := await item_places(session, conversation_id, first, None, limit=_PAGE):
        for _, body in page:
            made_by = _meta_decoder.decode(body[body.index(b"\n") + 1 :]).response if body else None
            if made_by is not None:
                yield made_by
        first = page[-1][0] + 1
    partition, after = partition_of(conversation_id), RESPONSE
    while rows := await session.records.query(partition, after=after, before=RESPONSES_END, limit=_PAGE):
        for row in rows:
            yield row.sort[len(RESPONSE) :].decode()
        after = rows[-1].sort


async def _is_anothers(session: TenantSession, response_id: str, conversation_id: str) -> bool:
    """Whether the response belongs to another conversation: the items of a fork name those of its source."""
    record = await session.records.get(Partition("response", response_id), HEAD)
    if record is None:
        return False
    return _made_in_decoder.decode(record.body[record.body.index(b"\n") + 1 :]).conversation not in (
        None,
        conversation_id,
    )


async def _unlist(session: TenantSession, head: ConversationHead) -> None:
    listed = await list_of(session, head.owner)
    for partition in (listed, deleted_of(listed), SHARED):
        await remove_one(session, partition, head.id.encode())


async def end_conversations(session: TenantSession) -> int:
    """Remove for good what has come to its end by now; gives how many conversations. May be repeated."""
    tenant, now_us = session.tenant, session.clock.now_us()
    ended = 0
    after = b""

    async def is_over(head: ConversationHead) -> bool:
        when_us = ends_at_us(head, tenant.restore_days)
        return when_us is not None and when_us <= now_us

    while True:
        due = await session.records.query(ENDING, after=after, before=(now_us + 1).to_bytes(8, "big"), limit=_PAGE)
        for row in due:
            after = row.sort
            conversation_id = row.sort[8:].decode()
            record = await session.records.get(partition_of(conversation_id), HEAD)
            head = None if record is None else _head_decoder.decode(record.body)
            if head is None:
                # Somebody began to remove it and did not come to the end.
                await purge(session, conversation_id)
            elif await is_over(head):
                if not await purge(session, conversation_id, is_due=is_over):
                    continue
                ended += 1
            elif row.sort[:8] > (now_us - _BEGUN_US).to_bytes(8, "big"):
                continue  # somebody says that it is about to be removed
            elif (when_us := ends_at_us(head, tenant.restore_days)) is not None:
                await note_ending(session, conversation_id, when_us)
            await remove_one(session, ENDING, row.sort)
        if len(due) < _PAGE:
            break
    if tenant.retention_days is not None:
        ended += await _end_unused(session, now_us - tenant.retention_days * _DAY_US)
    if ended:
        _log.info("conversations ended", action="conversations.ended", tenant=tenant.id, conversations=ended)
    return ended


async def _end_unused(session: TenantSession, since_us: int) -> int:
    """Remove conversations in which nothing was said since then. It looks through the whole room."""
    unused: list[str] = []
    after: tuple[str, bytes] | None = None

    async def is_unused(head: ConversationHead) -> bool:
        return head.created_at_us < since_us and await _last_said_us(session, head) < since_us

    while True:
        found = await session.records.scan_at(HEAD, "conversation", after=after, limit=500)
        for record in found.records:
            head = _head_decoder.decode(record.body)
            if await is_unused(head):
                unused.append(head.id)
        after = found.after
        if after is None:
            break
    return sum([await purge(session, conversation_id, is_due=is_unused) for conversation_id in unused])


async def _last_said_us(session: TenantSession, head: ConversationHead) -> int:
    limit, upto = 8, None
    while page := await item_places(session, head.id, 0, upto, limit=limit, descending=True):
        for _, body in page:
            if body:
                return _meta_decoder.decode(body[body.index(b"\n") + 1 :]).at
        # All of them were deleted, or lie elsewhere.
        limit, upto = _PAGE, page[-1][0]
    return head.created_at_us
