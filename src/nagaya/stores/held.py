"""A store for work that others may take over: it writes only while the work is nobody else's."""

from __future__ import annotations

from collections.abc import Sequence

from nagaya.kernel.fence import Fence
from nagaya.stores.driver import ABSENT, MAX_PAGE, Change, PlainRow, Row, ScannedRow
from nagaya.stores.store import Store


class HeldStore(Store):
    """As the store behind it, which it does not own; no write is begun behind the fence."""

    __slots__ = ("_fence", "_store")

    def __init__(self, store: Store, fence: Fence) -> None:
        self._store = store
        self._fence = fence

    async def get(self, partition: str, sort: bytes) -> Row | None:
        return await self._store.get(partition, sort)

    async def get_many(self, partition: str, sorts: Sequence[bytes]) -> list[Row | None]:
        return await self._store.get_many(partition, sorts)

    async def put(
        self, partition: str, sort: bytes, body: bytes, expect: int = ABSENT, *, since: object | None = None
    ) -> int:
        await self._fence.hold()
        return await self._store.put(partition, sort, body, expect, since=since)

    def moment(self) -> object | None:
        return self._store.moment()

    async def delete(self, partition: str, sort: bytes, expect: int) -> None:
        await self._fence.hold()
        await self._store.delete(partition, sort, expect)

    async def batch(self, partition: str, changes: Sequence[Change]) -> None:
        await self._fence.hold()
        await self._store.batch(partition, changes)

    async def query(
        self,
        partition: str,
        *,
        after: bytes = b"",
        before: bytes = b"",
        limit: int = 100,
        descending: bool = False,
        since: object | None = None,
    ) -> Sequence[PlainRow]:
        return await self._store.query(
            partition, after=after, before=before, limit=limit, descending=descending, since=since
        )

    async def scan(self, *, after: tuple[str, bytes] | None = None, limit: int = MAX_PAGE) -> Sequence[ScannedRow]:
        return await self._store.scan(after=after, limit=limit)

    async def close(self) -> None:
        """Nothing: whoever opened the store closes it."""
