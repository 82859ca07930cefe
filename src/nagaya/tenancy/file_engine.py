"""A registry's SQLite file: one connection and one thread, to which every transaction is handed whole.

The work of a transaction is a plain function over a connection, so its dozen statements cost one change of threads and
not several for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

T = TypeVar("T")

BUSY_MS: Final = 5_000
"""How long SQLite waits for another process's transaction."""

_WRITES: Final = "nagaya_writes"

_SQLITE_PRAGMAS: Final = (
    f"PRAGMA busy_timeout={BUSY_MS}",
    # The write-ahead log of the system's SQLite before 3.51.3 can lose a commit; the rollback journal cannot.
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    # Destroyed keys must not linger in free pages.
    "PRAGMA secure_delete=ON",
)


class FileEngine:
    """It implements :class:`nagaya.tenancy.database.RegistryEngine`. Opens the file when it is first used."""

    def __init__(self, path: Path, deadline_s: float) -> None:
        url = URL.create(
            "sqlite+pysqlite",
            database=f"file:{quote(str(path.absolute()))}",
            query={"mode": "rw", "uri": "true"},  # Never "rwc": a vanished registry must not come back empty.
        )
        engine = create_engine(url, pool_size=1, max_overflow=0, connect_args={"isolation_level": None})
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
        self._reader = engine
        self._writer = engine.execution_options(**{_WRITES: True})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nagaya-registry")
        self._turn = asyncio.Lock()
        self._deadline_s = deadline_s

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        # Whoever gave up while others had their turn is not in the thread's way afterwards.
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._turn.acquire()
        except TimeoutError as others:
            raise PoolTimeout from others
        try:
            engine = self._writer if write else self._reader
            return await asyncio.get_running_loop().run_in_executor(self._thread, _in_transaction, engine, work)
        finally:
            self._turn.release()

    async def dispose(self) -> None:
        async with self._turn:  # after those who wait for theirs
            await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.dispose)
            self._thread.shutdown(wait=False)


def _in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    try:
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    # A read is one statement, which needs no transaction around it.
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
