"""What is kept of a vector store, and where.

Partition ``vector-store/<id>`` holds everything that changes together: the head (``h``), the catalog of the index
(``c``), each file in the store (``f`` and its id), its batches (``b``), and the names of what is to be cleared away
(``x``). ``vector-texts/<document>`` holds the chunks of one indexing of one file, the blobs
``segments/<document>.<n>`` and ``segments/<seg id>`` the index. ``vector-stores-of/<blind user>`` and
``vector-stores-shared/all`` list stores, ``vector-stores-with/<file>`` the stores that have a file, and
``vector-store-work/all`` those with work left to do.

Whatever is written outside the store's partition has its name under ``x`` before, and loses it in the very batch that
makes it part of the store. So whoever dies in between leaves nothing that nobody would find.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.errors import NagayaError, NotFound
from nagaya.extraction.chunks import Strategy
from nagaya.indexes.catalog import Catalog, decode_catalog
from nagaya.kernel.ids import is_id
from nagaya.records.sealed_store import Delete, Partition, Put, Record
from nagaya.tenancy.principal import Scope

HEAD: Final = b"h"
CATALOG: Final = b"c"
FILE: Final = b"f"
FILES_END: Final = b"g"
BATCH: Final = b"b"
BATCHES_END: Final = b"c"
DOOMED: Final = b"x"
DOOMED_END: Final = b"y"
CLEARING: Final = b"0"
"""In place of the time until which somebody makes it: it is being cleared away, and becomes part of nothing."""
WORK: Final = Partition("vector-store-work", "all")
SHARED: Final = Partition("vector-stores-shared", "all")
PAGE: Final = 500
ATTEMPTS: Final = 16
_US: Final = 1_000_000
_DAY_US: Final = 86_400 * _US

Changes = list[Put | Delete]
FileStatus = Literal["in_progress", "completed", "cancelled", "failed"]
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]


class StoreHead(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A store besides its files. ``embedding`` is the model its vectors come from, once there are any; empty where
    the tenant has none."""

    id: str
    owner: str
    created_at_us: int
    last_active_us: int
    name: str = ""
    description: str | None = None
    metadata: dict[str, str] = {}
    shared: bool = False
    expires_days: int | None = None
    embedding: str | None = None
    dimensions: int = 0
    deleted: bool = False

    def is_expired(self, now_us: int) -> bool:
        """Whether nobody used it for as long as it was to be kept."""
        ends_us = self.expires_at_us
        return ends_us is not None and ends_us <= now_us

    @property
    def expires_at_us(self) -> int | None:
        return None if self.expires_days is None else self.last_active_us + self.expires_days * _DAY_US


class LastError(msgspec.Struct, frozen=True):
    """Why a file is not in the index."""

    code: ErrorCode
    message: str


class StoredError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a file is not in the index, in every language: it outlives the work that failed, and its readers differ.
    Without ``ja``: noted by a release that knew English only."""

    code: ErrorCode
    message: str
    ja: str = ""

    @classmethod
    def of(cls, code: ErrorCode, problem: NagayaError) -> StoredError:
        return cls(code, problem.message("en"), problem.message("ja"))

    def shown(self, language: str) -> LastError:
        """As somebody reads it in ``en`` or ``ja``."""
        return LastError(self.code, self.ja if language == "ja" and self.ja else self.message)


class StoreFile(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A file in a store. ``document`` names what was, or is being, made of it; ``busy_until_us`` is how long whoever
    makes it has said to be alive; ``by_admin``: an administrator added it, who may read every file."""

    file_id: str
    added_by: str
    by_admin: bool = False
    created_at_us: int
    filename: str = ""
    status: FileStatus = "in_progress"
    attributes: dict[str, str | float | bool] = {}
    strategy: Strategy = Strategy()
    batch: str | None = None
    error: StoredError | None = None
    usage_bytes: int = 0
    chunks: int = 0
    document: str | None = None
    busy_until_us: int = 0
    attempts: int = 0


class StoredChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chunk's text."""

    text: str
    page: int | None = None


