"""Memories as a caller gives and sees them: their marks, their limits, and what is shown of one that is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, Literal, NamedTuple

import msgspec

from nagaya.context.memory_records import TENANT, USER, Parent, StoredMemory
from nagaya.errors import InvalidValue

MAX_CHARACTERS: Final = 8_000
"""Characters of one memory."""
MAX_MEMORIES: Final = 5_000
"""Memories of one owner: all of them are looked at by every search. Requests at the same time may pass it by what each
of them adds; a search then takes that much longer, and the next request is refused."""
MAX_TEXTS: Final = 100
"""Memories added in one call."""
MAX_METADATA_BYTES: Final = 8_192

MemoryScope = Literal["user", "tenant"]
Filter = Callable[[StoredMemory], bool]
"""Chooses among memories; it must not change what it looks at."""

_encode = msgspec.json.Encoder().encode


class Labels(msgspec.Struct, frozen=True):
    """What a memory is marked with, besides its owner."""

    agent_id: str | None = None
    run_id: str | None = None
    app_id: str | None = None


class Memory(msgspec.Struct, kw_only=True, frozen=True):
    """A memory as a client sees it. Times are Unix seconds. ``written_by``: ``caller``, ``rules`` or a model's name."""

    object: Literal["memory"] = "memory"
    id: str
    text: str
    scope: MemoryScope
    user: str | None
    created_at: int
    updated_at: int
    expires_at: int | None
    metadata: dict[str, Any]
    categories: list[str]
    agent_id: str | None
    run_id: str | None
    app_id: str | None
    written_by: str
    derived_from: list[Parent]
    score: float | msgspec.UnsetType = msgspec.UNSET


class MemoryEvent(msgspec.Struct, kw_only=True, frozen=True):
    """One event of a memory. A deleted one shows that it was deleted, and no text."""

    event: Literal["ADD", "UPDATE", "DELETE"]
    at: int
    before: str | None
    after: str | None


class MemoryPage(NamedTuple):
    """A page of memories; ``more``: there are others after it."""

    data: list[Memory]
    more: bool


class MemorySearch(NamedTuple):
    """What a search found, best first, and by what: ``words`` alone, or ``words+vectors``."""

    data: list[Memory]
    ranked_by: Literal["words", "words+vectors"]


def check_memory(
    texts: Sequence[str], metadata: Mapping[str, Any] | None, categories: Sequence[str], labels: Labels
) -> None:
    """Raise ``InvalidValue`` for what no memory may be."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise InvalidValue(param="messages", at="messages", detail=f"1 to {MAX_TEXTS} memories in one call")
    for text in texts:
        if not text.strip() or len(text) > MAX_CHARACTERS:
            raise InvalidValue(param="text", at="text", detail=f"1 to {MAX_CHARACTERS} characters")
    if metadata is not None and len(_encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidValue(param="metadata", at="metadata", detail=f"at most {MAX_METADATA_BYTES} bytes of JSON")
    if len(categories) > 16 or any(not 1 <= len(one) <= 64 for one in categories):
        raise InvalidValue(param="categories", at="categories", detail="at most 16 of 1 to 64 characters")
    for name in ("agent_id", "run_id", "app_id"):
        value = getattr(labels, name)
        if value is not None and not 1 <= len(value) <= 256:
            raise InvalidValue(param=name, at=name, detail="1 to 256 characters")


def labels_of(memory: StoredMemory) -> Labels:
    """What the memory is marked with."""
    return Labels(memory.agent_id, memory.run_id, memory.app_id)


def shown(memory: StoredMemory, score: float | msgspec.UnsetType = msgspec.UNSET) -> Memory:
    """The memory as its reader sees it, who may do with it what he likes: nothing in it is the stored one's."""
    is_tenants = memory.owner == TENANT
    ends_us = memory.expires_at_us
    return Memory(
        id=memory.id, text=memory.text, scope="tenant" if is_tenants else "user",
        user=None if is_tenants else memory.owner.removeprefix(USER), created_at=memory.created_at_us // 1_000_000,
        updated_at=memory.updated_at_us // 1_000_000, expires_at=ends_us // 1_000_000 if ends_us else None,
        metadata=deepcopy(memory.metadata), categories=list(memory.categories), agent_id=memory.agent_id,
        run_id=memory.run_id, app_id=memory.app_id, written_by=memory.by, derived_from=list(memory.parents),
        score=score,
    )  # fmt: skip
