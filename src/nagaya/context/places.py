"""Where a conversation lies: its partition, its head, and the places of its items."""

from __future__ import annotations

from typing import Final

from nagaya.connections.room import TenantSession
from nagaya.records.sealed_store import Partition

HEAD: Final = b"h"
ITEM: Final = b"i"
ITEMS_END: Final = b"j"

_Placed = list[tuple[int, bytes]]


def partition_of(conversation_id: str) -> Partition:
    """The conversation's partition."""
    return Partition("conversation", conversation_id)


def item_sort(sequence: int) -> bytes:
    """Where the item at this place lies."""
    return ITEM + sequence.to_bytes(8, "big")


async def item_places(
    session: TenantSession, conversation_id: str, first: int, upto: int | None, *, limit: int, descending: bool = False
) -> _Placed:
    """Up to ``limit`` places ``first <= n < upto`` (None: to the end) with what is stored there; b"" where an item was
    deleted. Who asks has checked that the conversation may be read."""
    after = item_sort(first - 1) if first else ITEM
    before = ITEMS_END if upto is None else item_sort(upto)
    rows = await session.records.query(
        partition_of(conversation_id), after=after, before=before, limit=limit, descending=descending
    )
    return [(int.from_bytes(row.sort[1:], "big"), row.body) for row in rows]
