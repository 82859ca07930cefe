"""A cache that several servers share, in Redis or Valkey. It is handed sealed values only; it seals nothing itself.

An entry's name is a hash of the room's and the key's lengths and bytes, so no two places share one, and a name tells a
reader of the server nothing. Each room has a random mark; an entry counts only while it bears its room's mark. So to
forget a room is to forget its mark, one step however many entries there were; they end by themselves.
"""

from __future__ import annotations

import math
import os
from typing import Final

from nagaya.adapters import Surroundings
from nagaya.cache.driver import DEFAULT_TTL_S
from nagaya.cache.places import place_digest
from nagaya.cache.redis_line import RedisLine, Script

MARK_BYTES: Final = 16
LONGEST_TTL_S: Final = 31 * 86_400.0

# The mark outlives every entry that bears it.
_SET: Final = Script("""
local mark = redis.call('GET', KEYS[1])
local life = tonumber(ARGV[2])
if not mark then
  mark = ARGV[3]
  redis.call('SET', KEYS[1], mark, 'PX', life + 1000)
elseif redis.call('PTTL', KEYS[1]) < life + 1000 then
  redis.call('PEXPIRE', KEYS[1], life + 1000)
end
redis.call('SET', KEYS[2], mark .. ARGV[1], 'PX', life)
return 1
""")


async def open_cache(url: str, surroundings: Surroundings) -> RedisCache:
    """The cache at a ``redis://`` or ``rediss://`` address. Nothing is connected yet. Raises ``SettingsInvalid``."""
    return RedisCache(RedisLine(url, surroundings.clock))


class RedisCache:
    """It implements :class:`nagaya.cache.driver.CacheDriver`. Every method raises ``CacheUnreachable`` within a second
    where the server does not answer; every method may be repeated. One round trip each."""

    def __init__(self, line: RedisLine) -> None:
        self._line = line

    async def get(self, room: str, key: str) -> bytes | None:
        mark, entry = await self._line.ask("MGET", *_names(room, key))
        if mark is None or entry is None or entry[:MARK_BYTES] != mark:
            return None
        value: bytes = entry[MARK_BYTES:]
        return value

    async def set(self, room: str, key: str, value: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        life_ms = math.floor(min(ttl_s, LONGEST_TTL_S) * 1000)
        if life_ms <= 0:
            await self.delete(room, key)
            return
        await self._line.run(_SET, _names(room, key), bytes(value), life_ms, os.urandom(MARK_BYTES))

    async def delete(self, room: str, key: str) -> None:
        await self._line.ask("DEL", _names(room, key)[1])

    async def delete_room(self, room: str) -> None:
        await self._line.ask("DEL", room_name(room, b"m"))

    async def close(self) -> None:
        await self._line.close()


def room_name(room: str, kind: bytes) -> bytes:
    """A name of the room's own, by what it is for. In braces: a cluster keeps all of a room's names on one server."""
    return b"nagaya:{" + place_digest(room).encode() + b"}:" + kind


def _names(room: str, key: str) -> tuple[bytes, bytes]:
    return room_name(room, b"m"), room_name(room, b"e:") + place_digest(room, key).encode()
