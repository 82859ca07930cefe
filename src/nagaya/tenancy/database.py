"""The registry's database: one engine, transactions that finish what they began, errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import sqlite3
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from nagaya.errors import (
    MissingExtra,
    NagayaError,
    RegistryDamaged,
    RegistryUnreachable,
    SettingsInvalid,
    StoreFull,
    StoreReadOnly,
)
from nagaya.tenancy import schema
from nagaya.tenancy.bell import Bell

T = TypeVar("T")

BUSY_MS: Final = 5_000
"""How long SQLite waits for another process's transaction."""

CONNECTIONS: Final = 5
"""To a server's database, from one process; and one more that listens."""

CONNECT_S: Final = 5.0

_WRITES: Final = "nagaya_writes"
_WRITE_LOCK: Final = "SELECT pg_advisory_xact_lock(7594026)"
"""PostgreSQL's counterpart of SQLite's BEGIN IMMEDIATE. It can be taken before there are tables."""

_SQLITE_PRAGMAS: Final = (
    f"PRAGMA busy_timeout={BUSY_MS}",
    # The write-ahead log of the system's SQLite before 3.51.3 can lose a commit; the rollback journal cannot.
    "PRAGMA journal_mode=DELETE",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    # Destroyed keys must not linger in free pages.
    "PRAGMA secure_delete=ON",
)


