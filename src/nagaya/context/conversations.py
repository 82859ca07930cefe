"""Conversations and their items.

Where things lie: partition ``conversation/<id>`` holds the head (sort ``h``), the items (``i`` and an 8-byte place)
the places of items whose ids do not tell them (``j``), what clients keep beside an empty place (``x``), the words of
messages for searches (``g``), which responses were made in it (``r``), its summaries (``s``), and which approved calls
are being made (``p``). Partition ``conversations-of/<blind user>`` lists a user's conversations,
``conversations-shared/all`` the shared ones.

An append is one conditional put at the next place: of two processes that append at once, one finds the place taken,
looks up the tail and repeats, so that items lie in the order in which they were acknowledged, without a lock.
Deleting a conversation takes the next place too, so that no append can slip in behind the deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from nagaya.connections.room import TenantSession
from nagaya.context.ending import ends_at_us, note_ending, purge
from nagaya.context.items import (
    MAX_ITEMS_PER_CALL,
    Hidden,
    Item,
    ItemMeta,
    id_of,
    load_item,
    load_items,
    stored,
    wire,
)
from nagaya.context.lone_records import put_anew, put_unless_there, remove_all, remove_seen
from nagaya.context.memory_records import forget_derived
from nagaya.context.message_words import without_words
from nagaya.context.places import (
    HEAD,
    ITEM,
    ITEMS_END,
    SHARED,
    WORDS,
    ConversationHead,
    ForkedFrom,
    deleted_of,
    item_sort,
    list_of,
    partition_of,
)
from nagaya.context.summaries import forget_summaries, summaries_covering
from nagaya.errors import ConditionFailed, Conflict, Forbidden, InvalidValue, NotFound
from nagaya.kernel.ids import is_id, new_id, new_placed_id, placed_sequence
from nagaya.records.sealed_store import Delete, Put, Record
from nagaya.tenancy.principal import Role, Scope

_HIDDEN: Final = b"x"
_ATTEMPTS: Final = 16
_YEAR_9999_US: Final = 253_402_300_799_000_000
_SHARED_S: Final = 5.0
"""After another process wrote to the room, how long every append reads its conversation's head first."""
MAX_PAGE: Final = 100
"""Items or conversations in one page (OpenAI's limit)."""

Order = Literal["asc", "desc"]


class Conversation(msgspec.Struct, kw_only=True, frozen=True):
    """A conversation. ``created_at`` is in Unix seconds, as in the OpenAI API."""

    id: str
    created_at: int
    metadata: dict[str, str]
    object: Literal["conversation"] = "conversation"
    shared: bool = False
    archived: bool = False
    forked_from: ForkedFrom | msgspec.UnsetType = msgspec.UNSET
    expires_at: int | msgspec.UnsetType = msgspec.UNSET
    deleted_at: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def title(self) -> str | None:
        """The title, which is kept as ``metadata["title"]``."""
        return self.metadata.get("title")


class ItemPage(NamedTuple):
    """A page of items as the bytes clients see, with their ids' ends, and whether more follow."""

    bodies: list[bytes]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Page(NamedTuple):
    """A page of conversations; ``cursor`` asks for the next one, None at the end."""

    data: list[Conversation]
    cursor: str | None


_head_encoder = msgspec.json.Encoder()
_head_decoder = msgspec.json.Decoder(ConversationHead)


def _shown(head: ConversationHead) -> Conversation:
    return Conversation(
        id=head.id,
        created_at=head.created_at_us // 1_000_000,
        metadata=head.metadata,
        shared=head.shared,
        archived=head.archived,
        forked_from=head.forked_from or msgspec.UNSET,
        expires_at=head.expires_at_us // 1_000_000 or msgspec.UNSET,
        deleted_at=head.deleted_at_us // 1_000_000 or msgspec.UNSET,
    )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """OpenAI's limits: 16 pairs, keys of 64 and values of 512 characters."""
    if len(metadata) > 16:
        raise InvalidValue(param="metadata", at="metadata", detail="at most 16 pairs")
    for key, value in metadata.items():
        if len(key) > 64:
            raise InvalidValue(param="metadata", at="metadata", detail="keys have at most 64 characters")
        if len(value) > 512:
            raise InvalidValue(param="metadata", at="metadata", detail="values have at most 512 characters")


