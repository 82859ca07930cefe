"""Permits counted in Redis or Valkey: how many each of the last sixty seconds had, in a hash per room."""

from __future__ import annotations

from typing import Final

from nagaya.cache.permits import WINDOW_S, Grant
from nagaya.cache.redis import room_name
from nagaya.cache.redis_line import RedisLine, Script

# The server's own clock counts, so that servers whose clocks differ agree.
_SETTLE: Final = Script(f"""
local now = tonumber(redis.call('TIME')[1])
local spent, wanted, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found = redis.call('HGETALL', KEYS[1])
local total, seconds, counts = spent, {{}}, {{}}
for at = 1, #found, 2 do
  local second, count = tonumber(found[at]), tonumber(found[at + 1])
  if second < now - {WINDOW_S} or second > now then
    redis.call('HDEL', KEYS[1], found[at])
  else
    total = total + count
    counts[second] = count
    seconds[#seconds + 1] = second
  end
end
local granted = math.max(0, math.min(wanted, limit - total))
local counted = spent + granted
if counted > 0 then
  redis.call('HINCRBY', KEYS[1], now, counted)
  redis.call('EXPIRE', KEYS[1], {WINDOW_S} + 2)
  if not counts[now] then
    counts[now] = 0
    seconds[#seconds + 1] = now
  end
  counts[now] = counts[now] + counted
end
total = total + granted
if total < limit then
  return {{granted, limit - total, 0}}
end
table.sort(seconds)
for _, second in ipairs(seconds) do
  total = total - counts[second]
  if total < limit then
    return {{granted, 0, math.max(1, second + {WINDOW_S} + 1 - now)}}
  end
end
return {{granted, 0, 1}}
""")


class RedisPermits:
    """It implements :class:`nagaya.cache.permits.Permits`. One round trip a call."""

    def __init__(self, line: RedisLine) -> None:
        self._line = line

    async def settle(self, room: str, *, spent: int, wanted: int, limit: int) -> Grant:
        return Grant(*await self._line.run(_SETTLE, (room_name(room, b"p"),), spent, wanted, limit))
