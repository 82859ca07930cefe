"""A writer that has a room to itself is not made to wait for company; as soon as there is any, they go together."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nagaya.errors import ConditionFailed, SessionClosed
from nagaya.stores import sqlite
from nagaya.stores.driver import Later, Row
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.sqlite_commit import Write
from nagaya.stores.sqlite_files import LOOK_S
from nagaya.stores.store import Store

_commit_group = sqlite.commit_group
_put_alone = sqlite.put_alone


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    # However slow the machine of this test is, its disk counts as quick.
    monkeypatch.setattr(sqlite.SqliteHouse, "_learn_pace", lambda *_: None)
    house = SqliteHouse(tmp_path / "rooms", busy_s=20.0)
    await house.create("acme")
    store = Store(await house.open("acme"))
    # The first write after a file was opened begins its log, and is made by a thread.
    await store.put("first", b"0", b"x")
    yield store
    await house.close()


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes each transaction had."""
    seen: list[int] = []

    def counted(connection: object, known: object, writes: list[Write]) -> object:
        seen.append(len(writes))
        return _commit_group(connection, known, writes)  # type: ignore[arg-type] # handed on as it came

    def counted_alone(*write: Any) -> bool:
        seen.append(1)
        return _put_alone(*write)

    monkeypatch.setattr(sqlite, "commit_group", counted)
    monkeypatch.setattr(sqlite, "put_alone", counted_alone)
    return seen


def without_waiting(store: Store, sort: bytes, body: bytes = b"x") -> bool:
    """Whether a put is through at its first step."""
    work = store.put("p", sort, body)
    try:
        work.send(None)
    except StopIteration:
        return True
    work.close()
    return False


async def test_the_write_that_begins_a_files_log_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    house = SqliteHouse(tmp_path / "rooms")
    await house.create("acme")
    store = Store(await house.open("acme"))
    assert not without_waiting(store, b"given up")
    await store.put("p", b"1", b"x")
    assert await store.get("p", b"1") == Row(b"1", 1, b"x")
    await house.close()


async def test_a_lone_write_needs_no_turn_of_the_loop(store: Store) -> None:
    assert without_waiting(store, b"1")
    assert await store.get("p", b"1") == Row(b"1", 1, b"x")


async def test_a_lone_write_is_refused_as_any_other(store: Store) -> None:
    await store.put("p", b"1", b"x")
    await asyncio.sleep(0)
    work = store.put("p", b"1", b"y")
    with pytest.raises(ConditionFailed):
        work.send(None)


@pytest.fixture
def even_pace(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Every look at the time takes 20 µs, and nothing else takes any but what the test says, however slow the disk."""
    now_s = time.perf_counter()

    def passes(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def looked_at() -> float:
        passes(20e-6)
        return now_s

    monkeypatch.setattr(sqlite, "time", SimpleNamespace(perf_counter=looked_at))
    return passes


@pytest.mark.usefixtures("even_pace")
async def test_two_tasks_that_write_in_one_turn_share_their_commits(store: Store, groups: list[int]) -> None:
    async def write(name: str) -> None:
        for number in range(40):
            await store.put(name, b"%03d" % number, b"x")

    await asyncio.gather(*(write(f"p{number}") for number in range(8)))
    assert sum(groups) == 8 * 40
    assert max(groups) == 8
    assert len(groups) < 8 * 40 / 2


async def test_after_the_company_has_left_a_writer_is_alone_again(
    store: Store, even_pace: Callable[[float], None]
) -> None:
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(3)))
    assert not without_waiting(store, b"with company")
    await asyncio.sleep(0.01)
    even_pace(2 * sqlite._CROWD_S)
    assert without_waiting(store, b"alone")


async def test_a_task_that_writes_on_and_on_lets_the_others_run(store: Store) -> None:
    turns = 0

    async def look_on() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(look_on())
    writes = 400
    for number in range(writes):
        await store.put("p", b"%03d" % number, b"x")
    watching.cancel()
    # A commit takes well over 10 µs anywhere, and no more than a millisecond's worth goes by without a turn.
    assert turns > writes / 100


async def test_a_store_that_is_closed_while_a_writer_lets_the_others_run_is_not_written_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_now, asked = store._put_now, 0
    assert put_now is not None

    def later_at_first(*write: Any) -> Any:
        nonlocal asked
        asked += 1
        return Later.LATER if asked == 1 else put_now(*write)

    await store.put("p", b"before", b"x")
    monkeypatch.setattr(store, "_put_now", later_at_first)
    writing = asyncio.create_task(store.put("p", b"after", b"x"))
    await asyncio.sleep(0)
    monkeypatch.setattr(store, "_closed", True)
    with pytest.raises(SessionClosed):
        await writing
    assert asked == 1
    monkeypatch.undo()
    assert await store.get("p", b"after") is None


async def test_a_file_that_another_process_writes_to_is_waited_for(store: Store, tmp_path: Path) -> None:
    await store.put("p", b"1", b"x")
    path = tmp_path / "rooms" / "acme" / "store.db"
    holder = f"""
import apsw, sys
connection = apsw.Connection({str(path)!r})
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdout.readline()
    writing = asyncio.create_task(store.put("p", b"2", b"x"))
    await asyncio.sleep(0.05)
    assert not writing.done()
    process.stdin.write(b"\n")
    assert await writing == 1
    await process.wait()


async def test_a_file_that_lies_there_anew_is_written_to_and_the_one_before_is_not(
    store: Store, tmp_path: Path, groups: list[int]
) -> None:
    await store.put("p", b"old", b"x")
    elsewhere = SqliteHouse(tmp_path / "rooms")
    await elsewhere.destroy("acme")
    await elsewhere.create("acme")
    moment = store.moment()
    await asyncio.sleep(LOOK_S)
    assert await store.put("p", b"new", b"x") == 1
    assert [row[0] for row in await store.query("p")] == [b"new"]
    if moment is not None:
        with pytest.raises(ConditionFailed):
            await store.put("p", b"since", b"x", since=moment)
    await elsewhere.close()


async def test_a_large_write_does_not_hold_up_the_loop(store: Store) -> None:
    assert without_waiting(store, b"small")
    await asyncio.sleep(0)
    assert not without_waiting(store, b"large", b"x" * 256 * 1024)
