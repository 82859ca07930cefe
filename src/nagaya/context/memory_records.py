"""Where memories lie, and how they go.

Partition ``memories/<blind owner>`` holds an owner's memories (sort ``m`` and the id) and what became of each (``v``
and the id): the owner is a user or the whole tenant. ``memory-owner/<id>`` says whose one is, ``memory-owners/all``
who has any. ``memories-from/<conversation or response>`` lists what was derived from it, ``memories-ending/all`` what
ends by itself, by when (8 bytes of microseconds, then the id).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.lone_records import put_unless_there, remove_one
from nagaya.context.memory_terms import MemoryTerms
from nagaya.errors import ConditionFailed, Conflict
from nagaya.kernel.ids import placed_sequence
from nagaya.records.sealed_store import Delete, Partition, Put, Record

ENDING: Final = Partition("memories-ending", "all")
OWNERS: Final = Partition("memory-owners", "all")
TENANT: Final = "tenant"
USER: Final = "user:"
"""What stands before a user's key in the name of an owner."""
MEMORY: Final = b"m"
MEMORIES_END: Final = b"n"
HISTORY: Final = b"v"
ATTEMPTS: Final = 16
_PAGE: Final = 90
_MANY: Final = 500
_OWNER: Final = b"o"

Event = Literal["ADD", "UPDATE", "DELETE"]


class Parent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a memory was derived from: an item of a conversation, or a response that is in none."""

    conversation_id: str | None = None
    item_id: str | None = None
    response_id: str | None = None

    @property
    def source(self) -> str:
        """The thing with whose end this parent is gone."""
        return self.conversation_id or self.response_id or ""


class StoredMemory(msgspec.Struct, kw_only=True, omit_defaults=True, dict=True):
    """A memory as it is stored. ``version`` counts its texts from 1; ``vector`` are half floats of ``embedding``."""

    id: str
    owner: str
    text: str
    created_at_us: int
    updated_at_us: int
    version: int = 1
    metadata: dict[str, Any] = {}
    categories: list[str] = []
    agent_id: str | None = None
    run_id: str | None = None
    app_id: str | None = None
    expires_at_us: int = 0
    parents: list[Parent] = []
    by: str = "caller"
    vector: bytes = b""
    embedding: str = ""

    def is_there(self, now_us: int) -> bool:
        """Whether its term is not over."""
        return not self.expires_at_us or now_us < self.expires_at_us

    @cached_property
    def terms(self) -> MemoryTerms:
        """Its words, counted when first asked for. Not for a memory whose text is about to change."""
        return MemoryTerms(self.text)


class Happened(msgspec.Struct, omit_defaults=True):
    """One event of a memory: what it said before and after. After its deletion no text is left."""

    event: Event
    at_us: int
    before: str | None = None
    after: str | None = None
    version: int = 0


class _Derived(msgspec.Struct):
    owner: str


memory_decoder: Final = msgspec.json.Decoder(StoredMemory)
history_decoder: Final = msgspec.json.Decoder(list[Happened])
_derived_decoder: Final = msgspec.json.Decoder(_Derived)
_encode = msgspec.json.Encoder().encode


def owner_of_user(user_key: str) -> str:
    """The owner that a user is."""
    return f"{USER}{user_key}"


async def partition_of(session: TenantSession, owner: str) -> Partition:
    """The owner's memories."""
    return Partition("memories", await session.records.blind("memories.owner", owner))


def memory_sort(memory_id: str) -> bytes:
    """Where a memory lies among its owner's."""
    return MEMORY + memory_id.encode()


def history_sort(memory_id: str) -> bytes:
    """Where what became of it lies."""
    return HISTORY + memory_id.encode()


def memories_from(source: str) -> Partition:
    """Which memories were derived from a conversation or a response."""
    return Partition("memories-from", source)


async def owner_of(session: TenantSession, memory_id: str) -> str | None:
    """Whose memory it is, or was; None where there never was one."""
    record = await session.records.get(Partition("memory-owner", memory_id), _OWNER)
    return None if record is None else record.body.decode()


async def memories_of(session: TenantSession, owner: str) -> list[StoredMemory]:
    """All memories of an owner as they lie in the store, the oldest first, also those past their term. Shared by
    everybody who reads them: to be looked at, not changed."""
    partition = await partition_of(session, owner)
    decoded = session.room.parts.decoded
    drops = decoded.drops
    found: list[Record] = []
    after = MEMORY
    while True:
        rows = await session.records.query(partition, after=after, before=MEMORIES_END, limit=_MANY)
        found += rows
        if len(rows) < _MANY:
            return decoded.values(partition, found, memory_decoder.decode, drops=drops)
        after = rows[-1].sort


