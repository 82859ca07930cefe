"""A room's records, sealed on the way down and opened on the way up: the only way in which work reaches a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Final, NamedTuple, cast

from nagaya.errors import ConditionFailed, SealBroken
from nagaya.kernel.fence import Fence
from nagaya.records.blind_index import BlindIndex
from nagaya.records.cursors import Cursors
from nagaya.records.envelope import key_version
from nagaya.records.opened import Opened, OpenedRecords
from nagaya.records.sealer import Partition, Sealer, fresh_nonce, nonces
from nagaya.stores import driver
from nagaya.stores.driver import ABSENT, PlainRow, Row, ScannedRow
from nagaya.stores.held import HeldStore
from nagaya.stores.store import Store

__all__ = ["ABSENT", "Delete", "Partition", "Put", "Record", "Resealed", "SealedStore"]


class Record(NamedTuple):
    """A record opened: its place in the partition, its revision (from 1), its body in clear."""

    sort: bytes
    revision: int
    body: bytes


_record = cast("Callable[[tuple[bytes, int, bytes]], Record]", partial(tuple.__new__, Record))


class Put(NamedTuple):
    """Seal ``body`` and write it at ``sort`` if the revision there is ``expect``; it becomes ``expect + 1``."""

    sort: bytes
    body: bytes
    expect: int = ABSENT


class Delete(NamedTuple):
    """Remove the record at ``sort`` if its revision is ``expect``."""

    sort: bytes
    expect: int


class Resealed(NamedTuple):
    """One step of a sweep. ``after`` is where the next step starts; None: the sweep is through.

    ``broken`` rows did not open and were left as they are, for a diagnosis to look at.
    """

    seen: int
    resealed: int
    broken: int
    after: tuple[str, bytes] | None


class Bodies(NamedTuple):
    """The bodies of a range. ``last`` is where the range's next part starts; None: there are no more."""

    bodies: list[bytes]
    last: bytes | None


class ScannedAt(NamedTuple):
    """One step of a look through the room. ``after`` is where the next step starts; None: there are no more."""

    records: list[Record]
    after: tuple[str, bytes] | None


