"""The cache in DynamoDB keeps the contract on two stand-ins; what lies there tells nobody anything, and ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.cache.dynamodb import LARGEST_BYTES, MARK_BYTES, DynamoCache
from nagaya.cache.dynamodb_line import DynamoLine
from nagaya.cache.dynamodb_permits import DynamoPermits
from nagaya.errors import CacheUnreachable, SettingsInvalid
from nagaya.testing.cache import LOOK_ALIKES, CacheContract
from nagaya.testing.clock import ManualClock
from parts.aws import REGION, clock_of_today, new_table, point_at, surroundings
from parts.ministack import Ministack
from support.aws_front import Front

pytest_plugins = ["parts.ministack", "parts.dynalite"]

PATIENT_S = 30.0
"""A stand-in on a busy machine is not away."""


class TestDynamoCache(CacheContract):
    @pytest.fixture(autouse=True)
    def stand_in(self, ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
        point_at(monkeypatch, ministack.url)

    @pytest.fixture
    def clock(self) -> ManualClock:
        return clock_of_today()

    @pytest.fixture
    async def cache(self, stand_in: None, clock: ManualClock) -> AsyncIterator[DynamoCache]:
        opened = DynamoCache(line_to(new_table(), clock))
        yield opened
        await opened.close()


class TestDynamoCacheOnDynalite(TestDynamoCache):
    """On a second database of the same protocol, which removes nothing by itself."""

    @pytest.fixture(autouse=True)
    def stand_in(self, dynalite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        point_at(monkeypatch, dynalite_url)


def line_to(table: str, clock: Any = None, *, deadline_s: float = PATIENT_S) -> DynamoLine:
    around = surroundings("_platform", **({} if clock is None else {"clock": clock}))
    return DynamoLine(f"dynamodb://{REGION}/{table}", around, deadline_s=deadline_s)


class Table:
    """A table on the stand-in as its owner sees it."""

    def __init__(self, ministack: Ministack) -> None:
        self._ministack = ministack
        self.name = new_table()

    def call(self, operation: str, **body: Any) -> dict[str, Any]:
        return self._ministack.call("DynamoDB_20120810", operation, TableName=self.name, **body)

    def items(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("Scan")["Items"]
        return found


@pytest.fixture
def table(ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> Table:
    point_at(monkeypatch, ministack.url)
    return Table(ministack)


@pytest.fixture
def clock() -> ManualClock:
    return clock_of_today()


@pytest.fixture
async def cache(table: Table, clock: ManualClock) -> AsyncIterator[DynamoCache]:
    opened = DynamoCache(line_to(table.name, clock))
    yield opened
    await opened.close()


async def test_row_17_no_two_places_share_a_name_and_no_name_tells_anything(cache: DynamoCache, table: Table) -> None:
    for place in LOOK_ALIKES:
        await cache.set(*place, b"x")
    names = [item["pk"]["S"] for item in table.items()]
    assert len(names) == len(set(names)) == len(LOOK_ALIKES) + len({room for room, _ in LOOK_ALIKES})
    assert all(re.fullmatch(r"[me]:[0-9a-f]{64}", name) for name in names)


async def test_everything_in_the_table_ends_and_a_mark_ends_last(
    cache: DynamoCache, table: Table, clock: ManualClock
) -> None:
    for key, ttl_s in (("long", 50.0), ("short", 5.0), ("longest", 500_000.0)):
        await cache.set("acme", key, b"1", ttl_s=ttl_s)
    now_s = clock.now_us() / 1_000_000
    ends = {item["pk"]["S"]: int(item["ends"]["N"]) for item in table.items()}
    mark = next(end for name, end in ends.items() if name.startswith("m:"))
    assert len(ends) == 4
    assert all(now_s + 5 <= end <= mark for end in ends.values())
    found = table.call("DescribeTimeToLive")["TimeToLiveDescription"]
    assert (found["TimeToLiveStatus"], found["AttributeName"]) == ("ENABLED", "ends")
    assert await cache.get("acme", "short") == b"1"


async def test_an_entry_is_never_removed_before_its_end(cache: DynamoCache, table: Table, clock: ManualClock) -> None:
    for ttl_s in (0.5, 1.0, 1.999_999):
        await cache.set("acme", "x", b"1", ttl_s=ttl_s)
        entry = next(item for item in table.items() if item["pk"]["S"].startswith("e:"))
        assert int(entry["ends"]["N"]) > clock.now_us() / 1_000_000 + ttl_s


async def test_a_forgotten_rooms_entries_stay_forgotten_when_new_ones_come(cache: DynamoCache) -> None:
    await cache.set("acme", "old", b"1")
    await cache.delete_room("acme")
    await cache.set("acme", "new", b"2")
    assert await cache.get("acme", "old") is None
    assert await cache.get("acme", "new") == b"2"


async def test_an_entry_set_while_its_room_is_forgotten_is_a_miss_and_not_a_ghost(
    cache: DynamoCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = cache._mark

    async def and_forget(room: str, ends_s: int) -> bytes:
        held = await mark(room, ends_s)
        await cache.delete_room(room)
        return held

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(cache, "_mark", and_forget)
        await cache.set("acme", "x", b"1")
    assert await cache.get("acme", "x") is None
    await cache.set("acme", "y", b"2")
    assert await cache.get("acme", "x") is None
    assert await cache.get("acme", "y") == b"2"


async def test_a_value_that_is_cut_short_or_too_large_is_a_miss(cache: DynamoCache, table: Table) -> None:
    await cache.set("acme", "x", b"1")
    entry = next(item for item in table.items() if item["pk"]["S"].startswith("e:"))
    table.call("PutItem", Item={**entry, "value": {"B": "eA=="}})
    assert await cache.get("acme", "x") is None
    await cache.set("acme", "x", b"y" * LARGEST_BYTES)
    assert await cache.get("acme", "x") == b"y" * LARGEST_BYTES
    await cache.set("acme", "x", b"z" * (LARGEST_BYTES + 1))
    assert await cache.get("acme", "x") is None
    assert MARK_BYTES + LARGEST_BYTES < 400 * 1024


STRANGE: tuple[dict[str, Any], ...] = (
    {}, {"value": {"S": "x"}}, {"until": {"S": "soon"}}, {"until": {"N": "-1"}}, {"mark": {"S": "x"}, "ends": {"N": "9e9"}},
    {"mark": {"B": "eA=="}, "ends": {"N": "99999999999"}}, {"counts": {"S": "x"}, "by": {"N": "1"}},
    {"counts": {"M": {"now": {"N": "1"}}}}, {"counts": {"M": {"1": {"S": "x"}}}}, {"counts": {"L": []}},
)  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE)
async def test_what_somebody_else_wrote_into_the_table_is_a_miss_and_keeps_nobody_out(
    cache: DynamoCache, table: Table, strange: dict[str, Any]
) -> None:
    permits = DynamoPermits(cache._line)
    await cache.set("acme", "x", b"1")
    await permits.settle("acme", spent=1, wanted=0, limit=10)
    for item in table.items():
        table.call("PutItem", Item={"pk": item["pk"], **strange})
    assert await cache.get("acme", "x") is None
    assert (await permits.settle("acme", spent=1, wanted=4, limit=10)).granted == 4
    assert (await permits.settle("acme", spent=0, wanted=9, limit=10)).granted == 5
    await cache.set("acme", "x", b"2")
    assert await cache.get("acme", "x") == b"2"


async def test_what_one_server_keeps_another_has(cache: DynamoCache, table: Table, clock: ManualClock) -> None:
    other = DynamoCache(line_to(table.name, clock))
    await cache.set("acme", "x", b"1")
    assert await other.get("acme", "x") == b"1"
    await other.delete_room("acme")
    assert await cache.get("acme", "x") is None
    await other.close()


async def test_servers_that_start_together_make_one_table(table: Table, clock: ManualClock) -> None:
    caches = [DynamoCache(line_to(table.name, clock)) for _ in range(4)]
    await asyncio.gather(*(each.set("acme", str(number), b"1") for number, each in enumerate(caches)))
    found = await asyncio.gather(*(caches[0].get("acme", str(number)) for number in range(4)))
    assert found == [b"1"] * 4
    for each in caches:
        await each.close()


async def test_a_table_that_was_removed_is_made_anew(cache: DynamoCache, table: Table) -> None:
    await cache.set("acme", "x", b"1")
    table.call("DeleteTable")
    with pytest.raises(CacheUnreachable):
        await cache.get("acme", "x")
    await cache.set("acme", "x", b"2")
    assert await cache.get("acme", "x") == b"2"


async def test_a_table_made_for_something_else_is_not_used(table: Table) -> None:
    key = [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}]
    kinds = [{"AttributeName": "pk", "AttributeType": "S"}, {"AttributeName": "sk", "AttributeType": "B"}]
    table.call("CreateTable", KeySchema=key, AttributeDefinitions=kinds, BillingMode="PAY_PER_REQUEST")
    cache = DynamoCache(line_to(table.name))
    with pytest.raises(CacheUnreachable) as refused:
        await cache.set("acme", "x", b"1")
    assert isinstance(refused.value.__cause__, SettingsInvalid)
    assert "was made for something else" in str(refused.value.__cause__)
    assert table.items() == []
    await cache.close()


@pytest.mark.parametrize("action", ["throttle", "fail", "cut", "lose", "fail after", "twice"])
async def test_a_call_that_was_cut_or_throttled_is_repeated(
    table: Table, ministack: Ministack, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    async with Front(ministack.url) as front:
        point_at(monkeypatch, front.url)
        line = line_to(table.name)
        cache, permits = DynamoCache(line), DynamoPermits(line)
        await cache.set("acme", "x", b"1")
        for done in (
            lambda: cache.set("acme", "x", b"2"),
            lambda: cache.get("acme", "x"),
            lambda: cache.delete("acme", "y"),
        ):
            front.script = [action]
            await done()
            assert front.script == []
        assert await cache.get("acme", "x") == b"2"
        # A permit is counted once, however often its call was sent.
        front.only, front.script = {"PutItem"}, [action]
        assert (await permits.settle("acme", spent=3, wanted=2, limit=10)).left == 5
        front.script = []
        assert (await permits.settle("acme", spent=0, wanted=9, limit=10)).granted == 5
        await cache.close()


async def test_a_server_that_is_silent_costs_its_deadline_and_then_nothing(
    table: Table, ministack: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Front(ministack.url) as front:
        point_at(monkeypatch, front.url)
        line = line_to(table.name)
        cache = DynamoCache(line)
        await cache.set("acme", "x", b"1")
        line._deadline_s = 0.2
        front.script = ["hang"] * 1000
        for _ in range(3):
            with pytest.raises(CacheUnreachable):
                await cache.get("acme", "x")
        asked = len(front.calls)
        with pytest.raises(CacheUnreachable):
            await cache.get("acme", "x")
        assert len(front.calls) == asked, "it rests and asks nobody"
        front.script, line._deadline_s = [], PATIENT_S
        async with asyncio.timeout(PATIENT_S):
            while True:
                try:
                    assert await cache.get("acme", "x") == b"1"
                    break
                except CacheUnreachable:
                    await asyncio.sleep(0.1)
        await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "dynamodb://", f"dynamodb://{REGION}", f"dynamodb://{REGION}/", f"dynamodb://{REGION}/a", "dynamodb://mars/table",
        f"dynamodb://{REGION}/table?shared=true", f"dynamodb://{REGION}/table/x", f"dynamodb://{REGION}/tä-ble",
    ],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="redis"):
        DynamoLine(url, surroundings("_platform"))


def test_the_privileges_that_the_page_names_are_those_that_are_used() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "howto" / "many-servers.md").read_text("utf-8")
    named = set(re.findall(r'"dynamodb:(\w+)"', page))
    code = (root / "src" / "nagaya" / "cache" / "dynamodb_line.py").read_text("utf-8")
    calls = set(re.findall(r'_ask\(\s*"(\w+)"', code)) | set(re.findall(r"client\.(\w+),", code))
    assert named == {"".join(word.title() for word in call.split("_")) for call in calls}
    assert len(named) == 8
