"""The jobs database: an SQLite file of its own in the data folder, or PostgreSQL, which many servers share.

What DBOS keeps there is read back as JSON only. By itself it would also unpickle whatever a row calls a pickle, which
would let anybody who can write to the database run a program of theirs in this one.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog
from dbos import DBOSClient, Serializer
from dbos import _serialization as dbos_serialization
from dbos import error as dbos_error
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool

from nagaya.errors import SettingsInvalid
from nagaya.jobs.embedded import FILE
from nagaya.jobs.liveness import Liveness, LockedFiles, RenewedRows

SCHEMA: Final = "nagaya_jobs"
CONNECT_S: Final = 5
STATEMENT_MS: Final = 20_000
_CONNECTIONS: Final = {"sqlite": 1, "postgresql": 8}

_log = structlog.get_logger(__name__)


class PlainJson(Serializer):
    """What lies in the jobs database is JSON and nothing else."""

    def name(self) -> str:
        return "nagaya_json"

    def serialize(self, data: Any) -> str:
        if isinstance(data, BaseException):
            # Never its message, which may hold what a tenant wrote.
            data = {"error": type(data).__name__}
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False)

    def deserialize(cls, serialized_data: str) -> Any:
        found = json.loads(serialized_data)
        if isinstance(found, dict) and isinstance(found.get("args"), list):
            found["args"] = tuple(found["args"])
        return found


def _refuse_pickle(self: object, serialized_data: str) -> Any:
    raise TypeError("a pickle is never opened")


def harden() -> None:
    """Take from DBOS what it must not do here: unpickle, and write to the console. May be repeated."""
    # A stored row names its own format, so choosing another one for what is written would not be enough.
    dbos_serialization.DefaultSerializer.deserialize = _refuse_pickle  # type: ignore[method-assign,assignment]  # see the line above
    logger = logging.getLogger("dbos")
    if not any(isinstance(handler, _Forward) for handler in logger.handlers):
        logger.handlers[:] = [_Forward()]
        logger.propagate = False


class _Forward(logging.Handler):
    """Lines of DBOS as lines of ours: what happened and which kind of error, not the values it happened with."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        text = str(record.msg).split("\n")[0].split("[parameters")[0][:160]
        write = _log.error if record.levelno >= logging.ERROR else _log.warning
        write("the engine of background work reports", action="jobs.engine", said=text, error=error)


class JobsDatabase:
    """One jobs database: its engine, its tables and the signs of life in it. Opening and closing are for threads."""

    def __init__(self, url: str | None, folder: Path) -> None:
        """``url``: a ``postgresql://`` address; None for the embedded file in ``folder``. Raises
        ``SettingsInvalid``."""
        if url is None:
            self.url: URL = URL.create("sqlite", database=str(folder / FILE))
        else:
            self.url = _postgresql(url)
        self._folder = folder
        self._engine: sa.Engine | None = None

    @property
    def is_embedded(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def text(self) -> str:
        """The address as DBOS wants it, password included: never to be shown."""
        return self.url.render_as_string(hide_password=False)

    @property
    def engine(self) -> sa.Engine:
        assert self._engine is not None
        return self._engine

    def open(self) -> None:
        """Connect, and make or upgrade the tables. May be repeated."""
        if self._engine is not None:
            return
        harden()
        if self.is_embedded:
            # Nobody else may read which tenant has which jobs.
            os.close(os.open(str(self.url.database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        engine = self._make_engine()
        try:
            _migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def liveness(self) -> Liveness:
        if self.is_embedded:
            return LockedFiles(self._folder / "job-servers")
        return RenewedRows(self.engine, schema=SCHEMA)

    def _make_engine(self) -> sa.Engine:
        backend = self.url.get_backend_name()
        # A commit of the embedded file holds up the others of this process in a queue, not in SQLite's sleeps.
        pool: dict[str, Any] = {
            "poolclass": QueuePool,
            "pool_size": _CONNECTIONS[backend],
            "max_overflow": 0,
            "pool_timeout": 30,
        }
        if backend == "sqlite":
            engine = sa.create_engine(self.url, connect_args={"check_same_thread": False, "timeout": 30}, **pool)
            event.listen(engine, "connect", _prepare_sqlite)
            return engine
        options = f"-c statement_timeout={STATEMENT_MS} -c idle_in_transaction_session_timeout=60000"
        arguments = {"connect_timeout": CONNECT_S, "options": options, "application_name": "nagaya-jobs"}
        return sa.create_engine(self.url, connect_args=arguments, pool_pre_ping=True, **pool)


def _migrate(engine: sa.Engine) -> None:
    """Make or upgrade the tables of DBOS where they are not those of the installed one; a role that may not is then
    enough. Several servers may come at once."""
    # DBOS's own way in would also look for a database named "postgres", and make ours where it is missing.
    client = DBOSClient(system_database_engine=engine, dbos_system_schema=SCHEMA, serializer=PlainJson(), lazy=True)
    try:
        client._sys_db.verify_migrations()
    except dbos_error.DBOSInitializationError:
        client._sys_db.run_migrations()
    finally:
        client.destroy()


def _prepare_sqlite(connection: Any, _: object) -> None:
    # As DBOS prepares its own connections: a transaction that writes takes its lock at its beginning.
    connection.isolation_level = "IMMEDIATE"
    for pragma in (
        "busy_timeout=30000",
        "foreign_keys=ON",
        # The write-ahead log of the system's SQLite before 3.51.3 can lose a commit; the rollback journal cannot.
        "journal_mode=TRUNCATE",
        "synchronous=FULL",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _postgresql(text: str) -> URL:
    url = make_url(text)
    if url.get_backend_name() != "postgresql":
        raise SettingsInvalid(name="jobs", problem="expected postgresql://…")
    url = url.set(drivername="postgresql+psycopg")
    if "sslmode" not in url.query and not _is_here(url.host or ""):
        # Unencrypted or unchecked only where somebody wrote so.
        url = url.update_query_dict({"sslmode": "verify-full", "sslrootcert": "system"})
    return url


def _is_here(host: str) -> bool:
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
