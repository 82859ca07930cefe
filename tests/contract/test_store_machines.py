"""Every store beside one in memory, at random: whatever is asked of both, both answer alike."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nagaya.errors import ConditionFailed
from nagaya.stores import dynamodb, postgres
from nagaya.stores.driver import Change, Delete, Put, StoreHouse
from nagaya.stores.memory import MemoryStore
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.store import Store
from parts.aws import REGION, new_table, point_at, surroundings
from parts.postgres import APP, Postgres
from support.postgres_house import surroundings as postgres_surroundings

pytest_plugins = ["parts.ministack", "parts.postgres_server"]

KEYS = [b"a", b"a\x00", b"ab", b"b", b"\xff"]
ROOMS = ["acme", "acme-corp"]
keys = st.sampled_from(KEYS)
rooms = st.sampled_from(ROOMS)
partitions = st.sampled_from(["p", "p/1", "q"])
bodies = st.sampled_from([b"", b"1", b"x" * 2000])
changes = st.lists(
    st.tuples(keys, st.booleans(), bodies, st.integers(0, 3)), min_size=1, max_size=5, unique_by=lambda c: c[0]
)


class BesideMemory(RuleBasedStateMachine):
    """Two rooms of one house, each beside a store in memory that is its own."""

    open_house: ClassVar[Callable[[], Awaitable[StoreHouse]]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.models = {room: MemoryStore() for room in ROOMS}
        self.stores: dict[str, Store] = {}

    @initialize()
    def begin(self) -> None:
        async def opened() -> None:
            self.house = await type(self).open_house()
            for room in ROOMS:
                await self.house.create(room)
                self.stores[room] = Store(await self.house.open(room))

        self.loop.run_until_complete(opened())

    def teardown(self) -> None:
        async def closed() -> None:
            for room in ROOMS:
                await self.house.destroy(room)
            await self.house.close()

        if self.stores:
            self.loop.run_until_complete(closed())
        self.loop.close()

    @rule(room=rooms, partition=partitions, wanted=changes, right=st.booleans())
    def write(self, room: str, partition: str, wanted: list[Any], right: bool) -> None:
        """A batch, often with the revisions that lie there, sometimes with others; all of it or nothing."""
        self.loop.run_until_complete(self._write(room, partition, wanted, right))

    async def _write(self, room: str, partition: str, wanted: list[Any], right: bool) -> None:
        model = self.models[room]
        batch: list[Change] = []
        for key, deletes, body, revision in wanted:
            lies = await model.get(partition, key)
            expect = (lies.revision if lies else 0) if right else revision
            batch.append(Delete(key, expect) if deletes and expect else Put(key, body, expect))
        try:
            await model.write(partition, batch)
        except ConditionFailed:
            fits = False
        else:
            fits = True
        try:
            await self.stores[room].batch(partition, batch)
        except ConditionFailed:
            assert not fits
        else:
            assert fits

    @rule(
        room=rooms, partition=partitions, after=st.sampled_from([b"", *KEYS]), before=st.sampled_from([b"", *KEYS]),
        limit=st.integers(1, 6), down=st.booleans(),
    )  # fmt: skip
    def page(self, room: str, partition: str, after: bytes, before: bytes, limit: int, down: bool) -> None:
        asked = {"after": after, "before": before, "limit": limit, "descending": down}
        found = self.loop.run_until_complete(self.stores[room].query(partition, **asked))
        assert list(found) == list(self.loop.run_until_complete(self.models[room].query(partition, **asked)))

    @invariant()
    def each_room_holds_what_was_acknowledged_there(self) -> None:
        if self.stores:
            self.loop.run_until_complete(self._compare())

    async def _compare(self) -> None:
        for room in ROOMS:
            found = {(row.partition, row.row) async for row in self.stores[room].scan_all(page=3)}
            assert found == {(row.partition, row.row) for row in await self.models[room].scan(after=None, limit=1000)}


def run_beside_memory(open_house: Callable[[], Awaitable[StoreHouse]], examples: int) -> None:
    machine = type("Machine", (BesideMemory,), {"open_house": staticmethod(open_house)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite_answers_as_memory_does(tmp_path):
    async def opened() -> StoreHouse:
        return SqliteHouse(tempfile.mkdtemp(dir=tmp_path))

    run_beside_memory(opened, 25)


def test_postgresql_answers_as_memory_does(postgres: Postgres):
    name = asyncio.run(postgres.new_database())
    try:

        async def opened() -> StoreHouse:
            return await postgres_house(postgres, name)

        run_beside_memory(opened, 12)
    finally:
        asyncio.run(postgres.drop_database(name))


async def postgres_house(server: Postgres, database: str) -> StoreHouse:
    return await postgres.open_house(f"{server.url(database, user=APP)}?isolation=schema", postgres_surroundings())


def test_dynamodb_answers_as_memory_does(ministack, monkeypatch):
    point_at(monkeypatch, ministack.url)
    kinds = itertools.cycle(["", "?shared=true"])

    async def opened() -> StoreHouse:
        return await dynamodb.open_house(f"dynamodb://{REGION}/{new_table()}{next(kinds)}", surroundings())

    run_beside_memory(opened, 8)