async def note_owner(session: TenantSession, owner: str) -> None:
    """Note that this owner has memories. May be repeated."""
    sort = (await session.records.blind("memories.owner", owner)).encode()
    await put_unless_there(session, OWNERS, sort, owner.encode())


async def owners_noted(session: TenantSession) -> list[str]:
    """Every owner that has, or had, a memory."""
    found: list[str] = []
    after = b""
    while rows := await session.records.query(OWNERS, after=after, limit=_PAGE):
        found += [row.body.decode() for row in rows]
        after = rows[-1].sort
    return found


async def note(session: TenantSession, memory: StoredMemory, partition: Partition) -> None:
    """Make the notes by which a memory is found when its parents or its term end. Done before the memory is written,
    so that none is ever without them; a note without its memory does no harm. May be repeated."""
    await put_unless_there(session, Partition("memory-owner", memory.id), _OWNER, memory.owner.encode())
    for parent in memory.parents:
        place = memories_from(parent.source)
        await put_unless_there(session, place, memory.id.encode(), _encode(_Derived(memory.owner)))
    if memory.expires_at_us:
        when = memory.expires_at_us.to_bytes(8, "big")
        await put_unless_there(session, ENDING, when + memory.id.encode(), memory.owner.encode())


async def remove(session: TenantSession, memory: StoredMemory, revision: int, *, keep_event: bool = True) -> None:
    """Remove a memory and every text it ever had; that there was one and when it was deleted stays, unless its whole
    owner's go. Raises ``ConditionFailed`` where it was changed meanwhile."""
    partition = await partition_of(session, memory.owner)
    past = await session.records.get(partition, history_sort(memory.id))
    changes: list[Put | Delete] = [Delete(memory_sort(memory.id), revision)]
    if keep_event:
        gone = _encode([Happened("DELETE", session.clock.now_us(), version=memory.version)])
        changes.append(Put(history_sort(memory.id), gone, past.revision if past else 0))
    elif past is not None:
        changes.append(Delete(past.sort, past.revision))
    await session.records.write(partition, changes)
    for source in {parent.source for parent in memory.parents}:
        await remove_one(session, memories_from(source), memory.id.encode())


async def forget_derived(
    session: TenantSession, source: str, item_id: str | None = None, *, upto: int | None = None
) -> None:
    """A conversation (or one of its items, or those ``upto`` a place and with it) or a response is gone: what was
    derived from it alone goes too, and what has other parents loses this one. May be repeated."""
    place = memories_from(source)
    after = b""
    while rows := await session.records.query(place, after=after, limit=_PAGE):
        for row in rows:
            await _lose_parent(session, _derived_decoder.decode(row.body).owner, row, source, item_id, upto)
        after = rows[-1].sort


def _is_gone(parent: Parent, item_id: str | None, upto: int | None) -> bool:
    """Whether what is gone of a parent's source is the parent."""
    if item_id is not None:
        return parent.item_id == item_id
    place = placed_sequence(parent.item_id or "")
    return upto is None or place is None or place <= upto


async def _lose_parent(
    session: TenantSession, owner: str, row: Record, source: str, item_id: str | None, upto: int | None
) -> None:
    partition = await partition_of(session, owner)
    place = memories_from(source)
    for _ in range(ATTEMPTS):
        record = await session.records.get(partition, memory_sort(row.sort.decode()))
        if record is None:
            await remove_one(session, place, row.sort)
            return
        memory = memory_decoder.decode(record.body)
        left = [one for one in memory.parents if one.source != source or not _is_gone(one, item_id, upto)]
        if len(left) == len(memory.parents):
            return
        try:
            if not left:
                await remove(session, memory, record.revision)
                return
            memory.parents = left
            await session.records.put(partition, record.sort, _encode(memory), expect=record.revision)
        except ConditionFailed:
            continue
        if all(one.source != source for one in left):
            await remove_one(session, place, row.sort)
        return
    raise Conflict


async def end_memories(session: TenantSession) -> int:
    """Remove the memories whose term is over; gives how many. May be repeated."""
    ended = 0
    while True:
        now_us = session.clock.now_us()
        due = await session.records.query(ENDING, before=(now_us + 1).to_bytes(8, "big"), limit=_PAGE)
        for row in due:
            partition = await partition_of(session, row.body.decode())
            record = await session.records.get(partition, memory_sort(row.sort[8:].decode()))
            if record is not None:
                memory = memory_decoder.decode(record.body)
                if not memory.is_there(now_us):
                    try:
                        await remove(session, memory, record.revision)
                    except ConditionFailed:
                        continue  # looked at again below
                    ended += 1
            await remove_one(session, ENDING, row.sort)
        if not due:
            return ended
