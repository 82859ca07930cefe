"""Files that a tenant's people keep, in the shapes of OpenAI's API.

Where things lie: the head in partition ``file/<id>`` (see :mod:`nagaya.context.library.owned` for the lists), the
bytes in the sealed blob ``file/<id>.<upload>`` that the head names. ``files-ending/all`` holds what ends by itself or
is being deleted, by when (sort: 8 bytes of microseconds, then the id).

The bytes come first and the head after them, so a file that can be seen is whole. Whoever dies between the two leaves a
blob that nobody sees; :func:`sweep_uploads` removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, Literal, NamedTuple, cast

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.library.owned import Held, Order, Owned, OwnedHead
from nagaya.context.lone_records import put_unless_there, remove_one
from nagaya.errors import (
    BlobTooLarge,
    ConditionFailed,
    Conflict,
    InvalidValue,
    MissingParameter,
    NagayaError,
    NoBlobStore,
    NotFound,
    TooSlow,
)
from nagaya.kernel.ids import is_id, new_id
from nagaya.records.sealed_store import Partition
from nagaya.usage.meter import Meter, Metric

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MAX_NAME: Final = 255
MAX_PAGE: Final = 10_000
"""Files that may be asked for at once (OpenAI's limit)."""
SHOWN_AT_ONCE: Final = 1_000
"""Files that one page has at most, whatever was asked for; ``has_more`` says that more follow."""
PURPOSES: Final = ("assistants", "user_data", "vision")
SHORTEST_S: Final = 3_600
LONGEST_S: Final = 2_592_000
ORPHAN_S: Final = 86_400

_BEGUN_US: Final = 60_000_000
_FOREIGN: Final = {"batch": "batches", "fine-tune": "fine-tuning", "evals": "evaluations"}
_ENDING: Final = Partition("files-ending", "all")
_ATTEMPTS: Final = 16
_PAGE: Final = 90
_BLOBS: Final = "file/"
_log = structlog.get_logger(__name__)

Purpose = Literal["assistants", "user_data", "vision"]


class FileObject(msgspec.Struct, kw_only=True, frozen=True):
    """A file as it is shown. Times are in Unix seconds; ``shared`` is Nagaya's own."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    object: Literal["file"] = "file"
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | msgspec.UnsetType = msgspec.UNSET
    shared: bool = False


class FileDetails(msgspec.Struct, kw_only=True, frozen=True):
    """What is said of a file besides its bytes. ``expires_after_s``: 3,600 to 2,592,000 seconds; None: it stays."""

    filename: str
    purpose: str
    media_type: str = "application/octet-stream"
    shared: bool = False
    expires_after_s: int | None = None


class FilePage(NamedTuple):
    """A page of files; ``cursor`` asks for the next one, None at the end."""

    data: list[FileObject]
    cursor: str | None


class _Head(OwnedHead, kw_only=True, omit_defaults=True):
    filename: str
    purpose: Purpose
    media_type: str
    size: int
    sha256: str
    blob: str
    seal: str


OnDelete = Callable[[TenantSession, str], Awaitable[None]]
"""Removes what was made of a file; given the session and the file's id. Must be harmless to repeat."""

_Parts = AsyncIterable[bytes]


def _owned(session: TenantSession) -> Owned[_Head]:
    return Owned(session, _Head, collection="file", prefix="file", name="file")


def _shown(head: _Head) -> FileObject:
    return FileObject(
        id=head.id,
        bytes=head.size,
        created_at=head.created_at_us // 1_000_000,
        filename=head.filename,
        purpose=head.purpose,
        expires_at=head.expires_at_us // 1_000_000 or msgspec.UNSET,
        shared=head.shared,
    )


def new_blob(file_id: str) -> str:
    """A fresh name for a blob that is to hold the file's bytes. Two uploads of one id (a request and its repeat) so
    never write over each other, and the name says when its upload began."""
    return f"{_BLOBS}{file_id}.{new_id('upload').rpartition('_')[2]}"


class Files:
    """One caller's view of a tenant's files.

    A user sees its own; a ``member`` also reads shared ones; a ``tenant_admin`` reads and changes all of the tenant.
    What is not there and what is somebody else's answer alike: ``NotFound``. Where the tenant has no place for files,
    ``NoBlobStore``.
    """

    __slots__ = ("_meter", "_on_delete", "_owned", "_session")

    def __init__(
        self, session: TenantSession, meter: Meter | None = None, *, on_delete: Sequence[OnDelete] = ()
    ) -> None:
        self._session = session
        self._meter = meter
        self._on_delete = on_delete
        self._owned = _owned(session)

    async def create(
        self,
        filename: str,
        parts: _Parts,
        *,
        purpose: str = "user_data",
        media_type: str = "application/octet-stream",
        shared: bool = False,
        expires_after_s: int | None = None,
        file_id: str | None = None,
    ) -> FileObject:
        """Keep a file of the caller's, whole or not at all. At most ``MAX_FILE_BYTES``, else ``BlobTooLarge``.

        With ``file_id`` (as an idempotent request has one) repeating gives the file made before.
        """
        details = FileDetails(
            filename=filename,
            purpose=purpose,
            media_type=media_type,
            shared=shared,
            expires_after_s=expires_after_s,
        )
        check_details(details)
        return await self.receive(parts, lambda: details, file_id=file_id)

    async def receive(
        self, parts: _Parts, details: Callable[[], FileDetails], *, file_id: str | None = None
    ) -> FileObject:
        """As :meth:`create`, where the details may come after the bytes: asked for once these are through, and before
        anything is kept."""
        self._session.may_write()
        new = file_id or new_id("file")
        if file_id is not None and await self._owned.stored(file_id) is not None:
            return await self.retrieve(file_id)
        arriving, blob = _Arriving(parts, details), new_blob(new)
        blobs = await self._session.blobs()
        async with aclosing(arriving.parts()) as given:
            written = await blobs.put(blob, given)
        told = arriving.told
        assert told is not None
        now_us = self._session.clock.now_us()
        head = _Head(
            id=new,
            owner=self._session.entrance.principal.user_key,
            created_at_us=now_us,
            shared=told.shared,
            filename=clean_name(told.filename),
            purpose=cast("Purpose", told.purpose),
            media_type=told.media_type,
            size=arriving.size,
            sha256=arriving.digest.hexdigest(),
            blob=blob,
            seal=written.seal,
        )
        try:
            if now_us - _begun_us(blob.rpartition(".")[2]) > ORPHAN_S * 1_000_000 // 2:
                # Nobody may take it for dead while its head is being written.
                raise TooSlow(limit_s=ORPHAN_S // 2)
            if told.expires_after_s is not None:
                head.expires_at_us = now_us + told.expires_after_s * 1_000_000
                await _note_ending(self._session, new, head.expires_at_us)
            is_new = await self._owned.add(head)
        except Exception:
            if not await self._is_kept(head):
                await blobs.delete(blob)
            raise
        if not is_new:
            # A repeat of the same request was first.
            await blobs.delete(blob)
            return await self.retrieve(new)
        if self._meter is not None:
            self._meter.count(self._session.tenant, Metric.STORED_BYTES, head.size)
        return _shown(head)

    async def _is_kept(self, head: _Head) -> bool:
        """Whether the head lies in the store, though it was not said. Where it does not, its place is taken by that of
        a deleted file, for it may be on its way still: a file that is seen has its bytes."""
        if await self._owned.stored(head.id) is None:
            gone = msgspec.structs.replace(head, ended=True)
            with contextlib.suppress(NagayaError):
                await _note_ending(self._session, head.id, self._session.clock.now_us())
                await self._owned.replace(Held(gone, 0))
        held = await self._owned.stored(head.id)
        return held is not None and held.head.blob == head.blob and not held.head.ended

    async def retrieve(self, file_id: str) -> FileObject:
        """The file without its bytes, or ``NotFound``."""
        return _shown((await self._owned.head(file_id)).head)

    async def content(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The file's bytes in pieces of at most 1 MiB, each proven before it is given. Raises ``NotFound`` at the
        first piece. Close the iterator (``aclosing``) where it may be left early."""
        async with aclosing(_content(self._session, (await self._owned.head(file_id)).head)) as pieces:
            async for piece in pieces:
                yield piece

    async def list(
        self,
        *,
        purpose: str | None = None,
        user: str | None = None,
        shared: bool = False,
        after: str | None = None,
        limit: int = SHOWN_AT_ONCE,
        order: Order = "desc",
    ) -> FilePage:
        """The caller's files, newest first; ``shared``: the tenant's shared ones; ``user``: for an admin. ``after``: a
        file's id or a cursor; ``limit``: 1 to 10,000, of which a page has at most ``SHOWN_AT_ONCE``."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidValue(param="limit", at="limit", detail=f"expected 1 to {MAX_PAGE}, got {limit}")
        found = await self._owned.page(
            matching=None if purpose is None else ("purpose", purpose),
            user=user,
            shared=shared,
            after=after,
            limit=min(limit, SHOWN_AT_ONCE),
            order=order,
        )
        return FilePage([_shown(head) for head in found.heads], found.cursor)

    async def delete(self, file_id: str) -> None:
        """Delete the file and what was made of it: after it returns nothing of it can be read. May be repeated where it
        failed half-way."""
        self._session.may_write()
        for _ in range(_ATTEMPTS):
            head, revision = await self._owned.head(file_id, writing=True, ended=True)
            if not head.ended:
                # Noted before, so that whoever dies half-way leaves it to the daily work.
                await _note_ending(self._session, file_id, self._session.clock.now_us())
                head.ended = True
                try:
                    await self._owned.replace(Held(head, revision))
                except ConditionFailed:
                    continue
            await _remove(self._session, head, self._on_delete)
            return
        raise Conflict


async def _content(session: TenantSession, head: _Head) -> AsyncGenerator[bytes, None]:
    blobs = await session.blobs()
    try:
        async with aclosing(blobs.read(head.blob, seal=head.seal)) as pieces:
            async for piece in pieces:
                session.check()
                yield piece
    except NotFound:
        # Deleted while its first bytes were being asked for.
        raise NotFound("file") from None


async def content_for(session: TenantSession, file_id: str, user: str | None) -> AsyncGenerator[bytes, None]:
    """A file's bytes for work that ``user`` once asked for and that goes on without him: its own, or a shared one.
    None: whosever it is, where an administrator asked. Raises ``NotFound`` at the first piece."""
    held = await _owned(session).stored(file_id)
    if held is None or not held.head.is_there(session.clock.now_us()):
        raise NotFound("file")
    if user is not None and held.head.owner != user and not held.head.shared:
        raise NotFound("file")
    async with aclosing(_content(session, held.head)) as pieces:
        async for piece in pieces:
            yield piece


class _Arriving:
    """A file's bytes on their way in: counted, digested, and followed by what is said of it."""

    def __init__(self, parts: _Parts, details: Callable[[], FileDetails]) -> None:
        self._parts = parts
        self._details = details
        self.size = 0
        self.digest = hashlib.sha256()
        self.told: FileDetails | None = None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        async for part in self._parts:
            self.size += len(part)
            if self.size > MAX_FILE_BYTES:
                raise BlobTooLarge(limit_bytes=MAX_FILE_BYTES)
            self.digest.update(part)
            yield part
        self.told = self._details()
        check_details(self.told)


def check_details(details: FileDetails) -> None:
    """Raise what is wrong with them, naming the parameter."""
    if not details.purpose:
        raise MissingParameter(param="purpose", at="purpose")
    if details.purpose in _FOREIGN:
        raise InvalidValue(
            param="purpose",
            at="purpose",
            detail=f"'{details.purpose}' is for {_FOREIGN[details.purpose]}, which this server does not do",
        )
    if details.purpose not in PURPOSES:
        raise InvalidValue(param="purpose", at="purpose", detail="expected one of " + ", ".join(PURPOSES))
    clean_name(details.filename)
    if details.expires_after_s is not None and not SHORTEST_S <= details.expires_after_s <= LONGEST_S:
        at = "expires_after[seconds]"
        raise InvalidValue(param=at, at=at, detail=f"expected {SHORTEST_S} to {LONGEST_S}")


def clean_name(name: str) -> str:
    """The last part of a path, without what no name needs: controls, halves of characters, direction marks.

    Raises ``InvalidValue`` for more than 255 characters. What has nothing left is called ``file``.
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(letter for letter in last if _is_plain(letter)).strip().strip(".").strip()
    if len(kept) > MAX_NAME:
        raise InvalidValue(param="file", at="file", detail=f"a file's name has at most {MAX_NAME} characters")
    return kept or "file"


_JOINERS: Final = frozenset("\u200c\u200d")


def _is_plain(letter: str) -> bool:
    return letter in _JOINERS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


async def _note_ending(session: TenantSession, file_id: str, when_us: int) -> None:
    await put_unless_there(session, _ENDING, when_us.to_bytes(8, "big") + file_id.encode())


async def _remove(session: TenantSession, head: _Head, on_delete: Sequence[OnDelete]) -> None:
    for forget in on_delete:
        await forget(session, head.id)
    await (await session.blobs()).delete(head.blob)
    await _owned(session).remove(head)


async def end_files(session: TenantSession, on_delete: Sequence[OnDelete] = ()) -> int:
    """Remove the files whose term is over, and finish deletions that were cut off; gives how many. May be repeated."""
    owned, now_us, ended = _owned(session), session.clock.now_us(), 0
    while True:
        # Not the newest: a deletion says that it begins before it marks the file.
        due = await session.records.query(_ENDING, before=(now_us - _BEGUN_US).to_bytes(8, "big"), limit=_PAGE)
        for row in due:
            held = await owned.stored(row.sort[8:].decode())
            if held is not None and not held.head.is_there(now_us):
                await _remove(session, held.head, on_delete)
                ended += 1
            await remove_one(session, _ENDING, row.sort)
        if len(due) < _PAGE:
            break
    if ended:
        _log.info("files ended", action="files.ended", tenant=session.tenant.id, files=ended)
    return ended


async def sweep_uploads(session: TenantSession) -> int:
    """Remove the bytes of uploads that a crash cut off before their file could be seen, a day after they began; gives
    how many. May be repeated."""
    try:
        blobs = await session.blobs()
    except NoBlobStore:
        return 0
    owned, before_us, removed = _owned(session), session.clock.now_us() - ORPHAN_S * 1_000_000, 0
    async with aclosing(blobs.list_all(prefix=_BLOBS)) as found:
        async for blob in found:
            file_id, _, upload = blob.name.removeprefix(_BLOBS).partition(".")
            if not is_id("upload", f"upload_{upload}") or _begun_us(upload) >= before_us:
                continue
            held = await owned.stored(file_id)
            if held is None or held.head.blob != blob.name:
                await blobs.delete(blob.name)
                removed += 1
    if removed:
        _log.info("lost uploads removed", action="files.swept", tenant=session.tenant.id, blobs=removed)
    return removed


def _begun_us(upload: str) -> int:
    """When an upload began: its id says so."""
    return int(upload[:12], 16) * 1000
