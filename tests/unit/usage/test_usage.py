"""Use is counted once, in its month; a tenant gets its requests per minute and no more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import RateLimited
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, mint_entrance
from nagaya.tenancy.tenant import Tenant, TenantState, Tier
from nagaya.usage import meter as metering
from nagaya.usage import quotas
from nagaya.usage.meter import GUIDE_METRICS, Meter, Metric, month_of
from nagaya.usage.quotas import Quotas
from nagaya.usage.tiers import PRICES


class HandClock:
    def __init__(self, *, us: int = 0, s: float = 1_000.0) -> None:
        self.us = us or us_of(2027, 1, 15)
        self.s = s

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.s


class Totals:
    """A registry's usage table in memory that fails as told."""

    def __init__(self) -> None:
        self.added: Counter[tuple[str, str, str]] = Counter()
        self.added_until_us: dict[str, int] = {}
        self.fail: list[BaseException] = []
        self.late: list[BaseException] = []
        """Raised though it was added."""
        self.calls = 0
        self.held = asyncio.Event()
        self.held.set()

    async def add_usage(self, amounts: Mapping[tuple[str, str, str], int], *, source: str, at_us: int) -> None:
        self.calls += 1
        await self.held.wait()
        if self.fail:
            raise self.fail.pop()
        if at_us <= self.added_until_us.get(source, 0):
            return
        self.added_until_us[source] = at_us
        self.added.update(amounts)
        if self.late:
            raise self.late.pop()

    async def usage(self, tenant_id: str, month: str) -> Mapping[str, int]:
        return {metric: n for (owner, of, metric), n in self.added.items() if (owner, of) == (tenant_id, month)}


def us_of(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1_000_000)  # type: ignore[misc,arg-type]  # a date's parts


def tenant(tenant_id: str = "acme", **fields: Any) -> Tenant:
    return Tenant(id=tenant_id, name="A", state=TenantState.ACTIVE, created_at_us=0, store="x://", **fields)


def entrance(tenant_id: str = "acme", limit: int | None = None) -> Entrance:
    principal = Principal(
        provider=Provider.LOCAL,
        issuer="i",
        user_id="u",
        tenant_id=tenant_id,
        role=Role.USER,
        issued_at_us=0,
        expires_at_us=1,
    )
    return mint_entrance(tenant=tenant(tenant_id, requests_per_minute=limit), principal=principal, admitted_at_s=0.0)


ACME = tenant()


# --- metering --------------------------------------------------------------------------------------------------


async def test_what_is_counted_is_added_up_by_tenant_and_metric() -> None:
    totals, clock = Totals(), HandClock()
    meter = Meter(totals, clock)
    for _ in range(3):
        meter.count(ACME, Metric.API_CALLS)
    meter.count(ACME, Metric.INPUT_TOKENS, 120)
    meter.count(tenant("acme-corp"), Metric.API_CALLS)
    await meter.flush()
    await meter.flush()
    assert totals.added == {
        ("acme", "2027-01", "api_calls"): 3,
        ("acme", "2027-01", "input_tokens"): 120,
        ("acme-corp", "2027-01", "api_calls"): 1,
    }
    assert totals.calls == 1


async def test_what_a_workspace_uses_counts_for_its_tenant_too() -> None:
    totals = Totals()
    meter = Meter(totals, HandClock())
    meter.count(tenant("_acme-legal", parent="acme", workspace="legal"), Metric.API_CALLS, 2)
    meter.count(ACME, Metric.API_CALLS)
    await meter.flush()
    assert totals.added == {("_acme-legal", "2027-01", "api_calls"): 2, ("acme", "2027-01", "api_calls"): 3}


async def test_totals_name_every_metric_and_count_what_is_not_flushed_yet() -> None:
    totals, clock = Totals(), HandClock()
    meter = Meter(totals, clock)
    meter.count(ACME, Metric.API_CALLS, 2)
    await meter.flush()
    meter.count(ACME, Metric.API_CALLS, 5)
    meter.count(tenant("globex"), Metric.API_CALLS, 100)
    found = await meter.totals(ACME)
    assert found == {"api_calls": 7, "input_tokens": 0, "output_tokens": 0, "embedding_tokens": 0, "stored_bytes": 0}
    assert (await meter.totals(ACME, "2026-12"))["api_calls"] == 0