class StoredBatch(msgspec.Struct, kw_only=True):
    """Files that were added together."""

    id: str
    created_at_us: int
    file_ids: list[str]
    cancelled: bool = False


encode: Final = msgspec.json.Encoder().encode
decode_head: Final = msgspec.json.Decoder(StoreHead).decode
decode_file: Final = msgspec.json.Decoder(StoreFile).decode
decode_chunk: Final = msgspec.json.Decoder(StoredChunk).decode
decode_batch: Final = msgspec.json.Decoder(StoredBatch).decode


def shelf_of(store_id: str) -> Partition:
    """The store's partition."""
    return Partition("vector-store", store_id)


def texts_of(document: str) -> Partition:
    """Where the chunks of one indexing of one file lie."""
    return Partition("vector-texts", document)


def stores_with(file_id: str) -> Partition:
    """Which stores have a file."""
    return Partition("vector-stores-with", file_id)


def chunk_sort(ordinal: int) -> bytes:
    """Where a chunk lies among its document's."""
    return b"t" + ordinal.to_bytes(4, "big")


def file_sort(file_id: str) -> bytes:
    """Where a file lies in the store's partition."""
    return FILE + file_id.encode()


def segment_blob(name: str) -> str:
    """The blob of a segment."""
    return f"segments/{name}"


def seconds(at_us: int) -> int:
    """Unix seconds."""
    return at_us // _US


def may_see(session: TenantSession, head: StoreHead, *, writing: bool) -> bool:
    """Whether the caller may read (or change) the store: its owner and an administrator, and a member to read what is
    shared."""
    return session.entrance.may_see(head.owner, shared=head.shared, writing=writing)


async def head_of(session: TenantSession, store_id: str, *, writing: bool) -> tuple[Record, StoreHead]:
    """The head, if the caller may read (or change) the store. What is absent, foreign or deleted answers alike:
    ``NotFound``."""
    session.entrance.require(Scope.READ)
    if writing:
        session.may_write()
    if is_id("vs", store_id):
        record = await session.records.get(shelf_of(store_id), HEAD)
        if record is not None:
            head = decode_head(record.body)
            if not head.deleted and may_see(session, head, writing=writing):
                return record, head
    raise NotFound("vector store")


async def catalog_of(session: TenantSession, store_id: str) -> tuple[int, Catalog]:
    """The catalog and its revision; an empty one where nothing was indexed yet."""
    record = await session.records.get(shelf_of(store_id), CATALOG)
    return (0, Catalog()) if record is None else (record.revision, decode_catalog(record.body))


async def file_of(session: TenantSession, store_id: str, file_id: str) -> tuple[int, StoreFile] | None:
    """A file's record and its revision, or None."""
    record = await session.records.get(shelf_of(store_id), file_sort(file_id))
    return None if record is None else (record.revision, decode_file(record.body))


async def files_of(session: TenantSession, store_id: str) -> list[tuple[int, StoreFile]]:
    """Every file of a store, with its revision, in the order of their ids."""
    found: list[tuple[int, StoreFile]] = []
    after = FILE
    while True:
        rows = await session.records.query(shelf_of(store_id), after=after, before=FILES_END, limit=PAGE)
        found += [(row.revision, decode_file(row.body)) for row in rows]
        if len(rows) < PAGE:
            return found
        after = rows[-1].sort


async def doom(session: TenantSession, store_id: str, *names: str) -> Changes:
    """The changes that put names on the list of what is to be cleared away."""
    sorts = [DOOMED + name.encode() for name in names]
    there = await session.records.get_many(shelf_of(store_id), sorts) if sorts else []
    return [Put(sort, b"") for sort, record in zip(sorts, there, strict=True) if record is None]


async def spare(session: TenantSession, store_id: str, name: str) -> Changes:
    """The changes that take a name off that list; none where somebody clears it away or has done so."""
    record = await session.records.get(shelf_of(store_id), DOOMED + name.encode())
    return [] if record is None or record.body == CLEARING else [Delete(record.sort, record.revision)]
