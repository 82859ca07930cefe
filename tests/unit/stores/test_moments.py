"""Writes that hold only while no other process has written to the room."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from nagaya.errors import ConditionFailed
from nagaya.stores import sqlite
from nagaya.stores.memory import MemoryStore
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.sqlite_files import OpenFile
from nagaya.stores.store import Store


@pytest.fixture
async def houses(tmp_path: Path) -> AsyncIterator[tuple[SqliteHouse, SqliteHouse]]:
    """Two processes' houses on one folder, as far as SQLite can tell."""
    ours, theirs = SqliteHouse(tmp_path), SqliteHouse(tmp_path)
    await ours.create("acme")
    yield ours, theirs
    await ours.close()
    await theirs.close()


async def at_rest(house: SqliteHouse) -> OpenFile:
    """Acme's open file, once no thread uses it."""
    file = house.open_file("acme")
    assert file is not None
    while file.busy:
        await asyncio.sleep(0)
    return file


async def moment_of(house: SqliteHouse, store: Store) -> object:
    """A moment of acme's file: where a thread still tends the file, or commits for others, there is none."""
    await at_rest(house)
    moment = store.moment()
    assert moment is not None
    return moment


async def test_our_own_writes_do_not_end_a_moment(houses: tuple[SqliteHouse, SqliteHouse]) -> None:
    store = Store(await houses[0].open("acme"))
    await store.put("p", b"0", b"x")
    moment = await moment_of(houses[0], store)
    await asyncio.gather(*(store.put("p", b"a%d" % number, b"x", since=moment) for number in range(5)))
    await store.put("p", b"b", b"x", since=moment)
    await store.delete("p", b"b", 1)
    assert await store.put("p", b"b", b"x", since=moment) == 1


async def test_a_write_of_another_process_ends_a_moment(houses: tuple[SqliteHouse, SqliteHouse]) -> None:
    ours, theirs = Store(await houses[0].open("acme")), Store(await houses[1].open("acme"))
    await ours.put("p", b"0", b"x")
    moment = await moment_of(houses[0], ours)
    await theirs.put("p", b"1", b"x")
    with pytest.raises(ConditionFailed):
        await ours.put("p", b"2", b"x", since=moment)
    assert await ours.get("p", b"2") is None
    assert await ours.put("p", b"2", b"x", since=await moment_of(houses[0], ours)) == 1


async def test_an_ended_moment_spoils_nobody_elses_write_of_the_same_group(
    houses: tuple[SqliteHouse, SqliteHouse],
) -> None:
    ours, theirs = Store(await houses[0].open("acme")), Store(await houses[1].open("acme"))
    await ours.put("p", b"0", b"x")
    moment = await moment_of(houses[0], ours)
    await theirs.put("p", b"1", b"x")
    outcomes = await asyncio.gather(
        ours.put("p", b"2", b"x", since=moment),
        ours.put("p", b"3", b"x"),
        ours.put("p", b"4", b"x", since=moment),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [ConditionFailed, int, ConditionFailed]


async def test_a_moment_of_a_file_that_was_opened_anew_has_ended(houses: tuple[SqliteHouse, SqliteHouse]) -> None:
    store = Store(await houses[0].open("acme"))
    await store.put("p", b"0", b"x")
    moment = await moment_of(houses[0], store)
    await houses[0].quiet("acme")
    with pytest.raises(ConditionFailed):
        await store.put("p", b"1", b"x", since=moment)


async def test_a_file_that_nobody_has_written_to_since_it_was_opened_has_no_moment(
    houses: tuple[SqliteHouse, SqliteHouse],
) -> None:
    store = Store(await houses[0].open("acme"))
    assert await store.get("p", b"0") is None
    assert store.moment() is None
    await store.put("p", b"0", b"x")
    await moment_of(houses[0], store)


async def test_a_file_that_is_not_open_has_no_moment(houses: tuple[SqliteHouse, SqliteHouse]) -> None:
    store = Store(await houses[0].open("acme"))
    await houses[0].quiet("acme")
    assert store.moment() is None


async def test_a_store_that_cannot_tell_has_no_moment() -> None:
    assert Store(MemoryStore()).moment() is None


@pytest.mark.parametrize("seed", range(8))
async def test_a_moment_ends_with_a_foreign_write_and_with_nothing_else(
    houses: tuple[SqliteHouse, SqliteHouse], seed: int
) -> None:
    chance = random.Random(seed)
    ours, theirs = Store(await houses[0].open("acme")), Store(await houses[1].open("acme"))
    await ours.put("p", b"first", b"x")
    moment, ended = await moment_of(houses[0], ours), False
    for number in range(200):
        key = b"%04d" % number
        match chance.choice(["since", "since", "since", "query", "query", "own", "group", "taken", "tend", "foreign"]):
            case "since":
                with pytest.raises(ConditionFailed) if ended else contextlib.nullcontext():
                    await ours.put("p", key, b"x", since=moment)
                assert (await ours.get("p", key) is None) is ended
            case "query":
                (await at_rest(houses[0])).row_s = 0.0  # a page is read here, however slow the last one came
                with pytest.raises(ConditionFailed) if ended else contextlib.nullcontext():
                    found = await ours.query("p", limit=1, descending=True, since=moment)
                    assert found == await ours.query("p", limit=1, descending=True)
            case "own":
                await ours.put("q", key, b"x")
            case "group":
                writes = [ours.put("p", key + b"g%d" % each, b"x", since=moment) for each in range(3)]
                outcomes = await asyncio.gather(*writes, return_exceptions=True)
                assert [isinstance(each, ConditionFailed) for each in outcomes] == [ended] * 3
            case "taken":
                with pytest.raises(ConditionFailed):
                    await ours.put("p", b"first", b"y")
            case "tend":
                (await at_rest(houses[0])).writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            case "foreign":
                await theirs.put("p", key + b"f", b"x")
                ended = True
        if ended and chance.random() < 0.3:
            moment, ended = await moment_of(houses[0], ours), False


async def test_a_page_that_a_thread_would_read_has_no_condition(
    houses: tuple[SqliteHouse, SqliteHouse], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(await houses[0].open("acme"))
    await store.put("p", b"k", b"x")
    moment = await moment_of(houses[0], store)
    monkeypatch.setattr(sqlite, "_PACE_S", 0.0)
    with pytest.raises(ConditionFailed):
        await store.query("p", limit=1, since=moment)
    assert len(await store.query("p", limit=1)) == 1
