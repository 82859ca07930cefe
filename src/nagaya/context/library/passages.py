"""Which passages of documents have a query's words, of the vector stores that the caller may read.

By words alone: it asks no model, so it costs nothing, and finds also what another model's vectors were made for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.found import FoundDocument, Place, Read, snippet
from nagaya.context.library.indexing import list_of
from nagaya.context.library.shelf import (
    HEAD,
    SHARED,
    StoreHead,
    catalog_of,
    chunk_sort,
    decode_chunk,
    decode_head,
    file_of,
    files_of,
    head_of,
    may_see,
    seconds,
    shelf_of,
    texts_of,
)
from nagaya.errors import IndexDamaged, IndexOutdated, NotFound
from nagaya.tenancy.principal import Role

if TYPE_CHECKING:
    from nagaya.indexes.words import Covered

MAX_STORES: Final = 200
"""Vector stores that one search reads."""
_PAGE: Final = 100
_TRIES: Final = 3

_log = structlog.get_logger(__name__)


async def passages(session: TenantSession, wanted: Mapping[str, float], read: Read) -> AsyncIterator[Place]:
    """The places of the passages that have enough of ``wanted``."""
    stores = 0
    async for head in _readable(session):
        if stores == MAX_STORES:
            read.complete = False
            return
        stores += 1
        try:
            found = await _covering(session, head.id, wanted)
        except (IndexDamaged, IndexOutdated) as problem:
            # The rest is found all the same; the store itself says what is wrong with it.
            _log.warning("a vector store was not searched", action="search.store_left_out", code=problem.code)
            read.complete = False
            continue
        if not found:
            continue
        files = {file.file_id: file for _, file in await files_of(session, head.id)}
        for chunk in found:
            file = files.get(chunk.document_id)
            document, _, ordinal = chunk.chunk_id.partition("#")
            if file is not None and file.document == document:
                source = f"{head.id}/{file.file_id}/{document}"
                yield Place(chunk.score, file.created_at_us, source, int(ordinal))


async def _readable(session: TenantSession) -> AsyncIterator[StoreHead]:
    """The stores to read, the caller's own first, each once."""
    now_us, principal = session.clock.now_us(), session.entrance.principal
    seen: set[str] = set()
    lists = [await list_of(session, principal.user_key)]
    if principal.role is not Role.USER:
        lists.append(SHARED)
    for listed in lists:
        before = b""
        while rows := await session.records.query(listed, before=before, limit=_PAGE, descending=True):
            for row in rows:
                store_id = row.sort.decode()
                record = None if store_id in seen else await session.records.get(shelf_of(store_id), HEAD)
                head = None if record is None else decode_head(record.body)
                if head is None or head.deleted or head.is_expired(now_us):
                    continue
                if may_see(session, head, writing=False) and (head.shared or listed is not SHARED):
                    seen.add(store_id)
                    yield head
            before = rows[-1].sort


async def _covering(session: TenantSession, store_id: str, wanted: Mapping[str, float]) -> list[Covered]:
    for attempt in range(1, _TRIES + 1):
        _, catalog = await catalog_of(session, store_id)
        if not catalog.pieces:
            break
        index = await session.room.parts.index()
        try:
            return await index.covering(catalog, wanted)
        except NotFound:
            # A segment was merged and removed between the catalog and its bytes.
            if attempt == _TRIES:
                raise
    return []


async def shown_passage(session: TenantSession, place: Place, query: str) -> FoundDocument | None:
    """The result as the records have it now; None for what was deleted or taken from the caller meanwhile."""
    store_id, file_id, document = place.source.split("/")
    try:
        _, head = await head_of(session, store_id, writing=False)
    except NotFound:
        return None
    found = await file_of(session, store_id, file_id)
    if head.is_expired(session.clock.now_us()) or found is None or found[1].document != document:
        return None
    record = await session.records.get(texts_of(document), chunk_sort(place.part))
    if record is None:
        return None
    chunk = decode_chunk(record.body)
    piece, marked = await snippet(chunk.text, query)
    return FoundDocument(
        vector_store_id=store_id,
        file_id=file_id,
        filename=found[1].filename,
        page=chunk.page,
        created_at=seconds(found[1].created_at_us),
        score=place.score,
        snippet=piece,
        highlights=marked,
    )