class RegistryDatabase:
    """The database behind a registry: ``sqlite+aiosqlite:///path`` or ``postgresql://user:password@host/database``.

    SQLite has one connection in a process, so its own tasks queue instead of fighting for the lock. PostgreSQL is
    reached encrypted and its certificate checked, except on this machine or where ``?sslmode=`` says otherwise
    (``require``, ``disable``). Raises ``MissingExtra`` and ``SettingsInvalid``.
    """

    def __init__(self, url: str | URL, *, create: bool = True, deadline_s: float = 10.0) -> None:
        self.url = make_url(url)
        self.dialect = self.url.get_backend_name()
        self._connect_args: dict[str, Any] = {}
        if self.dialect == "postgresql":
            self._connect_args = _connect_args(self.url, deadline_s)
            self.url = self.url.set(drivername="postgresql+asyncpg").difference_update_query(["sslmode"])
        self._deadline_s = deadline_s
        self._create = create
        self._reader: AsyncEngine | None = None
        self._writer: AsyncEngine | None = None
        self._file: tuple[int, int] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        if self.dialect == "sqlite" and self.url.database in (None, "", ":memory:"):
            raise SettingsInvalid(
                name="registry", problem="SQLite needs a file, such as sqlite+aiosqlite:///registry.db"
            )

    @property
    def place(self) -> str:
        """The database's name without user, password or folder: safe to show."""
        return Path(self.url.database or "").name

    async def open(self, *, phase: Literal["pre", "post"] | None = None) -> None:
        """Connect; make or upgrade the tables (``phase``: as :func:`nagaya.tenancy.schema.prepare` says). Raises
        ``RegistryNewer``, ``RegistryDamaged``, ``RegistryUnreachable``, ``StoreFull`` or ``StoreReadOnly``. May be
        repeated after any of them."""
        await self.close()
        if self.dialect == "sqlite":
            self._file = self._touch_file()
        engine = self._make_engine()
        self._writer = engine.execution_options(**{_WRITES: True})
        # Reads on a server are single statements: no BEGIN and COMMIT around them, two round trips less.
        self._reader = engine if self.dialect == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            await self.finish(self._prepare(phase))
        except BaseException:
            await self.close()
            raise
        # From now on a file that is gone is an error, and never again an empty registry.
        self._create = False

    async def close(self) -> None:
        """Let running transactions end, then close. May be repeated."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=self._deadline_s)
        engine, self._reader, self._writer = self._reader, None, None
        if engine is not None:
            await engine.dispose()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end even if the caller is cancelled or the deadline passes: a cancelled request leaves
        nothing half done, and nothing done unnoticed. Raises ``RegistryUnreachable`` at the deadline; whether a
        write was kept is then not known."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._deadline_s)
        if not done:
            raise RegistryUnreachable(detail=f"no answer within {self._deadline_s:g} s")
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # Marks it as seen: the caller may have gone.

    async def transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], *, write: bool = False) -> T:
        """Run ``work`` in one transaction; commit if it returns, roll back if it raises.

        A writing transaction takes the registry's lock at its start, so what it read is still true when it writes.
        Call it inside :meth:`finish`.
        """
        engine = self._writer if write else self._reader
        if engine is None:
            raise RegistryUnreachable(detail="it is not open")
        if self.dialect == "sqlite" and self._file_now() != self._file:
            # An open handle would go on writing into a file that nobody can find any more.
            raise RegistryUnreachable(detail="its file was removed or replaced")
        try:
            async with engine.begin() as connection:
                if write and self.dialect == "postgresql":
                    await connection.exec_driver_sql(_WRITE_LOCK)
                return await work(connection)
        except (SQLAlchemyError, sqlite3.Error, OSError) as failure:
            raise self._in_our_words(failure) from failure

    def bell(self, ring: Callable[[int], None]) -> Bell | None:
        """What rings at every change that any server commits; None where the database cannot tell."""
        return Bell(self._listener_engine, ring) if self.dialect == "postgresql" else None

    def _listener_engine(self) -> AsyncEngine:
        return create_async_engine(self.url, poolclass=NullPool, connect_args=self._connect_args)

    async def _prepare(self, phase: str | None) -> None:
        async def work(connection: AsyncConnection) -> None:
            if self.dialect == "sqlite":
                answer = (await connection.exec_driver_sql("PRAGMA quick_check(1)")).scalar_one()
                if answer != "ok":
                    raise RegistryDamaged(place=self.place)
            await connection.run_sync(schema.prepare, self.place, self._create, phase)

        await self.transaction(work, write=True)

    def _make_engine(self) -> AsyncEngine:
        if self.dialect != "sqlite":
            return create_async_engine(
                self.url,
                pool_size=CONNECTIONS,
                max_overflow=0,
                pool_timeout=self._deadline_s,
                pool_pre_ping=True,
                connect_args=self._connect_args,
            )
        path = Path(self.url.database or "").absolute()
        url = URL.create(
            self.url.drivername,
            database=f"file:{quote(str(path))}",
            query={"mode": "rw", "uri": "true"},  # Never "rwc": a vanished registry must not come back empty.
        )
        engine = create_async_engine(
            url, pool_size=1, max_overflow=0, pool_timeout=self._deadline_s, connect_args={"isolation_level": None}
        )
        event.listen(engine.sync_engine, "connect", _set_pragmas)
        event.listen(engine.sync_engine, "begin", _begin)
        return engine

    def _touch_file(self) -> tuple[int, int]:
        """Make the file where it may be made, readable by its owner only."""
        path = str(self.url.database)
        try:
            os.close(os.open(path, os.O_RDWR | (os.O_CREAT if self._create else 0) | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise RegistryUnreachable(detail=f"there is no file {self.place}") from None
        except OSError as failure:
            raise self._in_our_words(failure) from failure
        file = self._file_now()
        if file is None:
            raise RegistryUnreachable(detail="its file was removed or replaced")
        return file

    def must_open_again(self) -> bool:
        """Whether only ``open()`` can help: it is closed, or (SQLite) another file lies where the opened one lay."""
        return self._reader is None or (self.dialect == "sqlite" and self._file_now() not in (None, self._file))

    def _file_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(str(self.url.database))
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _in_our_words(self, failure: Exception) -> NagayaError:
        if isinstance(failure, OSError):
            if failure.errno in (errno.ENOSPC, errno.EDQUOT):
                return StoreFull()
            if failure.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                return StoreReadOnly()
            return RegistryUnreachable(detail=failure.strerror or "the operating system refused")
        if isinstance(failure, PoolTimeout):
            return RegistryUnreachable(detail="it is busy")
        cause = failure.orig if isinstance(failure, DBAPIError) else failure
        state = getattr(cause, "sqlstate", None)
        if state is not None:
            return self._server_error(str(state))
        text = str(cause).lower()
        if "is full" in text:
            return StoreFull()
        if "readonly" in text or "read-only" in text:
            return StoreReadOnly()
        if "not a database" in text or "malformed" in text or "no such table" in text or "no such column" in text:
            return RegistryDamaged(place=self.place)
        return RegistryUnreachable(detail=type(cause).__name__)

    def _server_error(self, state: str) -> NagayaError:
        """What PostgreSQL's SQLSTATE means."""
        if state == "53100":
            return StoreFull()
        if state == "25006":
            return StoreReadOnly()
        if state in ("42P01", "42703", "XX001", "XX002"):
            return RegistryDamaged(place=self.place)
        detail = {
            "28P01": "it refused the user or password",
            "28000": "it refused the user or password",
            "3D000": f"there is no database {self.place}",
            "42501": "its role lacks a permission",
        }.get(state, f"it answered with {state}")
        return RegistryUnreachable(detail=detail)


def _connect_args(url: URL, deadline_s: float) -> dict[str, Any]:
    if importlib.util.find_spec("asyncpg") is None:
        raise MissingExtra(feature="postgresql://", extra="postgres")
    near = url.host in (None, "localhost", "127.0.0.1", "::1")
    mode = url.query.get("sslmode", "disable" if near else "verify-full")
    if mode not in ("verify-full", "require", "disable"):
        raise SettingsInvalid(name="registry", problem="sslmode is verify-full, require or disable")
    tls: ssl.SSLContext | bool = False
    if mode != "disable":
        tls = ssl.create_default_context()
        if mode == "require":
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
    # An acknowledged change is on the disk, whatever the server's default.
    session = {"application_name": "nagaya", "synchronous_commit": "on"}
    return {"timeout": min(CONNECT_S, deadline_s), "ssl": tls, "server_settings": session}


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    try:
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
    finally:
        cursor.close()


def _begin(connection: Any) -> None:
    # A read is one statement, which needs no transaction around it.
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
