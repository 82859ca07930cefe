"""What mem0's clients send and are given."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from nagaya.context.memory_shapes import Memory, MemoryEvent
from nagaya.server.mem0.dates import date_of, iso


class Mem0TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message. Only texts are taken."""

    text: str
    type: Literal["text"] = "text"


class Mem0Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message from which memories are taken: from users' where they are to be inferred."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Mem0TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """All of it as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class Mem0AddIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v3/memories/add/``. ``infer`` false: every message of user and assistant is kept as it is.
    Whose the memories are stands in ``filters`` or beside it; without ``user_id`` they are the caller's."""

    messages: list[Mem0Message]
    user_id: str | None = None
    agent_id: str | None = None
    app_id: str | None = None
    run_id: str | None = None
    filters: dict[str, str] | None = None
    metadata: dict[str, Any] | None = None
    infer: bool | None = None
    timestamp: int | None = None
    expiration_date: str | None = None
    custom_categories: Any = None
    custom_instructions: Any = None
    agent_custom_instructions: Any = None
    structured_data_schema: Any = None


class Mem0ListIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v3/memories/``. ``show_expired``: what has expired is never shown."""

    filters: dict[str, Any] | None = None
    start_date: str | int | None = None
    end_date: str | int | None = None
    categories: list[str] | None = None
    show_expired: bool | None = None
    latest_only: bool | None = None


class Mem0SearchIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v3/memories/search/``. ``fields`` are those that each result is to have."""

    query: str
    filters: dict[str, Any] | None = None
    top_k: int | None = None
    threshold: float | None = None
    fields: list[str] | None = None
    categories: list[str] | None = None
    keyword_search: bool | None = None
    latest_only: bool | None = None
    rerank: bool | None = None
    show_expired: bool | None = None
    metadata: Any = None
    reference_date: Any = None


class Mem0ChangeIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT /v1/memories/{id}/``. ``expiration_date`` null: it stays."""

    text: str | None = None
    metadata: dict[str, Any] | None = None
    expiration_date: str | msgspec.UnsetType | None = msgspec.UNSET
    timestamp: Any = None


class Mem0OneOfBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A memory of a batch, and what it is to become."""

    memory_id: str
    text: str | None = None
    metadata: dict[str, Any] | None = None


class Mem0BatchIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT`` and ``DELETE /v1/batch/``."""

    memories: list[Mem0OneOfBatch]


class Mem0Memory(msgspec.Struct, kw_only=True):
    """A memory as mem0's clients know it. ``expiration_date`` is its last day."""

    id: str
    memory: str
    user_id: str | None
    agent_id: str | None
    app_id: str | None
    run_id: str | None
    metadata: dict[str, Any]
    categories: list[str]
    created_at: str
    updated_at: str
    expiration_date: str | None
    score: float | msgspec.UnsetType = msgspec.UNSET


class Mem0Event(msgspec.Struct, kw_only=True):
    """One event of a memory, oldest first."""

    id: str
    memory_id: str
    event: Literal["ADD", "UPDATE", "DELETE"]
    old_memory: str | None
    new_memory: str | None
    created_at: str
    updated_at: str


class Mem0Added(msgspec.Struct):
    """A memory that was made."""

    id: str
    memory: str
    event: Literal["ADD"] = "ADD"


class Mem0AddOut(msgspec.Struct):
    """What was made at once. ``PENDING``: the tenant's model is asked about the rest in the background."""

    results: list[Mem0Added]
    status: Literal["SUCCEEDED", "PENDING"]


class Mem0Page(msgspec.Struct):
    """A page of memories, the newest first."""

    count: int
    next: str | None
    previous: str | None
    results: list[Mem0Memory]


class Mem0Found(msgspec.Struct):
    """What a search found, best first, each with a score from 0 to 1."""

    results: list[Mem0Memory]


class Mem0Entity(msgspec.Struct):
    """Somebody or something that has memories. Those of another user are not counted."""

    id: str
    name: str
    type: Literal["user", "agent", "app", "run"]
    total_memories: int | None


class Mem0Entities(msgspec.Struct):
    """All of them."""

    count: int
    next: str | None
    previous: str | None
    results: list[Mem0Entity]


class Mem0Done(msgspec.Struct):
    """What says that something was done."""

    message: str


class Mem0Pong(msgspec.Struct):
    """What says that a key is good, and for what: ``org_id`` is the tenant, ``project_id`` the same or its workspace.
    mem0's clients need both; there are no others to choose."""

    org_id: str
    project_id: str
    status: Literal["ok"] = "ok"
    user_email: None = None


def shown(memory: Memory) -> Mem0Memory:
    """A memory as mem0's clients know it."""
    return Mem0Memory(
        id=memory.id, memory=memory.text, user_id=memory.user, agent_id=memory.agent_id, app_id=memory.app_id,
        run_id=memory.run_id, metadata=memory.metadata, categories=memory.categories, created_at=iso(memory.created_at),
        updated_at=iso(memory.updated_at), expiration_date=date_of(memory.expires_at), score=memory.score,
    )  # fmt: skip


def shown_events(memory_id: str, events: list[MemoryEvent]) -> list[Mem0Event]:
    """What became of a memory, as mem0's clients know it."""
    return [
        Mem0Event(
            id=f"{memory_id}-{number}", memory_id=memory_id, event=one.event, old_memory=one.before,
            new_memory=one.after, created_at=iso(events[0].at), updated_at=iso(one.at),
        )
        for number, one in enumerate(events)
    ]  # fmt: skip
