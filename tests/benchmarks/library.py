"""The library beside raw SQLite: durable sealed appends, alone and many at once, and the last fifty.

The yardstick is SQLite through apsw: write-ahead log, ``synchronous=FULL``, the same bytes, no encryption, one commit
per append, on the same disk. Run: ``python -m benchmarks.library [--quick]``.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw

from benchmarks.figures import Row, at_least, at_most, main, ratio, ratios, row, us
from nagaya import Message, Nagaya
from nagaya.context.tenant_context import TenantContext
from nagaya.stores.sqlite_format import CACHE_KIB

TEXT = "m" * 1024
CONVERSATIONS = 16
TENANTS = 64
THREADS = 8
READ_CONVERSATIONS = 200
READ_MESSAGES = 100
_SCHEMA = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, conversation TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX messages_at ON messages (conversation, seq);
"""
_APPEND = "INSERT INTO messages (conversation, seq, body) VALUES (?, ?, ?)"
_LAST = "SELECT seq, body FROM messages WHERE conversation = ? ORDER BY seq DESC LIMIT 50"
_BODY = b'{"type":"message","role":"user","status":"completed","content":"' + TEXT.encode() + b'"}'


class Raw:
    """A yardstick file and how far its conversations have come."""

    def __init__(self, path: Path) -> None:
        self.connection = apsw.Connection(str(path))
        self.connection.pragma("journal_mode", "wal")
        self.connection.pragma("synchronous", "FULL")
        self.connection.pragma("cache_size", -CACHE_KIB)  # as much as our own files have, four times SQLite's default
        self.connection.execute(_SCHEMA)
        self._next: dict[str, int] = {}

    def append(self, conversation: str) -> None:
        seq = self._next.get(conversation, 0)
        self.connection.execute(_APPEND, (conversation, seq, _BODY))  # a statement alone is a transaction
        self._next[conversation] = seq + 1

    def last(self, conversation: str) -> list[tuple[object, ...]]:
        return self.connection.execute(_LAST, (conversation,)).fetchall()


def _median_s(work: Callable[[], object], count: int) -> float:
    took = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


async def serial(raw: Raw, tenant: TenantContext, rounds: int, count: int) -> Row:
    """Appends one at a time."""
    chat = await tenant.conversations.create(title="serial")
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(_median_s(lambda: raw.append("serial"), count))
        took = []
        for _ in range(count):
            message = Message.user(TEXT)
            started = time.perf_counter()
            await tenant.conversations.append(chat.id, message)
            took.append(time.perf_counter() - started)
        ours.append(statistics.median(took))
    return row(
        "library: durable sealed append, one at a time",
        "raw SQLite, WAL, FULL, no encryption, same rows",
        at_most(ratio(ours, theirs), 1.5),
        f"{us(statistics.median(ours))}; raw {us(statistics.median(theirs))}",
        ratios(ours, theirs),
    )


async def _append_many(tenant: TenantContext, conversation: str, count: int) -> None:
    for _ in range(count):
        await tenant.conversations.append(conversation, Message.user(TEXT))


async def together(raw: Raw, tenant: TenantContext, rounds: int, each: int) -> Row:
    """Sixteen conversations of one tenant at once."""
    chats = [(await tenant.conversations.create()).id for _ in range(CONVERSATIONS)]
    ours, theirs = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(each):
            for chat in chats:
                raw.append(chat)
        theirs.append(each * CONVERSATIONS / (time.perf_counter() - started))
        started = time.perf_counter()
        await asyncio.gather(*(_append_many(tenant, chat, each) for chat in chats))
        ours.append(each * CONVERSATIONS / (time.perf_counter() - started))
    return row(
        "library: 16 conversations of one tenant at once",
        "the same, one after the other",
        at_least(ratio(ours, theirs), 1.3),
        f"{statistics.median(ours):,.0f}/s; raw {statistics.median(theirs):,.0f}/s",
        ratios(ours, theirs),
    )


