"""Which servers are alive, so that the jobs of one that died are begun again elsewhere, and only those.

On one machine the operating system says so: a server holds a lock on a file of its own, and a lock ends with its
process, however that ended. Between machines each server renews a row, by the database's own clock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa

DEAD_AFTER_S: Final = 20.0
"""Without a sign of life for so long, a server on another machine is taken for dead."""


class Liveness(Protocol):
    """The signs of life of the servers over one jobs database. Called in a thread; every method may be repeated."""

    def enter(self, server: str) -> None:
        """Be counted among the living."""
        ...

    def renew(self, server: str) -> bool:
        """Go on being counted. False where others took this server for dead and began its jobs again."""
        ...

    def dead(self, server: str) -> list[str]:
        """Servers that died; the caller, ``server``, begins their jobs again and then calls :meth:`bury`."""
        ...

    def bury(self, name: str) -> None: ...

    def leave(self, server: str, *, unfinished: bool) -> None:
        """Be alive no longer; ``unfinished`` says that others have something to take over."""
        ...


class LockedFiles:
    """For servers that share a folder: a locked file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    def enter(self, server: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / server
        # Locked before it has its name: nobody ever sees the file of a living server unlocked.
        making = path.with_name(f".{server}")
        held = os.open(making, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        making.rename(path)
        self._held[server] = held

    def renew(self, server: str) -> bool:
        return server in self._held  # the lock lasts as long as the process

    def dead(self, server: str) -> list[str]:
        found = []
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name in self._held:
                continue
            try:
                other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                found.append(path.name)
            finally:
                os.close(other)
        return found

    def bury(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def leave(self, server: str, *, unfinished: bool) -> None:
        held = self._held.pop(server, None)
        if held is None:
            return
        if not unfinished:
            (self._folder / server).unlink(missing_ok=True)
        os.close(held)


class RenewedRows:
    """For servers that share a PostgreSQL database: a row each, renewed every few seconds."""

    def __init__(self, engine: sa.Engine, *, schema: str, dead_after_s: float | None = None) -> None:
        self._engine = engine
        self._dead_after_s = DEAD_AFTER_S if dead_after_s is None else dead_after_s
        self._table = sa.Table(
            "nagaya_job_servers",
            sa.MetaData(schema=schema),
            sa.Column("name", sa.String(64), primary_key=True),
            sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        )
        self._now = sa.func.clock_timestamp()

    def enter(self, server: str) -> None:
        with self._engine.begin() as connection:
            # Two servers that start together would both make the table.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7594027)"))
            self._table.create(connection, checkfirst=True)
        self.renew(server)

    def renew(self, server: str) -> bool:
        with self._engine.begin() as connection:
            renewed = sa.update(self._table).where(self._table.c.name == server).values(seen_at=self._now)
            if connection.execute(renewed).rowcount:
                return True
            connection.execute(sa.insert(self._table).values(name=server, seen_at=self._now))
            return False

    def dead(self, server: str) -> list[str]:
        limit = sa.cast(sa.literal(f"{self._dead_after_s} seconds"), sa.Interval)
        late = sa.select(self._table.c.name).where(
            self._table.c.name != server, self._table.c.seen_at < self._now - limit
        )
        with self._engine.connect() as connection:
            return list(connection.execute(late).scalars())

    def bury(self, name: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(self._table).where(self._table.c.name == name))

    def leave(self, server: str, *, unfinished: bool) -> None:
        with self._engine.begin() as connection:
            mine = self._table.c.name == server
            if unfinished:
                connection.execute(sa.update(self._table).where(mine).values(seen_at=sa.func.to_timestamp(0)))
            else:
                connection.execute(sa.delete(self._table).where(mine))
