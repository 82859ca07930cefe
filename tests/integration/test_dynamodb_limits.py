"""A tenant's requests per minute over several servers, counted in DynamoDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nagaya.cache.dynamodb_line import DynamoLine
from nagaya.cache.dynamodb_permits import DynamoPermits
from nagaya.cache.permits import Grant
from nagaya.errors import CacheUnreachable
from nagaya.kernel.clock import SystemClock
from nagaya.testing.clock import ManualClock
from nagaya.usage.shared_limits import SharedLimits, credit_of, stock_of
from parts.aws import REGION, new_table, point_at, surroundings
from parts.ministack import Ministack
from support.aws_front import Front
from support.limits import entrance, passes, settled

pytest_plugins = ["parts.ministack"]


def permits_in(table: str, clock: ManualClock | None = None) -> tuple[DynamoPermits, DynamoLine]:
    url = f"dynamodb://{REGION}/{table}"
    line = DynamoLine(url, surroundings("_platform", clock=clock), deadline_s=30.0)
    return DynamoPermits(line), line


@pytest.fixture
async def permits(ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DynamoPermits]:
    point_at(monkeypatch, ministack.url)
    made, line = permits_in(new_table())
    yield made
    await line.close()


async def test_permits_are_granted_up_to_the_limit_and_debts_are_counted_beyond_it(permits: DynamoPermits) -> None:
    assert await permits.settle("acme", spent=0, wanted=4, limit=10) == Grant(4, 6, 0)
    granted, left, retry_s = await permits.settle("acme", spent=3, wanted=9, limit=10)
    assert (granted, left) == (3, 0)
    assert 1 <= retry_s <= 61
    granted, left, retry_s = await permits.settle("acme", spent=5, wanted=1, limit=10)
    assert (granted, left) == (0, 0)
    assert 1 <= retry_s <= 61
    assert (await permits.settle("globex", spent=0, wanted=10, limit=10)).granted == 10
    assert (await permits.settle("acme", spent=0, wanted=1, limit=20)).granted == 1


async def test_servers_that_count_at_the_same_time_lose_no_count(
    ministack: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, ministack.url)
    table = new_table()
    servers = [permits_in(table) for _ in range(4)]
    asked = [permits.settle("acme", spent=1, wanted=2, limit=1_000) for permits, _ in servers for _ in range(3)]
    grants = await asyncio.gather(*asked)
    assert all(grant.granted == 2 for grant in grants)
    assert (await servers[0][0].settle("acme", spent=0, wanted=0, limit=1_000)).left == 1_000 - 12 * 3
    for _, line in servers:
        await line.close()


async def test_servers_whose_clocks_differ_count_in_one_time(
    ministack: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, ministack.url)
    table = new_table()
    now_us = SystemClock().now_us()
    (early, one), (late, other) = (
        permits_in(table, ManualClock(now_us=now_us + hours * 3_600_000_000)) for hours in (-2, 3)
    )
    assert (await early.settle("acme", spent=0, wanted=6, limit=10)).granted == 6
    assert (await late.settle("acme", spent=0, wanted=6, limit=10)).granted == 4
    assert (await early.settle("acme", spent=0, wanted=6, limit=10)).granted == 0
    await one.close()
    await other.close()


async def test_an_unknown_outcome_is_said_to_be_unknown(ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our call was done, its answer lost, and another server wrote before it was sent again."""
    async with Front(ministack.url) as front:
        point_at(monkeypatch, front.url)
        table = new_table()
        (here, line), (there, far) = permits_in(table), permits_in(table)
        await here.settle("acme", spent=1, wanted=0, limit=10)
        await there.settle("acme", spent=1, wanted=0, limit=10)
        forward = front._forward

        async def and_another(request, body):
            answer = await forward(request, body)
            if front.calls[-1] == "PutItem" and not interfered:
                interfered.append(True)
                await there.settle("acme", spent=1, wanted=0, limit=10)
            return answer

        interfered: list[bool] = []
        monkeypatch.setattr(front, "_forward", and_another)
        front.only, front.script = {"PutItem"}, ["lose"]
        with pytest.raises(CacheUnreachable):
            await here.settle("acme", spent=1, wanted=0, limit=10)
        assert interfered
        # Both were counted, and none twice.
        assert (await here.settle("acme", spent=0, wanted=0, limit=10)).left == 6
        await line.close()
        await far.close()


@pytest.mark.parametrize(("limit", "burst"), [(60, 1), (60, 25), (3, 2)])
async def test_two_servers_together_stay_within_the_bound(permits: DynamoPermits, limit: int, burst: int) -> None:
    servers = [SharedLimits(permits, ManualClock()) for _ in range(2)]
    who, passed = entrance(limit=limit), 0
    for _ in range(3 * limit // burst):
        for server in servers:
            passed += passes(server, who, burst)
        await settled(*servers)
    bound = len(servers) * (stock_of(limit) + min(credit_of(limit), burst))
    assert limit - len(servers) * stock_of(limit) <= passed <= limit + bound
    assert passes(servers[0], entrance("globex", limit=limit)) == 1
    for server in servers:
        await server.close()
