"""Open files, a bounded number of them: which are open, which are in use, which goes when another must come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import apsw

from nagaya.errors import StoreUnreachable
from nagaya.stores import sqlite_format
from nagaya.stores.driver import ABSENT
from nagaya.stores.sqlite_commit import Request, add_stamp, data_version, insert_stamped, put_alone

LOOK_S: Final = 0.01
"""How long a read or a lone write trusts that no other process replaced the file; a group of writes always looks."""

PACE_S: Final = 0.001
"""A disk on which files open more slowly on average is not waited for in the loop."""

PROBE_S: Final = 1.0
"""How long threads open files after that, before the loop tries again."""

_serials = itertools.count(1)


class OpenFile:
    """A room's open file. The writer connection belongs to the loop, or to one thread while ``busy``; the second one,
    for reading beside a busy writer, is opened when first needed and belongs to whoever holds ``reader_lock``."""

    __slots__ = (
        "_checkpoint_at", "_lengthen_at", "_stamp", "_stamped", "busy", "cursor", "dropped", "has_log", "inode",
        "known", "looked_at_s", "path", "pending", "pending_bytes", "place", "queued", "reader", "reader_lock",
        "readers", "reads_at_rest", "room", "row_s", "serial", "tend_at", "users", "writer",
    )  # fmt: skip

    def __init__(self, folder: Path, room: str, *, busy_ms: int = 5000) -> None:
        """Opens the file; blocks as :func:`nagaya.stores.sqlite_format.connect` does, and raises what it raises."""
        self.room = room
        self.place = folder / room
        self.path = str(self.place / sqlite_format.FILE)
        self.writer = sqlite_format.connect(folder, room, busy_ms=busy_ms)
        # Kept, for a fresh one takes 5 µs. Whoever reads with it takes every row: what is left would hold the log.
        self.cursor = self.writer.cursor()
        self.inode = sqlite_format.inode(self.path)
        self.has_log = sqlite_format.has_log(self.writer)
        self.looked_at_s = 0.0
        self.serial = next(_serials)
        self.reader: apsw.Connection | None = None
        self.reader_lock = threading.Lock()
        self.known: dict[str, int] = {}
        self.pending: list[Request] = []
        self.pending_bytes = 0
        self.queued = False
        self.busy = False
        self.readers: set[Future[Any]] = set()
        self.reads_at_rest = 0
        self.users = 0
        self.dropped = False
        self.row_s = 3e-6
        self._stamped = self._stamp = -1
        self._checkpoint_at = sqlite_format.CHECKPOINT_PAGES
        self._lengthen_at = list(sqlite_format.LOG_PAGES)
        self.tend_at = self._lengthen_at[0]
        """Once so many pages are written, the log is to be tended."""
        if self.has_log:
            add_stamp(self.writer)
        # SQLite's own checkpoint would run inside a commit and so, perhaps, in the loop.
        self.writer.wal_autocheckpoint(0)

    @property
    def pages_written(self) -> int:
        """Pages that the writer has put into the log since it was opened. Other processes count theirs."""
        pages: int = self.writer.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]
        return pages

    @property
    def in_use(self) -> bool:
        return bool(self.busy or self.pending or self.users or self.readers)

    def is_in_place(self) -> bool:
        """Whether this is still the file that lies at its place. Asks the system."""
        if sqlite_format.inode(self.path) != self.inode:
            return False
        self.looked_at_s = time.perf_counter()
        return True

    def version_now(self) -> int:
        """The writer's data version: it changes when somebody else has written to the file. Asks SQLite."""
        version = data_version(self.writer)
        self.stamp(version)
        return version

    def stamp(self, version: int) -> None:
        """Note that as of what the writer last read or wrote nobody else has written since ``version``."""
        self._stamped, self._stamp = version, self.writer.data_version()

    def insert(self, number: int, sort: bytes, body: bytes, version: int) -> bool:
        """Insert one record if nobody else has written since ``version``; whether it did. Blocks for a commit."""
        if self._is_stamped(version):
            kept = insert_stamped(self.cursor, number, sort, body, self._stamp)
        else:
            kept = put_alone(self.writer, number, sort, body, ABSENT, version)
        if kept:
            self.stamp(version)
        return kept

    def is_as_of(self, version: int) -> bool:
        """Whether as of what the writer last read or wrote nobody else has written since ``version``."""
        return self._is_stamped(version) or self.version_now() == version

    def _is_stamped(self, version: int) -> bool:
        return version == self._stamped and self._stamp == self.writer.data_version()

    def read_connection(self) -> apsw.Connection:
        """The second connection. Call it in a thread, holding ``reader_lock``."""
        if self.reader is None:
            self.reader = sqlite_format.connect(self.place.parent, self.room)
            self.reader.wal_autocheckpoint(0)
        return self.reader

    def tend(self) -> None:
        """Lengthen the log ahead of the writer, or move its pages into the file, so that it starts over. Blocks for
        some milliseconds. Where a reader elsewhere holds the log, it is tried again after as many pages more."""
        written = self.pages_written
        lengthen = bool(self._lengthen_at) and written >= self._lengthen_at[0]
        if lengthen:
            del self._lengthen_at[0]
        checkpoint = written >= self._checkpoint_at
        if checkpoint:
            self._checkpoint_at = written + sqlite_format.CHECKPOINT_PAGES
        self.tend_at = min([self._checkpoint_at, *self._lengthen_at])
        if checkpoint:
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        elif lengthen and self.has_log:
            sqlite_format.lengthen_log(self.writer, self.path, 4 * written)

    def begin_log(self) -> None:
        """To be called before the first write. Blocks and raises as :func:`nagaya.stores.sqlite_format.begin_log`."""
        self.has_log = sqlite_format.begin_log(self.writer)
        add_stamp(self.writer)

    def close(self) -> None:
        """Close both connections; the last one to close folds the log into the file. Blocks. May be called again."""
        with self.reader_lock:
            # A file that broke cannot fold its log; what was acknowledged is in the log, and stays there.
            if self.reader is not None:
                with contextlib.suppress(apsw.Error):
                    self.reader.close(True)
            if self.has_log and self.is_in_place():
                with contextlib.suppress(apsw.Error):
                    sqlite_format.end_log(self.writer)
            with contextlib.suppress(apsw.Error):
                self.writer.close(True)


