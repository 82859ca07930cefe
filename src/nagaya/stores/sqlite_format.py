"""The file behind a room: its layout, how one is made, opened and checked, and what SQLite's errors mean.

Bodies lie in a rowid table in the order they came, so that an append touches its last page; a small unique index on
(partition number, sort key) finds them. A clustered table (``WITHOUT ROWID``) would put every kilobyte on a page of
its own and take three times the space. Pages of 4 KiB append quickest and keep an empty file at 20 KiB.

A file gets its write-ahead log with the first write after it was opened, and gives it up when it is closed. So a file
that is only read has no log and no shared memory beside it, which to make and remove took half of opening it.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from pathlib import Path
from typing import Final

import apsw

from nagaya.errors import (
    NagayaError,
    StoreDamaged,
    StoreFull,
    StoreNewer,
    StoreReadOnly,
    StoreUnreachable,
    TenantExists,
)

FILE: Final = "store.db"
APPLICATION_ID: Final = 0x4E677961  # "Ngya", in the header of every file of ours
FORMAT: Final = 1
PAGE_BYTES: Final = 4096
CACHE_KIB: Final = 8000
"""Page cache of one connection at the most; it takes only what it uses, and all together have the limit below. With a
quarter of it, a page of one of a busy tenant's conversations is mostly read from the file again."""

HEAP_BYTES: Final = 192 * 1024 * 1024
"""SQLite's memory in this process: beyond it the page caches give up old pages instead of growing."""

CHECKPOINT_PAGES: Final = 1000
LOG_PAGES: Final = (32, 128, 512)
"""Where a log that grows is made four times as long ahead of its writer."""
_LONGEST_LOG_PAGES: Final = CHECKPOINT_PAGES + 100
_FRAME_BYTES: Final = PAGE_BYTES + 24
_ZEROS: Final = bytes(64 * 1024)
_WAL_LIMIT_BYTES: Final = 8 * 1024 * 1024
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_SCHEMA: Final = """
CREATE TABLE partitions (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE records (
    id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, sort BLOB NOT NULL,
    revision INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE UNIQUE INDEX places ON records (partition, sort);
"""


@cache
def empty_file() -> bytes:
    """An empty store, ready to be written to a new room: copying it takes a tenth of making it by its schema."""
    connection = apsw.Connection(":memory:")
    connection.pragma("page_size", PAGE_BYTES)
    connection.execute(_SCHEMA)
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", FORMAT)
    made = connection.serialize("main")
    connection.close()
    return made


def make(folder: Path, room: str) -> None:
    """Write an empty store, durably. Raises ``TenantExists`` where there is one, whoever made it a moment ago."""
    place = folder / room
    fresh = place / f".{FILE}-{os.urandom(6).hex()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink():
            raise StoreDamaged(place=room)
        for log in (f"{FILE}-wal", f"{FILE}-journal"):
            if (place / log).exists() and not (place / FILE).exists():
                # The log of a file that is gone would be replayed into the new one.
                raise StoreDamaged(place=f"{room}/{log}")
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as file:
                file.write(empty_file())
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, place / FILE)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(place)
        sync_folder(folder)
    except FileExistsError:
        raise TenantExists(value=room) from None
    except OSError as failed:
        raise file_error(failed, room) from failed


def bound_memory() -> None:
    """Give SQLite its limit in this process, unless it already has one. Open files then cost no more than that."""
    if apsw.soft_heap_limit(-1) == 0:
        apsw.soft_heap_limit(HEAP_BYTES)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_at_rest(place: Path) -> bool:
    """Whether a room's file has no log or journal beside it: nobody writes to it, and nothing has to be made good."""
    path = f"{place}/{FILE}"
    return not (os.path.lexists(f"{path}-wal") or os.path.lexists(f"{path}-journal"))


