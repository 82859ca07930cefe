"""The house of SQLite files: what is open, what is shared, what never waits."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from nagaya.errors import ConditionFailed, NagayaError, StoreDamaged, TenantExists
from nagaya.stores import sqlite, sqlite_files, sqlite_format
from nagaya.stores.driver import Delete, Put, Row
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.sqlite_commit import Request
from nagaya.stores.sqlite_files import OpenFile
from nagaya.stores.store import Store


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SqliteHouse]:
    house = SqliteHouse(tmp_path / "rooms", max_open=4, busy_s=0.2)
    await house.create("acme")
    yield house
    await house.close()


def file_of(house: SqliteHouse, room: str) -> OpenFile:
    file = house.open_file(room)
    assert file is not None
    return file


def descriptors(folder: Path) -> int:
    """How many descriptors of this process point into a folder."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
        except FileNotFoundError:
            continue
    return count


async def test_an_empty_room_is_small_and_for_its_owner_only(house: SqliteHouse) -> None:
    path = house.folder / "acme" / "store.db"
    assert await house.size_bytes("acme") == path.stat().st_size <= 40 * 1024
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["store.db"]
    assert await house.size_bytes("nobody") == 0
    assert await house.exists("acme")
    assert not await house.exists("nobody")


async def test_writes_are_durable_by_the_settings_of_the_file(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    writer = file_of(house, "acme").writer
    assert writer.pragma("journal_mode") == "delete"
    await store.put("p", b"k", b"x")
    assert writer.pragma("journal_mode") == "wal"
    assert writer.pragma("synchronous") == 2
    assert writer.pragma("application_id") == sqlite_format.APPLICATION_ID


async def test_writes_of_one_turn_share_one_commit(house: SqliteHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_CROWD_S", 3600.0)  # a slow disk takes longer for the first than it lasts
    store = Store(await house.open("acme"))
    await asyncio.gather(*(store.put(f"p{number}", b"first", b"x") for number in range(16)))
    commits: list[int] = []
    file_of(house, "acme").writer.set_commit_hook(lambda: commits.append(1) or False)  # type: ignore[func-returns-value]  # append gives None by design
    await asyncio.gather(*(store.put(f"p{number}", b"k", b"x") for number in range(16)))
    assert len(commits) == 1


async def test_many_rooms_at_random_hold_few_files_open(tmp_path: Path) -> None:
    house = SqliteHouse(tmp_path / "rooms", max_open=8)
    rooms = [f"room-{number}" for number in range(60)]
    for room in rooms:
        await house.create(room)
    stores = {room: Store(await house.open(room)) for room in rooms}
    dice = random.Random(2)
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        for turn in range(8):
            room = dice.choice(rooms)
            key = b"%d-%d" % (number, turn)
            await stores[room].put("p", key, room.encode())
            assert await stores[room].get("p", key) == Row(key, 1, room.encode())
            most = max(most, descriptors(house.folder))

    await asyncio.gather(*(work(number) for number in range(40)))
    assert most <= (8 + 8) * 5
    for room, store in stores.items():
        assert {row[2] for row in await store.query("p")} <= {room.encode()}
    await house.close()
    assert descriptors(tmp_path) == 0


async def test_a_file_in_use_is_not_closed_for_another_room(house: SqliteHouse) -> None:
    one = SqliteHouse(house.folder, max_open=1)
    await one.create("beta")
    acme, beta = Store(await one.open("acme")), Store(await one.open("beta"))
    results = await asyncio.gather(
        *(store.put("p", b"%d" % number, b"x") for number in range(30) for store in (acme, beta))
    )
    assert results == [1] * 60
    await one.close()


async def test_a_room_closed_in_between_opens_again(house: SqliteHouse) -> None:
    driver = await house.open("acme")
    await driver.write("p", (Put(b"k", b"x"),))
    await driver.close()
    await house.quiet("acme")
    assert os.listdir(house.folder / "acme") == ["store.db"]
    assert await driver.get("p", b"k") == Row(b"k", 1, b"x")


async def test_somebody_who_gives_up_while_a_file_opens_leaves_it_closable(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, may_go_on = sqlite_format.connect, threading.Event()

    def waits(folder: Path, room: str, *, busy_ms: int) -> apsw.Connection:
        assert may_go_on.wait(30)
        return connect(folder, room, busy_ms=busy_ms)

    monkeypatch.setattr(sqlite_files.sqlite_format, "connect", waits)
    monkeypatch.setattr(sqlite_files.OpenFiles, "_open_here", lambda *_: None)
    waiting = [asyncio.create_task(house.open("acme")) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert not file_of(house, "acme").in_use


async def test_an_open_that_fails_is_tried_again_by_the_next(house: SqliteHouse) -> None:
    path = house.folder / "acme" / "store.db"
    path.rename(path.with_suffix(".away"))
    results = await asyncio.gather(*(house.open("acme") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, StoreDamaged) for result in results)
    path.with_suffix(".away").rename(path)
    await house.open("acme")


async def test_a_closed_house_opens_nothing(house: SqliteHouse) -> None:
    store = await house.open("acme")
    await house.close()
    await house.close()
    for call in (store.get("p", b"k"), store.write("p", (Put(b"k", b""),)), house.open("acme"), house.create("beta")):
        with pytest.raises(RuntimeError, match="closed"):
            await call


async def test_closing_waits_for_the_writes_under_way(house: SqliteHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nagaya.stores.sqlite._PACE_S", 0.0)
    store = Store(await house.open("acme"))
    writes = [asyncio.create_task(store.put("p", b"%d" % number, b"x")) for number in range(20)]
    await asyncio.sleep(0)
    await house.close()
    assert await asyncio.gather(*writes) == [1] * 20


# --- beside a busy writer


async def test_reads_go_on_beside_a_commit_in_a_thread(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    file_of(house, "acme").busy = True
    for _ in range(3):
        assert await store.get("p", b"k") == Row(b"k", 1, b"x")
    reader = file_of(house, "acme").reader
    assert reader is not None
    with file_of(house, "acme").reader_lock:
        read = asyncio.create_task(store.get("p", b"k"))
        await asyncio.sleep(0.01)
        assert not read.done()
    assert await read == Row(b"k", 1, b"x")
    file_of(house, "acme").busy = False


async def test_a_reader_who_gives_up_keeps_the_file_until_its_thread_is_done(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    file = file_of(house, "acme")
    file.row_s = 1.0
    with file.reader_lock:
        read = asyncio.create_task(store.get("p", b"k"))
        while not any(job.running() for job in file.readers):
            await asyncio.sleep(0.001)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        assert file.in_use
    await house.quiet("acme")
    assert not file.in_use


async def test_the_log_is_folded_into_the_file_without_being_asked(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    for number in range(60):
        await store.put("p", b"%06d" % number, b"x" * 200_000)
    assert (house.folder / "acme" / "store.db-wal").stat().st_size < 6_000_000
    assert len(await store.query("p", limit=100)) == 60


async def test_a_log_is_lengthened_ahead_of_its_writer_and_holds_no_more_for_that(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    for number in range(100):
        await store.put("p", b"%06d" % number, b"x" * 1000)
    while file_of(house, "acme").busy:
        await asyncio.sleep(0.001)
    place = house.folder / "acme"
    written = file_of(house, "acme").pages_written * sqlite_format.PAGE_BYTES
    assert (place / "store.db-wal").stat().st_size > 1.5 * written
    # What a crash would leave: whoever opens it reads all that was written, and goes on behind it.
    (house.folder / "left").mkdir()
    for name in ("store.db", "store.db-wal"):
        shutil.copy(place / name, house.folder / "left" / name)
    left = Store(await house.open("left"))
    assert len(await left.query("p", limit=200)) == 100
    await left.put("p", b"more", b"y")
    assert len(await left.query("p", limit=200)) == 101
    assert await store.get("p", b"more") is None


async def test_a_log_that_cannot_be_lengthened_is_written_as_it_is(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def full(_connection: object, path: str, _pages: int) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(sqlite_format, "lengthen_log", full)
    store = Store(await house.open("acme"))
    for number in range(100):
        await store.put("p", b"%06d" % number, b"x" * 1000)
    assert len(await store.query("p", limit=200)) == 100
    assert 1 <= len(tried) <= len(sqlite_format.LOG_PAGES)


def test_where_there_is_no_room_a_log_keeps_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (a)")
    log = tmp_path / "store.db-wal"
    before = log.stat().st_size

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, "fsync", full)
        sqlite_format.lengthen_log(connection, str(tmp_path / "store.db"), 100)
    assert log.stat().st_size == before
    connection.execute("INSERT INTO t VALUES (1)")
    sqlite_format.lengthen_log(connection, str(tmp_path / "store.db"), 100)
    assert log.stat().st_size == 100 * (4096 + 24)
    assert not any(log.read_bytes()[before + 4096 + 24 :])
    connection.execute("INSERT INTO t VALUES (2)")
    other = apsw.Connection(str(tmp_path / "store.db"))
    assert other.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]
    other.close()
    connection.close()


async def test_a_log_that_a_reader_holds_is_folded_later(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    other = apsw.Connection(str(house.folder / "acme" / "store.db"))
    other.execute("BEGIN; SELECT count(*) FROM records").fetchall()
    for number in range(30):
        await store.put("p", b"%06d" % number, b"x" * 200_000)
    log = house.folder / "acme" / "store.db-wal"
    assert log.stat().st_size > 6_000_000
    other.execute("COMMIT")
    other.close()
    for number in range(200):
        await store.put("q", b"%06d" % number, b"x" * 100_000)
    # Had it not been folded, it would have twenty million bytes more.
    assert log.stat().st_size < 16_000_000


async def test_a_room_may_be_destroyed_while_it_opens(house: SqliteHouse) -> None:
    opening = asyncio.create_task(house.open("acme"))
    await asyncio.sleep(0)
    await house.destroy("acme")
    results = await asyncio.gather(opening, return_exceptions=True)
    assert not isinstance(results[0], apsw.Error)
    with pytest.raises(StoreDamaged):
        await house.open("acme")


async def test_more_rooms_than_may_be_open_wait_their_turn_even_where_one_fails(tmp_path: Path) -> None:
    house = SqliteHouse(tmp_path / "rooms", max_open=1)
    for room in ("one", "two"):
        await house.create(room)
    results = await asyncio.gather(
        *(house.open(room) for room in ("one", "missing", "two", "missing", "one")), return_exceptions=True
    )
    assert [isinstance(result, StoreDamaged) for result in results] == [False, True, False, True, False]
    await house.close()


async def test_a_commit_that_fails_half_way_is_undone(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"taken", b"x")
    hook = file_of(house, "acme").writer.set_commit_hook
    hook(lambda: True)  # SQLite turns this commit into a rollback and an error
    results = await asyncio.gather(
        store.put("p", b"k", b"x"), store.put("p", b"taken", b"x"), store.put("p", b"l", b"x"), return_exceptions=True
    )
    assert all(isinstance(result, NagayaError | apsw.ConstraintError | ConditionFailed) for result in results)
    house_file = house.open_file("acme")
    if house_file is not None:
        house_file.writer.set_commit_hook(None)
    assert [row[0] for row in await store.query("p")] == [b"taken"]
    assert await store.put("p", b"k", b"x") == 1


# --- who may be where


async def test_a_room_that_is_a_link_is_refused(house: SqliteHouse, tmp_path: Path) -> None:
    (house.folder / "link").symlink_to(house.folder / "acme")
    (house.folder / "inner").mkdir()
    (house.folder / "inner" / "store.db").symlink_to(house.folder / "acme" / "store.db")
    for room in ("link", "inner"):
        with pytest.raises(StoreDamaged):
            await house.open(room)
    with pytest.raises((StoreDamaged, TenantExists)):
        await house.create("link")
    await house.destroy("link")
    await house.open("acme")
    (house.folder / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises((StoreDamaged, TenantExists)):
        await house.create("dangling")


async def test_a_file_at_rest_is_opened_by_the_loop_and_one_in_use_or_on_a_slow_disk_by_a_thread(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, by_loop = sqlite_format.connect, []

    def noted(folder: Path, room: str, *, busy_ms: int) -> apsw.Connection:
        by_loop.append(threading.current_thread() is threading.main_thread())
        # Whoever waits for another process is never the loop.
        assert bool(busy_ms) is not by_loop[-1]
        return connect(folder, room, busy_ms=busy_ms)

    monkeypatch.setattr(sqlite_files.sqlite_format, "connect", noted)
    await house.open("acme")
    assert by_loop == [True]
    await house.quiet("acme")
    other = SqliteHouse(house.folder)
    await Store(await other.open("acme")).put("p", b"k", b"x")
    by_loop.clear()
    store = Store(await house.open("acme"))
    assert by_loop == [False]
    assert await store.get("p", b"k") == Row(b"k", 1, b"x")
    await other.close()
    await house.quiet("acme")
    house._files._open_s, house._files._probe_at_s = 1.0, float("inf")
    await house.open("acme")
    assert by_loop == [False, False]
    await house.quiet("acme")
    house._files._probe_at_s = 0.0
    await house.open("acme")
    assert by_loop == [False, False, True]


async def test_a_file_that_another_process_holds_is_waited_for_by_a_thread(house: SqliteHouse) -> None:
    holder = apsw.Connection(str(house.folder / "acme" / "store.db"))
    holder.execute("BEGIN EXCLUSIVE")
    opening = asyncio.create_task(house.open("acme"))
    await asyncio.sleep(0.1)
    assert not opening.done()
    holder.execute("ROLLBACK")
    holder.close()
    assert await Store(await opening).get("p", b"k") is None


async def test_a_file_has_a_log_from_its_first_write_until_it_is_closed(house: SqliteHouse) -> None:
    place = house.folder / "acme"
    for number in range(3):
        store = Store(await house.open("acme"))
        assert len(await store.query("p")) == number
        assert os.listdir(place) == ["store.db"]
        await store.put("p", b"%d" % number, b"x")
        assert sorted(os.listdir(place)) == ["store.db", "store.db-shm", "store.db-wal"]
        await house.quiet("acme")
        assert os.listdir(place) == ["store.db"]


async def test_a_file_that_is_read_again_and_again_gets_a_log_until_it_is_closed(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PACE_S", 60.0)  # the loop reads by itself, however slow the disk
    place = house.folder / "acme"
    store = Store(await house.open("acme"))
    file = file_of(house, "acme")
    for _ in range(15):
        await store.query("p")
    assert (os.listdir(place), file.has_log) == (["store.db"], False)
    for _ in range(2):
        assert list(await store.query("p")) == []
    async with asyncio.timeout(30):
        while file.busy:
            await asyncio.sleep(0.001)
    assert file.has_log
    assert store.moment() is not None
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(5)))
    assert len(await store.query("p")) == 5
    await house.quiet("acme")
    assert os.listdir(place) == ["store.db"]


async def test_writes_come_through_while_a_file_that_is_read_gets_its_log(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PACE_S", 60.0)
    store = Store(await house.open("acme"))
    written = 0

    async def read() -> None:
        for _ in range(20):
            await store.query("p")
            await asyncio.sleep(0)

    for _ in range(20):
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            for number in range(written, written + 3):
                group.create_task(store.put("p", b"%d" % number, b"x"))
        written += 3
        await house.quiet("acme")
    assert len(await store.query("p")) == written


async def test_a_file_that_cannot_have_a_log_is_read_without(
    house: SqliteHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_PACE_S", 60.0)
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    await house.quiet("acme")
    other = apsw.Connection(str(house.folder / "acme" / "store.db"))
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM records").fetchall()  # a reader elsewhere: the log cannot begin
    file = None
    for _ in range(40):
        assert len(await store.query("p")) == 1
        file = file_of(house, "acme")
        await asyncio.sleep(0.001)
    assert file is not None
    assert not file.has_log
    other.close()
    assert await store.put("p", b"l", b"x") == 1


async def test_a_log_that_others_use_is_left_to_whoever_closes_last(house: SqliteHouse) -> None:
    place = house.folder / "acme"
    other = SqliteHouse(house.folder)
    ours, theirs = Store(await house.open("acme")), Store(await other.open("acme"))
    assert await theirs.get("p", b"k") is None
    await ours.put("p", b"k", b"x")
    assert await theirs.get("p", b"k") is not None
    await house.quiet("acme")
    assert "store.db-wal" in os.listdir(place)
    await theirs.put("p", b"k2", b"x")
    await other.close()
    assert os.listdir(place) == ["store.db"]
    assert len(await Store(await house.open("acme")).query("p")) == 2


@pytest.mark.parametrize("log", ["store.db-wal", "store.db-journal"])
async def test_the_log_of_a_file_that_is_gone_is_not_replayed_into_a_new_one(house: SqliteHouse, log: str) -> None:
    place = house.folder / "gamma"
    place.mkdir()
    (place / log).write_bytes(b"x")
    with pytest.raises(StoreDamaged):
        await house.create("gamma")


async def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    house = SqliteHouse(tmp_path / "file")
    for call in (house.create("acme"), house.open("acme"), house.destroy("acme")):
        with pytest.raises(StoreDamaged):
            await call
    await house.close()


async def test_a_half_made_room_can_be_made(house: SqliteHouse) -> None:
    (house.folder / "beta").mkdir()
    assert not await house.exists("beta")
    await house.create("beta")
    await house.open("beta")


# --- groups


async def test_a_value_that_cannot_be_stored_spoils_no_other(house: SqliteHouse) -> None:
    driver = await house.open("acme")
    wrong: Any = [1]
    nothing: Any = None
    for _ in range(2):  # first with a new partition, then with a known one
        results = await asyncio.gather(
            driver.write("p", (Put(os.urandom(8), b"x"),)),
            driver.write("p", (Put(b"wrong", wrong),)),
            driver.write("p", (Put(nothing, b"x"),)),
            driver.write("q", (Put(os.urandom(8), b"x"),)),
            return_exceptions=True,
        )
        assert results[0] is None
        assert isinstance(results[1], TypeError)
        assert isinstance(results[2], apsw.ConstraintError)
        assert results[3] is None
    with pytest.raises(TypeError):
        await driver.write("p", (Put(b"wrong", wrong),))
    assert len(await driver.query("p", after=b"", before=b"", limit=10, descending=False)) == 2


async def test_conditions_on_a_partition_that_never_was_are_refused(house: SqliteHouse) -> None:
    driver = await house.open("acme")
    results = await asyncio.gather(
        driver.write("nowhere", (Delete(b"k", 1),)),
        driver.write("nowhere too", (Put(b"k", b"x", 3), Delete(b"l", 1))),
        driver.write("p", (Put(b"k", b"x"),)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [ConditionFailed, ConditionFailed, type(None)]


async def test_a_great_group_is_cut_and_still_done(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    results = await asyncio.gather(*(store.put("p", b"%06d" % number, b"x") for number in range(1300)))
    assert results == [1] * 1300


async def test_partition_numbers_kept_in_memory_are_few(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await asyncio.gather(*(store.put(f"p{number}", b"k", b"%d" % number) for number in range(1200)))
    assert len(file_of(house, "acme").known) <= 512
    for number in range(0, 1200, 37):
        assert await store.get(f"p{number}", b"k") == Row(b"k", 1, b"%d" % number)


async def test_a_writer_who_gave_up_before_the_commit_wrote_nothing(house: SqliteHouse) -> None:
    driver = await house.open("acme")
    task = asyncio.create_task(driver.write("p", (Put(b"k", b"x"),)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await driver.get("p", b"k") is None
    assert not file_of(house, "acme").in_use


# --- loops


def test_a_house_serves_one_loop_after_another(tmp_path: Path) -> None:
    house = SqliteHouse(tmp_path / "rooms")
    asyncio.run(house.create("acme"))

    async def write(number: int) -> None:
        store = Store(await house.open("acme"))
        await asyncio.gather(*(store.put("p", b"%d-%d" % (number, turn), b"x") for turn in range(10)))

    for number in range(3):
        asyncio.run(write(number))

    async def leave(pace_s: float) -> None:
        """End the loop with a write just asked for, or in a thread's hands."""
        driver = await house.open("acme")
        task = asyncio.create_task(driver.write("left", (Put(b"%f" % pace_s, b"x" * 200_000),)))
        await asyncio.sleep(0)
        if pace_s:
            await asyncio.sleep(0)
        task.cancel()

    for pace_s in (0.0, 1.0):
        asyncio.run(leave(pace_s))
    asyncio.run(write(4))
    asyncio.run(house.close())
    assert threading.active_count() < 40


@pytest.mark.parametrize("told", ["before it is closed", "afterwards", "once another asks"])
@pytest.mark.parametrize("asks", ["to write", "to close the file"])
def test_a_loop_that_ends_during_a_commit_leaves_the_house_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, asks: str
) -> None:
    """A thread tells the loop of its commit: that takes it and turns no more, or is closed by then."""
    house = SqliteHouse(tmp_path / "rooms")
    asyncio.run(house.create("acme"))
    commit, begun, may_end = sqlite._committed, threading.Event(), threading.Event()

    def waits(file: OpenFile, group: list[Request]) -> Any:
        begun.set()
        assert may_end.wait(30)
        return commit(file, group)

    async def leave() -> None:
        driver = await house.open("acme")
        task = asyncio.create_task(driver.write("p", (Put(b"k", b"x" * 200_000),)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()

    async def come_back() -> None:
        driver = await house.open("acme")
        asking = asyncio.create_task(
            driver.write("p", (Put(b"l", b"x"),)) if asks == "to write" else house.quiet("acme")
        )
        await asyncio.sleep(0.01)
        may_end.set()
        await asyncio.wait_for(asking, 30)
        await driver.write("p", (Put(b"m", b"x"),))
        kept = await driver.query("p", after=b"", before=b"", limit=9, descending=False)
        assert [row[0] for row in kept] == ([b"k", b"l", b"m"] if asks == "to write" else [b"k", b"m"])
        await house.close()

    monkeypatch.setattr(sqlite, "_committed", waits)
    first = asyncio.new_event_loop()
    heard, tell = threading.Event(), first.call_soon_threadsafe

    def hears(*arguments: Any, **more: Any) -> Any:
        try:
            return tell(*arguments, **more)
        finally:
            heard.set()

    monkeypatch.setattr(first, "call_soon_threadsafe", hears)
    first.run_until_complete(leave())
    heard.clear()
    if told == "before it is closed":
        may_end.set()
        assert heard.wait(30)
    first.close()
    if told == "afterwards":
        may_end.set()
        assert heard.wait(30)
    asyncio.run(come_back())


@pytest.mark.parametrize("is_told", [False, True])
def test_a_loop_that_ends_while_a_file_is_looked_after_leaves_the_house_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """A thread gives the file its log meanwhile; the loop is closed by the end of that, or is told and turns no more."""
    house = SqliteHouse(tmp_path / "rooms")
    asyncio.run(house.create("acme"))
    monkeypatch.setattr(sqlite, "_PACE_S", 60.0)
    begin_log, may_end = OpenFile.begin_log, threading.Event()

    def waits(file: OpenFile) -> None:
        assert may_end.wait(30)
        begin_log(file)

    monkeypatch.setattr(OpenFile, "begin_log", waits)
    first = asyncio.new_event_loop()
    told, tell = threading.Event(), first.call_soon_threadsafe

    def hears(*arguments: Any, **more: Any) -> Any:
        try:
            return tell(*arguments, **more)
        finally:
            told.set()

    async def read() -> None:
        driver = await house.open("acme")
        while not file_of(house, "acme").busy:
            await driver.query("p", after=b"", before=b"", limit=9, descending=False)

    async def write() -> None:
        driver = await house.open("acme")
        writing = asyncio.create_task(driver.write("p", (Put(b"k", b"x"),)))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.wait_for(writing, 30)
        assert len(await driver.query("p", after=b"", before=b"", limit=9, descending=False)) == 1
        await house.close()

    monkeypatch.setattr(first, "call_soon_threadsafe", hears)
    first.run_until_complete(read())
    if is_told:
        may_end.set()
        assert told.wait(30)
    first.close()
    asyncio.run(write())


# --- the empty file


def test_an_empty_file_is_sound_and_in_the_layout_of_today(tmp_path: Path) -> None:
    sqlite_format.make(tmp_path, "acme")
    connection = sqlite_format.connect(tmp_path, "acme")
    assert connection.pragma("integrity_check") == "ok"
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")}
    assert tables == {"partitions", "records", "places"}
    connection.close()


def test_an_appended_record_takes_little_more_than_its_body(tmp_path: Path) -> None:
    async def fill() -> int:
        house = SqliteHouse(tmp_path)
        await house.create("acme")
        store = Store(await house.open("acme"))
        for number in range(20):
            await store.batch("p", [Put((number * 100 + n).to_bytes(8, "big"), b"x" * 1024) for n in range(100)])
        await house.quiet("acme")
        size = await house.size_bytes("acme")
        await house.close()
        return size

    assert asyncio.run(fill()) / 2000 < 1500


@pytest.mark.parametrize("writers", [1, 30])
async def test_what_is_written_while_another_process_puts_a_new_file_in_place_lies_in_the_new_one(
    house: SqliteHouse, writers: int
) -> None:
    driver = await house.open("acme")
    await driver.write("p", (Put(b"before", b"x"),))
    moment = driver.moment()
    other = SqliteHouse(house.folder)
    await other.destroy("acme")
    await other.create("acme")
    await asyncio.gather(*(driver.write("p", (Put(b"%d" % number, b"x"),)) for number in range(writers)))
    fresh = await other.open("acme")
    rows = await fresh.query("p", after=b"", before=b"", limit=100, descending=False)
    assert sorted(row[0] for row in rows) == sorted(b"%d" % number for number in range(writers))
    with pytest.raises(ConditionFailed):
        await driver.write_since("p", (Put(b"since", b"x"),), moment)
    await other.close()


async def test_what_is_written_after_another_process_removed_the_room_is_refused(house: SqliteHouse) -> None:
    driver = await house.open("acme")
    await driver.write("p", (Put(b"before", b"x"),))
    other = SqliteHouse(house.folder)
    await other.destroy("acme")
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            await driver.write("p", (Put(b"after", b"x"),))
    await other.close()
