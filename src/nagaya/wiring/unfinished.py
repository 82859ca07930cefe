"""Rooms in which work is left, noted in the platform's own room: whichever server runs then has it done.

Partition ``unfinished/all`` holds a record for each such room, under its id. Without it a server that starts would have
to open every tenant's store to know where one that died was at work.
"""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec
import structlog

from nagaya.errors import ConditionFailed, NagayaError
from nagaya.kernel.clock import Clock
from nagaya.records.sealed_store import ABSENT, Partition, Record, SealedStore

FIRST_S: Final = 20.0
"""How long work is left to whoever noted it, before another is asked."""
LONGEST_S: Final = 3600.0
"""The longest time between two who are asked."""

_PLACE: Final = Partition("unfinished", "all")
_ATTEMPTS: Final = 16
_PAGE: Final = 100
_SHARE: Final = 10
_log = structlog.get_logger(__name__)


class _Note(msgspec.Struct, frozen=True):
    at_us: int


class UnfinishedRooms:
    """The notes of all rooms."""

    def __init__(self, platform: SealedStore, clock: Clock) -> None:
        self._records = platform
        self._clock = clock

    def of(self, room: str) -> UnfinishedRoom:
        """One room's note."""
        return UnfinishedRoom(self._records, self._clock, room)

    async def due(self) -> list[tuple[str, str]]:
        """The rooms whose work somebody is to be asked to do, each with a text that names the occasion: all servers
        give the same one for a while, that grows with how long the work has been waiting."""
        found: list[tuple[str, str]] = []
        after = b""
        now_us = self._clock.now_us()
        while True:
            rows = await self._records.query(_PLACE, after=after, limit=_PAGE)
            for row in rows:
                at_us = _read(row).at_us
                if (occasion := occasion_of(at_us, now_us)) is not None:
                    found.append((row.sort.decode(), occasion))
            if len(rows) < _PAGE:
                return found
            after = rows[-1].sort


class UnfinishedRoom:
    """It implements :class:`nagaya.connections.unfinished.Unfinished`."""

    def __init__(self, platform: SealedStore, clock: Clock, room: str) -> None:
        self._records = platform
        self._clock = clock
        self._sort = room.encode()

    async def note(self) -> None:
        try:
            for _ in range(_ATTEMPTS):
                before = await self._records.get(_PLACE, self._sort)
                # Always anew, so that whoever is about to take the note away sees that it is another one.
                at_us = self._clock.now_us() if before is None else max(self._clock.now_us(), _read(before).at_us + 1)
                with contextlib.suppress(ConditionFailed):
                    expect = ABSENT if before is None else before.revision
                    await self._records.put(_PLACE, self._sort, msgspec.json.encode(_Note(at_us)), expect=expect)
                    return
        except NagayaError as problem:
            _log.warning("work left was not noted", action="unfinished.not_noted", code=problem.code)

    async def noted(self) -> int | None:
        record = await self._records.get(_PLACE, self._sort)
        return None if record is None else _read(record).at_us

    async def done(self, noted: int | None) -> None:
        record = await self._records.get(_PLACE, self._sort)
        # By its moment: revisions begin anew with a note that was written after another took this one away.
        if record is None or _read(record).at_us != noted:
            return
        with contextlib.suppress(ConditionFailed):
            await self._records.delete(_PLACE, self._sort, expect=record.revision)


def _read(record: Record) -> _Note:
    return msgspec.json.decode(record.body, type=_Note)


def occasion_of(noted_us: int, now_us: int) -> str | None:
    """Which occasion it is to ask for work noted at ``noted_us``; None before the first. Occasions follow each other
    at a tenth of the time that the work has been waiting: after 20 s at first, after an hour at the most."""
    waited_s = (now_us - noted_us) / 1_000_000
    if waited_s < FIRST_S:
        return None
    width_s = FIRST_S
    while width_s * 2 <= min(LONGEST_S, waited_s / _SHARE):
        width_s *= 2
    return f"{noted_us} {width_s:g} {int(now_us / (width_s * 1_000_000))}"