class SealedStore:
    """One room's records.

    Every method raises the ``Store…`` errors of the store and the ``Key…`` errors of the keyring; those that read
    raise ``SealBroken`` where what lies in the store was not sealed for just that place and revision. Writes are
    conditional, so a repeat after an unknown outcome changes nothing that somebody else wrote. To be used in one
    event loop.
    """

    def __init__(self, store: Store, sealer: Sealer, opened: OpenedRecords | None = None) -> None:
        self._store = store
        self._sealer = sealer
        self._opened = opened if opened is not None else OpenedRecords()
        sealer.keyring.when_dropped(self._forget_opened)
        self._blind_index = BlindIndex(store, sealer)
        self.cursors: Final = Cursors(sealer)
        """Page cursors of this room."""

    async def get(self, partition: Partition, sort: bytes) -> Record | None:
        """The record at that place, or None. Sees every write acknowledged before the call."""
        row = await self._store.get(f"{partition[0]}/{partition[1]}", sort)
        if row is None:
            return None
        return Record(row.sort, row.revision, await self._open(partition, row))

    async def get_many(self, partition: Partition, sorts: Sequence[bytes]) -> list[Record | None]:
        """As :meth:`get`, of several places at once, in their order."""
        rows = await self._store.get_many(f"{partition[0]}/{partition[1]}", sorts)
        return [None if row is None else Record(row[0], row[1], await self._open(partition, row)) for row in rows]

    def moment(self) -> object | None:
        """Stands for the room as it is now, for :meth:`put`; None where the store cannot tell. Never waits."""
        return self._store.moment()

    async def put(
        self, partition: Partition, sort: bytes, body: bytes, *, expect: int = ABSENT, since: object | None = None
    ) -> int:
        """Seal and write one record durably; gives its new revision. Raises ``ConditionFailed`` where the revision
        there is not ``expect``, and, with ``since``, where another process has written to the room meanwhile."""
        cipher = self._sealer.held_to_seal(partition) or await self._sealer.to_seal(partition)
        sealed = cipher.seal(sort, expect + 1, body, fresh_nonce())
        return await self._store.put(f"{partition[0]}/{partition[1]}", sort, sealed, expect, since=since)

    async def delete(self, partition: Partition, sort: bytes, *, expect: int) -> None:
        """Remove one record durably. Raises ``ConditionFailed``. Needs no key."""
        await self._store.delete(f"{partition[0]}/{partition[1]}", sort, expect)

    async def write(self, partition: Partition, changes: Sequence[Put | Delete]) -> None:
        """Apply 1 to ``MAX_BATCH`` changes to distinct places of one partition, all or none, durably.

        Raises ``ConditionFailed`` where one ``expect`` does not hold; then nothing was changed.
        """
        puts = sum(1 for change in changes if isinstance(change, Put))
        sealed: list[driver.Change] = []
        cipher = None
        if puts:
            cipher = self._sealer.held_to_seal(partition, puts) or await self._sealer.to_seal(partition, puts)
        fresh = iter(nonces(puts))
        for change in changes:
            if isinstance(change, Delete):
                sealed.append(driver.Delete(change.sort, change.expect))
            else:
                assert cipher is not None
                sort, body, expect = change
                sealed.append(driver.Put(sort, cipher.seal(sort, expect + 1, body, next(fresh)), expect))
        await self._store.batch(f"{partition[0]}/{partition[1]}", sealed)

    async def query(
        self,
        partition: Partition,
        *,
        after: bytes = b"",
        before: bytes = b"",
        limit: int,
        descending: bool = False,
    ) -> list[Record]:
        """Up to ``limit`` records with ``after < sort < before`` (``before`` = b"": no upper end), in order."""
        rows = await self._store.query(
            f"{partition[0]}/{partition[1]}", after=after, before=before, limit=limit, descending=descending
        )
        opened = await self._open_all(partition, rows)
        return [_record((row[0], row[1], body)) for row, body in zip(rows, opened, strict=True)]

    async def bodies(
        self,
        partition: Partition,
        *,
        after: bytes = b"",
        before: bytes = b"",
        limit: int,
        descending: bool = False,
        since: object | None = None,
    ) -> Bodies:
        """As :meth:`query`, for those who only want the bodies. With ``since``, raises ``ConditionFailed`` where
        another process has written to the room since that moment, and may where none has."""
        rows = await self._store.query(
            f"{partition[0]}/{partition[1]}",
            after=after,
            before=before,
            limit=limit,
            descending=descending,
            since=since,
        )
        return Bodies(await self._open_all(partition, rows), rows[-1][0] if len(rows) == limit else None)

    async def scan(self, *, after: tuple[str, bytes] | None = None, limit: int) -> list[tuple[Partition, Record]]:
        """Records of all partitions after a place, opened, in the store's own stable order. For operations."""
        rows = await self._store.scan(after=after, limit=limit)
        found: list[tuple[Partition, Record]] = []
        for stored, row in rows:
            partition = _partition(stored)
            found.append((partition, Record(row.sort, row.revision, await self._open(partition, row))))
        return found

    async def scan_at(
        self, sort: bytes, collection: str, *, after: tuple[str, bytes] | None = None, limit: int
    ) -> ScannedAt:
        """Of ``limit`` records after a place, those that lie at ``sort`` in a partition of that collection, opened; the
        others are passed over unopened. For operations."""
        rows = await self._store.scan(after=after, limit=limit)
        found = []
        for stored, row in rows:
            partition = _partition(stored)
            if row.sort == sort and partition.collection == collection:
                found.append(Record(row.sort, row.revision, await self._open(partition, row)))
        return ScannedAt(found, (rows[-1].partition, rows[-1].row.sort) if len(rows) == limit else None)

    async def reseal(self, *, limit: int, after: tuple[str, bytes] | None = None) -> Resealed:
        """One step of the sweep after a rotation: of ``limit`` records after a place, those of older key versions
        are sealed anew under the active one, each on condition that nobody changed it meanwhile.

        A record's revision rises by one. Resumable at any step and harmless to repeat. Another process may seal
        under the former version until its keys are refreshed (30 s), so a sweep whose second pass, later than that,
        re-seals nothing is complete.
        """
        active = await self._sealer.keyring.active()
        rows = await self._store.scan(after=after, limit=limit)
        resealed = broken = 0
        for scanned in rows:
            try:
                if key_version(scanned.row.body) != active.version:
                    resealed += await self._reseal(scanned)
            except SealBroken:
                broken += 1
        last = (rows[-1].partition, rows[-1].row.sort) if len(rows) == limit else None
        return Resealed(len(rows), resealed, broken, last)

    async def blind(self, field: str, value: str) -> str:
        """64 hex digits that stand for ``value`` in a look-up: the same for this tenant and field for ever, also
        after a rotation; see :class:`BlindIndex` for how. The first call of a session reads one record."""
        return await self._blind_index.blind(field, value)

    def fenced(self, fence: Fence) -> SealedStore:
        """The same records for work that others may take over: it writes nothing behind the fence. What was sent to
        the store before may still be kept."""
        fenced = copy(self)
        fenced._store = HeldStore(self._store, fence)
        return fenced

    def drop_keys(self) -> None:
        """Forget every key, cipher and index key now; the next use fetches them again, or is refused."""
        self._sealer.drop_keys()
        self._blind_index.forget()
        self._forget_opened()

    # --- inside -----------------------------------------------------------------------------------------------

    async def _open_all(self, partition: Partition, rows: Sequence[PlainRow]) -> list[bytes]:
        opened: list[bytes] = []
        cipher = None
        header = b""
        kept = self._opened.of(self._sealer.room, partition).get
        add = opened.append
        for row in rows:
            known = kept(row[0])
            if known is not None and known[2] is header and known[0] == row:
                add(known[1])
                continue
            sort, revision, sealed = row
            # Mostly one key version for a whole page: then the cipher is looked up once. It is looked up also where
            # nothing needs decrypting: without a key that may be used now, nothing is served.
            if cipher is None or not sealed.startswith(header):
                cipher = self._sealer.held_to_open(partition, sealed) or await self._sealer.to_open(partition, sealed)
                header = cipher.header
            body = known[1] if known is not None and known[0] == row else cipher.open(sort, revision, sealed)
            self._opened.keep(self._sealer.room, partition, sort, Opened((sort, revision, sealed), body, header))
            add(body)
        return opened

    async def _open(self, partition: Partition, row: Row) -> bytes:
        sort, revision, sealed = row
        cipher = self._sealer.held_to_open(partition, sealed) or await self._sealer.to_open(partition, sealed)
        known = self._opened.of(self._sealer.room, partition).get(sort)
        if known is not None and known.row == row:
            return known.body
        body = cipher.open(sort, revision, sealed)
        self._opened.keep(self._sealer.room, partition, sort, Opened((sort, revision, sealed), body, cipher.header))
        return body

    def _forget_opened(self) -> None:
        self._opened.drop(self._sealer.room)

    async def _reseal(self, scanned: ScannedRow) -> int:
        partition = _partition(scanned.partition)
        row = scanned.row
        body = await self._open(partition, row)
        try:
            await self.put(partition, row.sort, body, expect=row.revision)
        except ConditionFailed:
            # Changed or removed meanwhile, and so not ours to write any more.
            return 0
        return 1


def _partition(stored: str) -> Partition:
    collection, slash, name = stored.partition("/")
    if not slash:
        raise SealBroken
    return Partition(collection, name)
