"""Cosmos DB beside a store in memory, at random, while connections are cut and requests are refused."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from nagaya.errors import ConditionFailed, StoreUnreachable
from nagaya.stores import cosmos_items
from nagaya.stores.cosmos import CosmosHouse
from nagaya.stores.driver import Change, Delete, Put
from nagaya.stores.memory import MemoryStore
from nagaya.stores.store import Store
from parts.azure_cloud import AzureCloud
from parts.cosmos_shim import Fault

pytest_plugins = ["parts.azure_fixtures"]

KEYS = [b"a", b"a\x00", b"b", b"\xff", b"~"]
keys = st.sampled_from(KEYS)
partitions = st.sampled_from(["p", "p/1", "%"])
bodies = st.sampled_from([b"", b"1", b"22", b"x" * 3000])  # the last does not fit into an item here
changes = st.lists(
    st.tuples(keys, st.booleans(), bodies, st.integers(0, 3)), min_size=1, max_size=4, unique_by=lambda c: c[0]
)
faults = st.sampled_from([None, None, None, "cut", "cut-after", "429", "503", "503-after"])


class BesideMemory(RuleBasedStateMachine):
    """Whatever happens on the way, what lies there is what was acknowledged, or the whole of what was in doubt."""

    cloud: AzureCloud

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = MemoryStore()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(shared=st.booleans())
    def begin(self, shared: bool) -> None:
        async def opened() -> Store:
            account = self.cloud.open_account(self.cloud.key_secret())
            database = self.cloud.new_database()
            self.house = CosmosHouse(account, name=self.cloud.account, database=database, shared=shared)
            await self.house.create("acme")
            await self.house.create("acme-corp")
            other = Store(await self.house.open("acme-corp"))
            await other.put("p", b"a", b"another's")
            return Store(await self.house.open("acme"))

        self.store = self.run(opened())

    def teardown(self) -> None:
        self.cloud.restore()
        if hasattr(self, "house"):
            self.run(self.house.close())
        self.loop.close()

    @rule(partition=partitions, wanted=changes, fault=faults, right=st.booleans())
    def write(self, partition: str, wanted: list[Any], fault: str | None, right: bool) -> None:
        """A batch, mostly with the revisions that lie there, sometimes with others."""
        self.run(self._write(partition, wanted, fault, right))

    async def _write(self, partition: str, wanted: list[Any], fault: str | None, right: bool) -> None:
        batch: list[Change] = []
        for key, deletes, body, revision in wanted:
            lies = await self.model.get(partition, key)
            expect = (lies.revision if lies else 0) if right else revision
            batch.append(Delete(key, expect) if deletes and expect else Put(key, body, expect))
        self.cloud.cosmos.faults[:] = [Fault(fault, wait_s=0.001)] if fault else []
        try:
            await self.store.batch(partition, batch)
        except ConditionFailed:
            self.cloud.cosmos.faults.clear()
            assert not await self._fits(partition, batch)
            return
        except StoreUnreachable:
            self.cloud.cosmos.faults.clear()
            # In doubt: all of it, or nothing. The next comparison sees to it that there is nothing in between.
            first = await self.store.get(partition, batch[0].sort)
            if await self._fits(partition, batch) and first != await self.model.get(partition, batch[0].sort):
                await self.model.write(partition, batch)
            return
        self.cloud.cosmos.faults.clear()
        assert await self._fits(partition, batch)
        await self.model.write(partition, batch)

    async def _fits(self, partition: str, batch: list[Change]) -> bool:
        for change in batch:
            lies = await self.model.get(partition, change.sort)
            if (lies.revision if lies else 0) != change.expect:
                return False
        return True

    @rule(
        partition=partitions,
        after=keys,
        before=st.sampled_from([b"", *KEYS]),
        limit=st.integers(1, 4),
        down=st.booleans(),
    )
    def page(self, partition: str, after: bytes, before: bytes, limit: int, down: bool) -> None:
        wanted = {"after": after, "before": before, "limit": limit, "descending": down}
        assert list(self.run(self.store.query(partition, **wanted))) == list(
            self.run(self.model.query(partition, **wanted))
        )

    @invariant()
    def lies_what_was_acknowledged(self) -> None:
        if hasattr(self, "store"):
            self.run(self._compare())

    async def _compare(self) -> None:
        found = {(row.partition, row.row) async for row in self.store.scan_all(page=random.Random(1).randint(1, 4))}
        wanted = {(row.partition, row.row) for row in await self.model.scan(after=None, limit=1000)}
        assert found == wanted


def test_at_random_and_under_faults_the_store_is_what_was_acknowledged(azure, monkeypatch):
    monkeypatch.setattr(cosmos_items, "PIECE_BYTES", 1000)
    monkeypatch.setattr(cosmos_items, "BATCH_BYTES", 2500)
    BesideMemory.cloud = azure
    run_state_machine_as_test(
        BesideMemory,
        settings=settings(
            max_examples=12,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
