"""A registry on a PostgreSQL server: a few connections, reached encrypted unless its address says otherwise."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from nagaya.errors import MissingExtra, SettingsInvalid

T = TypeVar("T")

CONNECTIONS: Final = 5
"""From one process; and one more that listens."""

CONNECT_S: Final = 5.0

_WRITE_LOCK: Final = "SELECT pg_advisory_xact_lock(7594026)"
"""The counterpart of SQLite's BEGIN IMMEDIATE. It can be taken before there are tables."""


class ServerEngine:
    """It implements :class:`nagaya.tenancy.database.RegistryEngine`. Connects when it is first used. Raises
    ``MissingExtra`` and ``SettingsInvalid``."""

    def __init__(self, url: URL, deadline_s: float) -> None:
        self.connect_args = _connect_args(url, deadline_s)
        self._url = url.set(drivername="postgresql+asyncpg").difference_update_query(["sslmode"])
        self._writer = create_async_engine(
            self._url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=deadline_s,
            pool_pre_ping=True,
            connect_args=self.connect_args,
        )
        # A read is a single statement: no BEGIN and COMMIT around it, two round trips less.
        self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        engine = self._writer if write else self._reader
        async with engine.begin() as connection:
            if write:
                await connection.exec_driver_sql(_WRITE_LOCK)
            return await connection.run_sync(work)

    def listener(self) -> AsyncEngine:
        """An engine of one connection of its own, for :class:`nagaya.tenancy.bell.Bell`."""
        return create_async_engine(self._url, poolclass=NullPool, connect_args=self.connect_args)

    async def dispose(self) -> None:
        await self._writer.dispose()


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
