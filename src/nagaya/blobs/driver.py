"""The blob port: named byte strings of one room, written whole, read in ranges. Contents come already sealed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class BlobInfo(NamedTuple):
    """A blob: its name, size in bytes, and a version text that changes with its content (an etag)."""

    name: str
    size: int
    version: str


class BlobDriver(Protocol):
    """One room's blobs. Names are 1–512 characters of ``A-Z a-z 0-9 - _ . /``, no empty or dotted segment.

    Raises the vendor's own errors or Nagaya's; the portable class maps them, sets deadlines and checks limits.
    """

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        """Write a blob from parts, whole or not at all. ``expect``: None = overwrite, ``""`` = must be absent, else
        the version it replaces. Raises ``ConditionFailed``. Never holds more than a few parts in memory."""
        ...

    def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes ``start <= n < end`` in pieces. Raises ``NotFound("file")`` at the first piece."""
        ...

    async def info(self, name: str) -> BlobInfo | None: ...

    async def delete(self, name: str) -> None:
        """Remove. A name that is not there is no error."""
        ...

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[BlobInfo]:
        """Blobs by name, in order, after a name."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class PresignsBlobs(Protocol):
    """An optional power: addresses with which a client moves sealed bytes itself, for a short time."""

    async def presigned_get(self, name: str, *, lifetime_s: int) -> str: ...
    async def presigned_put(self, name: str, *, lifetime_s: int, size: int) -> str: ...


class BlobHouse(Protocol):
    """All rooms under one blob address."""

    async def create(self, room: str) -> None: ...
    async def open(self, room: str) -> BlobDriver: ...
    async def destroy(self, room: str) -> None: ...
    async def size_bytes(self, room: str) -> int: ...
    async def close(self) -> None: ...
