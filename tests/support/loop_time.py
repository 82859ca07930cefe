"""The time of a test's event loop, in the test's hand."""

from __future__ import annotations

import asyncio

import pytest


class LoopTime:
    """The running loop's time from now on: it stands still until it is told to pass, however slow the machine is. What
    the operating system times goes on as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._now_s = loop.time()
        monkeypatch.setattr(loop, "time", self.now_s)

    def now_s(self) -> float:
        return self._now_s

    async def passes(self, seconds: float) -> None:
        """Let time pass, and everybody who is due then have some turns."""
        self._now_s += seconds
        for _ in range(10):
            await asyncio.sleep(0)
