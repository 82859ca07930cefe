"""Where a conversation lies: its partition, its head, and the places of its items."""

from __future__ import annotations

from typing import Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.records.sealed_store import Partition, Record

WORDS: Final = b"g"
"""The words of messages, before the head: both are read as one range."""
HEAD: Final = b"h"
ITEM: Final = b"i"
ITEMS_END: Final = b"j"
APPROVAL: Final = b"p"
RESPONSE: Final = b"r"
RESPONSES_END: Final = b"s"
SHARED: Final = Partition("conversations-shared", "all")

_Placed = list[tuple[int, bytes]]


class ForkedFrom(msgspec.Struct, frozen=True):
    """Where a conversation began: up to which item of which other one it is a copy."""

    conversation_id: str
    item_id: str | None


class ConversationHead(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is stored of a conversation besides its items."""

    id: str
    owner: str
    created_at_us: int
    metadata: dict[str, str] = {}
    shared: bool = False
    archived: bool = False
    forked_from: ForkedFrom | None = None
    deleted_at_us: int = 0
    expires_at_us: int = 0

    def is_there(self, now_us: int) -> bool:
        """Whether it can be read: neither deleted nor past its term."""
        return not self.deleted_at_us and (not self.expires_at_us or now_us < self.expires_at_us)


def partition_of(conversation_id: str) -> Partition:
    """The conversation's partition."""
    return Partition("conversation", conversation_id)


async def list_of(session: TenantSession, owner: str) -> Partition:
    """The list of a user's conversations."""
    return Partition("conversations-of", await session.records.blind("conversation.owner", owner))


def deleted_of(listed: Partition) -> Partition:
    """The deleted ones of the same user."""
    return Partition("conversations-deleted", listed.name)


def response_sort(response_id: str) -> bytes:
    """Where it is noted that a response was made in the conversation."""
    return RESPONSE + response_id.encode()


def approval_sort(request_id: str) -> bytes:
    """Where it is noted which run answers a request for an approval: beside the request."""
    return APPROVAL + request_id.encode()


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


_head_decoder = msgspec.json.Decoder(ConversationHead)


def is_there(head: Record, now_us: int) -> bool:
    """Whether the conversation with this head can be read."""
    return _head_decoder.decode(head.body).is_there(now_us)
