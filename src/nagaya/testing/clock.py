"""A clock that stands still until it is told to go on."""

from __future__ import annotations


class ManualClock:
    """It implements :class:`nagaya.kernel.clock.Clock`. Both times move together, by :meth:`advance` only."""

    def __init__(self, *, now_us: int = 1_750_000_000_000_000, monotonic_s: float = 1000.0) -> None:
        self._now_us = now_us
        self._monotonic_s = monotonic_s

    def now_us(self) -> int:
        return self._now_us

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic_s += seconds
        self._now_us += round(seconds * 1_000_000)

    def step_wall_clock(self, seconds: float) -> None:
        """Set the machine's clock: forwards or backwards, without any time passing."""
        self._now_us += round(seconds * 1_000_000)
