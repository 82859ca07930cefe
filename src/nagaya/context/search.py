"""Searching what the caller may read, by words, English and Japanese alike: messages, memories, passages of documents.

One list, the best first, whatever it was found in: a score depends on a text and the query alone. What is shown is read
from the records at that moment, by the rules of the kind it belongs to. So that a search stays bounded it reads so much
and no more, and says so where there was more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, get_args

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import Conversations, check_limit
from nagaya.context.found import FoundDocument, FoundMemory, FoundMessage, FoundPage, Place, Read, SearchType, snippet
from nagaya.context.library.passages import passages, shown_passage
from nagaya.context.memories import Memories
from nagaya.context.memory_search import IN_A_THREAD_FROM
from nagaya.context.message_search import messages, shown_message
from nagaya.errors import InvalidValue, MissingParameter, NotFound
from nagaya.indexes.coverage import coverage
from nagaya.indexes.terms import query_terms
from nagaya.indexes.word_block import Wanted
from nagaya.tenancy.principal import Scope

MAX_QUERY_CHARACTERS: Final = 1_000
MAX_CONVERSATIONS: Final = 10_000
"""Conversations that one search looks at."""
MAX_ITEMS: Final = 20_000
"""Items whose words are not noted yet that one search reads."""
MAX_CHARACTERS: Final = 20_000_000
"""Characters of such items that one search reads."""
TYPES: Final[tuple[SearchType, ...]] = get_args(SearchType)

_place_decoder = msgspec.json.Decoder(Place)


def check_types(types: Sequence[str]) -> None:
    """Raise ``InvalidValue`` for a type that cannot be searched, naming it."""
    for one in types:
        if one not in TYPES:
            detail = f"'{one[:64]}' cannot be searched here; known: {', '.join(TYPES)}"
            raise InvalidValue(param="types", at="types", detail=detail)


class Everywhere:
    """One caller's searches through everything that it may read."""

    def __init__(self, session: TenantSession, conversations: Conversations, memories: Memories) -> None:
        self._session = session
        self._conversations = conversations
        self._memories = memories

    async def search(
        self, query: str, *, types: Sequence[str] = TYPES, limit: int = 20, after: str | None = None
    ) -> FoundPage:
        """What has the words of ``query``, best first: the caller's own conversations, vector stores and memories, the
        tenant's memories, and for a ``member`` and a ``tenant_admin`` what is shared in the tenant. Shows what is there
        at that moment and may be repeated.

        ``limit`` is 1–100; ``after`` is the ``next_cursor`` of the page before, of the same caller, query and types.
        Raises ``MissingParameter``, ``InvalidValue``, ``NotFound`` for a cursor to anything else.
        """
        session = self._session
        session.entrance.require(Scope.READ)
        check_limit(limit)
        check_types(types)
        if not query.strip():
            raise MissingParameter(param="q", at="q")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InvalidValue(param="q", at="q", detail=f"at most {MAX_QUERY_CHARACTERS} characters")
        about = ("search", session.entrance.principal.user_key, query, *sorted(set(types)))
        cursors = session.records.cursors
        below = None if after is None else _place_decoder.decode(await cursors.open_cursor(about, after))
        wanted = query_terms(query)
        if not wanted:
            return FoundPage(data=[], has_more=False, next_cursor=None, complete=True)
        read = Read(conversations=MAX_CONVERSATIONS, items=MAX_ITEMS, characters=MAX_CHARACTERS)
        places = self._places(frozenset(types), wanted, read)
        found = sorted([place async for place in places if below is None or place < below], reverse=True)
        page = found[:limit]
        shown = [result for place in page if (result := await self._shown(place, query)) is not None]
        more = len(found) > limit
        cursor = await cursors.seal_cursor(about, msgspec.json.encode(page[-1])) if more else None
        return FoundPage(data=shown, has_more=more, next_cursor=cursor, complete=read.complete)

    async def _places(self, types: frozenset[str], wanted: Mapping[str, float], read: Read) -> AsyncIterator[Place]:
        if "conversations" in types:
            async for place in messages(self._session, Wanted(wanted), read):
                yield place
        if "memories" in types:
            for place in await self._memory_places(wanted):
                yield place
        if "documents" in types:
            async for place in passages(self._session, wanted, read):
                yield place

    async def _memory_places(self, wanted: Mapping[str, float]) -> list[Place]:
        memories = await self._memories.readable()

        def work() -> list[Place]:
            scored = ((coverage(one.terms.counts_of(wanted), wanted), one) for one in memories)
            return [Place(score, one.created_at_us, one.id, one.version) for score, one in scored if score]

        return work() if len(memories) < IN_A_THREAD_FROM else await asyncio.to_thread(work)

    async def _shown(self, place: Place, query: str) -> FoundMessage | FoundMemory | FoundDocument | None:
        if place.source.startswith("conv_"):
            return await shown_message(self._session, self._conversations, place, query)
        if place.source.startswith("vs_"):
            return await shown_passage(self._session, place, query)
        try:
            memory = await self._memories.retrieve(place.source)
        except NotFound:
            return None
        piece, marked = await snippet(memory.text, query)
        return FoundMemory(
            memory_id=memory.id,
            scope=memory.scope,
            created_at=memory.created_at,
            score=place.score,
            snippet=piece,
            highlights=marked,
        )
