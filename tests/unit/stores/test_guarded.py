"""A store in somebody else's hands: bounded, and left alone when it is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from nagaya.errors import CloudUnreachable, ConditionFailed, StoreResting, StoreUnreachable
from nagaya.kernel.breaker import Breaker
from nagaya.stores.driver import Change, Row
from nagaya.stores.guarded import GuardedStore
from nagaya.stores.memory import MemoryHouse
from nagaya.testing.clock import ManualClock


class Moody:
    """A memory store that can hang or be away."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = self.at_once = self.most = 0

    async def _mood(self) -> None:
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.gate.wait()
            if self.is_away:
                raise ConnectionResetError
        finally:
            self.at_once -= 1

    async def get(self, partition: str, sort: bytes) -> Row | None:
        await self._mood()
        return await self._inner.get(partition, sort)

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        await self._mood()
        await self._inner.write(partition, changes)

    async def query(self, partition, **bounds):
        await self._mood()
        return await self._inner.query(partition, **bounds)

    async def scan(self, *, after, limit):
        await self._mood()
        return await self._inner.scan(after=after, limit=limit)

    async def close(self) -> None:
        await self._inner.close()


@pytest.fixture
async def moody() -> Moody:
    house = MemoryHouse()
    await house.create("acme")
    return Moody(await house.open("acme"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(moody: Moody, clock: ManualClock) -> GuardedStore:
    return GuardedStore(moody, Breaker(clock, failures=3), deadline_s=60, connections=2)


async def test_it_does_what_a_store_does(store: GuardedStore):
    assert await store.put("p", b"a", b"body") == 1
    assert (await store.get("p", b"a")).body == b"body"
    assert len(await store.query("p", limit=5)) == len(await store.scan(limit=5)) == 1
    with pytest.raises(ConditionFailed):
        await store.put("p", b"a", b"again")
    await store.delete("p", b"a", 1)


async def test_no_more_calls_run_at_once_than_there_are_connections(store: GuardedStore, moody: Moody):
    moody.gate.clear()
    calls = [asyncio.ensure_future(store.get("p", b"a")) for _ in range(10)]
    await asyncio.sleep(0.01)
    assert moody.at_once == 2
    moody.gate.set()
    assert await asyncio.gather(*calls) == [None] * 10
    assert moody.most == 2


async def test_a_store_that_is_away_is_left_alone_and_tried_again(store, moody: Moody, clock: ManualClock):
    moody.is_away = True
    for _ in range(3):
        with pytest.raises(StoreUnreachable):
            await store.get("p", b"a")
    with pytest.raises(StoreResting) as resting:
        await store.put("p", b"a", b"body")
    assert moody.calls == 3
    assert resting.value.retry_after_s == 1
    moody.is_away = False
    clock.advance(1.0)
    assert await store.put("p", b"a", b"body") == 1


async def test_reading_many_places_is_as_many_calls(store: GuardedStore, moody: Moody, clock: ManualClock):
    await store.put("p", b"a", b"body")
    sorts = [b"a", *(b"b%d" % n for n in range(9))]
    moody.gate.clear()
    reading = asyncio.ensure_future(store.get_many("p", sorts))
    await asyncio.sleep(0.01)
    assert moody.at_once == 2
    moody.gate.set()
    assert [row and row.body for row in await reading] == [b"body", *[None] * 9]
    moody.is_away = True
    with pytest.raises(StoreUnreachable):
        await store.get_many("p", sorts)
    for _ in range(3):
        with contextlib.suppress(StoreUnreachable):
            await store.get_many("p", sorts)
    with pytest.raises(StoreResting):
        await store.get_many("p", sorts)
    moody.is_away = False
    clock.advance(1.0)
    assert len(await store.get_many("p", sorts)) == 10
    assert await store.get_many("p", []) == []
    assert moody.at_once == 0


async def test_a_store_that_hangs_fails_by_its_deadline_also_for_those_who_wait_in_line(moody: Moody, clock):
    store = GuardedStore(moody, Breaker(clock, failures=3), deadline_s=0.2, connections=2)
    moody.gate.clear()
    outcomes = await asyncio.gather(*(store.get("p", b"a") for _ in range(4)), return_exceptions=True)
    assert all(isinstance(outcome, StoreUnreachable) for outcome in outcomes)
    assert moody.at_once == 0


async def test_a_condition_that_fails_says_that_the_store_is_there(store, moody: Moody):
    await store.put("p", b"a", b"body")
    for _ in range(5):
        with pytest.raises(ConditionFailed):
            await store.put("p", b"a", b"body")
    assert (await store.get("p", b"a")).revision == 1


async def test_a_cancelled_call_gives_its_place_back(store, moody: Moody):
    moody.gate.clear()
    calls = [asyncio.ensure_future(store.get("p", b"a")) for _ in range(3)]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    moody.gate.set()
    assert await store.get("p", b"a") is None


async def test_whoever_stood_in_line_while_the_store_was_found_away_does_not_ask_it_too(store, moody: Moody):
    moody.gate.clear()
    moody.is_away = True
    calls = [asyncio.ensure_future(store.get("p", b"a")) for _ in range(12)]
    await asyncio.sleep(0.01)
    moody.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    # Two at a time, until three have failed; the others were let through before that, and are turned away now.
    assert moody.calls <= 4
    assert sum(isinstance(outcome, StoreResting) for outcome in outcomes) >= 8
    assert all(isinstance(outcome, StoreUnreachable) for outcome in outcomes)


async def test_credentials_that_cannot_be_had_for_an_outage_count_as_one(store, moody: Moody, monkeypatch):
    async def away(partition: str, sort: bytes) -> None:
        moody.calls += 1
        raise CloudUnreachable(room="acme")

    monkeypatch.setattr(moody, "get", away)
    for _ in range(3):
        with pytest.raises(CloudUnreachable):
            await store.get("p", b"a")
    with pytest.raises(StoreResting):
        await store.get("p", b"a")
    assert moody.calls == 3
