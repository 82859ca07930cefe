"""Permits that several servers draw from one allowance: how many in any minute, counted in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

WINDOW_S: Final = 60

AHEAD_S: Final = 5
"""By so much may the clocks of those who count differ. What was counted further ahead was counted by a clock that has
been set back since."""


class Grant(NamedTuple):
    """``granted`` permits to use, now or later. ``left`` are free after that, for everybody. ``retry_after_s`` is 0
    while any are; else whole seconds until some are free again."""

    granted: int
    left: int
    retry_after_s: int


class Permits(Protocol):
    """One allowance per room, shared by every server that asks."""

    async def settle(self, room: str, *, spent: int, wanted: int, limit: int) -> Grant:
        """Count ``spent`` permits that were used on credit, whatever the limit says, and up to ``wanted`` more, as far
        as no more than ``limit`` are then counted in the last ``WINDOW_S`` seconds.

        Raises ``CacheUnreachable``; whether the permits were counted is then not known. Not to be repeated.
        """
        ...


def settled(
    counts: Mapping[int, int], now_s: int, *, spent: int, wanted: int, limit: int
) -> tuple[dict[int, int], Grant]:
    """How many permits each second (Unix time) has after :meth:`Permits.settle`, from how many it had, and the grant.

    For counts that lie where nothing but a conditional write can be had.
    """
    kept = {second: count for second, count in counts.items() if now_s - WINDOW_S <= second <= now_s + AHEAD_S}
    total = spent + sum(kept.values())
    granted = max(0, min(wanted, limit - total))
    if spent + granted > 0:
        kept[now_s] = kept.get(now_s, 0) + spent + granted
    total += granted
    if total < limit:
        return kept, Grant(granted, limit - total, 0)
    for second in sorted(kept):
        total -= kept[second]
        if total < limit:
            return kept, Grant(granted, 0, max(1, second + WINDOW_S + 1 - now_s))
    return kept, Grant(granted, 0, 1)
