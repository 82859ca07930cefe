"""Long-term memories: what is known about a user, or about the whole tenant, from one conversation to the next.

A user's own are the user's; those of the tenant are read by all of it and written by its administrators. Every memory
knows what it was derived from and goes with it; its former texts are kept until it is deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.lone_records import remove_one
from nagaya.context.memory_records import (
    ATTEMPTS,
    MEMORIES_END,
    MEMORY,
    TENANT,
    USER,
    Happened,
    Parent,
    StoredMemory,
    history_decoder,
    history_sort,
    memories_from,
    memories_of,
    memory_decoder,
    memory_sort,
    note,
    note_owner,
    owner_of,
    owner_of_user,
    owners_noted,
    partition_of,
    remove,
)
from nagaya.context.memory_search import IN_A_THREAD_FROM, Scored, Vectors, rank, vectors_of
from nagaya.context.memory_shapes import (
    MAX_CHARACTERS,
    MAX_MEMORIES,
    Filter,
    Labels,
    Memory,
    MemoryEvent,
    MemoryPage,
    MemoryScope,
    MemorySearch,
    check_memory,
    labels_of,
    shown,
)
from nagaya.context.notices import Notices
from nagaya.context.paging import behind
from nagaya.errors import ConditionFailed, Conflict, Forbidden, InvalidValue, NotFound, TooManyMemories
from nagaya.kernel.ids import is_id, new_id
from nagaya.records.sealed_store import Delete, Partition, Put, Record
from nagaya.tenancy.principal import Role, Scope
from nagaya.usage.meter import Meter

_YEAR_9999_US: Final = 253_402_300_799_000_000
_AT_ONCE: Final = 100
"""Among so many of the newest memories those are that somebody else keeps at the same time."""


def _everything(_: StoredMemory) -> bool:
    return True


def _says(memory: StoredMemory) -> tuple[str, Labels]:
    return memory.text, labels_of(memory)


_encode = msgspec.json.Encoder().encode


class Memories:
    """One caller's memories. Another user's and one that does not exist answer alike: ``NotFound``; an administrator
    of the tenant may name any of its users."""

    __slots__ = ("_me", "_meter", "_session")

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self._session = session
        self._meter = meter
        self._me = session.entrance.principal.user_key

    # --- writing ---

    def check_owner(self, scope: MemoryScope, user: str | None) -> None:
        """Raise what :meth:`add` does for an owner that is not the caller's to write for."""
        self._session.may_write()
        self._owner(scope, user, writing=True)

    async def add(
        self,
        texts: Sequence[str],
        *,
        scope: MemoryScope = "user",
        user: str | None = None,
        labels: Labels = Labels(),  # noqa: B008 - frozen
        metadata: Mapping[str, Any] | None = None,
        categories: Sequence[str] = (),
        expires_at: int | None = None,
        created_at: int | None = None,
        parents: Sequence[Parent] = (),
        by: str = "caller",
    ) -> list[Memory]:
        """Keep one memory per text (1 to ``MAX_TEXTS``), and tell the owner. A text that the owner has already, with
        the same labels, is not kept twice: it gets the parents too, and is not among what is given back.
        ``created_at``: since when it has been known, Unix seconds, where that is not now.

        Raises ``Forbidden`` for a memory of the tenant by somebody who is no administrator, ``NotFound`` for another's
        user, ``InvalidValue``, ``TooManyMemories``.
        """
        self._session.may_write()
        owner = self._owner(scope, user, writing=True)
        check_memory(texts, metadata, categories, labels)
        expires_at_us = self._term(expires_at)
        created_at_us = self._past(created_at)
        partition = await partition_of(self._session, owner)
        known = await self._all(owner)
        if not known:
            await note_owner(self._session, owner)
        if len(known) + len(texts) > MAX_MEMORIES:
            raise TooManyMemories(limit=MAX_MEMORIES)
        same = {_says(one): one for one in known}
        fresh: list[str] = []
        for text in dict.fromkeys(texts):
            there = same.get((text, labels))
            if there is None or (parents and not await self._also_from(there, parents)):
                fresh.append(text)
        if not fresh:
            return []
        vectors = await vectors_of(self._session, self._meter, fresh)
        made = []
        for number, text in enumerate(fresh):
            now_us = self._session.clock.now_us()
            memory = StoredMemory(
                id=new_id("mem"), owner=owner, text=text, created_at_us=created_at_us or now_us, updated_at_us=now_us,
                metadata=dict(metadata or {}), categories=list(categories), agent_id=labels.agent_id,
                run_id=labels.run_id, app_id=labels.app_id, expires_at_us=expires_at_us, parents=list(parents), by=by,
                vector=vectors.packed[number] if vectors else b"", embedding=vectors.model if vectors else "",
            )  # fmt: skip
            await note(self._session, memory, partition)
            happened = [Happened("ADD", now_us, after=text, version=1)]
            await self._session.records.write(
                partition,
                [Put(memory_sort(memory.id), _encode(memory)), Put(history_sort(memory.id), _encode(happened))],
            )
            made.append(memory)
        made = [memory for memory in made if await self._is_alone(memory, partition, len(made))]
        if owner == owner_of_user(self._me):
            for one in made:
                await Notices(self._session).tell("memory.added", memory_id=one.id, written_by=one.by)
        return [shown(memory) for memory in made]

    async def _is_alone(self, memory: StoredMemory, partition: Partition, made: int) -> bool:
        """Whether nobody else has kept the same meanwhile. Of two that are kept at once whoever sees the other one
        first lets his own go over into that; False then."""
        records, mine = self._session.records, memory_sort(memory.id)
        for _ in range(ATTEMPTS):
            newest = await records.query(
                partition, after=MEMORY, before=MEMORIES_END, limit=made + _AT_ONCE, descending=True
            )
            own = next((row for row in newest if row.sort == mine), None) or await records.get(partition, mine)
            twins = [(row, memory_decoder.decode(row.body)) for row in newest if row.sort != mine]
            now_us = self._session.clock.now_us()
            same = [(row, one) for row, one in twins if one.is_there(now_us) and _says(one) == _says(memory)]
            if own is None or not same:
                return own is not None
            row, twin = same[0]
            if twin.parents:
                twin.parents += [parent for parent in memory.parents if parent not in twin.parents]
                await note(self._session, twin, partition)
            past = await records.get(partition, history_sort(memory.id))
            changes: list[Put | Delete] = [Delete(mine, own.revision), Put(row.sort, _encode(twin), row.revision)]
            if past is not None:
                changes.append(Delete(past.sort, past.revision))
            try:
                await records.write(partition, changes)
            except ConditionFailed:
                continue
            for source in {parent.source for parent in memory.parents}:
                await remove_one(self._session, memories_from(source), memory.id.encode())
            return False
        raise Conflict

    async def _also_from(self, known: StoredMemory, parents: Sequence[Parent]) -> bool:
        """A memory that its owner wrote has no parents, and is to outlive what else says so. False: it is gone, or says
        something else by now."""
        if not known.parents:
            return True
        for _ in range(ATTEMPTS):
            try:
                found = await self._find(known.id)
            except NotFound:
                return False
            memory = memory_decoder.decode(found.body)
            if memory.text != known.text:
                return False
            memory.parents += [one for one in parents if one not in memory.parents]
            partition = await partition_of(self._session, memory.owner)
            await note(self._session, memory, partition)
            try:
                await self._session.records.put(partition, found.sort, _encode(memory), expect=found.revision)
            except ConditionFailed:
                continue
            return True
        raise Conflict

    async def update(
        self,
        memory_id: str,
        *,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        categories: Sequence[str] | None = None,
        expires_at: int | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> Memory:
        """Change what is given; None for ``expires_at`` lets it stay for ever. A former text stays in the history.
        Raises ``NotFound``, ``Forbidden`` (a memory of the tenant), ``InvalidValue``."""
        self._session.may_write()
        check_memory([text] if text is not None else ["-"], metadata, categories or (), Labels())
        for _ in range(ATTEMPTS):
            record = await self._find(memory_id, writing=True)
            memory = memory_decoder.decode(record.body)
            partition = await partition_of(self._session, memory.owner)
            past = await self._session.records.get(partition, history_sort(memory_id))
            happened = history_decoder.decode(past.body) if past else []
            now_us = self._session.clock.now_us()
            if text is not None and text != memory.text:
                memory.version += 1
                happened.append(Happened("UPDATE", now_us, memory.text, text, memory.version))
                vectors = await vectors_of(self._session, self._meter, [text])
                memory.text = text
                memory.vector = vectors.packed[0] if vectors else b""
                memory.embedding = vectors.model if vectors else ""
            if metadata is not None:
                memory.metadata = dict(metadata)
            if categories is not None:
                memory.categories = list(categories)
            if expires_at is not msgspec.UNSET:
                memory.expires_at_us = self._term(expires_at)
            memory.updated_at_us = now_us
            await note(self._session, memory, partition)
            try:
                await self._session.records.write(
                    partition,
                    [
                        Put(record.sort, _encode(memory), record.revision),
                        Put(history_sort(memory_id), _encode(happened), past.revision if past else 0),
                    ],
                )
            except ConditionFailed:
                continue
            return shown(memory)
        raise Conflict

    async def delete(self, memory_id: str) -> None:
        """Delete a memory with all its former texts; its history says only that and when. Raises ``NotFound``."""
        self._session.may_write()
        for _ in range(ATTEMPTS):
            record = await self._find(memory_id, writing=True)
            try:
                await remove(self._session, memory_decoder.decode(record.body), record.revision)
            except ConditionFailed:
                continue
            return
        raise Conflict

    async def delete_all(
        self, *, scope: MemoryScope = "user", user: str | None = None, where: Filter = _everything
    ) -> int:
        """Delete an owner's memories, those that ``where`` chooses; gives how many. Raises as :meth:`add`."""
        self._session.may_write()
        owner = self._owner(scope, user, writing=True)
        partition = await partition_of(self._session, owner)
        gone = 0
        for memory in await self._all(owner, expired=True):
            if not where(memory):
                continue
            for _ in range(ATTEMPTS):
                record = await self._session.records.get(partition, memory_sort(memory.id))
                if record is None:
                    break
                try:
                    await remove(self._session, memory_decoder.decode(record.body), record.revision)
                except ConditionFailed:
                    continue
                gone += 1
                break
        return gone

    # --- reading ---

    async def retrieve(self, memory_id: str) -> Memory:
        """One memory. Raises ``NotFound``."""
        return shown(memory_decoder.decode((await self._find(memory_id)).body))

    async def history(self, memory_id: str) -> list[MemoryEvent]:
        """What became of a memory, oldest first, also of a deleted one. Raises ``NotFound``."""
        self._session.entrance.require(Scope.READ)
        owner = await self._readable_owner(memory_id, writing=False)
        partition = await partition_of(self._session, owner)
        record = await self._session.records.get(partition, history_sort(memory_id))
        if record is None:
            raise NotFound("memory")
        there = await self._session.records.get(partition, memory_sort(memory_id))
        if there is not None and not memory_decoder.decode(there.body).is_there(self._session.clock.now_us()):
            raise NotFound("memory")
        return [
            MemoryEvent(event=one.event, at=one.at_us // 1_000_000, before=one.before, after=one.after)
            for one in history_decoder.decode(record.body)
        ]

    async def list(
        self,
        *,
        scope: MemoryScope = "user",
        user: str | None = None,
        where: Filter = _everything,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> MemoryPage:
        """An owner's memories, the newest first. Another user's are, for anybody but an administrator, as those of a
        user who has none."""
        self._session.entrance.require(Scope.READ)
        found = [one for one in await self._readable(scope, user) if where(one)]
        if order == "desc":
            found.reverse()
        left = behind(found, after, "memory")
        return MemoryPage([shown(one) for one in left[:limit]], len(left) > limit)

    async def users(self) -> Sequence[str]:
        """Who has memories, in order: of all users for an administrator, else of the caller alone."""
        self._session.entrance.require(Scope.READ)
        owners = [owner_of_user(self._me)] if not self._is_admin else await owners_noted(self._session)
        return sorted([owner.removeprefix(USER) for owner in owners if owner != TENANT and await self._has_any(owner)])

    async def every(self, *, users: Sequence[str], where: Filter = _everything) -> Sequence[Memory]:
        """The memories of these users, the newest first. Those of another's are, for anybody but an administrator, as
        those of a user who has none."""
        self._session.entrance.require(Scope.READ)
        found = sorted([one for one in await self._of(users) if where(one)], key=lambda one: one.id, reverse=True)
        return [shown(one) for one in found]

    async def search(
        self,
        query: str,
        *,
        scope: MemoryScope | None = None,
        user: str | None = None,
        users: Sequence[str] | None = None,
        where: Filter = _everything,
        limit: int = 10,
        threshold: float = 0.0,
    ) -> MemorySearch:
        """The memories that fit a question best, of the user and of the tenant together unless ``scope`` says. With
        ``users``: of these users alone, as :meth:`every` gives them."""
        self._session.entrance.require(Scope.READ)
        if not query.strip() or len(query) > MAX_CHARACTERS:
            raise InvalidValue(param="query", at="query", detail=f"1 to {MAX_CHARACTERS} characters")
        if users is not None:
            memories: Sequence[StoredMemory] = await self._of(users)
        else:
            memories = await self._reached(scope, user)
        found, vectors = await self._ranked(query, [one for one in memories if where(one)], limit)
        data = [shown(one.memory, round(one.score, 6)) for one in found if one.score >= threshold]
        return MemorySearch(data, "words" if vectors is None else "words+vectors")

    async def fitting(self, query: str, *, scope: MemoryScope | None = None, limit: int = 10) -> Sequence[StoredMemory]:
        """As :meth:`search` of the caller's and the tenant's, the memories themselves. For what an answer is sent."""
        self._session.entrance.require(Scope.READ)
        found, _ = await self._ranked(query, await self._reached(scope, None), limit)
        return [one.memory for one in found]

    async def text_of(self, memory_id: str, version: int) -> str | None:
        """What a memory said in that version of its text; None where it is gone or not to be seen by the caller."""
        try:
            memory = memory_decoder.decode((await self._find(memory_id)).body)
            if memory.version == version:
                return memory.text
            partition = await partition_of(self._session, memory.owner)
        except NotFound:
            return None
        past = await self._session.records.get(partition, history_sort(memory_id))
        happened = history_decoder.decode(past.body) if past else []
        return next((one.after for one in happened if one.version == version), None)

    async def _reached(self, scope: MemoryScope | None, user: str | None) -> Sequence[StoredMemory]:
        found = [*await self._readable(scope or "user", user)]
        if scope is None:
            found += await self._readable("tenant", None)
        return found

    async def _ranked(
        self, query: str, memories: Sequence[StoredMemory], limit: int
    ) -> tuple[Sequence[Scored], Vectors | None]:
        has_vectors = any(one.embedding for one in memories)
        vectors = await vectors_of(self._session, self._meter, [query]) if has_vectors else None
        if len(memories) < IN_A_THREAD_FROM:
            return rank(memories, query, vectors, limit), vectors
        return await asyncio.to_thread(rank, memories, query, vectors, limit), vectors

    async def readable(self) -> Sequence[StoredMemory]:
        """Every memory of the caller's own and of the tenant's, as they are stored."""
        self._session.entrance.require(Scope.READ)
        return await self._reached(None, None)

    # --- inside ---

    @property
    def _is_admin(self) -> bool:
        return self._session.entrance.principal.role is Role.TENANT_ADMIN

    def _owner(self, scope: MemoryScope, user: str | None, *, writing: bool) -> str:
        if scope == "tenant":
            if writing and not self._is_admin:
                raise Forbidden(needs="role tenant_admin")
            return TENANT
        if user is None or user == self._me:
            return owner_of_user(self._me)
        if not self._is_admin:
            raise NotFound("user")
        if not 1 <= len(user) <= 256:
            raise InvalidValue(param="user", at="user", detail="1 to 256 characters")
        return owner_of_user(user)

    async def _readable(self, scope: MemoryScope, user: str | None) -> Sequence[StoredMemory]:
        try:
            return await self._all(self._owner(scope, user, writing=False))
        except NotFound:
            return []

    async def _of(self, users: Sequence[str]) -> Sequence[StoredMemory]:
        found: list[StoredMemory] = []
        for user in users:
            found += await self._readable("user", user)
        return found

    async def _has_any(self, owner: str) -> bool:
        partition = await partition_of(self._session, owner)
        return bool(await self._session.records.query(partition, after=MEMORY, before=MEMORIES_END, limit=1))

    async def _all(self, owner: str, *, expired: bool = False) -> Sequence[StoredMemory]:
        now_us = self._session.clock.now_us()
        return [one for one in await memories_of(self._session, owner) if expired or one.is_there(now_us)]

    async def _find(self, memory_id: str, *, writing: bool = False) -> Record:
        self._session.entrance.require(Scope.READ)
        owner = await self._readable_owner(memory_id, writing=writing)
        record = await self._session.records.get(await partition_of(self._session, owner), memory_sort(memory_id))
        if record is None or not memory_decoder.decode(record.body).is_there(self._session.clock.now_us()):
            raise NotFound("memory")
        return record

    async def _readable_owner(self, memory_id: str, *, writing: bool) -> str:
        if not is_id("mem", memory_id):
            raise NotFound("memory")
        owner = await owner_of(self._session, memory_id)
        if owner is None or not (owner in (TENANT, owner_of_user(self._me)) or self._is_admin):
            raise NotFound("memory")
        if owner == TENANT and writing and not self._is_admin:
            raise Forbidden(needs="role tenant_admin")
        return owner

    def _past(self, created_at: int | None) -> int:
        if created_at is None:
            return 0
        if not 0 < created_at * 1_000_000 <= self._session.clock.now_us():
            raise InvalidValue(param="created_at", at="created_at", detail="expected a Unix time that is past")
        return created_at * 1_000_000

    def _term(self, expires_at: int | None) -> int:
        if expires_at is None:
            return 0
        if not self._session.clock.now_us() < expires_at * 1_000_000 < _YEAR_9999_US:
            raise InvalidValue(param="expires_at", at="expires_at", detail="expected a Unix time in the future")
        return expires_at * 1_000_000
