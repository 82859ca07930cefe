"""PostgreSQL as a store: a schema for each room, a database for each, or one shared table behind row-level security.

Every verb of the store is one statement and one round trip, and every statement is a transaction by itself: there is
none to be left open by a caller who goes away, and nothing that one use of a connection leaves to the next.

New records that come while others of their room are on their way are gathered (:mod:`postgres_together`); changes of
records that are there go by themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar, cast

import asyncpg

from nagaya.adapters import Surroundings
from nagaya.errors import ConditionFailed, NagayaError, StoreDamaged
from nagaya.stores.driver import ABSENT, Change, Delete, Row, ScannedRow
from nagaya.stores.postgres_address import Address, Dialer, dial, parse_address
from nagaya.stores.postgres_errors import is_answer, is_lost, is_repeatable, store_error
from nagaya.stores.postgres_layouts import DatabaseLayout, Layout, SchemaLayout, Statements
from nagaya.stores.postgres_pool import SILENCE_S, Held, Pool, Slot, pools
from nagaya.stores.postgres_shared import SharedLayout
from nagaya.stores.postgres_together import Together
from nagaya.stores.rooms import check_room

T = TypeVar("T")

TRIES: Final = 4
"""Of a write that the server undid (a deadlock) and asks for again."""

_row = cast("Callable[[Any], Row]", partial(tuple.__new__, Row))  # half the price of Row._make, fifty times a page


async def open_house(url: str, surroundings: Surroundings) -> PostgresHouse:
    """The house behind ``postgresql://HOST[:PORT]/DATABASE?isolation=schema|database|shared``.

    User and password come from the room's secret ``postgresql-connection``, or from the URL of an operator. Makes
    one connection to see that the server can be used as the address says. Raises ``InvalidValue``,
    ``AddressRefused``, ``StoreLoginRefused``, ``StorePermissionMissing``, ``StoreRoleUnsafe`` (shared: a role that
    could pass over row-level security), ``StoreDamaged`` or ``StoreUnreachable``.
    """
    address = parse_address(url)
    dialer = await dial(address, surroundings)
    house = PostgresHouse(address, dialer, deadline_s=surroundings.settings.store_deadline_s)
    try:
        await house.check()
    except BaseException:
        await house.close()
        raise
    return house


class PostgresHouse:
    """All rooms on one server, as one user, over the one bounded pool of connections that leads there."""

    def __init__(self, address: Address, dialer: Dialer, *, deadline_s: float = 10.0) -> None:
        self._deadline_s = deadline_s
        self._key = dialer.key
        self.pool: Final = pools.join(self._key, dialer.connect, in_all=address.connections)
        self._closed = False
        self._layout: Layout
        if address.isolation == "shared":
            self._layout = SharedLayout(address.database, self._lease)
        elif address.isolation == "database":
            self._layout = DatabaseLayout(address.database, self._lease, self.pool.drop_idle)
        else:
            self._layout = SchemaLayout(address.database, self._lease)

    async def check(self) -> None:
        """Raise unless the server answers and is set up for the address's isolation. May be repeated."""
        await self._act("", self._layout.needs_use, self._layout.check())

    async def exists(self, room: str) -> bool:
        """Whether the room has a store. Raises ``StoreDamaged`` where something else is in its place."""
        return await self._act(room, self._layout.needs_use, self._layout.exists(check_room(room)))

    async def create(self, room: str) -> None:
        await self._act(room, self._layout.needs_create, self._layout.create(check_room(room)))

    async def open(self, room: str) -> PostgresStore:
        if not await self.exists(room):
            raise StoreDamaged(place=room)
        slot = Slot(self._layout.database(room))
        return PostgresStore(room, self.pool, slot, self._layout.statements(room), self._layout.needs_use)

    async def destroy(self, room: str) -> None:
        await self._act(room, self._layout.needs_create, self._layout.destroy(check_room(room)))

    async def size_bytes(self, room: str) -> int:
        return await self._act(room, self._layout.needs_use, self._layout.size_bytes(check_room(room)))

    async def close(self) -> None:
        """Leave the pool, which others on this server may go on using. May be repeated."""
        if not self._closed:
            self._closed = True
            await pools.leave(self._key)

    async def _act(self, room: str, needs: str, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work
        except NagayaError:
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as failed:
            raise store_error(failed, place=room or "the server", needs=needs) from failed

    @asynccontextmanager
    async def _lease(self, database: str) -> AsyncIterator[asyncpg.Connection[Any]]:
        slot = Slot(database)
        held = await self.pool.wait(slot)
        try:
            yield held.connection
        except BaseException as failed:
            if isinstance(failed, NagayaError) or is_answer(failed):
                self.pool.give(slot, held)
            else:
                self.pool.throw_away(slot, held, doubt=False)
            raise
        else:
            self.pool.give(slot, held)


class PostgresStore:
    """One room's rows."""

    def __init__(self, room: str, pool: Pool, slot: Slot, statements: Statements, needs: str) -> None:
        self._room = room
        self._pool = pool
        self._slot = slot
        self._sql = statements
        self._lead = statements.lead
        self._needs = needs
        self._together = Together(self._put_new_many)

    async def get(self, partition: str, sort: bytes) -> Row | None:
        found = await self._read(self._sql.get, partition.encode("ascii"), sort)
        return _row(found[0]) if found else None

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        sql, place = self._sql, partition.encode("ascii")
        if len(changes) > 1:
            # In one order everywhere, so that two batches that meet wait for each other and do not cross.
            ordered = sorted(changes, key=lambda change: change.sort)
            await self._write(
                sql.batch,
                place,
                [change.sort for change in ordered],
                [None if isinstance(change, Delete) else change.body for change in ordered],
                [change.expect for change in ordered],
            )
            return
        change = changes[0]
        if isinstance(change, Delete):
            await self._write(sql.remove, place, change.sort, change.expect)
        elif change.expect == ABSENT:
            await self._put_new(place, change.sort, change.body)
        else:
            await self._write(sql.put_over, place, change.sort, change.body, change.expect)

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[Row]:
        sql, place = self._sql, partition.encode("ascii")
        if before:
            found = await self._read(sql.down_from if descending else sql.up_to, place, after, before, limit)
        else:
            found = await self._read(sql.down if descending else sql.up, place, after, limit)
        return list(map(_row, found))

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        partition, sort = ("", b"") if after is None else after
        found = await self._read(self._sql.scan, partition.encode("ascii"), sort, limit)
        return [ScannedRow(row[0].decode("ascii"), Row(row[1], row[2], row[3])) for row in found]

    async def close(self) -> None:
        """The connections belong to the house; nothing is held here."""

    # --- inside -----------------------------------------------------------------------------------------------

    async def _read(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """A read may be repeated: once, where the line or the server went away under it."""
        try:
            return await self._ask(sql, arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failed:
            if not is_lost(failed):
                raise store_error(failed, place=self._room, needs=self._needs) from failed
        try:
            return await self._ask(sql, arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failed:
            raise store_error(failed, place=self._room, needs=self._needs) from failed

    async def _put_new(self, place: bytes, sort: bytes, body: bytes) -> None:
        together = self._together
        if not together.may_begin((place, sort)):
            if not await together.put((place, sort), body):
                raise ConditionFailed
            return
        together.begin()
        try:
            await self._write(self._sql.put_new, place, sort, body)
        finally:
            together.end()

    async def _put_new_many(
        self, places: Sequence[tuple[bytes, bytes]], bodies: Sequence[bytes]
    ) -> set[tuple[bytes, bytes]]:
        partitions, sorts = [place[0] for place in places], [place[1] for place in places]
        return {(row[0], row[1]) for row in await self._answered(self._sql.put_new_many, partitions, sorts, bodies)}

    async def _write(self, sql: str, *arguments: Any) -> None:
        done = await self._answered(sql, *arguments)
        if not (done and done[0][0]):
            raise ConditionFailed

    async def _answered(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """A write is repeated only where the server says that it undid it."""
        left = TRIES
        while True:
            left -= 1
            try:
                return await self._ask(sql, arguments)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failed:
                if not (left and is_repeatable(failed)):
                    raise store_error(failed, place=self._room, needs=self._needs) from failed
                await asyncio.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - a pause, not a secret

    async def _ask(self, sql: str, arguments: tuple[Any, ...]) -> list[asyncpg.Record]:
        pool, slot = self._pool, self._slot
        held = pool.take(slot) or await pool.wait(slot)
        began_s = monotonic()
        try:
            found = await held.connection.fetch(sql, *self._lead, *arguments)
        except BaseException as failed:
            self._after(held, failed, monotonic() - began_s)
            raise
        pool.give(slot, held)
        return found

    def _after(self, held: Held, failed: BaseException, took_s: float) -> None:
        if is_answer(failed) and not held.connection.is_closed():
            self._pool.give(self._slot, held)
        else:
            # A caller that went away at once says nothing of the server; one that waited long does.
            doubt = is_lost(failed) or (isinstance(failed, asyncio.CancelledError) and took_s >= SILENCE_S)
            self._pool.throw_away(self._slot, held, doubt=doubt)
