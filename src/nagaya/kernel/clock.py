"""Time as the rest of the code sees it: UTC microseconds for records, monotonic seconds for deadlines."""

from __future__ import annotations

import time
from typing import Final, Protocol

_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """A source of time. Handed in, so that a decision about time can be tested with a table."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC. May step backwards when the machine's clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never steps backwards. For deadlines and ages."""
        ...


def boottime_s() -> float:
    """Seconds from an arbitrary start; never steps backwards, and counts on while the machine sleeps, where its system
    can tell. For leases: who slept past one must not take it for his own."""
    return time.clock_gettime(_BOOTTIME)


class SystemClock:
    """The machine's own clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    monotonic_s = staticmethod(time.monotonic)
