"""Stores in memory: for tests, and for rooms that are meant to be forgotten with the process."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from nagaya.errors import ConditionFailed, StoreDamaged, TenantExists
from nagaya.stores.driver import ABSENT, Change, Put, Row, ScannedRow
from nagaya.stores.rooms import check_room


class _Partition:
    __slots__ = ("order", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.order: list[bytes] = []


class MemoryStore:
    """One room in memory. It implements :class:`nagaya.stores.driver.StoreDriver`; nothing outlives the process."""

    def __init__(self) -> None:
        self._partitions: dict[str, _Partition] = {}

    async def get(self, partition: str, sort: bytes) -> Row | None:
        held = self._partitions.get(partition)
        return None if held is None else held.rows.get(sort)

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        held = self._partitions.get(partition) or _Partition()
        for change in changes:
            found = held.rows.get(change.sort)
            if (ABSENT if found is None else found.revision) != change.expect:
                raise ConditionFailed
        for change in changes:
            if type(change) is Put:
                if change.expect == ABSENT:
                    insort(held.order, change.sort)
                held.rows[change.sort] = Row(change.sort, change.expect + 1, bytes(change.body))
            else:
                del held.rows[change.sort]
                del held.order[bisect_left(held.order, change.sort)]
        self._partitions[partition] = held

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[Row]:
        held = self._partitions.get(partition)
        if held is None:
            return []
        low = bisect_right(held.order, after)
        high = max(low, bisect_left(held.order, before)) if before else len(held.order)
        start = max(low, high - limit) if descending else low
        places = held.order[start : min(high, start + limit)]
        return [held.rows[place] for place in (reversed(places) if descending else places)]

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        found: list[ScannedRow] = []
        for name in sorted(self._partitions):
            if after is not None and name < after[0]:
                continue
            start = after[1] if after is not None and name == after[0] else b""
            rows = await self.query(name, after=start, before=b"", limit=limit - len(found), descending=False)
            found += [ScannedRow(name, row) for row in rows]
            if len(found) >= limit:
                break
        return found

    async def close(self) -> None:
        return None

    def size_bytes(self) -> int:
        return sum(len(row.sort) + len(row.body) for held in self._partitions.values() for row in held.rows.values())


class MemoryHouse:
    """Rooms in memory. It implements :class:`nagaya.stores.driver.StoreHouse`; ``close`` forgets them all."""

    def __init__(self) -> None:
        self._rooms: dict[str, MemoryStore] = {}

    async def create(self, room: str) -> None:
        if check_room(room) in self._rooms:
            raise TenantExists(value=room)
        self._rooms[room] = MemoryStore()

    async def open(self, room: str) -> MemoryStore:
        store = self._rooms.get(check_room(room))
        if store is None:
            raise StoreDamaged(place=room)
        return store

    async def exists(self, room: str) -> bool:
        return check_room(room) in self._rooms

    async def destroy(self, room: str) -> None:
        self._rooms.pop(check_room(room), None)

    async def size_bytes(self, room: str) -> int:
        store = self._rooms.get(check_room(room))
        return 0 if store is None else store.size_bytes()

    async def close(self) -> None:
        self._rooms.clear()
