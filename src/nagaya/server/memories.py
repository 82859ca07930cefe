"""``/v1/memories``: what is known about a user and its tenant from one conversation to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from nagaya.context.memory_extraction import UserSaid, remember
from nagaya.context.memory_records import StoredMemory
from nagaya.context.memory_shapes import Labels, Memory, MemoryEvent, MemoryScope
from nagaya.errors import InvalidValue, MissingParameter
from nagaya.server.calls import Call, Reply, encode, number_of, order_of
from nagaya.tenancy.principal import Scope


class SaidIn(msgspec.Struct, forbid_unknown_fields=True):
    """A message from which memories may be taken; those of users only are."""

    role: Literal["user", "assistant", "system", "developer", "tool"]
    content: str
    name: str | None = None


class MemoryIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/memories``: a text to keep as it is, or messages to take memories from (``infer`` false:
    each message of a user is kept as it is)."""

    text: str | None = None
    messages: list[SaidIn] | None = None
    infer: bool | None = None
    scope: MemoryScope = "user"
    user: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    app_id: str | None = None
    metadata: dict[str, Any] | None = None
    categories: list[str] | None = None
    expires_at: int | None = None


class MemoryChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST`` or ``PUT /v1/memories/{id}``. ``expires_at`` null: it stays."""

    text: str | None = None
    metadata: dict[str, Any] | None = None
    categories: list[str] | None = None
    expires_at: int | msgspec.UnsetType | None = msgspec.UNSET


class MemoryQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/memories/search``. Without ``scope``, the user's and the tenant's are searched."""

    query: str
    scope: MemoryScope | None = None
    user: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    app_id: str | None = None
    categories: list[str] | None = None
    limit: int = 10


class MemoryList(msgspec.Struct):
    """Memories, and whether there are more. ``pending``: a model is asked for others in the background."""

    data: list[Memory]
    has_more: bool = False
    pending: bool = False
    object: str = "list"


class MemoryHits(msgspec.Struct):
    """What was found, best first. ``ranked_by``: ``words``, or ``words+vectors`` with an embedding model."""

    data: list[Memory]
    ranked_by: str
    object: str = "list"


class MemoryHistory(msgspec.Struct):
    """What became of a memory, oldest first."""

    data: list[MemoryEvent]
    object: str = "list"


class MemoryDeleted(msgspec.Struct):
    """What says that a memory is gone."""

    id: str
    deleted: bool = True
    object: str = "memory.deleted"


class MemoriesDeleted(msgspec.Struct):
    """How many are gone."""

    deleted: int
    object: str = "memories.deleted"


MARKS: Final = {"user": "", "scope": "", "agent_id": "", "run_id": "", "app_id": "", "category": ""}


async def add(call: Call) -> Reply:
    """Keep a text, or what messages tell about the user, as memories."""
    async with await call.admit() as context:
        given = await call.json(MemoryIn)
        marks: dict[str, Any] = {
            "scope": given.scope, "user": given.user, "labels": Labels(given.agent_id, given.run_id, given.app_id),
            "metadata": given.metadata, "categories": given.categories or (), "expires_at": given.expires_at,
        }  # fmt: skip
        if (given.text is None) == (given.messages is None):
            raise MissingParameter(param="text", at="text or messages (one of them)")
        if given.text is not None:
            return Reply(encode(MemoryList(await context.memories.add([given.text], **marks))))
        said = [one.content for one in given.messages or () if one.role == "user"]
        if given.infer is False:
            return Reply(encode(MemoryList(await context.memories.add(said, **marks))))
        model = await context.session.model(None)
        found = await remember(context.session, context.meter, [UserSaid(one) for one in said], model, **marks)
        return Reply(encode(MemoryList(found.added, pending=found.pending)))


async def listing(call: Call) -> Reply:
    """The caller's memories, newest first; ``scope=tenant``: the tenant's; ``user``: for an administrator."""
    async with await call.admit() as context:
        query = call.query({"after": "", "limit": "20", "order": "desc", **MARKS})
        page = await context.memories.list(
            scope=scope_of(query["scope"]),
            user=query["user"] or None,
            where=marked(query),
            after=query["after"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            order=order_of(query["order"]),
        )
        return Reply(encode(MemoryList(page.data, page.more)))


async def search(call: Call) -> Reply:
    """The memories that fit a question, best first."""
    async with await call.admit(Scope.READ) as context:
        given = await call.json(MemoryQuestion)
        if not 1 <= given.limit <= 100:
            raise InvalidValue(param="limit", at="limit", detail="expected a whole number from 1 to 100")
        wanted = {name: getattr(given, name) or "" for name in ("agent_id", "run_id", "app_id")}
        found = await context.memories.search(
            given.query, scope=given.scope, user=given.user, where=marked(wanted, given.categories), limit=given.limit
        )
        return Reply(encode(MemoryHits(found.data, found.ranked_by)))


async def retrieve(call: Call) -> Reply:
    """One memory."""
    async with await call.admit() as context:
        return Reply(encode(await context.memories.retrieve(call.params[0])))


async def update(call: Call) -> Reply:
    """Change a memory; its former text stays in its history."""
    async with await call.admit() as context:
        given = await call.json(MemoryChange)
        changed = await context.memories.update(
            call.params[0],
            text=given.text,
            metadata=given.metadata,
            categories=given.categories,
            expires_at=given.expires_at,
        )
        return Reply(encode(changed))


async def delete(call: Call) -> Reply:
    """Delete a memory with every text it ever had."""
    async with await call.admit() as context:
        await context.memories.delete(call.params[0])
        return Reply(encode(MemoryDeleted(call.params[0])))


async def delete_all(call: Call) -> Reply:
    """Delete the caller's memories, or those with the marks that the query names."""
    async with await call.admit() as context:
        query = call.query(MARKS)
        gone = await context.memories.delete_all(
            scope=scope_of(query["scope"]), user=query["user"] or None, where=marked(query)
        )
        return Reply(encode(MemoriesDeleted(gone)))


async def history(call: Call) -> Reply:
    """What became of a memory: every text it had, until it is deleted."""
    async with await call.admit() as context:
        return Reply(encode(MemoryHistory(await context.memories.history(call.params[0]))))


def scope_of(text: str) -> MemoryScope:
    """A scope in a query; the user's where none is named."""
    if text in ("", "user"):
        return "user"
    if text == "tenant":
        return "tenant"
    raise InvalidValue(param="scope", at="scope", detail="expected 'user' or 'tenant'")


def marked(wanted: dict[str, str], categories: list[str] | None = None) -> Callable[[StoredMemory], bool]:
    """Whether a memory has the labels that are named, and one of the categories."""
    any_of = set(categories or ()) | ({wanted["category"]} if wanted.get("category") else set())

    def fits(memory: StoredMemory) -> bool:
        for name in ("agent_id", "run_id", "app_id"):
            if wanted.get(name) and getattr(memory, name) != wanted[name]:
                return False
        return not any_of or bool(any_of.intersection(memory.categories))

    return fits
