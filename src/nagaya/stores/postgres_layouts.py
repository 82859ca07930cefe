"""Where a room's rows lie on a PostgreSQL server, and the statements that reach them: a schema or a database each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, Protocol

import asyncpg

from nagaya.errors import StoreDamaged, StoreNewer, TenantExists

FORMAT: Final = 1
_LONGEST: Final = 63  # PostgreSQL cuts longer names off, and two rooms would become one

TABLE: Final = """
CREATE TABLE {table} (
    revision bigint NOT NULL, partition bytea NOT NULL, sort bytea NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (partition, sort)
);
ALTER TABLE {table} ALTER partition SET STORAGE MAIN, ALTER sort SET STORAGE MAIN, ALTER body SET STORAGE EXTERNAL;
"""
"""``bytea`` keys compare byte by byte in every locale. Sealed bodies are not worth trying to compress."""


class Statements(NamedTuple):
    """The statements of one room. Each is one round trip and a transaction by itself; each begins with the arguments
    ``lead``, then the partition. Those that write give one row with True where they were done; ``put_new_many``, of
    arrays of partitions, sort keys and bodies, gives the partitions and sort keys where it was."""

    lead: tuple[Any, ...]
    get: str
    put_new: str
    put_new_many: str
    put_over: str
    remove: str
    batch: str
    up: str
    up_to: str
    down: str
    down_from: str
    scan: str


Leasing = Callable[[str], AbstractAsyncContextManager["asyncpg.Connection[Any]"]]
"""A connection to a database of the server, for acts on whole rooms."""


class Layout(Protocol):
    """How rooms are told apart on a server."""

    needs_create: str
    needs_use: str

    async def check(self) -> None:
        """Raise where the server is not set up for this layout, or its role could pass over it."""
        ...

    def database(self, room: str) -> str: ...
    def statements(self, room: str) -> Statements: ...
    async def exists(self, room: str) -> bool: ...
    async def create(self, room: str) -> None: ...
    async def destroy(self, room: str) -> None: ...
    async def size_bytes(self, room: str) -> int: ...


def name_of(room: str) -> str:
    """The schema or database of a room: ``nagaya_`` and its name, or where that is too long, a part and a hash.

    ``#`` stands in no room's name, so the two forms never meet.
    """
    plain = f"nagaya_{room}"
    if len(plain) <= _LONGEST:
        return plain
    return f"nagaya_{room[:23]}#{hashlib.sha256(room.encode()).hexdigest()[:32]}"


class SchemaLayout:
    """A schema for each room, all in the address's database."""

    def __init__(self, database: str, lease: Leasing) -> None:
        self._database = database
        self._lease = lease
        self.needs_create = f"CREATE on database {database}"
        self.needs_use = "SELECT, INSERT, UPDATE and DELETE in the tenant's schema"

    async def check(self) -> None:
        async with self._lease(self._database) as connection:
            await connection.fetch("SELECT 1")

    def database(self, room: str) -> str:
        return self._database

    def statements(self, room: str) -> Statements:
        return _plain_statements(f'"{name_of(room)}".records')

    async def exists(self, room: str) -> bool:
        async with self._lease(self.database(room)) as connection:
            return await _described(connection, room)

    async def create(self, room: str) -> None:
        async with self._lease(self.database(room)) as connection:
            await _make(connection, room)

    async def destroy(self, room: str) -> None:
        async with self._lease(self.database(room)) as connection:
            if await _described(connection, room):  # and no schema of a stranger's
                await connection.execute(f'DROP SCHEMA IF EXISTS "{name_of(room)}" CASCADE')

    async def size_bytes(self, room: str) -> int:
        async with self._lease(self.database(room)) as connection:
            table = f'"{name_of(room)}".records'
            return int(await connection.fetchval("SELECT pg_total_relation_size(to_regclass($1))", table) or 0)


