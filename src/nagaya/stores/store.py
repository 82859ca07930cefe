"""The store as the rest of the code uses it: a driver behind limits, a deadline and one set of errors.

There is no span per call here: a store call is the innermost step of every hot route, and the session above already
knows where its time goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal, cast

from nagaya.errors import InvalidValue, SessionClosed, StoreUnreachable
from nagaya.kernel.deadline import within
from nagaya.stores.driver import (
    ABSENT,
    MAX_BATCH,
    MAX_PAGE,
    Change,
    Delete,
    Later,
    PlainRow,
    Put,
    QuickReads,
    QuickWrites,
    Row,
    ScannedRow,
    StoreDriver,
    Watchful,
)

MAX_PARTITION: Final = 200
"""Characters of a partition's name, ASCII."""

MAX_SORT: Final = 200
"""Bytes of a sort key."""


class Store:
    """One room's store. Every method raises ``StoreUnreachable`` past ``deadline_s`` and the other ``Store…`` errors.

    A write that ran out of time, or whose caller was cancelled, may have been kept: read before repeating. Its
    condition makes a repeat harmless, for what was kept has another revision than the repeat expects.
    """

    __slots__ = ("_closed", "_deadline_s", "_driver", "_get_now", "_put_now", "_watchful", "_write_now")

    def __init__(self, driver: StoreDriver, *, deadline_s: float = 10.0) -> None:
        self._driver = driver
        self._deadline_s = deadline_s
        self._closed = False
        self._get_now = driver.get_now if isinstance(driver, QuickReads) else None
        self._watchful = driver if isinstance(driver, Watchful) else None
        self._write_now = driver.write_now if isinstance(driver, QuickWrites) else None
        self._put_now = driver.put_now if isinstance(driver, QuickWrites) else None

    async def get(self, partition: str, sort: bytes) -> Row | None:
        """The record at that place, or None. Sees every write acknowledged before the call."""
        self._check(partition)
        _check_sort(sort)
        try:
            if self._get_now is not None:
                row = self._get_now(partition, sort)
                if row is not Later.LATER:
                    return row
            return await within(self._deadline_s, self._driver.get(partition, sort))
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def get_many(self, partition: str, sorts: Sequence[bytes]) -> list[Row | None]:
        """As :meth:`get`, of several places, in their order: at once where the store is near, else side by side."""
        self._check(partition)
        for sort in sorts:
            _check_sort(sort)
        try:
            rows: list[Row | Literal[Later.LATER] | None] = (
                [Later.LATER] * len(sorts)
                if self._get_now is None
                else [self._get_now(partition, sort) for sort in sorts]
            )
            if Later.LATER in rows:
                return await within(self._deadline_s, self._side_by_side(partition, sorts, rows))
            return cast("list[Row | None]", rows)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def _side_by_side(
        self, partition: str, sorts: Sequence[bytes], rows: Sequence[Row | Literal[Later.LATER] | None]
    ) -> list[Row | None]:
        async def settled(sort: bytes, row: Row | Literal[Later.LATER] | None) -> Row | None:
            return await self._driver.get(partition, sort) if row is Later.LATER else row

        return await asyncio.gather(*map(settled, sorts, rows))

    async def put(
        self, partition: str, sort: bytes, body: bytes, expect: int = ABSENT, *, since: object | None = None
    ) -> int:
        """Write durably if the revision there is ``expect``; gives the new one. Raises ``ConditionFailed``.

        With ``since`` (from :meth:`moment`) also where another process has written to the room meanwhile.
        """
        if self._put_now is not None and expect >= ABSENT:
            self._check(partition)
            if not 0 < len(sort) <= MAX_SORT:
                _check_sort(sort)
            try:
                kept = self._put_now(partition, sort, body, expect, since)
                if kept is Later.LATER:
                    await asyncio.sleep(0)
                    self._check(partition)  # closed meanwhile, perhaps
                    kept = self._put_now(partition, sort, body, expect, since)
                if kept is True:
                    return expect + 1
            except OSError as lost:
                raise StoreUnreachable from lost
        await self._write(partition, (Put(sort, body, expect),), since)
        return expect + 1

    def moment(self) -> object | None:
        """Stands for the room as it is now, for ``put``; None where the store cannot tell. Never waits."""
        return None if self._watchful is None else self._watchful.moment()

    async def delete(self, partition: str, sort: bytes, expect: int) -> None:
        """Remove the record if its revision is ``expect``. Raises ``ConditionFailed``."""
        await self._write(partition, (Delete(sort, expect),))

    async def batch(self, partition: str, changes: Sequence[Change]) -> None:
        """Apply 1 to ``MAX_BATCH`` changes to distinct places, all or none. Raises ``ConditionFailed``."""
        await self._write(partition, changes)

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
        """Up to ``limit`` (1 to ``MAX_PAGE``) rows with ``after < sort < before``, by their bytes.

        ``before`` = b"" means no upper end. ``descending`` starts at the upper end, so the last fifty rows are one
        call; the next page downwards has the last row's key as its ``before``. With ``since`` (from :meth:`moment`)
        raises ``ConditionFailed`` where another process has written to the room meanwhile, and may where none has.
        """
        self._check(partition)
        _check_limit(limit)
        try:
            if since is None:
                work = self._driver.query(partition, after=after, before=before, limit=limit, descending=descending)
            else:
                assert self._watchful is not None
                work = self._watchful.query_since(
                    partition, after=after, before=before, limit=limit, descending=descending, moment=since
                )
            return await within(self._deadline_s, work)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def scan(self, *, after: tuple[str, bytes] | None = None, limit: int = MAX_PAGE) -> Sequence[ScannedRow]:
        """Rows of all partitions, ordered by partition name and sort key, after a place. For operations only."""
        self._check("" if after is None else after[0], empty=after is None)
        _check_limit(limit)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._driver.scan(after=after, limit=limit)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def scan_all(self, *, page: int = 200) -> AsyncIterator[ScannedRow]:
        """Every row, page by page; each page has its own deadline. Rows there throughout come exactly once."""
        after: tuple[str, bytes] | None = None
        while rows := await self.scan(after=after, limit=page):
            for row in rows:
                yield row
            after = (rows[-1].partition, rows[-1].row.sort)

    async def close(self) -> None:
        """Let go of what is held open. May be called again; anything else afterwards raises ``SessionClosed``."""
        self._closed = True
        await self._driver.close()

    async def _write(self, partition: str, changes: Sequence[Change], since: object | None = None) -> None:
        self._check(partition)
        _check_changes(changes)
        try:
            if self._write_now is not None and self._write_now(partition, changes, since):
                return
            if since is None or self._watchful is None:
                work = self._driver.write(partition, changes)
            else:
                work = self._watchful.write_since(partition, changes, since)
            await within(self._deadline_s, work)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    def _check(self, partition: str, *, empty: bool = False) -> None:
        if self._closed:
            raise SessionClosed
        if not (empty or (0 < len(partition) <= MAX_PARTITION and partition.isascii())):
            raise InvalidValue(at="partition", detail=f"1 to {MAX_PARTITION} ASCII characters")


def _check_sort(sort: bytes) -> None:
    if not 0 < len(sort) <= MAX_SORT:
        raise InvalidValue(at="sort", detail=f"1 to {MAX_SORT} bytes")


def _check_limit(limit: int) -> None:
    if not 0 < limit <= MAX_PAGE:
        raise InvalidValue(at="limit", detail=f"1 to {MAX_PAGE}")


def _check_changes(changes: Sequence[Change]) -> None:
    if not 0 < len(changes) <= MAX_BATCH:
        raise InvalidValue(at="changes", detail=f"1 to {MAX_BATCH} in one batch")
    for change in changes:
        if not 0 < len(change.sort) <= MAX_SORT:
            _check_sort(change.sort)
        if change.expect < ABSENT or (change.expect == ABSENT and type(change) is Delete):
            raise InvalidValue(at="expect", detail="a revision, from 1; only a put may expect none")
    if len(changes) > 1 and len({change.sort for change in changes}) != len(changes):
        raise InvalidValue(at="changes", detail="each place once in one batch")
