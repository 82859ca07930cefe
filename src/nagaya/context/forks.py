"""Forks: a conversation that begins as another one did, up to an item, and goes its own way from there."""

from __future__ import annotations

from typing import Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.approvals import answered_elsewhere
from nagaya.context.conversations import Conversation, Conversations
from nagaya.context.ending import note_ending
from nagaya.context.items import ItemMeta, load_item, stored
from nagaya.context.lone_records import remove_all
from nagaya.context.places import HEAD, ForkedFrom, item_places, item_sort, partition_of
from nagaya.context.tool_items import McpApprovalRequest
from nagaya.errors import ConditionFailed, Conflict
from nagaya.kernel.ids import new_id, new_placed_id
from nagaya.records.sealed_store import Delete, Put

_COPIED_AT_ONCE: Final = 45
"""Items in one batch: each takes up to two changes of the hundred that a store's batch may have."""
_GIVEN_UP_US: Final = 2 * 86_400 * 1_000_000
"""So long after it was begun a fork of which there is no conversation is removed: longer than a request is repeated."""
_meta_decoder = msgspec.json.Decoder(ItemMeta)


async def fork(
    session: TenantSession,
    conversations: Conversations,
    conversation_id: str,
    *,
    item_id: str | None = None,
    title: str | None = None,
    new: str | None = None,
) -> Conversation:
    """A new conversation of the caller's with the items up to and with ``item_id`` (None: all), under ids of their own.

    Whoever may read the source may fork it. The new conversation is there once it is whole. Raises ``NotFound`` for a
    conversation or an item that is not there or not the caller's to read. A request for an approval is answered where
    it was asked, not in the fork: what it asks for is called once. With ``new`` (an idempotent request's id) a repeat
    gives the fork made before.
    """
    session.may_write()
    if new is not None:
        if await session.records.get(partition_of(new), HEAD) is not None:
            return await conversations.retrieve(new)
        # What an attempt has left that ended half-way is of the source as it was then.
        await remove_all(session, partition_of(new))
    source = await conversations.retrieve(conversation_id)
    last = None if item_id is None else await conversations.place_of(conversation_id, item_id)
    new = new or new_id("conv")
    target = partition_of(new)
    # Noted before: without a head nobody else would find what somebody leaves who dies half-way.
    await note_ending(session, new, session.clock.now_us() + _GIVEN_UP_US)
    made, first, last_id = 0, 0, None
    while True:
        upto = None if last is None else last + 1
        page = await item_places(session, conversation_id, first, upto, limit=_COPIED_AT_ONCE)
        copies: list[Put | Delete] = []
        for _, body in page:
            if body:
                item = load_item(body)
                last_id, item.id = item.id, new_placed_id("item", made)
                meta = _meta_decoder.decode(body[body.index(b"\n") + 1 :])
                copies.append(Put(item_sort(made), stored(item, meta)))
                if isinstance(item, McpApprovalRequest):
                    copies.append(answered_elsewhere(item.id))
                made += 1
        if copies:
            try:
                await session.records.write(target, copies)
            except ConditionFailed:
                # The same request is carried out by somebody else.
                raise Conflict from None
        if len(page) < _COPIED_AT_ONCE:
            break
        first = page[-1][0] + 1
    # Once more: what was read is perhaps not whole by now, or not the reader's any more.
    await conversations.retrieve(conversation_id)
    metadata = dict(source.metadata) if title is None else {**source.metadata, "title": title}
    origin = ForkedFrom(conversation_id=conversation_id, item_id=last_id)
    return await conversations.create(metadata=metadata, conversation_id=new, forked_from=origin)
