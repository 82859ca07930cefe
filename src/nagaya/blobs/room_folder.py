"""A room's folder on disk: where a blob's file lies, how it is moved into place, and how it is found again.

A blob ``files/Report.pdf`` is the file ``files/^report.pdf@``: capital letters are escaped, for some file systems do
not tell them apart, and the mark at the end lets ``files`` be a blob and a folder at once. A file begins with 16
random bytes, the blob's version; a copy or a restored backup keeps it. Every step opens the next folder from the last
one's handle and follows no symbolic link, so nothing planted in a room leads out of it. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

from nagaya.blobs.driver import BlobInfo
from nagaya.errors import ConditionFailed, NotFound, StoreDamaged

VERSION_BYTES: Final = 16
PARTS: Final = ".parts"
LOCK: Final = ".lock"

_MARK: Final = "@"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a planted pipe must not block
_DRAFT: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPITAL: Final = re.compile("[A-Z]")
_ESCAPED: Final = re.compile(r"\^([a-z])")
_ON_DISK: Final = re.compile(r"(?:[a-z0-9_.-]|\^[a-z])+@?")
_FOREIGN: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EMLINK})


def make(place: Path) -> None:
    """A new room's folder, durably. Raises ``FileExistsError``."""
    draft = place.with_name(f".new-{secrets.token_hex(8)}")
    (draft / PARTS).mkdir(mode=0o700, parents=True)
    (draft / LOCK).touch(mode=0o600)
    sync(draft)
    try:
        # A folder is renamed onto an empty folder without a word, but a room is never empty.
        draft.rename(place)
    except OSError as failed:
        (draft / LOCK).unlink()
        (draft / PARTS).rmdir()
        draft.rmdir()
        if failed.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(place) from None
        raise
    sync(place.parent)


