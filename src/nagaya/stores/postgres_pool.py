"""Connections to one PostgreSQL server, shared by the rooms that lie on it: bounded for each and bounded in all.

A connection carries no state from one use to the next: every use is one statement that is a transaction by itself.
Where a use did not end with the server's own answer (a cancelled caller, a deadline, a cut line), nobody knows what
is still under way on its connection, and it is thrown away.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

import asyncpg

from nagaya.errors import SessionClosed

PER_ROOM: Final = 20
"""Connections that one room may use at once."""

IDLE_S: Final = 60.0
"""A connection that nobody used for so long is closed."""

SILENCE_S: Final = 1.0
"""A use that was given up after so long without an answer casts doubt on the other connections too."""


class Held:
    """A connection and the database it leads to."""

    __slots__ = ("connection", "database", "since_s")

    def __init__(self, connection: asyncpg.Connection, database: str) -> None:
        self.connection = connection
        self.database = database
        self.since_s = 0.0


class Slot:
    """One room's place at the pool."""

    __slots__ = ("database", "in_use", "waiting")

    def __init__(self, database: str) -> None:
        self.database = database
        self.in_use = 0
        self.waiting: deque[asyncio.Future[Held | None]] = deque()


class Pool:
    """At most ``PER_ROOM`` connections for a slot and ``in_all`` together, made when they are needed.

    Who has to wait is served in turns, room by room, so that a busy room keeps nobody else waiting for more than one
    statement. To be used in one event loop.
    """

    def __init__(
        self,
        connect: Callable[[str], Awaitable[asyncpg.Connection]],
        *,
        in_all: int,
        per_room: int = PER_ROOM,
        idle_s: float = IDLE_S,
    ) -> None:
        self._connect = connect
        self._in_all = in_all
        self._per_room = per_room
        self._idle_s = idle_s
        self._idle: OrderedDict[str, deque[Held]] = OrderedDict()
        self._used: set[Held] = set()
        self._turns: OrderedDict[Slot, None] = OrderedDict()
        self._opening = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def allow(self, in_all: int) -> None:
        """Raise the bound: of several who share the pool, the most generous address counts."""
        self._in_all = max(self._in_all, in_all)

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return self._opening + len(self._used) + sum(map(len, self._idle.values()))

    def take(self, slot: Slot) -> Held | None:
        """A connection that lies ready, or None: then :meth:`wait`."""
        if slot.in_use >= self._per_room or slot.waiting:
            return None
        idle = self._idle.get(slot.database)
        while idle:
            held = idle.pop()
            if not held.connection.is_closed():
                self._begin(slot, held)
                return held
        return None

    async def wait(self, slot: Slot, *, fresh: bool = False) -> Held:
        """A connection as soon as there may be one. ``fresh``: a new one, where one may be opened.

        Raises what connecting raises, and ``SessionClosed`` where the pool is closed.
        """
        while True:
            if self._closed:
                raise SessionClosed
            if not fresh and (ready := self.take(slot)) is not None:
                return ready
            if slot.in_use < self._per_room and (self.size < self._in_all or self._close_one_idle()):
                return await self._open(slot)
            turn: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
            slot.waiting.append(turn)
            self._turns.setdefault(slot)
            try:
                handed = await turn
            except asyncio.CancelledError:
                if not turn.cancelled() and (passed := turn.result()) is not None:
                    self.give(slot, passed)  # It came too late for this caller; the next one has it.
                else:
                    self._leave(slot, turn)
                    self._wake()
                raise
            if handed is not None:
                return handed

    def give(self, slot: Slot, held: Held) -> None:
        """Put back a connection whose statement the server has answered."""
        slot.in_use -= 1
        self._used.discard(held)
        if self._closed or held.connection.is_closed():
            held.connection.terminate()
        else:
            held.since_s = monotonic()
            idle = self._idle.get(held.database)
            if idle is None:
                idle = self._idle[held.database] = deque()
            idle.append(held)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(self._idle_s, self._close_old)
        if self._turns:
            self._wake()

    def throw_away(self, slot: Slot, held: Held, *, doubt: bool) -> None:
        """End a connection of which nobody knows what it is doing. ``doubt``: those that lie ready too, for the
        server or the way to it has gone."""
        slot.in_use -= 1
        self._used.discard(held)
        held.connection.terminate()
        if doubt:
            self.drop_idle()
        else:
            self._wake()

    def drop_idle(self, database: str | None = None) -> None:
        """End the connections that lie ready, to one database or to all."""
        for name in [database] if database is not None else list(self._idle):
            for held in self._idle.pop(name, ()):
                held.connection.terminate()
        self._wake()

    async def close(self, *, deadline_s: float = 2.0) -> None:
        """End every connection; those in use at once. May be repeated."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        ready = [held.connection for idle in self._idle.values() for held in idle]
        self._idle.clear()
        for held in self._used:
            held.connection.terminate()
        for slot in list(self._turns):
            for turn in slot.waiting:
                if not turn.done():
                    turn.set_result(None)
        await asyncio.gather(*(connection.close(timeout=deadline_s) for connection in ready), return_exceptions=True)

    # --- inside -----------------------------------------------------------------------------------------------

    def _begin(self, slot: Slot, held: Held) -> None:
        slot.in_use += 1
        self._used.add(held)

    async def _open(self, slot: Slot) -> Held:
        self._opening += 1
        slot.in_use += 1
        try:
            held = Held(await self._connect(slot.database), slot.database)
        except BaseException:
            slot.in_use -= 1
            self._opening -= 1
            self._wake()
            raise
        self._opening -= 1
        if self._closed:
            slot.in_use -= 1
            held.connection.terminate()
            raise SessionClosed
        self._used.add(held)
        return held

    def _wake(self) -> None:
        """Let one waiting caller go on: of the room whose turn it is and that may have another connection."""
        for slot in list(self._turns):
            if slot.in_use >= self._per_room:
                continue
            while slot.waiting and slot.waiting[0].done():
                slot.waiting.popleft()
            if not slot.waiting:
                del self._turns[slot]
                continue
            idle = self._idle.get(slot.database)
            held = None
            while idle and (held is None or held.connection.is_closed()):
                held = idle.pop()
            if held is not None and held.connection.is_closed():
                held = None
            if held is None and self.size >= self._in_all and not any(self._idle.values()):
                return  # Somebody's answer will come and bring its connection.
            turn = slot.waiting.popleft()
            self._turns.move_to_end(slot)
            if not slot.waiting:
                del self._turns[slot]
            if held is not None:
                self._begin(slot, held)
            turn.set_result(held)
            return

    def _leave(self, slot: Slot, turn: asyncio.Future[Held | None]) -> None:
        if turn in slot.waiting:
            slot.waiting.remove(turn)
        if not slot.waiting:
            self._turns.pop(slot, None)

    def _close_one_idle(self) -> bool:
        """Make room by ending the connection that has lain ready longest. False where none lies ready."""
        oldest = min((idle[0] for idle in self._idle.values() if idle), key=lambda held: held.since_s, default=None)
        if oldest is None:
            return False
        self._idle[oldest.database].popleft()
        oldest.connection.terminate()
        return True

    def _close_old(self) -> None:
        """End what lay ready for too long; look again later."""
        now_s = monotonic()
        for name in list(self._idle):
            idle = self._idle[name]
            while idle and now_s - idle[0].since_s >= self._idle_s:
                idle.popleft().connection.terminate()
            if not idle:
                del self._idle[name]
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._idle_s, self._close_old) if self._idle else None


class SharedPools:
    """One pool for all who come to the same server as the same user, so that the bound is one for them all.

    A house may be opened for each tenant; their connections are still counted together.
    """

    def __init__(self) -> None:
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, tuple[Pool, int]]] = (
            WeakKeyDictionary()
        )

    def join(self, key: Hashable, connect: Callable[[str], Awaitable[asyncpg.Connection]], *, in_all: int) -> Pool:
        """The pool of that key in this event loop; :meth:`leave` it as often as it was joined."""
        pools = self._pools.setdefault(asyncio.get_running_loop(), {})
        pool, users = pools.get(key) or (Pool(connect, in_all=in_all), 0)
        pool.allow(in_all)
        pools[key] = pool, users + 1
        return pool

    async def leave(self, key: Hashable) -> None:
        """Close the pool when the last one leaves."""
        pools = self._pools[asyncio.get_running_loop()]
        pool, users = pools[key]
        if users > 1:
            pools[key] = pool, users - 1
            return
        del pools[key]
        await pool.close()


pools: Final = SharedPools()
