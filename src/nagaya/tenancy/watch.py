"""Following other processes' changes to the registry, and knowing how old one's own knowledge is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from nagaya.errors import NagayaError
from nagaya.kernel.clock import Clock
from nagaya.tenancy import rows, schema
from nagaya.tenancy.bindings import Revocation
from nagaya.tenancy.database import RegistryDatabase
from nagaya.tenancy.refusals import Refusals
from nagaya.tenancy.rows import ChangeNote

POLL_S: Final = 0.5
FRESH_S: Final = 30.0
"""Past this age nothing cached is served: a revocation could have been missed."""

TIDY_S: Final = 60.0
KEEP_CHANGES_US: Final = 3_600 * 1_000_000
"""A process that slept for longer finds a gap in the serials and drops everything."""

KEEP_REVOCATIONS_US: Final = 24 * 3_600 * 1_000_000
"""Kept this long past their end, so that a clock which jumps ahead and back brings no refused token to life."""

_log = structlog.get_logger(__name__)


class Watcher:
    """Polls the registry's serial and hands every change, once and in order, to ``forget``."""

    def __init__(
        self, database: RegistryDatabase, clock: Clock, refusals: Refusals, forget: Callable[[ChangeNote], None]
    ) -> None:
        self._database = database
        self._clock = clock
        self._refusals = refusals
        self._forget = forget
        self._serial = 0
        self._seen_at_s: float | None = None
        self._tidied_at_s = clock.monotonic_s()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def is_fresh(self) -> bool:
        return self._seen_at_s is not None and self._clock.monotonic_s() - self._seen_at_s < FRESH_S

    def saw_own(self, serial: int) -> None:
        """A change of this process was recorded and forgotten already; do not read it again if it is the next."""
        if serial == self._serial + 1:
            self._serial = serial

    async def open(self) -> None:
        """Open the database and load everything that must be in memory; whatever was cached before is dropped."""
        await self._database.open()
        await self._load()

    def start(self) -> None:
        """Watch in a task of its own until ``stop()``."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._watch(), name="registry-watcher")

    async def stop(self) -> None:
        """Let a poll that runs end, then stop. May be repeated."""
        self._stopping.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait({task})
        self._seen_at_s = None

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), POLL_S)
                return
            try:
                await self.poll()
                await self.tidy()
                if self._failing:
                    self._failing = False
                    _log.info("the registry answers again", action="registry.poll_recovered")
            except Exception as failure:
                # Whatever it was, the watcher goes on; is_fresh() tells everybody how long it has been.
                if not self._failing:
                    self._failing = True
                    _log.warning("the registry cannot be read", action="registry.poll_failed", error=repr(failure))
                await self._open_again()

    async def _open_again(self) -> None:
        if self._database.must_open_again():
            # Put back from a backup: another file under the same name. Everything known may be wrong.
            try:
                await self.open()
            except NagayaError as failure:
                _log.warning("the registry cannot be opened", action="registry.open_failed", error=repr(failure))

    async def poll(self) -> None:
        """Read what changed since the last poll and drop it. One query where nothing did."""
        began_s = self._clock.monotonic_s()
        place = self._database.place

        async def work(connection: AsyncConnection) -> tuple[int, list[ChangeNote] | None, list[Revocation]]:
            newest, notes = await rows.changes_after(connection, self._serial)
            revoked = sorted({note.tenant_id for note in notes or () if note.kind == "revocations" and note.tenant_id})
            found: list[Revocation] = []
            for start in range(0, len(revoked), 500):
                found += await rows.find_revocations(connection, place, tenant_ids=revoked[start : start + 500])
            return newest, None if notes is None else list(notes), found

        newest, notes, revoked = await self._database.finish(self._database.transaction(work))
        if notes is None:
            await self._load()
            return
        for revocation in revoked:
            self._refusals.add(revocation)
        for note in notes:
            self._forget(note)
        self._serial = max(self._serial, newest)
        self._seen_at_s = began_s

    async def tidy(self) -> None:
        """Once a minute, drop rows that nobody needs any more."""
        if self._clock.monotonic_s() - self._tidied_at_s < TIDY_S:
            return
        self._tidied_at_s = self._clock.monotonic_s()
        now_us = self._clock.now_us()
        limits = {
            "changes_before_us": now_us - KEEP_CHANGES_US,
            "revocations_before_us": now_us - KEEP_REVOCATIONS_US,
        }
        self._refusals.forget_ended(limits["revocations_before_us"])
        run, finish = self._database.transaction, self._database.finish
        if await finish(run(lambda connection: rows.anything_old(connection, **limits))):
            await finish(run(lambda connection: rows.forget_old(connection, **limits), write=True))

    async def _load(self) -> None:
        began_s = self._clock.monotonic_s()

        async def work(connection: AsyncConnection) -> tuple[int, list[Revocation]]:
            serial: int = (await connection.execute(select(schema.registry.c.serial))).scalar_one()
            return serial, list(await rows.find_revocations(connection, self._database.place))

        self._serial, revocations = await self._database.finish(self._database.transaction(work))
        for revocation in revocations:
            # Added, not replaced: a registry put back from a backup brings no refused token to life here.
            self._refusals.add(revocation)
        self._forget(ChangeNote(None, "all"))
        self._seen_at_s = began_s
