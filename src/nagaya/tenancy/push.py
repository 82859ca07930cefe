"""Telling the other servers that the registry has changed, so that they look at once instead of at the next poll.

A notice says which change there was and is believed in nothing: whoever hears one asks the registry itself. Forged
notices so cost a bounded number of queries, and lost ones cost the time to the next poll.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from nagaya.cache.channel import Channel
from nagaya.errors import CacheUnreachable
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended

LOOK_S: Final = 0.1
"""Seconds between two looks that notices cause: at most ten a second, whoever sends them."""

WAITING: Final = 1_000
"""Notices that may wait to be sent. The oldest goes first: one that arrives makes its hearer read all changes."""


FAREWELL_S: Final = 1.0


class Notice(msgspec.Struct, array_like=True, frozen=True):
    """A change of the registry: metadata only."""

    tenant_id: str | None
    kind: str
    serial: int


class Watched(Protocol):
    """The part of the registry that this needs."""

    def on_own_change(self, listener: Callable[[str | None, str, int], None]) -> None: ...
    def look_now(self, serial: int = 0) -> None: ...


class ChangePush:
    """Sends this process's changes and hears of the others', while it runs. To be used in one event loop."""

    def __init__(self, registry: Watched, channel: Channel, clock: Clock, *, look_s: float = LOOK_S) -> None:
        self._registry = registry
        self._channel = channel
        self._clock = clock
        self._look_s = look_s
        self._looked_at_s = float("-inf")
        self._later: asyncio.TimerHandle | None = None
        self._waiting: OrderedDict[Notice, None] = OrderedDict()
        self._to_send = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        registry.on_own_change(self._changed)

    def start(self) -> None:
        """Send and hear until ``close()``."""
        if not self._tasks:
            self._tasks = (
                asyncio.create_task(self._send(), name="change-push"),
                asyncio.create_task(self._channel.listen(self._heard, self._look), name="change-listener"),
            )

    async def close(self) -> None:
        """Send what waits, within ``FAREWELL_S`` (a short command's only change is made just before), and stop. May be
        repeated."""
        tasks, self._tasks = self._tasks, ()
        if tasks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_sent.wait(), FAREWELL_S)
        await ended(tasks)
        if self._later is not None:
            self._later.cancel()
            self._later = None

    # --- sending ---

    def _changed(self, tenant_id: str | None, kind: str, serial: int) -> None:
        if not self._tasks:
            return
        self._waiting[Notice(tenant_id, kind, serial)] = None
        if len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)
        self._all_sent.clear()
        self._to_send.set()

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            notice, _ = self._waiting.popitem(last=False)
            if not self._waiting:
                self._to_send.clear()
            # Where nobody can be told, everybody polls.
            with contextlib.suppress(CacheUnreachable):
                await self._channel.publish(msgspec.json.encode(notice))
            if not self._waiting:
                self._all_sent.set()

    # --- hearing ---

    def _heard(self, raw: bytes) -> None:
        try:
            serial = msgspec.json.decode(raw, type=Notice).serial
        except (msgspec.DecodeError, UnicodeDecodeError):
            serial = 0
        self._look(max(0, serial))

    def _look(self, serial: int = 0) -> None:
        """Look now or, where that was just done, a moment later; never not at all."""
        if self._later is not None:
            return
        wait_s = self._looked_at_s + self._look_s - self._clock.monotonic_s()
        if wait_s > 0:
            self._later = asyncio.get_running_loop().call_later(wait_s, self._look_later)
            return
        self._looked_at_s = self._clock.monotonic_s()
        self._registry.look_now(serial)

    def _look_later(self) -> None:
        self._later = None
        self._looked_at_s = self._clock.monotonic_s()
        self._registry.look_now()
