"""A room's cache, sealed before it leaves the process: whoever has the server learns nothing and can plant nothing."""

from __future__ import annotations

import os
from typing import Final

import structlog

from nagaya.cache.driver import DEFAULT_TTL_S, CacheDriver
from nagaya.errors import CacheUnreachable, SealBroken
from nagaya.kernel.clock import Clock
from nagaya.records.envelope import NONCE_BYTES
from nagaya.records.sealer import Partition, Sealer

_PARTITION: Final = Partition("cache", "all")
"""One for all keys: a derived key for each would push those of the records out of the sealer's memory."""

_MOMENT_BYTES: Final = 8

_log = structlog.get_logger(__name__)


class SealedCache:
    """The cache of the sealer's room. An entry opens only in its room, under its key, before its end; anything else
    (altered, moved, another room's, past its time) is a miss and never an error.

    ``forgiving``: a cache that is away is a miss too, and what is set is lost; without it, ``get`` and ``set`` raise
    ``CacheUnreachable``. ``delete`` and ``clear`` always do: what could not be forgotten must not be believed to be.
    Every method raises the ``Key…`` errors of the keyring where it needs the key, and may be repeated.
    A cache that keeps what it was told to forget can bring it back until that entry's end: keep copies here, no truths.
    """

    def __init__(self, driver: CacheDriver, sealer: Sealer, clock: Clock, *, forgiving: bool = True) -> None:
        self._driver = driver
        self._sealer = sealer
        self._clock = clock
        self._forgiving = forgiving

    async def get(self, key: str) -> bytes | None:
        """The value, or None."""
        try:
            sealed = await self._driver.get(self._sealer.room, key)
        except CacheUnreachable:
            if self._forgiving:
                return None
            raise
        if sealed is None:
            return None
        try:
            body = await self._sealer.open(_PARTITION, _sort(key), 1, sealed)
        except SealBroken:
            _log.warning("a cache entry does not open", action="cache.seal_broken", room=self._sealer.room)
            return None
        ends_us = int.from_bytes(body[:_MOMENT_BYTES], "big")
        return body[_MOMENT_BYTES:] if self._clock.now_us() < ends_us else None

    async def set(self, key: str, value: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        """Keep a copy for ``ttl_s`` seconds at the longest."""
        ends_us = max(0, self._clock.now_us() + int(ttl_s * 1_000_000))
        cipher = self._sealer.held_to_seal(_PARTITION) or await self._sealer.to_seal(_PARTITION)
        body = ends_us.to_bytes(_MOMENT_BYTES, "big") + value
        sealed = cipher.seal(_sort(key), 1, body, os.urandom(NONCE_BYTES))
        try:
            await self._driver.set(self._sealer.room, key, sealed, ttl_s=ttl_s)
        except CacheUnreachable:
            if not self._forgiving:
                raise

    async def delete(self, key: str) -> None:
        await self._driver.delete(self._sealer.room, key)

    async def clear(self) -> None:
        """Forget everything of the room, and of no other."""
        await self._driver.delete_room(self._sealer.room)


def _sort(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
