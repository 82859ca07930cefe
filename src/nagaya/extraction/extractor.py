"""Reading documents in another process: what a hostile one breaks is not the server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Generic, TypeVar

import structlog

from nagaya.errors import DocumentReaderLost, DocumentUnreadable, MissingExtra
from nagaya.extraction import frames
from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Chunk, Strategy
from nagaya.extraction.formats import Kind, is_picture
from nagaya.extraction.limits import Limits, Reason
from nagaya.settings import plain_environment

MEMORY_BYTES: Final = 2 * 1024**3
"""Address space of a reading process."""
_RETIRED_FROM_BYTES: Final = 512 * 1024**2
"""A process that once took so much memory is not kept: it would not give it back."""
_HEAD_BYTES: Final = 16
"""As many tell whether a document is a picture."""
_PACKAGES: Final = ("pypdfium2", "lxml", "markdown_it", "charset_normalizer")
_BY_THE_DOCUMENT: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)

_T = TypeVar("_T")
_log = structlog.get_logger()


class Reading(Generic[_T]):
    """A document that is being read: what it is, and, once, its blocks or chunks as they come."""

    def __init__(self, kind: Kind, items: AsyncIterator[_T]) -> None:
        self.kind = kind
        self._items = items

    def __aiter__(self) -> AsyncIterator[_T]:
        return self._items


class Extractor:
    """Reads documents, each in a process that has no keys, no settings and bounded memory and time.

    A process is kept for the next document; one that crashed, took too long or too much is replaced. ``processes``
    documents are read at a time, others wait. One object serves every tenant; it belongs to one event loop.
    """

    def __init__(self, *, processes: int = 1, memory_bytes: int = MEMORY_BYTES) -> None:
        self._turns = asyncio.Semaphore(processes)
        self._memory_bytes = memory_bytes
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._closed = False

    def blocks(
        self, source: AsyncIterator[bytes], *, name: str, media_type: str | None = None, limits: Limits | None = None
    ) -> AbstractAsyncContextManager[Reading[Block]]:
        """The blocks of the document whose bytes ``source`` gives, in pieces of any size.

        ``name`` and ``media_type`` are what its sender calls it. Nothing of it is written to disk, and the server holds
        one piece and one batch of blocks at a time. Leaving the block early, or cancelling, ends the reading at once.
        Raises ``DocumentUnreadable`` with its ``reason``, on entering where there is no first block, else while blocks
        are taken; ``DocumentReaderLost`` where the process was ended from outside; ``MissingExtra``. May be repeated.
        """
        return self._reading(source, frames.Job(name, media_type, limits or Limits(), None), _blocks)

    def chunks(
        self,
        source: AsyncIterator[bytes],
        *,
        name: str,
        media_type: str | None = None,
        limits: Limits | None = None,
        strategy: Strategy | None = None,
    ) -> AbstractAsyncContextManager[Reading[Chunk]]:
        """The chunks of a document, made in the same process as its blocks; else as :meth:`blocks`."""
        job = frames.Job(name, media_type, limits or Limits(), strategy or Strategy())
        return self._reading(source, job, _chunks)

    async def close(self) -> None:
        """End every process, also one that is reading: whoever waits for it gets ``DocumentReaderLost``."""
        self._closed = True
        for process in [*self._idle, *self._busy]:
            await process.end()
        self._idle.clear()

    @asynccontextmanager
    async def _reading(
        self, source: AsyncIterator[bytes], job: frames.Job, unpack: Callable[[_Process], AsyncIterator[_T]]
    ) -> AsyncIterator[Reading[_T]]:
        for package in _PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(feature="Reading documents", extra="library")
        async with self._turns:
            process = await self._process()
            try:
                began = await process.begin(source, job)
                yield Reading(began.kind, unpack(process))
            except DocumentUnreadable as unreadable:
                # The name and the words of a document are its owner's; what is wrong with it is not.
                _log.info("a document cannot be read", action="document.unreadable", reason=unreadable.reason,
                          about=process.about)  # fmt: skip
                raise
            finally:
                self._busy.discard(process)
                if process.is_free and not self._closed:
                    self._idle.append(process)
                else:
                    await process.end()

    async def _process(self) -> _Process:
        self._expect_open()
        while self._idle:
            process = self._idle.pop()
            if process.is_free:
                break
            await process.end()
        else:
            process = await _start(self._memory_bytes)
        self._busy.add(process)
        try:
            self._expect_open()  # it may have been closed while the process was being started
        except DocumentReaderLost:
            await process.end()
            raise
        return process

    def _expect_open(self) -> None:
        if self._closed:
            raise DocumentReaderLost()


async def _blocks(process: _Process) -> AsyncIterator[Block]:
    while isinstance(answer := await process.answer(), frames.Blocks):
        for block in answer.blocks:
            yield block


async def _chunks(process: _Process) -> AsyncIterator[Chunk]:
    while isinstance(answer := await process.answer(), frames.Chunks):
        for chunk in answer.chunks:
            yield chunk


async def _start(memory_bytes: int) -> _Process:
    arguments = ("-P", "-m", "nagaya.extraction.worker", str(memory_bytes))
    return _Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=plain_environment(),
        )
    )


class _Process:
    """A reading process and what it is doing. ``is_free`` only where it has told its last document's end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._to, self._from = process.stdin, process.stdout
        self._at_rest = True
        self._left_s = 0.0
        self.about = ""

    @property
    def is_free(self) -> bool:
        return self._at_rest and self._process.returncode is None

    async def begin(self, source: AsyncIterator[bytes], job: frames.Job) -> frames.Began:
        """Hand over a document. Raises as :meth:`Extractor.blocks`."""
        self._at_rest = False
        self.about = ""
        size, head = 0, b""
        try:
            await self._send(frames.encode(job))
            async for piece in source:
                size += len(piece)
                if len(head) < _HEAD_BYTES:
                    head += piece[:_HEAD_BYTES]
                if size > job.limits.document_bytes:
                    raise self._unreadable("too_large", f"more than {job.limits.document_bytes} bytes")
                for start in range(0, len(piece), frames.MAX_FRAME_BYTES):
                    await self._send(piece[start : start + frames.MAX_FRAME_BYTES])
            await self._send(b"")
        except (BrokenPipeError, ConnectionResetError) as gone:
            raise await self._why_it_ended() from gone
        self._left_s = job.limits.allowed_s(size, is_picture=is_picture(head))
        answer = await self.answer()
        if not isinstance(answer, frames.Began):
            raise DocumentReaderLost()
        return answer

    async def answer(self) -> frames.Began | frames.Blocks | frames.Chunks | None:
        """The next message, or None after the last one. Waiting for it uses up the document's time."""
        clock = asyncio.get_running_loop().time
        since = clock()
        try:
            async with asyncio.timeout(self._left_s):
                (length,) = frames.LENGTH.unpack(await self._from.readexactly(frames.LENGTH.size))
                answer = frames.decode_answer(await self._from.readexactly(length))
        except TimeoutError:
            raise self._unreadable("timed_out", "no answer in time") from None
        except (asyncio.IncompleteReadError, ConnectionResetError) as gone:
            raise await self._why_it_ended() from gone
        self._left_s -= clock() - since
        match answer:
            case frames.Failed():
                self._at_rest = answer.peak_bytes < _RETIRED_FROM_BYTES
                raise self._unreadable(answer.reason, answer.about)
            case frames.Done():
                self._at_rest = answer.peak_bytes < _RETIRED_FROM_BYTES
                return None
            case _:
                return answer

    async def end(self) -> None:
        """End the process, whatever it is doing. May be repeated."""
        self._to.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _send(self, message: bytes) -> None:
        self._to.write(frames.LENGTH.pack(len(message)))
        self._to.write(message)
        await self._to.drain()

    async def _why_it_ended(self) -> DocumentUnreadable | DocumentReaderLost:
        code = await self._process.wait()
        if code == -signal.SIGXCPU:
            return self._unreadable("timed_out", "used up its processor time")
        if code == frames.OUT_OF_MEMORY:
            return self._unreadable("too_large", "takes more memory than it may")
        if code > 0 or -code in _BY_THE_DOCUMENT:
            return self._unreadable("corrupt", f"the reader crashed ({code})")
        return DocumentReaderLost()

    def _unreadable(self, reason: Reason, about: str) -> DocumentUnreadable:
        self.about = about
        return DocumentUnreadable(reason)
