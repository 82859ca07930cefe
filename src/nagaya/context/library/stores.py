"""Vector stores: files of a user's that are searched together, in the shapes of OpenAI's API.

A user sees its own stores; a ``member`` also reads and searches shared ones; a ``tenant_admin`` reads and changes all
of the tenant. What is not there and what is somebody else's answer alike: ``NotFound``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.conversations import Order, check_metadata
from nagaya.context.library.files import Files
from nagaya.context.library.indexing import Indexing, list_of, note_work
from nagaya.context.library.shelf import (
    ATTEMPTS,
    BATCH,
    CATALOG,
    HEAD,
    PAGE,
    SHARED,
    Changes,
    FileStatus,
    LastError,
    StoredBatch,
    StoreFile,
    StoreHead,
    catalog_of,
    decode_batch,
    decode_chunk,
    decode_head,
    doom,
    encode,
    file_of,
    file_sort,
    files_of,
    head_of,
    may_see,
    seconds,
    shelf_of,
    stores_with,
    texts_of,
)
from nagaya.context.lone_records import put_anew, put_unless_there, remove_one, remove_seen
from nagaya.context.notices import Notices
from nagaya.errors import ConditionFailed, Conflict, Forbidden, InvalidValue, NotFound, VectorStoreExpired
from nagaya.extraction.chunks import Strategy
from nagaya.indexes.catalog import encode_catalog
from nagaya.indexes.filters import check_attributes
from nagaya.kernel.ids import is_id, new_id
from nagaya.records.sealed_store import Delete, Put
from nagaya.tenancy.principal import Role, Scope
from nagaya.usage.meter import Meter

MAX_FILES: Final = 2_000
"""Files added in one call."""
MAX_PAGE: Final = 100

T = TypeVar("T")
Attributes = dict[str, str | float | bool]


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a store is kept that nobody uses."""

    anchor: Literal["last_active_at"]
    days: int


class AutoStrategy(msgspec.Struct, frozen=True, tag_field="type", tag="auto", forbid_unknown_fields=True):
    """Chunks as they are made unless somebody wishes otherwise: 800 tokens, of which 400 overlap."""


class StaticSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens in a chunk and how many of them repeat the one before."""

    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class StaticStrategy(msgspec.Struct, frozen=True, tag_field="type", tag="static", forbid_unknown_fields=True):
    """Chunks of a given size."""

    static: StaticSizes


ChunkingIn = AutoStrategy | StaticStrategy


class FileCounts(msgspec.Struct, frozen=True):
    """How many files stand where."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0


