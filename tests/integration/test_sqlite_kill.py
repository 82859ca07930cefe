"""What a process acknowledged outlives its death."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from integration import sqlite_writer
from integration.sqlite_writer import CONVERSATIONS, ROOMS, item_body, item_key
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.store import Store

Acknowledged = dict[tuple[str, str], tuple[int, int]]


def write_and_kill(folder: Path, after_lines: int, linger_s: float, mode: str) -> Acknowledged:
    """Let a child append, kill -9 it somewhere in the middle; what it had acknowledged by then."""
    child = subprocess.Popen(
        [sys.executable, sqlite_writer.__file__, str(folder), mode], stdout=subprocess.PIPE, bufsize=0
    )
    assert child.stdout is not None
    said = b""
    while said.count(b"\n") < after_lines:
        piece = child.stdout.read(65536)
        assert piece, "the child ended by itself"
        said += piece
    time.sleep(linger_s)
    child.kill()
    said += child.stdout.read()
    child.stdout.close()
    assert child.wait() == -9
    acknowledged: Acknowledged = {}
    for line in said.decode().split("\n")[:-1]:
        room, conversation, number, revision = line.split(" ")
        acknowledged[room, conversation] = (int(number), int(revision))
    return acknowledged


async def check(folder: Path, acknowledged: Acknowledged) -> None:
    """Every acknowledged record is there, in order, whole; at most the one batch under way came on top."""
    house = SqliteHouse(folder)
    for room in ROOMS:
        store = Store(await house.open(room))
        for conversation in CONVERSATIONS:
            number, revision = acknowledged.get((room, conversation), (0, 0))
            head = await store.get(conversation, b"head")
            found = 0 if head is None else int(head.body)
            assert found in (number, number + 2)
            assert (0 if head is None else head.revision) in (revision, revision + 1)
            after, bodies = b"i", []
            while rows := await store.query(conversation, after=after, limit=500):
                bodies += rows
                after = rows[-1][0]
            expected = [(item_key(n), 1, item_body(room, conversation, n)) for n in range(found)]
            assert bodies == expected
            if revision:
                assert await store.get(f"log/{conversation}", item_key(revision)) is not None
    await house.close()


def rounds(folder: Path, count: int, mode: str = "append") -> None:
    dice = random.Random(11)

    async def make() -> None:
        house = SqliteHouse(folder)
        for room in ROOMS:
            await house.create(room)
        await house.close()

    asyncio.run(make())
    known: Acknowledged = {}
    for _ in range(count):
        known |= write_and_kill(folder, dice.randrange(1, 400), dice.random() * 0.05, mode)
        asyncio.run(check(folder, known))
    for room in ROOMS:
        connection = apsw.Connection(str(folder / room / "store.db"))
        assert connection.pragma("integrity_check") == "ok"
        connection.close()


@pytest.mark.parametrize("mode", ["append", "reopen"])
def test_no_acknowledged_record_is_lost_when_the_process_is_killed(tmp_path: Path, mode: str) -> None:
    rounds(tmp_path, 5, mode)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["append", "reopen"])
def test_no_acknowledged_record_is_lost_in_a_hundred_kills(tmp_path: Path, mode: str) -> None:
    rounds(tmp_path, 100, mode)
