"""Following other processes' changes to the registry, and knowing how old one's own knowledge is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import Connection, select

from nagaya.errors import NagayaError
from nagaya.kernel.clock import Clock
from nagaya.tenancy import rows, schema
from nagaya.tenancy.bindings import Revocation
from nagaya.tenancy.database import RegistryDatabase
from nagaya.tenancy.directory import Pulse
from nagaya.tenancy.refusals import Refusals
from nagaya.tenancy.rows import ChangeNote

POLL_S: Final = 0.5
HEARD_POLL_S: Final = 10.0
"""Where every change is heard of at once: three polls may fail before what is cached must not be served."""

FRESH_S: Final = 30.0
"""Past this age nothing cached is served: a revocation could have been missed."""

BELL_S: Final = 5.0
"""How long listening may take to begin."""

TIDY_S: Final = 60.0
KEEP_CHANGES_US: Final = 3_600 * 1_000_000
"""A process that slept for longer finds a gap in the serials and drops everything."""

KEEP_REVOCATIONS_US: Final = 24 * 3_600 * 1_000_000
"""Kept this long past their end, so that a clock which jumps ahead and back brings no refused token to life."""

_log = structlog.get_logger(__name__)


class Watcher:
    """Reads the registry's serial and hands every change, once and in order, to ``forget``: as soon as it is heard
    of where the database can tell, by polling where it cannot or has fallen silent."""

    def __init__(
        self,
        database: RegistryDatabase,
        clock: Clock,
        refusals: Refusals,
        pulse: Pulse,
        forget: Callable[[ChangeNote], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._refusals = refusals
        self._forget = forget
        self._pulse = pulse
        self._serial = 0
        self._tidied_at_s = clock.monotonic_s()
        self._stopping = False
        self._woken = asyncio.Event()
        self._bell = database.bell(self.ring)
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._deaf = False

    def is_fresh(self) -> bool:
        return self._clock.monotonic_s() < self._pulse.fresh_until_s

    def saw_own(self, serial: int) -> bool:
        """A change of this process is recorded; do not read it again if it is the next. False where a poll was
        quicker and has dropped what it concerns."""
        if serial == self._serial + 1:
            self._serial = serial
            return True
        return serial > self._serial

    async def open(self) -> None:
        """Open the database and load everything that must be in memory; whatever was cached before is dropped."""
        await self._database.open()
        await self._load()

    def start(self) -> None:
        """Watch in a task of its own until ``stop()``."""
        if self._task is None:
            self._stopping = False
            self._woken.clear()
            self._task = asyncio.create_task(self._watch(), name="registry-watcher")

    async def stop(self) -> None:
        """Let a poll that runs end, then stop. May be repeated."""
        self._stopping = True
        self._woken.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait({task})
        self._pulse.fresh_until_s = float("-inf")

    def ring(self, serial: int = 0) -> None:
        """Poll at once, unless the change of this serial was read already. Never waits, may be repeated."""
        if serial == 0 or serial > self._serial:
            self._woken.set()

    async def _watch(self) -> None:
        try:
            await self._hang_bell()
            while True:
                # Also after a poll that failed: what was heard of then has not been read yet.
                hears = self._bell is not None and self._bell.hangs and not self._failing
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), HEARD_POLL_S if hears else POLL_S)
                if self._stopping:
                    return
                rung = self._woken.is_set()
                self._woken.clear()
                await self._look(deaf_if_changed=hears and not rung)
        finally:
            if self._bell is not None:
                await self._bell.take_down()

    async def _look(self, *, deaf_if_changed: bool) -> None:
        """One poll, whatever comes of it."""
        before = self._serial
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
            return
        if self._bell is not None and ((deaf_if_changed and self._serial != before) or not self._bell.hangs):
            await self._hang_bell()

    async def _hang_bell(self) -> None:
        """Listen, or listen anew; then look once for what came before."""
        if self._bell is None:
            return
        try:
            async with asyncio.timeout(BELL_S):
                await self._bell.hang()
        except Exception as failure:
            if not self._deaf:
                self._deaf = True
                _log.warning("changes are not heard of", action="registry.listen_failed", error=repr(failure))
        else:
            self._deaf = False
            self._woken.set()

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
        asked = self._serial

        def work(connection: Connection) -> tuple[int, list[ChangeNote] | None, list[Revocation]]:
            newest, notes = rows.changes_after(connection, asked)
            revoked = sorted({note.tenant_id for note in notes or () if note.kind == "revocations" and note.tenant_id})
            found: list[Revocation] = []
            for start in range(0, len(revoked), 500):
                found += rows.find_revocations(connection, place, tenant_ids=revoked[start : start + 500])
            return newest, None if notes is None else list(notes), found

        newest, notes, revoked = await self._database.finish(self._database.transaction(work))
        if notes is None:
            await self._load()
            return
        for revocation in revoked:
            self._refusals.add(revocation)
        # What this process changed meanwhile has been dropped by itself.
        for note in notes[max(0, self._serial - asked) :]:
            self._forget(note)
        self._serial = max(self._serial, newest)
        self._pulse.fresh_until_s = began_s + FRESH_S

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

        def work(connection: Connection) -> tuple[int, list[Revocation]]:
            serial: int = (connection.execute(select(schema.registry.c.serial))).scalar_one()
            return serial, list(rows.find_revocations(connection, self._database.place))

        self._serial, revocations = await self._database.finish(self._database.transaction(work))
        for revocation in revocations:
            # Added, not replaced: a registry put back from a backup brings no refused token to life here.
            self._refusals.add(revocation)
        self._forget(ChangeNote(None, "all"))
        self._pulse.fresh_until_s = began_s + FRESH_S