class VectorStore(msgspec.Struct, frozen=True, kw_only=True):
    """A store as it is shown. Times are in Unix seconds; ``shared`` is Nagaya's own."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None = None
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiresAfter | None = None
    expires_at: int | None = None
    last_active_at: int
    metadata: dict[str, str]
    shared: bool = False


class VectorStoreFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a store as it is shown."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: FileStatus
    last_error: LastError | None
    chunking_strategy: StaticStrategy
    attributes: Attributes


class VectorStoreFileBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were added together, as they are shown."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class FileToAdd(NamedTuple):
    """A file that is to be added to a store, and how."""

    file_id: str
    attributes: Mapping[str, Any] | None = None
    chunking: ChunkingIn | None = None


class Listed(NamedTuple, Generic[T]):
    """A page of things, and whether more follow."""

    data: list[T]
    has_more: bool


def strategy_of(given: ChunkingIn | None) -> Strategy:
    """How to divide a text. Raises ``InvalidValue`` for sizes out of range."""
    if not isinstance(given, StaticStrategy):
        return Strategy()
    return Strategy(given.static.max_chunk_size_tokens, given.static.chunk_overlap_tokens)


# Named here, since the method ``list`` hides the type inside the class.
_Files = list[StoreFile]
_Texts = list[str]


class Stores:
    """One caller's view of a tenant's vector stores."""

    __slots__ = ("_indexing", "_is_admin", "_me", "_session")

    def __init__(self, session: TenantSession, meter: Meter | None = None) -> None:
        self._session = session
        self._me = session.entrance.principal.user_key
        self._is_admin = session.entrance.principal.role is Role.TENANT_ADMIN
        self._indexing = Indexing(session, meter)

    # --- stores ---

    async def create(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        files: Sequence[FileToAdd] = (),
        expires_after: ExpiresAfter | None = None,
        shared: bool = False,
        store_id: str | None = None,
    ) -> VectorStore:
        """Make a store of the caller's; its files are indexed in the background. Raises ``NotFound`` for a file that
        is not the caller's. With ``store_id`` a repeat gives the store made before."""
        session = self._session
        session.may_write()
        check_metadata(metadata or {})
        _check_days(expires_after)
        to_add = await self._checked(files)
        new = store_id or new_id("vs")
        now_us = session.clock.now_us()
        head = StoreHead(
            id=new, owner=self._me, created_at_us=now_us, last_active_us=now_us, name=name or "",
            description=description, metadata=dict(metadata or {}), shared=shared,
            expires_days=None if expires_after is None else expires_after.days,
        )  # fmt: skip
        await put_unless_there(session, await list_of(session, self._me), new.encode())
        if shared:
            await put_unless_there(session, SHARED, new.encode())
        with contextlib.suppress(ConditionFailed):
            await session.records.put(shelf_of(new), HEAD, encode(head))
        await self._add(new, to_add, None)
        return await self.retrieve(new)

    async def retrieve(self, store_id: str) -> VectorStore:
        """The store, or ``NotFound``. Takes up its work where it was interrupted."""
        _, head = await head_of(self._session, store_id, writing=False)
        return await self._shown(head)

    async def update(
        self,
        store_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expires_after: ExpiresAfter | msgspec.UnsetType | None = msgspec.UNSET,
        shared: bool | None = None,
    ) -> VectorStore:
        """Change what is given and leave the rest. Repeating it is harmless."""
        session = self._session
        check_metadata(metadata or {})
        if isinstance(expires_after, ExpiresAfter):
            _check_days(expires_after)
        for _ in range(ATTEMPTS):
            record, head = await head_of(session, store_id, writing=True)
            if name is not None:
                head.name = name
            if metadata is not None:
                head.metadata = dict(metadata)
            if expires_after is None:
                head.expires_days = None
            elif isinstance(expires_after, ExpiresAfter):
                head.expires_days = expires_after.days
            was_shared, head.shared = head.shared, head.shared if shared is None else shared
            listed = await session.records.get(SHARED, store_id.encode()) if was_shared and not head.shared else None
            if head.shared and not was_shared:
                await put_anew(session, SHARED, store_id.encode())
            try:
                await session.records.put(shelf_of(store_id), HEAD, encode(head), expect=record.revision)
            except ConditionFailed:
                continue
            await remove_seen(session, SHARED, listed)
            return await self._shown(head)
        raise Conflict

    async def delete(self, store_id: str) -> None:
        """Delete the store: nothing of it can be read or found any more when this returns. Its texts, vectors and
        records are then removed in the background, also if the server dies; the files themselves stay."""
        session = self._session
        for _ in range(ATTEMPTS):
            record, head = await head_of(session, store_id, writing=True)
            head.deleted = True
            await note_work(session, store_id)
            try:
                await session.records.put(shelf_of(store_id), HEAD, encode(head), expect=record.revision)
            except ConditionFailed:
                continue
            self._indexing.begin(store_id)
            return
        raise Conflict

    async def list(
        self,
        *,
        shared: bool = False,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> Listed[VectorStore]:
        """The caller's stores by when they were made, newest first; ``shared``: the tenant's shared ones."""
        session = self._session
        session.entrance.require(Scope.READ)
        _check_limit(limit)
        if shared and session.entrance.principal.role is Role.USER:
            raise Forbidden(needs="role member")
        await self._indexing.begin_all()
        partition = SHARED if shared else await list_of(session, self._me)
        low, high = _bounds(after, before, order)
        found: list[VectorStore] = []
        while len(found) <= limit:
            rows = await session.records.query(
                partition, after=low, before=high, limit=limit + 1, descending=order == "desc"
            )
            for row in rows:
                record = await session.records.get(shelf_of(row.sort.decode()), HEAD)
                head = None if record is None else decode_head(record.body)
                if head is not None and not head.deleted and may_see(session, head, writing=False):
                    found.append(await self._shown(head))
            if len(rows) <= limit:
                break
            low, high = (low, rows[-1].sort) if order == "desc" else (rows[-1].sort, high)
        return Listed(found[:limit], len(found) > limit)

    # --- files of a store ---

    async def add_file(self, store_id: str, given: FileToAdd, *, language: str = "en") -> VectorStoreFile:
        """Put a file of the caller's into a store, to be indexed in the background. One that is there already is
        indexed anew. ``language`` as for :meth:`file`. Raises ``NotFound``."""
        _, head = await head_of(self._session, store_id, writing=True)
        self._check_alive(head)
        await self._add(store_id, await self._checked([given]), None)
        return await self.file(store_id, given.file_id, language=language)

    async def file(self, store_id: str, file_id: str, *, language: str = "en") -> VectorStoreFile:
        """A file of the store, or ``NotFound``. ``language`` (``en`` or ``ja``): that of its ``last_error``."""
        await head_of(self._session, store_id, writing=False)
        return _file_shown(store_id, await self._file(store_id, file_id), language)

    async def list_files(
        self,
        store_id: str,
        *,
        status: FileStatus | None = None,
        batch: str | None = None,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        language: str = "en",
    ) -> Listed[VectorStoreFile]:
        """The files of a store; ``status`` and ``batch`` choose among them. ``language`` as for :meth:`file`."""
        _check_limit(limit)
        await head_of(self._session, store_id, writing=False)
        if batch is not None:
            await self._batch(store_id, batch)
        files = sorted(
            (file for _, file in await files_of(self._session, store_id)),
            key=lambda file: (file.created_at_us, file.file_id),
            reverse=order == "desc",
        )
        ids = [file.file_id for file in files]
        if after is not None:
            files = files[_place(ids, after) + 1 :]
        if before is not None:
            files = files[: _place([file.file_id for file in files], before)]
        chosen = [
            file
            for file in files
            if (status is None or file.status == status) and (batch is None or file.batch == batch)
        ]
        return Listed([_file_shown(store_id, file, language) for file in chosen[:limit]], len(chosen) > limit)

    async def update_file(
        self, store_id: str, file_id: str, attributes: Mapping[str, Any], *, language: str = "en"
    ) -> VectorStoreFile:
        """Give a file other attributes. A search that begins after this returns goes by them. ``language`` as for
        :meth:`file`."""
        session = self._session
        check_attributes(attributes)
        await head_of(session, store_id, writing=True)
        for _ in range(ATTEMPTS):
            found = await file_of(session, store_id, file_id)
            if found is None:
                raise NotFound("file")
            revision, file = found
            file.attributes = dict(attributes)
            changes: Changes = [Put(file_sort(file_id), encode(file), revision)]
            if file.status == "completed":
                catalog_revision, catalog = await catalog_of(session, store_id)
                changed = catalog.with_attributes(file_id, file.attributes)
                changes.append(Put(CATALOG, encode_catalog(changed), catalog_revision))
            with contextlib.suppress(ConditionFailed):
                await session.records.write(shelf_of(store_id), changes)
                return _file_shown(store_id, file, language)
        raise Conflict

    async def delete_file(self, store_id: str, file_id: str) -> None:
        """Take a file out of a store: when this returns no search finds anything of it. Its chunks and vectors are
        then removed from all that is kept, in the background, also if the server dies. The file itself stays."""
        await head_of(self._session, store_id, writing=True)
        await self._take_out(store_id, file_id)

    async def content(self, store_id: str, file_id: str) -> _Texts:
        """The texts of a file's chunks, in their order."""
        await head_of(self._session, store_id, writing=False)
        file = await self._file(store_id, file_id)
        if file.status != "completed" or file.document is None:
            return []
        texts: _Texts = []
        after = b""
        while True:
            rows = await self._session.records.query(texts_of(file.document), after=after, limit=PAGE)
            texts += [decode_chunk(row.body).text for row in rows]
            if len(rows) < PAGE:
                return texts
            after = rows[-1].sort

    async def forget_file(self, file_id: str) -> None:
        """Take a file out of every store that has it: part of deleting it. May be repeated."""
        self._session.may_write()
        while rows := await self._session.records.query(stores_with(file_id), limit=PAGE):
            for row in rows:
                with contextlib.suppress(NotFound):
                    await self._take_out(row.sort.decode(), file_id)
                await remove_one(self._session, stores_with(file_id), row.sort)

    # --- batches ---

    async def add_batch(self, store_id: str, given: Sequence[FileToAdd]) -> VectorStoreFileBatch:
        """Put up to 2,000 files into a store together. Raises ``NotFound``, ``InvalidValue``."""
        session = self._session
        _, head = await head_of(session, store_id, writing=True)
        self._check_alive(head)
        if not given:
            raise InvalidValue(param="file_ids", at="file_ids", detail="one file or more")
        to_add = await self._checked(given)
        batch = StoredBatch(
            id=new_id("vsfb"), created_at_us=session.clock.now_us(), file_ids=[file.file_id for file in to_add]
        )
        await session.records.put(shelf_of(store_id), BATCH + batch.id.encode(), encode(batch))
        await self._add(store_id, to_add, batch.id)
        return await self.batch(store_id, batch.id)

    async def batch(self, store_id: str, batch_id: str) -> VectorStoreFileBatch:
        """How far a batch is, or ``NotFound``."""
        await head_of(self._session, store_id, writing=False)
        _, batch = await self._batch(store_id, batch_id)
        files = [file for _, file in await files_of(self._session, store_id) if file.batch == batch_id]
        counts = _counted(files)
        if counts.in_progress:
            self._indexing.begin(store_id)
        status: Literal["in_progress", "completed", "cancelled", "failed"] = "completed"
        if batch.cancelled:
            status = "cancelled"
        elif counts.in_progress:
            status = "in_progress"
        elif counts.total and counts.failed == counts.total:
            status = "failed"
        return VectorStoreFileBatch(
            id=batch_id,
            created_at=seconds(batch.created_at_us),
            vector_store_id=store_id,
            status=status,
            file_counts=counts,
        )

    async def cancel_batch(self, store_id: str, batch_id: str) -> VectorStoreFileBatch:
        """Index no more files of a batch; those that are ready stay. May be repeated."""
        session = self._session
        await head_of(session, store_id, writing=True)
        for _ in range(ATTEMPTS):
            revision, batch = await self._batch(store_id, batch_id)
            batch.cancelled = True
            with contextlib.suppress(ConditionFailed):
                await session.records.put(shelf_of(store_id), BATCH + batch_id.encode(), encode(batch), expect=revision)
                break
        else:
            raise Conflict
        for file_id in batch.file_ids:
            for _ in range(ATTEMPTS):
                found = await file_of(session, store_id, file_id)
                if found is None or found[1].status != "in_progress" or found[1].batch != batch_id:
                    break
                found[1].status, found[1].document = "cancelled", None
                with contextlib.suppress(ConditionFailed):
                    await session.records.put(shelf_of(store_id), file_sort(file_id), encode(found[1]), expect=found[0])
                    break
        await note_work(session, store_id)
        self._indexing.begin(store_id)
        return await self.batch(store_id, batch_id)

    # --- inside ---

    async def _checked(self, given: Sequence[FileToAdd]) -> _Files:
        """The files as they will be kept, each of them the caller's."""
        if len(given) > MAX_FILES:
            raise InvalidValue(param="file_ids", at="file_ids", detail=f"at most {MAX_FILES} files")
        files, now_us = Files(self._session), self._session.clock.now_us()
        made: dict[str, StoreFile] = {}
        for one in given:
            check_attributes(one.attributes or {})
            found = await files.retrieve(one.file_id)
            made[one.file_id] = StoreFile(
                file_id=one.file_id, added_by=self._me, by_admin=self._is_admin, created_at_us=now_us,
                filename=found.filename, attributes=dict(one.attributes or {}), strategy=strategy_of(one.chunking),
            )  # fmt: skip
        return list(made.values())

    async def _add(self, store_id: str, files: Sequence[StoreFile], batch: str | None) -> None:
        session = self._session
        if not files:
            return
        await note_work(session, store_id)
        for file in files:
            file.batch = batch
            # Named beforehand, so that deleting the file finds every store that may have something of it.
            await put_unless_there(session, stores_with(file.file_id), store_id.encode())
            await self._put_file(store_id, file)
            await Notices(session).tell("library.added", vector_store_id=store_id, file_id=file.file_id)
        # Once more, for whoever looks at the store from here on.
        await note_work(session, store_id)
        self._indexing.begin(store_id)

    async def _put_file(self, store_id: str, file: StoreFile) -> None:
        session = self._session
        for _ in range(ATTEMPTS):
            before = await file_of(session, store_id, file.file_id)
            changes: Changes = [Put(file_sort(file.file_id), encode(file), before[0] if before else 0)]
            if before is not None and before[1].document is not None:
                catalog_revision, catalog = await catalog_of(session, store_id)
                without = encode_catalog(catalog.without_documents([file.file_id]))
                changes.append(Put(CATALOG, without, catalog_revision))
                changes += await doom(session, store_id, before[1].document)
            with contextlib.suppress(ConditionFailed):
                await session.records.write(shelf_of(store_id), changes)
                return
        raise Conflict

    async def _take_out(self, store_id: str, file_id: str) -> None:
        session = self._session
        await note_work(session, store_id)
        for _ in range(ATTEMPTS):
            noted = await session.records.get(stores_with(file_id), store_id.encode())
            found = await file_of(session, store_id, file_id)
            if found is None:
                raise NotFound("file")
            revision, file = found
            catalog_revision, catalog = await catalog_of(session, store_id)
            changes: Changes = [Delete(file_sort(file_id), revision)]
            if file.document is not None:
                without = encode_catalog(catalog.without_documents([file_id]))
                changes.append(Put(CATALOG, without, catalog_revision))
                changes += await doom(session, store_id, file.document)
            with contextlib.suppress(ConditionFailed):
                await session.records.write(shelf_of(store_id), changes)
                break
        else:
            raise Conflict
        # One that was added again meanwhile is noted anew before anything is made of it.
        await remove_seen(session, stores_with(file_id), noted)
        await note_work(session, store_id)
        self._indexing.begin(store_id)

    async def _file(self, store_id: str, file_id: str) -> StoreFile:
        found = await file_of(self._session, store_id, file_id) if is_id("file", file_id) else None
        if found is None:
            raise NotFound("file")
        if found[1].status == "in_progress":
            self._indexing.begin(store_id)
        return found[1]

    async def _batch(self, store_id: str, batch_id: str) -> tuple[int, StoredBatch]:
        if is_id("vsfb", batch_id):
            record = await self._session.records.get(shelf_of(store_id), BATCH + batch_id.encode())
            if record is not None:
                return record.revision, decode_batch(record.body)
        raise NotFound("file batch")

    def _check_alive(self, head: StoreHead) -> None:
        if head.is_expired(self._session.clock.now_us()):
            raise VectorStoreExpired

    async def _shown(self, head: StoreHead) -> VectorStore:
        files = [file for _, file in await files_of(self._session, head.id)]
        counts = _counted(files)
        expired = head.is_expired(self._session.clock.now_us())
        if counts.in_progress or (expired and files):
            self._indexing.begin(head.id)
        ends_us = head.expires_at_us
        return VectorStore(
            id=head.id,
            created_at=seconds(head.created_at_us),
            name=head.name,
            description=head.description,
            usage_bytes=sum(file.usage_bytes for file in files),
            file_counts=counts,
            status="expired" if expired else "in_progress" if counts.in_progress else "completed",
            expires_after=None if head.expires_days is None else ExpiresAfter("last_active_at", head.expires_days),
            expires_at=None if ends_us is None else seconds(ends_us),
            last_active_at=seconds(head.last_active_us),
            metadata=head.metadata,
            shared=head.shared,
        )


async def forget_file(session: TenantSession, file_id: str) -> None:
    """Take a file out of every store that has it: what deleting a file does first. May be repeated."""
    await Stores(session).forget_file(file_id)


def _file_shown(store_id: str, file: StoreFile, language: str) -> VectorStoreFile:
    sizes = StaticSizes(file.strategy.max_chunk_size_tokens, file.strategy.chunk_overlap_tokens)
    return VectorStoreFile(
        id=file.file_id,
        usage_bytes=file.usage_bytes,
        created_at=seconds(file.created_at_us),
        vector_store_id=store_id,
        status=file.status,
        last_error=None if file.error is None else file.error.shown(language),
        chunking_strategy=StaticStrategy(sizes),
        attributes=file.attributes,
    )


def _counted(files: Sequence[StoreFile]) -> FileCounts:
    def count(status: FileStatus) -> int:
        return sum(1 for file in files if file.status == status)

    return FileCounts(count("in_progress"), count("completed"), count("failed"), count("cancelled"), len(files))


def _bounds(after: str | None, before: str | None, order: Order) -> tuple[bytes, bytes]:
    for name, given in (("after", after), ("before", before)):
        if given is not None and not is_id("vs", given):
            raise InvalidValue(param=name, at=name, detail="the id of a vector store")
    first, last = (after or "").encode(), (before or "").encode()
    return (last, first) if order == "desc" else (first, last)


def _place(ids: Sequence[str], wanted: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError:
        raise NotFound("file") from None


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(param="limit", at="limit", detail=f"1 to {MAX_PAGE}")


def _check_days(expires_after: ExpiresAfter | None) -> None:
    if expires_after is not None and not 1 <= expires_after.days <= 365:
        raise InvalidValue(param="expires_after.days", at="expires_after.days", detail="1 to 365")
