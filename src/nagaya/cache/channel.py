"""A channel between the servers of one platform: short notices, to everybody who listens at that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Channel(Protocol):
    """It promises nothing: a notice may be lost, doubled, late or forged. Whoever needs to know looks by itself."""

    async def publish(self, notice: bytes) -> None:
        """Tell those who listen now. Raises ``CacheUnreachable``."""
        ...

    async def listen(self, heard: Callable[[bytes], None], joined: Callable[[], None]) -> None:
        """Call ``heard`` with every notice, for ever; cancel it to end it. It connects anew by itself and calls
        ``joined`` each time it has, for what was said before was not heard. Neither may raise or take long."""
        ...
