"""What sealing and opening cost beside AES-GCM alone: medians of one run, in µs per 1 KB record.

Run: ``python tests/benchmarks/seal_figures.py``. The store is a list in memory, so what is timed is ours.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.kernel.clock import SystemClock
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import Partition, Put, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.stores.driver import Row
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions

BODY = os.urandom(1024)
ROUNDS = 15
CONVERSATIONS = [Partition("conversation", f"conv_{number:032x}") for number in range(16)]


class _NoStore:
    """Answers at once, so that only the layer above it costs."""

    rows: list[Row]

    async def put(self, partition: str, sort: bytes, body: bytes, expect: int) -> int:
        return expect + 1

    async def batch(self, partition: str, changes: list[Put]) -> None:
        pass

    async def query(self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool) -> list[Row]:
        return self.rows


async def _median_us(work: Callable[[], Awaitable[object]], records: int) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await work()
        times.append((time.perf_counter() - start) / records * 1e6)
    return statistics.median(times)


async def main() -> None:
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, "acme")
    keyring = Keyring("acme", keys, versions, SystemClock())
    sealer = Sealer("acme", keyring)
    store = _NoStore()
    records = SealedStore(store, sealer)  # type: ignore[arg-type]  # a store of three methods is enough here
    aes = AESGCM(os.urandom(32))
    nonce, context = os.urandom(12), os.urandom(100)
    ciphertext = aes.encrypt(nonce, BODY, context)
    place = CONVERSATIONS[0]
    sorts = [number.to_bytes(8, "big") for number in range(50)]
    store.rows = [Row(sort, 1, await sealer.seal(place, sort, 1, BODY)) for sort in sorts]
    batch = [Put(sort, BODY) for sort in sorts]

    async def aes_seal() -> None:
        for _ in range(1000):
            aes.encrypt(nonce, BODY, context)

    async def aes_open() -> None:
        for _ in range(1000):
            aes.decrypt(nonce, ciphertext, context)

    async def nothing() -> None:
        for number in range(1000):
            await store.put("conversation/conv", sorts[number % 50], BODY, 0)

    async def put() -> None:
        for number in range(1000):
            await records.put(CONVERSATIONS[number % 16], sorts[number % 50], BODY, expect=0)

    async def write() -> None:
        for number in range(20):
            await records.write(CONVERSATIONS[number % 16], batch)

    async def query() -> None:
        for _ in range(20):
            await records.query(place, limit=50)

    figures = {
        "AES-256-GCM encrypt": await _median_us(aes_seal, 1000),
        "seal, one put at a time": await _median_us(put, 1000) - await _median_us(nothing, 1000),
        "seal, batches of 50": await _median_us(write, 1000),
        "AES-256-GCM decrypt": await _median_us(aes_open, 1000),
        "open, query of 50": await _median_us(query, 1000),
    }
    for name, figure in figures.items():
        print(f"{name:28}{figure:8.2f} µs")
    await keyring.close()


if __name__ == "__main__":
    asyncio.run(main())
