"""A cache that several servers share, in a DynamoDB table. It is handed sealed values only; it seals nothing itself.

As in Redis, an entry's name is a hash of its place, and it counts only while it bears the random mark of its room: to
forget a room is to forget its mark. DynamoDB removes what has ended within days, so each entry is also judged by the
moment that is written in it.
"""

from __future__ import annotations

import os
from typing import Final

from nagaya.adapters import Surroundings
from nagaya.cache.driver import DEFAULT_TTL_S
from nagaya.cache.dynamodb_line import ENDS, DynamoLine, Item
from nagaya.cache.places import place_digest
from nagaya.clouds.aws_errors import AwsRefusal
from nagaya.errors import CacheUnreachable

MARK_BYTES: Final = 16
LONGEST_TTL_S: Final = 31 * 86_400.0
LARGEST_BYTES: Final = 380_000
"""Of a value. DynamoDB's limit is 400 KB with name and mark."""

_MARK_SLACK_S: Final = 86_400
"""So much longer than its entries does a mark last: it is then seldom written."""
_TRIES: Final = 5


async def open_cache(url: str, surroundings: Surroundings) -> DynamoCache:
    """The cache at ``dynamodb://REGION/TABLE``. Nothing is connected yet. Raises ``SettingsInvalid``."""
    return DynamoCache(DynamoLine(url, surroundings))


class DynamoCache:
    """It implements :class:`nagaya.cache.driver.CacheDriver`. Every method raises ``CacheUnreachable`` within some
    seconds where DynamoDB does not answer; every method may be repeated. One round trip each, ``set`` two.

    A value above ``LARGEST_BYTES`` is not kept, and neither is the one before it.
    """

    def __init__(self, line: DynamoLine) -> None:
        self._line = line

    async def get(self, room: str, key: str) -> bytes | None:
        mark_name, name = _mark_name(room), _entry_name(room, key)
        found, _ = await self._line.get(mark_name, name)
        mark, entry = _mark_in(found.get(mark_name)), found.get(name, {})
        value, until = entry.get("value", {}).get("B"), entry.get("until", {}).get("N", "")
        # Whoever can write to the table may have written anything: then it is a miss.
        if mark is None or value is None or not until.isdecimal() or int(until) <= self._line.clock.now_us():
            return None
        return bytes(value[MARK_BYTES:]) if value[:MARK_BYTES] == mark else None

    async def set(self, room: str, key: str, value: bytes, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        life_us = int(min(ttl_s, LONGEST_TTL_S) * 1_000_000)
        if life_us <= 0 or len(value) > LARGEST_BYTES:
            await self.delete(room, key)
            return
        until_us = self._line.clock.now_us() + life_us
        # DynamoDB must not remove it a moment early.
        ends_s = until_us // 1_000_000 + 2
        mark = await self._mark(room, ends_s)
        await self._line.put(
            {
                "pk": {"S": _entry_name(room, key)},
                "value": {"B": mark + value},
                "until": {"N": str(until_us)},
                ENDS: {"N": str(ends_s)},
            }
        )

    async def delete(self, room: str, key: str) -> None:
        await self._line.delete(_entry_name(room, key))

    async def delete_room(self, room: str) -> None:
        await self._line.delete(_mark_name(room))

    async def close(self) -> None:
        await self._line.close()

    async def _mark(self, room: str, ends_s: int) -> bytes:
        """The room's mark, which lasts at least until ``ends_s``; a new one where it has none."""
        name = _mark_name(room)
        for _ in range(_TRIES):
            found, _now = await self._line.get(name)
            held = found.get(name, {})
            mark, until = _mark_in(held), held.get(ENDS, {}).get("N", "")
            if held and (mark is None or not until.isdecimal()):
                await self._line.delete(name)  # none of ours
                continue
            if mark is not None and int(until) >= ends_s:
                return mark
            try:
                item = await self._line.update(
                    name,
                    UpdateExpression="SET #m = if_not_exists(#m, :m), #e = :e",
                    # Another server's entry may need it for longer.
                    ConditionExpression="attribute_not_exists(#e) OR #e < :e",
                    ExpressionAttributeNames={"#m": "mark", "#e": ENDS},
                    ExpressionAttributeValues={
                        ":m": {"B": os.urandom(MARK_BYTES)},
                        ":e": {"N": str(ends_s + _MARK_SLACK_S)},
                    },
                )
            except AwsRefusal:
                continue  # another server was first; look at what it wrote
            return bytes(item["mark"]["B"])
        raise CacheUnreachable


def _mark_in(item: Item | None) -> bytes | None:
    mark = (item or {}).get("mark", {}).get("B")
    return bytes(mark) if mark is not None and len(mark) == MARK_BYTES else None


def _mark_name(room: str) -> str:
    return f"m:{place_digest(room)}"


def _entry_name(room: str, key: str) -> str:
    return f"e:{place_digest(room, key)}"
