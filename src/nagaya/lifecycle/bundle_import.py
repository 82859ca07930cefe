"""Fills an empty room from a bundle, and compares what lies there then with what the bundle says it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import BinaryIO, Final

from nagaya.errors import BundleBroken, ConditionFailed
from nagaya.lifecycle.bundle_entries import (
    BLOBS,
    BlobPart,
    BundleRoom,
    RecordEntry,
    Tallies,
    Trailer,
    unpacked,
)
from nagaya.lifecycle.bundle_format import FrameCipher, bound_to, frames_of, read_header
from nagaya.lifecycle.bundle_order import EntryOrder
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealed_store import Partition, Put
from nagaya.stores.driver import MAX_BATCH

_BATCH_BYTES: Final = 1024 * 1024
_PAGE: Final = 200

_Entries = AsyncGenerator[RecordEntry | BlobPart, None]


class BundleImport:
    """One reading of a bundle into a room. May be repeated into a room that an earlier one left half full."""

    def __init__(self, file: BinaryIO, content_key: bytes) -> None:
        self._file = file
        self._content_key = content_key
        self._tallies = Tallies()
        self._trailer: Trailer | None = None

    async def run(self, room: BundleRoom) -> Trailer:
        """Write every record and blob under the room's own keys; gives what was counted.

        Raises ``BundleBroken`` where the file, or the room afterwards, does not hold exactly what its trailer says.
        """
        async with aclosing(self._entries()) as entries:
            batch: list[RecordEntry] = []
            async for entry in entries:
                if isinstance(entry, BlobPart):
                    await _put_all(room, batch)
                    batch = []
                    await self._put_blob(await room.blobs(), entry, entries)
                    continue
                if batch and not _fits(batch, entry):
                    await _put_all(room, batch)
                    batch = []
                batch.append(entry)
            await _put_all(room, batch)
        trailer = self._trailer
        if trailer is None or trailer.kinds != self._tallies.kinds:
            raise BundleBroken("count")
        await _compare(room, trailer)
        return trailer

    async def _entries(self) -> _Entries:
        _, header = await asyncio.to_thread(read_header, self._file)
        cipher = FrameCipher(self._content_key, bound_to(header))
        order = EntryOrder()
        number = 0
        frames = frames_of(self._file)
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            if frame.mark is not None:
                number += 1
                continue
            for entry in unpacked(await asyncio.to_thread(cipher.open, number, frame)):
                order.check(entry, in_last=frame.is_last)
                if isinstance(entry, Trailer):
                    self._trailer = entry
                    continue
                self._tallies.add(entry)
                yield entry
            number += 1

    async def _put_blob(self, blobs: SealedBlobs, first: BlobPart, entries: _Entries) -> None:
        async def parts() -> AsyncGenerator[bytes, None]:
            part: RecordEntry | BlobPart | None = first
            while isinstance(part, BlobPart):
                if part.data:
                    yield part.data
                if part.last:
                    return
                part = await anext(entries, None)
            raise BundleBroken("count")  # it ends without a trailer, which would have been asked for the rest

        async with aclosing(parts()) as pieces:
            there = await blobs.info(first.name)
            if there is not None and there.seal == first.seal:
                # Written whole by an import that was interrupted later.
                async for _ in pieces:
                    pass
                return
            await blobs.put(first.name, pieces, seal=first.seal)


def _fits(batch: Sequence[RecordEntry], entry: RecordEntry) -> bool:
    first = batch[0]
    size = sum(len(each.body) for each in batch) + len(entry.body)
    same = (first.collection, first.name) == (entry.collection, entry.name)
    return same and len(batch) < MAX_BATCH and size <= _BATCH_BYTES


async def _put_all(room: BundleRoom, batch: Sequence[RecordEntry]) -> None:
    if not batch:
        return
    partition = Partition(batch[0].collection, batch[0].name)
    try:
        await room.records.write(partition, [Put(entry.sort, entry.body) for entry in batch])
    except ConditionFailed:
        # Some lie there already, from an import that was interrupted: the same, or this is no room of ours.
        for entry in batch:
            await _put_one(room, partition, entry)


async def _put_one(room: BundleRoom, partition: Partition, entry: RecordEntry) -> None:
    there = await room.records.get(partition, entry.sort)
    if there is None:
        await room.records.put(partition, entry.sort, entry.body)
    elif there.body != entry.body:
        raise BundleBroken("count")


async def _compare(room: BundleRoom, trailer: Trailer) -> None:
    """Read everything back, and raise ``BundleBroken`` where it is not what the trailer says."""
    found = Tallies()
    after: tuple[str, bytes] | None = None
    while rows := await room.records.scan(after=after, limit=_PAGE):
        for partition, record in rows:
            found.add(RecordEntry(*partition, record.sort, record.body))
        after = f"{rows[-1][0].collection}/{rows[-1][0].name}", rows[-1][1].sort
    if BLOBS in trailer.kinds:
        blobs = await room.blobs()
        async with aclosing(blobs.list_all()) as listed:
            async for each in listed:
                info = await blobs.info(each.name)
                if info is None:
                    raise BundleBroken("count")
                start = 0
                async with aclosing(blobs.read(each.name, seal=info.seal)) as pieces:
                    async for piece in pieces:
                        found.add(BlobPart(each.name, info.seal, start, piece, False))
                        start += len(piece)
                found.add(BlobPart(each.name, info.seal, start, b"", True))
    if found.kinds != trailer.kinds:
        raise BundleBroken("count")
