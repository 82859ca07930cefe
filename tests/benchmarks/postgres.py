"""Sealed appends and reads on PostgreSQL beside hand-written asyncpg and AES-GCM of the same rows.

The yardstick has one key and one statement and holds its connections for good; ours derives a key for each
conversation, commits to it, and leases connections that any tenant may get next. Both are durable (``fsync`` on,
``synchronous_commit`` on), on one server in one run, in turns. Run: ``python -m benchmarks.postgres [--quick]``.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.figures import Row, at_least, at_most, main, ratio, ratios, row, us
from nagaya.kernel.clock import SystemClock
from nagaya.keys.keyring import Keyring
from nagaya.records.opened import OpenedRecords
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.stores.postgres import PostgresHouse, open_house
from nagaya.stores.store import Store
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.postgres import APP, PASSWORD, Postgres, running
from support.postgres_house import set_up_shared, surroundings

BODY = b'{"type":"message","role":"user","status":"completed","content":"' + b"m" * 1024 + b'"}'
CONVERSATIONS = 16
READ_CONVERSATIONS = 40
_SCHEMA = """
CREATE SCHEMA raw;
CREATE TABLE raw.messages (conversation text NOT NULL, seq bigint NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (conversation, seq));
"""
_APPEND = "INSERT INTO raw.messages (conversation, seq, body) VALUES ($1, $2, $3)"
_LAST = "SELECT seq, body FROM raw.messages WHERE conversation = $1 ORDER BY seq DESC LIMIT 50"


class ByHand:
    """What one would write without us: one key, a nonce and the place as associated data."""

    def __init__(self, connections: list[asyncpg.Connection]) -> None:
        self.connections = connections
        self._cipher = AESGCM(os.urandom(32))

    async def append(self, conversation: str, seq: int, lane: int = 0) -> None:
        nonce = os.urandom(12)
        sealed = nonce + self._cipher.encrypt(nonce, BODY, f"{conversation}/{seq}".encode())
        await self.connections[lane].execute(_APPEND, conversation, seq, sealed)

    async def last(self, conversation: str) -> list[bytes]:
        found = await self.connections[0].fetch(_LAST, conversation)
        return [self._cipher.decrypt(body[:12], body[12:], f"{conversation}/{seq}".encode()) for seq, body in found]


class Ours:
    """A room's sealed records."""

    def __init__(self, records: SealedStore, opened: OpenedRecords, room: str) -> None:
        self.records = records
        self.opened = opened
        self.room = room

    async def append(self, conversation: str, seq: int) -> None:
        await self.records.put(Partition("items", conversation), seq.to_bytes(8, "big"), BODY)

    async def last(self, conversation: str) -> list[bytes]:
        rows = await self.records.query(Partition("items", conversation), limit=50, descending=True)
        return [record.body for record in rows]


async def _median_s(work: Callable[[int], Awaitable[Any]], count: int) -> float:
    took = []
    for number in range(count):
        started = time.perf_counter()
        await work(number)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


async def _next(append: Callable[[str, int], Awaitable[None]], chat: str, first: int, number: int) -> None:
    await append(chat, first + number)


async def serial(name: str, hand: ByHand, ours: Ours, rounds: int, count: int) -> Row:
    """Appends one at a time to one conversation."""
    mine, theirs = [], []
    for number in range(rounds + 1):
        at = number * count
        yours_s = await _median_s(partial(_next, hand.append, f"serial-{name}", at), count)
        mine_s = await _median_s(partial(_next, ours.append, f"serial-{name}", at), count)
        if number:  # The first round is for both to warm up.
            theirs.append(yours_s)
            mine.append(mine_s)
    return row(
        f"PostgreSQL ({name}): durable sealed append, one at a time",
        "hand-written asyncpg + AES-GCM",
        at_most(ratio(mine, theirs), 1.3),
        f"{us(statistics.median(mine))}; by hand {us(statistics.median(theirs))}",
        ratios(mine, theirs),
    )


