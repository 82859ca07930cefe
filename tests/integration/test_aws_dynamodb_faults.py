"""What happens to a room in DynamoDB when calls are cut, refused, late or delivered twice: nothing acknowledged is
lost, and no half batch is seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from nagaya.errors import ConditionFailed, StoreDamaged, StoreUnreachable, TenantExists
from nagaya.settings import Settings
from nagaya.stores.driver import Delete, Put, Row
from nagaya.stores.dynamodb import DynamoHouse, open_house
from nagaya.stores.store import Store
from parts.aws import REGION, new_table, point_at, surroundings
from support.aws_front import Front
from support.tcp_proxy import Proxy

pytest_plugins = ["parts.ministack"]

BODY = b"a body as long as a sealed one is"
PATIENT = Settings(store_deadline_s=30.0)


@pytest.fixture
async def front(ministack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    async with Front(ministack.url) as front:
        point_at(monkeypatch, front.url)
        yield front


@pytest.fixture
async def house(front: Front) -> AsyncIterator[DynamoHouse]:
    house = await open_house(f"dynamodb://{REGION}/{new_table()}?shared=true", surroundings(settings=PATIENT))
    await house.create("acme")
    yield house
    front.script.clear()
    await house.close()


@pytest.fixture
async def store(house: DynamoHouse, front: Front) -> Store:
    store = Store(await house.open("acme"), deadline_s=60.0)
    await store.put("p", b"first", BODY)
    front.calls.clear()
    return store


class TestRoundTrips:
    async def test_each_append_and_each_page_is_one_call(self, store: Store, front: Front) -> None:
        for number in range(3):
            await store.put("p", b"%d" % number, BODY)
        assert front.calls == ["PutItem"] * 3
        await store.get("p", b"1")
        await store.query("p", limit=2, descending=True)
        await store.query("p", after=b"0", before=b"2")
        await store.batch("p", [Put(b"x", BODY), Delete(b"1", 1)])
        await store.delete("p", b"x", 1)
        assert front.calls[3:] == ["GetItem", "Query", "Query", "TransactWriteItems", "DeleteItem"]

    async def test_the_first_append_to_a_conversation_is_one_call_too(self, store: Store, front: Front) -> None:
        await store.put("new", b"k", BODY)
        assert front.calls == ["TransactWriteItems"]


class TestThrottling:
    @pytest.mark.parametrize("action", ["throttle", "fail", "cut"])
    async def test_a_call_that_was_not_done_is_repeated(self, store: Store, front: Front, action: str) -> None:
        front.script = [action] * 2
        await store.put("p", b"k", BODY)
        assert front.calls == ["PutItem"] * 3
        assert await store.get("p", b"k") == Row(b"k", 1, BODY)

    @pytest.mark.parametrize("action", ["conflict", "progress", "throttle"])
    async def test_a_batch_in_anothers_way_is_repeated(self, store: Store, front: Front, action: str) -> None:
        front.script = [action]
        await store.batch("p", [Put(b"a", BODY), Put(b"b", BODY)])
        assert front.calls == ["TransactWriteItems"] * 2

    async def test_throttling_without_end_ends_with_the_deadline(self, house: DynamoHouse, front: Front) -> None:
        store = Store(await house.open("acme"), deadline_s=3.0)
        front.calls.clear()
        front.script = ["throttle"] * 1000
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnreachable):
                await store.put("p", b"k", BODY)
        # The pauses grow, so three seconds hold no more tries than this, however quick the machine is.
        assert 2 < len(front.calls) < 30


class TestDuplicates:
    @pytest.mark.parametrize("action", ["lose", "fail after", "twice"])
    async def test_a_put_whose_answer_was_lost_counts_once(self, store: Store, front: Front, action: str) -> None:
        if action == "twice":
            front.script = ["lose", "twice"]
        else:
            front.script = [action]
        assert await store.put("p", b"k", BODY) == 1
        front.script = [action if action != "twice" else "lose"]
        assert await store.put("p", b"k", BODY + b"2", expect=1) == 2
        assert await store.get("p", b"k") == Row(b"k", 2, BODY + b"2")

    @pytest.mark.parametrize("action", ["lose", "fail after", "twice"])
    async def test_a_batch_delivered_twice_is_done_once(self, store: Store, front: Front, action: str) -> None:
        front.script = [action]
        await store.batch("p", [Put(b"first", BODY, expect=1), Put(b"b", BODY)])
        assert list(await store.query("p")) == [Row(b"b", 1, BODY), Row(b"first", 2, BODY)]

    async def test_a_lost_race_is_told_even_after_a_lost_answer(self, store: Store, front: Front) -> None:
        front.script = ["cut"]
        with pytest.raises(ConditionFailed):
            await store.put("p", b"first", BODY + b"other")
        front.script = ["cut"]
        with pytest.raises(ConditionFailed):
            await store.put("p", b"first", BODY, expect=4)
        front.script = ["cut"]
        with pytest.raises(ConditionFailed):
            await store.delete("p", b"first", expect=4)

    async def test_what_cannot_be_known_is_said_so(self, store: Store, front: Front) -> None:
        front.script = ["lose"]
        with pytest.raises(StoreUnreachable):
            await store.delete("p", b"first", expect=1)
        assert await store.get("p", b"first") is None
        front.script = ["lose"]
        with pytest.raises(StoreUnreachable):
            await store.put("p", b"short", b"x")
        assert await store.get("p", b"short") == Row(b"short", 1, b"x")
        await store.put("p", b"short", BODY, expect=1)
        front.script = ["cut"]
        with pytest.raises(StoreUnreachable):
            await store.put("p", b"short", BODY, expect=0)

    async def test_a_room_whose_making_lost_its_answer_is_made_once(self, house: DynamoHouse, front: Front) -> None:
        front.only = {"PutItem"}
        front.script = ["lose"]
        await house.create("globex")
        front.script = ["cut"]
        with pytest.raises(TenantExists):
            await house.create("globex")


class TestCuts:
    async def test_under_random_cuts_no_acknowledged_write_is_lost_and_no_batch_is_half(
        self, ministack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        behind = urlsplit(ministack.url)
        assert behind.port is not None
        async with Proxy("127.0.0.1", behind.port) as proxy:
            point_at(monkeypatch, f"http://127.0.0.1:{proxy.port}")
            house = await open_house(f"dynamodb://{REGION}/{new_table()}", surroundings(settings=PATIENT))
            await house.create("acme")
            store = Store(await house.open("acme"), deadline_s=60.0)
            rng = random.Random(7)
            kept: list[bytes] = []
            halves = 0
            done = 0
            writing = True

            async def cut() -> None:
                while writing:
                    # However slow the machine is, something is done between two cuts.
                    before = done
                    while writing and done == before:
                        await asyncio.sleep(rng.uniform(0.005, 0.03))
                    if rng.random() < 0.5:
                        proxy.cut_after_request = True
                    else:
                        proxy.cut()

            async def watch() -> None:
                nonlocal halves
                while writing:
                    try:
                        names = {row.sort for row in await store.query("p", limit=1000)}
                    except StoreUnreachable:
                        continue
                    halves += sum((name[:-1] + b"b") not in names for name in names if name.endswith(b"a"))
                    await asyncio.sleep(0.01)

            async def write(writer: int) -> None:
                nonlocal done
                for number in range(8):
                    name = b"%d-%d-" % (writer, number)
                    try:
                        await store.batch("p", [Put(name + b"a", BODY), Put(name + b"b", BODY)])
                        done += 1
                        await store.put("q", name, BODY + name)
                    except StoreUnreachable:
                        continue
                    finally:
                        done += 1
                    kept.append(name)

            watching = [asyncio.create_task(cut()), asyncio.create_task(watch())]
            await asyncio.gather(*(write(writer) for writer in range(6)))
            writing = False
            await asyncio.gather(*watching)
            proxy.cut_after_request = False
            assert len(kept) > 24
            assert halves == 0
            pairs = {row.sort for row in await store.query("p", limit=1000)}
            assert {name + end for name in kept for end in (b"a", b"b")} <= pairs
            assert {row.sort for row in await store.query("q", limit=1000)} >= set(kept)
            assert {name[:-1] for name in pairs if name.endswith(b"a")} == {
                name[:-1] for name in pairs if name.endswith(b"b")
            }
            assert len([row async for row in store.scan_all()]) == len(pairs) + len(await store.query("q", limit=1000))
            await house.close()

    async def test_a_half_open_line_ends_with_the_deadline_and_the_next_call_is_served(
        self, ministack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        behind = urlsplit(ministack.url)
        assert behind.port is not None
        async with Proxy("127.0.0.1", behind.port) as proxy:
            point_at(monkeypatch, f"http://127.0.0.1:{proxy.port}")
            house = await open_house(f"dynamodb://{REGION}/{new_table()}", surroundings(settings=PATIENT))
            await house.create("acme")
            driver = await house.open("acme")
            store, hurried = Store(driver, deadline_s=60.0), Store(driver, deadline_s=0.3)
            await store.put("p", b"k", BODY)
            async with asyncio.timeout(20):
                proxy.swallow = True
                with pytest.raises(StoreUnreachable):
                    await hurried.get("p", b"k")
                proxy.swallow = False
                proxy.refuse = True
                proxy.cut()
                with pytest.raises(StoreUnreachable):
                    await hurried.put("p", b"k2", BODY)
            proxy.refuse = False
            assert await store.get("p", b"k") == Row(b"k", 1, BODY)
            await house.close()


class TestLargeBodies:
    async def items(self, ministack, house: DynamoHouse) -> int:
        found = ministack.call("DynamoDB_20120810", "Scan", TableName=house._name, Select="COUNT")
        return found["Count"]

    async def test_parts_go_with_the_body_they_belong_to(self, ministack, house: DynamoHouse, store: Store) -> None:
        before = await self.items(ministack, house)
        sizes = (900_000, 700_000, 100, 5_000_000, 4_500_000, 900_000)
        for revision, size in enumerate(sizes):
            body = bytes([revision]) * size
            assert await store.put("p", b"big", body, expect=revision) == revision + 1
            row = await store.get("p", b"big")
            assert row == Row(b"big", revision + 1, body)
            with pytest.raises(ConditionFailed):
                await store.put("p", b"big", b"y" * 5_000_000, expect=revision)
        assert [len(row.body) for row in await store.query("p")] == [900_000, len(BODY)]
        await store.delete("p", b"big", expect=len(sizes))
        await self.settled(house)
        assert await self.items(ministack, house) == before

    async def test_a_batch_larger_than_a_transaction_is_done_whole_or_not_at_all(
        self, ministack, house: DynamoHouse, store: Store
    ) -> None:
        changes = [Put(b"%03d" % number, bytes([number]) * 60_000) for number in range(100)]
        await store.batch("wide", changes)
        rows = await store.query("wide", limit=1000)
        assert [(row.sort, row.body) for row in rows] == [(each.sort, each.body) for each in changes]
        count = await self.items(ministack, house)
        again = [Put(each.sort, b"n" * 60_000, expect=1) for each in changes[:-1]] + [Put(b"099", b"", expect=2)]
        with pytest.raises(ConditionFailed):
            await store.batch("wide", again)
        assert await store.query("wide", limit=1000) == rows
        await self.settled(house)
        assert await self.items(ministack, house) == count
        await store.batch("wide", [Delete(each.sort, 1) for each in changes])
        await self.settled(house)
        assert list(await store.query("wide")) == []

    async def test_a_reader_beside_a_writer_sees_one_body_or_the_other(self, store: Store) -> None:
        await store.put("p", b"big", b"\0" * 800_000)
        ended = False

        async def read() -> None:
            while not ended:
                row = await store.get("p", b"big")
                assert row is not None
                assert row.body == bytes([row.revision - 1]) * 800_000

        reading = asyncio.create_task(read())
        for revision in range(1, 8):
            await store.put("p", b"big", bytes([revision]) * 800_000, expect=revision)
        ended = True
        await reading

    async def test_parts_that_are_gone_are_damage(self, ministack, house: DynamoHouse, store: Store) -> None:
        await store.put("p", b"big", b"x" * 800_000)
        driver = await house.open("acme")
        item = await driver._item("p", b"big")
        assert item is not None
        from nagaya.stores.dynamodb_items import part_keys

        await driver._table.delete_many(part_keys("acme", "p", b"big", item["parts"]["B"])[:1])
        with pytest.raises(StoreDamaged):
            await store.get("p", b"big")

    async def test_destroying_a_room_leaves_nothing_of_it(self, ministack, house: DynamoHouse, store: Store) -> None:
        before = await self.items(ministack, house)
        await house.create("globex")
        other = Store(await house.open("globex"))
        for number in range(3):
            await other.put(f"p{number}", b"k", b"x" * 500_000)
        await house.destroy("globex")
        assert await self.items(ministack, house) == before
        assert await store.get("p", b"first") is not None
        assert not await house.exists("globex")

    async def settled(self, house: DynamoHouse) -> None:
        while house._tidying:
            await asyncio.wait(house._tidying)
