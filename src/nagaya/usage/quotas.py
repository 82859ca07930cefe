"""How many requests a tenant may make in a minute, asked at the gate before anything is opened."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from nagaya.errors import RateLimited
from nagaya.kernel.clock import Clock
from nagaya.tenancy.principal import Entrance
from nagaya.tenancy.tenant import Tenant

WINDOW_S: Final = 60
TENANTS: Final = 16_384
"""Tenants with a limit that are remembered. One that is pushed out starts with a full allowance."""


class _Window:
    """How many requests each of the last seconds had, the empty ones left out."""

    __slots__ = ("seconds", "total")

    def __init__(self) -> None:
        self.seconds: deque[tuple[int, int]] = deque()
        self.total = 0


class Quotas:
    """Requests per minute of each tenant, in this process.

    In no 60 seconds more than the limit are let through: a window that slides by whole seconds, so there is no
    double burst at a minute's turn. With several processes each allows its share of the limit, at least one.
    """

    def __init__(self, clock: Clock, *, processes: int = 1) -> None:
        self._clock = clock
        self._processes = max(1, processes)
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def check(self, entrance: Entrance) -> None:
        """Count one request, in a workspace for its tenant too. Raises ``RateLimited`` with ``retry_after_s``; a
        refused request is not counted by whoever refused it."""
        self.check_tenant(entrance.tenant)
        if entrance.parent is not None:
            self.check_tenant(entrance.parent)

    def check_tenant(self, tenant: Tenant) -> None:
        """As :meth:`check`, for one of the two."""
        limit = tenant.requests_per_minute
        if limit is None:
            return
        now_s = self._clock.monotonic_s()
        second = int(now_s)
        window = self._window(tenant.id)
        seconds = window.seconds
        while seconds and seconds[0][0] < second - WINDOW_S:
            window.total -= seconds.popleft()[1]
        if window.total >= max(1, limit // self._processes):
            raise RateLimited(retry_after_s=max(1, math.ceil(seconds[0][0] + WINDOW_S + 1 - now_s)))
        window.total += 1
        if seconds and seconds[-1][0] == second:
            seconds[-1] = (second, seconds[-1][1] + 1)
        else:
            seconds.append((second, 1))

    def _window(self, tenant_id: str) -> _Window:
        window = self._windows.get(tenant_id)
        if window is None:
            window = self._windows[tenant_id] = _Window()
            if len(self._windows) > TENANTS:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(tenant_id)
        return window
