"""Turns a room into the frames of a bundle; what was cut off goes on after its last whole frame or mark."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import BinaryIO, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nagaya.errors import BundleBroken, NotFound
from nagaya.lifecycle.bundle_entries import (
    LEFT_OUT,
    BlobPart,
    BundleRoom,
    Entry,
    RecordEntry,
    Tallies,
    Tally,
    Trailer,
    packed,
    unpacked,
)
from nagaya.lifecycle.bundle_format import (
    FrameCipher,
    Progress,
    begun,
    bound_to,
    frames_of,
    mark_frame,
    read_header,
    signature,
)
from nagaya.records.blind_index import carried
from nagaya.records.sealed_store import Partition, Record

_PAGE: Final = 200
_FRAME_BYTES: Final = 1024 * 1024
_MARK_BYTES: Final = 4 * 1024 * 1024
"""So much is sent again at the most where a connection breaks, but for a blob, which is sent again from its start."""


class ExportPoint(msgspec.Struct, array_like=True):
    """How far an export is: what is written, and what of the room is in it."""

    at: int
    frames: int
    chain: bytes
    bound: bytes
    after: tuple[str, bytes] | None
    blob: str
    kinds: dict[str, Tally]


class Told(NamedTuple):
    """What a trailer says besides what was counted."""

    left_out: Mapping[str, int]
    settings: Mapping[str, int | None]


class BundleExport:
    """One writing of a bundle, as the bytes that follow its header, or the last mark of what was written."""

    def __init__(
        self,
        content_key: bytes,
        point: ExportPoint,
        signer: Ed25519PrivateKey,
        seal_mark: Callable[[ExportPoint], bytes] | None = None,
    ) -> None:
        """``seal_mark`` makes a mark of a point; None: the bundle has no marks."""
        self._cipher = FrameCipher(content_key, point.bound)
        self._progress = Progress(point.at, point.frames, point.chain)
        self._bound = point.bound
        self._signer = signer
        self._seal_mark = seal_mark
        self._marked_at = point.at
        self._entries: list[Entry] = []
        self._size = 0
        self._after = point.after
        self._blob = point.blob
        self.tallies = Tallies(point.kinds)
        self.trailer: Trailer | None = None

    def resume(self, file: BinaryIO) -> None:
        """Find the last whole frame in a file that does not end within a blob, and go on after it. Blocks."""
        read_header(file)
        here = self._progress
        held: list[RecordEntry | BlobPart] = []
        with contextlib.suppress(BundleBroken):
            for frame in frames_of(file):
                if frame.mark is None:
                    entries = unpacked(self._cipher.open(here.frames, frame))
                    if frame.is_last:
                        break
                    held += [entry for entry in entries if not isinstance(entry, Trailer)]
                here = here.past(frame.raw)
                if held and isinstance(held[-1], BlobPart) and not held[-1].last:
                    continue
                for entry in held:
                    self.tallies.add(entry)
                    self._note_place(entry)
                held = []
                self._progress = here
        file.seek(self._progress.at)
        file.truncate()

    def _note_place(self, entry: RecordEntry | BlobPart) -> None:
        if isinstance(entry, RecordEntry):
            self._after = f"{entry.collection}/{entry.name}", entry.sort
        else:
            self._blob = entry.name

    async def pieces(self, room: BundleRoom, told: Told, *, name: str, has_blobs: bool) -> AsyncGenerator[bytes, None]:
        """Everything of the room, whose name is ``name``, frame by frame, and the signature; then ``trailer`` says what
        was counted. What the room raises ends it."""
        if not self._blob:
            async with aclosing(self._records(room, name)) as records:
                async for raw in records:
                    yield raw
        if has_blobs:
            async with aclosing(self._blobs(room)) as blobs:
                async for raw in blobs:
                    yield raw
        left_out = {**told.left_out, **await _left_out(room)}
        self.trailer = Trailer(self.tallies.kinds, left_out, dict(told.settings))
        yield await asyncio.to_thread(self._framed, packed([self.trailer]), last=True)
        yield signature(self._signer, self._progress)

    async def _records(self, room: BundleRoom, name: str) -> AsyncGenerator[bytes, None]:
        while rows := await room.records.scan(after=self._after, limit=_PAGE):
            for partition, record in rows:
                self._after = f"{partition.collection}/{partition.name}", record.sort
                if partition not in LEFT_OUT and self._add(_entry(partition, record, name)):
                    yield await self._flushed()
            if self._entries:
                yield await self._flushed()
            if mark := self._mark():
                yield mark

    async def _blobs(self, room: BundleRoom) -> AsyncGenerator[bytes, None]:
        blobs = await room.blobs()
        done = self._blob
        async with aclosing(blobs.list_all()) as listed:
            async for each in listed:
                if each.name <= done:
                    continue
                info = await blobs.info(each.name)
                if info is None:
                    continue
                start, before = 0, b""
                try:
                    async with aclosing(blobs.read(each.name, seal=info.seal)) as pieces:
                        async for piece in pieces:
                            if before:
                                if self._add(BlobPart(each.name, info.seal, start, before, False)):
                                    yield await self._flushed()
                                start += len(before)
                            before = piece
                except NotFound:
                    if start:
                        raise
                    continue  # deleted since it was listed
                self._add(BlobPart(each.name, info.seal, start, before, True))
                self._blob = each.name
                yield await self._flushed()
                if mark := self._mark():
                    yield mark

    def _add(self, entry: RecordEntry | BlobPart) -> bool:
        """Put an entry into the frame; gives whether the frame is full."""
        self.tallies.add(entry)
        self._entries.append(entry)
        self._size += len(entry.body) if isinstance(entry, RecordEntry) else len(entry.data)
        return self._size >= _FRAME_BYTES or len(self._entries) >= _PAGE

    async def _flushed(self) -> bytes:
        entries, self._entries, self._size = self._entries, [], 0
        return await asyncio.to_thread(self._framed, packed(entries))

    def _framed(self, body: bytes, *, last: bool = False) -> bytes:
        raw = self._cipher.seal(self._progress.frames, body, last=last)
        self._progress = self._progress.past(raw)
        return raw

    def _mark(self) -> bytes | None:
        """A mark, where the last one lies far enough back."""
        if self._seal_mark is None or self._progress.at - self._marked_at < _MARK_BYTES:
            return None
        raw = mark_frame(self._seal_mark(self._point()))
        self._progress = self._progress.past(raw)
        self._marked_at = self._progress.at
        return raw

    def _point(self) -> ExportPoint:
        return ExportPoint(*self._progress, self._bound, self._after, self._blob, self.tallies.kinds)


def export_begun(header: bytes) -> ExportPoint:
    """Where an export stands behind its header."""
    return ExportPoint(*begun(header), bound_to(header), None, "", {})


def export_after(point: ExportPoint, mark: bytes) -> ExportPoint:
    """Where an export stands behind a mark that was made of ``point``."""
    at, frames, chain = Progress(point.at, point.frames, point.chain).past(mark_frame(mark))
    return msgspec.structs.replace(point, at=at, frames=frames, chain=chain)


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
