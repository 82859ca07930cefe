"""The contract of a store, as tests: what every adapter must keep, for those who write one.

An adapter's test file subclasses :class:`StoreContract`, gives a ``house`` fixture and declares its traits::

    class TestMine(StoreContract):
        traits = StoreTraits(durable=True)

        @pytest.fixture
        async def house(self, tmp_path):
            house = MyHouse(tmp_path)
            yield house
            await house.close()

        async def reopened(self, house):
            await house.close()
            return MyHouse(house.address)

It needs pytest and pytest-asyncio in its ``auto`` mode.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from nagaya.errors import ConditionFailed, InvalidValue, SessionClosed, StoreDamaged, TenantExists, TenantIdInvalid
from nagaya.stores.driver import MAX_BATCH, MAX_PAGE, Change, Delete, Put, Row, StoreHouse
from nagaya.stores.store import MAX_PARTITION, MAX_SORT, Store

T = TypeVar("T")

ODD_SORT_KEYS = (
    b"\x00", b"\x00\x00", b"\x00\x01", b"\x01", b" ", b"'", b"--", b"A", b"B", b"a", b"a\x00", b"a\x00b", b"aa", b"b",
    b"\x7f", b"\x80", b"\xc3\x28", b"\xed\xa0\x80", b"\xff", b"\xff" * MAX_SORT,
)  # fmt: skip
"""Sort keys in their order: byte by byte, a prefix before what it begins."""

ODD_ROOMS = (
    "", "a", "ab", ".", "..", "../acme", "acme/..", "acme/", "/acme", "acme\x00", "ACME", "acme ", "a" * 64,
    "-acme", "acme-", "acme_corp", "acme.db", "acme\\x", "ａｃｍｅ", "acme\n", "_", "_/", "_-x", "_X",
)  # fmt: skip
"""Names that no room may have."""


@dataclass(frozen=True)
class StoreTraits:
    """What an adapter can do. ``durable``: what was acknowledged is there after the house was closed and opened.
    ``batches``: several changes at once are done whole; only a stand-in of a real database may lack it."""

    durable: bool = True
    batches: bool = True
    body_limit_bytes: int = 8 * 1024 * 1024


def sort_key(number: int) -> bytes:
    """A sort key whose order is the number's."""
    return number.to_bytes(8, "big")


def _shuffled(things: Iterable[T]) -> list[T]:
    mixed = list(things)
    random.Random(5).shuffle(mixed)  # noqa: S311 - an order that every run repeats, not a secret
    return mixed


