"""A folder of SQLite files, one per room: ``FOLDER/ROOM/store.db``.

Every acknowledged write has been through fsync (write-ahead log, ``synchronous=FULL``). Writes to one file that are
asked for in the same turn of the event loop share one transaction, and so one fsync. Where one file has writes and
this disk commits within a millisecond, the loop commits by itself, for waking a thread costs as much as the fsync;
otherwise threads commit, several files per hand-over, and what is asked for meanwhile gathers for the next group.

Several processes may use one folder. Nobody may open these files by other means in the same process: closing such a
handle drops SQLite's locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike, urandom
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import apsw

from nagaya.errors import ConditionFailed, StoreFull
from nagaya.stores import sqlite_format
from nagaya.stores.driver import ABSENT, Change, Later, PlainRow, Put, Row, ScannedRow
from nagaya.stores.rooms import check_room
from nagaya.stores.sqlite_commit import UNFIT, Moment, Outcome, Request, Write, commit_group, put_alone
from nagaya.stores.sqlite_files import LOOK_S, OpenFile, OpenFiles
from nagaya.stores.sqlite_read import read_known, read_one, read_range, read_scan, remember

T = TypeVar("T")
_Group = tuple[OpenFile, list[Request]]


class _Replaced(Exception):
    """Another file, or none, lies where the open one lay."""


_Committed = tuple[list[Outcome], dict[str, int]] | BaseException
_Landing = tuple[asyncio.AbstractEventLoop, Callable[[], None], Callable[[asyncio.AbstractEventLoop], None]]
"""A loop, what it is to do with what a thread has done for it, and what another does in its place once it is closed."""

_Read = Callable[[apsw.Cursor, dict[str, int]], list[T]]


class _Done:
    """What threads have committed of one hand-over, and how many have not come to their end."""

    __slots__ = ("_ended", "_shares", "commits")

    def __init__(self, shares: int) -> None:
        self.commits: list[tuple[OpenFile, list[Request], _Committed]] = []
        self._shares = shares
        self._ended = itertools.count(1)

    def was_the_last(self) -> bool:
        """For each thread to ask once, at its end."""
        return next(self._ended) == self._shares


_THREADS: Final = 8
_HANDED_OVER: Final = 3
"""Hand-overs on their way: more than one, so that threads find the next one waiting."""

_PACE_S: Final = 0.001
"""A disk whose commits take longer on average is not waited for in the loop; nor is a read expected to."""

_PROBE_S: Final = 1.0
"""How long threads commit after the disk was slow, before the loop tries again."""

_CROWD_S: Final = 0.05
"""After two writes met in one turn of the loop, how long every write joins a group."""

_INLINE_BYTES: Final = 128 * 1024
_GROUP_REQUESTS: Final = 512
_BUSY_MS: Final = 5000
_HANDLES_PER_FILE: Final = 5
_HANDLES_FOR_OTHERS: Final = 256
_FIXED_READ_S: Final = 20e-6

_READS_AT_REST: Final = 16
"""After so many reads a file that nobody has written to gets a log. Who comes once, as for a listing, leaves none."""


class SqliteStore:
    """One room's file. It implements :class:`nagaya.stores.driver.StoreDriver`; the house opens and closes the file."""

    __slots__ = ("_house", "_room", "put_now")

    def __init__(self, house: SqliteHouse, room: str) -> None:
        self._house = house
        self._room = room
        self.put_now = partial(house.put_now, room)
        """As :meth:`write_now`, of one record in a partition that was used before."""

    async def get(self, partition: str, sort: bytes) -> Row | None:
        rows = await self._house.read(self._room, 1, partial(read_one, partition=partition, sort=sort))
        return rows[0] if rows else None

    def get_now(self, partition: str, sort: bytes) -> Row | Literal[Later.LATER] | None:
        """The record, if its file is open and nobody is writing to it."""
        return self._house.read_now(self._room, partition, sort)

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        """As the port promises. A caller that is cancelled while it waits may find its write kept or not."""
        await self._house.write(self._room, partition, changes)

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[PlainRow]:
        work = partial(read_range, partition=partition, after=after, before=before, limit=limit, descending=descending)
        return await self._house.read(self._room, limit, work)

    async def query_since(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool, moment: object
    ) -> Sequence[PlainRow]:
        """As :meth:`query`, if no other process has written to the file since."""
        assert isinstance(moment, Moment)
        work = partial(read_range, partition=partition, after=after, before=before, limit=limit, descending=descending)
        return await self._house.read(self._room, limit, work, moment)

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        return await self._house.read(self._room, limit, partial(read_scan, after=after, limit=limit))

    def moment(self) -> Moment | None:
        """The file as it is now, if it is open and nobody is writing to it."""
        return self._house.moment(self._room)

    async def write_since(self, partition: str, changes: Sequence[Change], moment: object) -> None:
        """As :meth:`write`, if no other process has written to the file since."""
        assert isinstance(moment, Moment)
        await self._house.write(self._room, partition, changes, moment)

    def write_now(self, partition: str, changes: Sequence[Change], moment: object | None) -> bool:
        """Commit at once, where this is the only writer of late; a group would only cost it a turn of the loop."""
        assert moment is None or isinstance(moment, Moment)
        return self._house.write_now(self._room, partition, changes, moment)

    async def close(self) -> None:
        """Nothing to do: the house keeps the file open for whoever comes next, and closes those long unused."""


