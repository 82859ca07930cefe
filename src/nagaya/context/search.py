"""Searching what the caller may read, by words, English and Japanese alike.

Every search reads the records themselves, newest conversation first: there is no second copy of anybody's words that
could lag behind, outlive a deletion or know less of permissions than the conversation does. So that a search stays
bounded it reads so many conversations and items and no more, and says so where there were more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import Conversation, Conversations, check_limit
from nagaya.context.items import Item, Message, load_item, load_meta
from nagaya.context.places import item_places
from nagaya.errors import InvalidValue, MissingParameter, NotFound
from nagaya.indexes.highlights import highlights
from nagaya.indexes.terms import query_terms, term_counts
from nagaya.tenancy.principal import Role, Scope

MAX_QUERY_CHARACTERS: Final = 1_000
MAX_CONVERSATIONS: Final = 2_000
"""Conversations that one search reads."""
MAX_ITEMS: Final = 20_000
"""Items that one search reads."""
MAX_CHARACTERS: Final = 20_000_000
"""Characters that one search reads."""
KINDS: Final = ("conversations",)
SNIPPET_CHARACTERS: Final = 240

_LEAST: Final = 0.3
"""The share of a query's words that an item must have."""
_OF_SHARE: Final = 0.9
"""What having the words counts for in a score; having them often is the rest."""
_PAGE: Final = 100
_LONG: Final = 20_000
"""From this many characters on, words are counted in a thread."""
_WINDOW: Final = 2_000
_BEFORE: Final = 60
_OVERLAP: Final = 100


class Highlight(msgspec.Struct, frozen=True):
    """A piece of a snippet that matches: ``start <= n < end``, in characters (code points)."""

    start: int
    end: int


class FoundMessage(msgspec.Struct, kw_only=True, frozen=True):
    """An item that was found. ``score`` is 0 to 1, ``created_at`` in Unix seconds."""

    object: Literal["search.result"] = "search.result"
    kind: Literal["conversation"] = "conversation"
    conversation_id: str
    item_id: str
    role: str
    title: str | None
    created_at: int
    score: float
    snippet: str
    highlights: list[Highlight]


class FoundMessages(msgspec.Struct, kw_only=True, frozen=True):
    """What was found, best first. ``complete`` is false where there was more to read than one search reads."""

    object: Literal["list"] = "list"
    data: list[FoundMessage]
    has_more: bool
    next_cursor: str | None
    complete: bool


class _Place(NamedTuple):
    """Where a found item stands among all: the better and the newer is the greater. It does not change while other
    items come and go, so that a page begins where the last one ended."""

    score: float
    at_us: int
    conversation_id: str
    item_id: str


class _Read:
    """What one search has read so far."""

    def __init__(self) -> None:
        self.conversations = self.items = self.characters = 0
        self.complete = True

    def is_full(self) -> bool:
        full = self.conversations >= MAX_CONVERSATIONS or self.items >= MAX_ITEMS or self.characters >= MAX_CHARACTERS
        if full:
            self.complete = False
        return full