async def test_use_belongs_to_the_utc_month_in_which_it_was_made() -> None:
    totals, clock = Totals(), HandClock(us=us_of(2027, 12, 31, 23, 59, 59))
    meter = Meter(totals, clock)
    meter.count(ACME, Metric.API_CALLS, 1)
    clock.us = us_of(2028, 1, 1)
    await meter.flush()
    meter.count(ACME, Metric.API_CALLS, 10)
    clock.us = us_of(2028, 2, 3)
    await meter.flush()
    meter.count(ACME, Metric.API_CALLS, 100)
    await meter.flush()
    by_month = {month: amount for (_, month, _), amount in totals.added.items()}
    assert by_month == {"2027-12": 1, "2028-01": 10, "2028-02": 100}
    assert month_of(us_of(2027, 12, 31, 23, 59, 59)) == "2027-12"


@pytest.mark.parametrize("failure", [OSError("away"), asyncio.CancelledError()])
async def test_use_that_could_not_be_added_is_added_later_and_once(failure: BaseException) -> None:
    totals = Totals()
    meter = Meter(totals, HandClock())
    meter.count(ACME, Metric.API_CALLS, 4)
    totals.fail.append(failure)
    with pytest.raises(type(failure)):
        await meter.flush()
    meter.count(ACME, Metric.API_CALLS, 1)
    assert (await meter.totals(ACME))["api_calls"] == 5
    await meter.flush()
    assert totals.added == {("acme", "2027-01", "api_calls"): 5}


async def test_use_of_which_the_sink_did_not_say_that_it_was_added_is_counted_once() -> None:
    totals, clock = Totals(), HandClock()
    meter = Meter(totals, clock)
    meter.count(ACME, Metric.API_CALLS, 4)
    totals.late.append(OSError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        await meter.flush()
    meter.count(ACME, Metric.API_CALLS, 1)
    await meter.flush()
    assert totals.added == {("acme", "2027-01", "api_calls"): 5}
    # A clock that is set back makes nothing look as if it had been added.
    clock.us -= 3_600_000_000
    meter.count(ACME, Metric.API_CALLS, 2)
    await meter.flush()
    assert totals.added.total() == 7
    assert (await meter.totals(ACME))["api_calls"] == 7


async def test_use_is_counted_once_where_whoever_flushes_is_cancelled() -> None:
    totals = Totals()
    meter = Meter(totals, HandClock())
    meter.count(ACME, Metric.API_CALLS, 4)
    totals.held.clear()
    reached = asyncio.Event()

    async def carried_out(amounts: Mapping[tuple[str, str, str], int], **when: Any) -> None:
        # As the registry: what was handed to it is done, whoever goes away.
        reached.set()
        await asyncio.shield(asyncio.ensure_future(Totals.add_usage(totals, amounts, **when)))

    totals.add_usage = carried_out  # type: ignore[method-assign]  # one that does what it was told
    flushing = asyncio.create_task(meter.flush())
    await reached.wait()
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    totals.held.set()
    await meter.flush()
    assert totals.added == {("acme", "2027-01", "api_calls"): 4}


async def test_what_is_being_flushed_is_in_the_totals_once() -> None:
    totals = Totals()
    meter = Meter(totals, HandClock())
    meter.count(ACME, Metric.API_CALLS, 4)
    totals.held.clear()
    flushing = asyncio.create_task(meter.flush())
    while not totals.calls:
        await asyncio.sleep(0)
    asking = asyncio.create_task(meter.totals(ACME))
    await asyncio.sleep(0)
    totals.held.set()
    await flushing
    assert (await asking)["api_calls"] == 4


async def test_what_is_counted_during_a_flush_is_not_lost() -> None:
    totals = Totals()
    meter = Meter(totals, HandClock())
    meter.count(ACME, Metric.API_CALLS)
    totals.held.clear()
    flushing = asyncio.create_task(meter.flush())
    await asyncio.sleep(0)
    meter.count(ACME, Metric.API_CALLS, 8)
    totals.held.set()
    await flushing
    await meter.flush()
    assert totals.added.total() == 9


async def test_the_meter_flushes_by_itself_survives_failures_and_flushes_at_the_end() -> None:
    totals = Totals()
    meter = Meter(totals, HandClock(), flush_s=0.01)
    totals.fail.append(OSError("away"))
    meter.start()
    meter.start()
    meter.count(ACME, Metric.API_CALLS)
    async with asyncio.timeout(30):
        while not totals.added:
            await asyncio.sleep(0.01)
    meter.count(ACME, Metric.API_CALLS)
    await meter.close()
    await meter.close()
    assert totals.added.total() == 2


async def test_closing_while_the_registry_hangs_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "CLOSE_S", 0.05)
    totals = Totals()
    totals.held.clear()
    meter = Meter(totals, HandClock())
    meter.count(ACME, Metric.API_CALLS)
    flushing = asyncio.create_task(meter.flush())
    while not totals.calls:
        await asyncio.sleep(0)
    meter.count(ACME, Metric.API_CALLS, 2)
    with structlog.testing.capture_logs() as said:
        async with asyncio.timeout(30):
            await meter.close()
    # The last chance to keep it.
    assert said[0]["amounts"] == {"acme 2027-01 api_calls": 3}
    totals.held.set()
    await flushing
    assert (await meter.totals(ACME))["api_calls"] == 3