async def tenants(raws: list[Raw], contexts: list[TenantContext], rounds: int, each: int) -> Row:
    """Sixty-four tenants, one conversation each, at once."""
    chats = [(await context.conversations.create()).id for context in contexts]

    def work(mine: list[Raw]) -> None:
        for _ in range(each):
            for raw in mine:
                raw.append("one")

    async def ours_per_s() -> float:
        started = time.perf_counter()
        await asyncio.gather(
            *(_append_many(context, chat, each) for context, chat in zip(contexts, chats, strict=True))
        )
        return each * TENANTS / (time.perf_counter() - started)

    ours, theirs = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(rounds):
            started = time.perf_counter()
            for job in [pool.submit(work, raws[number::THREADS]) for number in range(THREADS)]:
                job.result()
            theirs.append(each * TENANTS / (time.perf_counter() - started))
            ours.append(await ours_per_s())
    return row(
        "library: 64 tenants, one conversation each, at once",
        "raw SQLite, the same 64 files, 8 threads, no encryption",
        at_least(ratio(ours, theirs), 0.8),
        f"{statistics.median(ours):,.0f}/s; raw {statistics.median(theirs):,.0f}/s",
        ratios(ours, theirs),
    )


async def _read_round(raw: Raw, tenant: TenantContext, chats: list[str]) -> tuple[float, float]:
    """Median seconds of ours and of raw SQLite's read of the last fifty, over these conversations."""
    at = iter(chats)
    theirs = _median_s(lambda: raw.last(next(at)), len(chats))
    took = []
    for chat in chats:
        started = time.perf_counter()
        found = await tenant.conversations.items(chat, limit=50)
        took.append(time.perf_counter() - started)
        assert len(found) == 50
    return statistics.median(took), theirs


async def last_fifty(raw: Raw, tenant: TenantContext, rounds: int, count: int) -> list[Row]:
    """The last fifty of a conversation, opened, as message objects: of many conversations, and of one in the cache."""
    chats = [(await tenant.conversations.create()).id for _ in range(READ_CONVERSATIONS)]
    # Written in turns, as conversations are: so the messages of one lie on as many pages.
    for _ in range(READ_MESSAGES // 4):
        for chat in chats:
            await tenant.conversations.append(chat, *(Message.user(TEXT) for _ in range(4)))
            for _ in range(4):
                raw.append(chat)
    pick = random.Random(1)
    spread = [await _read_round(raw, tenant, pick.choices(chats, k=count)) for _ in range(rounds)]
    cached = [await _read_round(raw, tenant, [chats[0]] * count) for _ in range(rounds)]
    ours, theirs = zip(*spread, strict=True)
    hot, raw_hot = zip(*cached, strict=True)
    shown = f"{ratio(hot, raw_hot):.1f}×"
    return [
        row(
            "library: last 50, decrypted, as message objects",
            "raw SQLite read of 50",
            at_most(ratio(ours, theirs), 3.0),
            f"{us(statistics.median(ours))}; raw {us(statistics.median(theirs))} ({READ_CONVERSATIONS} conversations)",
            ratios(ours, theirs),
        ),
        Row(
            "library: the same of one conversation, again and again",
            "raw SQLite with every page in its cache",
            shown,
            "–",
            f"{us(statistics.median(hot))}; raw {us(statistics.median(raw_hot))}",
        ),
    ]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The four library rows."""
    rounds = 5 if quick else 15
    (folder / "raw").mkdir()
    raw = Raw(folder / "raw" / "one.db")
    raws = [Raw(folder / "raw" / f"room-{number}.db") for number in range(TENANTS)]
    async with Nagaya.open(folder / "data") as nagaya:
        contexts = []
        for number in range(TENANTS):
            await nagaya.tenants.create(f"bench-room-{number:03}", name="Bench")
            entrance = await nagaya.enter(await nagaya.tenants.mint(f"bench-room-{number:03}", "mio"))
            contexts.append(await nagaya.inside(entrance))
        one = contexts[0]
        rows = [
            await serial(raw, one, rounds, 200 if quick else 400),
            await together(raw, one, rounds, 40 if quick else 80),
            await tenants(raws, contexts, rounds, 20 if quick else 40),
            *await last_fifty(raw, one, rounds, 200 if quick else 400),
        ]
        for context in contexts:
            await context.close()
    return rows


if __name__ == "__main__":
    main(measure)
