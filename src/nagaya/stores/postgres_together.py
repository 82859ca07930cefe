"""New records that come while others of their room are on their way: written several in one statement.

One at a time, each costs the server a transaction and a change of processes, which is most of what it costs. So a few
statements of a room are under way, and what comes meanwhile goes with the next. Records that go together share an
outcome only where the server, or the way to it, fails; whether each was there already is told to each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

AT_ONCE: Final = 3
"""Statements under way before others wait for company."""

MOST: Final = 32
MOST_BYTES: Final = 1024 * 1024


class _Waiting(NamedTuple):
    body: bytes
    done: asyncio.Future[bool]


_Place = tuple[bytes, bytes]


class Together:
    """The new records of one room. ``send`` writes records at distinct places, given in their order, in one statement,
    and gives the places where it did; it raises what the store raises."""

    def __init__(self, send: Callable[[Sequence[_Place], Sequence[bytes]], Awaitable[set[_Place]]]) -> None:
        self._send = send
        self._under_way = 0
        self._waiting: dict[_Place, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def may_begin(self, place: _Place) -> bool:
        """Whether a record goes by itself and at once: between :meth:`begin` and :meth:`end`."""
        # Of two records at one place the later must not go with the first.
        return self._under_way < AT_ONCE or place in self._waiting

    def begin(self) -> None:
        self._under_way += 1

    def end(self) -> None:
        self._under_way -= 1
        if self._waiting and self._under_way < AT_ONCE:
            self._under_way += 1
            task = asyncio.ensure_future(self._go(self._next()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def put(self, place: _Place, body: bytes) -> bool:
        """Write a record with the next ones; gives whether the place was free. A caller that is cancelled while its
        record waits takes it back."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[place] = _Waiting(body, done)
        try:
            return await done
        finally:
            if not done.done() or done.cancelled():
                found = self._waiting.get(place)
                if found is not None and found.done is done:
                    del self._waiting[place]

    def _next(self) -> dict[_Place, _Waiting]:
        taken: dict[_Place, _Waiting] = {}
        size = 0
        for place, waiting in self._waiting.items():
            size += len(waiting.body)
            if taken and (len(taken) == MOST or size > MOST_BYTES):
                break
            taken[place] = waiting
        for place in taken:
            del self._waiting[place]
        return taken

    async def _go(self, records: dict[_Place, _Waiting]) -> None:
        left = len(records)
        task = asyncio.current_task()

        def gone(_: Any) -> None:
            # Where nobody waits any more, as past a deadline, the statement is given up as a single one would be.
            nonlocal left
            left -= 1
            if not left and task is not None:
                task.cancel()

        for waiting in records.values():
            waiting.done.add_done_callback(gone)
        try:
            places = sorted(records)  # in one order everywhere, so that two statements that meet do not cross
            written = await self._send(places, [records[place].body for place in places])
        except BaseException as failed:
            for waiting in records.values():
                waiting.done.remove_done_callback(gone)
                if isinstance(failed, asyncio.CancelledError):
                    waiting.done.cancel()
                elif not waiting.done.done():
                    waiting.done.set_exception(failed)
        else:
            for place, waiting in records.items():
                waiting.done.remove_done_callback(gone)
                if not waiting.done.done():
                    waiting.done.set_result(place in written)
        finally:
            self.end()
