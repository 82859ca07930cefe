"""A bounded memory of what was read lately, so that ten thousand tenants take no more room than the busy ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The last ``limit`` things used, each for at most ``ttl_s`` seconds where that is given."""

    __slots__ = ("_entries", "_limit", "_now_s", "_ttl_s")

    def __init__(self, limit: int, *, now_s: Callable[[], float], ttl_s: float | None = None) -> None:
        self._limit = limit
        self._now_s = now_s
        self._ttl_s = ttl_s
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """What was put there, or None where it was never put, was pushed out, or is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._ttl_s is not None and self._now_s() - entry[1] >= self._ttl_s:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V) -> None:
        self._entries[key] = (value, self._now_s())
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def correct(self, key: K, value: V) -> None:
        """Put another value where one is held; its age goes on."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries[key] = (value, entry[1])

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)

    def drop_where(self, matches: Callable[[V], bool]) -> None:
        for key in [key for key, (value, _) in self._entries.items() if matches(value)]:
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()