class DatabaseLayout(SchemaLayout):
    """A database for each room; the address's own database is only where they are made from."""

    def __init__(self, database: str, lease: Leasing, forget: Callable[[str], None]) -> None:
        super().__init__(database, lease)
        self._forget = forget
        self.needs_create = "CREATEDB (ALTER ROLE … CREATEDB)"

    def database(self, room: str) -> str:
        return name_of(room)

    async def exists(self, room: str) -> bool:
        try:
            return await super().exists(room)
        except asyncpg.InvalidCatalogNameError:
            return False

    async def create(self, room: str) -> None:
        """Made in three steps, for a database cannot be made in a transaction. The lock keeps makers apart; what one
        left half made, without its table, is nobody's store yet, and the next one completes it."""
        name = name_of(room)
        async with self._lease(self._database) as connection:
            lock = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            await connection.execute("SELECT pg_advisory_lock($1)", lock)
            try:
                if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name):
                    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
                    await connection.execute(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
                await super().create(room)
            finally:
                connection.terminate()  # and with it the lock, without another wait

    async def destroy(self, room: str) -> None:
        name = name_of(room)
        self._forget(name)
        async with self._lease(self._database) as connection:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def size_bytes(self, room: str) -> int:
        try:
            return await super().size_bytes(room)
        except asyncpg.InvalidCatalogNameError:
            return 0


def described(found: str | None, room: str, *, place: str) -> bool:
    """Whether a table's comment says that it is the room's store. Raises ``StoreDamaged`` for another's or a
    stranger's, ``StoreNewer`` for one of a later format."""
    if found is None:
        return False
    ours, _, version = found.rpartition(", format ")
    if ours != f"Nagaya store of {room}" or not version.isdecimal():
        raise StoreDamaged(place=place)
    if int(version) > FORMAT:
        raise StoreNewer(place=place, found=int(version), known=FORMAT)
    return True


async def _described(connection: asyncpg.Connection[Any], room: str) -> bool:
    table = f'"{name_of(room)}".records'
    found = await connection.fetchrow(
        "SELECT to_regclass($1) IS NOT NULL, obj_description(to_regclass($1), 'pg_class')", table
    )
    assert found is not None
    return described((found[1] or "") if found[0] else None, room, place=room)


async def _make(connection: asyncpg.Connection[Any], room: str) -> None:
    """One message of several statements: one round trip, one transaction."""
    schema = f'"{name_of(room)}"'
    table = f"{schema}.records"
    try:
        await connection.execute(
            f"CREATE SCHEMA {schema}; {TABLE.format(table=table)} "
            f"COMMENT ON TABLE {table} IS 'Nagaya store of {room}, format {FORMAT}'"
        )
    except (asyncpg.DuplicateSchemaError, asyncpg.UniqueViolationError, asyncpg.DuplicateTableError):
        raise TenantExists(value=room) from None


def _plain_statements(table: str) -> Statements:
    """``table`` comes from :func:`name_of`, quoted: no letter of it is a caller's choice."""
    # ruff: noqa: S608 - see above; every value is an argument
    page = f"SELECT sort, revision, body FROM {table} WHERE partition = $1 AND sort > $2"
    return Statements(
        lead=(),
        get=f"SELECT sort, revision, body FROM {table} WHERE partition = $1 AND sort = $2",
        put_new=(
            f"INSERT INTO {table} (partition, sort, revision, body) VALUES ($1, $2, 1, $3) "
            "ON CONFLICT DO NOTHING RETURNING true"
        ),
        put_new_many=(
            f"INSERT INTO {table} (partition, sort, revision, body) "
            "SELECT place, sort, 1, body FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS u (place, sort, body) "
            "ON CONFLICT DO NOTHING RETURNING partition, sort"
        ),
        put_over=(
            f"UPDATE {table} SET revision = revision + 1, body = $3 "
            "WHERE partition = $1 AND sort = $2 AND revision = $4 RETURNING true"
        ),
        remove=f"DELETE FROM {table} WHERE partition = $1 AND sort = $2 AND revision = $3 RETURNING true",
        batch=(
            "WITH change AS MATERIALIZED ("
            "SELECT * FROM unnest($2::bytea[], $3::bytea[], $4::bigint[]) AS u (sort, body, expect)), "
            f"made AS (INSERT INTO {table} (partition, sort, revision, body) "
            "SELECT $1, sort, 1, body FROM change WHERE expect = 0 ON CONFLICT DO NOTHING RETURNING 1), "
            f"changed AS (UPDATE {table} r SET revision = r.revision + 1, body = c.body FROM change c "
            "WHERE r.partition = $1 AND r.sort = c.sort AND r.revision = c.expect AND c.body IS NOT NULL RETURNING 1), "
            f"gone AS (DELETE FROM {table} r USING change c "
            "WHERE r.partition = $1 AND r.sort = c.sort AND r.revision = c.expect AND c.body IS NULL RETURNING 1) "
            # Where one condition does not hold, the division fails and the whole statement with it.
            "SELECT 1 / ((SELECT count(*) FROM made) + (SELECT count(*) FROM changed) + (SELECT count(*) FROM gone) "
            "= cardinality($2::bytea[]))::int = 1"
        ),
        up=f"{page} ORDER BY sort LIMIT $3",
        up_to=f"{page} AND sort < $3 ORDER BY sort LIMIT $4",
        down=f"{page} ORDER BY sort DESC LIMIT $3",
        down_from=f"{page} AND sort < $3 ORDER BY sort DESC LIMIT $4",
        scan=(
            f"SELECT partition, sort, revision, body FROM {table} WHERE (partition, sort) > ($1, $2) "
            "ORDER BY partition, sort LIMIT $3"
        ),
    )