class SqliteHouse:
    """Rooms in a folder. It implements :class:`nagaya.stores.driver.StoreHouse`.

    ``max_open`` bounds the files held open (three descriptors and about 140 KiB each, two descriptors more while a
    room is read beside a busy writer); it is lowered to what the process may open. Use it from one event loop at a
    time. ``busy_s`` is how long a write waits for another process that writes to the same room.
    """

    def __init__(self, folder: str | PathLike[str], *, max_open: int = 512, busy_s: float = _BUSY_MS / 1000) -> None:
        sqlite_format.bound_memory()
        self.folder = Path(folder).resolve()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="nagaya-store")
        self._patient = ThreadPoolExecutor(_THREADS, thread_name_prefix="nagaya-store-busy")
        self._files = OpenFiles(self.folder, self._pool, limit=_affordable(max_open))
        self._ready: list[OpenFile] = []
        self._queue: deque[OpenFile] = deque()
        self._handed_over = 0
        self._alone: asyncio.Task[Any] | None = None
        self._alone_since_s = 0.0
        self._crowd_until_s = 0.0
        self._writing_again: set[asyncio.Task[None]] = set()
        self._commit_s = 0.0
        self._probe_at_s = 0.0
        self._busy_ms = int(busy_s * 1000)
        self._flush_on: asyncio.AbstractEventLoop | None = None
        self._landings: deque[_Landing] = deque()
        self._next_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # --- rooms

    async def create(self, room: str) -> None:
        """Make an empty store (20 KiB) by copying a prepared one. Raises ``TenantExists``."""
        check_room(room)
        await self._in_thread(self._create_now, room)

    def _create_now(self, room: str) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as failed:
            raise sqlite_format.file_error(failed, room) from failed
        sqlite_format.make(self.folder, room)

    async def open(self, room: str) -> SqliteStore:
        """The room's store, its file opened and checked. Raises ``StoreDamaged`` and the other ``Store…`` errors."""
        check_room(room)
        if self._files.get(room) is None:
            self._check_open()
            await self._files.open(room)
        return SqliteStore(self, room)

    async def exists(self, room: str) -> bool:
        """Whether the room has a store here, sound or not."""
        return sqlite_format.inode(str(self.folder / check_room(room) / sqlite_format.FILE)) != 0

    async def destroy(self, room: str) -> None:
        """Remove the room's folder. It first takes another name, so that no half of a store is ever opened."""
        check_room(room)
        self._take_over(asyncio.get_running_loop())
        await self._files.gone(room)
        await self._in_thread(self._destroy_now, room)

    def _destroy_now(self, room: str) -> None:
        gone = self.folder / f".gone-{room}-{urandom(6).hex()}"
        try:
            place = self.folder / room
            if place.is_symlink():
                place.unlink()
                return
            place.rename(gone)
            sqlite_format.sync_folder(self.folder)
            shutil.rmtree(gone)
        except FileNotFoundError:
            return
        except OSError as failed:
            raise sqlite_format.file_error(failed, room) from failed

    async def size_bytes(self, room: str) -> int:
        """Bytes of the room's file and its log; 0 for a room that is not there."""
        return await self._in_thread(self._size_now, check_room(room))

    def _size_now(self, room: str) -> int:
        total = 0
        for name in (sqlite_format.FILE, f"{sqlite_format.FILE}-wal"):
            with contextlib.suppress(FileNotFoundError):
                total += (self.folder / room / name).lstat().st_size
        return total

    async def close(self) -> None:
        """Finish what was asked for, then close every file. May be called again."""
        self._closed = True
        self._take_over(asyncio.get_running_loop())
        await self._files.close()
        self._pool.shutdown(wait=False)
        self._patient.shutdown(wait=False)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the store house is closed")

    async def _in_thread(self, work: Callable[[str], T], room: str) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, room)

    def open_file(self, room: str) -> OpenFile | None:
        """The room's open file, for those who look after it. None where it is not open."""
        return self._files.get(room)

    async def quiet(self, room: str) -> None:
        """Close the room's file and wait until it is closed. Where no other process has it open, ``store.db`` alone
        then holds everything."""
        self._take_over(asyncio.get_running_loop())
        await self._files.gone(check_room(room))

    # --- reading

    async def read(self, room: str, rows: int, work: _Read[T], since: Moment | None = None) -> list[T]:
        """Run a read that gives at most ``rows`` rows: here, where that is quick, else in a thread. With ``since``,
        raises ``ConditionFailed`` unless nobody else had written to the file until then."""
        file = self._files.glance(room)
        if file is None:
            self._check_open()
            file = await self._files.open(room)
        if _FIXED_READ_S + rows * file.row_s < _PACE_S:
            try:
                if not file.busy:
                    found = _timed(file, file.cursor, file.known, work)
                    if since is not None and not (since.serial == file.serial and file.is_as_of(since.version)):
                        raise ConditionFailed
                    if not (file.has_log or file.queued):
                        self._read_at_rest(file)
                    return found
                if since is None and file.reader is not None and file.reader_lock.acquire(blocking=False):
                    try:
                        return _timed(file, file.reader.cursor(), file.known, work)
                    finally:
                        file.reader_lock.release()
            except apsw.BusyError:
                pass  # another process recovers or closes the file; a thread may wait for that, the loop may not
            except apsw.Error as failed:
                raise self._failed(file, failed) from failed
        if since is not None:
            raise ConditionFailed
        loop = asyncio.get_running_loop()
        job = self._pool.submit(self._read_there, file, dict(file.known), work)
        file.readers.add(job)
        job.add_done_callback(partial(self._read_over, loop, file))
        try:
            return await asyncio.wrap_future(job)
        except apsw.Error as failed:
            raise self._failed(file, failed) from failed

    def _read_over(self, loop: asyncio.AbstractEventLoop, file: OpenFile, job: Future[list[T]]) -> None:
        # Also where the caller gave up: a thread that began reads to its end, and keeps the file in use till then.
        file.readers.discard(job)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._files.became_idle, file)

    def _read_there(
        self,
        file: OpenFile,
        known: dict[str, int],
        work: _Read[T],
    ) -> list[T]:
        with file.reader_lock:
            connection = file.read_connection()
            connection.set_busy_timeout(self._busy_ms)
            try:
                return _timed(file, connection.cursor(), known, work)
            finally:
                connection.set_busy_timeout(0)

    def _read_at_rest(self, file: OpenFile) -> None:
        """A file that is read again and again gets a log too: without one each read asks the system whether another
        process writes, and nobody can say that none has."""
        file.reads_at_rest += 1
        if file.reads_at_rest == _READS_AT_REST:
            file.busy = True
            self._pool.submit(self._look_after, asyncio.get_running_loop(), file, file.begin_log)

    def read_now(self, room: str, partition: str, sort: bytes) -> Row | Literal[Later.LATER] | None:
        """One record, by the quickest way there is; ``LATER`` where it is not to be had at once."""
        file = self._files.glance(room)
        if file is None or file.busy or file.row_s > _PACE_S:
            return Later.LATER
        number = file.known.get(partition)
        if number is None:
            return Later.LATER
        try:
            return read_known(file.cursor, number, sort)
        except apsw.Error:
            return Later.LATER

    def moment(self, room: str) -> Moment | None:
        """Stands for the file as it is now; None where it is not open or being written to."""
        file = self._files.glance(room)
        if file is None or file.busy or not file.has_log:
            return None
        try:
            return Moment(file.serial, file.version_now())
        except apsw.Error:
            return None

    # --- writing

    async def write(self, room: str, partition: str, changes: Sequence[Change], since: Moment | None = None) -> None:
        """Join the file's next group and wait for its commit."""
        file = self._files.held(room)
        if file is None:
            self._check_open()
            file = await self._files.open(room)
        write = Write(partition, changes, _version(file, since))
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        file.pending.append(Request(write, waiter))
        file.pending_bytes += _size(changes)
        if file.busy:
            self._take_over(loop)
        elif not file.queued:
            self._line_up(loop, file)
        await waiter

    def write_now(self, room: str, partition: str, changes: Sequence[Change], since: Moment | None) -> bool:
        """Commit here, where nobody else writes and the disk is quick; False where the write has to join a group."""
        started_s = time.perf_counter()
        file = self._file_alone(room, _size(changes), started_s)
        if file is None:
            return False
        outcome = _committed(file, (Write(partition, changes, _version(file, since)),))
        self._learn_pace(time.perf_counter() - started_s)
        if isinstance(outcome, _Replaced):
            self._files.drop(file)
            return False
        if isinstance(outcome, BaseException):
            if isinstance(outcome, apsw.BusyError):
                return False
            raise self._failed(file, outcome)
        failed = self._learn(file, outcome)[0]
        if file.pages_written >= file.tend_at:
            self._after(asyncio.get_running_loop(), file)
        if failed is not None:
            raise failed
        return True

    def put_now(
        self, room: str, partition: str, sort: bytes, body: bytes, expect: int, since: object | None
    ) -> bool | Literal[Later.LATER]:
        """As :meth:`write_now`, of one record. After a sync little of this code is in the processor's caches, so a
        lone append goes through as little of it as can be; and it looks as a read does whether the file lies in its
        place, at most ``LOOK_S`` ago. ``LATER`` where this task has written enough in this turn of the loop."""
        started_s = time.perf_counter()
        file = self._file_alone(room, len(body), started_s)
        if file is None:
            return Later.LATER if self._alone is not None and self._alone is asyncio.current_task() else False
        if expect != ABSENT and since is not None:
            return False
        number = file.known.get(partition)
        if number is None:
            return False
        assert since is None or isinstance(since, Moment)
        if since is not None and since.serial != file.serial:
            raise ConditionFailed
        if started_s - file.looked_at_s > LOOK_S and not file.is_in_place():
            self._files.drop(file)
            return False
        try:
            if since is None:
                kept = put_alone(file.writer, number, sort, body, expect, None)
            else:
                kept = file.insert(number, sort, body, since.version)
        except UNFIT:
            raise
        except apsw.BusyError:
            return False
        except apsw.Error as failed:
            raise self._failed(file, failed) from failed
        self._learn_pace(time.perf_counter() - started_s)
        if file.pages_written >= file.tend_at:
            self._after(asyncio.get_running_loop(), file)
        if not kept:
            raise ConditionFailed
        return True

    def _file_alone(self, room: str, size: int, now_s: float) -> OpenFile | None:
        """The room's open file, where this task alone writes and the disk is quick."""
        if now_s < self._crowd_until_s or size > _INLINE_BYTES:
            return None
        file = self._files.held(room)
        if file is None or not file.has_log or file.busy or file.pending or self._queue:
            return None
        return file if self._is_alone(now_s) and (self._commit_s < _PACE_S or self._disk_is_quick()) else None

    def _is_alone(self, now_s: float) -> bool:
        """Whether nobody but this task writes in this turn of the loop. A task that writes on and on lets it turn every
        millisecond."""
        task = asyncio.current_task()
        if self._alone is None:
            self._alone, self._alone_since_s = task, now_s
            asyncio.get_running_loop().call_soon(self._turned)
            return True
        if self._alone is task:
            return now_s - self._alone_since_s < _PACE_S
        self._alone = None
        self._crowd_until_s = now_s + _CROWD_S
        return False

    def _turned(self) -> None:
        self._alone = None

    def _line_up(self, loop: asyncio.AbstractEventLoop, file: OpenFile) -> None:
        file.queued = True
        self._ready.append(file)
        if self._flush_on is not loop:
            # One flush per turn of the loop: everybody who is awake now gets into the group.
            self._flush_on = loop
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flush_on = None
        ready, self._ready = self._ready, []
        if len(ready) > 1 or len(ready[0].pending) > 1:
            self._crowd_until_s = time.perf_counter() + _CROWD_S
        lone = ready[0] if len(ready) == 1 else None
        # The first write after a file was opened begins its log, which takes longer than the loop should wait.
        if lone and lone.has_log and lone.pending_bytes <= _INLINE_BYTES and self._disk_is_quick():
            self._commit_here(loop, ready[0])
        else:
            self._queue.extend(ready)
            self._hand_over(loop)

    def _commit_here(self, loop: asyncio.AbstractEventLoop, file: OpenFile) -> None:
        group = _take(file)
        if group:
            started = time.perf_counter()
            outcome = _committed(file, [request.write for request in group])
            self._learn_pace(time.perf_counter() - started)
            self._settle(loop, file, group, outcome, patient=False)
        self._after(loop, file)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._queue and self._handed_over < _HANDED_OVER:
            groups: list[_Group] = []
            while self._queue:
                file = self._queue.popleft()
                group = _take(file)
                if group:
                    file.busy = True
                    groups.append((file, group))
                else:
                    self._files.became_idle(file)
            if groups:
                self._handed_over += 1
                shares = [groups[thread::_THREADS] for thread in range(min(_THREADS, len(groups)))]
                done = _Done(len(shares))
                for share in shares:
                    self._pool.submit(self._commit_there, loop, share, done)

    def _commit_there(self, loop: asyncio.AbstractEventLoop, groups: list[_Group], done: _Done) -> None:
        for file, group in groups:
            done.commits.append((file, group, _committed(file, [request.write for request in group])))
        # The loop is woken once for all: each waking takes the interpreter from the threads that are not through.
        if done.was_the_last():
            self._tell((loop, partial(self._landed, loop, done), partial(self._landed_elsewhere, done)))

    def _tell(self, landing: _Landing) -> None:
        """From a thread: have its loop do what is to be done. That may be closed, or about to be: then its waiters are
        gone, but another loop may use the files."""
        self._landings.append(landing)
        for loop in (landing[0], self._next_loop):
            if loop is not None:
                try:
                    loop.call_soon_threadsafe(self._land, loop)
                    return
                except RuntimeError:
                    continue

    def _land(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(len(self._landings)):
            landing = self._landings.popleft()
            owner, landed, landed_elsewhere = landing
            if owner is loop:
                landed()
            elif owner.is_closed():
                landed_elsewhere(loop)
            else:
                self._landings.append(landing)

    def _take_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Where a thread keeps a file for a loop that has ended, have this one told instead."""
        self._next_loop = loop
        self._land(loop)

    def _landed_elsewhere(self, done: _Done, loop: asyncio.AbstractEventLoop) -> None:
        self._handed_over -= 1
        for file, _, _ in done.commits:
            file.busy = False
            self._after(loop, file)
        self._hand_over(loop)

    def _landed(self, loop: asyncio.AbstractEventLoop, done: _Done) -> None:
        self._handed_over -= 1
        for file, group, outcome in done.commits:
            file.busy = False
            self._settle(loop, file, group, outcome, patient=False)
            self._after(loop, file)
        self._hand_over(loop)

    def _wait_and_commit(self, loop: asyncio.AbstractEventLoop, file: OpenFile, group: list[Request]) -> None:
        file.writer.set_busy_timeout(self._busy_ms)
        outcome = _committed(file, [request.write for request in group])
        file.writer.set_busy_timeout(0)
        self._tell((loop, partial(self._waited, loop, file, group, outcome), partial(self._let_go, file)))

    def _let_go(self, file: OpenFile, loop: asyncio.AbstractEventLoop) -> None:
        file.busy = False
        self._after(loop, file)

    def _waited(
        self, loop: asyncio.AbstractEventLoop, file: OpenFile, group: list[Request], outcome: _Committed
    ) -> None:
        file.busy = False
        self._settle(loop, file, group, outcome, patient=True)
        self._after(loop, file)

    def _settle(
        self,
        loop: asyncio.AbstractEventLoop,
        file: OpenFile,
        group: list[Request],
        outcome: _Committed,
        *,
        patient: bool,
    ) -> None:
        if isinstance(outcome, apsw.BusyError) and not patient:
            # Another process writes to this room. Threads of their own wait for it, so that other rooms go on.
            file.busy = True
            self._patient.submit(self._wait_and_commit, loop, file, group)
            return
        if isinstance(outcome, _Replaced):
            self._files.drop(file)
            for request in group:
                again = loop.create_task(self._write_again(file.room, request))
                self._writing_again.add(again)
                again.add_done_callback(self._writing_again.discard)
            return
        if isinstance(outcome, BaseException):
            for request in group:
                if not request.waiter.done():
                    request.waiter.set_exception(self._failed(file, outcome))
            return
        for request, failed in zip(group, self._learn(file, outcome), strict=True):
            if not request.waiter.done():
                if failed is None:
                    request.waiter.set_result(None)
                else:
                    request.waiter.set_exception(failed)

    @staticmethod
    def _learn(file: OpenFile, outcome: tuple[list[Outcome], dict[str, int]]) -> list[Outcome]:
        outcomes, learnt = outcome
        for name, number in learnt.items():
            remember(file.known, name, number)
        return outcomes

    async def _write_again(self, room: str, request: Request) -> None:
        """Write to the file that lies there now what was meant for the one before."""
        waiter = request.waiter
        try:
            if request.write.version is not None:
                raise ConditionFailed  # it was to be written only if nobody else had changed anything
            await self.write(room, request.write.partition, request.write.changes)
        except BaseException as failed:
            if not waiter.done():
                waiter.set_exception(failed)
            if not isinstance(failed, Exception):
                raise
        else:
            if not waiter.done():
                waiter.set_result(None)

    def _after(self, loop: asyncio.AbstractEventLoop, file: OpenFile) -> None:
        if file.busy:
            return
        if file.pages_written >= file.tend_at and not file.dropped:
            file.busy = True
            self._pool.submit(self._look_after, loop, file, file.tend)
        elif not file.pending:
            self._files.became_idle(file)
        elif not file.queued:
            self._line_up(loop, file)

    def _look_after(self, loop: asyncio.AbstractEventLoop, file: OpenFile, work: Callable[[], None]) -> None:
        with contextlib.suppress(apsw.Error, OSError):  # the log stays as it is, and the next commit says what is wrong
            work()
        self._tell((loop, partial(self._let_go, file, loop), partial(self._let_go, file)))

    def _disk_is_quick(self) -> bool:
        if self._commit_s < _PACE_S:
            return True
        # A thread's time says little of the disk, for it waits for the interpreter too: so the loop tries by itself.
        now_s = time.perf_counter()
        if now_s < self._probe_at_s:
            return False
        self._probe_at_s = now_s + _PROBE_S
        return True

    def _learn_pace(self, took_s: float) -> None:
        if self._commit_s < _PACE_S:
            # A hiccup is no slow disk; a dozen in a row are.
            self._commit_s += 0.05 * (min(took_s, 2 * _PACE_S) - self._commit_s)
            if self._commit_s >= _PACE_S:
                self._probe_at_s = time.perf_counter() + _PROBE_S
        elif took_s < _PACE_S:
            self._commit_s = took_s

    def _failed(self, file: OpenFile, error: BaseException) -> BaseException:
        """What a raw error means; a file that may be broken is opened afresh by the next call."""
        if not isinstance(error, apsw.Error):
            return error
        connection = None if file.busy else file.writer
        meaning = sqlite_format.sqlite_error(error, connection, file.place)
        if not isinstance(meaning, StoreFull):
            self._files.drop(file)
        return meaning


def _committed(file: OpenFile, writes: Sequence[Write]) -> _Committed:
    if not file.is_in_place():
        return _Replaced()
    try:
        if not file.has_log:
            file.begin_log()
        outcomes, learnt = commit_group(file.writer, file.known, writes)
        version = next((write.version for write in writes if write.version is not None), None)
        if version is not None and not any(outcomes):
            file.stamp(version)  # the same for all, else one of them would have failed
        return outcomes, learnt
    except Exception as failed:
        return failed


def _version(file: OpenFile, since: Moment | None) -> int | None:
    if since is None:
        return None
    if since.serial != file.serial:
        raise ConditionFailed
    return since.version


def _size(changes: Sequence[Change]) -> int:
    size = 0
    for change in changes:
        if type(change) is Put:
            size += len(change.body)
    return size


def _take(file: OpenFile) -> list[Request]:
    """The file's next group: what waits, but for those who gave up meanwhile."""
    file.queued = False
    taken = file.pending[:_GROUP_REQUESTS]
    del file.pending[:_GROUP_REQUESTS]
    if not file.pending:
        file.pending_bytes = 0
    return [request for request in taken if not request.waiter.done()]


def _timed(
    file: OpenFile,
    cursor: apsw.Cursor,
    known: dict[str, int],
    work: _Read[T],
) -> list[T]:
    started = time.perf_counter()
    found = work(cursor, known)
    per_row_s = max(0.0, time.perf_counter() - started - _FIXED_READ_S) / max(1, len(found))
    file.row_s += 0.2 * (per_row_s - file.row_s)
    return found


def _affordable(max_open: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(1, max_open)
    return max(1, min(max_open, (soft - _HANDLES_FOR_OTHERS) // _HANDLES_PER_FILE))
