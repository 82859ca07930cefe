"""A room's segments in memory: opened when a search needs them, for as long as the room's key may be used.

Nothing here knows a tenant's name: an index reads through the sealed blobs of one room and is dropped with that room's
keys. Two indexes share nothing but a budget of bytes, so there is no look-up in which one could meet the other's.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from nagaya.errors import MissingExtra
from nagaya.indexes.catalog import Catalog, Piece
from nagaya.indexes.filters import AttributeValue
from nagaya.indexes.query import Hit, Query
from nagaya.keys.keyring import Keyring

if TYPE_CHECKING:
    from nagaya.indexes.segment import Part, Segment
    from nagaya.indexes.words import Covered

LIMIT_BYTES: Final = 512 * 1024 * 1024
"""Opened segments kept by one process, all rooms together: about 300,000 chunks of a page's paragraph."""
IN_A_THREAD_FROM: Final = 4_000
"""Chunks from which a search takes a thread: 2 ms or so; less is done before a thread has begun."""
_IN_A_THREAD_FROM_BYTES: Final = 8 * 1024 * 1024

_T = TypeVar("_T")
_Read: TypeAlias = Callable[[str], AsyncGenerator[bytes, None]]


class IndexMemory:
    """How many bytes of opened segments a process keeps; the longest unused goes first, whose ever it is.

    What a search is using stays until it ends, so for that long there may be more."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._sizes: OrderedDict[tuple[OpenIndex, str], int] = OrderedDict()

    def _used(self, owner: OpenIndex, name: str) -> None:
        self._sizes.move_to_end((owner, name))

    def _keep(self, owner: OpenIndex, name: str, size_bytes: int) -> None:
        self._sizes[owner, name] = size_bytes
        self.held_bytes += size_bytes
        while self.held_bytes > self._limit_bytes:
            other, its_name = next(iter(self._sizes))
            self._let_go(other, its_name)

    def _let_go(self, owner: OpenIndex, name: str) -> None:
        self.held_bytes -= self._sizes.pop((owner, name))
        del owner._opened[name]


class _Opened(NamedTuple):
    part: Part
    deleted: list[str]
    attributes: dict[str, Mapping[str, AttributeValue]]


class OpenIndex:
    """One room's search. ``read`` gives the bytes of a segment by its name, as :meth:`SealedBlobs.read` does; a name
    is never given twice. To be used in one event loop.

    Every method raises the ``Key…`` errors where the room's key may not be used now, whatever is in memory;
    ``NotFound`` where a segment is gone (another process has merged it: read the catalog again), ``SealBroken``,
    ``IndexDamaged``, ``IndexOutdated``; ``MissingExtra`` without numpy. All may be repeated.
    """

    def __init__(self, read: _Read, keyring: Keyring, memory: IndexMemory) -> None:
        self._read = read
        self._keyring = keyring
        self._memory = memory
        self._opened: dict[str, _Opened] = {}
        self._opening: dict[str, asyncio.Task[Segment]] = {}
        self._dropped = 0
        keyring.when_dropped(self.drop)

    async def search(self, catalog: Catalog, query: Query) -> list[Hit]:
        """The best chunks of the whole index, best first, by words and vectors together. Long searches run in a
        thread. Raises ``InvalidValue`` for a vector of another length."""
        (hits,) = await self.search_all([(catalog, query)])
        return hits

    async def search_all(self, asked: Sequence[tuple[Catalog, Query]]) -> list[list[Hit]]:
        """Several searches, each with a ranking of its own, in one go."""
        dropped = self._dropped
        works = [(await self.parts(catalog), query) for catalog, query in asked]

        def work() -> list[list[Hit]]:
            from nagaya.indexes.hybrid import search

            return [search(parts, query) for parts, query in works]

        chunks = sum(part.segment.chunks for parts, _ in works for part in parts)
        return await self._worked(work, chunks, dropped)

    async def covering(self, catalog: Catalog, wanted: Mapping[str, float]) -> list[Covered]:
        """Every chunk of the index with enough of ``wanted`` (terms and weights), in no order. Long searches run in a
        thread."""
        dropped = self._dropped
        parts = await self.parts(catalog)

        def work() -> list[Covered]:
            from nagaya.indexes.words import covering

            return covering(parts, wanted)

        return await self._worked(work, sum(part.segment.chunks for part in parts), dropped)

    async def _worked(self, work: Callable[[], _T], chunks: int, dropped: int) -> _T:
        found = await asyncio.to_thread(work) if chunks >= IN_A_THREAD_FROM else work()
        if dropped != self._dropped:
            # The key was withdrawn, or only grew old, while the search ran; it must still be given out.
            await self._keyring.active()
        return found

    async def merge(self, catalog: Catalog, pieces: Sequence[Piece]) -> tuple[bytes, int]:
        """The bytes of one segment in place of ``pieces``, without what was deleted, and its chunks (0: drop them).
        Runs in a thread; keeps none of the pieces in memory."""
        parts = [await self._part(catalog, piece, keep=False) for piece in pieces]

        def work() -> tuple[bytes, int]:
            from nagaya.indexes.segment import merge_segments

            return merge_segments(parts), sum(part.chunks for part in parts)

        return await asyncio.to_thread(work)

    async def parts(self, catalog: Catalog) -> list[Part]:
        """The opened segments of the catalog, each without what was deleted from it."""
        return [await self._part(catalog, piece) for piece in catalog.pieces]

    def forget(self, names: Iterable[str]) -> None:
        """Let go of segments that no catalog has any more."""
        for name in names:
            if name in self._opened:
                self._memory._let_go(self, name)

    def drop(self) -> None:
        """Forget every opened segment now; what is being opened at this moment will not be kept either."""
        self._dropped += 1
        self._opening.clear()
        for name in list(self._opened):
            self._memory._let_go(self, name)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _part(self, catalog: Catalog, piece: Piece, *, keep: bool = True) -> Part:
        if importlib.util.find_spec("numpy") is None:
            raise MissingExtra(feature="Search", extra="library")
        from nagaya.indexes.segment import Part

        # Not the age of what was opened decides, but whether the key could open it at this moment.
        if self._keyring.held() is None:
            await self._keyring.active()
        opened = self._opened.get(piece.name)
        deleted, attributes = catalog.deleted_from(piece), catalog.attributes_in(piece)
        if opened is not None and opened.deleted == deleted and opened.attributes == attributes:
            self._memory._used(self, piece.name)
            return opened.part
        dropped = self._dropped
        segment = opened.part.segment if opened is not None else await self._segment(piece.name)
        part = Part(segment, deleted, attributes)
        if dropped == self._dropped and (keep or piece.name in self._opened):
            if piece.name in self._opened:
                self._memory._let_go(self, piece.name)
            self._opened[piece.name] = _Opened(part, deleted, attributes)
            self._memory._keep(self, piece.name, segment.size_bytes)
        return part

    async def _segment(self, name: str) -> Segment:
        opening = self._opening.get(name)
        if opening is None:
            opening = asyncio.ensure_future(self._open(name))
            self._opening[name] = opening
            opening.add_done_callback(lambda done: self._landed(name, done))
        # Shielded: a caller who goes away must not take the others' segment along.
        return await asyncio.shield(opening)

    def _landed(self, name: str, task: asyncio.Task[Segment]) -> None:
        if self._opening.get(name) is task:
            del self._opening[name]
        if not task.cancelled():
            # Seen here, so that a failure nobody waits for any more is not reported as never looked at.
            task.exception()

    async def _open(self, name: str) -> Segment:
        from nagaya.indexes.segment import open_segment

        async with aclosing(self._read(name)) as read:
            content = b"".join([piece async for piece in read])
        if len(content) < _IN_A_THREAD_FROM_BYTES:
            return open_segment(content)
        return await asyncio.to_thread(open_segment, content)
