"""The words of a conversation's messages, noted beside them so that a search need not read them all.

They lie in the conversation's own partition, sealed under its key (sort ``g`` and the 8-byte place of the first): so
they are read by whoever may read the conversation, end with it, and are nobody else's. Nothing is noted when a message
is appended. A search reads what is not noted yet, and has it noted in the background once the conversation is quiet.

Whatever is noted is written together with the conversation's head, as it was read before the messages were, and
whoever deletes a message writes the head too. So no words can be noted of what was deleted meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.items import Message, load_item, load_meta
from nagaya.context.lone_records import remove_all
from nagaya.context.places import HEAD, ITEM, WORDS, is_there, item_places, partition_of
from nagaya.errors import ConditionFailed, Conflict, IndexDamaged, IndexOutdated, NagayaError, SessionClosed
from nagaya.indexes.terms import term_counts
from nagaya.indexes.word_block import BlockWriter, Text, WordBlock
from nagaya.records.sealed_store import Delete, Put, Record
from nagaya.tenancy.principal import Scope

QUIET_US: Final = 60 * 1_000_000
"""So long after its last message a conversation counts as quiet."""
MANY: Final = 8
"""So many messages are noted also while a conversation goes on."""
YOUNG_US: Final = 3_600 * 1_000_000
"""An empty place before a message of that age is no longer waited for."""
_YOUNG_PLACES: Final = 16
_BLOCKS_AT_ONCE: Final = 8
_ITEMS_AT_ONCE: Final = 100
_ATTEMPTS: Final = 16

_log = structlog.get_logger(__name__)


class Noted(NamedTuple):
    """A block of words, and its record's revision."""

    revision: int
    block: WordBlock


class Gap(NamedTuple):
    """Places whose words are not noted: ``first <= n < upto`` (None: to the end)."""

    first: int
    upto: int | None


class Words(NamedTuple):
    """A conversation's head and what is noted of its messages, in the order of their places. ``stale``: records that
    another version wrote, to be removed before words are noted anew."""

    head: Record
    noted: list[Noted]
    stale: list[Record]

    def gaps(self) -> list[Gap]:
        """What is not noted; the last one is the end of the conversation."""
        gaps, first = [], 0
        for _, block in self.noted:
            if block.first > first:
                gaps.append(Gap(first, block.first))
            first = max(first, block.upto)
        return [*gaps, Gap(first, None)]


async def read_words(session: TenantSession, conversation_id: str) -> Words | None:
    """The conversation's head and the words noted of it; None where there is no such conversation. Who may read it is
    for the caller to look at."""
    query, partition = session.records.query, partition_of(conversation_id)
    # Downwards, so that the head comes first and most conversations take one page.
    rows = await query(partition, after=WORDS, before=ITEM, limit=_BLOCKS_AT_ONCE, descending=True)
    if not rows or rows[0].sort != HEAD:
        return None
    words = Words(rows.pop(0), [], [])
    while rows:
        for row in rows:
            try:
                words.noted.append(Noted(row.revision, WordBlock(row.body)))
            except (IndexDamaged, IndexOutdated):
                words.stale.append(row)
        if len(rows) < _BLOCKS_AT_ONCE - 1:
            break
        rows = await query(partition, after=WORDS, before=rows[-1].sort, limit=_BLOCKS_AT_ONCE, descending=True)
    words.noted.reverse()
    return words


def note_soon(session: TenantSession, conversation_ids: Sequence[str]) -> None:
    """See to it that the words of these conversations are noted. Never waits; may be repeated."""
    principal = session.entrance.principal
    if not conversation_ids or Scope.WRITE not in principal.scopes:
        return
    waiting, key = session.room.noting, principal.user_key
    if key in waiting:
        waiting[key].update(dict.fromkeys(conversation_ids))
        return
    waiting[key] = dict.fromkeys(conversation_ids)
    session.background(_note_all(session.lease(), waiting, key))


async def _note_all(session: TenantSession, waiting: dict[str, dict[str, None]], key: str) -> None:
    try:
        while waiting[key]:
            conversation_id = next(iter(waiting[key]))
            del waiting[key][conversation_id]
            await note_words(session, conversation_id)
    except SessionClosed:
        return  # the next search finds what is left
    except NagayaError as problem:
        _log.warning("words were not noted", action="search.not_noted", code=problem.code)
    finally:
        del waiting[key]
        await session.release()


