"""How conversations end: deleted ones after the days in which they can be restored, those with a term when it is over,
and unused ones after the tenant's retention.

``conversations-ending/all`` holds what ends by itself, by when (sort: 8 bytes of microseconds, then the id). The
conversation's head decides; an entry is only the reason to look at it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.items import ItemMeta
from nagaya.context.memory_records import forget_derived
from nagaya.context.places import HEAD, ITEM, ITEMS_END, ConversationHead, item_places, partition_of
from nagaya.errors import ConditionFailed
from nagaya.records.sealed_store import Delete, Partition, Put

ENDING: Final = Partition("conversations-ending", "all")
_DAY_US: Final = 86_400 * 1_000_000
_PAGE: Final = 90
_ATTEMPTS: Final = 16

_log = structlog.get_logger(__name__)
_head_decoder = msgspec.json.Decoder(ConversationHead)
_meta_decoder = msgspec.json.Decoder(ItemMeta)


def ends_at_us(head: ConversationHead, restore_days: int) -> int | None:
    """When a conversation ends by itself; None: never. The tenant's retention is looked at apart from this."""
    ends = [head.expires_at_us] if head.expires_at_us else []
    if head.deleted_at_us:
        ends.append(head.deleted_at_us + restore_days * _DAY_US)
    return min(ends, default=None)


async def note_ending(session: TenantSession, conversation_id: str, when_us: int) -> None:
    """Have the conversation looked at when it is to end. May be repeated."""
    try:
        await session.records.put(ENDING, when_us.to_bytes(8, "big") + conversation_id.encode(), b"")
    except ConditionFailed:
        return


async def purge(session: TenantSession, conversation_id: str) -> None:
    """Remove every record of a conversation and what was derived from it: items, summaries, memories, and the
    responses made in it.

    After it returns nothing of it can be read or appended to. May be repeated, also after a crash.
    """
    partition, records = partition_of(conversation_id), session.records
    for _ in range(_ATTEMPTS):
        head = await records.get(partition, HEAD)
        if head is None:
            break
        rows = await records.query(partition, after=ITEM, before=ITEMS_END, limit=1, descending=True)
        tail = int.from_bytes(rows[0].sort[1:], "big") + 1 if rows else 0
        try:
            # The next place is taken too, so that no append can slip in behind the deletion.
            await records.write(partition, [Delete(HEAD, head.revision), Put(ITEM + tail.to_bytes(8, "big"), b"")])
        except ConditionFailed:
            continue
        await _unlist(session, _head_decoder.decode(head.body))
        break
    session.room.tails.pop(conversation_id, None)
    async for response_id in _responses_in(session, conversation_id):
        await remove_all(session, Partition("response", response_id))
    await forget_derived(session, conversation_id)
    await _remove_items(session, partition)


async def _remove_items(session: TenantSession, partition: Partition) -> None:
    records = session.records
    newest = await records.query(partition, after=ITEM, before=ITEMS_END, limit=1, descending=True)
    closing = newest[0].sort if newest else b""
    await remove_all(session, partition, keep=closing)


async def remove_all(session: TenantSession, partition: Partition, *, keep: bytes = b"") -> None:
    """Remove every record of a partition but the one at ``keep``. May be repeated."""
    after = b""
    while rows := await session.records.query(partition, after=after, limit=_PAGE):
        doomed: list[Put | Delete] = [Delete(row.sort, row.revision) for row in rows if row.sort != keep]
        if doomed:
            try:
                await session.records.write(partition, doomed)
            except ConditionFailed:
                continue
        after = rows[-1].sort


async def _responses_in(session: TenantSession, conversation_id: str) -> AsyncIterator[str]:
    first, seen = 0, ""
    while page := await item_places(session, conversation_id, first, None, limit=_PAGE):
        for _, body in page:
            if body:
                made_by = _meta_decoder.decode(body[body.index(b"\n") + 1 :]).response
                if made_by is not None and made_by != seen:
                    seen = made_by
                    yield made_by
        first = page[-1][0] + 1


async def _unlist(session: TenantSession, head: ConversationHead) -> None:
    blind = await session.records.blind("conversation.owner", head.owner)
    for partition in (
        Partition("conversations-of", blind),
        Partition("conversations-deleted", blind),
        Partition("conversations-shared", "all"),
    ):
        await remove_one(session, partition, head.id.encode())


async def remove_one(session: TenantSession, partition: Partition, sort: bytes) -> None:
    """Remove one record, whatever its revision. May be repeated."""
    for _ in range(_ATTEMPTS):
        record = await session.records.get(partition, sort)
        if record is None:
            return
        try:
            await session.records.delete(partition, sort, expect=record.revision)
        except ConditionFailed:
            continue
        return


async def end_conversations(session: TenantSession) -> int:
    """Remove for good what has come to its end by now; gives how many conversations. May be repeated."""
    tenant, now_us = session.tenant, session.clock.now_us()
    ended = 0
    while True:
        due = await session.records.query(ENDING, before=(now_us + 1).to_bytes(8, "big"), limit=_PAGE)
        for row in due:
            conversation_id = row.sort[8:].decode()
            record = await session.records.get(partition_of(conversation_id), HEAD)
            if record is not None:
                when_us = ends_at_us(_head_decoder.decode(record.body), tenant.restore_days)
                if when_us is not None and when_us <= now_us:
                    await purge(session, conversation_id)
                    ended += 1
                elif when_us is not None:
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
    while True:
        found = await session.records.scan_at(HEAD, "conversation", after=after, limit=500)
        for record in found.records:
            head = _head_decoder.decode(record.body)
            if head.created_at_us < since_us and await _last_said_us(session, head) < since_us:
                unused.append(head.id)
        after = found.after
        if after is None:
            break
    for conversation_id in unused:
        await purge(session, conversation_id)
    return len(unused)


async def _last_said_us(session: TenantSession, head: ConversationHead) -> int:
    page = await item_places(session, head.id, 0, None, limit=8, descending=True)
    bodies = [body for _, body in page if body]
    if not bodies:
        return head.created_at_us
    return _meta_decoder.decode(bodies[0][bodies[0].index(b"\n") + 1 :]).at
