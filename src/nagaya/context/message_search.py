"""Which messages have a query's words, of the conversations that the caller may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import Conversation, Conversations
from nagaya.context.found import LONG, FoundMessage, Place, Read, snippet
from nagaya.context.items import Message, load_item, load_meta
from nagaya.context.places import item_places, item_sort, partition_of
from nagaya.errors import NotFound
from nagaya.indexes.coverage import coverage
from nagaya.indexes.terms import term_counts
from nagaya.tenancy.principal import Role

_PAGE: Final = 100


async def messages(
    session: TenantSession, conversations: Conversations, wanted: Mapping[str, float], read: Read
) -> AsyncIterator[Place]:
    """The places of the messages that have enough of ``wanted``."""
    async for conversation in _readable(session, conversations, read):
        async for place in _matches(session, conversation, wanted, read):
            yield place


async def _readable(session: TenantSession, conversations: Conversations, read: Read) -> AsyncIterator[Conversation]:
    """The conversations to read, the caller's own first, each once."""
    seen: set[str] = set()
    for shared in (False,) if session.entrance.principal.role is Role.USER else (False, True):
        after = None
        while True:
            page = await conversations.list(shared=shared, after=after, limit=_PAGE)
            for conversation in page.data:
                if conversation.id in seen:
                    continue
                if read.is_full():
                    return
                seen.add(conversation.id)
                read.conversations += 1
                yield conversation
            after = page.cursor
            if after is None:
                break


async def _matches(
    session: TenantSession, conversation: Conversation, wanted: Mapping[str, float], read: Read
) -> AsyncIterator[Place]:
    upto = None
    while True:
        if read.is_full():
            return
        rows = await item_places(session, conversation.id, 0, upto, limit=_PAGE, descending=True)
        read.items += len(rows)
        for number, body in rows:
            item = load_item(body) if body else None
            if not isinstance(item, Message):
                continue
            text = item.text
            read.characters += len(text)
            score = _score(text, wanted) if len(text) < LONG else await asyncio.to_thread(_score, text, wanted)
            if score:
                yield Place(score, load_meta(body).at, conversation.id, number)
        await asyncio.sleep(0)  # the reading of many is not to hold up everybody else
        if len(rows) < _PAGE:
            return
        upto = rows[-1][0]


def _score(text: str, wanted: Mapping[str, float]) -> float:
    return coverage(term_counts(text), wanted)


async def shown_message(
    session: TenantSession, conversations: Conversations, place: Place, query: str
) -> FoundMessage | None:
    """The result as the records have it now; None for what was deleted or taken from the caller meanwhile."""
    try:
        conversation = await conversations.retrieve(place.source)
    except NotFound:
        return None
    record = await session.records.get(partition_of(place.source), item_sort(place.part))
    item = load_item(record.body) if record is not None and record.body else None
    if not isinstance(item, Message):
        return None
    piece, marked = await snippet(item.text, query)
    return FoundMessage(
        conversation_id=conversation.id,
        item_id=item.id,
        role=item.role,
        title=conversation.title,
        created_at=place.at_us // 1_000_000,
        score=place.score,
        snippet=piece,
        highlights=marked,
    )