_place_decoder = msgspec.json.Decoder(_Place)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ``InvalidValue`` for a kind that cannot be searched, naming it."""
    for kind in kinds:
        if kind not in KINDS:
            detail = f"'{kind[:64]}' cannot be searched here; known: {', '.join(KINDS)}"
            raise InvalidValue(param="kinds", at="kinds", detail=detail)


async def search(
    session: TenantSession,
    conversations: Conversations,
    query: str,
    *,
    kinds: Sequence[str] = KINDS,
    limit: int = 20,
    after: str | None = None,
) -> FoundMessages:
    """The messages that have the words of ``query``, best first: of the caller's own conversations, and for a
    ``member`` and a ``tenant_admin`` of those that are shared in the tenant. Changes nothing, so may be repeated.

    ``limit`` is 1–100; ``after`` is the ``next_cursor`` of the page before, of the same caller and query. Raises
    ``MissingParameter``, ``InvalidValue``, ``NotFound`` for a cursor to anything else.
    """
    session.entrance.require(Scope.READ)
    check_limit(limit)
    check_kinds(kinds)
    if not query.strip():
        raise MissingParameter(param="q", at="q")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InvalidValue(param="q", at="q", detail=f"at most {MAX_QUERY_CHARACTERS} characters")
    about = ("search", session.entrance.principal.user_key, query, *sorted(set(kinds)))
    cursors = session.records.cursors
    below = None if after is None else _place_decoder.decode(await cursors.open_cursor(about, after))
    wanted = query_terms(query)
    if not wanted:
        return FoundMessages(data=[], has_more=False, next_cursor=None, complete=True)
    read = _Read()
    found: list[_Place] = []
    async for conversation in _readable(session, conversations, read):
        matches = _matches(session, conversation, wanted, read)
        found += [place async for place in matches if below is None or place < below]
    found.sort(reverse=True)
    page = found[:limit]
    more = len(found) > limit
    shown = [result for place in page if (result := await _shown(conversations, place, query)) is not None]
    cursor = await cursors.seal_cursor(about, msgspec.json.encode(page[-1])) if more else None
    return FoundMessages(data=shown, has_more=more, next_cursor=cursor, complete=read.complete)


async def _readable(session: TenantSession, conversations: Conversations, read: _Read) -> AsyncIterator[Conversation]:
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
    session: TenantSession, conversation: Conversation, wanted: dict[str, float], read: _Read
) -> AsyncIterator[_Place]:
    upto = None
    while True:
        if read.is_full():
            return
        rows = await item_places(session, conversation.id, 0, upto, limit=_PAGE, descending=True)
        read.items += len(rows)
        for _, body in rows:
            item = load_item(body) if body else None
            if not isinstance(item, Message):
                continue
            text = item.text
            read.characters += len(text)
            score = _score(text, wanted) if len(text) < _LONG else await asyncio.to_thread(_score, text, wanted)
            if score:
                yield _Place(score, load_meta(body).at, conversation.id, item.id)
        await asyncio.sleep(0)  # the reading of many is not to hold up everybody else
        if len(rows) < _PAGE:
            return
        upto = rows[-1][0]


def _score(text: str, wanted: dict[str, float]) -> float:
    """From 0 (not found) to 1. It depends on the text and the query alone."""
    counts = term_counts(text)
    all_of_them = sum(wanted.values())
    share = sum(weight for term, weight in wanted.items() if term in counts) / all_of_them
    if share < _LEAST:
        return 0.0
    often = sum(weight * counts[term] / (counts[term] + 1) for term, weight in wanted.items()) / all_of_them
    return round(_OF_SHARE * share + (1 - _OF_SHARE) * often, 6)


async def _shown(conversations: Conversations, place: _Place, query: str) -> FoundMessage | None:
    """The result as the records have it now; None for what was deleted or taken from the caller meanwhile."""
    try:
        conversation = await conversations.retrieve(place.conversation_id)
        item: Item = await conversations.item(place.conversation_id, place.item_id)
    except NotFound:
        return None
    if not isinstance(item, Message):
        return None
    text = item.text
    snippet, marked = snippet_of(text, query) if len(text) < _LONG else await asyncio.to_thread(snippet_of, text, query)
    return FoundMessage(
        conversation_id=conversation.id,
        item_id=item.id,
        role=item.role,
        title=conversation.title,
        created_at=place.at_us // 1_000_000,
        score=place.score,
        snippet=snippet,
        highlights=marked,
    )


def snippet_of(text: str, query: str) -> tuple[str, list[Highlight]]:
    """The piece of a text around the first words that match, at most 240 characters, and where in it they are."""
    start = 0
    for begin in range(0, len(text), _WINDOW - _OVERLAP):
        spans = highlights(text[begin : begin + _WINDOW], query)
        if spans:
            start = max(0, begin + spans[0].start - _BEFORE)
            break
    snippet = text[start : start + SNIPPET_CHARACTERS]
    return snippet, [Highlight(span.start, span.end) for span in highlights(snippet, query)]
