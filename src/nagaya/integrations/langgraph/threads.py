"""Where checkpoints lie: one folder for each thread, and indexes of a user's threads and runs.

In a thread's folder a checkpoint's place is the mark of its namespace and its id. There lie ``c`` the checkpoint, ``d``
with a name and a number what did not fit into one record, and ``w`` and a task's mark what a task wrote after it. So
the latest checkpoint of a namespace and what is pending on it are the last records of one range.

The parts of one writing have a name that no others have, and the record says by which it has them: whoever writes a
checkpoint anew writes other parts, and dies before or after the one write that counts.

A checkpoint that is to be deleted is marked first, and what is left is looked at after that. Whoever goes on from a
checkpoint looks at it once more when his own is there: either he sees the mark, or his is seen and keeps what it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from nagaya.context.drawers import MAX_CHANGES, Delete, Drawer, Folder, Put, Record
from nagaya.errors import ConditionFailed, Conflict, InvalidValue
from nagaya.integrations.langgraph.pieces import Piece, Stored, needed, remains

PART_BYTES: Final = 256 * 1024
"""A checkpoint's record that is longer is written in parts: not every store takes more in one record."""
_BATCH_BYTES: Final = 1024 * 1024
_ATTEMPTS: Final = 16
_REMEMBERED: Final = 4096
_MAX_ID_BYTES: Final = 120
_UUID, _TEXT = b"\x00", b"\x01"
_WHOLE, _IN_PARTS = 0, 1
_GONE: Final = 0x80
"""Set in a record's first byte where its checkpoint is deleted, or about to be."""
_CHECKPOINT, _PART, _WRITES, _END = b"c", b"d", b"w", b"x"
_NAMESPACE_BYTES: Final = 8
_NAME_BYTES: Final = 8

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Stored)


class Write(msgspec.Struct, array_like=True):
    """One value that a task wrote."""

    index: int
    channel: str
    value: Piece


class TaskWrites(msgspec.Struct, array_like=True):
    """What one task wrote after a checkpoint."""

    task_id: str
    path: str
    writes: list[Write]


_writes_decoder = msgspec.msgpack.Decoder(TaskWrites)


class Found(NamedTuple):
    """A checkpoint read, and what is pending on it."""

    place: bytes
    stored: Stored
    pending: list[TaskWrites]


class Kept(NamedTuple):
    """A checkpoint's record as it lies there: its revision, and the name of its parts (``b""``: it has none)."""

    stored: Stored
    revision: int
    parts: bytes


def place_of(namespace: bytes, checkpoint_id: str) -> bytes:
    """Where a checkpoint lies. Ids that are UUIDs take 16 bytes; all others their text. Both sort as the ids do."""
    try:
        id_ = UUID(checkpoint_id)
        if str(id_) == checkpoint_id:
            return namespace + _UUID + id_.bytes
    except ValueError:
        pass
    text = checkpoint_id.encode("utf-8", "surrogatepass")
    if not text or len(text) > _MAX_ID_BYTES or b"\0" in text:
        detail = f"1 to {_MAX_ID_BYTES} bytes, none of them 0"
        raise InvalidValue(param="checkpoint_id", at="checkpoint_id", detail=detail)
    return namespace + _TEXT + text + b"\0"


def id_at(place: bytes) -> str:
    """The id of the checkpoint at a place."""
    form, rest = place[_NAMESPACE_BYTES : _NAMESPACE_BYTES + 1], place[_NAMESPACE_BYTES + 1 :]
    return str(UUID(bytes=rest)) if form == _UUID else rest[:-1].decode("utf-8", "surrogatepass")


def _split(sort: bytes) -> tuple[bytes, bytes, bytes]:
    """A sort key as the checkpoint's place, the kind of the record, and what tells several of that kind apart."""
    if sort[_NAMESPACE_BYTES : _NAMESPACE_BYTES + 1] == _UUID:
        at = _NAMESPACE_BYTES + 17
    else:
        at = sort.index(b"\0", _NAMESPACE_BYTES + 1) + 1
    return sort[:at], sort[at : at + 1], sort[at + 1 :]