def sync(folder: Path) -> None:
    """Make what was renamed in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RoomFolder:
    """One room's folder. Holds nothing open between two calls; may be used by several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- looking ----------------------------------------------------------------------------------------------

    def open(self, name: str) -> int:
        """A handle to read a blob's file by. Raises ``FileNotFoundError``."""
        *folders, file = _on_disk(name)
        with self._descend(folders) as folder:
            return self._open_file(file, folder)

    def info(self, name: str) -> BlobInfo | None:
        """The blob as it is now, or None."""
        try:
            handle = self.open(name)
        except FileNotFoundError:
            return None
        with _closing(handle):
            return info_of(name, handle)

    def page(self, prefix: str, after: str, limit: int) -> list[BlobInfo]:
        """See :meth:`nagaya.blobs.driver.BlobDriver.list`. Each folder on the way is read once per call."""
        found: list[BlobInfo] = []
        with self._descend(()) as room, contextlib.closing(self._walk(room, "", prefix, after)) as blobs:
            for name, handle in blobs:
                with _closing(handle):
                    found.append(info_of(name, handle))
                if len(found) == limit:
                    break
        return found

    def _walk(self, folder: int, at: str, prefix: str, after: str) -> Generator[tuple[str, int], None, None]:
        """The blobs below ``at`` in the order of their names, each with a handle to close."""
        entries: list[tuple[str, str]] = []
        with os.scandir(folder) as scan:
            for entry in scan:
                # Anything that is not ours, a symbolic link too, is no blob.
                if not _ON_DISK.fullmatch(entry.name) or entry.name.startswith("."):
                    continue
                if entry.name.endswith(_MARK):
                    name = at + _plain(entry.name[:-1])
                    if name > after and name.startswith(prefix):
                        entries.append((name, entry.name))
                elif entry.is_dir(follow_symlinks=False):
                    name = at + _plain(entry.name) + "/"
                    if (name > after or after.startswith(name)) and (
                        name.startswith(prefix) or prefix.startswith(name)
                    ):
                        entries.append((name, entry.name))
        entries.sort()
        for name, on_disk in entries:
            try:
                if name.endswith("/"):
                    with _closing(os.open(on_disk, _FOLDER, dir_fd=folder)) as deeper:
                        yield from self._walk(deeper, name, prefix, after)
                else:
                    yield name, self._open_file(on_disk, folder)
            except FileNotFoundError:
                continue  # removed meanwhile

    # --- changing ---------------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Remove a blob durably, and the folders that are empty without it."""
        *folders, file = _on_disk(name)
        with self.locked():
            try:
                with self._descend(folders) as folder:
                    os.unlink(file, dir_fd=folder)
                    os.fsync(folder)
            except FileNotFoundError:
                return
            while folders:
                *folders, last = folders
                with self._descend(folders) as above:
                    try:
                        os.rmdir(last, dir_fd=above)
                    except OSError:
                        return  # not empty

    def move_in(self, draft: str, name: str, expect: str | None) -> None:
        """Move a finished draft to a blob's place, durably, if the version there is the expected one."""
        *folders, file = _on_disk(name)
        with self.locked(), self._descend((PARTS,), create=True) as parts:
            if expect:
                found = self.info(name)
                if found is None or found.version != expect:
                    raise ConditionFailed
            with self._descend(folders, create=True) as folder:
                if expect == "":
                    try:
                        os.link(draft, file, src_dir_fd=parts, dst_dir_fd=folder, follow_symlinks=False)
                    except FileExistsError:
                        raise ConditionFailed from None
                    os.unlink(draft, dir_fd=parts)
                else:
                    os.rename(draft, file, src_dir_fd=parts, dst_dir_fd=folder)
                os.fsync(folder)

    def draft(self) -> tuple[str, int]:
        """A new file under ``.parts/`` and its handle, held so that no sweep takes it while this process lives."""
        draft = secrets.token_hex(16)
        with self.locked(), self._descend((PARTS,), create=True) as parts:
            handle = os.open(draft, _DRAFT, 0o600, dir_fd=parts)
            fcntl.flock(handle, fcntl.LOCK_EX)
        return draft, handle

    def drop_draft(self, draft: str) -> None:
        """Remove a draft. One that is not there is no error."""
        with contextlib.suppress(FileNotFoundError), self._descend((PARTS,), create=True) as parts:
            os.unlink(draft, dir_fd=parts)

    def sweep(self) -> None:
        """Remove the drafts of processes that have ended."""
        with self.locked(), self._descend((PARTS,), create=True) as parts:
            for draft in os.listdir(parts):
                # Its writer may be giving it up at this moment.
                with contextlib.suppress(FileNotFoundError), _closing(os.open(draft, _READ, dir_fd=parts)) as handle:
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue  # its writer lives
                    os.unlink(draft, dir_fd=parts)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the room's names, among all threads and processes. Held for a rename, never for a transfer."""
        with self._descend(()) as room:
            try:
                lock = os.open(LOCK, _READ, dir_fd=room)
            except FileNotFoundError:
                raise StoreDamaged(place=str(self.path)) from None
            with _closing(lock):
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    # --- inside -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _descend(self, folders: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """A handle of the folder below the room, every step of the way a real folder."""
        handle = -1
        try:
            try:
                handle = os.open(self.path, _FOLDER)
            except FileNotFoundError:
                raise StoreDamaged(place=str(self.path)) from None
            for each in folders:
                deeper = self._step(handle, each, create)
                os.close(handle)
                handle = deeper
            yield handle
        except OSError as failed:
            if failed.errno in _FOREIGN:
                raise StoreDamaged(place=str(self.path)) from failed
            raise
        finally:
            if handle >= 0:
                os.close(handle)

    def _step(self, folder: int, name: str, create: bool) -> int:
        if create:
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
                os.fsync(folder)
            except FileExistsError:
                pass
        return os.open(name, _FOLDER, dir_fd=folder)

    def _open_file(self, file: str, folder: int) -> int:
        handle = os.open(file, _READ, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise StoreDamaged(place=str(self.path))
        return handle


class Upload:
    """A blob on its way in. Its methods may be called in several threads; the last word is :meth:`abandon`'s."""

    def __init__(self, room: RoomFolder, name: str) -> None:
        self._room = room
        self._name = name
        self._lock = threading.Lock()
        self._draft: str | None = None
        self._handle = -1
        self._version = b""
        self._size = 0
        self._ended = False

    def write(self, parts: list[bytes]) -> None:
        """Append to the draft."""
        with self._lock:
            self._write(parts)

    def commit(self, parts: list[bytes], expect: str | None) -> BlobInfo:
        """Append, sync, and move the draft into its place."""
        with self._lock:
            self._write(parts)
            os.fsync(self._handle)
            assert self._draft is not None
            self._room.move_in(self._draft, self._name, expect)
            self._draft = None
            self._end()
            return BlobInfo(self._name, self._size, self._version.hex())

    def abandon(self) -> None:
        """Remove what was not moved into place. May be called at any time."""
        with self._lock:
            self._end()

    def _write(self, parts: list[bytes]) -> None:
        if self._ended:
            raise ConditionFailed  # abandoned before its turn came; nobody waits for this any more
        if self._draft is None:
            self._draft, self._handle = self._room.draft()
            self._version = secrets.token_bytes(VERSION_BYTES)
            _write_all(self._handle, self._version)
        for part in parts:
            _write_all(self._handle, part)
            self._size += len(part)

    def _end(self) -> None:
        self._ended = True
        try:
            if self._draft is not None:
                self._room.drop_draft(self._draft)
        finally:
            self._draft = None
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1


class Reading:
    """A blob on its way out: one version of it, whatever is written meanwhile."""

    def __init__(self, room: RoomFolder, name: str, start: int, end: int | None) -> None:
        self._room = room
        self._name = name
        self._lock = threading.Lock()
        self._at = start
        self._end = end
        self._handle = -1
        self._closed = False

    def next(self, limit_bytes: int) -> bytes:
        """The next piece; empty at the end. Raises ``NotFound``."""
        with self._lock:
            if self._closed:
                return b""
            if self._handle < 0:
                try:
                    self._handle = self._room.open(self._name)
                except FileNotFoundError:
                    raise NotFound("file") from None
            wanted = limit_bytes if self._end is None else min(limit_bytes, self._end - self._at)
            piece = os.pread(self._handle, wanted, VERSION_BYTES + self._at)
            self._at += len(piece)
            return piece

    def close(self) -> None:
        """Let go of the file. May be called again."""
        with self._lock:
            self._closed = True
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1


def info_of(name: str, handle: int) -> BlobInfo:
    """What an open file says of its blob. A file too short to be one has the version ``damaged``."""
    version = os.pread(handle, VERSION_BYTES, 0)
    size = os.fstat(handle).st_size - VERSION_BYTES
    if size < 0:
        return BlobInfo(name, 0, "damaged")
    return BlobInfo(name, size, version.hex())


def _on_disk(name: str) -> list[str]:
    return (_CAPITAL.sub(lambda found: f"^{found[0].lower()}", name) + _MARK).split("/")


def _plain(on_disk: str) -> str:
    return _ESCAPED.sub(lambda found: found[1].upper(), on_disk)


def _write_all(handle: int, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(handle, view) :]


@contextlib.contextmanager
def _closing(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)
