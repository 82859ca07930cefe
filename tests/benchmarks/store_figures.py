"""How the store stands beside a raw SQLite of the same rows: ``python tests/benchmarks/store_figures.py``.

The yardstick is SQLite through apsw, write-ahead log, ``synchronous=FULL``, no encryption, a rowid table and an index
on (conversation, sequence), 1 KB bodies. Both run in turn inside one process and one run; only ratios mean anything.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import uvloop

from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.store import Store

BODY = b"m" * 1024
CONVERSATIONS = 16
ROOMS = 64
THREADS = 8
_SCHEMA = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, conversation TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX messages_at ON messages (conversation, seq);
"""
_APPEND = "INSERT INTO messages (conversation, seq, body) VALUES (?, ?, ?)"
_LAST = "SELECT seq, body FROM messages WHERE conversation = ? ORDER BY seq DESC LIMIT 50"


def raw_file(path: Path) -> apsw.Connection:
    """An open file of the yardstick's."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL")
    if not connection.table_exists("main", "messages"):
        connection.execute(_SCHEMA)
    return connection


def raw_append(connection: apsw.Connection, conversation: str, seq: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_APPEND, (conversation, seq, BODY))
    connection.execute("COMMIT")


def _key(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def raw_serial_s(folder: Path, count: int) -> float:
    """Median seconds of one raw append."""
    connection = raw_file(folder / "serial.db")
    took = []
    for seq in range(count):
        started = time.perf_counter()
        raw_append(connection, "conv_0", seq)
        took.append(time.perf_counter() - started)
    connection.close()
    return statistics.median(took)


async def store_serial_s(store: Store, count: int) -> float:
    """Median seconds of one append through the store."""
    took = []
    for seq in range(count):
        started = time.perf_counter()
        await store.put("conv_0", _key(seq), BODY)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def raw_together_per_s(folder: Path, each: int) -> float:
    """Appends per second to 16 conversations of one raw file, one after the other."""
    connection = raw_file(folder / "together.db")
    started = time.perf_counter()
    for seq in range(each):
        for conversation in range(CONVERSATIONS):
            raw_append(connection, f"conv_{conversation}", seq)
    took = time.perf_counter() - started
    connection.close()
    return each * CONVERSATIONS / took


async def _append_many(store: Store, conversation: str, each: int, *, first: int = 0) -> None:
    for seq in range(first, first + each):
        await store.put(conversation, _key(seq), BODY)


async def store_together_per_s(store: Store, each: int) -> float:
    """Appends per second to 16 conversations of one room at once."""
    started = time.perf_counter()
    await asyncio.gather(*(_append_many(store, f"conv_t{number}", each) for number in range(CONVERSATIONS)))
    return each * CONVERSATIONS / (time.perf_counter() - started)


def raw_rooms_per_s(folder: Path, each: int) -> float:
    """Appends per second to 64 raw files by 8 threads."""
    files = [raw_file(folder / f"room-{number}.db") for number in range(ROOMS)]
    for connection in files:
        raw_append(connection, "warm", 0)

    def work(mine: list[apsw.Connection]) -> None:
        for seq in range(each):
            for connection in mine:
                raw_append(connection, "conv_0", seq)

    with ThreadPoolExecutor(THREADS) as pool:
        started = time.perf_counter()
        for job in [pool.submit(work, files[number::THREADS]) for number in range(THREADS)]:
            job.result()
        took = time.perf_counter() - started
    for connection in files:
        connection.close()
    return each * ROOMS / took


async def store_rooms_per_s(stores: list[Store], each: int) -> float:
    """Appends per second to 64 rooms at once, one conversation each."""
    await asyncio.gather(*(_append_many(store, "conv_0", 1) for store in stores))
    started = time.perf_counter()
    await asyncio.gather(*(_append_many(store, "conv_0", each, first=1) for store in stores))
    return each * len(stores) / (time.perf_counter() - started)


def raw_read_s(folder: Path, count: int) -> float:
    """Median seconds to read the last 50 of a raw conversation."""
    connection = raw_file(folder / "together.db")
    took = []
    for number in range(count):
        started = time.perf_counter()
        connection.execute(_LAST, (f"conv_{number % CONVERSATIONS}",)).fetchall()
        took.append(time.perf_counter() - started)
    connection.close()
    return statistics.median(took)


async def store_read_s(store: Store, count: int) -> float:
    """Median seconds to read the last 50 of a conversation through the store."""
    took = []
    for number in range(count):
        started = time.perf_counter()
        await store.query(f"conv_t{number % CONVERSATIONS}", limit=50, descending=True)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


async def figures(folder: Path, *, scale: int = 1) -> dict[str, tuple[float, float]]:
    """Every figure as (raw, store); seconds where the name ends in ``_s``, else appends per second."""
    house = SqliteHouse(folder / "house")
    rooms = [f"room-{number}" for number in range(ROOMS)]
    for room in [*rooms, "one"]:
        await house.create(room)
    one = Store(await house.open("one"))
    stores = [Store(await house.open(room)) for room in rooms]
    found = {
        "serial append_s": (raw_serial_s(folder, 400 * scale), await store_serial_s(one, 400 * scale)),
        "16 conversations": (raw_together_per_s(folder, 60 * scale), await store_together_per_s(one, 60 * scale)),
        "64 rooms": (raw_rooms_per_s(folder, 80 * scale), await store_rooms_per_s(stores, 80 * scale)),
        "last 50_s": (raw_read_s(folder, 400 * scale), await store_read_s(one, 400 * scale)),
    }
    await house.close()
    return found


async def latencies(folder: Path, *, rooms: int = 1000, count: int = 2000) -> dict[str, float]:
    """Seconds (median) of creating a room, of a cold and of a hot read of 50, over many rooms with few open."""
    house = SqliteHouse(folder / "many", max_open=64)
    names = [f"t-{number:05}" for number in range(rooms)]
    created = await _medians(names, house.create)
    for name in names:
        await _append_many(Store(await house.open(name)), "conv_0", 3)

    async def read(name: str) -> Any:
        return await (Store(await house.open(name))).query("conv_0", limit=50, descending=True)

    cold = await _medians([names[number * 7919 % rooms] for number in range(count)], read)
    hot = await _medians([names[0]] * count, read)
    size = statistics.median([await house.size_bytes(name) for name in names[:50]])
    await house.close()
    return {"create_s": created, "cold read_s": cold, "hot read_s": hot, "size after 3, bytes": size}


async def _medians(names: list[str], work: Callable[[str], Awaitable[Any]]) -> float:
    took = []
    for name in names:
        started = time.perf_counter()
        await work(name)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nagaya-bench-") as folder:
        for name, (raw, ours) in uvloop.run(figures(Path(folder))).items():
            unit = ("µs", 1e6) if name.endswith("_s") else ("/s", 1)
            print(
                f"{name:20} raw {raw * unit[1]:9.0f} {unit[0]}  store {ours * unit[1]:9.0f} {unit[0]}  ratio {ours / raw:5.2f}"
            )
        for name, value in uvloop.run(latencies(Path(folder))).items():
            print(f"{name:20} {value * 1e6:9.0f} µs" if name.endswith("_s") else f"{name:20} {value:9.0f}")


if __name__ == "__main__":
    main()
