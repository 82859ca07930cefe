"""A tenant's requests per minute over several servers, counted in Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nagaya.cache.permits import Grant
from nagaya.cache.redis_line import RedisLine
from nagaya.cache.redis_permits import RedisPermits
from nagaya.errors import CacheUnreachable, RateLimited
from nagaya.kernel.clock import SystemClock
from nagaya.testing.clock import ManualClock
from nagaya.usage.shared_limits import SharedLimits, credit_of, stock_of
from parts.valkey import Valkey
from support.limits import entrance, passes, settled

pytest_plugins = ["parts.valkey_server"]


@pytest.fixture
async def permits(valkey: Valkey) -> AsyncIterator[RedisPermits]:
    line = RedisLine(valkey.url(), SystemClock())
    yield RedisPermits(line)
    await line.close()


async def test_permits_are_granted_up_to_the_limit_and_debts_are_counted_beyond_it(permits: RedisPermits) -> None:
    assert await permits.settle("acme", spent=0, wanted=4, limit=10) == Grant(4, 6, 0)
    assert await permits.settle("acme", spent=3, wanted=9, limit=10) == (3, 0, 61)
    assert await permits.settle("acme", spent=5, wanted=1, limit=10) == (0, 0, 61)
    assert await permits.settle("globex", spent=0, wanted=10, limit=10) == (10, 0, 61)
    assert (await permits.settle("acme", spent=0, wanted=1, limit=20)).granted == 1


async def test_seconds_that_have_left_the_window_count_no_more(permits: RedisPermits, valkey: Valkey) -> None:
    await permits.settle("acme", spent=1, wanted=0, limit=10)
    name = next(line for line in valkey.ask("KEYS", "*").split(b"\r\n") if line.endswith(b":p"))
    now = int(valkey.ask("TIME").split(b"\r\n")[2])
    valkey.ask("DEL", name)
    for second, count in ((now - 61, 50), (now - 40, 6), (now - 20, 4), (now + 1000, 70)):
        valkey.ask("HSET", name, str(second), str(count))
    # Those of the future were counted by a clock that was set back since.
    granted, _, retry_s = await permits.settle("acme", spent=0, wanted=5, limit=10)
    assert granted == 0
    assert 19 <= retry_s <= 21
    granted, _, retry_s = await permits.settle("acme", spent=7, wanted=5, limit=10)
    assert granted == 0
    assert 39 <= retry_s <= 41
    assert int(valkey.ask("TTL", name).strip(b":\r\n")) in (61, 62)


async def test_one_server_lets_through_its_limit_and_not_one_more(permits: RedisPermits) -> None:
    limits = SharedLimits(permits, SystemClock())
    passed = 0
    for _ in range(30):
        passed += passes(limits, entrance(limit=100), 5)
        await settled(limits)
    assert passed == 100
    await limits.close()


@pytest.mark.parametrize(("limit", "burst"), [(60, 1), (60, 25), (1000, 7), (1000, 300), (3, 2)])
async def test_two_servers_together_stay_within_the_bound(permits: RedisPermits, limit: int, burst: int) -> None:
    servers = [SharedLimits(permits, SystemClock()) for _ in range(2)]
    who, passed = entrance(limit=limit), 0
    for _ in range(3 * limit // burst):
        for server in servers:
            passed += passes(server, who, burst)
        await settled(*servers)
    bound = len(servers) * (stock_of(limit) + min(credit_of(limit), burst))
    assert limit - len(servers) * stock_of(limit) <= passed <= limit + bound
    print(f"limit {limit}, bursts of {burst}: {passed} passed")
    assert passes(servers[0], entrance("globex", limit=limit)) == 1
    for server in servers:
        await server.close()


async def test_a_request_waits_for_nothing_and_asks_the_server_seldom(permits: RedisPermits) -> None:
    asked = 0
    settle = permits.settle

    async def counted(room: str, *, spent: int, wanted: int, limit: int) -> Grant:
        nonlocal asked
        asked += 1
        return await settle(room, spent=spent, wanted=wanted, limit=limit)

    permits.settle = counted  # type: ignore[method-assign]  # a wrapper that counts
    limits = SharedLimits(permits, SystemClock())
    for _ in range(1000):
        limits.check(entrance(limit=100_000))
        await settled(limits)
    assert asked < 10
    await limits.close()


async def test_a_tenant_without_a_limit_is_never_counted(permits: RedisPermits, valkey: Valkey) -> None:
    limits = SharedLimits(permits, SystemClock())
    assert passes(limits, entrance(limit=None), 1000) == 1000
    assert valkey.ask("DBSIZE") == b":0\r\n"
    await limits.close()


class ScriptedPermits:
    """Grants as told, or is away."""

    def __init__(self) -> None:
        self.away = False
        self.held = asyncio.Event()
        self.held.set()
        self.asked: list[tuple[str, int, int, int]] = []
        self.grants: list[Grant] = []

    async def settle(self, room: str, *, spent: int, wanted: int, limit: int) -> Grant:
        self.asked.append((room, spent, wanted, limit))
        await self.held.wait()
        if self.away:
            raise CacheUnreachable
        return self.grants.pop(0) if self.grants else Grant(wanted, limit, 0)


async def test_while_the_count_is_away_each_process_allows_its_share() -> None:
    permits, clock = ScriptedPermits(), ManualClock()
    limits = SharedLimits(permits, clock, processes=4)
    permits.away = True
    who = entrance(limit=100)
    for _ in range(2):
        passes(limits, who)
        await settled(limits)
    assert passes(limits, who, 100) == 25
    assert len(permits.asked) == 2
    clock.advance(61)
    assert passes(limits, who, 100) == 25
    await settled(limits)
    assert len(permits.asked) == 3
    permits.away = False
    clock.advance(61)
    passes(limits, who)
    await settled(limits)
    # The debt from before the outage was settled with the first answer.
    assert permits.asked[-1][1:] == (2, 5, 100)
    assert not limits._breaker.is_open
    assert passes(limits, who, 200) == 5 + credit_of(100)
    await limits.close()


async def test_a_full_count_refuses_until_its_time_and_a_raised_limit_is_obeyed_at_once() -> None:
    permits, clock = ScriptedPermits(), ManualClock()
    limits = SharedLimits(permits, clock)
    permits.grants = [Grant(0, 0, 7)]
    assert passes(limits, entrance(limit=100)) == 1
    await settled(limits)
    with pytest.raises(RateLimited) as refused:
        limits.check(entrance(limit=100))
    assert refused.value.retry_after_s == 7
    clock.advance(6.5)
    assert passes(limits, entrance(limit=100)) == 0
    clock.advance(0.5)
    assert passes(limits, entrance(limit=100)) == 1
    permits.grants = [Grant(0, 0, 7)]
    await settled(limits)
    assert passes(limits, entrance(limit=100)) == 0
    assert passes(limits, entrance(limit=200)) == 1
    await limits.close()


async def test_a_burst_beyond_the_credit_is_refused_until_it_is_counted() -> None:
    permits = ScriptedPermits()
    limits = SharedLimits(permits, ManualClock())
    permits.held.clear()
    who = entrance(limit=1000)
    assert passes(limits, who, 300) == credit_of(1000) == 100
    permits.held.set()
    await settled(limits)
    assert passes(limits, who, 300) == 100 + stock_of(1000)
    await limits.close()


async def test_closing_in_the_middle_of_a_settlement_leaves_nothing_running() -> None:
    permits = ScriptedPermits()
    permits.held.clear()
    limits = SharedLimits(permits, ManualClock())
    passes(limits, entrance())
    await asyncio.sleep(0)
    await limits.close()
    await limits.close()
    assert not limits._tasks


async def test_tenants_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nagaya.usage.shared_limits.TENANTS", 3)
    limits = SharedLimits(ScriptedPermits(), ManualClock())
    for name in ("a", "b", "c", "a", "d"):
        passes(limits, entrance(f"tenant-{name}"))
    assert list(limits._accounts) == ["tenant-c", "tenant-a", "tenant-d"]
    await settled(limits)
    await limits.close()