def _task_mark(task_id: str) -> bytes:
    return hashlib.blake2b(task_id.encode(), digest_size=8).digest()


class Thread:
    """One thread of one user."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    # --- reading ---

    async def at(self, place: bytes) -> Found | None:
        """The checkpoint at a place, with what is pending on it."""
        return next(_gathered(await self.folder.query(after=place, before=place + _END, limit=1000)), None)

    async def newest(self, namespace: bytes) -> Found | None:
        """The latest checkpoint of a namespace."""
        pages = self._pages_down(namespace, b"", first=4)
        try:
            async for rows in pages:
                for found in _gathered(rows):
                    return found
        finally:
            await pages.aclose()
        return None

    async def downwards(self, namespace: bytes, *, before: bytes = b"") -> AsyncGenerator[Found, None]:
        """The checkpoints of a namespace (of all, for ``b""``), from the latest one down."""
        async for rows in self._pages_down(namespace, before, first=100):
            for found in _gathered(rows):
                yield found

    async def _pages_down(self, namespace: bytes, before: bytes, first: int) -> AsyncGenerator[list[Record], None]:
        """Records from the last one down; a checkpoint's are never torn apart."""
        upper = before or (namespace + b"\xff" if namespace else b"")
        limit = first
        waiting: list[Record] = []
        while True:
            rows = await self.folder.query(after=namespace, before=upper, limit=limit, descending=True)
            waiting += rows
            complete = len(waiting)
            if len(rows) == limit:
                # The checkpoint's own record is the last of its records.
                while complete and _split(waiting[complete - 1].sort)[1] != _CHECKPOINT:
                    complete -= 1
            yield waiting[:complete]
            if len(rows) < limit:
                return
            waiting = waiting[complete:]
            upper = rows[-1].sort
            limit = 100

    async def sources(self, stored: Stored) -> list[Sequence[Piece]] | None:
        """The pieces of a checkpoint's record and, from 1, of each of its sources. None where one is not there any
        more, as where the thread is being deleted by another process."""
        pieces: list[Sequence[Piece]] = [stored.pieces]
        for place, record in zip(
            stored.sources,
            await self.folder.get_many([place + _CHECKPOINT for place in stored.sources]),
            strict=True,
        ):
            kept = None if record is None else _whole([record]) or await self.get(place)
            if kept is None:
                return None
            pieces.append(kept.stored.pieces)
        return pieces

    async def _rows(self, place: bytes) -> list[Record]:
        """The records of one checkpoint and of its parts."""
        rows: list[Record] = []
        after = place
        while page := await self.folder.query(after=after, before=place + _WRITES, limit=100):
            rows += page
            after = page[-1].sort
        return rows

    async def everything(self) -> tuple[dict[bytes, Kept], dict[bytes, list[Record]]]:
        """Every checkpoint, the deleted ones that others need too, and all records by place."""
        by_place: dict[bytes, list[Record]] = {}
        after = b""
        while rows := await self.folder.query(after=after, limit=200):
            for row in rows:
                by_place.setdefault(_split(row.sort)[0], []).append(row)
            after = rows[-1].sort
        kept: dict[bytes, Kept] = {}
        for place, records in by_place.items():
            found = _whole(records)
            if found is None and any(row.sort == place + _CHECKPOINT for row in records):
                # Written anew between two pages.
                records[:] = [*await self._rows(place), *(row for row in records if _split(row.sort)[1] == _WRITES)]
                found = _whole(records)
            if found is not None:
                kept[place] = found
        return kept, by_place

    # --- writing ---

    async def put(self, place: bytes, stored: Stored, *, over: Kept | None = None) -> None:
        """Write a checkpoint's record, ``over`` the one that was read or where there is none. Raises
        ``ConditionFailed`` where there is another by now; then that one is what it was."""
        record, parts = _laid_out(stored)
        name = _name_of(record)
        named = [(_part_sort(place, name, number), part) for number, part in enumerate(parts)]
        # The record itself comes last: before it, the parts mean nothing.
        for at in range(0, len(named), _BATCH_BYTES // PART_BYTES):
            await self.overwrite(named[at : at + _BATCH_BYTES // PART_BYTES])
        try:
            await self.folder.put(place + _CHECKPOINT, record, expect=over.revision if over else 0)
        except ConditionFailed:
            await self._clear_parts(place, name)
            raise
        if over is not None:
            await self._clear_parts(place, over.parts)

    async def _clear_parts(self, place: bytes, name: bytes) -> None:
        if name:
            parts = place + _PART + name
            await self.folder.clear(after=parts, before=parts + b"\xff\xff\xff")

    async def get(self, place: bytes) -> Kept | None:
        """A checkpoint's record alone, as it is, whether deleted or not."""
        record = await self.folder.get(place + _CHECKPOINT)
        return None if record is None else _whole([record]) or _whole(await self._rows(place))

    async def holds(self, place: bytes) -> bool | None:
        """Whether the checkpoint, and so what it needs, stays; False: it is being deleted; None: it is not there."""
        record = await self.folder.get(place + _CHECKPOINT)
        return None if record is None else not _is_marked(record)

    async def overwrite(self, bodies: Sequence[tuple[bytes, bytes]]) -> None:
        """Write records whether there are any at their places or not."""
        expects = [0] * len(bodies)
        for _ in range(_ATTEMPTS):
            changes = [Put(sort, body, expect) for (sort, body), expect in zip(bodies, expects, strict=True)]
            try:
                await self.folder.write(changes)
                return
            except ConditionFailed:
                there = await self.folder.get_many([sort for sort, _ in bodies])
                expects = [0 if record is None else record.revision for record in there]
        raise Conflict

    async def put_writes(self, place: bytes, new: TaskWrites, *, over: bool) -> None:
        """Keep what a task wrote. What it wrote before under the same index stays, or, with ``over``, is replaced."""
        sort = place + _WRITES + _task_mark(new.task_id)
        merged, expect = new, 0
        for _ in range(_ATTEMPTS):
            try:
                await self.folder.put(sort, _encoder.encode(merged), expect=expect)
                return
            except ConditionFailed:
                record = await self.folder.get(sort)
                if record is None:
                    merged, expect = new, 0
                    continue
                before = _writes_decoder.decode(record.body)
                earlier, later = (before.writes, new.writes) if over else (new.writes, before.writes)
                by_index = {write.index: write for write in [*earlier, *later]}
                merged = TaskWrites(new.task_id, before.path or new.path, [by_index[at] for at in sorted(by_index)])
                if merged == before:
                    return
                expect = record.revision
        raise Conflict

    async def remove(self, doomed: set[bytes]) -> None:
        """Delete checkpoints and what is pending on them. Pieces that others need stay, and nothing else of them."""
        for _ in range(_ATTEMPTS):
            try:
                await self._mark(doomed)
                await self._remove_marked(doomed)
            except ConditionFailed:
                continue
            return
        raise Conflict

    async def _mark(self, doomed: set[bytes]) -> None:
        """Mark checkpoints that are about to be deleted."""
        sorts = [place + _CHECKPOINT for place in sorted(doomed)]
        for at in range(0, len(sorts), _BATCH_BYTES // PART_BYTES):
            changes = [
                Put(row.sort, bytes([row.body[0] | _GONE]) + row.body[1:], row.revision)
                for row in await self.folder.get_many(sorts[at : at + _BATCH_BYTES // PART_BYTES])
                if row is not None and not _is_marked(row)
            ]
            if changes:
                await self.folder.write(changes)

    async def _remove_marked(self, doomed: set[bytes]) -> None:
        there, by_place = await self.everything()
        stored = {place: each.stored for place, each in there.items()}
        kept = {place for place, each in stored.items() if place not in doomed and not each.gone}
        wanted = needed(stored, kept)
        changes: list[Delete] = []
        for place, records in by_place.items():
            # Some of the parts of one that is marked may have gone before.
            is_going = place in doomed or any(_split(row.sort)[1] == _CHECKPOINT and _is_marked(row) for row in records)
            if place in kept or (place not in stored and not is_going):
                continue
            if place in wanted:
                left = remains(stored[place], wanted[place])
                if left != stored[place]:
                    await self.put(place, left, over=there[place])
                else:
                    await self._clear_former_parts(there[place], records)
                records = [row for row in records if _split(row.sort)[1] == _WRITES]
            changes += [Delete(row.sort, row.revision) for row in records]
        # The marks last: whoever comes after somebody who died half-way sees by them what is to go.
        changes.sort(key=lambda change: _split(change.sort)[1] == _CHECKPOINT)
        for at in range(0, len(changes), MAX_CHANGES):
            await self.folder.write(changes[at : at + MAX_CHANGES])

    async def _clear_former_parts(self, kept: Kept, records: Sequence[Record]) -> None:
        """Remove what somebody left of a record that he wrote anew. The record is written with it, so that nobody who
        is writing it anew at this moment loses his parts."""
        former = [
            Delete(row.sort, row.revision)
            for row in records
            if _split(row.sort)[1] == _PART and _split(row.sort)[2][:_NAME_BYTES] != kept.parts
        ]
        if former:
            (record,) = [row for row in records if _split(row.sort)[1] == _CHECKPOINT]
            again = Put(record.sort, record.body, record.revision)
            await self.folder.write([again, *former[: MAX_CHANGES - 1]])


def _gathered(rows: Sequence[Record]) -> Iterator[Found]:
    """Checkpoints with their pending writes, of rows in which each checkpoint's records lie together."""
    for place, group in groupby(rows, lambda row: _split(row.sort)[0]):
        records: list[Record] = []
        pending: list[TaskWrites] = []
        for row in group:
            if _split(row.sort)[1] == _WRITES:
                pending.append(_writes_decoder.decode(row.body))
            else:
                records.append(row)
        # Writes without a checkpoint were made while it was on its way; it never arrived.
        kept = _whole(records)
        if kept is not None and not kept.stored.gone:
            yield Found(place, kept.stored, pending)


def _laid_out(stored: Stored) -> tuple[bytes, list[bytes]]:
    """A checkpoint as the body of its record, and of its parts. The record says whether there are parts, and then their
    name and number, before what it has itself."""
    body = _encoder.encode(stored)
    gone = _GONE if stored.gone else 0
    if len(body) <= PART_BYTES:
        return bytes([_WHOLE | gone]) + body, []
    first, *rest = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]
    name = os.urandom(_NAME_BYTES)  # nothing of the content: it lies in clear at the store
    return bytes([_IN_PARTS | gone]) + name + len(rest).to_bytes(2, "big") + first, rest


def _is_marked(record: Record) -> bool:
    return bool(record.body[0] & _GONE)


def _name_of(record: bytes) -> bytes:
    """The name of a record's parts; empty where it has none."""
    return record[1 : 1 + _NAME_BYTES] if record[0] & _IN_PARTS else b""


def _part_sort(place: bytes, name: bytes, number: int) -> bytes:
    return place + _PART + name + number.to_bytes(2, "big")


def _whole(rows: Sequence[Record]) -> Kept | None:
    """A checkpoint's record, of its rows in any order; None where it, or one of its parts, is not among them."""
    by_sort = {row.sort: row for row in rows}
    record = next((row for row in rows if _split(row.sort)[1] == _CHECKPOINT), None)
    if record is None:
        return None
    body, name = memoryview(record.body), _name_of(record.body)
    if not name:
        stored = _decoder.decode(body[1:])
    else:
        place, at = record.sort[: -len(_CHECKPOINT)], 1 + _NAME_BYTES
        parts = [
            by_sort.get(_part_sort(place, name, number)) for number in range(int.from_bytes(body[at : at + 2], "big"))
        ]
        if None in parts:
            return None
        stored = _decoder.decode(b"".join([body[at + 2 :], *(part.body for part in parts if part is not None)]))
    stored.gone = stored.gone or _is_marked(record)
    return Kept(stored, record.revision, name)


class Threads:
    """All threads of one user."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer
        # Names of folders and marks of namespaces, and which are in the index. They hold no content.
        self._threads: OrderedDict[str, Thread] = OrderedDict()
        self._marks: OrderedDict[str, bytes] = OrderedDict([("", bytes(_NAMESPACE_BYTES))])
        self._listed: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def thread(self, thread_id: str) -> Thread:
        """A thread, whether there is anything in it or not."""
        found = self._threads.get(thread_id)
        if found is None:
            found = Thread(await self._drawer.folder("thread", thread_id))
            _remember(self._threads, thread_id, found)
        return found

    async def namespace(self, name: str) -> bytes:
        """What stands for a checkpoint namespace in sort keys."""
        mark = self._marks.get(name)
        if mark is None:
            mark = (await self._drawer.mark("namespace", name))[:_NAMESPACE_BYTES]
            _remember(self._marks, name, mark)
        return mark

    async def listed(self, thread_id: str, run_id: object, *, begins: bool = False) -> bool:
        """See to it that a thread can be found among the user's, and by its run. What is remembered of that is not
        relied on where the thread ``begins``: somebody else may have deleted it. Whether it was looked at."""
        looked = False
        for name in ("threads",) if not isinstance(run_id, str) else ("threads", run_id):
            if (thread_id, name) in self._listed and not begins:
                continue
            index, sort, looked = await self._index(name), await self._sort(thread_id), True
            if await index.get(sort) is None:
                with contextlib.suppress(ConditionFailed):
                    await index.put(sort, thread_id.encode())
            _remember(self._listed, (thread_id, name), None)
        return looked

    async def is_listed(self, thread_id: str) -> bool:
        """Whether a thread is among the user's: one that was deleted is not."""
        return await (await self._index("threads")).get(await self._sort(thread_id)) is not None

    async def all(self) -> AsyncIterator[str]:
        """The ids of the user's threads."""
        async for thread_id in self._in(await self._index("threads")):
            yield thread_id

    async def of_run(self, run_id: str) -> list[str]:
        """The threads in which a run wrote checkpoints."""
        return [thread_id async for thread_id in self._in(await self._index(run_id))]

    async def _in(self, index: Folder) -> AsyncIterator[str]:
        after = b""
        while rows := await index.query(after=after):
            for row in rows:
                yield row.body.decode()
            after = rows[-1].sort

    async def forget_run(self, thread_id: str, run_id: str) -> None:
        """Note that a run has nothing in a thread any more."""
        await (await self._index(run_id)).remove(await self._sort(thread_id))
        self._listed.clear()

    async def delete(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        folder = (await self.thread(thread_id)).folder
        await folder.clear()
        await (await self._index("threads")).remove(await self._sort(thread_id))
        self._listed.clear()
        if await folder.query(limit=1):
            await self.listed(thread_id, None)  # somebody has begun it anew

    async def copy(self, source_id: str, target_id: str) -> None:
        """Copy every checkpoint and all that is pending from one thread to another."""
        _, by_place = await (await self.thread(source_id)).everything()
        if not by_place:
            return
        target = await self.thread(target_id)
        await self.listed(target_id, None)
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for records in by_place.values():
            # Parts come before the record that makes them mean something.
            for row in sorted(records, key=lambda row: _split(row.sort)[1] == _CHECKPOINT):
                if batch and (size + len(row.body) > _BATCH_BYTES or len(batch) == MAX_CHANGES):
                    await target.overwrite(batch)
                    batch, size = [], 0
                batch.append((row.sort, row.body))
                size += len(row.body)
        await target.overwrite(batch)

    async def _index(self, name: str) -> Folder:
        return await self._drawer.folder("threads") if name == "threads" else await self._drawer.folder("run", name)

    async def _sort(self, thread_id: str) -> bytes:
        return (await self._drawer.mark("thread", thread_id))[:16]


def _remember(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)
