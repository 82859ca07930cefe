"""Requests per minute of each tenant over all servers together, without a question on the hot path.

A server keeps a small stock of permits per tenant and has it filled up beside the work. A request takes one from the
stock; where it is empty it is let through on credit, up to a bound, and the debt is settled with the next filling.

How far this may be from the limit, over any 60 seconds and with N servers: at most ``N × (stock + credit)`` above it
(permits in stock when the minute begins, and what passed on credit before the count was known to be full), at most
``N × stock`` below it (permits lying with servers that do not need them). With a limit of L requests, stock is L/20 and
credit L/10 or 20, whichever is more, neither above L; no server ever lets through more than L by itself. Debts are
counted in full, so what was too much in one minute is missing in the next. As the count fills up, credit shrinks to
half of what is left, so in steady use the limit is met to within the stock.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from typing import Final

import structlog

from nagaya.cache.permits import WINDOW_S, Permits
from nagaya.errors import CacheUnreachable, RateLimited
from nagaya.kernel.breaker import Breaker
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended
from nagaya.tenancy.principal import Entrance
from nagaya.tenancy.tenant import Tenant
from nagaya.usage.quotas import TENANTS, Quotas

STOCK_SHARE: Final = 20
CREDIT_SHARE: Final = 10
LEAST_CREDIT: Final = 20

_log = structlog.get_logger(__name__)


class _Account:
    """One tenant's permits here: ``balance`` above zero is stock, below zero debt."""

    __slots__ = ("balance", "full_until_s", "heard_s", "is_settling", "left", "limit")

    def __init__(self) -> None:
        self.balance = 0
        self.full_until_s = 0.0
        self.heard_s = float("-inf")
        self.is_settling = False
        self.left = 0
        self.limit = 0

    def credit(self, now_s: float) -> int:
        """How many requests may pass before the count has heard of them."""
        credit = credit_of(self.limit)
        if now_s - self.heard_s < WINDOW_S:
            credit = min(credit, max(1, self.left // 2))
        return credit


def stock_of(limit: int) -> int:
    """How many permits a server keeps in stock."""
    return max(1, limit // STOCK_SHARE)


def credit_of(limit: int) -> int:
    """How many requests a server lets through before it has heard of them from the count."""
    return min(limit, max(LEAST_CREDIT, limit // CREDIT_SHARE))


class SharedLimits:
    """As :class:`nagaya.usage.quotas.Quotas`, over every server that draws from the same ``permits``.

    While these cannot be reached, each process allows its share of the limit (``processes`` on one server) by itself,
    from the moment of the outage on. To be used in one event loop.
    """

    def __init__(self, permits: Permits, clock: Clock, *, processes: int = 1) -> None:
        self._permits = permits
        self._clock = clock
        self._whole = Quotas(clock)
        self._alone = Quotas(clock, processes=processes)
        self._breaker = Breaker(clock, failures=2, rest_s=0.5, longest_rest_s=5.0)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, entrance: Entrance) -> None:
        """Count one request. Raises ``RateLimited`` with ``retry_after_s``; a refused request is not counted. Never
        waits and asks nobody."""
        self._check(entrance.tenant)
        if entrance.parent is not None:
            self._check(entrance.parent)

    def _check(self, tenant: Tenant) -> None:
        limit = tenant.requests_per_minute
        if limit is None:
            return
        tenant_id = tenant.id
        account = self._account(tenant_id)
        if self._breaker.is_open:
            self._alone.check_tenant(tenant)
            self._settle(tenant_id, account, limit)
            return
        if limit != account.limit:
            # What was full need not be so under another limit.
            account.limit, account.full_until_s, account.heard_s = limit, 0.0, float("-inf")
        now_s = self._clock.monotonic_s()
        if account.balance <= 0 and now_s < account.full_until_s:
            raise RateLimited(retry_after_s=max(1, math.ceil(account.full_until_s - now_s)))
        if account.balance <= -account.credit(now_s):
            # More at once than may go uncounted; a moment later the count is known.
            self._settle(tenant_id, account, limit)
            raise RateLimited(retry_after_s=1)
        self._whole.check_tenant(tenant)
        account.balance -= 1
        if account.balance <= stock_of(limit) // 2:
            self._settle(tenant_id, account, limit)

    async def close(self) -> None:
        """Stop settling. What is in stock is lost to its minute. May be repeated."""
        await ended(self._tasks)

    def _account(self, tenant_id: str) -> _Account:
        account = self._accounts.get(tenant_id)
        if account is None:
            account = self._accounts[tenant_id] = _Account()
            if len(self._accounts) > TENANTS:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(tenant_id)
        return account

    def _settle(self, tenant_id: str, account: _Account, limit: int) -> None:
        """Pay debts and fill the stock up, in a task of its own; one at a time for each tenant."""
        if account.is_settling or not self._breaker.admit():
            return
        account.is_settling = True
        task = asyncio.get_running_loop().create_task(self._draw(tenant_id, account, limit), name="rate-limit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _draw(self, tenant_id: str, account: _Account, limit: int) -> None:
        spent = max(0, -account.balance)
        wanted = max(0, stock_of(limit) - max(0, account.balance))
        try:
            grant = await self._permits.settle(tenant_id, spent=spent, wanted=wanted, limit=limit)
        except CacheUnreachable:
            self._breaker.failed()
            if self._breaker.is_open:
                _log.warning("rate limits are counted by each process alone", action="limits.alone")
        except BaseException:
            self._breaker.undecided()
            raise
        else:
            self._breaker.succeeded()
            account.balance += spent + grant.granted
            account.left = grant.left
            account.heard_s = self._clock.monotonic_s()
            account.full_until_s = account.heard_s + grant.retry_after_s if grant.retry_after_s else 0.0
        finally:
            account.is_settling = False