# Named here, since the method ``list`` hides the type inside the class.
_Bodies = list[bytes]
_Items = list[Item]
_Changes = list[Put | Delete]
_Found = list[tuple[bytes, Conversation]]


class Conversations:
    """One caller's view of a tenant's conversations.

    A user sees its own; a ``member`` also reads shared ones; a ``tenant_admin`` reads and changes all of the tenant.
    What is not there and what is somebody else's answer alike: ``NotFound``.
    """

    __slots__ = ("_me", "_session")

    def __init__(self, session: TenantSession) -> None:
        self._session = session
        self._me = session.entrance.principal.user_key

    # --- heads ---

    async def head(self, conversation_id: str, *, writing: bool) -> Record:
        """The head's record, if the caller may read (or write) the conversation; else ``NotFound``."""
        return (await self._head(conversation_id, writing=writing))[0]

    async def _head(self, conversation_id: str, *, writing: bool) -> tuple[Record, ConversationHead]:
        self._session.entrance.require(Scope.READ)
        if not is_id("conv", conversation_id):
            raise NotFound("conversation")
        record = await self._session.records.get(partition_of(conversation_id), HEAD)
        if record is None:
            raise NotFound("conversation")
        head = _head_decoder.decode(record.body)
        if not head.is_there(self._session.clock.now_us()) or not self._may(head, writing):
            raise NotFound("conversation")
        return record, head

    def _may(self, head: ConversationHead, writing: bool) -> bool:
        return self._session.entrance.may_see(head.owner, shared=head.shared, writing=writing)

    async def create(
        self,
        *,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Sequence[Item] = (),
        conversation_id: str | None = None,
        forked_from: ForkedFrom | None = None,
        expires_at: int | None = None,
    ) -> Conversation:
        """Make a conversation of the caller's, with up to 20 items, all or nothing. ``expires_at``: the Unix second in
        which it ends, with everything in it.

        With ``conversation_id`` (as an idempotent request has one) repeating gives the conversation made before.
        """
        self._session.may_write()
        given = dict(metadata or {})
        if title is not None:
            given["title"] = title
        check_metadata(given)
        check_count(items)
        new = conversation_id or new_id("conv")
        head = ConversationHead(id=new, owner=self._me, created_at_us=self._session.clock.now_us(), metadata=given)
        head.forked_from, head.expires_at_us = forked_from, self._term(expires_at)
        if head.expires_at_us:
            await note_ending(self._session, new, head.expires_at_us)
        records = self._session.records
        # The user's list first: an entry without a conversation is skipped, a conversation without one would be lost.
        await put_unless_there(self._session, await list_of(self._session, self._me), new.encode())
        changes: _Changes = [Put(HEAD, _head_encoder.encode(head))]
        changes += [Put(item_sort(place), body) for place, body in enumerate(self._place(items, 0))]
        try:
            await records.write(partition_of(new), changes)
        except ConditionFailed:
            return _shown((await self._head(new, writing=True))[1])
        if forked_from is None:
            self._session.room.remember_tail(new, partition_of(new), len(items))
        return _shown(head)

    async def retrieve(self, conversation_id: str) -> Conversation:
        """The conversation, or ``NotFound``."""
        return _shown((await self._head(conversation_id, writing=False))[1])

    async def update(
        self,
        conversation_id: str,
        *,
        metadata: Mapping[str, str] | None = None,
        title: str | None = None,
        shared: bool | None = None,
        archived: bool | None = None,
        expires_at: int | None = None,
    ) -> Conversation:
        """Change what is given and leave the rest; ``expires_at`` 0 takes the term away. Repeating it is harmless."""
        self._session.may_write()
        room = self._session.room
        for _ in range(_ATTEMPTS):
            record, head = await self._head(conversation_id, writing=True)
            if metadata is not None:
                head.metadata = dict(metadata)
            if title is not None:
                head.metadata = {**head.metadata, "title": title}
            check_metadata(head.metadata)
            if archived is not None:
                head.archived = archived
            if expires_at is not None:
                head.expires_at_us = self._term(expires_at)
                if head.expires_at_us:
                    await note_ending(self._session, conversation_id, head.expires_at_us)
            was_shared, head.shared = head.shared, head.shared if shared is None else shared
            entry = SHARED, conversation_id.encode()
            listed = await self._session.records.get(*entry) if was_shared and not head.shared else None
            if head.shared and not was_shared:
                # Listed before it is readable, unlisted after: the list is a hint, the head decides.
                await put_anew(self._session, *entry)
            try:
                await self._session.records.put(
                    partition_of(conversation_id), HEAD, _head_encoder.encode(head), expect=record.revision
                )
            except ConditionFailed:
                continue
            finally:
                # Also where nobody says that it was written.
                room.forget_tail(conversation_id)
            await remove_seen(self._session, SHARED, listed)
            return _shown(head)
        raise Conflict

    async def delete(self, conversation_id: str, *, permanent: bool = False) -> None:
        """Delete the conversation: after it returns nothing of it can be read or appended to.

        For the tenant's ``restore_days`` it can be restored; then, or at once with ``permanent``, it is removed with
        its items, its summaries, and the responses made in it. Memories derived from it alone go at once, for good.
        ``permanent`` also removes one that is deleted already.
        """
        self._session.may_write()
        session, partition = self._session, partition_of(conversation_id)
        room = session.room
        for _ in range(_ATTEMPTS):
            record = await (
                self._ended_head(conversation_id) if permanent else self.head(conversation_id, writing=True)
            )
            if permanent or not session.tenant.restore_days:
                await purge(session, conversation_id)
                return
            head = _head_decoder.decode(record.body)
            head.deleted_at_us = session.clock.now_us()
            tail = await self._tail(conversation_id)
            changes: _Changes = [
                Put(HEAD, _head_encoder.encode(head), record.revision),
                # The next place is taken too, so that no append can slip in behind the deletion.
                Put(item_sort(tail), b""),
            ]
            when_us = ends_at_us(head, session.tenant.restore_days)
            assert when_us is not None
            # Noted before, so that a crash cannot leave it deleted for ever.
            await note_ending(session, conversation_id, when_us)
            listed = await list_of(self._session, head.owner)
            entry = conversation_id.encode()
            await put_anew(session, deleted_of(listed), entry)
            # Whoever restores it from here on lists it anew, and what was seen before is no longer there.
            seen = [(each, await session.records.get(each, entry)) for each in (listed, SHARED)]
            # Before too: whoever asks a second time, since the first died half-way, finds no conversation any more.
            await forget_derived(session, conversation_id)
            try:
                await session.records.write(partition, changes)
            except ConditionFailed:
                continue
            finally:
                room.forget_tail(conversation_id)
            await remove_all(session, partition, after=WORDS, before=HEAD)
            for each, record_seen in seen:
                await remove_seen(session, each, record_seen)
            await forget_derived(session, conversation_id)
            return
        raise Conflict

    async def restore(self, conversation_id: str) -> Conversation:
        """Take a deletion back, within the tenant's ``restore_days``. Raises ``NotFound`` for a conversation that is
        gone for good, was not deleted, or is not the caller's to change."""
        self._session.may_write()
        session = self._session
        for _ in range(_ATTEMPTS):
            record = await self._ended_head(conversation_id)
            head = _head_decoder.decode(record.body)
            when_us = ends_at_us(head, session.tenant.restore_days)
            if not head.deleted_at_us or when_us is None or when_us <= session.clock.now_us():
                raise NotFound("conversation")
            head.deleted_at_us = 0
            listed = await list_of(self._session, head.owner)
            entry = conversation_id.encode()
            seen = await session.records.get(deleted_of(listed), entry)
            await put_anew(session, listed, entry)
            if head.shared:
                await put_anew(session, SHARED, entry)
            try:
                await session.records.put(
                    partition_of(conversation_id), HEAD, _head_encoder.encode(head), expect=record.revision
                )
            except ConditionFailed:
                continue
            await remove_seen(session, deleted_of(listed), seen)
            return _shown(head)
        raise Conflict

    async def _ended_head(self, conversation_id: str) -> Record:
        """The head of a conversation that the caller may change, deleted or not; else ``NotFound``."""
        self._session.entrance.require(Scope.READ)
        if not is_id("conv", conversation_id):
            raise NotFound("conversation")
        record = await self._session.records.get(partition_of(conversation_id), HEAD)
        if record is None or not self._may(_head_decoder.decode(record.body), writing=True):
            raise NotFound("conversation")
        return record

    async def list(
        self,
        *,
        user: str | None = None,
        shared: bool = False,
        archived: bool | None = None,
        deleted: bool = False,
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> Page:
        """The caller's conversations, newest first; ``shared``: the tenant's shared ones; ``user``: for an admin;
        ``deleted``: those that can be restored."""
        self._session.entrance.require(Scope.READ)
        principal = self._session.entrance.principal
        check_limit(limit)
        owner = self._me
        if user is not None and user != self._me:
            if principal.role is not Role.TENANT_ADMIN:
                raise Forbidden(needs="role tenant_admin")
            owner = user
        if shared and principal.role is Role.USER:
            raise Forbidden(needs="role member")
        partition = SHARED if shared else await list_of(self._session, owner)
        if deleted:
            partition = deleted_of(partition)
        query = ("conversations", *partition, order, str(archived))
        records = self._session.records
        now_us = self._session.clock.now_us()
        descending = order == "desc"
        place = b""
        if after is not None:
            place = await self._place_after(after, query)
        found: _Found = []
        while len(found) <= limit:
            bounds = {"before": place} if descending else {"after": place}
            rows = await records.query(partition, limit=limit + 1, descending=descending, **bounds)
            for row in rows:
                head = await records.get(partition_of(row.sort.decode()), HEAD)
                if head is None:
                    continue
                shown = _head_decoder.decode(head.body)
                if not self._may(shown, writing=False) or (shared and not shown.shared):
                    continue
                if shown.is_there(now_us) == deleted or bool(shown.deleted_at_us) != deleted:
                    continue
                if archived is None or shown.archived == archived:
                    found.append((row.sort, _shown(shown)))
            if len(rows) <= limit:
                break
            place = rows[-1].sort
        more = len(found) > limit
        found = found[:limit]
        cursor = await records.cursors.seal_cursor(query, found[-1][0]) if more else None
        return Page([conversation for _, conversation in found], cursor)

    async def _place_after(self, after: str, query: tuple[str, ...]) -> bytes:
        if is_id("conv", after):
            await self.head(after, writing=False)
            return after.encode()
        return await self._session.records.cursors.open_cursor(query, after)

    # --- items ---

    async def append(self, conversation_id: str, *items: Item) -> _Items:
        """Append up to 20 items, all or none, durably; they come back with their ids."""
        check_count(items)
        await self.append_bodies(conversation_id, items)
        return [replace(item) for item in items]

    async def append_bodies(
        self,
        conversation_id: str,
        items: Sequence[Item | Hidden],
        *,
        response: str | None = None,
        model: str | None = None,
        keep_ids: bool = False,
        forms: Sequence[object] = (),
        results: Mapping[str, str] = MappingProxyType({}),
    ) -> _Bodies:
        """Append and give the stored bytes. ``keep_ids``: the items have ids made before their places were known.
        ``forms``: for each item its client's form, or None. ``results``: by item id, what the model was told of a call
        whose result no client is shown.

        Raises ``ConditionFailed`` where items with these ids are in the conversation already.
        """
        session = self._session
        session.may_write()
        room = session.room
        known = room.tails.get(conversation_id)
        if (
            known is not None
            and known.since is not None
            and known.next_sequence is not None
            and known.owner == self._me
            and len(items) == 1
            and not (keep_ids or room.retired or isinstance(items[0], Hidden))
            and session.clock.monotonic_s() >= room.shared_until_s
        ):
            # Seen before, and the write is refused if any other process has written since; what this one deletes it
            # also forgets here. So the head need not be read again.
            place = known.next_sequence
            known.next_sequence = place + 1
            bodies = self._place(items, place, response=response, model=model, forms=forms, results=results)
            try:
                await session.records_in_room.put(known.partition, item_sort(place), bodies[0], since=known.since)
            except ConditionFailed:
                room.tails.pop(conversation_id, None)
                room.shared_until_s = session.clock.monotonic_s() + _SHARED_S
            else:
                return bodies
        place_items = partial(
            self._place, items, response=response, model=model, keep_ids=keep_ids, forms=forms, results=results
        )
        return await self._append_to_tail(conversation_id, items, place_items, keep_ids=keep_ids)

    async def _append_to_tail(
        self,
        conversation_id: str,
        items: Sequence[Item | Hidden],
        place_items: Callable[[int], _Bodies],
        *,
        keep_ids: bool,
    ) -> _Bodies:
        """Append at the first free place of a conversation whose head says that it is there."""
        session = self._session
        room, partition, records = session.room, partition_of(conversation_id), session.records_in_room
        for _ in range(_ATTEMPTS):
            moment, forgotten = records.moment(), room.tails_forgotten
            _, head = await self._head(conversation_id, writing=True)
            known = room.tails.get(conversation_id)
            tail = known.next_sequence if known is not None else None
            if tail is None:
                tail = await self._tail(conversation_id)
            if head.expires_at_us or forgotten != room.tails_forgotten:
                moment = None  # its term is looked at every time, and what changed meanwhile the next time
            room.remember_tail(conversation_id, partition, tail + len(items), head.owner, moment)
            bodies = place_items(tail)
            try:
                if len(bodies) == 1 and not keep_ids and bodies[0]:
                    await records.put(partition, item_sort(tail), bodies[0])
                else:
                    changes: _Changes = [Put(item_sort(tail + n), body) for n, body in enumerate(bodies)]
                    for n, item in enumerate(items):
                        if isinstance(item, Hidden):
                            changes.append(Put(_HIDDEN + (tail + n).to_bytes(8, "big"), item.body))
                        elif keep_ids:
                            changes.append(Put(_id_sort(item.id), (tail + n).to_bytes(8, "big")))
                    await records.write(partition, changes)
            except ConditionFailed:
                # Another process was first: look where the tail is now, and whether the conversation still is.
                room.tails.pop(conversation_id, None)
                first = items[0]
                if (
                    keep_ids
                    and not isinstance(first, Hidden)
                    and await records.get(partition, _id_sort(first.id)) is not None
                ):
                    raise
                continue
            return bodies
        raise Conflict

    def _place(
        self,
        items: Sequence[Item | Hidden],
        tail: int,
        *,
        response: str | None = None,
        model: str | None = None,
        keep_ids: bool = False,
        forms: Sequence[object] = (),
        results: Mapping[str, str] = MappingProxyType({}),
    ) -> _Bodies:
        meta = ItemMeta(at=self._session.clock.now_us(), by=self._me, response=response, model=model)
        bodies = []
        for place, item in enumerate(items, tail):
            if isinstance(item, Hidden):
                bodies.append(b"")
                continue
            if not keep_ids:
                item.id = new_placed_id("item", place)
            if forms:
                meta.form = forms[place - tail]
            if results:
                meta.result = results.get(item.id)
            bodies.append(stored(item, meta))
        return bodies

    async def _tail(self, conversation_id: str) -> int:
        rows = await self._session.records.query(
            partition_of(conversation_id), after=ITEM, before=ITEMS_END, limit=1, descending=True
        )
        return int.from_bytes(rows[0].sort[1:], "big") + 1 if rows else 0

    async def items(
        self, conversation_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> _Items:
        """A page of items as objects, newest first unless ``order`` is ``asc``. ``after``: an item's id."""
        check_limit(limit)
        return load_items(await self._first_bodies(conversation_id, after, limit, order))

    async def item_page(
        self, conversation_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> ItemPage:
        """A page of items as stored bytes. ``limit`` is 1–100; ``after`` must be an item of this conversation."""
        check_limit(limit)
        # One more than asked for, to know whether there are more.
        bodies = await self._first_bodies(conversation_id, after, limit + 1, order)
        if not bodies:
            return ItemPage([], None, None, False)
        more = len(bodies) > limit
        del bodies[limit:]
        return ItemPage(bodies, id_of(bodies[0]), id_of(bodies[-1]), more)

    async def _first_bodies(self, conversation_id: str, after: str | None, count: int, order: Order) -> _Bodies:
        """Up to ``count`` items' stored bytes, from one end or after an item. Deleted ones are passed over."""
        since = self._surely_mine_since(conversation_id)
        if since is None:
            await self._look(conversation_id)
        lower, upper = ITEM, ITEMS_END
        descending = order == "desc"
        if after is not None:
            record = await self._item_record(conversation_id, after)
            lower, upper = (lower, record.sort) if descending else (record.sort, upper)
        partition = partition_of(conversation_id)
        bodies: _Bodies = []
        while True:
            try:
                found, last = await self._session.records.bodies(
                    partition, after=lower, before=upper, limit=count, descending=descending, since=since
                )
            except ConditionFailed:
                since = None
                self._may_be_shared(conversation_id)
                await self._look(conversation_id)
                continue
            bodies += found if all(found) else [body for body in found if body]
            if last is None or len(bodies) >= count:
                del bodies[count:]
                return bodies
            lower, upper = (lower, last) if descending else (last, upper)

    def _surely_mine_since(self, conversation_id: str) -> object | None:
        """The moment when it was there and the caller's own; None where that is not known. Where no other process has
        written to the room since, its head need not be read: what this one deletes it also forgets here."""
        session = self._session
        session.entrance.require(Scope.READ)
        room = session.room
        known = room.tails.get(conversation_id)
        if known is None or known.since is None or known.owner != self._me or room.retired:
            return None
        return known.since if session.clock.monotonic_s() >= room.shared_until_s else None

    async def _look(self, conversation_id: str) -> None:
        """Raise ``NotFound`` unless the caller may read it. That it is the caller's own is kept for the next page."""
        session = self._session
        room = session.room
        is_ours = session.clock.monotonic_s() >= room.shared_until_s
        moment, forgotten = session.records_in_room.moment() if is_ours else None, room.tails_forgotten
        _, head = await self._head(conversation_id, writing=False)
        # A term is looked at every time.
        if moment is None or head.owner != self._me or head.expires_at_us or forgotten != room.tails_forgotten:
            return
        known = room.tails.get(conversation_id)
        place = None if known is None else known.next_sequence
        room.remember_tail(conversation_id, partition_of(conversation_id), place, head.owner, moment)

    def _may_be_shared(self, conversation_id: str) -> None:
        """Where a condition failed since another process has written to the room, set no more for a while."""
        session = self._session
        known, moment = session.room.tails.get(conversation_id), session.records_in_room.moment()
        if known is not None and moment is not None and moment != known.since:
            known.since = None
            session.room.shared_until_s = session.clock.monotonic_s() + _SHARED_S

    async def all_items(self, conversation_id: str) -> _Items:
        """Every item, oldest first, for assembling a model's context."""
        partition = partition_of(conversation_id)
        found: _Items = []
        after = ITEM
        while True:
            rows = await self._session.records.query(partition, after=after, before=ITEMS_END, limit=500)
            found += load_items([row.body for row in rows if row.body])
            if len(rows) < 500:
                return found
            after = rows[-1].sort

    async def item(self, conversation_id: str, item_id: str) -> Item:
        """One item, or ``NotFound``."""
        await self.head(conversation_id, writing=False)
        return load_item((await self._item_record(conversation_id, item_id)).body)

    async def place_of(self, conversation_id: str, item_id: str) -> int:
        """Where an item lies in its conversation. Raises ``NotFound``."""
        await self.head(conversation_id, writing=False)
        return int.from_bytes((await self._item_record(conversation_id, item_id)).sort[1:], "big")

    async def fork(
        self, conversation_id: str, *, item_id: str | None = None, title: str | None = None, new: str | None = None
    ) -> Conversation:
        """A new conversation of the caller's that begins as this one did; see :func:`nagaya.context.forks.fork`."""
        from nagaya.context.forks import fork

        return await fork(self._session, self, conversation_id, item_id=item_id, title=title, new=new)

    async def item_wire(self, conversation_id: str, item_id: str) -> bytes:
        """One item as the JSON a client sees."""
        await self.head(conversation_id, writing=False)
        return wire((await self._item_record(conversation_id, item_id)).body)

    async def _item_record(self, conversation_id: str, item_id: str) -> Record:
        if not is_id("item", item_id):
            raise NotFound("item")
        partition = partition_of(conversation_id)
        place = placed_sequence(item_id)
        if place is None:
            pointer = await self._session.records.get(partition, _id_sort(item_id))
            if pointer is None:
                raise NotFound("item")
            place = int.from_bytes(pointer.body, "big")
        record = await self._session.records.get(partition, item_sort(place))
        if record is None or not record.body or id_of(record.body) != item_id:
            raise NotFound("item")
        return record

    async def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Delete one item and what was derived from it; its place stays taken by an empty record.

        Gives the conversation, as OpenAI does.
        """
        self._session.may_write()
        for _ in range(_ATTEMPTS):
            head, shown = await self._head(conversation_id, writing=True)
            record = await self._item_record(conversation_id, item_id)
            place = int.from_bytes(record.sort[1:], "big")
            changes: _Changes = [Put(record.sort, b"", record.revision)]
            changes += await without_words(self._session, conversation_id, head, place)
            changes += await summaries_covering(self._session, conversation_id, place)
            await forget_derived(self._session, conversation_id, item_id)
            try:
                await self._session.records.write(partition_of(conversation_id), changes)
            except ConditionFailed:
                continue
            # What was being made meanwhile.
            await forget_summaries(self._session, conversation_id, place)
            await forget_derived(self._session, conversation_id, item_id)
            return _shown(shown)
        raise Conflict

    # --- small helpers ---

    def _term(self, expires_at: int | None) -> int:
        """A Unix second as a term in microseconds; 0: none."""
        if not expires_at:
            return 0
        if not self._session.clock.now_us() < expires_at * 1_000_000 < _YEAR_9999_US:
            raise InvalidValue(param="expires_at", at="expires_at", detail="expected a Unix time in the future")
        return expires_at * 1_000_000


def check_limit(limit: int) -> None:
    """Raise ``InvalidValue`` unless a page may have this many entries."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(param="limit", at="limit", detail=f"expected 1 to {MAX_PAGE}, got {limit}")


def check_count(items: Sequence[Item]) -> None:
    """Raise ``InvalidValue`` for more than 20 items in one call."""
    if len(items) > MAX_ITEMS_PER_CALL:
        raise InvalidValue(param="items", at="items", detail=f"at most {MAX_ITEMS_PER_CALL} items in one call")


def _id_sort(item_id: str) -> bytes:
    """Where the place of an item lies whose id does not tell it."""
    return ITEMS_END + bytes.fromhex(item_id[-32:])
