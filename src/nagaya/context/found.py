"""What a search finds, in one order: shapes for clients, places among all that was found, and snippets."""

from __future__ import annotations

import asyncio
from typing import Final, Literal, NamedTuple

import msgspec

from nagaya.indexes.highlights import highlights

SNIPPET_CHARACTERS: Final = 240
LONG: Final = 20_000
"""From this many characters on, words are looked for in a thread."""
_WINDOW: Final = 2_000
_BEFORE: Final = 60
_OVERLAP: Final = 100

SearchType = Literal["conversations", "memories", "documents"]


class Highlight(msgspec.Struct, frozen=True):
    """A piece of a snippet that matches: ``start <= n < end``, in characters (code points)."""

    start: int
    end: int


class FoundMessage(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="conversation"):
    """A message of a conversation. ``score`` is 0 to 1, ``created_at`` in Unix seconds."""

    object: Literal["search.result"] = "search.result"
    conversation_id: str
    item_id: str
    role: str
    title: str | None
    created_at: int
    score: float
    snippet: str
    highlights: list[Highlight]


class FoundMemory(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="memory"):
    """A memory of the caller's or of the tenant's. ``score`` is 0 to 1, ``created_at`` in Unix seconds."""

    object: Literal["search.result"] = "search.result"
    memory_id: str
    scope: Literal["user", "tenant"]
    created_at: int
    score: float
    snippet: str
    highlights: list[Highlight]


class FoundDocument(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="document"):
    """A passage of a file in a vector store. ``score`` is 0 to 1, ``created_at`` (when the file was added) in Unix
    seconds, ``page`` from 1 where the document has pages."""

    object: Literal["search.result"] = "search.result"
    vector_store_id: str
    file_id: str
    filename: str
    page: int | None
    created_at: int
    score: float
    snippet: str
    highlights: list[Highlight]


class FoundPage(msgspec.Struct, kw_only=True, frozen=True):
    """What was found, best first. ``complete`` is false where there was more to read than one search reads."""

    object: Literal["list"] = "list"
    data: list[FoundMessage | FoundMemory | FoundDocument]
    has_more: bool
    next_cursor: str | None
    complete: bool


class Place(NamedTuple):
    """Where something found stands among all: the better and the newer is the greater. It does not change while others
    come and go, so that a page begins where the last one ended. ``part`` is the place in what ``source`` names."""

    score: float
    at_us: int
    source: str
    part: int


class Read:
    """What one search has read so far, and how much it may."""

    def __init__(self, *, conversations: int, items: int, characters: int) -> None:
        self._conversations = conversations
        self._items = items
        self._characters = characters
        self.items = self.characters = 0
        self.complete = True

    def allowed(self, conversation_ids: list[str]) -> list[str]:
        """As many of these conversations as may still be looked at."""
        some = conversation_ids[: self._conversations]
        self._conversations -= len(some)
        self.complete = self.complete and len(some) == len(conversation_ids)
        return some

    def is_full(self) -> bool:
        """Whether no more items are to be read; what is left then is not found."""
        full = self.items >= self._items or self.characters >= self._characters
        if full:
            self.complete = False
        return full


async def snippet(text: str, query: str) -> tuple[str, list[Highlight]]:
    """As :func:`snippet_of`, of a long text in a thread."""
    return snippet_of(text, query) if len(text) < LONG else await asyncio.to_thread(snippet_of, text, query)


def snippet_of(text: str, query: str) -> tuple[str, list[Highlight]]:
    """The piece of a text around the first words that match, at most 240 characters, and where in it they are."""
    start = 0
    for begin in range(0, len(text), _WINDOW - _OVERLAP):
        spans = highlights(text[begin : begin + _WINDOW], query)
        if spans:
            start = max(0, begin + spans[0].start - _BEFORE)
            break
    piece = text[start : start + SNIPPET_CHARACTERS]
    return piece, [Highlight(span.start, span.end) for span in highlights(piece, query)]
