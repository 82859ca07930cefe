"""Memories that another program kept, brought in as they were there: with their times, marks and history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nagaya.context.counting import Skips
from nagaya.context.memory_records import (
    TENANT,
    Happened,
    StoredMemory,
    history_decoder,
    history_sort,
    memories_of,
    memory_sort,
    note,
    owner_of_user,
    partition_of,
)
from nagaya.context.memory_search import vectors_of
from nagaya.context.memory_shapes import MAX_MEMORIES, Labels, check_memory
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue, RecordsDiffer, TooManyMemories
from nagaya.kernel.ids import derived_id
from nagaya.records.sealed_store import Put
from nagaya.tenancy.principal import Role, Scope

_AT_ONCE: Final = 64
_encode = msgspec.json.Encoder().encode

__all__ = ["BroughtMemories", "BroughtMemory", "Happened", "Labels", "bring_memories"]


class BroughtMemory(msgspec.Struct, kw_only=True):
    """A memory of another program. ``name`` is its id there, ``user`` whose it is here (None: the whole tenant's).

    ``history`` is empty where nothing is known but that it was added.
    """

    name: str
    user: str | None
    text: str
    created_at_us: int
    updated_at_us: int
    labels: Labels = Labels()
    metadata: Mapping[str, Any] = {}
    categories: Sequence[str] = ()
    expires_at_us: int = 0
    history: Sequence[Happened] = ()


class BroughtMemories(Skips, msgspec.Struct, kw_only=True):
    """How many memories and events of their histories lie here now, whose they are, and how many did not come in."""

    memories: int = 0
    events: int = 0
    users: int = 0
    skipped: dict[str, int] = msgspec.field(default_factory=dict)


async def bring_memories(
    tenant: TenantContext, program: str, brought: Sequence[BroughtMemory], done: BroughtMemories
) -> None:
    """Keep memories under their own times, each read back and compared; ``done`` counts them. For administrators.

    May be repeated: a memory of that ``name`` of that ``program`` is here once, and one that was deleted here since
    stays deleted. Those that are longer than a memory may be, or past their term, are counted as skipped.

    Raises ``Forbidden``, and ``TooManyMemories`` before anything is written; ``RecordsDiffer`` for one that was changed
    here since.
    """
    session = tenant.session
    session.entrance.require(Scope.WRITE, Role.TENANT_ADMIN)
    by_owner: dict[str, dict[str, StoredMemory]] = {}
    happened: dict[str, list[Happened]] = {}
    names: dict[str, str] = {}
    now_us = session.clock.now_us()
    for one in brought:
        try:
            check_memory([one.text], one.metadata, one.categories, one.labels)
        except InvalidValue as unfit:
            done.skip(f"unfit_{unfit.param}")
            continue
        if one.expires_at_us and one.expires_at_us <= now_us:
            done.skip("expired")
            continue
        stored = _stored(program, one)
        by_owner.setdefault(stored.owner, {})[stored.id] = stored
        happened[stored.id] = _history(one)
        names[stored.id] = one.name
    there = {owner: {one.id: one for one in await memories_of(session, owner)} for owner in by_owner}
    for owner, wanted in by_owner.items():
        if len(there[owner].keys() | wanted.keys()) > MAX_MEMORIES:
            raise TooManyMemories(limit=MAX_MEMORIES)
    for owner, wanted in by_owner.items():
        await _keep(tenant, owner, wanted, there[owner], happened, done)
        await _compare(tenant, owner, wanted, happened, names)
        done.memories += len(wanted)
        done.events += sum(len(happened[each]) for each in wanted)
        done.users += owner != TENANT and bool(wanted)


def _stored(program: str, one: BroughtMemory) -> StoredMemory:
    owner = TENANT if one.user is None else owner_of_user(one.user)
    seed = msgspec.json.encode([program, owner, one.name])
    return StoredMemory(
        id=derived_id("mem", seed, one.created_at_us),
        owner=owner,
        text=one.text,
        created_at_us=one.created_at_us,
        updated_at_us=one.updated_at_us,
        version=len(one.history) or 1,
        metadata=dict(one.metadata),
        categories=list(one.categories),
        agent_id=one.labels.agent_id,
        run_id=one.labels.run_id,
        app_id=one.labels.app_id,
        expires_at_us=one.expires_at_us,
        by=program,
    )


def _history(one: BroughtMemory) -> list[Happened]:
    if not one.history:
        return [Happened("ADD", one.created_at_us, after=one.text, version=1)]
    return list(one.history)


async def _keep(
    tenant: TenantContext,
    owner: str,
    wanted: dict[str, StoredMemory],
    there: Mapping[str, StoredMemory],
    happened: Mapping[str, list[Happened]],
    done: BroughtMemories,
) -> None:
    """Write those that are not there; those that were deleted here are taken from ``wanted``."""
    session = tenant.session
    partition = await partition_of(session, owner)
    missing = [memory_id for memory_id in wanted if memory_id not in there]
    for at in range(0, len(missing), _AT_ONCE):
        page = missing[at : at + _AT_ONCE]
        past = await session.records.get_many(partition, [history_sort(memory_id) for memory_id in page])
        for memory_id, record in zip(page, past, strict=True):
            if record is not None:
                done.skip("deleted_here")
                del wanted[memory_id]
        fresh = [wanted[memory_id] for memory_id in page if memory_id in wanted]
        vectors = await vectors_of(session, tenant.meter, [memory.text for memory in fresh]) if fresh else None
        for number, memory in enumerate(fresh):
            if vectors is not None:
                memory.vector, memory.embedding = vectors.packed[number], vectors.model
            await note(session, memory, partition)
            events = Put(history_sort(memory.id), _encode(happened[memory.id]))
            await session.records.write(partition, [Put(memory_sort(memory.id), _encode(memory)), events])


async def _compare(
    tenant: TenantContext,
    owner: str,
    wanted: Mapping[str, StoredMemory],
    happened: Mapping[str, list[Happened]],
    names: Mapping[str, str],
) -> None:
    found = {one.id: one for one in await memories_of(tenant.session, owner)}
    partition = await partition_of(tenant.session, owner)
    for memory_id, memory in wanted.items():
        past = await tenant.session.records.get(partition, history_sort(memory_id))
        there = found.get(memory_id)
        same = there is not None and _without_vector(there) == _without_vector(memory)
        if not same or past is None or history_decoder.decode(past.body) != happened[memory_id]:
            raise RecordsDiffer(what=names[memory_id])


def _without_vector(memory: StoredMemory) -> StoredMemory:
    return msgspec.structs.replace(memory, vector=b"", embedding="")
