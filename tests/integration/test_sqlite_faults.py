"""What a room's store says when its disk, its folder or its file fails, and that its neighbours go on."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import pytest

from integration import sqlite_writer
from integration.sqlite_writer import RAISES
from nagaya.errors import StoreDamaged, StoreFull, StoreNewer, StoreUnreachable
from nagaya.stores.driver import Row
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.sqlite_files import LOOK_S
from nagaya.stores.store import Store

NOBODY = 65534


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[SqliteHouse]:
    house = SqliteHouse(tmp_path / "rooms", busy_s=60.0)
    for room in ("acme", "beta"):
        await house.create(room)
    yield house
    await house.close()


@pytest.fixture(params=["in the loop", "in a thread"])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in a thread":
        monkeypatch.setattr("nagaya.stores.sqlite._PACE_S", 0.0)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow past 256 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def path_of(house: SqliteHouse, room: str) -> Path:
    return house.folder / room / "store.db"


@pytest.mark.usefixtures("pace")
async def test_a_full_disk_is_said_and_nothing_acknowledged_is_lost(house: SqliteHouse, small_disk: None) -> None:
    store = Store(await house.open("acme"))
    kept = []
    with pytest.raises(StoreFull):
        for number in range(1000):
            await store.put("p", b"%06d" % number, b"x" * 8000)
            kept.append(b"%06d" % number)
    assert kept
    assert [row[0] for row in await store.query("p", limit=1000)] == kept
    assert await Store(await house.open("beta")).put("p", b"k", b"small") == 1


@pytest.mark.usefixtures("pace")
async def test_every_writer_of_a_group_hears_of_the_full_disk(house: SqliteHouse, small_disk: None) -> None:
    store = Store(await house.open("acme"))
    results = await asyncio.gather(
        *(store.put(f"p{number}", b"k", b"x" * 20_000) for number in range(30)), return_exceptions=True
    )
    # The first may have been written before the others asked; they share a group, and its end.
    kept = [f"p{number}" for number, result in enumerate(results) if result == 1]
    assert len(kept) <= 1
    assert sum(isinstance(result, StoreFull) for result in results) == 30 - len(kept)
    assert [row.partition async for row in store.scan_all()] == kept


async def test_a_full_database_is_said(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    file = house.open_file("acme")
    assert file is not None
    file.writer.pragma("max_page_count", 20)
    with pytest.raises(StoreFull):
        for number in range(100):
            await store.put("p", b"%06d" % number, b"x" * 8000)
    file.writer.pragma("max_page_count", 2**30)
    assert await store.put("p", b"later", b"x" * 8000) == 1


async def test_a_disk_that_is_too_full_for_a_new_room_is_said(house: SqliteHouse) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreFull):
            await house.create("gamma")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not await house.exists("gamma")
    await house.create("gamma")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
@pytest.mark.parametrize("closed", ["folder", "file"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, closed: str) -> None:
    code = f"""
import asyncio, os
from nagaya.errors import StoreReadOnly
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.store import Store
async def main():
    house = SqliteHouse("rooms")
    await house.create("acme")
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    await house.close()
    os.chmod("rooms/acme", 0o755)
    os.chmod("rooms/acme/store.db", 0o644)
    if {closed!r} == "folder":
        os.chmod("rooms", 0o755)
    else:
        os.chown("rooms/acme", {NOBODY}, {NOBODY})
    os.setuid({NOBODY})
    house = SqliteHouse("rooms")
    for call in (lambda: house.create("beta"), lambda: house.destroy("acme")):
        try:
            await call()
        except StoreReadOnly as said:
            print(said.code)
    try:
        store = Store(await house.open("acme"))
        await store.put("p", b"k2", b"x")
    except StoreReadOnly as said:
        print(said.code)
    await house.close()
