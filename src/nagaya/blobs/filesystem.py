"""Blobs in a folder: one folder per room, one file per blob. The storage of a company with one server.

A file is written under ``.parts/`` beside the room's blobs, synced, and moved into place; a crash leaves no half blob,
and what it leaves under ``.parts/`` is swept when the room is opened. Several processes may use one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from nagaya.adapters import Surroundings
from nagaya.blobs import room_folder
from nagaya.blobs.driver import BlobInfo
from nagaya.blobs.names import check_name, check_room
from nagaya.blobs.room_folder import Reading, RoomFolder, Upload
from nagaya.errors import InvalidValue, TenantExists

PIECE_BYTES: Final = 256 * 1024
"""Bytes of one piece that is read. A thread is asked once for each, while the last one is being worked on."""

_HAND_OVER_BYTES: Final = 512 * 1024
_THREADS: Final = 4
_GONE: Final = ".gone-"

_T = TypeVar("_T")


async def open_house(url: str, surroundings: Surroundings) -> FileBlobHouse:
    """The folder that ``file:///absolute/path`` names; it is made where it is not there yet.

    Raises ``InvalidValue`` for any other form, ``OSError`` where the folder cannot be made.
    """
    parts = urlsplit(url)
    folder = unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not folder.startswith("/") or "\0" in folder:
        raise InvalidValue(param="blobs", at="blobs", detail="use file:///absolute/path")
    house = FileBlobHouse(Path(folder))
    await house.prepare()
    return house


class FileBlobHouse:
    """All rooms in one folder. Its work is done in a few threads of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(_THREADS, "nagaya-blobs")

    async def prepare(self) -> None:
        """Make the folder, and finish removing rooms whose removal a crash interrupted."""
        await self._run(self._prepare)

    async def create(self, room: str) -> None:
        await self._run(self._create, check_room(room))

    async def open(self, room: str) -> FileBlobs:
        place = self._folder / check_room(room)
        await self._run(RoomFolder(place).sweep)
        return FileBlobs(place, self._pool)

    async def destroy(self, room: str) -> None:
        await self._run(self._destroy, check_room(room))

    async def size_bytes(self, room: str) -> int:
        return await self._run(_size_bytes, self._folder / check_room(room))

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for gone in self._folder.glob(f"{_GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)

    def _create(self, room: str) -> None:
        try:
            room_folder.make(self._folder / room)
        except FileExistsError:
            raise TenantExists(value=room) from None

    def _destroy(self, room: str) -> None:
        gone = self._folder / f"{_GONE}{secrets.token_hex(8)}"
        try:
            # Renamed first: from here on there is no such room, however long the removal takes.
            (self._folder / room).rename(gone)
        except FileNotFoundError:
            return
        room_folder.sync(self._folder)
        shutil.rmtree(gone)


class FileBlobs:
    """One room's blobs. See :class:`nagaya.blobs.driver.BlobDriver`."""

    def __init__(self, place: Path, pool: ThreadPoolExecutor) -> None:
        self._room = RoomFolder(place)
        self._pool = pool

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        upload = Upload(self._room, check_name(name))
        try:
            waiting: list[bytes] = []
            size = 0
            async for part in parts:
                waiting.append(part)
                size += len(part)
                del part  # held no longer than it takes to write it
                if size >= _HAND_OVER_BYTES:
                    await self._run(upload.write, waiting)
                    waiting, size = [], 0
            return await self._run(upload.commit, waiting, expect)
        except BaseException as failure:
            # In a thread of the pool, for it waits until a write that is under way has ended.
            abandoned = self._pool.submit(upload.abandon)
            if not isinstance(failure, asyncio.CancelledError):
                await asyncio.wrap_future(abandoned)
            raise

    async def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        reading = Reading(self._room, check_name(name), start, end)
        try:
            piece = await self._run(reading.next, PIECE_BYTES)
            while piece:
                ahead = asyncio.ensure_future(self._run(reading.next, PIECE_BYTES))
                try:
                    yield piece
                    del piece
                    piece = await ahead
                finally:
                    if not ahead.cancel() and not ahead.cancelled():
                        ahead.exception()  # looked at, for a reader that left early never asks
        finally:
            self._pool.submit(reading.close)

    async def read_cut(
        self, name: str, *, start: int, end: int | None, first: int, each: int
    ) -> AsyncGenerator[bytes, None]:
        # Nothing is read ahead: pieces may be large, and one in memory is enough.
        reading = Reading(self._room, check_name(name), start, end)
        try:
            size = first
            while piece := await self._run(reading.next, size):
                yield piece
                del piece
                size = each
        finally:
            self._pool.submit(reading.close)

    async def info(self, name: str) -> BlobInfo | None:
        return await self._run(self._room.info, check_name(name))

    async def delete(self, name: str) -> None:
        await self._run(self._room.delete, check_name(name))

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[BlobInfo]:
        return await self._run(self._room.page, prefix, after, limit)

    async def close(self) -> None:
        """Nothing is held open between two calls."""

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _size_bytes(place: Path) -> int:
    total = 0
    for folder, _, files in os.walk(place):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                total += os.lstat(os.path.join(folder, file)).st_size
    return total
