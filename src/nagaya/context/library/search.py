"""Searching vector stores: the best passages of those that the caller may read, by meaning and by words together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from nagaya.connections.room import TenantSession
from nagaya.context.library.shelf import (
    HEAD,
    StoreFile,
    StoreHead,
    catalog_of,
    chunk_sort,
    decode_chunk,
    decode_file,
    encode,
    file_sort,
    head_of,
    shelf_of,
    texts_of,
)
from nagaya.errors import ConditionFailed, EmbeddingsChanged, InvalidValue, NotFound, VectorStoreExpired
from nagaya.indexes.filters import Filter, parse_filter
from nagaya.indexes.query import VECTOR_SHARE, Hit, Query
from nagaya.usage.meter import Meter, Metric

MAX_RESULTS: Final = 50
MAX_QUERIES: Final = 16
MAX_QUERY_CHARACTERS: Final = 10_000
RANKERS: Final = ("none", "auto", "default-2024-11-15")
_ACTIVE_US: Final = 3_600 * 1_000_000
"""How exactly it is remembered when a store was last used: a search is not to cost a write each time."""
_TRIES: Final = 3


class Wanted(NamedTuple):
    """How to search. ``threshold``: the least score, 0 to 1."""

    limit: int = 10
    filter: Filter | None = None
    threshold: float = 0.0
    vector_share: float = VECTOR_SHARE


class Found(NamedTuple):
    """A passage that was found, and the file it is from."""

    file_id: str
    filename: str
    text: str
    score: float
    attributes: dict[str, str | float | bool]
    page: int | None


def wanted_of(filters: Any, max_num_results: int | None, ranking: Any, *, at: str = "") -> Wanted:
    """How to search, from what a request says. Raises ``InvalidValue`` naming the place (``at`` before it)."""
    limit = 10 if max_num_results is None else max_num_results
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_RESULTS:
        raise _wrong(f"{at}max_num_results", f"1 to {MAX_RESULTS}")
    test = None if filters is None else parse_filter(filters, at=f"{at}filters")
    if ranking is None:
        return Wanted(limit, test)
    place = f"{at}ranking_options"
    if not isinstance(ranking, Mapping):
        raise _wrong(place, "an object")
    for name in ranking:
        if name not in ("ranker", "score_threshold", "hybrid_search"):
            raise _wrong(f"{place}.{str(name)[:64]}", "known here: ranker, score_threshold, hybrid_search")
    if ranking.get("ranker") not in (None, *RANKERS):
        raise _wrong(f"{place}.ranker", " or ".join(RANKERS))
    threshold = ranking.get("score_threshold")
    least = _number(0.0 if threshold is None else threshold, f"{place}.score_threshold")
    if least > 1:
        raise _wrong(f"{place}.score_threshold", "0 to 1")
    share = VECTOR_SHARE
    if (weights := ranking.get("hybrid_search")) is not None:
        if not isinstance(weights, Mapping):
            raise _wrong(f"{place}.hybrid_search", "an object")
        vectors = _number(weights.get("embedding_weight"), f"{place}.hybrid_search.embedding_weight")
        words = _number(weights.get("text_weight"), f"{place}.hybrid_search.text_weight")
        if not 0 < vectors + words < math.inf:
            raise _wrong(f"{place}.hybrid_search", "one weight above 0")
        share = vectors / (vectors + words)
    return Wanted(limit, test, least, share)


def _number(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise _wrong(at, "a number of 0 or more")
    return float(value)


def _wrong(at: str, detail: str) -> InvalidValue:
    return InvalidValue(param=at, at=at, detail=detail)


class Search:
    """One caller's searches."""

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self._session = session
        self._meter = meter

    async def heads(self, store_ids: Sequence[str]) -> list[StoreHead]:
        """The stores, all of which the caller may read; else ``NotFound``. Raises ``VectorStoreExpired``."""
        heads = []
        for store_id in dict.fromkeys(store_ids):
            _, head = await head_of(self._session, store_id, writing=False)
            if head.is_expired(self._session.clock.now_us()):
                raise VectorStoreExpired
            heads.append(head)
        return heads

    async def search(self, store_ids: Sequence[str], queries: Sequence[str], wanted: Wanted) -> list[Found]:
        """The best passages of all these stores for all these queries, best first.

        Raises ``NotFound`` for a store that is not the caller's to read, ``EmbeddingsChanged`` where the tenant's
        embedding model is not the one that a store was built with, ``InvalidValue``, ``MissingExtra``. May be repeated.
        """
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise _wrong("query", f"1 to {MAX_QUERIES} queries")
        if any(not query.strip() or len(query) > MAX_QUERY_CHARACTERS for query in queries):
            raise _wrong("query", f"texts of 1 to {MAX_QUERY_CHARACTERS} characters")
        heads = await self.heads(store_ids)
        vectors = await self._vectors(heads, queries)
        ranked = await self._ranked(heads, queries, vectors, wanted)
        # A model was asked and segments were read: what was deleted or taken back meanwhile is not shown any more.
        await self.heads(store_ids)
        for head in heads:
            await self._used(head)
        return await self._read(ranked, wanted)

    async def _vectors(self, heads: Sequence[StoreHead], queries: Sequence[str]) -> Sequence[Any]:
        built = [head for head in heads if head.embedding]
        if not built:
            return [None] * len(queries)
        models = await self._session.embeddings()
        now = (models[0].name, models[0].dimensions) if models else ("", 0)
        for head in built:
            if (head.embedding, head.dimensions) != now:
                raise EmbeddingsChanged(was=head.embedding, now=now[0] or "-")
        vectors, tokens = await models[0].embed(queries)
        self._meter.count(self._session.tenant, Metric.EMBEDDING_TOKENS, tokens)
        return vectors

    async def _ranked(
        self, heads: Sequence[StoreHead], queries: Sequence[str], vectors: Sequence[Any], wanted: Wanted
    ) -> list[tuple[str, Hit]]:
        """The best hits with their stores, each chunk once."""
        best: dict[str, tuple[str, Hit]] = {}
        for head in heads:
            asked = [
                Query(query, vector, head.embedding or "", MAX_RESULTS, wanted.filter, wanted.vector_share)
                for query, vector in zip(queries, vectors, strict=True)
            ]
            for hits in await self._searched(head.id, asked):
                for hit in hits:
                    if hit.chunk_id not in best or hit.score > best[hit.chunk_id][1].score:
                        best[hit.chunk_id] = head.id, hit
        return sorted(best.values(), key=lambda pair: (-pair[1].score, pair[1].chunk_id))

    async def _searched(self, store_id: str, asked: list[Query]) -> list[list[Hit]]:
        for attempt in range(1, _TRIES + 1):
            _, catalog = await catalog_of(self._session, store_id)
            if not catalog.pieces:
                break
            index = await self._session.room.parts.index()
            try:
                return await index.search_all([(catalog, query) for query in asked])
            except NotFound:
                # A segment was merged and removed between the catalog and its bytes.
                if attempt == _TRIES:
                    raise
        return []

    async def _read(self, ranked: Sequence[tuple[str, Hit]], wanted: Wanted) -> list[Found]:
        """The passages themselves, each only while its file is in the store."""
        found: list[Found] = []
        files: dict[tuple[str, str], StoreFile | None] = {}
        for store_id, hit in ranked:
            if len(found) == wanted.limit or hit.score < wanted.threshold:
                break
            place = store_id, hit.document_id
            if place not in files:
                record = await self._session.records.get(shelf_of(store_id), file_sort(hit.document_id))
                files[place] = None if record is None else decode_file(record.body)
            file = files[place]
            document, _, ordinal = hit.chunk_id.partition("#")
            if file is None or file.document != document:
                continue
            text = await self._session.records.get(texts_of(document), chunk_sort(int(ordinal)))
            if text is None:
                continue
            chunk = decode_chunk(text.body)
            score = min(1.0, max(0.0, hit.score))
            found.append(Found(file.file_id, file.filename, chunk.text, score, file.attributes, chunk.page))
        return found

    async def _used(self, head: StoreHead) -> None:
        now_us = self._session.clock.now_us()
        if now_us - head.last_active_us < _ACTIVE_US:
            return
        with contextlib.suppress(ConditionFailed, NotFound):
            record, now = await head_of(self._session, head.id, writing=False)
            now.last_active_us = now_us
            await self._session.records.put(shelf_of(head.id), HEAD, encode(now), expect=record.revision)
