"""Requests of a tenant with a limit, without a server before them."""

from __future__ import annotations

import asyncio

from nagaya.errors import RateLimited
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, mint_entrance
from nagaya.usage.shared_limits import SharedLimits
from parts.directory import tenant


def entrance(tenant_id: str = "acme", *, limit: int | None = 100) -> Entrance:
    principal = Principal(
        provider=Provider.LOCAL, issuer="i", user_id="mio", tenant_id=tenant_id, role=Role.USER,
        issued_at_us=1, expires_at_us=2,
    )  # fmt: skip
    return mint_entrance(tenant=tenant(tenant_id, requests_per_minute=limit), principal=principal, admitted_at_s=0.0)


def passes(limits: SharedLimits, who: Entrance, times: int = 1) -> int:
    """How many of so many requests at once are let through."""
    passed = 0
    for _ in range(times):
        try:
            limits.check(who)
            passed += 1
        except RateLimited as refused:
            if not 1 <= (refused.retry_after_s or 0) <= 61:
                raise
    return passed


async def settled(*all_limits: SharedLimits) -> None:
    for limits in all_limits:
        while limits._tasks:
            await asyncio.gather(*limits._tasks, return_exceptions=True)
