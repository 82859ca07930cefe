"""Indexing: the background work that turns a store's files into what a search finds, and clears away what is deleted.

It may be interrupted anywhere. A file is claimed by naming the document that is to be made of it; its chunks and
segments are written under that name; one batch then makes them part of the store. Until then a search sees nothing of
them, and what was left by somebody who died is cleared away by whoever comes next, before the file is taken up anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.library.files import content_for
from nagaya.context.library.shelf import (
    ATTEMPTS,
    BATCH,
    BATCHES_END,
    CATALOG,
    CLEARING,
    DOOMED,
    DOOMED_END,
    HEAD,
    PAGE,
    SHARED,
    WORK,
    Changes,
    ErrorCode,
    StoredChunk,
    StoredError,
    StoreFile,
    StoreHead,
    catalog_of,
    chunk_sort,
    decode_head,
    doom,
    encode,
    file_of,
    file_sort,
    files_of,
    segment_blob,
    shelf_of,
    spare,
    stores_with,
    texts_of,
)
from nagaya.context.lone_records import put_anew, remove_all, remove_one, remove_seen
from nagaya.context.notices import Notices
from nagaya.errors import (
    ConditionFailed,
    Conflict,
    DocumentUnreadable,
    EmbeddingsChanged,
    MissingExtra,
    NagayaError,
    NotFound,
    SessionClosed,
)
from nagaya.extraction.chunks import Chunk
from nagaya.indexes.catalog import Catalog, Piece, encode_catalog
from nagaya.kernel.ids import new_id
from nagaya.models.model import Embeddings
from nagaya.records.sealed_store import Delete, Partition, Put, Record
from nagaya.tenancy.principal import Role, Scope
from nagaya.usage.meter import Meter, Metric

LIBRARY_INDEX: Final = "library.index"
"""The kind of job that does what indexing was left off in a room. No arguments. Harmless to repeat."""

BUSY_S: Final = 20.0
"""How long a file is left to whoever said to be working on it: so late at most is it taken up after a crash."""
MAX_ATTEMPTS: Final = 3
"""How often a file is tried whose indexing fails for a reason that may pass."""
_RENEW_S: Final = 5.0
_AT_ONCE: Final = 64
"""Chunks that are embedded and written together."""
_SEGMENT_CHUNKS: Final = 20_000
_BATCH: Final = 90
_EMPTIED_AT_ONCE: Final = 40

_log = structlog.get_logger(__name__)


class Indexing:
    """One caller's part of the indexing: files that it added itself (an administrator: all), and clearing away.
    ``for_all``: everybody's files, as the platform's own work does that nobody asks for."""

    def __init__(self, session: TenantSession, meter: Meter | None = None, *, for_all: bool = False) -> None:
        self._session = session
        self._meter = meter
        principal = session.entrance.principal
        self._for_all = for_all or principal.role is Role.TENANT_ADMIN

    def begin(self, store_id: str) -> None:
        """See to it that the work on a store is going on in this process. Never waits; may be repeated."""
        session = self._session
        if Scope.WRITE not in session.entrance.principal.scopes:
            return
        working, key = session.room.indexing, (store_id, session.entrance.principal.user_key)
        if key in working:
            working[key] = True
            return
        working[key] = True
        work = Indexing(session.lease(), self._meter)._go_on(store_id, working, key)
        session.background(work)

    async def begin_all(self) -> None:
        """As :meth:`begin`, for every store of the room with work left."""
        rows = await self._session.records.query(WORK, limit=PAGE)
        for row in rows:
            self.begin(row.sort.decode())

    async def finish_all(self) -> None:
        """Do the work that is left in the room, of every store, before this returns."""
        for row in await self._session.records.query(WORK, limit=PAGE):
            try:
                await self._round(row.sort.decode())
            except (Conflict, ConditionFailed):
                continue  # somebody else is at it
            except SessionClosed:
                raise
            except NagayaError as problem:
                _log.warning("indexing stopped", action="library.stopped", code=problem.code)
        await self._rest()

    async def clear_all(self) -> None:
        """Clear away what is left to be cleared away in the room, and have the platform see to what is to be indexed,
        should it not know. For the room's daily work."""
        await self.finish_all()
        if await self._session.records.query(WORK, limit=1):
            await self._session.room.parts.unfinished.note()

    async def _rest(self) -> None:
        """Let the platform forget a room in which nothing is left to do."""
        unfinished = self._session.room.parts.unfinished
        noted = await unfinished.noted()
        if not await self._session.records.query(WORK, limit=1):
            await unfinished.done(noted)

    async def _go_on(self, store_id: str, working: dict[tuple[str, str], bool], key: tuple[str, str]) -> None:
        try:
            while working[key]:
                working[key] = False
                await self._round(store_id)
                if not working[key]:
                    await self._rest()
        except (SessionClosed, Conflict, ConditionFailed):
            return  # what is left is on the list, for whoever comes next
        except NagayaError as problem:
            _log.warning("indexing stopped", action="library.stopped", code=problem.code)
        finally:
            del working[key]
            await self._session.release()

    async def _round(self, store_id: str) -> None:
        records = self._session.records
        listed = await records.get(WORK, store_id.encode())
        head_record = await records.get(shelf_of(store_id), HEAD)
        head = None if head_record is None else decode_head(head_record.body)
        is_left = False
        if head_record is None or head is None or head.deleted:
            # Without a head: somebody was about to add something when the store had its end.
            await self._empty(store_id, head_record)
            is_left = not await self._bury(store_id, head)
        elif head.is_expired(self._session.clock.now_us()):
            is_left = not await self._empty(store_id, head_record)
        else:
            await self.sweep(store_id)
            await self._index_files(head)
            await self._tidy(store_id)
            is_left = not await self.sweep(store_id) or any(
                file.status == "in_progress" for _, file in await files_of(self._session, store_id)
            )
        if listed is not None and not is_left:
            with contextlib.suppress(ConditionFailed):
                await records.delete(WORK, store_id.encode(), expect=listed.revision)

    # --- files ---

    async def _index_files(self, head: StoreHead) -> None:
        me = self._session.entrance.principal
        now_us = self._session.clock.now_us()
        mine = [
            file.file_id
            for _, file in await files_of(self._session, head.id)
            if file.status == "in_progress"
            and file.busy_until_us < now_us
            and (self._for_all or file.added_by == me.user_key)
        ]
        for number, file_id in enumerate(mine, 1):
            await self._tell(head, "library.indexing", file_id=file_id, done=number - 1, of=len(mine))
            claimed = await self._claim(head.id, file_id)
            if claimed is None:
                continue
            keeping = [
                asyncio.ensure_future(self._keep_claim(head.id, claimed)),
                asyncio.ensure_future(self._keep_making(head.id, claimed.document or "")),
            ]
            try:
                ended = await self._index(head, claimed)
            finally:
                for each in keeping:
                    each.cancel()
            if ended == "completed":
                await self._tell(head, "library.ready", file_id=file_id)
            elif ended == "failed":
                await self._tell(head, "library.failed", file_id=file_id)
            if ended != "completed":
                await self._left_over(head.id, claimed)

    async def _left_over(self, store_id: str, claimed: StoreFile) -> None:
        """Have cleared away what was made of a file in vain. It is put on the list anew: what was written after
        somebody else had cleared it away would stay for ever."""
        found = await file_of(self._session, store_id, claimed.file_id)
        if found is None or found[1].document != claimed.document or found[1].status != "completed":
            await self._doom_anew(store_id, claimed.document or "")

    async def _doom_anew(self, store_id: str, name: str) -> None:
        await put_anew(self._session, shelf_of(store_id), DOOMED + name.encode())
        await note_work(self._session, store_id)

    async def _claim(self, store_id: str, file_id: str) -> StoreFile | None:
        """Name the document to be made; None where somebody else has the file, or it is gone."""
        now_us = self._session.clock.now_us()
        found = await file_of(self._session, store_id, file_id)
        if found is None:
            return None
        revision, file = found
        if file.status != "in_progress" or file.busy_until_us >= now_us:
            return None
        file.document = new_id("doc")
        file.busy_until_us = now_us + int(BUSY_S * 1_000_000)
        file.attempts += 1
        # Until it says nothing more nobody clears away what is being made, also where the file is taken out meanwhile:
        # what is written after that, by somebody who then dies, nobody would find.
        changes: Changes = [
            Put(file_sort(file_id), encode(file), revision),
            Put(DOOMED + file.document.encode(), self._until()),
        ]
        try:
            await self._session.records.write(shelf_of(store_id), changes)
        except ConditionFailed:
            return None
        # Anew, before there is anything of the file: whoever took out a former one is about to remove the note of it.
        await put_anew(self._session, stores_with(file_id), store_id.encode())
        return file

    async def _keep_claim(self, store_id: str, claimed: StoreFile) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(NagayaError):
                found = await file_of(self._session, store_id, claimed.file_id)
                if found is None or found[1].document != claimed.document:
                    return
                revision, file = found
                file.busy_until_us = self._session.clock.now_us() + int(BUSY_S * 1_000_000)
                await self._session.records.put(
                    shelf_of(store_id), file_sort(file.file_id), encode(file), expect=revision
                )

    async def _index(self, head: StoreHead, claimed: StoreFile) -> str:
        """Make the document; how it ended, or an empty text where it was taken out of our hands."""
        try:
            model = await self._model(head)
            segments, chunks, size = await self._make(claimed, model)
        except SessionClosed:
            raise
        except NagayaError as problem:
            ended = _verdict(problem, claimed.attempts)
            if ended is None:
                # It may pass; the file is left for the next time.
                await self._let_go(head.id, claimed, None)
                return ""
            return "failed" if await self._let_go(head.id, claimed, ended) else ""
        return "completed" if await self._commit(head.id, claimed, segments, chunks, size) else ""

    async def _model(self, head: StoreHead) -> Embeddings | None:
        """The model that this store's vectors come from; noted when its first file is indexed. Raises
        ``EmbeddingsChanged`` where the tenant has another one now."""
        models = await self._session.embeddings()
        model = models[0] if models else None
        name, dimensions = ("", 0) if model is None else (model.name, model.dimensions)
        for _ in range(ATTEMPTS):
            record = await self._session.records.get(shelf_of(head.id), HEAD)
            if record is None:
                raise NotFound("vector store")
            now = decode_head(record.body)
            if now.embedding is not None:
                if (now.embedding, now.dimensions) != (name, dimensions):
                    raise EmbeddingsChanged(was=now.embedding or "-", now=name or "-")
                return model
            now.embedding, now.dimensions = name, dimensions
            with contextlib.suppress(ConditionFailed):
                await self._session.records.put(shelf_of(head.id), HEAD, encode(now), expect=record.revision)
        raise Conflict

    async def _make(self, claimed: StoreFile, model: Embeddings | None) -> tuple[list[tuple[str, int, int]], int, int]:
        """Write the chunks and segments of a document; gives the segments (name, chunks, bytes), and the number and
        bytes of all chunks."""
        session = self._session
        document = claimed.document or ""
        entries: list[Any] = []
        segments: list[tuple[str, int, int]] = []
        number = size = 0

        async def flush() -> None:
            if entries:
                name = f"{document}.{len(segments)}"
                content = await asyncio.to_thread(_built, list(entries), model)
                await (await session.blobs()).put(segment_blob(name), _once(content), size=len(content))
                segments.append((name, len(entries), len(content)))
                entries.clear()

        async with session.room.parts.extractor.chunks(
            content_for(session, claimed.file_id, None if claimed.by_admin else claimed.added_by),
            name=claimed.filename,
            strategy=claimed.strategy,
        ) as reading:
            async for some in _by_the_batch(aiter(reading), _AT_ONCE):
                entries += await self._written(claimed, some, model)
                number += len(some)
                size += sum(len(chunk.text.encode()) for chunk in some)
                if len(entries) >= _SEGMENT_CHUNKS:
                    await flush()
        if not number:
            raise DocumentUnreadable("no_text")
        await flush()
        return segments, number, size

    async def _written(self, claimed: StoreFile, chunks: list[Chunk], model: Embeddings | None) -> list[Any]:
        import numpy as np

        from nagaya.indexes.segment import entry_of

        vectors: list[Any] = [None] * len(chunks)
        if model is not None:
            made, tokens = await model.embed([chunk.text for chunk in chunks])
            if self._meter is not None:
                self._meter.count(self._session.tenant, Metric.EMBEDDING_TOKENS, tokens)
            vectors = [np.asarray(vector, dtype=np.float32) for vector in made]
        document = claimed.document or ""
        await self._session.records.write(
            texts_of(document),
            [Put(chunk_sort(chunk.ordinal), encode(StoredChunk(chunk.text, chunk.page))) for chunk in chunks],
        )

        def work() -> list[Any]:
            return [
                entry_of(f"{document}#{chunk.ordinal}", claimed.file_id, chunk.text, vector, claimed.attributes)
                for chunk, vector in zip(chunks, vectors, strict=True)
            ]

        return await asyncio.to_thread(work)

    async def _commit(
        self, store_id: str, claimed: StoreFile, segments: list[tuple[str, int, int]], chunks: int, size: int
    ) -> bool:
        """Make the document part of the store, in one batch. False where the file was deleted or taken from us."""
        for _ in range(ATTEMPTS):
            found = await file_of(self._session, store_id, claimed.file_id)
            if found is None or found[1].document != claimed.document or found[1].status != "in_progress":
                return False
            revision, file = found
            ours = await spare(self._session, store_id, claimed.document or "")
            if not ours:
                return False  # taken for dead: what was written is cleared away
            catalog_revision, catalog = await catalog_of(self._session, store_id)
            for segment in segments:
                catalog = catalog.with_segment(*segment)
            if file.attributes != claimed.attributes:
                catalog = catalog.with_attributes(file.file_id, file.attributes)
            file.status, file.error, file.chunks, file.usage_bytes = "completed", None, chunks, size
            file.busy_until_us = 0
            changes: Changes = [
                Put(CATALOG, encode_catalog(catalog), catalog_revision),
                Put(file_sort(file.file_id), encode(file), revision),
                *ours,
            ]
            with contextlib.suppress(ConditionFailed):
                await self._session.records.write(shelf_of(store_id), changes)
                return True
        raise Conflict

    async def _let_go(self, store_id: str, claimed: StoreFile, error: StoredError | None) -> bool:
        """The file failed (or, without an error, is to be tried again); what was made of it stays to be cleared."""
        for _ in range(ATTEMPTS):
            found = await file_of(self._session, store_id, claimed.file_id)
            if found is None or found[1].document != claimed.document or found[1].status != "in_progress":
                return False
            revision, file = found
            file.document, file.busy_until_us = None, 0
            if error is not None:
                file.status, file.error = "failed", error
            with contextlib.suppress(ConditionFailed):
                await self._session.records.put(
                    shelf_of(store_id), file_sort(file.file_id), encode(file), expect=revision
                )
                return True
        raise Conflict

    # --- keeping the index in shape ---

    async def _tidy(self, store_id: str) -> None:
        """Merge what is to be merged; and write anew what still holds something deleted, until nothing does."""
        while True:
            revision, catalog = await catalog_of(self._session, store_id)
            pieces = catalog.to_clean() if catalog.deleted else catalog.to_merge()
            if not pieces:
                return
            await self._merge(store_id, revision, catalog, pieces)

    async def _merge(self, store_id: str, revision: int, catalog: Catalog, pieces: list[Piece]) -> None:
        session = self._session
        name = new_id("seg")
        await session.records.write(shelf_of(store_id), [Put(DOOMED + name.encode(), self._until())])
        keeping = asyncio.ensure_future(self._keep_making(store_id, name))
        try:
            await self._merge_into(store_id, revision, catalog, pieces, name)
        finally:
            keeping.cancel()

    def _until(self) -> bytes:
        return encode(self._session.clock.now_us() + int(BUSY_S * 1_000_000))

    async def _keep_making(self, store_id: str, name: str) -> None:
        shelf, sort = shelf_of(store_id), DOOMED + name.encode()
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(NagayaError):
                claimed = await self._session.records.get(shelf, sort)
                if claimed is None or claimed.body == CLEARING:
                    return
                await self._session.records.put(shelf, sort, self._until(), expect=claimed.revision)

    async def _merge_into(self, store_id: str, revision: int, catalog: Catalog, pieces: list[Piece], name: str) -> None:
        session = self._session
        index = await session.room.parts.index()
        content, chunks = await index.merge(catalog, pieces)
        if chunks:
            await (await session.blobs()).put(segment_blob(name), _once(content), size=len(content))
        into = (name, chunks, len(content)) if chunks else None
        for _ in range(ATTEMPTS):
            now_revision, now = await catalog_of(session, store_id)
            if any(piece.name == name for piece in now.pieces):
                return  # it was written, though that was not said
            # Also where nothing was left to write: a name that nobody uses would keep a deleted store from its end.
            ours = await spare(session, store_id, name)
            if not ours:
                # Taken for dead, and perhaps cleared away before all of it was written.
                await self._doom_anew(store_id, name)
                raise Conflict
            changes: Changes = [
                Put(CATALOG, encode_catalog(now.with_merged(pieces, into, since=catalog)), now_revision),
                *await doom(session, store_id, *(piece.name for piece in pieces)),
                *ours,
            ]
            with contextlib.suppress(ConditionFailed):
                await session.records.write(shelf_of(store_id), changes)
                index.forget(piece.name for piece in pieces)
                return
        raise Conflict

    # --- clearing away ---

    async def sweep(self, store_id: str) -> bool:
        """Clear away what is on the list, but for what somebody is making at this moment. False where there is such."""
        session = self._session
        rows = await session.records.query(shelf_of(store_id), after=DOOMED, before=DOOMED_END, limit=PAGE)
        if not rows:
            return True
        now_us = session.clock.now_us()
        making = {
            file.document
            for _, file in await files_of(session, store_id)
            if file.document is not None and file.status == "in_progress" and file.busy_until_us >= now_us
        }
        _, catalog = await catalog_of(session, store_id)
        living = {piece.name for piece in catalog.pieces}
        blobs = await session.blobs()
        is_clear = len(rows) < PAGE
        for row in rows:
            name = row.sort[len(DOOMED) :].decode()
            if name in making or (row.body and msgspec.json.decode(row.body, type=int) >= now_us):
                is_clear = False
                continue
            try:
                # What has become part of the store since the list was read is no longer there in that revision; what is
                # marked does not become part of it any more.
                revision = await session.records.put(shelf_of(store_id), row.sort, CLEARING, expect=row.revision)
            except ConditionFailed:
                is_clear = False
                continue
            if name.startswith("doc_") and "." not in name:
                await remove_all(session, texts_of(name))
                made = [blob.name async for blob in blobs.list_all(prefix=segment_blob(name))]
            else:
                made = [segment_blob(name)]
            for blob in made:
                if blob.partition("/")[2] not in living:
                    await blobs.delete(blob)
            with contextlib.suppress(ConditionFailed):
                await session.records.delete(shelf_of(store_id), row.sort, expect=revision)
        return is_clear

    async def _empty(self, store_id: str, head: Record | None) -> bool:
        """Take every file and segment out of a store, and clear them away; False where somebody is still making
        something of it. Raises ``ConditionFailed`` where its head is another meanwhile: what is left in a store that
        was used or renewed just in time stays."""
        session, shelf = self._session, shelf_of(store_id)
        head_revision = 0 if head is None else head.revision

        async def write(changes: Changes) -> None:
            nonlocal head_revision
            if head is not None:
                changes.append(Put(HEAD, head.body, head_revision))
                head_revision += 1
            await session.records.write(shelf, changes)

        files = await files_of(session, store_id)
        for at in range(0, len(files), _EMPTIED_AT_ONCE):
            some = files[at : at + _EMPTIED_AT_ONCE]
            ids = [file.file_id for _, file in some]
            noted = [await session.records.get(stores_with(each), store_id.encode()) for each in ids]
            names = [file.document for _, file in some if file.document is not None]
            catalog_revision, catalog = await catalog_of(session, store_id)
            changes: Changes = [Delete(file_sort(file.file_id), revision) for revision, file in some]
            changes.append(Put(CATALOG, encode_catalog(catalog.without_documents(ids)), catalog_revision))
            await write([*changes, *await doom(session, store_id, *names)])
            for each, note in zip(ids, noted, strict=True):
                await remove_seen(session, stores_with(each), note)
        revision, catalog = await catalog_of(session, store_id)
        while catalog.pieces:
            pieces, rest = catalog.pieces[:_BATCH], catalog.pieces[_BATCH:]
            catalog = msgspec.structs.replace(catalog, number=catalog.number + 1, pieces=rest)
            gone = [piece.name for piece in pieces]
            await write([Put(CATALOG, encode_catalog(catalog), revision), *await doom(session, store_id, *gone)])
            (await session.room.parts.index()).forget(gone)
            revision += 1
        return await self.sweep(store_id)

    async def _bury(self, store_id: str, head: StoreHead | None) -> bool:
        """Remove the last records of a store that was emptied, its head last. False where somebody is still making
        something of it."""
        session, shelf = self._session, shelf_of(store_id)
        if await session.records.query(shelf, after=DOOMED, before=DOOMED_END, limit=1):
            return False
        await remove_all(session, shelf, after=BATCH, before=BATCHES_END)
        await remove_one(session, shelf, CATALOG)
        if head is not None:
            await remove_one(session, SHARED, store_id.encode())
            await remove_one(session, await list_of(session, head.owner), store_id.encode())
            await remove_one(session, shelf, HEAD)
        return True

    async def _tell(self, head: StoreHead, type_: str, **data: Any) -> None:
        # What happens in a store is told to its owner, whoever took up its work.
        await Notices(self._session, of=head.owner).tell(type_, vector_store_id=head.id, **data)