class StoreContract:
    """Every promise of :mod:`nagaya.stores.driver`, asked through :class:`nagaya.stores.store.Store`."""

    traits = StoreTraits()

    async def reopened(self, house: StoreHouse) -> StoreHouse:
        """Close ``house`` and open another at the same address. An adapter that is durable must give it."""
        raise AssertionError("a durable adapter overrides reopened()")

    @pytest.fixture
    async def store(self, house: StoreHouse) -> Store:
        await house.create("acme")
        return Store(await house.open("acme"))

    # --- one record

    async def test_what_was_put_is_read_back_byte_for_byte(self, store: Store) -> None:
        body = bytes(range(256)) * 5
        assert await store.put("p", b"k", body) == 1
        assert await store.get("p", b"k") == Row(b"k", 1, body)

    async def test_an_absent_record_is_none(self, store: Store) -> None:
        assert await store.get("p", b"k") is None
        await store.put("p", b"k", b"1")
        assert await store.get("p", b"other") is None
        assert await store.get("other", b"k") is None

    async def test_an_empty_body_is_a_body(self, store: Store) -> None:
        await store.put("p", b"k", b"")
        assert await store.get("p", b"k") == Row(b"k", 1, b"")

    async def test_a_body_of_the_greatest_size_comes_back(self, store: Store) -> None:
        limit = self.traits.body_limit_bytes
        body = (bytes(range(251)) * (limit // 251 + 1))[:limit]
        await store.put("p", b"k", body)
        row = await store.get("p", b"k")
        assert row is not None
        assert row.body == body
        assert len((await store.query("p"))[0][2]) == len(body)

    async def test_a_revision_counts_from_one_upwards(self, store: Store) -> None:
        for revision in range(4):
            assert await store.put("p", b"k", b"%d" % revision, expect=revision) == revision + 1
        assert await store.get("p", b"k") == Row(b"k", 4, b"3")

    async def test_a_put_over_something_unexpected_is_refused_and_changes_nothing(self, store: Store) -> None:
        await store.put("p", b"k", b"first")
        for expect in (0, 2, 7):
            with pytest.raises(ConditionFailed):
                await store.put("p", b"k", b"second", expect=expect)
        with pytest.raises(ConditionFailed):
            await store.put("p", b"nothing here", b"x", expect=1)
        with pytest.raises(ConditionFailed):
            await store.put("nowhere", b"k", b"x", expect=1)
        assert await store.get("p", b"k") == Row(b"k", 1, b"first")
        assert await store.get("p", b"nothing here") is None

    async def test_a_delete_needs_the_revision_it_removes(self, store: Store) -> None:
        await store.put("p", b"k", b"1")
        with pytest.raises(ConditionFailed):
            await store.delete("p", b"k", expect=2)
        assert await store.get("p", b"k") is not None
        await store.delete("p", b"k", expect=1)
        assert await store.get("p", b"k") is None
        with pytest.raises(ConditionFailed):
            await store.delete("p", b"k", expect=1)
        with pytest.raises(ConditionFailed):
            await store.delete("nowhere", b"k", expect=1)

    async def test_a_deleted_place_may_be_written_anew_from_revision_one(self, store: Store) -> None:
        await store.put("p", b"k", b"1")
        await store.delete("p", b"k", expect=1)
        assert await store.put("p", b"k", b"2") == 1
        assert await store.get("p", b"k") == Row(b"k", 1, b"2")

    async def test_partition_names_are_told_apart_exactly(self, store: Store) -> None:
        names = [
            "conv/1",
            "conv/10",
            "CONV/1",
            "conv/1 ",
            "'; --",
            "%",
            "_",
            "~",
            "a" * MAX_PARTITION,
            "\x00",
            "\x00\x00",
        ]
        for name in names:
            await store.put(name, b"k", name.encode())
        for name in names:
            assert [row[2] for row in await store.query(name)] == [name.encode()]

    # --- ranges

    async def test_rows_are_ordered_by_their_bytes(self, store: Store) -> None:
        keys = _shuffled(ODD_SORT_KEYS)
        for key in keys:
            await store.put("p", key, key)
        assert [row[0] for row in await store.query("p")] == list(ODD_SORT_KEYS)
        assert [row[0] for row in await store.query("p", descending=True)] == list(reversed(ODD_SORT_KEYS))
        for key in keys:
            assert await store.get("p", key) == Row(key, 1, key)

    async def test_both_ends_of_a_range_lie_outside_it(self, store: Store) -> None:
        await self._fill(store, 10)
        numbers = range(3, 7)
        rows = await store.query("p", after=sort_key(2), before=sort_key(7))
        assert [row[0] for row in rows] == [sort_key(number) for number in numbers]
        rows = await store.query("p", after=sort_key(2), before=sort_key(7), descending=True)
        assert [row[0] for row in rows] == [sort_key(number) for number in reversed(numbers)]
        assert list(await store.query("p", after=sort_key(4), before=sort_key(5))) == []
        assert list(await store.query("p", after=sort_key(7), before=sort_key(3))) == []
        assert list(await store.query("p", after=sort_key(4), before=sort_key(4), descending=True)) == []
        assert list(await store.query("nowhere")) == []

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("limit", [1, 3, 7, 100])
    async def test_pages_give_every_row_once_in_order(self, store: Store, descending: bool, limit: int) -> None:
        await self._fill(store, 23)
        seen: list[bytes] = []
        page = await store.query("p", limit=limit, descending=descending)
        while page:
            assert len(page) <= limit
            seen += [row[0] for row in page]
            end = {"before": seen[-1]} if descending else {"after": seen[-1]}
            page = await store.query("p", limit=limit, descending=descending, **end)
        expected = [sort_key(number) for number in range(23)]
        assert seen == (expected[::-1] if descending else expected)

    async def test_rows_of_another_partition_are_never_in_a_page(self, store: Store) -> None:
        for partition in ("a", "b", "ab"):
            for number in range(5):
                await store.put(partition, sort_key(number), partition.encode())
        for partition in ("a", "b", "ab"):
            assert {row[2] for row in await store.query(partition)} == {partition.encode()}

    # --- batches

    async def test_a_batch_is_done_whole(self, store: Store) -> None:
        if not self.traits.batches:
            pytest.skip("trait batches is missing")
        await store.put("p", b"old", b"1")
        await store.put("p", b"gone", b"1")
        await store.batch("p", [Put(b"new", b"2"), Put(b"old", b"2", expect=1), Delete(b"gone", expect=1)])
        assert list(await store.query("p")) == [Row(b"new", 1, b"2"), Row(b"old", 2, b"2")]

    async def test_a_batch_of_the_greatest_size_is_done(self, store: Store) -> None:
        if not self.traits.batches:
            pytest.skip("trait batches is missing")
        await store.batch("p", [Put(sort_key(number), b"x") for number in range(MAX_BATCH)])
        assert len(await store.query("p", limit=MAX_PAGE)) == MAX_BATCH

    @pytest.mark.parametrize("bad", [Put(b"old", b"x"), Put(b"none", b"x", expect=1), Delete(b"old", expect=2)])
    @pytest.mark.parametrize("place", [0, 1, 2])
    async def test_a_batch_with_one_broken_condition_does_nothing(self, store: Store, bad: Change, place: int) -> None:
        if not self.traits.batches:
            pytest.skip("trait batches is missing")
        await store.put("p", b"old", b"1")
        await store.put("p", b"older", b"1")
        changes: list[Change] = [Put(b"new", b"2"), Delete(b"older", expect=1)]
        changes.insert(place, bad)
        with pytest.raises(ConditionFailed):
            await store.batch("p", changes)
        assert list(await store.query("p")) == [Row(b"old", 1, b"1"), Row(b"older", 1, b"1")]

    # --- at once

    async def test_of_many_who_put_at_one_place_exactly_one_wins(self, store: Store) -> None:
        for round_number in range(5):
            key = sort_key(round_number)
            tries = [store.put("p", key, b"%d" % number) for number in range(40)]
            results = await asyncio.gather(*tries, return_exceptions=True)
            winners = [number for number, result in enumerate(results) if result == 1]
            assert len(winners) == 1
            assert sum(isinstance(result, ConditionFailed) for result in results) == 39
            assert await store.get("p", key) == Row(key, 1, b"%d" % winners[0])

    async def test_a_counter_raised_by_many_loses_no_raise(self, store: Store) -> None:
        await store.put("p", b"n", b"0")

        async def raise_by_one() -> None:
            while True:
                row = await store.get("p", b"n")
                assert row is not None
                try:
                    await store.put("p", b"n", b"%d" % (int(row.body) + 1), expect=row.revision)
                except ConditionFailed:
                    continue
                return

        await asyncio.gather(*(raise_by_one() for _ in range(20)))
        assert await store.get("p", b"n") == Row(b"n", 21, b"20")

    async def test_a_lost_race_does_not_spoil_writes_beside_it(self, store: Store) -> None:
        if not self.traits.batches:
            pytest.skip("trait batches is missing")
        await store.put("p", b"taken", b"1")
        good = [store.put(f"p{number}", b"k", b"x") for number in range(10)]
        bad = [store.put("p", b"taken", b"2") for _ in range(10)]
        whole = [store.batch(f"q{number}", [Put(b"a", b"x"), Put(b"b", b"x")]) for number in range(10)]
        half = [store.batch("p", [Put(b"half-%d" % number, b"x"), Put(b"taken", b"x")]) for number in range(10)]
        results = await asyncio.gather(*good, *bad, *whole, *half, return_exceptions=True)
        assert results[:10] == [1] * 10
        assert results[20:30] == [None] * 10
        assert all(isinstance(result, ConditionFailed) for result in (*results[10:20], *results[30:]))
        assert list(await store.query("p")) == [Row(b"taken", 1, b"1")]

    async def test_an_acknowledged_write_is_seen_by_whoever_reads_next(self, store: Store) -> None:
        async def append_and_read(partition: str) -> None:
            for number in range(25):
                await store.put(partition, sort_key(number), b"x")
                assert (await store.query(partition, limit=1, descending=True))[0][0] == sort_key(number)
                assert await store.get(partition, sort_key(number)) is not None

        await asyncio.gather(*(append_and_read(f"p{number}") for number in range(8)))

    async def test_a_cancelled_writer_does_not_harm_the_others(self, store: Store) -> None:
        tasks = [asyncio.create_task(store.put("p", sort_key(number), b"x")) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [1] * 10
        kept = {row[0] for row in await store.query("p")}
        assert kept >= {sort_key(number) for number in range(1, 20, 2)}
        assert await store.put("p", b"after", b"x") == 1

    # --- scans

    async def test_a_scan_gives_every_row_of_every_partition_once_in_the_order_of_places(self, store: Store) -> None:
        expected = []
        for partition in ("b", "a", "c/1", "c", "c-1", "c_1", "C", "b0"):
            for number in range(7):
                await store.put(partition, sort_key(number), b"x")
                expected.append((partition, sort_key(number)))
        expected.sort()
        for page in (1, 5, 7, 100):
            assert [(row.partition, row.row.sort) async for row in store.scan_all(page=page)] == expected

    async def test_a_scan_of_nothing_ends(self, store: Store) -> None:
        assert [row async for row in store.scan_all()] == []

    async def test_a_scan_goes_on_where_it_was_though_rows_come_and_go(self, store: Store) -> None:
        for partition in ("a", "b", "c"):
            for number in range(6):
                await store.put(partition, sort_key(number), b"x")
        first = await store.scan(limit=8)
        place = (first[-1].partition, first[-1].row.sort)
        await store.delete(place[0], place[1], expect=1)
        await store.put("a", b"\x00", b"late")
        await store.put(place[0], sort_key(3), b"changed", expect=1)
        found = [(row.partition, row.row.sort) for row in first]
        while rows := await store.scan(after=place, limit=4):
            found += [(row.partition, row.row.sort) for row in rows]
            place = (rows[-1].partition, rows[-1].row.sort)
        always = {(name, sort_key(number)) for name in "abc" for number in range(6)}
        assert len(found) == len(set(found))
        assert always <= set(found)

    # --- rooms

    async def test_the_same_place_in_two_rooms_is_two_places(self, house: StoreHouse) -> None:
        stores = {}
        for room in ("acme", "acme-corp", "_platform"):
            await house.create(room)
            stores[room] = Store(await house.open(room))
            await stores[room].put("p", b"k", room.encode())
        for room, store in stores.items():
            assert [row.row.body async for row in store.scan_all()] == [room.encode()]
        await stores["acme"].delete("p", b"k", expect=1)
        assert await stores["acme-corp"].get("p", b"k") is not None

    async def test_a_room_is_made_once(self, house: StoreHouse) -> None:
        await house.create("acme")
        await Store(await house.open("acme")).put("p", b"k", b"1")
        with pytest.raises(TenantExists):
            await house.create("acme")
        results = await asyncio.gather(*(house.create("race") for _ in range(8)), return_exceptions=True)
        assert [result for result in results if not isinstance(result, TenantExists)] == [None]
        assert await Store(await house.open("acme")).get("p", b"k") is not None

    async def test_a_room_that_was_never_made_does_not_open(self, house: StoreHouse) -> None:
        with pytest.raises(StoreDamaged):
            await house.open("acme")

    async def test_a_destroyed_room_is_gone_and_its_neighbour_is_not(self, house: StoreHouse) -> None:
        for room in ("acme", "acme2"):
            await house.create(room)
            await Store(await house.open(room)).put("p", b"k", b"x")
        await house.destroy("acme")
        await house.destroy("acme")
        await house.destroy("never-made")
        with pytest.raises(StoreDamaged):
            await house.open("acme")
        assert await Store(await house.open("acme2")).get("p", b"k") is not None
        await house.create("acme")
        assert await Store(await house.open("acme")).get("p", b"k") is None

    async def test_the_size_of_a_room_grows_with_what_lies_in_it(self, house: StoreHouse) -> None:
        await house.create("acme")
        empty = await house.size_bytes("acme")
        await Store(await house.open("acme")).put("p", b"k", b"x" * 100_000)
        assert await house.size_bytes("acme") >= empty + 100_000

    @pytest.mark.parametrize("room", ODD_ROOMS)
    async def test_a_name_that_could_lead_elsewhere_is_refused(self, house: StoreHouse, room: str) -> None:
        for call in (house.create, house.open, house.destroy, house.size_bytes):
            with pytest.raises(TenantIdInvalid):
                await call(room)

    async def test_acknowledged_writes_are_there_after_reopening(self, house: StoreHouse) -> None:
        if not self.traits.durable:
            pytest.skip("trait durable is missing")
        await house.create("acme")
        store = Store(await house.open("acme"))
        await self._fill(store, 30)
        await store.put("p", sort_key(3), b"second", expect=1)
        await store.delete("p", sort_key(4), expect=1)
        before = list(await store.query("p"))
        again = await self.reopened(house)
        try:
            assert list(await Store(await again.open("acme")).query("p")) == before
        finally:
            await again.close()

    # --- the portable class

    async def test_what_is_past_a_limit_is_refused(self, store: Store) -> None:
        for partition in ("", "a" * (MAX_PARTITION + 1), "会話", "\ud800"):
            with pytest.raises(InvalidValue):
                await store.get(partition, b"k")
            with pytest.raises(InvalidValue):
                await store.scan(after=(partition, b"k"))
        for sort in (b"", b"k" * (MAX_SORT + 1)):
            with pytest.raises(InvalidValue):
                await store.put("p", sort, b"")
            with pytest.raises(InvalidValue):
                await store.get("p", sort)
        for limit in (0, -1, MAX_PAGE + 1):
            with pytest.raises(InvalidValue):
                await store.query("p", limit=limit)
            with pytest.raises(InvalidValue):
                await store.scan(limit=limit)
        wrong: list[list[Change]] = [
            [], [Put(sort_key(n), b"") for n in range(MAX_BATCH + 1)], [Put(b"k", b""), Delete(b"k", 1)],
            [Put(b"k", b"", -1)], [Delete(b"k", 0)],
        ]  # fmt: skip
        for changes in wrong:
            with pytest.raises(InvalidValue):
                await store.batch("p", changes)
        assert [row async for row in store.scan_all()] == []

    async def test_a_closed_store_refuses_and_may_be_closed_again(self, store: Store) -> None:
        await store.put("p", b"k", b"x")
        await store.close()
        await store.close()
        with pytest.raises(SessionClosed):
            await store.get("p", b"k")
        with pytest.raises(SessionClosed):
            await store.put("p", b"k2", b"x")

    @staticmethod
    async def _fill(store: Store, count: int) -> None:
        for number in _shuffled(range(count)):
            await store.put("p", sort_key(number), b"%d" % number)
