"""Fences: whoever works on something that others take over when he stands still too long writes nothing after that."""

from __future__ import annotations

from typing import Protocol


class Fence(Protocol):
    """One piece of work, for as long as it is nobody else's."""

    def check(self) -> None:
        """Raise ``SessionClosed`` where it is known that others took it over. No I/O."""
        ...

    async def hold(self) -> None:
        """Return while it is surely nobody else's, at once where that is known, else as soon as it is. Raises
        ``SessionClosed`` where others took it over. To be awaited right before each effect."""
        ...
