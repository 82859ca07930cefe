"""A conversation as the memory of a client's library: what the library stored comes back as it was given.

Items of known shapes are items of the conversation like all others. What has no shape that conversations know (such as
a hosted tool's call) lies beside them: its place among the items stays empty, and only this door shows it. Where: sort
``x`` and the item's 8-byte place, in the conversation's partition.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.client_forms import SIMPLE_FORM, as_input, as_item, form_of, in_form, simple_message
from nagaya.context.conversations import Conversations
from nagaya.context.items import Hidden, Item, id_of
from nagaya.context.memory_records import forget_derived
from nagaya.context.message_words import forget_words, without_words
from nagaya.context.places import ITEM, ITEMS_END, partition_of
from nagaya.context.summaries import forget_summaries, summaries_covering
from nagaya.errors import ConditionFailed, Conflict
from nagaya.records.sealed_store import Delete, Put, Record

ITEMS_AT_ONCE: Final = 40
"""Items stored in one batch, all or none; more are stored in several."""
_POINTERS_END: Final = b"k"
_HIDDEN: Final = b"x"
_ATTEMPTS: Final = 16
_PAGE: Final = 200


class _Form(msgspec.Struct):
    form: Any = None


_Page = tuple[list[Record], list[dict[str, Any]]]


def _as_text(value: object) -> str:
    """Libraries have texts that are more than texts; as JSON they are texts."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


_encoder: Final = msgspec.json.Encoder(enc_hook=_as_text)
_item_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_items_decoder: msgspec.json.Decoder[list[dict[str, Any]]] = msgspec.json.Decoder(list[dict[str, Any]])
_forms_decoder: msgspec.json.Decoder[list[_Form]] = msgspec.json.Decoder(list[_Form])


