"""A room's blobs, sealed on the way up and opened on the way down, in chunks.

::

    header record   chunk 0   chunk 1   …   last chunk
    28 bytes        each ``chunk_bytes``, the last 0 to ``chunk_bytes``

Everything lies in envelopes under the blob's own key. The header holds a random id of this one writing; every chunk is
bound to that id, to its number, and to whether it is the last (the STREAM construction of Hoang, Reyhanitabar, Rogaway
and Vizár, 2015). So a chunk that was left out, moved, repeated, or taken from another blob, another tenant, or a former
version of the same blob does not open, and an end that was cut off is noticed. A whole former version put back is
noticed by whoever keeps the id (``seal``) in a record of his own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing
from struct import Struct
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeVar, cast

from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.driver import MAX_BLOB_BYTES, MAX_PAGE, BlobInfo
from nagaya.errors import BlobTooLarge, Conflict, InvalidValue, NotFound, SealBroken
from nagaya.kernel.fence import Fence
from nagaya.records.envelope import HEAD_BYTES, NONCE_BYTES, OVERHEAD_BYTES, TAG_BYTES
from nagaya.records.sealer import Partition, Sealer

CHUNK_BYTES: Final = 1024 * 1024
"""Bytes sealed together: what a small range costs to read, and what is held in memory a few times over."""

MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
_SEAL_BYTES: Final = 16
_UNKNOWN: Final = (1 << 64) - 1
_HEADER: Final = Struct(f">I{_SEAL_BYTES}sQ")
HEADER_BYTES: Final = _HEADER.size + OVERHEAD_BYTES

_CUT_AT_MOST_BYTES: Final = 1024 * 1024
"""Chunks that are larger are read in whatever pieces the storage gives."""

_MAY_BLOCK_S: Final = 0.0005
"""How long the cipher may keep the loop waiting; what would take longer is done in a thread. About 0.1 ms for a chunk
where the processor has AES in hardware, where a thread would cost as much again; 20 ms where it has not."""
_WORTH_TIMING_BYTES: Final = 64 * 1024
_TRIES: Final = 3
_HEAD: Final = b"blob-head"
_CHUNK: Final = b"blob-chunk"
_LAST: Final = b"blob-last-"


_T = TypeVar("_T")
_Parts = list[bytes]


class SealedBlobInfo(NamedTuple):
    """A blob: its name, its size in clear bytes, its version in the storage, and the id of its writing (``seal``, 32
    hex digits)."""

    name: str
    size: int
    version: str
    seal: str


class ListedBlob(NamedTuple):
    """A blob as a listing knows it: the size follows from what the storage says, and reading it proves it."""

    name: str
    size: int
    version: str


class _Header(NamedTuple):
    chunk_bytes: int
    seal: bytes
    size: int


class SealedBlobs:
    """One room's blobs in clear.

    Every method raises the errors of :class:`Blobs` and the ``Key…`` errors of the keyring; those that read raise
    ``SealBroken`` at the first byte that was not sealed for just that place. ``chunk_bytes`` is for what is written; a
    blob is read by its own. Memory: about three chunks per transfer, whatever the blob's size.
    """

    def __init__(self, blobs: Blobs, sealer: Sealer, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise InvalidValue(at="chunk_bytes", detail=f"1 to {MAX_CHUNK_BYTES}")
        self._blobs = blobs
        self._sealer = sealer
        self._chunk_bytes = chunk_bytes

    async def put(
        self,
        name: str,
        parts: AsyncIterable[bytes],
        *,
        size: int | None = None,
        expect: str | None = None,
        seal: str | None = None,
    ) -> SealedBlobInfo:
        """Seal and write a blob from parts of any size, whole or not at all.

        ``size``: its bytes, where they are known; parts that have more or fewer are refused with ``InvalidValue`` and
        nothing is written. ``expect`` as :meth:`Blobs.put`; raises ``ConditionFailed``, ``BlobTooLarge``. ``seal`` is
        for a copy from another room, whose records name it; else it is random.
        """
        if size is not None and sealed_size(size, self._chunk_bytes) > MAX_BLOB_BYTES:
            raise BlobTooLarge(limit_bytes=MAX_BLOB_BYTES)
        writing = os.urandom(_SEAL_BYTES) if seal is None else bytes.fromhex(seal)
        header = _Header(self._chunk_bytes, writing, _UNKNOWN if size is None else size)
        async with aclosing(self._sealed(name, parts, header)) as sealed:
            written = await self._blobs.put(name, sealed, expect=expect)
        return SealedBlobInfo(name, plain_size(written.size, self._chunk_bytes), written.version, header.seal.hex())

    async def read(
        self, name: str, *, start: int = 0, end: int | None = None, seal: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes ``start <= n < end`` (None: to the end) in pieces of at most a chunk; only the chunks that hold
        them are fetched and opened.

        Each piece is proven before it is given; that the blob ends where it ends is proven with its last piece. With
        ``seal`` any other writing of the blob is refused. Raises ``NotFound``, ``SealBroken``, ``InvalidValue``.
        Close the iterator (``aclosing``) where it may be left early.
        """
        if start < 0 or (end is not None and end <= start):
            raise InvalidValue(at="range", detail="0 <= start < end")
        if start == 0 and end is None:
            arriving = self._blobs.read(name, cut=self._cut(HEADER_BYTES, self._chunk_bytes))
            async with aclosing(self._pieces(name, arriving, None, 0, None, seal)) as pieces:
                async for piece in pieces:
                    yield piece
                    del piece  # held no longer than its taker holds it
            return
        header = await self._header(name)
        for _ in range(_TRIES):
            _check_seal(header, seal)
            given = False
            try:
                async with aclosing(self._range(name, header, start, end)) as pieces:
                    async for piece in pieces:
                        given = True
                        yield piece
                        del piece
                return
            except SealBroken:
                # Perhaps it was written anew between its header and its chunks: then the header is another now.
                former, header = header, await self._header(name)
                if given or header.seal == former.seal:
                    raise
        raise Conflict

    def fenced(self, fence: Fence) -> SealedBlobs:
        """The same blobs for work that others may take over: it writes and deletes nothing behind the fence. What was
        sent to the storage before may still be kept."""
        return _FencedBlobs(self._blobs, self._sealer, fence, self._chunk_bytes)

    async def info(self, name: str) -> SealedBlobInfo | None:
        """The blob's size, version and seal, from its header record; None where there is none."""
        stored = await self._blobs.info(name)
        for _ in range(_TRIES):
            if stored is None:
                return None
            try:
                header = await self._header(name)
            except NotFound:
                return None
            size = plain_size(stored.size, header.chunk_bytes)
            if header.size in (_UNKNOWN, size):
                return SealedBlobInfo(name, size, stored.version, header.seal.hex())
            former, stored = stored, await self._blobs.info(name)
            if stored == former:
                raise SealBroken
        raise Conflict

    async def delete(self, name: str) -> None:
        """Remove a blob. Needs no key; may be repeated."""
        await self._blobs.delete(name)

    async def list(self, *, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> Sequence[ListedBlob]:
        """As :meth:`Blobs.list`, with the sizes in clear bytes. Needs no key and reads no blob."""
        return [self._listed(each) for each in await self._blobs.list(prefix=prefix, after=after, limit=limit)]

    async def list_all(self, *, prefix: str = "") -> AsyncGenerator[ListedBlob, None]:
        """Every blob that begins with ``prefix``."""
        async with aclosing(self._blobs.list_all(prefix=prefix)) as found:
            async for each in found:
                yield self._listed(each)

    # --- sealing ----------------------------------------------------------------------------------------------

    async def _sealed(self, name: str, parts: AsyncIterable[bytes], header: _Header) -> AsyncGenerator[bytes, None]:
        sealed = await self._seal(name, _HEAD, 0, _HEADER.pack(*header))
        while sealed:
            yield sealed.pop()
        chunk = _Frame(header.chunk_bytes)
        number = total = 0
        async for part in parts:
            rest = memoryview(part)
            total += len(rest)
            if total > header.size:
                break
            while rest := chunk.take(rest):
                # There is more, so this chunk is not the last.
                sealed = await self._seal(name, _CHUNK + header.seal, number, chunk.content)
                while sealed:
                    yield sealed.pop()  # held by its taker alone
                number += 1
                chunk.clear()
            del part, rest
        if header.size not in (_UNKNOWN, total):
            raise InvalidValue(at="size", detail="the parts have another size than was said")
        sealed = await self._seal(name, _LAST + header.seal, number, chunk.content)
        while sealed:
            yield sealed.pop()

    async def _seal(self, name: str, sort: bytes, number: int, body: bytes | memoryview) -> _Parts:
        """The envelope's two parts, the first one last."""
        partition = Partition("blob", name)
        cipher = self._sealer.held_to_seal(partition) or await self._sealer.to_seal(partition)
        nonce = os.urandom(NONCE_BYTES)
        head, ciphertext = await _worked(len(body), cipher.seal_parts, sort, number, cast("bytes", body), nonce)
        return [ciphertext, head]

    # --- opening ----------------------------------------------------------------------------------------------

    async def _header(self, name: str) -> _Header:
        async with aclosing(self._blobs.read(name, start=0, end=HEADER_BYTES)) as pieces:
            return await self._open_header(name, b"".join([piece async for piece in pieces]))

    async def _open_header(self, name: str, sealed: bytes | memoryview) -> _Header:
        opened = await self._open(name, _HEAD, 0, sealed[:HEAD_BYTES], sealed[HEAD_BYTES:])
        header = _Header(*_HEADER.unpack(opened))
        if not 0 < header.chunk_bytes <= MAX_CHUNK_BYTES:
            raise SealBroken
        return header

    def _range(self, name: str, header: _Header, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        """The range, from just the chunks that hold it."""
        step = header.chunk_bytes + OVERHEAD_BYTES
        begin = HEADER_BYTES + start // header.chunk_bytes * step
        # One byte more than the chunks: it tells whether the last of them is the blob's last.
        to = None if end is None else HEADER_BYTES + ((end - 1) // header.chunk_bytes + 1) * step + 1
        arriving = self._blobs.read(name, start=begin, end=to, cut=self._cut(0, header.chunk_bytes))
        return self._pieces(name, arriving, header, start, end, None)

    @staticmethod
    def _cut(before: int, chunk_bytes: int) -> tuple[int, int] | None:
        """Pieces that each end with the head of the next chunk: they hold a whole ciphertext, which is opened where it
        is, and say that it is not the last."""
        step = chunk_bytes + OVERHEAD_BYTES
        return (before + step + HEAD_BYTES, step) if chunk_bytes <= _CUT_AT_MOST_BYTES else None

    async def _pieces(
        self,
        name: str,
        sealed: AsyncGenerator[bytes, None],
        header: _Header | None,
        start: int,
        end: int | None,
        seal: str | None,
    ) -> AsyncGenerator[bytes, None]:
        """What lies in the range, opened, from one reading of the storage; without ``header`` it begins with it."""
        number = 0 if header is None else start // header.chunk_bytes
        beginning = _Frame(HEADER_BYTES)
        chunk = _SealedChunk(0 if header is None else header.chunk_bytes)
        async with aclosing(sealed) as arriving:
            async for piece in arriving:
                rest = memoryview(piece)
                if header is None:
                    if not (rest := beginning.take(rest)):
                        continue
                    header = await self._open_header(name, beginning.content)
                    _check_seal(header, seal)
                    chunk = _SealedChunk(header.chunk_bytes)
                while rest := chunk.take(rest):
                    # There is more, so this chunk must not be the last.
                    body = await self._open(name, _CHUNK + header.seal, number, chunk.head, chunk.ciphertext)
                    chunk.clear()
                    if plain := _within(body, number * header.chunk_bytes, start, end):
                        yield plain
                    number += 1
                    del body, plain
                del piece, rest
        if header is None:
            raise SealBroken
        at = number * header.chunk_bytes
        if end is not None and at >= end:
            return
        if not chunk.head and number:
            # Nothing where the range begins: an end that lies before it must be proven all the same.
            await self._prove_end(name, header, start)
            return
        body = await self._open(name, _LAST + header.seal, number, chunk.head, chunk.ciphertext)
        if header.size not in (_UNKNOWN, at + len(body)):
            raise SealBroken
        if plain := _within(body, at, start, end):
            yield plain

    async def _prove_end(self, name: str, header: _Header, start: int) -> None:
        stored = await self._blobs.info(name)
        size = 0 if stored is None else plain_size(stored.size, header.chunk_bytes)
        if size > start:
            raise SealBroken
        async with aclosing(self._range(name, header, max(0, size - 1), None)) as pieces:
            async for _ in pieces:
                pass

    async def _open(
        self, name: str, sort: bytes, number: int, head: bytes | memoryview, ciphertext: bytes | memoryview
    ) -> bytes:
        partition = Partition("blob", name)
        least = bytes(head) + bytes(ciphertext[:TAG_BYTES])
        cipher = self._sealer.held_to_open(partition, least) or await self._sealer.to_open(partition, least)
        # A view is not copied; the cipher takes any buffer.
        return await _worked(len(ciphertext), cipher.open_parts, sort, number, head, cast("bytes", ciphertext))

    def _listed(self, stored: BlobInfo) -> ListedBlob:
        return ListedBlob(stored.name, plain_size(stored.size, self._chunk_bytes), stored.version)


class _Frame:
    """So many bytes, put together from whatever pieces they arrive in."""

    __slots__ = ("_buffer", "_filled")

    def __init__(self, size: int) -> None:
        self._buffer = memoryview(bytearray(size))
        self._filled = 0

    @property
    def content(self) -> memoryview:
        return self._buffer[: self._filled]

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self._filled = 0

    def take(self, piece: memoryview) -> memoryview:
        """Fill up from ``piece``; gives what did not fit. An empty rest says that more may still fit."""
        end = min(len(self._buffer), self._filled + len(piece))
        taken = end - self._filled
        self._buffer[self._filled : end] = piece[:taken]
        self._filled = end
        return piece[taken:]


class _SealedChunk:
    """A chunk's envelope, put together from whatever pieces it arrives in. A ciphertext that lies whole within one
    piece is opened where it is and not copied."""

    __slots__ = ("_body", "_head", "_size", "_whole")

    def __init__(self, chunk_bytes: int) -> None:
        self._size = chunk_bytes + TAG_BYTES
        self._head = _Frame(HEAD_BYTES)
        self._body: _Frame | None = None
        self._whole: memoryview | None = None

    @property
    def head(self) -> memoryview:
        return self._head.content

    @property
    def ciphertext(self) -> memoryview:
        if self._whole is not None:
            return self._whole
        return memoryview(b"") if self._body is None else self._body.content

    def clear(self) -> None:
        """Begin anew; what was looked at is let go."""
        self._whole = None
        self._head.clear()
        if self._body is not None:
            self._body.clear()

    def take(self, piece: memoryview) -> memoryview:
        """As :meth:`_Frame.take`."""
        rest = self._head.take(piece)
        if len(rest) > self._size and not self.ciphertext:
            self._whole = rest[: self._size]
            return rest[self._size :]
        if not rest:
            return rest
        if self._body is None:
            self._body = _Frame(self._size)
        return self._body.take(rest)


class _Pace:
    """How many seconds the cipher takes for a byte on this machine, as lately seen."""

    byte_s = 2e-8  # until it is known: as slow as without hardware


async def _worked(size: int, work: Callable[..., _T], *arguments: Any) -> _T:
    """What ``work`` gives, done here if that is quick enough for the loop's other tasks, else in a thread."""
    if size * _Pace.byte_s <= _MAY_BLOCK_S:
        return _timed(size, work, *arguments)
    return await asyncio.to_thread(_timed, size, work, *arguments)


class _FencedBlobs(SealedBlobs):
    def __init__(self, blobs: Blobs, sealer: Sealer, fence: Fence, chunk_bytes: int) -> None:
        super().__init__(blobs, sealer, chunk_bytes=chunk_bytes)
        self._fence = fence

    async def _sealed(self, name: str, parts: AsyncIterable[bytes], header: _Header) -> AsyncGenerator[bytes, None]:
        async with aclosing(super()._sealed(name, parts, header)) as sealed:
            await self._fence.hold()
            async for piece in sealed:
                yield piece
                del piece  # held by its taker alone
                # After the last one too, for that is when the blob becomes what it is.
                await self._fence.hold()

    async def delete(self, name: str) -> None:
        await self._fence.hold()
        await super().delete(name)


def _timed(size: int, work: Callable[..., _T], *arguments: Any) -> _T:
    started_s = perf_counter()
    found = work(*arguments)
    if size >= _WORTH_TIMING_BYTES:
        _Pace.byte_s += ((perf_counter() - started_s) / size - _Pace.byte_s) / 4
    return found


def sealed_size(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """The bytes that a blob of ``size`` clear bytes takes in the storage."""
    chunks = max(1, -(-size // chunk_bytes))
    return HEADER_BYTES + size + chunks * OVERHEAD_BYTES


def plain_size(sealed: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """The clear bytes of a blob that takes ``sealed`` bytes in the storage; 0 for what cannot be one."""
    body = sealed - HEADER_BYTES
    chunks = -(-body // (chunk_bytes + OVERHEAD_BYTES))
    return max(0, body - chunks * OVERHEAD_BYTES)


def _check_seal(header: _Header, seal: str | None) -> None:
    if seal is not None and header.seal.hex() != seal:
        raise SealBroken


def _within(body: bytes, at: int, start: int, end: int | None) -> bytes:
    """The part of a chunk, whose first byte is the blob's byte ``at``, that lies in the range."""
    if at >= start and (end is None or at + len(body) <= end):
        return body
    return body[max(0, start - at) : None if end is None else max(0, end - at)]
