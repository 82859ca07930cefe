"""Blobs as the rest of the code uses them: a driver behind limits, deadlines for every part, and one set of errors."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from nagaya.blobs.driver import MAX_BLOB_BYTES, MAX_PAGE, BlobDriver, BlobInfo, CutsBlobs, PresignsBlobs
from nagaya.blobs.names import check_name, check_part
from nagaya.errors import (
    BlobsUnreachable,
    BlobTooLarge,
    InvalidValue,
    NagayaError,
    SessionClosed,
    StoreFull,
    StoreReadOnly,
)
from nagaya.kernel.deadline import within

DEADLINE_S: Final = 30.0
"""How long the storage may take over one part, or over one call without parts."""

MAX_LIFETIME_S: Final = 3600
"""How long a pre-signed address may hold: nothing revokes it sooner."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Blobs:
    """One room's blobs, as bytes that were sealed before they came here.

    Every method raises ``BlobsUnreachable`` where the storage does not answer within ``deadline_s`` (for each part, not
    for the whole), ``BlobsBusy`` where it goes on refusing for its load, ``BlobsRefused`` where a permission is
    missing, and ``SessionClosed`` after :meth:`close`. A write that ran out of time may have been kept.
    """

    __slots__ = ("_closed", "_deadline_s", "_driver")

    def __init__(self, driver: BlobDriver, *, deadline_s: float = DEADLINE_S) -> None:
        self._driver = driver
        self._deadline_s = deadline_s
        self._closed = False

    async def put(self, name: str, parts: AsyncIterable[bytes], *, expect: str | None = None) -> BlobInfo:
        """Write a blob from parts, whole or not at all: where ``parts`` raises or the caller is cancelled, nothing.

        ``expect``: None = overwrite, ``""`` = must be absent, else the version that it replaces. Raises
        ``ConditionFailed``, ``BlobTooLarge``, and whatever ``parts`` raises. The time that ``parts`` takes to come is
        not limited here; who makes them does that. With a version in ``expect`` a repeat is harmless.
        """
        self._check(name)
        source = _Source(parts, self._deadline_s)
        try:
            async with asyncio.timeout(self._deadline_s) as limit, aclosing(source.timed(limit)) as timed:
                return await self._driver.put(name, timed, expect=expect)
        except OSError as lost:
            if lost is source.failure:
                raise
            raise _mapped(lost) from lost

    async def read(
        self, name: str, *, start: int = 0, end: int | None = None, cut: tuple[int, int] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes ``start <= n < end`` (None: to the end) in pieces, all of one version of the blob.

        ``cut``: how many bytes the first piece and each further one had better have. A storage that cannot cut gives
        them as they come.

        Raises ``NotFound`` at the first piece, ``InvalidValue`` where the range is none. Close the iterator
        (``aclosing``) where it may be left early, so that the connection goes back at once.
        """
        self._check(name)
        if start < 0 or (end is not None and end <= start):
            raise InvalidValue(at="range", detail="0 <= start < end")
        if cut is not None and isinstance(self._driver, CutsBlobs):
            pieces = self._driver.read_cut(name, start=start, end=end, first=cut[0], each=cut[1])
        else:
            pieces = self._driver.read(name, start=start, end=end)
        try:
            while (piece := await self._next(pieces)) is not None:
                yield piece
                del piece
        except OSError as lost:
            raise _mapped(lost) from lost
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def info(self, name: str) -> BlobInfo | None:
        """The blob's size and version now, or None where there is none."""
        self._check(name)
        try:
            return await within(self._deadline_s, self._driver.info(name))
        except OSError as lost:
            raise _mapped(lost) from lost

    async def delete(self, name: str) -> None:
        """Remove a blob. One that is not there is no error; may be repeated."""
        self._check(name)
        try:
            await within(self._deadline_s, self._driver.delete(name))
        except OSError as lost:
            raise _mapped(lost) from lost

    async def list(self, *, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> Sequence[BlobInfo]:
        """Up to ``limit`` (1 to ``MAX_PAGE``) blobs that begin with ``prefix``, after a name, by their bytes. Fewer
        than ``limit`` means that there are no more."""
        self._check()
        check_part(prefix, "prefix")
        check_part(after, "after")
        if not 0 < limit <= MAX_PAGE:
            raise InvalidValue(at="limit", detail=f"1 to {MAX_PAGE}")
        try:
            return await within(self._deadline_s, self._list(prefix, after, limit))
        except OSError as lost:
            raise _mapped(lost) from lost

    async def list_all(self, *, prefix: str = "", page: int = MAX_PAGE) -> AsyncGenerator[BlobInfo, None]:
        """Every blob that begins with ``prefix``, page by page; each page has its own deadline."""
        after = ""
        while True:
            found = await self.list(prefix=prefix, after=after, limit=page)
            for each in found:
                yield each
            if len(found) < page:
                return
            after = found[-1].name

    async def presigned_get(self, name: str, *, lifetime_s: int) -> str | None:
        """An address that gives the sealed bytes for ``lifetime_s`` (1 to 3600) seconds; None: the storage has no
        such power, so read them and hand them on."""
        self._check(name)
        _check_lifetime(lifetime_s)
        if not isinstance(self._driver, PresignsBlobs):
            return None
        try:
            return await within(self._deadline_s, self._driver.presigned_get(name, lifetime_s=lifetime_s))
        except OSError as lost:
            raise _mapped(lost) from lost

    async def presigned_put(self, name: str, *, lifetime_s: int, size: int) -> str | None:
        """An address that takes one PUT of ``size`` sealed bytes for ``lifetime_s`` (1 to 3600) seconds; None: the
        storage has no such power. The client sends ``x-ms-blob-type: BlockBlob``."""
        self._check(name)
        _check_lifetime(lifetime_s)
        if not isinstance(self._driver, PresignsBlobs):
            return None
        if not 0 <= size <= MAX_BLOB_BYTES:
            raise BlobTooLarge(limit_bytes=MAX_BLOB_BYTES)
        try:
            return await within(self._deadline_s, self._driver.presigned_put(name, lifetime_s=lifetime_s, size=size))
        except OSError as lost:
            raise _mapped(lost) from lost

    async def close(self) -> None:
        """Let go of what is held open. May be called again; anything else afterwards raises ``SessionClosed``."""
        self._closed = True
        await self._driver.close()

    async def _list(self, prefix: str, after: str, limit: int) -> Sequence[BlobInfo]:
        return await self._driver.list(prefix=prefix, after=after, limit=limit)

    async def _next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        async with asyncio.timeout(self._deadline_s):
            return await anext(pieces, None)

    def _check(self, name: str | None = None) -> None:
        if self._closed:
            raise SessionClosed
        if name is not None:
            check_name(name)


class _Source:
    """What is to be written, with the clock stopped while it is being made."""

    def __init__(self, parts: AsyncIterable[bytes], deadline_s: float) -> None:
        self._parts = parts
        self._deadline_s = deadline_s
        self.failure: BaseException | None = None

    async def timed(self, limit: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
        clock = asyncio.get_running_loop().time
        parts = aiter(self._parts)
        total = 0
        while True:
            limit.reschedule(None)
            try:
                part = await anext(parts, None)
            except BaseException as failure:
                # The maker's own trouble, such as a client that went away, is not the storage's.
                self.failure = failure
                raise
            limit.reschedule(clock() + self._deadline_s)
            if part is None:
                return
            total += len(part)
            if total > MAX_BLOB_BYTES:
                raise BlobTooLarge(limit_bytes=MAX_BLOB_BYTES)
            if part:
                taken = [part]
                del part
                yield taken.pop()  # held by its taker alone


def _check_lifetime(lifetime_s: int) -> None:
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise InvalidValue(at="lifetime_s", detail=f"1 to {MAX_LIFETIME_S}")


def _mapped(lost: OSError) -> NagayaError:
    if lost.errno in _FULL:
        return StoreFull()
    if lost.errno in _READ_ONLY:
        return StoreReadOnly()
    return BlobsUnreachable()
