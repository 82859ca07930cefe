"""Permits counted in DynamoDB: how many each of the last sixty seconds had, in an item per room."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any, Final

from nagaya.cache.dynamodb_line import ENDS, NAME, DynamoLine, Item
from nagaya.cache.permits import WINDOW_S, Grant, settled
from nagaya.cache.places import place_digest
from nagaya.clouds.aws_errors import AwsRefusal
from nagaya.errors import CacheUnreachable

_TRIES: Final = 10
_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.3


class DynamoPermits:
    """It implements :class:`nagaya.cache.permits.Permits`. Two round trips a call, more where two servers meet: what
    was read is replaced only if nobody replaced it since. Counted by DynamoDB's own clock."""

    def __init__(self, line: DynamoLine) -> None:
        self._line = line

    async def settle(self, room: str, *, spent: int, wanted: int, limit: int) -> Grant:
        name = f"p:{place_digest(room)}"
        pause_s = _PAUSE_S
        for _ in range(_TRIES):
            held, now_s = await self._held(name)
            counts, grant = settled(_counts(held), now_s, spent=spent, wanted=wanted, limit=limit)
            if spent + grant.granted == 0:
                return grant
            mine = os.urandom(12)
            try:
                await self._line.put(_item(name, counts, mine, now_s), **_unchanged(held))
                return grant
            except AwsRefusal as refusal:
                now, _ = await self._held(name)
                if now is not None and now.get("by") == {"B": mine}:
                    return grant  # it was done twice, and the second time was in the first one's way
                if refusal.doubtful:
                    # A call that was cut was sent again, and somebody wrote between: whether over ours is not known.
                    raise CacheUnreachable from refusal
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise CacheUnreachable

    async def _held(self, name: str) -> tuple[Item | None, int]:
        found, now_s = await self._line.get(name)
        return found.get(name), now_s


def _counts(item: Item | None) -> dict[int, int]:
    """What an item says. One that somebody else wrote says nothing, rather than keeping everybody out."""
    if item is None:
        return {}
    try:
        return {int(second): max(0, int(count["N"])) for second, count in item["counts"]["M"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _item(name: str, counts: dict[int, int], mine: bytes, now_s: int) -> Item:
    return {
        NAME: {"S": name},
        "counts": {"M": {str(second): {"N": str(count)} for second, count in counts.items()}},
        # Fresh for every write: two that wrote the same counts are still told apart.
        "by": {"B": mine},
        ENDS: {"N": str(now_s + 2 * WINDOW_S)},
    }


def _unchanged(held: Item | None) -> dict[str, Any]:
    if held is None:
        return {"ConditionExpression": "attribute_not_exists(#n)", "ExpressionAttributeNames": {"#n": NAME}}
    if "by" not in held:
        return {"ConditionExpression": "attribute_not_exists(#b)", "ExpressionAttributeNames": {"#b": "by"}}
    return {
        "ConditionExpression": "#b = :b",
        "ExpressionAttributeNames": {"#b": "by"},
        "ExpressionAttributeValues": {":b": held["by"]},
    }