def test_the_guides_metrics_are_sums_of_ours() -> None:
    assert set(GUIDE_METRICS) == {"APICallCount", "StorageUsage", "LLMTokenCount"}
    assert sorted(metric for parts in GUIDE_METRICS.values() for metric in parts) == sorted(Metric)


# --- quotas ----------------------------------------------------------------------------------------------------


def test_a_tenant_without_a_limit_is_never_refused() -> None:
    asked = Quotas(HandClock())
    for _ in range(10_000):
        asked.check(entrance())


def test_the_request_over_the_limit_is_told_when_to_come_again() -> None:
    clock = HandClock(s=100.25)
    asked = Quotas(clock)
    guest = entrance(limit=5)
    for _ in range(5):
        asked.check(guest)
    clock.s = 130.0
    with pytest.raises(RateLimited) as refused:
        asked.check(guest)
    assert refused.value.retry_after_s == 31
    clock.s += 31
    asked.check(guest)


def test_the_requests_of_workspaces_are_held_to_their_own_limit_and_together_to_their_tenants() -> None:
    asked = Quotas(HandClock())

    def inside(name: str, limit: int | None) -> Entrance:
        room = tenant(f"_acme-{name}", parent="acme", workspace=name, requests_per_minute=limit)
        principal = Principal(
            provider=Provider.LOCAL, issuer="i", user_id="u", tenant_id=room.id, role=Role.USER, issued_at_us=0,
            expires_at_us=1,
        )  # fmt: skip
        acme = tenant("acme", requests_per_minute=3)
        return mint_entrance(tenant=room, principal=principal, admitted_at_s=0.0, parent=acme)

    legal, sales = inside("legal", 1), inside("sales", None)
    asked.check(legal)
    with pytest.raises(RateLimited):
        asked.check(legal)
    asked.check(sales)
    asked.check(entrance("acme", limit=3))
    for refused in (sales, entrance("acme", limit=3)):
        with pytest.raises(RateLimited):
            asked.check(refused)


def test_one_tenants_requests_are_not_anothers() -> None:
    asked = Quotas(HandClock())
    asked.check(entrance("acme", limit=1))
    with pytest.raises(RateLimited):
        asked.check(entrance("acme", limit=1))
    asked.check(entrance("acme-corp", limit=1))


def test_a_limit_that_changes_holds_at_once() -> None:
    asked = Quotas(HandClock())
    for _ in range(3):
        asked.check(entrance(limit=3))
    with pytest.raises(RateLimited):
        asked.check(entrance(limit=2))
    asked.check(entrance(limit=4))


def test_processes_share_a_limit_and_each_lets_in_at_least_one() -> None:
    for limit, each in ((10, 5), (1, 1)):
        asked = Quotas(HandClock(), processes=2)
        for _ in range(each):
            asked.check(entrance(limit=limit))
        with pytest.raises(RateLimited):
            asked.check(entrance(limit=limit))


def test_memory_is_bounded_by_the_busy_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "TENANTS", 3)
    asked = Quotas(HandClock())
    for number in range(3):
        asked.check(entrance(f"tenant-{number}", limit=2))
    asked.check(entrance("tenant-0", limit=2))
    asked.check(entrance("tenant-3", limit=2))
    assert len(asked._windows) == 3
    with pytest.raises(RateLimited):
        asked.check(entrance("tenant-0", limit=2))


@given(st.integers(1, 8), st.lists(st.floats(0, 40), max_size=120))
def test_in_no_minute_more_than_the_limit_and_waiting_as_told_always_helps(limit: int, pauses_s: list[float]) -> None:
    clock = HandClock()
    asked = Quotas(clock)
    guest = entrance(limit=limit)
    let_in: list[float] = []
    for pause_s in pauses_s:
        clock.s += pause_s
        try:
            asked.check(guest)
        except RateLimited as refused:
            clock.s += min(refused.retry_after_s or 0, 61)
            asked.check(guest)
        let_in.append(clock.s)
    for at in let_in:
        assert sum(1 for other in let_in if at - 60 < other <= at) <= limit


# --- prices ----------------------------------------------------------------------------------------------------


def test_every_tier_has_a_price_and_none_is_a_float() -> None:
    assert set(PRICES) == set(Tier)
    for price in PRICES.values():
        assert isinstance(price.monthly_jpy, Decimal)
        assert isinstance(price.extra_call_jpy, Decimal)
    assert PRICES[Tier.PROFESSIONAL].extra_call_jpy * 10_000 == Decimal(80)
