"""A store in somebody else's hands: a bounded number of calls at once, and a breaker for when it is away."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from nagaya.errors import CloudUnreachable, StoreResting, StoreUnreachable
from nagaya.kernel.breaker import Breaker
from nagaya.stores.driver import MAX_PAGE, Change, PlainRow, Row, ScannedRow, StoreDriver
from nagaya.stores.store import Store

T = TypeVar("T")

CONNECTIONS: Final = 20
"""Calls of one tenant at once (the guide's figure). Others wait their turn, first come first served."""


class GuardedStore(Store):
    """As :class:`Store`, over a network. One tenant's store that hangs or fails costs other tenants nothing: its calls
    wait in a line of their own, and after failures in a row they are turned away at once with ``StoreResting``."""

    __slots__ = ("_breaker", "_slots", "_wait_s")

    def __init__(
        self, driver: StoreDriver, breaker: Breaker, *, deadline_s: float = 10.0, connections: int = CONNECTIONS
    ) -> None:
        super().__init__(driver, deadline_s=deadline_s)
        self._breaker = breaker
        self._slots = asyncio.Semaphore(connections)
        self._wait_s = deadline_s

    async def get(self, partition: str, sort: bytes) -> Row | None:
        return await self._through(super().get(partition, sort))

    async def get_many(self, partition: str, sorts: Sequence[bytes]) -> list[Row | None]:
        # One of them tries whether a store that was away is back; the others would be turned away meanwhile.
        tried = [await self.get(partition, sorts[0])] if self._breaker.is_open and sorts else []
        asking = [asyncio.ensure_future(self.get(partition, sort)) for sort in sorts[len(tried) :]]
        try:
            return [*tried, *await asyncio.gather(*asking)]
        finally:
            for each in asking:
                each.cancel()

    async def query(
        self,
        partition: str,
        *,
        after: bytes = b"",
        before: bytes = b"",
        limit: int = 100,
        descending: bool = False,
        since: object | None = None,
    ) -> Sequence[PlainRow]:
        return await self._through(
            super().query(partition, after=after, before=before, limit=limit, descending=descending, since=since)
        )

    async def scan(self, *, after: tuple[str, bytes] | None = None, limit: int = MAX_PAGE) -> Sequence[ScannedRow]:
        return await self._through(super().scan(after=after, limit=limit))

    async def _write(self, partition: str, changes: Sequence[Change], since: object | None = None) -> None:
        await self._through(super()._write(partition, changes, since))

    async def _through(self, work: Coroutine[Any, Any, T]) -> T:
        breaker = self._breaker
        if not breaker.admit():
            work.close()
            raise self._resting()
        is_trial = breaker.is_open
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError as lost:
            work.close()
            breaker.failed()
            raise StoreUnreachable from lost
        except BaseException:
            work.close()
            breaker.undecided()
            raise
        try:
            if breaker.is_open and not is_trial:
                # While this one stood in line, those before it found the store away.
                work.close()
                raise self._resting()
            return await self._judged(work)
        finally:
            self._slots.release()

    async def _judged(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            result = await work
        except (StoreUnreachable, CloudUnreachable):
            self._breaker.failed()
            raise
        except asyncio.CancelledError:
            self._breaker.undecided()
            raise
        except BaseException:
            # A condition that failed, a damaged row: the store is there and answers.
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return result

    def _resting(self) -> StoreResting:
        return StoreResting(retry_after_s=max(1, math.ceil(self._breaker.retry_after_s())))