class ClientItems:
    """Conversations of one caller, as a client's library sees them. Raises what :class:`Conversations` raises."""

    __slots__ = ("_conversations", "_session")

    def __init__(self, session: TenantSession, conversations: Conversations) -> None:
        self._session = session
        self._conversations = conversations

    async def add(self, conversation_id: str, given: Sequence[object]) -> None:
        """Append items that are JSON objects, or models of them, durably; up to ``ITEMS_AT_ONCE`` of them all or none.
        Raises ``TypeError`` for anything else."""
        alone = simple_message(given[0]) if len(given) == 1 else None
        if alone is not None:
            await self._conversations.append_bodies(conversation_id, (alone,), forms=(SIMPLE_FORM,))
            return
        for at in range(0, len(given), ITEMS_AT_ONCE):
            items: list[Item | Hidden] = []
            forms: list[Any] = []
            for each in given[at : at + ITEMS_AT_ONCE]:
                body = _encoder.encode(_plain(each))
                plain = _item_decoder.decode(body)
                item = as_item(plain)
                items.append(Hidden(body) if item is None else item)
                forms.append(None if item is None else form_of(plain, item))
            await self._conversations.append_bodies(conversation_id, items, forms=forms)

    async def last(self, conversation_id: str, limit: int | None = None) -> list[dict[str, Any]]:
        """The last ``limit`` items (all, for None), the oldest first, as they were given."""
        await self._conversations.head(conversation_id, writing=False)
        found: list[dict[str, Any]] = []
        async for _, shown in self._downwards(conversation_id, limit):
            found += shown
            if limit is not None and len(found) >= limit:
                del found[limit:]
                break
        found.reverse()
        return found

    async def pop(self, conversation_id: str) -> dict[str, Any] | None:
        """Remove the last item, with what was derived from it, and give it; None where there is none."""
        self._session.may_write()
        partition = partition_of(conversation_id)
        taken: tuple[Record, dict[str, Any]] | None = None
        for _ in range(_ATTEMPTS):
            head = await self._conversations.head(conversation_id, writing=True)
            # The one that was the last when this began, as long as it is there: what was derived from it is gone.
            there = None if taken is None else await self._session.records.get(partition, taken[0].sort)
            if taken is None or there is None or not there.body:
                taken = await self._last(conversation_id)
                if taken is None:
                    return None
                there = taken[0]
            row, shown = there, taken[1]
            change = Put(row.sort, b"", row.revision) if row.sort.startswith(ITEM) else Delete(row.sort, row.revision)
            changes = [change]
            place = int.from_bytes(row.sort[len(ITEM) :], "big")
            item_id = id_of(row.body) if row.sort.startswith(ITEM) else None
            if item_id is not None:
                changes += await without_words(self._session, conversation_id, head, place)
                changes += await summaries_covering(self._session, conversation_id, place)
                await forget_derived(self._session, conversation_id, item_id)
            try:
                await self._session.records.write(partition, changes)
            except ConditionFailed:
                continue
            if item_id is not None:
                # What was being made meanwhile.
                await forget_summaries(self._session, conversation_id, place)
                await forget_derived(self._session, conversation_id, item_id)
            return shown
        raise Conflict

    async def _last(self, conversation_id: str) -> tuple[Record, dict[str, Any]] | None:
        pages = self._downwards(conversation_id, 1)
        try:
            async for rows, shown in pages:
                if rows:
                    return rows[0], shown[0]
        finally:
            await pages.aclose()
        return None

    async def clear(self, conversation_id: str) -> None:
        """Remove every item, with what was derived from them. The conversation itself stays, and goes on after the
        place of its last item."""
        self._session.may_write()
        await self._conversations.head(conversation_id, writing=True)
        records, partition = self._session.records, partition_of(conversation_id)
        for _ in range(_ATTEMPTS):
            last = await records.query(partition, after=ITEM, before=ITEMS_END, limit=1, descending=True)
            if not last:
                return
            upto = int.from_bytes(last[0].sort[len(ITEM) :], "big")
            await self._forget_derived(conversation_id, upto)
            try:
                if last[0].body:
                    # Its place stays taken, so that no later item is put before one that another process appends.
                    await records.put(partition, last[0].sort, b"", expect=last[0].revision)
                await self._remove_before(conversation_id, last[0].sort[len(ITEM) :])
            except ConditionFailed:
                continue
            await self._forget_derived(conversation_id, upto)  # what was being made meanwhile
            return
        raise Conflict

    async def _forget_derived(self, conversation_id: str, upto: int) -> None:
        await forget_words(self._session, conversation_id)
        await forget_summaries(self._session, conversation_id, 0)
        await forget_derived(self._session, conversation_id, upto=upto)

    async def _remove_before(self, conversation_id: str, place: bytes) -> None:
        """Remove the items before a place, what lies beside those and beside the place, and where their ids lead. What
        another process appends after it stays."""
        records, partition = self._session.records, partition_of(conversation_id)
        for lower, upper in ((ITEM, ITEM + place), (_HIDDEN, _HIDDEN + place + b"\0")):
            while rows := await records.query(partition, after=lower, before=upper, limit=90):
                await records.write(partition, [Delete(row.sort, row.revision) for row in rows])
        after = ITEMS_END
        while rows := await records.query(partition, after=after, before=_POINTERS_END, limit=90):
            doomed: list[Put | Delete] = [Delete(row.sort, row.revision) for row in rows if row.body <= place]
            if doomed:
                await records.write(partition, doomed)
            after = rows[-1].sort

    async def _downwards(self, conversation_id: str, limit: int | None) -> AsyncGenerator[_Page, None]:
        """Pages of records and of what they show, the newest first."""
        records, partition = self._session.records, partition_of(conversation_id)
        page = _PAGE if limit is None else min(limit, _PAGE)
        upper = ITEMS_END
        while True:
            rows = await records.query(partition, after=ITEM, before=upper, limit=page, descending=True)
            if not rows:
                return
            upper = rows[-1].sort
            if all(row.body for row in rows):
                yield rows, _shown(rows)
            else:
                yield await self._with_hidden(conversation_id, rows)
            if len(rows) < page:
                return
            page = _PAGE

    async def _with_hidden(self, conversation_id: str, rows: Sequence[Record]) -> _Page:
        """The same for a page with empty places: what lies beside them, and nothing for what was deleted."""
        beside: dict[bytes, Record] = {}
        lowest = int.from_bytes(rows[-1].sort[1:], "big")
        after = _HIDDEN + (lowest - 1).to_bytes(8, "big") if lowest else _HIDDEN
        while True:
            hidden = await self._session.records.query(
                partition_of(conversation_id), after=after, before=_HIDDEN + rows[0].sort[1:] + b"\0", limit=_PAGE
            )
            beside |= {row.sort[1:]: row for row in hidden}
            if len(hidden) < _PAGE:
                break
            after = hidden[-1].sort
        there = [row if row.body else beside[row.sort[1:]] for row in rows if row.body or row.sort[1:] in beside]
        known = iter(_shown([row for row in there if row.sort.startswith(ITEM)]))
        return there, [next(known) if row.sort.startswith(ITEM) else msgspec.json.decode(row.body) for row in there]


def _plain(item: object) -> Mapping[str, Any]:
    """An item as a JSON object. Clients hand over dictionaries; what else they have can say itself as one."""
    if isinstance(item, Mapping):
        return item
    dump = getattr(item, "model_dump", None)
    if dump is None:
        raise TypeError(f"not an item: {type(item).__name__}")
    return cast("Mapping[str, Any]", dump(exclude_unset=True))


def _shown(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """What the clients gave, of items with their forms."""
    kept: list[bytes] = []
    metas: list[bytes] = []
    for row in rows:
        body, _, meta = row.body.partition(b"\n")
        kept.append(body)
        metas.append(meta)
    items = _items_decoder.decode(b"[%b]" % b",".join(kept))
    forms = _forms_decoder.decode(b"[%b]" % b",".join(metas))
    return [
        as_input(item) if meta.form is None else in_form(meta.form, item)
        for item, meta in zip(items, forms, strict=True)
    ]
