"""Attack row 12: roles that could pass over row-level security, dirty connections, cancelled transactions."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from nagaya.errors import ConditionFailed, StoreDamaged, StoreNewer, StoreRoleUnsafe, TenantExists
from nagaya.stores.driver import Put
from nagaya.stores.postgres import PostgresHouse, open_house
from nagaya.stores.postgres_layouts import name_of
from nagaya.stores.postgres_shared import set_up_sql
from nagaya.stores.store import Store
from parts.postgres import APP, PASSWORD, Postgres, done
from support.postgres_house import set_up_shared, surroundings

pytest_plugins = ["parts.postgres_server"]

ROOMS = ("acme", "globex")


@pytest.fixture(scope="module")
def shared(postgres: Postgres) -> Iterator[str]:
    """A database with the shared table."""
    name = done(postgres.new_database())
    done(set_up_shared(postgres, name))
    yield name
    done(postgres.drop_database(name))


@pytest.fixture
async def house(postgres: Postgres, shared: str) -> AsyncIterator[PostgresHouse]:
    """Two rooms with a canary each."""
    house = await open_house(f"{postgres.url(shared, user=APP)}?isolation=shared", surroundings())
    for room in ROOMS:
        await house.create(room)
        await Store(await house.open(room)).put("p", b"k", f"canary of {room}".encode())
    yield house
    await house.close()
    await postgres.run("TRUNCATE nagaya.rooms, nagaya.records", database=shared)


@pytest.fixture
async def role(postgres: Postgres, shared: str) -> AsyncIterator[str]:
    """Another role that was granted what a server needs."""
    name = f"role_{secrets.token_hex(4)}"
    await postgres.run(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    await set_up_shared(postgres, shared, name)
    yield name
    await set_up_shared(postgres, shared)
    await postgres.run(f"REASSIGN OWNED BY {name} TO owner", f"DROP OWNED BY {name}", database=shared)
    await postgres.run(f"REASSIGN OWNED BY {name} TO owner", f"DROP ROLE {name}")


async def _opens(postgres: Postgres, shared: str, role: str) -> None:
    house = await open_house(f"{postgres.url(shared, user=role)}?isolation=shared", surroundings())
    await house.close()


async def test_a_plain_role_is_let_in(postgres: Postgres, shared: str, role: str) -> None:
    await _opens(postgres, shared, role)


@pytest.mark.parametrize(
    ("grant", "problem"),
    [
        ("ALTER ROLE {role} SUPERUSER", "superuser"),
        ("ALTER ROLE {role} BYPASSRLS", "BYPASSRLS"),
        ("GRANT owner TO {role}", "may become"),
        ("ALTER TABLE nagaya.records OWNER TO {role}", "owns"),
        ("GRANT TRUNCATE ON nagaya.records TO {role}", "TRUNCATE"),
        ("GRANT CREATE ON SCHEMA nagaya TO {role}", "change schema"),
    ],
)
async def test_a_role_that_could_pass_over_the_policies_is_refused_at_open(
    postgres: Postgres, shared: str, role: str, grant: str, problem: str
) -> None:
    await postgres.run(grant.format(role=role), database=shared)
    with pytest.raises(StoreRoleUnsafe, match=problem):
        await _opens(postgres, shared, role)
    await postgres.run("ALTER TABLE nagaya.records OWNER TO owner", database=shared)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE nagaya.records NO FORCE ROW LEVEL SECURITY", "not forced on records"),
        ("ALTER TABLE nagaya.rooms DISABLE ROW LEVEL SECURITY", "not forced on rooms"),
        ("CREATE POLICY more ON nagaya.records USING (true)", "policies of records"),
        ("ALTER POLICY own_room ON nagaya.records USING (room = current_setting('nagaya.room') OR true)", "policies"),
        ("ALTER FUNCTION nagaya.get(text, bytea, bytea) SECURITY DEFINER", "get runs with its owner"),
    ],
)  # fmt: skip
async def test_a_set_up_that_no_longer_binds_is_refused_at_open(
    postgres: Postgres, shared: str, role: str, change: str, problem: str
) -> None:
    await postgres.run(change, database=shared)
    try:
        with pytest.raises(StoreRoleUnsafe, match=problem):
            await _opens(postgres, shared, role)
    finally:
        await postgres.run(
            "DROP POLICY IF EXISTS more ON nagaya.records",
            "ALTER FUNCTION nagaya.get(text, bytea, bytea) SECURITY INVOKER",
            set_up_sql(role),
            database=shared,
        )
    await _opens(postgres, shared, role)


async def test_a_database_without_the_set_up_or_of_a_newer_one_is_refused(
    postgres: Postgres, database: str, shared: str
) -> None:
    with pytest.raises(StoreDamaged):
        await _opens(postgres, database, APP)
    await postgres.run("COMMENT ON SCHEMA nagaya IS 'Nagaya shared store, format 2'", database=shared)
    with pytest.raises(StoreNewer):
        await _opens(postgres, shared, APP)
    await set_up_shared(postgres, shared)


async def test_a_statement_that_says_no_room_sees_and_writes_nothing(
    postgres: Postgres, shared: str, house: PostgresHouse
) -> None:
    connection = await postgres.connect(shared, user=APP)
    try:
        for setting in (None, "", "initech"):
            if setting is not None:
                await connection.execute("SELECT set_config('nagaya.room', $1, false)", setting)
            assert await connection.fetch("SELECT * FROM nagaya.records") == []
            assert await connection.fetch("SELECT * FROM nagaya.rooms") == []
            assert await connection.execute("UPDATE nagaya.records SET body = ''") == "UPDATE 0"
            assert await connection.execute("DELETE FROM nagaya.records") == "DELETE 0"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("INSERT INTO nagaya.records VALUES (1, 'acme', '\\x01', '\\x01', '\\x01')")
    finally:
        await connection.close()
    for room in ROOMS:
        row = await Store(await house.open(room)).get("p", b"k")
        assert row is not None
        assert row.body == f"canary of {room}".encode()


async def test_a_pooled_connection_keeps_no_room_from_one_use_to_the_next(
    house: PostgresHouse,
) -> None:
    store = await house.open("acme")
    await Store(store).query("p")
    with pytest.raises(StoreDamaged):
        # A failed use too.
        await Store(await _unmade(house, "initech")).put("p", b"x", b"")
    for idle in house.pool._idle.values():
        for held in idle:
            assert not await held.connection.fetchval("SELECT current_setting('nagaya.room', true)")
            assert await held.connection.fetch("SELECT * FROM nagaya.records") == []


async def _unmade(house: PostgresHouse, room: str):
    """A store of a room that was never made, as a bug might open it."""
    store = await house.open("acme")
    store._lead = (room,)
    return store


async def test_records_written_together_stay_in_their_rooms_and_keep_their_own_outcomes(
    postgres: Postgres, shared: str, house: PostgresHouse
) -> None:
    stores = {room: Store(await house.open(room)) for room in ROOMS}
    places = [(room, f"c{number % 5}", b"%d" % (number % 20)) for number in range(40) for room in ROOMS]

    async def put(room: str, partition: str, sort: bytes) -> bool:
        try:
            await stores[room].put(partition, sort, room.encode())
        except ConditionFailed:
            return False
        return True

    done = await asyncio.gather(*(put(*place) for place in places))
    assert sum(done) == 2 * 20  # of two at one place, one
    found = await postgres.ask("SELECT room, body FROM nagaya.records WHERE partition <> 'p'", database=shared)
    assert len(found) == 2 * 20
    assert all(body == str(room).encode() for room, body in found)
    for room in ROOMS:
        rows = [row async for row in stores[room].scan_all()]
        assert len(rows) == 20 + 1
        assert all(row.row.body.endswith(room.encode()) for row in rows)
    unmade = Store(await _unmade(house, "initech"))
    told = await asyncio.gather(*(unmade.put("p", b"%d" % number, b"") for number in range(20)), return_exceptions=True)
    assert {type(each) for each in told} == {StoreDamaged}


async def test_a_dirty_connection_in_the_pool_shows_no_foreign_row(house: PostgresHouse) -> None:
    # As if something had left another room's name on every connection, for the session.
    acme = Store(await house.open("acme"))
    await asyncio.gather(*(acme.query("p") for _ in range(4)))
    for idle in house.pool._idle.values():
        for held in idle:
            await held.connection.execute("SELECT set_config('nagaya.room', 'globex', false)")
    for _ in range(8):
        assert [row.body for row in await acme.query("p")] == [b"canary of acme"]
        assert [row.row.body async for row in acme.scan_all()] == [b"canary of acme"]


async def test_cancelled_transactions_leave_no_foreign_row_in_anybodys_answer(house: PostgresHouse) -> None:
    stores = {room: Store(await house.open(room)) for room in ROOMS}
    wrong: list[bytes] = []

    async def ask(room: str) -> None:
        rows = await stores[room].query("p")
        wrong.extend(row.body for row in rows if not row.body.endswith(room.encode()))

    for number in range(30):
        tasks = [asyncio.create_task(ask(ROOMS[index % 2])) for index in range(24)]
        await asyncio.sleep(0.0005 * (number % 5))
        for task in tasks[number % 3 :: 3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert wrong == []
    assert house.pool.size <= 40
    for room in ROOMS:
        await ask(room)
    assert wrong == []


async def test_a_cancelled_write_is_whole_or_not_at_all(house: PostgresHouse) -> None:
    store = Store(await house.open("acme"))
    for number in range(40):
        sorts = [b"%d-%d" % (number, part) for part in range(5)]
        task = asyncio.create_task(store.batch("b", [Put(sort, b"x") for sort in sorts]))
        await asyncio.sleep(0.0003 * (number % 10))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.2)  # What a cancelled caller left under way ends.
    found = {row.sort for row in await store.query("b", limit=1000)}
    for number in range(40):
        assert len({b"%d-%d" % (number, part) for part in range(5)} & found) in (0, 5)


async def test_every_query_behind_the_policies_is_an_index_search(
    postgres: Postgres, shared: str, house: PostgresHouse
) -> None:
    connection = await postgres.connect(shared, user=APP)
    try:
        await connection.execute("SET search_path = pg_catalog; SET enable_seqscan = off; SET nagaya.room = 'acme'")
        plan = await connection.fetch(
            "EXPLAIN SELECT r.sort FROM nagaya.records r WHERE r.room = 'acme' AND r.partition = '\\x70' "
            "AND r.sort > '\\x00' ORDER BY r.sort LIMIT 50"
        )
        text = "\n".join(row[0] for row in plan)
        assert "Index" in text
        assert "(sort > '\\x00'::bytea)" in next(line for line in text.splitlines() if "Index Cond" in line)
        assert "Sort" not in text
    finally:
        await connection.close()


async def test_names_of_rooms_never_meet_whatever_their_length() -> None:
    long = ["a" * length for length in range(50, 64)] + ["a" * 62 + letter for letter in "bcd"]
    names = [name_of(room) for room in (*long, "public", "shared", "_platform", "acme")]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 63
    assert all(name.startswith("nagaya_") for name in names)


async def test_rooms_with_the_longest_names_are_kept_apart(postgres: Postgres, database: str) -> None:
    house = await open_house(postgres.url(database, user=APP), surroundings())
    rooms = ["a" * 62 + letter for letter in "bc"]
    for room in rooms:
        await house.create(room)
        await Store(await house.open(room)).put("p", b"k", room.encode())
    for room in rooms:
        assert [row.body for row in await Store(await house.open(room)).query("p")] == [room.encode()]
    await house.close()


async def test_a_schema_that_is_no_store_of_this_room_is_not_opened_nor_overwritten(
    postgres: Postgres, database: str
) -> None:
    house = await open_house(postgres.url(database, user=APP), surroundings())
    try:
        for room, table, comment in (
            ("theirs", 'CREATE TABLE "nagaya_theirs".records (id int)', None),
            ("swapped", 'CREATE TABLE "nagaya_swapped".records (id int)', "Nagaya store of acme, format 1"),
            ("later", 'CREATE TABLE "nagaya_later".records (id int)', "Nagaya store of later, format 2"),
        ):
            await postgres.run(f'CREATE SCHEMA "nagaya_{room}"', table, database=database)
            await postgres.run(f'GRANT USAGE ON SCHEMA "nagaya_{room}" TO {APP}', database=database)
            if comment:
                await postgres.run(f"COMMENT ON TABLE \"nagaya_{room}\".records IS '{comment}'", database=database)
            with pytest.raises(StoreNewer if room == "later" else StoreDamaged):
                await house.open(room)
            with pytest.raises(TenantExists):
                await house.create(room)
            with pytest.raises(StoreNewer if room == "later" else StoreDamaged):
                await house.destroy(room)
    finally:
        await house.close()