asyncio.run(main())
"""
    place = Path("/tmp") / f"nagaya-read-only-{os.getpid()}-{closed}"  # pytest's own folders are closed to others
    place.mkdir(mode=0o755)
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=120)
    finally:
        shutil.rmtree(place)
    assert done.stdout.split() == ["store_read_only"] * 3, done.stderr


async def test_a_file_of_noise_is_damaged_and_its_neighbour_goes_on(house: SqliteHouse) -> None:
    path_of(house, "acme").write_bytes(os.urandom(20480))
    with pytest.raises(StoreDamaged):
        await house.open("acme")
    assert await Store(await house.open("beta")).put("p", b"k", b"x") == 1


@pytest.mark.parametrize("size", [0, 10, 4096])
async def test_a_file_cut_short_is_damaged(house: SqliteHouse, size: int) -> None:
    os.truncate(path_of(house, "acme"), size)
    with pytest.raises(StoreDamaged):
        store = Store(await house.open("acme"))
        await store.put("p", b"k", b"x")
    assert await Store(await house.open("beta")).put("p", b"k", b"x") == 1


@pytest.mark.usefixtures("pace")
async def test_a_page_of_noise_is_damage_and_never_another_answer(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    for number in range(200):
        await store.put("p", b"%06d" % number, b"x" * 1000)
    await house.quiet("acme")
    with path_of(house, "acme").open("r+b") as file:
        for page in range(1, 40):
            file.seek(4096 * page)
            file.write(os.urandom(4096))
    with pytest.raises(StoreDamaged):
        await store.query("p")
    with pytest.raises(StoreDamaged):
        await store.put("p", b"k", b"x")
    assert await Store(await house.open("beta")).put("p", b"k", b"x") == 1


async def test_a_database_that_is_not_ours_is_not_opened(house: SqliteHouse) -> None:
    path = path_of(house, "acme")
    path.unlink()
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE records (x)")
    connection.close()
    with pytest.raises(StoreDamaged):
        await house.open("acme")


async def test_a_store_of_a_newer_program_is_not_touched(house: SqliteHouse) -> None:
    connection = apsw.Connection(str(path_of(house, "acme")))
    connection.pragma("user_version", 2)
    connection.close()
    with pytest.raises(StoreNewer, match="upgrade"):
        await house.open("acme")


@pytest.mark.usefixtures("pace")
async def test_a_writer_elsewhere_is_waited_for_and_never_by_the_loop(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    other = apsw.Connection(str(path_of(house, "acme")))
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.put("p", b"k2", b"x"))
    beta = Store(await house.open("beta"))
    for number in range(20):
        await beta.put("p", b"%d" % number, b"x")
    assert await store.get("p", b"k") == Row(b"k", 1, b"x")
    assert not write.done()
    other.execute("COMMIT")
    assert await write == 1
    other.close()


@pytest.mark.usefixtures("pace")
async def test_a_writer_elsewhere_is_not_waited_for_without_end(house: SqliteHouse) -> None:
    hasty = SqliteHouse(house.folder, busy_s=0.1)
    store = Store(await hasty.open("acme"))
    other = apsw.Connection(str(path_of(house, "acme")))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnreachable):
        await store.put("p", b"k", b"x")
    other.execute("COMMIT")
    other.close()
    assert await store.put("p", b"k", b"x") == 1
    await hasty.close()


@pytest.mark.parametrize("mode", ["raise", "leave"])
async def test_two_processes_at_one_room_lose_no_write(house: SqliteHouse, mode: str) -> None:
    await Store(await house.open("acme")).put("p", b"n", b"0")
    command = [sys.executable, sqlite_writer.__file__, str(house.folder), mode]
    children = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]
    assert await asyncio.gather(*(child.wait() for child in children)) == [0, 0]
    store = Store(await house.open("acme"))
    assert await store.get("p", b"n") == Row(b"n", 2 * RAISES + 1, b"%d" % (2 * RAISES))
    assert len(await store.query("log", limit=1000)) == 2 * RAISES


async def test_a_room_replaced_by_another_process_is_not_written_to_by_its_old_file(house: SqliteHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"old", b"x")
    other = SqliteHouse(house.folder)
    await other.destroy("acme")
    await asyncio.sleep(LOOK_S)
    with pytest.raises(StoreDamaged):
        await store.put("p", b"k", b"x")
    await other.create("acme")
    await other.close()
    assert await store.get("p", b"old") is None
    assert await store.put("p", b"k", b"x") == 1
