"""Writes a room into a bundle, frame by frame; what was cut off goes on after its last whole frame."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import aclosing
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nagaya.errors import BundleBroken, NotFound
from nagaya.lifecycle.bundle_entries import (
    LEFT_OUT,
    BlobPart,
    BundleRoom,
    Entry,
    RecordEntry,
    Tallies,
    Trailer,
    packed,
    unpacked,
)
from nagaya.lifecycle.bundle_format import FrameCipher, Progress, begun, frames_of, read_header, signature
from nagaya.records.blind_index import carried
from nagaya.records.sealed_store import Partition, Record

_PAGE: Final = 200
_FRAME_BYTES: Final = 1024 * 1024


class BundleExport:
    """One writing of a bundle. ``file`` stands behind its header, or holds the beginning of the same bundle."""

    def __init__(self, file: BinaryIO, content_key: bytes, header: bytes, signer: Ed25519PrivateKey) -> None:
        self._file = file
        self._cipher = FrameCipher(content_key, header)
        self._progress: Progress = begun(header)
        self._signer = signer
        self._entries: list[Entry] = []
        self._size = 0
        self._after: tuple[str, bytes] | None = None
        self._blob = ""
        self.tallies = Tallies()

    def resume(self) -> None:
        """Find the last whole frame that does not end within a blob, and go on after it. Blocks."""
        read_header(self._file)
        here = self._progress
        held: list[RecordEntry | BlobPart] = []
        with contextlib.suppress(BundleBroken):
            for frame in frames_of(self._file):
                entries = unpacked(self._cipher.open(here.frames, frame))
                if frame.is_last:
                    break
                here = here.past(frame.raw)
                held += [entry for entry in entries if not isinstance(entry, Trailer)]
                if held and isinstance(held[-1], BlobPart) and not held[-1].last:
                    continue
                for entry in held:
                    self.tallies.add(entry)
                    self._note_place(entry)
                held = []
                self._progress = here
        self._file.seek(self._progress.at)
        self._file.truncate()

    def _note_place(self, entry: RecordEntry | BlobPart) -> None:
        if isinstance(entry, RecordEntry):
            self._after = f"{entry.collection}/{entry.name}", entry.sort
        else:
            self._blob = entry.name

    async def run(self, room: BundleRoom, *, name: str, has_blobs: bool) -> Trailer:
        """Write everything of the room, whose name is ``name``, and sign it; gives what was counted."""
        if not self._blob:
            await self._write_records(room, name)
        if has_blobs:
            await self._write_blobs(room)
        trailer = Trailer(self.tallies.kinds, await _left_out(room))
        await asyncio.to_thread(self._end, packed([trailer]))
        return trailer

    async def _write_records(self, room: BundleRoom, name: str) -> None:
        while rows := await room.records.scan(after=self._after, limit=_PAGE):
            for partition, record in rows:
                self._after = f"{partition.collection}/{partition.name}", record.sort
                if partition not in LEFT_OUT:
                    await self._add(_entry(partition, record, name))
        await self._flush()

    async def _write_blobs(self, room: BundleRoom) -> None:
        blobs = await room.blobs()
        async with aclosing(blobs.list_all()) as listed:
            async for each in listed:
                if each.name <= self._blob:
                    continue
                info = await blobs.info(each.name)
                if info is None:
                    continue
                with contextlib.suppress(NotFound):
                    start, before = 0, b""
                    async with aclosing(blobs.read(each.name, seal=info.seal)) as pieces:
                        async for piece in pieces:
                            if before:
                                await self._add(BlobPart(each.name, info.seal, start, before, False))
                                start += len(before)
                            before = piece
                    await self._add(BlobPart(each.name, info.seal, start, before, True))
                    await self._flush()

    async def _add(self, entry: RecordEntry | BlobPart) -> None:
        self.tallies.add(entry)
        self._entries.append(entry)
        self._size += len(entry.body) if isinstance(entry, RecordEntry) else len(entry.data)
        if self._size >= _FRAME_BYTES or len(self._entries) >= _PAGE:
            await self._flush()

    async def _flush(self) -> None:
        if self._entries:
            await asyncio.to_thread(self._write, packed(self._entries))
            self._entries, self._size = [], 0

    def _write(self, body: bytes, *, last: bool = False) -> None:
        raw = self._cipher.seal(self._progress.frames, body, last=last)
        self._file.write(raw)
        self._progress = self._progress.past(raw)

    def _end(self, body: bytes) -> None:
        self._write(body, last=True)
        self._file.write(signature(self._signer, self._progress))
        self._file.flush()
        os.fsync(self._file.fileno())


def _entry(partition: Partition, record: Record, room: str) -> RecordEntry:
    return RecordEntry(*partition, record.sort, carried(partition, record.body, room))


async def _left_out(room: BundleRoom) -> dict[str, int]:
    counts: dict[str, int] = {}
    for partition in LEFT_OUT:
        after = b""
        while rows := await room.records.query(partition, after=after, limit=_PAGE):
            counts[partition.collection] = counts.get(partition.collection, 0) + len(rows)
            after = rows[-1].sort
    return counts