def connect(folder: Path, room: str, *, busy_ms: int = 5000) -> apsw.Connection:
    """Open and check a room's file. Takes about 0.2 ms, and ``busy_ms`` more where others hold it. Raises the
    ``Store…`` errors."""
    place = folder / room
    path = place / FILE
    try:
        if not (stat.S_ISDIR(os.lstat(place).st_mode) and stat.S_ISREG(os.lstat(path).st_mode)):
            raise StoreDamaged(place=room)
    except OSError as failed:
        raise file_error(failed, room) from failed
    connection: apsw.Connection | None = None
    try:
        connection = apsw.Connection(
            str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW, statementcachesize=24
        )
        connection.set_busy_timeout(busy_ms)
        ours, found = connection.pragma("application_id"), connection.pragma("user_version")
        if ours != APPLICATION_ID or found < 1:
            raise StoreDamaged(place=room)
        if found > FORMAT:
            raise StoreNewer(place=room, found=found, known=FORMAT)
        connection.pragma("synchronous", "FULL")
        connection.pragma("cache_size", -CACHE_KIB)
        connection.pragma("journal_size_limit", _WAL_LIMIT_BYTES)
        connection.set_busy_timeout(0)
    except apsw.Error as failed:
        error = sqlite_error(failed, connection, place)
        if connection is not None:
            connection.close(True)
        raise error from failed
    except StoreDamaged:
        if connection is not None:
            connection.close(True)
        raise
    return connection


def has_log(connection: apsw.Connection) -> bool:
    """Whether the file is written and read through a write-ahead log now."""
    return bool(connection.pragma("journal_mode") == "wal")


def begin_log(connection: apsw.Connection) -> bool:
    """Have writes go to a write-ahead log from now on. Durable, blocks for a millisecond or two, may be repeated.
    Raises ``apsw.BusyError`` while another process reads or writes. False where the file cannot have one; then writes
    go through a rollback journal, as durably."""
    return bool(connection.pragma("journal_mode", "wal") == "wal")


def lengthen_log(connection: apsw.Connection, path: str, pages: int) -> None:
    """Write zeros behind a file's log, until it has that many pages' length: a commit that overwrites needs two thirds
    of the time of one that makes the file longer, for then the new length has to be synced too. Whoever reads a log
    stops at the first page that is none of its own, so zeros are no part of it. Blocks for some milliseconds.

    Raises ``apsw.BusyError`` while another process writes, and ``OSError``; then the file is as long as before.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        handle = os.open(f"{path}-wal", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            before = os.fstat(handle).st_size
            missing = min(pages, _LONGEST_LOG_PAGES) * _FRAME_BYTES - before
            if missing > 0:
                try:
                    with open(handle, "wb", closefd=False) as log:
                        log.seek(before)
                        # In pieces: as one they would stay with the thread's share of the memory.
                        for at in range(0, missing, len(_ZEROS)):
                            log.write(_ZEROS[: missing - at])
                    os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, before)
                    raise
        finally:
            os.close(handle)
    finally:
        connection.execute("ROLLBACK")


def end_log(connection: apsw.Connection) -> None:
    """Fold the log into the file and do without. Blocks. Raises ``apsw.BusyError`` where another process has the file
    open; then the log stays."""
    connection.pragma("journal_mode", "delete")


def inode(path: str) -> int:
    """Which file lies at a path now, 0 for none: a store that another process replaced must not be written to."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return 0


def file_error(error: OSError, room: str) -> NagayaError:
    """What the operating system's error means to the caller."""
    if error.errno in _NO_ROOM:
        return StoreFull()
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly()
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EEXIST):
        return StoreDamaged(place=room)
    return StoreUnreachable()


def sqlite_error(error: apsw.Error, connection: apsw.Connection | None, place: Path) -> NagayaError:
    """What SQLite's error means to the caller. Anything unknown is ``StoreUnreachable``: nothing is promised."""
    if isinstance(error, apsw.FullError):
        return StoreFull()
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, apsw.SQLError)):
        return StoreDamaged(place=place.name)
    if isinstance(error, apsw.IOError) and connection is not None and connection.system_errno in _NO_ROOM:
        return StoreFull()  # a quota or a file size limit, which SQLite does not tell from a broken disk
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError)):
        return StoreReadOnly()
    if isinstance(error, apsw.CantOpenError) and not _writable(place):
        return StoreReadOnly()
    return StoreUnreachable()


def _writable(place: Path) -> bool:
    return os.access(place, os.W_OK | os.X_OK) and os.access(place / FILE, os.R_OK | os.W_OK)
