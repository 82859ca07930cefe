"""The cache of one process: bounded in entries and bytes, each entry with its own end."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from nagaya.cache.driver import DEFAULT_TTL_S
from nagaya.kernel.clock import Clock

MAX_ENTRIES: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024


class LocalCache:
    """It implements :class:`nagaya.cache.driver.CacheDriver`. The entry unused for longest makes room for a new one.

    A place is the pair (room, key), compared as it is: no joining, no folding of case, no normalising of letters.
    """

    def __init__(self, clock: Clock, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()
        self._rooms: dict[str, set[str]] = {}
        self._bytes = 0

    async def get(self, room: str, key: str) -> bytes | None:
        entry = self._entries.get((room, key))
        if entry is None:
            return None
        ends_s, value = entry
        if ends_s <= self._clock.monotonic_s():
            self._remove(room, key)
            return None
        self._entries.move_to_end((room, key))
        return value

    async def set(self, room: str, key: str, value: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self._remove(room, key)
        if ttl_s <= 0 or len(value) > self._max_bytes:
            # Nothing that could be served, and no reason to push out everybody else's entries.
            return
        self._entries[room, key] = (self._clock.monotonic_s() + ttl_s, bytes(value))
        self._rooms.setdefault(room, set()).add(key)
        self._bytes += len(value)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._remove(*next(iter(self._entries)))

    async def delete(self, room: str, key: str) -> None:
        self._remove(room, key)

    async def delete_room(self, room: str) -> None:
        for key in list(self._rooms.get(room, ())):
            self._remove(room, key)

    async def close(self) -> None:
        """Forget everything. May be called again."""
        self._entries.clear()
        self._rooms.clear()
        self._bytes = 0

    def _remove(self, room: str, key: str) -> None:
        entry = self._entries.pop((room, key), None)
        if entry is None:
            return
        self._bytes -= len(entry[1])
        keys = self._rooms[room]
        keys.discard(key)
        if not keys:
            del self._rooms[room]
