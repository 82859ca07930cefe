"""The cache port. A place in a cache is (room, key): two fields, never one joined string, so that ``acme`` can
never be asked for ``acme-corp``'s entries."""

from __future__ import annotations

from typing import Final, Protocol

DEFAULT_TTL_S: Final = 300.0
"""How long an entry lives unless told otherwise (the guide's figure)."""


class CacheDriver(Protocol):
    async def get(self, room: str, key: str) -> bytes | None:
        """The value, or None where it is absent or past its time."""
        ...

    async def set(self, room: str, key: str, value: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> None: ...

    async def delete(self, room: str, key: str) -> None: ...

    async def delete_room(self, room: str) -> None:
        """Forget everything of one room, and of no other."""
        ...

    async def close(self) -> None: ...
