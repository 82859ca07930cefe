"""Where checkpoints lie: one folder for each thread, and indexes of a user's threads and runs.

In a thread's folder a checkpoint's place is the mark of its namespace and its id. There lie ``c`` the checkpoint, ``d``
and a number what did not fit into one record, and ``w`` and a task's mark what a task wrote after it. So the latest
checkpoint of a namespace and what is pending on it are the last records of one range.
"""

from __future__ import annotations

import contextlib
import hashlib
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
_WHOLE, _IN_PARTS = b"\x00", b"\x01"
_CHECKPOINT, _PART, _WRITES, _END = b"c", b"d", b"w", b"x"
_NAMESPACE_BYTES: Final = 8

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
            if record is None:
                return None
            body = record.body
            if body[:1] == _IN_PARTS:
                body = _WHOLE + _joined([record, *await self._parts(place)])
            pieces.append(_decoder.decode(memoryview(body)[1:]).pieces)
        return pieces

    async def _parts(self, place: bytes) -> list[Record]:
        rows: list[Record] = []
        after = place + _PART
        while page := await self.folder.query(after=after, before=place + _WRITES, limit=100):
            rows += page
            after = page[-1].sort
        return rows

    async def everything(self) -> tuple[dict[bytes, Stored], dict[bytes, list[Record]]]:
        """Every checkpoint, the deleted ones that others need too, and all records by place."""
        by_place: dict[bytes, list[Record]] = {}
        after = b""
        while rows := await self.folder.query(after=after, limit=200):
            for row in rows:
                by_place.setdefault(_split(row.sort)[0], []).append(row)
            after = rows[-1].sort
        stored = {
            place: _decoder.decode(_joined([row for row in records if _split(row.sort)[1] != _WRITES]))
            for place, records in by_place.items()
            if any(row.sort == place + _CHECKPOINT for row in records)
        }
        return stored, by_place

    # --- writing ---

    async def put(self, place: bytes, stored: Stored) -> None:
        """Write a checkpoint's record. One that is there already is an error of the caller's: ``ConditionFailed``."""
        parts = _parts_of(_encoder.encode(stored))
        if len(parts) == 1:
            await self.folder.put(place + _CHECKPOINT, parts[0])
            return
        # The record itself comes last: before it, the parts mean nothing.
        first, *rest = parts
        named = [(place + _PART + number.to_bytes(2, "big"), part) for number, part in enumerate(rest)]
        for at in range(0, len(named), _BATCH_BYTES // PART_BYTES):
            await self.overwrite(named[at : at + _BATCH_BYTES // PART_BYTES])
        await self.folder.put(place + _CHECKPOINT, first)

    async def get(self, place: bytes) -> Stored | None:
        """A checkpoint's record alone, as it is, whether deleted or not."""
        record = await self.folder.get(place + _CHECKPOINT)
        if record is None:
            return None
        rows = [record] if record.body[:1] == _WHOLE else [record, *await self._parts(place)]
        return _decoder.decode(_joined(rows))

    async def replace(self, place: bytes, stored: Stored) -> None:
        """Write a checkpoint's record over the one that is there."""
        first, *rest = _parts_of(_encoder.encode(stored))
        named = [(place + _PART + number.to_bytes(2, "big"), part) for number, part in enumerate(rest)]
        for at in range(0, len(named), _BATCH_BYTES // PART_BYTES):
            await self.overwrite(named[at : at + _BATCH_BYTES // PART_BYTES])
        await self.overwrite([(place + _CHECKPOINT, first)])
        await self.folder.clear(after=place + _PART + len(rest).to_bytes(2, "big"), before=place + _WRITES)

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
            stored, by_place = await self.everything()
            kept = {place for place, each in stored.items() if place not in doomed and not each.gone}
            wanted = needed(stored, kept)
            changes: list[Put | Delete] = []
            rewritten: list[tuple[bytes, Stored]] = []
            for place, records in by_place.items():
                if place in kept or (place not in stored and place not in doomed):
                    continue
                if place in wanted:
                    left = remains(stored[place], wanted[place])
                    if left != stored[place]:
                        rewritten.append((place, left))
                    records = [row for row in records if _split(row.sort)[1] == _WRITES]
                changes += [Delete(row.sort, row.revision) for row in records]
            try:
                for at in range(0, len(changes), MAX_CHANGES):
                    await self.folder.write(changes[at : at + MAX_CHANGES])
            except ConditionFailed:
                continue
            for place, left in rewritten:
                await self.replace(place, left)
            return
        raise Conflict


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
        if any(row.sort == place + _CHECKPOINT for row in records):
            stored = _decoder.decode(_joined(records))
            if not stored.gone:
                yield Found(place, stored, pending)


def _parts_of(body: bytes) -> list[bytes]:
    if len(body) <= PART_BYTES:
        return [_WHOLE + body]
    return [(_IN_PARTS if not at else b"") + body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]


def _joined(rows: Sequence[Record]) -> memoryview:
    """The body of a checkpoint's record, from it and its parts in any order."""
    if len(rows) == 1:
        return memoryview(rows[0].body)[1:]
    return memoryview(b"".join(row.body for row in sorted(rows)))[1:]


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

    async def listed(self, thread_id: str, run_id: object, *, begins: bool = False) -> None:
        """See to it that a thread can be found among the user's, and by its run. What is remembered of that is not
        relied on where the thread ``begins``: somebody else may have deleted it."""
        for index in ("threads",) if not isinstance(run_id, str) else ("threads", run_id):
            if (thread_id, index) in self._listed and not begins:
                continue
            with contextlib.suppress(ConditionFailed):
                await (await self._index(index)).put(await self._sort(thread_id), thread_id.encode())
            _remember(self._listed, (thread_id, index), None)

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

    async def forget_run(self, run_id: str) -> None:
        await (await self._index(run_id)).clear()
        self._listed.clear()

    async def delete(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        await (await self.thread(thread_id)).folder.clear()
        await (await self._index("threads")).remove(await self._sort(thread_id))
        self._listed.clear()

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
