"""Faults between a server and its PostgreSQL: no acknowledged write is lost, no half batch is seen, the pool recovers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from nagaya.errors import (
    ConditionFailed,
    NagayaError,
    StoreDamaged,
    StoreFull,
    StoreLoginRefused,
    StorePermissionMissing,
    StoreReadOnly,
    StoreUnreachable,
)
from nagaya.stores.driver import Put
from nagaya.stores.postgres import PostgresHouse, open_house
from nagaya.stores.store import Store
from parts.postgres import APP, Postgres, done
from support.postgres_house import surroundings
from support.tcp_proxy import Proxy

pytest_plugins = ["parts.postgres_server"]

PATIENT_S = 60.0
"""More than any work here takes on the busiest machine: what ends sooner does not end by its deadline."""

HURRIED_S = 0.6


@pytest.fixture(scope="module")
def home(postgres: Postgres) -> Iterator[str]:
    name = done(postgres.new_database())
    yield name
    done(postgres.drop_database(name))


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        yield proxy


@pytest.fixture
async def house(postgres: Postgres, home: str, proxy: Proxy) -> AsyncIterator[PostgresHouse]:
    url = postgres.url(home, user=APP).replace(str(postgres.port), str(proxy.port))
    house = await open_house(url, surroundings(deadline_s=PATIENT_S))
    await house.create("acme")
    yield house
    await house.close()
    await postgres.run('DROP SCHEMA "nagaya_acme" CASCADE', database=home)


@pytest.fixture
async def store(house: PostgresHouse) -> Store:
    return Store(await house.open("acme"), deadline_s=PATIENT_S)


@pytest.fixture
def hurried(store: Store) -> Store:
    """The same room, for somebody who soon gives up."""
    return Store(store._driver, deadline_s=HURRIED_S)


async def test_writes_under_a_line_that_is_cut_again_and_again_lose_nothing_acknowledged(
    store: Store, proxy: Proxy
) -> None:
    acknowledged: set[bytes] = set()
    unknown: set[bytes] = set()
    cuts = 0

    async def write(writer: int) -> None:
        number = 0
        while cuts < 12:
            number += 1
            batch = [Put(b"%02d-%05d-%d" % (writer, number, part), b"x" * 300) for part in range(3)]
            try:
                await store.batch("p", batch)
            except StoreUnreachable:
                unknown.update(put.sort for put in batch)
            else:
                acknowledged.update(put.sort for put in batch)

    async def cut() -> None:
        nonlocal cuts
        while cuts < 12:
            # However slow the machine is, something is done between two cuts.
            goal = len(acknowledged) + 9
            while len(acknowledged) < goal:
                await asyncio.sleep(0.01)
            proxy.cut()
            cuts += 1

    await asyncio.gather(*(write(writer) for writer in range(6)), cut())
    found = {row.row.sort async for row in store.scan_all(page=1000)}
    assert len(acknowledged) > 100
    assert unknown
    assert acknowledged <= found
    assert found <= acknowledged | unknown
    whole: dict[bytes, int] = {}
    for sort in found:
        whole[sort[:-2]] = whole.get(sort[:-2], 0) + 1
    assert set(whole.values()) == {3}


async def test_a_write_whose_answer_was_cut_off_is_unknown_and_a_repeat_does_it_once(
    store: Store, proxy: Proxy
) -> None:
    await store.put("p", b"warm", b"x")
    await store.put("p", b"k0", b"x")
    proxy.cut_after_request = True
    with pytest.raises(StoreUnreachable):
        await store.put("p", b"k", b"first")
    with pytest.raises(ConditionFailed):
        await store.put("p", b"k", b"first")  # It was kept: the repeat finds its own work.
    row = await store.get("p", b"k")
    assert row is not None
    assert (row.revision, row.body) == (1, b"first")


async def test_a_read_whose_line_was_cut_is_asked_again_unnoticed(store: Store, proxy: Proxy) -> None:
    await store.put("p", b"k", b"x")
    for _ in range(3):
        proxy.cut_after_request = True
        assert await store.get("p", b"k") is not None
        proxy.cut_after_request = True
        assert len(await store.query("p")) == 1


async def test_idle_lines_that_were_cut_are_replaced_before_anybody_writes_on_them(store: Store, proxy: Proxy) -> None:
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(8)))
    proxy.cut()
    await asyncio.sleep(0.05)
    await asyncio.gather(*(store.put("q", b"%d" % number, b"x") for number in range(8)))


async def test_a_server_that_went_silent_is_an_error_at_the_deadline_and_not_a_hang(
    store: Store, hurried: Store, house: PostgresHouse, proxy: Proxy
) -> None:
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(6)))
    proxy.swallow = True
    async with asyncio.timeout(20):
        results = await asyncio.gather(
            hurried.get("p", b"1"), hurried.query("p"), hurried.put("p", b"new", b"x"), return_exceptions=True
        )
    assert all(isinstance(result, StoreUnreachable) for result in results)
    proxy.swallow = False
    proxy.cut()
    assert len(await store.query("p")) >= 6
    assert house.pool.size <= 20


async def test_half_open_lines_cost_one_deadline_and_not_one_each(
    store: Store, house: PostgresHouse, proxy: Proxy
) -> None:
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(10)))
    assert house.pool.size >= 2
    proxy.swallow = True
    with pytest.raises(StoreUnreachable):
        await Store(store._driver, deadline_s=1.2).get("p", b"1")
    # New lines work; whoever used one from before would wait for a word that was lost.
    proxy.swallow = False
    async with asyncio.timeout(PATIENT_S / 2):
        for number in range(10):
            assert await store.get("p", b"%d" % number) is not None


async def test_an_act_on_a_room_ends_at_its_deadline_and_its_connection_with_it(
    postgres: Postgres, home: str, proxy: Proxy
) -> None:
    url = postgres.url(home, user=APP).replace(str(postgres.port), str(proxy.port))
    house = await open_house(f"{url}?connections=3", surroundings(deadline_s=0.3))
    try:
        proxy.swallow = True
        for work in (house.create("globex"), house.open("globex"), house.size_bytes("globex")):
            with pytest.raises(StoreUnreachable):
                await work
        assert house.pool.size == 0
        proxy.swallow = False
        proxy.cut()
        async with asyncio.timeout(30):
            while True:
                # On a busy machine its short deadline may pass once more.
                with contextlib.suppress(StoreUnreachable):
                    assert not await house.exists("globex")
                    break
    finally:
        await house.close()


async def test_an_answer_that_is_lost_leaves_the_write_whole_or_absent(
    store: Store, hurried: Store, proxy: Proxy
) -> None:
    await store.put("p", b"warm", b"x")
    proxy.swallow_answers = True
    with pytest.raises(StoreUnreachable):
        await hurried.batch("p", [Put(b"a", b"1"), Put(b"b", b"1")])
    proxy.swallow_answers = False
    proxy.cut()
    await asyncio.sleep(0.1)
    found = {row.sort for row in await store.query("p")}
    assert found in ({b"warm"}, {b"warm", b"a", b"b"})


async def test_a_slow_line_is_only_slow(store: Store, proxy: Proxy) -> None:
    await store.put("p", b"k", b"x")
    proxy.delay_s = 0.02
    assert await store.put("p", b"k", b"y", expect=1) == 2
    row = await store.get("p", b"k")
    assert row is not None
    assert row.body == b"y"


async def test_a_server_that_refuses_lines_is_unreachable_at_once_and_back_when_it_is(
    store: Store, house: PostgresHouse, proxy: Proxy
) -> None:
    await store.put("p", b"k", b"x")
    proxy.refuse = True
    proxy.cut()
    await asyncio.sleep(0.02)
    async with asyncio.timeout(PATIENT_S / 2):
        for work in (store.get("p", b"k"), store.put("p", b"k2", b"x"), house.open("acme"), house.size_bytes("acme")):
            with pytest.raises(StoreUnreachable):
                await work
    proxy.refuse = False
    assert await store.get("p", b"k") is not None


async def test_a_server_that_restarts_its_backends_is_survived(store: Store, postgres: Postgres, home: str) -> None:
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(6)))
    ended = await postgres.ask("SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", APP)
    there = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY($1)"
    async with asyncio.timeout(PATIENT_S):
        while await postgres.ask(there, [pid for pid, _ in ended]):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(await store.query("p")) == 6
    await store.put("p", b"after", b"x")


async def test_cancelled_callers_do_not_use_up_the_pool(store: Store, house: PostgresHouse) -> None:
    for _ in range(30):
        tasks = [asyncio.create_task(store.query("p")) for _ in range(25)]
        await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert house.pool.size <= 20
    await asyncio.gather(*(store.put("p", b"%d" % number, b"x") for number in range(40)))


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", StoreFull), ("25006", StoreReadOnly), ("42501", StorePermissionMissing), ("XX001", StoreDamaged),
        ("57014", StoreUnreachable), ("40001", StoreUnreachable), ("P0001", StoreUnreachable), ("58030", StoreUnreachable),
    ],
)  # fmt: skip
async def test_what_the_server_answers_is_told_apart_and_nothing_is_written(
    store: Store, postgres: Postgres, home: str, state: str, error: type[NagayaError]
) -> None:
    await postgres.run(
        f"CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON nagaya_acme.records FOR EACH ROW EXECUTE FUNCTION public.fail()",
        database=home,
    )
    with pytest.raises(error):
        await store.put("p", b"k", b"x")
    with pytest.raises(error):
        await store.batch("p", [Put(b"a", b"x"), Put(b"b", b"x")])
    await postgres.run("DROP TRIGGER fail ON nagaya_acme.records", database=home)
    assert list(await store.query("p")) == []
    await store.put("p", b"k", b"x")


async def test_a_database_that_is_read_only_says_so(postgres: Postgres, home: str, house: PostgresHouse) -> None:
    store = Store(await house.open("acme"))
    await store.put("p", b"k", b"x")
    await postgres.run(f"ALTER DATABASE {home} SET default_transaction_read_only = on")
    house.pool.drop_idle()
    try:
        with pytest.raises(StoreReadOnly):
            await store.put("p", b"k2", b"x")
        assert await store.get("p", b"k") is not None
        with pytest.raises(StoreReadOnly):
            await house.create("globex")
    finally:
        await postgres.run(f"ALTER DATABASE {home} RESET default_transaction_read_only")
        house.pool.drop_idle()


async def test_two_batches_that_meet_crosswise_are_both_done(store: Store, postgres: Postgres, home: str) -> None:
    # An outsider holds rows in the opposite order: PostgreSQL undoes one of the two, and it is done again.
    await store.batch("p", [Put(b"a", b"1"), Put(b"b", b"1")])
    outsider = await postgres.connect(home)
    try:
        await outsider.execute("SET deadlock_timeout = '5s'")
        async with outsider.transaction():
            await outsider.execute("UPDATE nagaya_acme.records SET body = 'o' WHERE sort = 'b'")
            ours = asyncio.create_task(store.batch("p", [Put(b"a", b"2", expect=1), Put(b"b", b"2", expect=1)]))
            await asyncio.sleep(0.15)
            await outsider.execute("UPDATE nagaya_acme.records SET body = 'o' WHERE sort = 'a'")
        await ours
    finally:
        await outsider.close()
    assert [row.body for row in await store.query("p")] == [b"2", b"2"]


async def test_a_missing_permission_is_named(postgres: Postgres, home: str, house: PostgresHouse) -> None:
    await postgres.run(f"REVOKE CREATE ON DATABASE {home} FROM {APP}")
    with pytest.raises(StorePermissionMissing, match=f"CREATE on database {home}"):
        await house.create("globex")
    await postgres.run(f"GRANT CREATE ON DATABASE {home} TO {APP}")
    apart = await open_house(f"{postgres.url(home, user=APP)}?isolation=database", surroundings())
    with pytest.raises(StorePermissionMissing, match="CREATEDB"):
        await apart.create("globex")
    await apart.close()


async def test_a_wrong_password_or_database_is_told_apart(postgres: Postgres, home: str) -> None:
    with pytest.raises(StoreLoginRefused) as refused:
        await open_house(postgres.url(home).replace("correct", "wrong"), surroundings())
    assert "horse" not in str(refused.value)
    with pytest.raises(StoreDamaged):
        await open_house(postgres.url("nowhere", user=APP), surroundings())


async def test_a_half_made_database_is_completed_and_never_opened(postgres: Postgres, home: str) -> None:
    await postgres.run(f"ALTER ROLE {APP} CREATEDB")
    house = await open_house(f"{postgres.url(home, user=APP)}?isolation=database", surroundings())
    try:
        assert not await house.exists("halved")
        assert await house.size_bytes("halved") == 0
        await postgres.run(f'CREATE DATABASE "nagaya_halved" OWNER {APP}')
        assert not await house.exists("halved")
        with pytest.raises(StoreDamaged):
            await house.open("halved")
        await house.create("halved")
        await Store(await house.open("halved")).put("p", b"k", b"x")
        await house.destroy("halved")
    finally:
        await house.close()
        await postgres.run(f"ALTER ROLE {APP} NOCREATEDB")


async def test_a_server_on_this_machine_is_reached_by_its_socket(postgres: Postgres, home: str) -> None:
    house = await open_house(
        f"postgresql://{APP}@/{home}?host={postgres.sockets}&port={postgres.port}",
        surroundings("_platform", allowed=()),
    )
    try:
        await house.create("_platform")
        await Store(await house.open("_platform")).put("p", b"k", b"x")
        await house.destroy("_platform")
    finally:
        await house.close()
        await house.close()


async def test_an_error_of_the_client_library_itself_is_an_unknown_outcome(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("p", b"k", b"x")

    async def confused(*_: object) -> None:
        raise asyncpg.InterfaceError("another operation is in progress")

    with monkeypatch.context() as broken:
        broken.setattr(asyncpg.Connection, "fetch", confused)
        for work in (store.put("p", b"k2", b"x"), store.get("p", b"k")):
            with pytest.raises(StoreUnreachable):
                await work
    assert await store.get("p", b"k") is not None


async def test_a_room_whose_table_is_gone_is_damaged_and_not_empty(store: Store, postgres: Postgres, home: str) -> None:
    await store.put("p", b"k", b"x")
    await postgres.run("DROP TABLE nagaya_acme.records", database=home)
    for work in (store.get("p", b"k"), store.query("p"), store.scan(), store.put("p", b"k2", b"x")):
        with pytest.raises(StoreDamaged):
            await work