async def note_words(session: TenantSession, conversation_id: str) -> None:
    """Note the words of the messages of which they are not noted yet. May be interrupted anywhere, and repeated; where
    somebody else changes the conversation at that moment, what is left is left for later."""
    partition, records = partition_of(conversation_id), session.records
    words = await read_words(session, conversation_id)
    if words is None or not is_there(words.head, session.clock.now_us()):
        return
    revision = words.head.revision
    try:
        for row in words.stale:
            await records.delete(partition, row.sort, expect=row.revision)
        for first, upto in words.gaps():
            expect = 0
            if upto is None and words.noted and not words.noted[-1].block.is_full:
                # The last block goes on: it is written anew with what came after it.
                expect, last = words.noted[-1]
                first, noted = last.first, last.upto
            else:
                noted = first
            while (made := await _block(session, conversation_id, first, upto)) is not None and made.upto > noted:
                block = Put(_sort(first), made.content, expect)
                await records.write(partition, [Put(HEAD, words.head.body, revision), block])
                revision, expect, first = revision + 1, 0, made.upto
                if made.is_last:
                    break
    except ConditionFailed:
        return


class _Made(NamedTuple):
    content: bytes
    upto: int
    is_last: bool


async def _block(session: TenantSession, conversation_id: str, first: int, upto: int | None) -> _Made | None:
    """A block of the places from ``first`` on, as many as fit; None where there is nothing (yet)."""
    writer, done = BlockWriter(first), first
    young_us = session.clock.now_us() - YOUNG_US
    while upto is None or done < upto:
        rows = await item_places(session, conversation_id, done, upto, limit=_ITEMS_AT_ONCE)
        for place, at_us, text in await asyncio.to_thread(_texts, rows):
            missing = range(done, place)
            # Of two appends at once the later one may become durable first.
            if missing and (at_us is None or at_us > young_us):
                if len(missing) <= _YOUNG_PLACES:
                    if not all(map(writer.leave, missing)):
                        return await _made(writer, done, is_full=True)
                elif at_us is not None:
                    return await _made(writer, done, is_last=True)
            if text is not None and not writer.add(text):
                return await _made(writer, place, is_full=True)
            done = place + 1
        if len(rows) < _ITEMS_AT_ONCE:
            break
    return await _made(writer, upto or done, is_full=upto is not None, is_last=True)


async def _made(writer: BlockWriter, upto: int, *, is_full: bool = False, is_last: bool = False) -> _Made | None:
    if writer.first == upto:
        return None
    return _Made(await asyncio.to_thread(writer.written, upto, is_full=is_full), upto, is_last)


def _texts(rows: Sequence[tuple[int, bytes]]) -> list[tuple[int, int | None, Text | None]]:
    """For each place when what lies there came to be, and a message's text as it is noted."""
    found: list[tuple[int, int | None, Text | None]] = []
    for place, body in rows:
        if not body:
            found.append((place, None, None))
            continue
        item, at_us = load_item(body), load_meta(body).at
        text = Text(place, at_us, term_counts(item.text)) if isinstance(item, Message) else None
        found.append((place, at_us, text))
    return found


# --- deleting -----------------------------------------------------------------------------------------------------


async def without_words(session: TenantSession, conversation_id: str, head: Record, place: int) -> list[Put | Delete]:
    """The changes to be written together with the deletion of what lies at a place: they take the noted words along,
    and refuse those that are being noted meanwhile."""
    changes: list[Put | Delete] = [Put(HEAD, head.body, head.revision)]
    rows = await session.records.query(
        partition_of(conversation_id), after=WORDS, before=_sort(place + 1), limit=1, descending=True
    )
    return changes + [Delete(row.sort, row.revision) for row in rows]


async def forget_words(session: TenantSession, conversation_id: str) -> None:
    """Remove all that is noted, also what is being noted meanwhile. May be repeated."""
    partition = partition_of(conversation_id)
    for _ in range(_ATTEMPTS):
        head = await session.records.get(partition, HEAD)
        if head is None:
            break
        try:
            await session.records.put(partition, HEAD, head.body, expect=head.revision)
        except ConditionFailed:
            continue
        break
    else:
        raise Conflict
    await remove_all(session, partition, after=WORDS, before=HEAD)


def _sort(place: int) -> bytes:
    return WORDS + place.to_bytes(8, "big")
