"""Which servers are alive, so that the jobs of one that died are begun again elsewhere, and only those.

On one machine the operating system says so: a server holds a lock on a file of its own, and a lock ends with its
process, however that ended. Between machines each server renews a row, by the database's own clock.
"""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa

DEAD_AFTER_S: Final = 20.0
"""Without a sign of life for so long, a server on another machine is taken for dead."""


class Liveness(Protocol):
    """The signs of life of the servers over one jobs database. Called in a thread; every method may be repeated."""

    @property
    def lasts_s(self) -> float:
        """How long after a sign of life was begun nobody takes this server for dead, by its own clock."""
        ...

    def enter(self, server: str) -> None:
        """Be counted among the living."""
        ...

    def renew(self, server: str) -> bool:
        """Go on being counted. False, and once only, where others took this server for dead: they begin its jobs
        again, those that it began before. What it begins afterwards is its own."""
        ...

    def dead(self, server: str) -> list[str]:
        """Servers that died, from now on for sure; the caller, ``server``, begins their jobs again and then calls
        :meth:`bury`."""
        ...

    def bury(self, name: str) -> None: ...

    def leave(self, server: str, *, unfinished: bool) -> None:
        """Be alive no longer; ``unfinished`` says that others have something to take over."""
        ...


class LockedFiles:
    """For servers that share a folder: a locked file each."""

    lasts_s = math.inf  # the lock lasts as long as the process, however long that stands still

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
        self._never = sa.func.to_timestamp(0)

    @property
    def lasts_s(self) -> float:
        # A tenth less: two machines' clocks do not run at quite the same pace.
        return self._dead_after_s * 0.9

    def enter(self, server: str) -> None:
        with self._engine.begin() as connection:
            # Two servers that start together would both make the table.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7594027)"))
            self._table.create(connection, checkfirst=True)
        self.renew(server)

    def renew(self, server: str) -> bool:
        with self._engine.begin() as connection:
            mine = self._table.c.name == server
            alive = sa.update(self._table).where(mine, self._table.c.seen_at > self._never)
            if connection.execute(alive.values(seen_at=self._now)).rowcount:
                return True
            connection.execute(sa.delete(self._table).where(mine))
            connection.execute(sa.insert(self._table).values(name=server, seen_at=self._now))
            return False

    def dead(self, server: str) -> list[str]:
        limit = sa.cast(sa.literal(f"{self._dead_after_s} seconds"), sa.Interval)
        late = (
            sa.update(self._table)
            .where(self._table.c.name != server, self._table.c.seen_at < self._now - limit)
            # Said of it here before its jobs are begun again: whoever wakes up in between learns of it.
            .values(seen_at=self._never)
            .returning(self._table.c.name)
        )
        with self._engine.begin() as connection:
            return list(connection.execute(late).scalars())

    def bury(self, name: str) -> None:
        with self._engine.begin() as connection:
            # Not one that has come back since.
            dead = self._table.c.seen_at <= self._never
            connection.execute(sa.delete(self._table).where(self._table.c.name == name, dead))

    def leave(self, server: str, *, unfinished: bool) -> None:
        with self._engine.begin() as connection:
            mine = self._table.c.name == server
            if unfinished:
                connection.execute(sa.update(self._table).where(mine).values(seen_at=self._never))
            else:
                connection.execute(sa.delete(self._table).where(mine))
