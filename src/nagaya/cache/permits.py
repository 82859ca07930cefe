"""Permits that several servers draw from one allowance: how many in any minute, counted in one place."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

WINDOW_S: Final = 60


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
