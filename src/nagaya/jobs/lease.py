"""How long a server may take itself for alive without having said so again.

Others begin a server's jobs anew when it was silent for too long, and it cannot know of that before it asks. So what
its jobs do is done only while less time than that has passed since its last sign of life, by a clock that also counts
while the machine sleeps. A server that stood still finds its lease over before it does anything else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from nagaya.errors import SessionClosed
from nagaya.kernel.clock import boottime_s


class Lease:
    """One server's. Not held until it is extended. To be used in one event loop."""

    def __init__(self, now_s: Callable[[], float] = boottime_s) -> None:
        self.now_s = now_s
        self._until_s = -math.inf
        self._number = 0
        self._changed = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have taken this server for dead by now."""
        return self.now_s() < self._until_s

    def extend(self, until_s: float) -> None:
        """This server gave a sign of life, so it is taken for alive until then by ``now_s``."""
        self._until_s = until_s
        self._tell()

    def lose(self) -> None:
        """Others took this server for dead: whatever was begun here is theirs, for good."""
        self._until_s = -math.inf
        self._number += 1
        self._tell()

    def fence(self) -> LeaseFence:
        """The fence of something that is begun now."""
        return LeaseFence(self, self._number)

    def is_lost_since(self, number: int) -> bool:
        """Whether it was lost since it had that number."""
        return number != self._number

    async def changed(self) -> None:
        """Wait until it is extended or lost."""
        await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class LeaseFence:
    """It implements :class:`nagaya.kernel.fence.Fence` for one attempt of a job."""

    __slots__ = ("_lease", "_number")

    def __init__(self, lease: Lease, number: int) -> None:
        self._lease = lease
        self._number = number

    @property
    def is_held(self) -> bool:
        """Whether :meth:`hold` would return at once."""
        return self._lease.is_held and not self._lease.is_lost_since(self._number)

    def check(self) -> None:
        if self._lease.is_lost_since(self._number):
            raise SessionClosed

    async def hold(self) -> None:
        self.check()
        while not self._lease.is_held:
            await self._lease.changed()
            self.check()