async def index_room(session: TenantSession, meter: Meter) -> None:
    """The work of ``library.index``."""
    await Indexing(session, meter, for_all=True).finish_all()


async def list_of(session: TenantSession, owner: str) -> Partition:
    """The list of a user's stores."""
    return Partition("vector-stores-of", await session.records.blind("vector-stores.user", owner))


async def note_work(session: TenantSession, store_id: str) -> None:
    """Put a store on the list of those with work left, durably, and let the platform know of the room."""
    # Anew: whoever has just found nothing left to do is about to take the store off the list.
    await put_anew(session, WORK, store_id.encode())
    await session.room.parts.unfinished.note()


def _verdict(problem: NagayaError, attempts: int) -> StoredError | None:
    """What a file's failure is called; None where it is to be tried again."""
    code: ErrorCode = "server_error"
    if isinstance(problem, DocumentUnreadable):
        code = "unsupported_file" if problem.reason in ("unsupported", "picture") else "invalid_file"
    elif isinstance(problem, NotFound):
        code = "invalid_file"
    elif not isinstance(problem, EmbeddingsChanged | MissingExtra) and attempts < MAX_ATTEMPTS:
        return None
    return StoredError.of(code, problem)


def _built(entries: list[Any], model: Embeddings | None) -> bytes:
    from nagaya.indexes.segment import build_segment

    if model is None:
        return build_segment(entries)
    return build_segment(entries, embedding=model.name, dimensions=model.dimensions)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _by_the_batch(chunks: AsyncIterator[Chunk], count: int) -> AsyncIterator[list[Chunk]]:
    some: list[Chunk] = []
    async for chunk in chunks:
        some.append(chunk)
        if len(some) == count:
            yield some
            some = []
    if some:
        yield some