class _Opening:
    """An open on its way, shared by everybody who waits for it."""

    __slots__ = ("file", "landing", "waiting")

    def __init__(self, landing: asyncio.Future[OpenFile]) -> None:
        self.landing = landing
        self.waiting = 0
        self.file: OpenFile | None = None


class OpenFiles:
    """At most ``limit`` open files of a folder, the least recently used going first, those in use never."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, *, limit: int) -> None:
        self._folder = folder
        self._pool = pool
        self._limit = limit
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._opening: dict[str, _Opening] = {}
        self._leaving: dict[str, set[OpenFile]] = {}
        self._closing: set[OpenFile] = set()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._open_s = 0.0
        self._probe_at_s = 0.0

    def __len__(self) -> int:
        return len(self._files)

    def get(self, room: str) -> OpenFile | None:
        """The room's open file, if it is open and still the file that lies at its place."""
        file = self._files.get(room)
        if file is None:
            return None
        if not file.is_in_place():
            self.drop(file)
            return None
        self._files.move_to_end(room)
        return file

    def glance(self, room: str) -> OpenFile | None:
        """As :meth:`get`, for a read: that the file is still in its place was checked within ``LOOK_S`` seconds."""
        file = self._files.get(room)
        if file is None or time.perf_counter() - file.looked_at_s > LOOK_S:
            return self.get(room)
        self._files.move_to_end(room)
        return file

    def held(self, room: str) -> OpenFile | None:
        """The room's open file, for a write: whether it still lies at its place is asked with the commit, for asking
        hands the interpreter to other threads, and the loop would wait for each of them."""
        file = self._files.get(room)
        if file is not None:
            self._files.move_to_end(room)
        return file

    async def open(self, room: str) -> OpenFile:
        """The room's file, opened here where that is quick, else in a thread. Use it before the next ``await``, or mark
        it as in use."""
        loop = asyncio.get_running_loop()
        while True:
            file = self.get(room)
            if file is not None:
                return file
            opening = self._opening.get(room)
            if opening is None or opening.landing.get_loop() is not loop:
                if not self._make_space():
                    await self._one_idle(loop)
                    continue
                file = self._open_here(room)
                if file is not None:
                    self._files[room] = file
                    return file
                opening = _Opening(loop.run_in_executor(self._pool, OpenFile, self._folder, room))
                self._opening[room] = opening
                opening.landing.add_done_callback(self._landed(room, opening))
            opening.waiting += 1
            try:
                file = await asyncio.shield(opening.landing)
            finally:
                opening.waiting -= 1
                if opening.file is not None:
                    opening.file.users -= 1
                    self.became_idle(opening.file)
            if not file.dropped:
                return file

    def _open_here(self, room: str) -> OpenFile | None:
        """The file, opened by the loop, which takes a third of what handing it to a thread does; None where files
        opened slowly of late, where something has to be made good first, or where another process is at it."""
        started_s = time.perf_counter()
        if self._open_s >= PACE_S and started_s < self._probe_at_s:
            return None
        if not sqlite_format.is_at_rest(self._folder / room):
            return None
        try:
            file = OpenFile(self._folder, room, busy_ms=0)
        except StoreUnreachable:
            return None
        took_s = time.perf_counter() - started_s
        if self._open_s >= PACE_S and took_s < PACE_S:
            self._open_s = took_s
        else:
            # A hiccup is no slow disk; a dozen in a row are.
            self._open_s += 0.05 * (min(took_s, 2 * PACE_S) - self._open_s)
        self._probe_at_s = started_s + PROBE_S
        return file

    def _landed(self, room: str, opening: _Opening) -> Callable[[asyncio.Future[OpenFile]], None]:
        def landed(landing: asyncio.Future[OpenFile]) -> None:
            if self._opening.get(room) is opening:
                del self._opening[room]
            if landing.cancelled() or landing.exception() is not None:
                self.became_idle(None)
                return
            file = opening.file = landing.result()
            file.users = opening.waiting  # nobody may evict it before they had their turn
            self._files[room] = file
            if not file.users:
                self.became_idle(file)

        return landed

    def _make_space(self) -> bool:
        while len(self._files) + len(self._opening) >= self._limit:
            for file in self._files.values():
                if not file.in_use:
                    break
            else:
                return False
            self.drop(file)
        return True

    async def _one_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        waiter: asyncio.Future[None] = loop.create_future()
        self._idle_waiters.append(waiter)
        await waiter

    def became_idle(self, file: OpenFile | None) -> None:
        """Call it when a file stops being in use."""
        if file is not None and file.dropped and not file.in_use:
            self._close(file)
        if self._idle_waiters:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done() and not waiter.get_loop().is_closed():
                    waiter.set_result(None)

    def drop(self, file: OpenFile) -> None:
        """Let a file go: closed in a thread, once nobody uses it. The next call opens it afresh."""
        if self._files.get(file.room) is file:
            del self._files[file.room]
        if not file.dropped:
            file.dropped = True
            self._leaving.setdefault(file.room, set()).add(file)
            if not file.in_use:
                self._close(file)

    def _close(self, file: OpenFile) -> None:
        if file in self._closing:
            return
        self._closing.add(file)
        if not file.has_log and file.reader is None and sqlite_format.is_at_rest(file.place):
            # Nothing to fold, so nothing to wait for; waking a thread takes longer.
            self._close_now(file)
        else:
            self._pool.submit(self._close_now, file)

    def _close_now(self, file: OpenFile) -> None:
        file.close()
        self._closing.discard(file)
        leaving = self._leaving.get(file.room)
        if leaving is not None:
            leaving.discard(file)
            if not leaving:
                self._leaving.pop(file.room, None)

    async def gone(self, room: str) -> None:
        """Drop the room's file and wait until nothing of the room is open."""
        while True:
            opening = self._opening.get(room)
            if opening is not None:
                if opening.landing.get_loop() is asyncio.get_running_loop():
                    with contextlib.suppress(Exception):
                        await asyncio.shield(opening.landing)
                else:
                    self._opening.pop(room, None)  # asked for by a loop that has ended
            file = self._files.get(room)
            if file is not None:
                self.drop(file)
            for left in list(self._leaving.get(room, ())):
                if not left.in_use:
                    # Whoever used it last may have ended with its loop, and so have told nobody.
                    self._close(left)
            if not self._leaving.get(room) and room not in self._files and room not in self._opening:
                return
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        for room in [*self._files, *self._opening, *self._leaving]:
            await self.gone(room)
