"""Which messages have a query's words, of the conversations that the caller may read.

Where a conversation's words are noted (see :mod:`nagaya.context.message_words`), its messages are not read; whatever is
not noted is, so that what is found does not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import Conversations
from nagaya.context.found import LONG, FoundMessage, Place, Read, snippet
from nagaya.context.items import Message, load_item, load_meta
from nagaya.context.message_words import MANY, QUIET_US, Gap, note_soon, read_words
from nagaya.context.places import SHARED, ConversationHead, item_places, item_sort, list_of, partition_of
from nagaya.errors import NotFound
from nagaya.indexes.coverage import coverage
from nagaya.indexes.terms import term_counts
from nagaya.indexes.word_block import Wanted
from nagaya.tenancy.principal import Role

_FEW: Final = 12
"""Items read first where most often there are none: a store that is near answers a short question sooner."""
_PAGE: Final = 100
_IDS: Final = 500
_AT_ONCE: Final = 16
"""Conversations looked through side by side: where the store is far, its answers are waited for together."""

_Rows = Sequence[tuple[int, bytes]]
_head_decoder = msgspec.json.Decoder(ConversationHead)


async def messages(session: TenantSession, wanted: Wanted, read: Read) -> AsyncIterator[Place]:
    """The places of the messages that have enough of the words."""
    search = _Search(session, wanted, read)
    try:
        async for ids, shared in search.listed():
            for found in await asyncio.gather(*(search.conversation(each, shared) for each in ids)):
                for place in found:
                    yield place
    finally:
        note_soon(session, search.to_note)


class _Search:
    def __init__(self, session: TenantSession, wanted: Wanted, read: Read) -> None:
        self._session = session
        self._wanted = wanted
        self._read = read
        self.to_note: list[str] = []

    async def listed(self) -> AsyncIterator[tuple[list[str], bool]]:
        """The ids of the conversations to look at, a few at a time, and whether they are looked at as shared ones: the
        caller's own first, the newest first, each once."""
        principal, seen = self._session.entrance.principal, set[str]()
        lists = [(await list_of(self._session, principal.user_key), False)]
        if principal.role is not Role.USER:
            lists.append((SHARED, True))
        for partition, shared in lists:
            before = b""
            while rows := await self._session.records.query(partition, before=before, limit=_IDS, descending=True):
                ids = [each for row in rows if (each := row.sort.decode()) not in seen]
                for start in range(0, len(ids), _AT_ONCE):
                    some = self._read.allowed(ids[start : start + _AT_ONCE])
                    if not some:
                        return
                    seen.update(some)
                    yield some, shared
                before = rows[-1].sort

    async def conversation(self, conversation_id: str, shared: bool) -> list[Place]:
        """What is found in one conversation, if the caller may read it."""
        session = self._session
        words = await read_words(session, conversation_id)
        if words is None:
            return []
        head, now_us = _head_decoder.decode(words.head.body), session.clock.now_us()
        may_see = session.entrance.may_see(head.owner, shared=head.shared, writing=False)
        if not head.is_there(now_us) or not may_see or (shared and not head.shared):
            return []
        found = [
            Place(score, at_us, conversation_id, place)
            for _, block in words.noted
            for place, at_us, score in block.found(self._wanted)
        ]
        left = [place for _, block in words.noted for place in block.unread]
        if left:
            found += await self._left(conversation_id, left)
        for gap in words.gaps():
            found += await self._gap(conversation_id, gap, now_us)
        return found

    async def _gap(self, conversation_id: str, gap: Gap, now_us: int) -> list[Place]:
        """What is found where nothing is noted, the newest read first."""
        found: list[Place] = []
        first, upto = gap
        seen = newest_us = 0
        limit = _FEW
        while True:
            rows = await item_places(self._session, conversation_id, first, upto, limit=limit, descending=True)
            if rows and self._read.is_full():
                self.to_note.append(conversation_id)
                return found
            self._read.items += len(rows)
            seen += len(rows)
            found += await self._matches(conversation_id, rows)
            if not newest_us:
                newest_us = next((load_meta(body).at for _, body in rows if body), 0)
            if len(rows) < limit:
                break
            upto, limit = rows[-1][0], _PAGE
        if seen >= MANY or (seen and newest_us <= now_us - QUIET_US):
            self.to_note.append(conversation_id)
        return found

    async def _left(self, conversation_id: str, places: Sequence[int]) -> list[Place]:
        found: list[Place] = []
        for start in range(0, len(places), _PAGE):
            if self._read.is_full():
                break
            some = places[start : start + _PAGE]
            records = await self._session.records.get_many(partition_of(conversation_id), [*map(item_sort, some)])
            rows = [(place, record.body) for place, record in zip(some, records, strict=True) if record is not None]
            self._read.items += len(rows)
            found += await self._matches(conversation_id, rows)
        return found

    async def _matches(self, conversation_id: str, rows: _Rows) -> list[Place]:
        found = []
        for place, body in rows:
            item = load_item(body) if body else None
            if not isinstance(item, Message):
                continue
            text = item.text
            self._read.characters += len(text)
            score = self._score(text) if len(text) < LONG else await asyncio.to_thread(self._score, text)
            if score:
                found.append(Place(score, load_meta(body).at, conversation_id, place))
        if rows:
            await asyncio.sleep(0)  # the reading of many is not to hold up everybody else
        return found

    def _score(self, text: str) -> float:
        return coverage(term_counts(text), self._wanted.terms)


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
