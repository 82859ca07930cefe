"""The store port: what every database behind Nagaya must be able to do, and no more.

A store belongs to one room (one tenant). Records lie in partitions and are ordered in a partition by their sort
key, compared byte by byte. Every write is conditional: it names the revision it replaces, so that two writers can
never overwrite each other unknowingly. The weakest of SQLite, PostgreSQL, DynamoDB and Cosmos DB sets this contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

ABSENT: Final = 0
"""The ``expect`` of a write to a place where nothing may lie yet."""

MAX_BATCH: Final = 100
"""Changes in one batch: the limit of a DynamoDB transaction and of a Cosmos DB transactional batch."""

MAX_PAGE: Final = 1000
"""Rows one query returns at the most; a longer range is read page by page."""


class Row(NamedTuple):
    """A stored record: its place in the partition, its revision (from 1), its sealed body."""

    sort: bytes
    revision: int
    body: bytes


PlainRow = tuple[bytes, int, bytes]
"""A :class:`Row`, or its three values as the database gave them: naming those of a page takes a third of reading it."""


class Put(NamedTuple):
    """Write ``body`` at ``sort`` if the revision there is ``expect`` (``ABSENT``: none); it becomes ``expect + 1``."""

    sort: bytes
    body: bytes
    expect: int = ABSENT


class Delete(NamedTuple):
    """Remove the record at ``sort`` if its revision is ``expect``."""

    sort: bytes
    expect: int


class ScannedRow(NamedTuple):
    """A row together with its partition, as a full scan returns it."""

    partition: str
    row: Row


Change = Put | Delete


class StoreDriver(Protocol):
    """One room's store. Partitions are ASCII strings of at most 200 characters, sort keys 1–200 bytes.

    Methods raise the vendor's own errors or Nagaya's; :class:`nagaya.stores.store.Store` maps them, sets deadlines
    and checks limits. All may be called concurrently.
    """

    async def get(self, partition: str, sort: bytes) -> Row | None:
        """The record at that place, or None. Sees every write acknowledged before the call."""
        ...

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        """Apply 1 to ``MAX_BATCH`` changes to distinct places, all or none, durably before it returns.

        Raises ``ConditionFailed`` when an ``expect`` does not hold; then nothing was changed.
        """
        ...

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[PlainRow]:
        """Up to ``limit`` rows with ``after < sort < before`` (``before`` = b"" means no upper end), in order."""
        ...

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        """Rows of all partitions after a place, for operations (moves, re-sealing, checks). In the order of partition
        names, byte by byte, and within one of sort keys."""
        ...

    async def close(self) -> None:
        """Let go of what this store holds open. May be called again."""
        ...


class Later(Enum):
    """In place of an answer: not now."""

    LATER = 0


@runtime_checkable
class QuickReads(Protocol):
    """An optional power of a store that is near: to answer within microseconds, without waiting for anything."""

    def get_now(self, partition: str, sort: bytes) -> Row | Literal[Later.LATER] | None:
        """As :meth:`StoreDriver.get` where that needs no waiting; else ``LATER``, also where something is wrong."""
        ...


@runtime_checkable
class Watchful(Protocol):
    """An optional power: to write only if nobody but this process has written to the room since a moment."""

    def moment(self) -> object | None:
        """Stands for the room as it is now; None where that cannot be told at once. Never waits."""
        ...

    async def write_since(self, partition: str, changes: Sequence[Change], moment: object) -> None:
        """As :meth:`StoreDriver.write`. Raises ``ConditionFailed`` also where another process has written to the
        room since ``moment`` was asked for, and may where nobody has."""
        ...

    async def query_since(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool, moment: object
    ) -> Sequence[PlainRow]:
        """As :meth:`StoreDriver.query`. Raises ``ConditionFailed`` where another process has written to the room since
        ``moment`` was asked for, and may where nobody has."""
        ...


@runtime_checkable
class QuickWrites(Protocol):
    """An optional power of a store that is near: to write without a turn of the event loop."""

    def write_now(self, partition: str, changes: Sequence[Change], moment: object | None) -> bool:
        """As :meth:`StoreDriver.write`, or with a moment as :meth:`Watchful.write_since`, where nobody else is writing
        and it takes no longer than a turn of the loop. False: nothing was done, ask one of those."""
        ...

    def put_now(
        self, partition: str, sort: bytes, body: bytes, expect: int, moment: object | None
    ) -> bool | Literal[Later.LATER]:
        """As :meth:`write_now`, of one record: the shortest way there is. ``LATER``: nothing was done, ask again after
        a turn of the loop."""
        ...


class StoreHouse(Protocol):
    """All rooms under one store address, such as a folder of SQLite files."""

    async def create(self, room: str) -> None:
        """Make an empty store for a new room. Raises ``TenantExists`` where one is already there."""
        ...

    async def open(self, room: str) -> StoreDriver:
        """The room's store. Raises ``StoreDamaged`` where there is none or it cannot be opened."""
        ...

    async def destroy(self, room: str) -> None:
        """Remove the room's store and everything in it. A room that is not there is no error."""
        ...

    async def size_bytes(self, room: str) -> int:
        """How many bytes the room takes at rest."""
        ...

    async def close(self) -> None:
        """Close everything opened. Acknowledged writes are on disk already."""
        ...
