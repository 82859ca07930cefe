"""The registry's database: one engine, transactions that finish what they began, errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from nagaya.errors import (
    NagayaError,
    RegistryDamaged,
    RegistryUnreachable,
    SettingsInvalid,
    StoreFull,
    StoreReadOnly,
)
from nagaya.tenancy import schema
from nagaya.tenancy.bell import Bell
from nagaya.tenancy.file_engine import FileEngine

if TYPE_CHECKING:
    from nagaya.tenancy.server_engine import ServerEngine

T = TypeVar("T")


class RegistryEngine(Protocol):
    """Runs transactions. Raises SQLAlchemy's and the driver's own errors."""

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        """``work`` in one transaction: committed if it returns, rolled back if it raises. A writing one takes the
        registry's lock at its start."""
        ...

    async def dispose(self) -> None: ...


class RegistryDatabase:
    """The database behind a registry: ``sqlite:///path`` or ``postgresql://user:password@host/database``.

    SQLite has one connection in a process, so its own tasks queue instead of fighting for the lock. PostgreSQL is
    reached encrypted and its certificate checked, except on this machine or where ``?sslmode=`` says otherwise
    (``require``, ``disable``). Raises ``MissingExtra`` and ``SettingsInvalid``.
    """

    def __init__(self, url: str | URL, *, create: bool = True, deadline_s: float = 10.0) -> None:
        self.url = make_url(url)
        self.dialect = self.url.get_backend_name()
        self._deadline_s = deadline_s
        self._create = create
        self._engine: RegistryEngine | None = None
        self._file: tuple[int, int] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        if self.dialect == "sqlite" and self.url.database in (None, "", ":memory:"):
            raise SettingsInvalid(name="registry", problem="SQLite needs a file, such as sqlite:///registry.db")
        self._server = None if self.dialect == "sqlite" else self._server_engine()

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
        self._engine = self._server or FileEngine(Path(str(self.url.database)), self._deadline_s)
        try:
            await self.finish(self._prepare(phase))
        except BaseException:
            await self.close()
            raise
        # From now on a file that is gone is an error, and never again an empty registry.
        self._create = False

    async def close(self) -> None:
        """Let running transactions end, and those that come meanwhile, then close. May be repeated."""
        clock = asyncio.get_running_loop().time
        ends_s = clock() + self._deadline_s
        while self._running and (left_s := ends_s - clock()) > 0:
            await asyncio.wait(set(self._running), timeout=left_s)
        engine, self._engine = self._engine, None
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

    async def transaction(self, work: Callable[[Connection], T], *, write: bool = False) -> T:
        """Run ``work`` in one transaction; commit if it returns, roll back if it raises. It may run in another thread.

        A writing transaction takes the registry's lock at its start, so what it read is still true when it writes.
        Call it inside :meth:`finish`.
        """
        engine = self._engine
        if engine is None:
            raise RegistryUnreachable(detail="it is not open")
        if self.dialect == "sqlite" and self._file_now() != self._file:
            # An open handle would go on writing into a file that nobody can find any more.
            raise RegistryUnreachable(detail="its file was removed or replaced")
        try:
            return await engine.run(work, write=write)
        except (SQLAlchemyError, sqlite3.Error, OSError) as failure:
            raise self._in_our_words(failure) from failure

    def bell(self, ring: Callable[[int], None]) -> Bell | None:
        """What rings at every change that any server commits; None where the database cannot tell."""
        return None if self._server is None else Bell(self._server.listener, ring)

    async def _prepare(self, phase: str | None) -> None:
        def work(connection: Connection) -> None:
            if self.dialect == "sqlite":
                answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
                if answer != "ok":
                    raise RegistryDamaged(place=self.place)
            schema.prepare(connection, self.place, self._create, phase)

        await self.transaction(work, write=True)

    def _server_engine(self) -> ServerEngine:
        # Imported where it is needed: one folder on one machine starts without it.
        from nagaya.tenancy.server_engine import ServerEngine

        return ServerEngine(self.url, self._deadline_s)

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
        return self._engine is None or (self.dialect == "sqlite" and self._file_now() not in (None, self._file))

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