async def together(name: str, hand: ByHand, ours: Ours, rounds: int, each: int) -> Row:
    """Sixteen conversations at once, a connection for each on both sides."""
    mine, theirs = [], []
    for number in range(rounds + 1):

        async def by_hand(lane: int, first: int = number * each) -> None:
            for seq in range(first, first + each):
                await hand.append(f"lane-{name}-{lane}", seq, lane)

        async def by_us(lane: int, first: int = number * each) -> None:
            for seq in range(first, first + each):
                await ours.append(f"lane-{name}-{lane}", seq)

        per_s = []
        for work in (by_hand, by_us):
            started = time.perf_counter()
            await asyncio.gather(*(work(lane) for lane in range(CONVERSATIONS)))
            per_s.append(each * CONVERSATIONS / (time.perf_counter() - started))
        if number:
            theirs.append(per_s[0])
            mine.append(per_s[1])
    return row(
        f"PostgreSQL ({name}): 16 conversations of one tenant at once",
        "hand-written asyncpg + AES-GCM on 16 connections",
        at_least(ratio(mine, theirs), 0.77),
        f"{statistics.median(mine):,.0f}/s; by hand {statistics.median(theirs):,.0f}/s",
        ratios(mine, theirs),
    )


async def last_fifty(name: str, hand: ByHand, ours: Ours, rounds: int, count: int) -> list[Row]:
    """The last fifty of many conversations: as the library reads them, and with every record opened anew."""
    chats = [f"read-{name}-{number}" for number in range(READ_CONVERSATIONS)]
    for seq in range(60):
        await asyncio.gather(*(ours.append(chat, seq) for chat in chats))
        for chat in chats:
            await hand.append(chat, seq)
    assert await ours.last(chats[0]) == await hand.last(chats[0]) == [BODY] * 50
    pick = random.Random(1)
    mine: list[float] = []
    anew: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + 1):
        order = pick.choices(chats, k=count)

        async def by_hand(at: int, order: list[str] = order) -> None:
            await hand.last(order[at])

        async def by_us(at: int, order: list[str] = order) -> None:
            await ours.last(order[at])

        yours_s, mine_s = await _median_s(by_hand, count), await _median_s(by_us, count)
        took = []
        for chat in order:
            ours.opened.drop(ours.room)
            started = time.perf_counter()
            await ours.last(chat)
            took.append(time.perf_counter() - started)
        if number:
            theirs.append(yours_s)
            mine.append(mine_s)
            anew.append(statistics.median(took))
    return [
        row(
            f"PostgreSQL ({name}): last 50, of conversations that are read now and then",
            "hand-written asyncpg + AES-GCM",
            at_most(ratio(mine, theirs), 1.3),
            f"{us(statistics.median(mine))}; by hand {us(statistics.median(theirs))}",
            ratios(mine, theirs),
        ),
        Row(
            f"PostgreSQL ({name}): the same, every record decrypted anew",
            "the same",
            f"{ratio(anew, theirs):.2f}×",
            "–",
            f"{us(statistics.median(anew))}; by hand {us(statistics.median(theirs))}",
        ),
    ]


async def _ours(house: PostgresHouse, room: str) -> Ours:
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, room)
    keyring = Keyring(room, keys, versions, SystemClock(), 3600.0)
    await house.create(room)
    opened = OpenedRecords()
    return Ours(SealedStore(Store(await house.open(room)), Sealer(room, keyring), opened), opened, room)


async def _measure(server: Postgres, quick: bool) -> list[Row]:
    rounds, count, each = (3, 100, 10) if quick else (9, 400, 40)
    database = await server.new_database()
    await set_up_shared(server, database)
    await server.run(
        _SCHEMA, f"GRANT ALL ON SCHEMA raw TO {APP}; GRANT ALL ON raw.messages TO {APP}", database=database
    )
    connect: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": APP,
        "password": PASSWORD,
        "ssl": False,
    }
    hand = ByHand([await asyncpg.connect(database=database, **connect) for _ in range(CONVERSATIONS)])
    found: list[Row] = []
    for isolation in ("schema", "shared"):
        house = await open_house(f"{server.url(database, user=APP)}?isolation={isolation}", surroundings())
        ours = await _ours(house, "acme")
        name = {"schema": "a schema each", "shared": "one table, row-level security"}[isolation]
        found += [
            await serial(name, hand, ours, rounds, count),
            await together(name, hand, ours, rounds, each),
            *await last_fifty(name, hand, ours, rounds, count),
        ]
        await house.close()
    for connection in hand.connections:
        await connection.close()
    return found


async def measure(folder: Path, quick: bool) -> list[Row]:
    # The server is not root's, and so not in a folder that only root may enter.
    home = Path(tempfile.mkdtemp(prefix="nagaya-pg-"))
    started = running(home, durable=True)
    server = await asyncio.to_thread(started.__enter__)
    try:
        return await _measure(server, quick)
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(measure)
