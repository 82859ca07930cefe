"""One partition as a plain key-value place, for parts that know nothing of partitions (such as the secret vault)."""

from __future__ import annotations

from collections.abc import Sequence

from nagaya.records.sealed_store import Partition, Record, SealedStore


class PartitionValues:
    """The records of one partition of a sealed store. Raises what :class:`SealedStore` raises."""

    def __init__(self, store: SealedStore, partition: Partition) -> None:
        self._store = store
        self._partition = partition

    async def get(self, sort: bytes) -> Record | None:
        return await self._store.get(self._partition, sort)

    async def put(self, sort: bytes, body: bytes, *, expect: int) -> int:
        return await self._store.put(self._partition, sort, body, expect=expect)

    async def delete(self, sort: bytes, *, expect: int) -> None:
        await self._store.delete(self._partition, sort, expect=expect)

    async def query(self, *, after: bytes, limit: int) -> Sequence[Record]:
        return await self._store.query(self._partition, after=after, limit=limit)
