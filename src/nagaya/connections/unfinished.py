"""Work that is left in a room, as far as the platform has to know of it: that there is some."""

from __future__ import annotations

from typing import Protocol


class Unfinished(Protocol):
    """One room's note, at the platform, that work is left in it. What the work is, the room's own records say.

    Note after the work was written down, and see that nothing is written down after ``noted`` and before ``done``: so
    a note is never lost while there is work. Every method may be repeated.
    """

    async def note(self) -> None:
        """Have the platform see to it that somebody does the work, also if this server dies. Never raises for a
        platform that refuses: the daily work finds the room by itself."""
        ...

    async def noted(self) -> int | None:
        """Which note there is, of all that were ever written; None where there is none."""
        ...

    async def done(self, noted: int | None) -> None:
        """Take that note away, and no other that was written since. None: there was none to take away."""
        ...
