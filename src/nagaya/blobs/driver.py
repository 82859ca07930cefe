"""The blob port: named byte strings of one room, written whole, read in ranges. Contents come already sealed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

MAX_PAGE: Final = 1000
"""Blobs one listing returns at the most: a page of S3."""

MAX_BLOB_BYTES: Final = 32 * 1024**3
"""Bytes of one blob, sealed. 10,000 parts of 5 MiB are what S3 takes without larger parts in memory."""


class BlobInfo(NamedTuple):
    """A blob: its name, size in bytes, and a version text that changes with its content (an etag)."""

    name: str
    size: int
    version: str


class BlobDriver(Protocol):
    """One room's blobs. Names are 1–512 characters of ``A-Z a-z 0-9 - _ . /``, in segments of at most 120, none of
    them empty or beginning or ending with a dot.

    Raises the vendor's own errors or Nagaya's; the portable class maps ``OSError`` and ``TimeoutError``, sets deadlines
    and checks limits. All may be called concurrently.
    """

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        """Write a blob from parts, whole or not at all. ``expect``: None = overwrite, ``""`` = must be absent, else
        the version it replaces. Raises ``ConditionFailed``. Never holds more than a few parts in memory.

        Where ``parts`` raises, or the caller is cancelled before the last part, nothing is written. Of two writers at
        once the later wins, or is told ``ConditionFailed``.
        """
        ...

    def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes ``start <= n < end`` in pieces of at most about 1 MiB, all of one version of the blob. Raises
        ``NotFound("file")`` at the first piece. A ``start`` past the end gives nothing."""
        ...

    async def info(self, name: str) -> BlobInfo | None:
        """The blob as it is now, or None."""
        ...

    async def delete(self, name: str) -> None:
        """Remove. A name that is not there is no error."""
        ...

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[BlobInfo]:
        """Up to ``limit`` blobs whose names begin with ``prefix`` and come after ``after``, in the order of their
        bytes. Fewer than ``limit`` means: there are no more."""
        ...

    async def close(self) -> None:
        """Let go of what is held open. May be called again."""
        ...


@runtime_checkable
class PresignsBlobs(Protocol):
    """An optional power: addresses with which a client moves sealed bytes itself, for a short time."""

    async def presigned_get(self, name: str, *, lifetime_s: int) -> str:
        """An address that gives the blob's bytes to whoever holds it."""
        ...

    async def presigned_put(self, name: str, *, lifetime_s: int, size: int) -> str:
        """An address that takes one PUT of ``size`` bytes. The client sends ``x-ms-blob-type: BlockBlob`` with it,
        which Azure wants and others ignore."""
        ...


@runtime_checkable
class CutsBlobs(Protocol):
    """An optional power: pieces that end where the reader wants them to, so that it need not put them together."""

    def read_cut(self, name: str, *, start: int, end: int | None, first: int, each: int) -> AsyncIterator[bytes]:
        """As :meth:`BlobDriver.read`, in a piece of ``first`` bytes and further ones of ``each``; the last may be
        shorter."""
        ...


class BlobHouse(Protocol):
    """All rooms under one blob address."""

    async def create(self, room: str) -> None:
        """Make a place for a new room, and prove by it that writing is allowed. Raises ``TenantExists`` where one is
        already there."""
        ...

    async def open(self, room: str) -> BlobDriver:
        """The room's blobs. Raises ``StoreDamaged`` where there is no such room."""
        ...

    async def destroy(self, room: str) -> None:
        """Remove the room and everything in it, unfinished uploads too. A room that is not there is no error."""
        ...

    async def size_bytes(self, room: str) -> int:
        """How many bytes the room's blobs take at rest."""
        ...

    async def close(self) -> None:
        """Close everything opened. May be called again."""
        ...
