"""Notices: what agents and the library tell the user they work for, kept for a while, so that a reader who lost its
connection reads on where it was.

Partition ``notices/<blind user>`` holds them by number (sort ``n`` and 8 bytes). A notice is one conditional put at
the next number, so that several servers' notices to one user lie in one order. Old ones are removed as new ones come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.errors import ConditionFailed, NagayaError
from nagaya.records.sealed_store import Delete, Partition, Put

_log = structlog.get_logger(__name__)

KEPT: Final = 1024
"""Notices a user's list holds at the least; what is older may be removed."""
_SWEEP_EVERY: Final = 64
_ATTEMPTS: Final = 16
_PAGE: Final = 100
_NOTICE: Final = b"n"
_NOTICES_END: Final = b"o"

POLL_S: Final = 1.0
"""How soon a notice of another process is seen; one of this process is seen at once."""
QUIET_POLL_S: Final = 5.0
"""The same after a minute in which nothing came."""
_QUIET_AFTER_S: Final = 60.0

GAP: Final = "notices.gap"


class Notice(NamedTuple):
    """A notice: its number in the user's list (from 1), what kind it is, and what it tells as JSON."""

    number: int
    type: str
    data: bytes


class _Stored(msgspec.Struct, omit_defaults=True):
    type: str
    at_us: int
    data: dict[str, Any]


_decoder = msgspec.json.Decoder(_Stored)
_encode = msgspec.json.Encoder().encode


class Notices:
    """One user's notices: the caller's, or those of a user to whom something is to be told. Nobody but the caller can
    read them, an administrator included."""

    __slots__ = ("_me", "_session")

    def __init__(self, session: TenantSession, *, of: str | None = None) -> None:
        self._session = session
        self._me = of or session.entrance.principal.user_key

    async def tell(self, type_: str, **data: Any) -> None:
        """Add a notice. Never raises for a store that refuses: the work a notice tells of goes on without it."""
        session = self._session
        body = _encode(_Stored(type_, session.clock.now_us(), data))
        try:
            partition = await self._partition()
            for _ in range(_ATTEMPTS):
                number = await self._newest(partition) + 1
                try:
                    await session.records.put(partition, _sort(number), body)
                except ConditionFailed:
                    continue
                session.room.wake(self._me)
                if number % _SWEEP_EVERY == 0:
                    await self._sweep(partition, number - KEPT)
                return
        except NagayaError as problem:
            _log.warning("a notice was lost", action="notices.lost", type=type_, code=problem.code)

    async def newest(self) -> int:
        """The number of the newest notice; 0 where there is none."""
        return await self._newest(await self._partition())

    async def read(self, after: int, *, limit: int = _PAGE) -> list[Notice]:
        """Up to ``limit`` notices after a number, oldest first. Where some of them were removed already, the first is
        a ``notices.gap`` that tells how many."""
        partition = await self._partition()
        rows = await self._session.records.query(partition, after=_sort(after), before=_NOTICES_END, limit=limit)
        found: list[Notice] = []
        for row in rows:
            number = int.from_bytes(row.sort[1:], "big")
            if not found and number > after + 1:
                found.append(Notice(number - 1, GAP, _encode({"type": GAP, "missed": number - 1 - after})))
            stored = _decoder.decode(row.body)
            shown = {"type": stored.type, "created_at": stored.at_us // 1_000_000, **stored.data}
            found.append(Notice(number, stored.type, _encode(shown)))
        return found

    async def follow(self, after: int, *, until: Callable[[], bool] = lambda: False) -> AsyncGenerator[Notice, None]:
        """Notices after a number, as they come. Ends within ``QUIET_POLL_S`` once ``until`` says so; raises
        ``SessionClosed`` when the session ends."""
        session = self._session
        silent_since_s = session.clock.monotonic_s()
        while True:
            news = session.room.news(self._me)
            found = await self.read(after)
            for notice in found:
                after = notice.number
                yield notice
            now_s = session.clock.monotonic_s()
            if until():
                return
            if found:
                silent_since_s = now_s
                continue
            quiet = now_s - silent_since_s > _QUIET_AFTER_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), QUIET_POLL_S if quiet else POLL_S)

    async def cursor(self, number: int) -> str:
        """A stream event id that stands for a number: sealed, for this user's notices only."""
        return await self._session.records.cursors.seal_cursor(self._query, number.to_bytes(8, "big"))

    async def place(self, cursor: str) -> int:
        """The number behind a stream event id. Raises ``NotFound`` for anything that is not one of this user's."""
        return int.from_bytes(await self._session.records.cursors.open_cursor(self._query, cursor), "big")

    @property
    def _query(self) -> tuple[str, ...]:
        return ("notices", self._me)

    async def _partition(self) -> Partition:
        return Partition("notices", await self._session.records.blind("notices.user", self._me))

    async def _newest(self, partition: Partition) -> int:
        rows = await self._session.records.query(
            partition, after=_NOTICE, before=_NOTICES_END, limit=1, descending=True
        )
        return int.from_bytes(rows[0].sort[1:], "big") if rows else 0

    async def _sweep(self, partition: Partition, up_to: int) -> None:
        if up_to < 1:
            return
        rows = await self._session.records.query(partition, after=_NOTICE, before=_sort(up_to), limit=_PAGE)
        doomed: list[Put | Delete] = [Delete(row.sort, row.revision) for row in rows]
        if doomed:
            try:
                await self._session.records.write(partition, doomed)
            except ConditionFailed:
                return  # another process swept


def _sort(number: int) -> bytes:
    return _NOTICE + number.to_bytes(8, "big")
