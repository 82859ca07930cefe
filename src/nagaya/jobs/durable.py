"""Durable jobs: taken into the jobs database, run by whichever server has room, begun again where one died."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog

from nagaya.errors import InvalidValue, JobInterrupted, JobRefused, JobsUnreachable, MissingExtra, NagayaError, NotFound
from nagaya.jobs.driver import (
    MAX_ATTEMPTS,
    PER_PROCESS,
    PER_TENANT,
    JobState,
    JobStatus,
    NoticeHook,
    OpenSession,
    Work,
    check_arguments,
)
from nagaya.jobs.embedded import FILE, has_work, version
from nagaya.jobs.lease import Lease
from nagaya.jobs.record import JOB_S, MAX_AGE_US, JobRecord, JobSigner, VerifiedJob
from nagaya.jobs.running import Attempts, EndHook, Outcome
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended, going_on
from nagaya.kernel.ids import new_id
from nagaya.tenancy.tenant import Tenant

if TYPE_CHECKING:
    from pathlib import Path

    from nagaya.jobs.database import JobsDatabase
    from nagaya.jobs.engine import Attempt, Runner, Taker
    from nagaya.jobs.liveness import Liveness

T = TypeVar("T")

POLL_S: Final = 0.1
"""How often a server looks for work: a tenant's jobs per second are at most ``PER_TENANT`` over this."""

LOOK_S: Final = 1.0
RENEW_S: Final = 5.0
"""How often a server gives a sign of life to those on other machines."""

DEADLINE_S: Final = 15.0
CLOSE_S: Final = 15.0
"""How long whoever closes waits for what is just beginning."""
_TIDY_S: Final = 3600.0
_TIDY_ROUNDS: Final = 100
_REST_S: Final = 5.0
_WAIT_S: Final = 0.1
_STATES: Final = {
    "DELAYED": JobState.WAITING,
    "ENQUEUED": JobState.WAITING,
    "PENDING": JobState.RUNNING,
    "CANCELLED": JobState.CANCELLED,
    "ERROR": JobState.REFUSED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobState.FAILED,
}

_log = structlog.get_logger(__name__)


class DurableJobs:
    """It implements :class:`nagaya.jobs.driver.Jobs` over DBOS. To be used in one event loop.

    Several may take jobs in one process, also over several databases; only one runs them. A database in the data
    folder is opened by the first job, so a platform without background work pays nothing for it.
    """

    def __init__(
        self,
        url: str | None,
        folder: Path,
        signer: JobSigner,
        clock: Clock,
        open_session: OpenSession,
        *,
        on_end: EndHook,
        per_tenant: int = PER_TENANT,
        per_process: int = PER_PROCESS,
        attempts: int = MAX_ATTEMPTS,
        poll_s: float = POLL_S,
        job_s: float = JOB_S,
    ) -> None:
        """``url``: a ``postgresql://`` address, or None for a file in ``folder``; ``job_s``: the longest a job may
        take in one attempt, in seconds."""
        self._url = url
        self._folder = folder
        self._signer = signer
        self._clock = clock
        self._attempts = attempts
        self._limits = min(per_tenant, per_process), per_process, poll_s
        self._server = new_id("server")
        self._lease = Lease()
        self._work = Attempts(
            signer,
            clock,
            open_session,
            self._take_again,
            self._lease,
            on_end=on_end,
            attempts=attempts,
            deadline_s=job_s,
        )
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="nagaya-jobs")
        self._opening = asyncio.Lock()
        self._database: JobsDatabase | None = None
        self._taker: Taker | None = None
        self._runner: Runner | None = None
        self._liveness: Liveness | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._closed = False
        self.is_started = False
        """Whether jobs are run here, as soon as there are any."""

    @property
    def signer(self) -> JobSigner:
        """What authenticates jobs here; gives each tenant's producers their key."""
        return self._signer

    # --- the port ---

    def register(self, kind: str, work: Work) -> None:
        self._work.register(kind, work)

    def knows(self, kind: str) -> bool:
        """Whether such work was registered here."""
        return self._work.knows(kind)

    def on_notice(self, hook: NoticeHook) -> None:
        self._work.on_notice(hook)

    async def enqueue(
        self,
        tenant: Tenant,
        kind: str,
        arguments: Mapping[str, str | int | bool] | None = None,
        *,
        dedup: str | None = None,
    ) -> str:
        if not self._work.knows(kind):
            raise InvalidValue(param="kind", at="kind", detail="there is no such kind of work")
        record = JobRecord(
            id=self._signer.job_id(tenant, kind, dedup),
            tenant_id=tenant.id,
            tenant_since_us=tenant.created_at_us,
            kind=kind,
            arguments=check_arguments(kind, arguments),
            attempt=1,
            enqueued_at_us=self._clock.now_us(),
        )
        await self._take(record)
        return record.id

    async def status(self, tenant: Tenant, job_id: str) -> JobStatus:
        return (await self._latest(tenant, job_id))[1]

    async def cancel(self, tenant: Tenant, job_id: str) -> JobStatus:
        place, status = await self._latest(tenant, job_id)
        taker = await self._opened()
        while not status.state.is_end:
            await self._in_thread(lambda place=place: taker.cancel(place))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            self._work.cancel(place)
            before = place
            # Its next attempt may have been taken meanwhile.
            place, status = await self._latest(tenant, job_id)
            if place == before:
                break
        return status

    async def wait(self, tenant: Tenant, job_id: str, *, deadline_s: float) -> JobStatus:
        async with asyncio.timeout(deadline_s):
            while True:
                status = await self.status(tenant, job_id)
                if status.state.is_end:
                    return status
                await asyncio.sleep(_WAIT_S)

    async def start(self) -> None:
        if self._keeper is not None:
            return
        self.is_started = True
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self, *, deadline_s: float = 30.0) -> None:
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            await ended([self._keeper])
        if self._beginning is not None:
            await asyncio.wait([self._beginning], timeout=CLOSE_S)
        runner, liveness = self._runner, self._liveness
        if runner is not None:
            runner.stop_taking()
        living = asyncio.ensure_future(self._live())
        try:
            await self._work.settle(deadline_s)
        finally:
            await ended([living])
        loop = asyncio.get_running_loop()
        async with self._opening:
            try:
                if runner is not None and liveness is not None:
                    unfinished = True
                    try:
                        await loop.run_in_executor(self._threads, runner.drain)
                        unfinished = False
                    finally:
                        await loop.run_in_executor(self._threads, runner.destroy)
                        leave = functools.partial(liveness.leave, self._server, unfinished=unfinished)
                        await loop.run_in_executor(self._threads, leave)
            except Exception as failed:
                # Whatever is left undone here is done by the servers that find this one gone.
                _log.warning("jobs database failed", action="jobs.unreachable", error=type(failed).__name__)
            finally:
                self._runner = None
                if self._taker is not None:
                    await loop.run_in_executor(self._threads, self._taker.close)
                if self._database is not None:
                    await loop.run_in_executor(self._threads, self._database.close)
                self._taker = self._database = None
                self._threads.shutdown(wait=False)

    # --- inside ---

    async def _begin(self) -> None:
        taker = await self._opened()
        from nagaya.jobs.engine import Runner

        database = self._database
        assert database is not None
        per_tenant, per_process, poll_s = self._limits
        runner = Runner(database, self._server, self._run)
        liveness = database.liveness()
        loop = asyncio.get_running_loop()
        # Alive before it takes anything: what it takes must never look like a dead server's.
        asked_s = self._lease.now_s()
        await self._in_thread(lambda: liveness.enter(self._server), deadline_s=60.0)
        self._lease.extend(asked_s + liveness.lasts_s)
        try:
            await self._in_thread(
                lambda: taker.register_queue(per_tenant=per_tenant, per_process=per_process, poll_s=poll_s)
            )
            await self._in_thread(lambda: runner.launch(loop), deadline_s=60.0)
        except BaseException:
            await self._leave(liveness, unfinished=False)
            raise
        if self._closed:
            # What it has taken already is for others; whoever closed may have waited for this no longer.
            await asyncio.to_thread(runner.destroy)
            await self._leave(liveness, unfinished=True)
            return
        self._runner, self._liveness = runner, liveness

    async def _leave(self, liveness: Liveness, *, unfinished: bool) -> None:
        # In a thread of nobody's: whoever closed may have ended those here. What does not answer finds it dead later.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.to_thread(liveness.leave, self._server, unfinished=unfinished)

    async def _run(self, text: object, place: str) -> str | None:
        return None if self._closed else await self._work.run(text, place)

    async def _sleep(self) -> None:
        """Until there is something to do. A jobs database in the data folder is only opened then: what runs jobs takes
        half a second and 40 MB, and most small installations have none for weeks."""
        path = self._folder / FILE
        seen: object = None
        while self._taker is None:
            now = await asyncio.to_thread(version, path)
            if now != seen:
                seen = now
                if await asyncio.to_thread(has_work, path):
                    return
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()

    async def _opened(self) -> Taker:
        if self._taker is not None:
            return self._taker
        async with self._opening:
            if self._closed:
                raise JobsUnreachable
            if self._taker is None:
                opened = await self._in_thread(self._open, deadline_s=60.0)
                self._database, self._taker = opened
                self._woken.set()
            return self._taker

    def _open(self) -> tuple[JobsDatabase, Taker]:
        # Late: its packages take half a second and 40 MB, which a platform without background work need not spend.
        try:
            from nagaya.jobs.database import JobsDatabase
            from nagaya.jobs.engine import Taker
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("nagaya"):
                raise
            raise MissingExtra(feature="background work", extra="jobs") from missing

        database = JobsDatabase(self._url, self._folder)
        database.open()
        try:
            return database, Taker(database)
        except BaseException:
            database.close()
            raise

    async def _in_thread(self, call: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except NagayaError:
            raise
        except Exception as failed:
            # Never with the database's own words, which may hold its address and password.
            _log.warning("jobs database failed", action="jobs.unreachable", error=type(failed).__name__)
            raise JobsUnreachable from failed

    async def _take(self, record: JobRecord, delay_s: float = 0.0) -> None:
        taker = await self._opened()
        text = self._signer.seal(record)
        await self._in_thread(lambda: taker.take(record.place, record.tenant_id, text, delay_s=delay_s))

    async def _take_again(self, record: JobRecord, delay_s: float) -> None:
        # Whoever cancels the attempt before stops this in the middle; in the database it would be taken all the same.
        await asyncio.shield(going_on(self._take_following(record, delay_s)))

    async def _take_following(self, record: JobRecord, delay_s: float) -> None:
        taker = await self._opened()
        await self._take(record, delay_s)
        before = msgspec.structs.replace(record, attempt=record.attempt - 1).place
        with contextlib.suppress(JobsUnreachable):
            # Whoever cancelled the job meanwhile may have looked for a next attempt before there was this one.
            if await self._in_thread(lambda: taker.cancelled([before])):
                await self._in_thread(lambda: taker.cancel(record.place))

    async def _latest(self, tenant: Tenant, job_id: str) -> tuple[str, JobStatus]:
        """The last attempt of a job of this tenant."""
        if not job_id.startswith("job_") or len(job_id) > 64 or ":" in job_id:
            raise NotFound("job")
        taker = await self._opened()
        places = [job_id if number == 1 else f"{job_id}:{number}" for number in range(1, self._attempts + 1)]
        for found in reversed(await self._in_thread(lambda: taker.find(places))):
            verified = self._signer.reopen(found.text, found.place)
            if verified is not None and verified.is_of(tenant):
                return found.place, _status(found, verified)
        raise NotFound("job")

    async def _keep(self) -> None:
        """Every second: stop what was cancelled elsewhere, take over from the dead; every hour: forget what is old."""
        renewed_s = tidied_s = time.monotonic()
        while True:
            try:
                if self._runner is None:
                    if self._url is None:
                        await self._sleep()
                    # Whoever closes waits for it.
                    self._beginning = going_on(self._begin())
                    await asyncio.shield(self._beginning)
                await asyncio.sleep(LOOK_S)
                await self._stop_cancelled()
                await self._give_back()
                now_s = time.monotonic()
                if self._url is None or now_s - renewed_s >= RENEW_S or not self._lease.is_held:
                    renewed_s = now_s
                    await self._look_after_servers()
                if now_s - tidied_s >= _TIDY_S:
                    tidied_s = now_s
                    await self._forget_old()
            except MissingExtra as missing:
                _log.error("jobs are not run here", action="jobs.not_run", reason=str(missing))
                self.is_started = False
                return
            except NagayaError as failed:
                _log.error("upkeep of jobs failed", action="jobs.upkeep_failed", code=failed.code)
                await asyncio.sleep(_REST_S)
            except Exception as failed:
                _log.error("upkeep of jobs failed", action="jobs.upkeep_failed", error=type(failed).__name__)
                await asyncio.sleep(_REST_S)

    async def _stop_cancelled(self) -> None:
        running = self._work.running()
        taker = self._taker
        if running and taker is not None:
            for place in await self._in_thread(lambda: taker.cancelled(running)):
                self._work.cancel(place)

    async def _give_back(self) -> None:
        """Let others begin again what was abandoned here and has stopped, unless they did so already."""
        stopped, runner = set(self._work.stopped), self._runner
        if stopped and runner is not None:
            await self._in_thread(lambda: runner.give_back(stopped))
            self._work.stopped -= stopped

    async def _look_after_servers(self) -> None:
        liveness, runner = self._liveness, self._runner
        assert liveness is not None
        assert runner is not None
        await self._give_sign_of_life(liveness)
        dead = await self._in_thread(lambda: liveness.dead(self._server))
        for server in dead:
            if not self._lease.is_held:
                return  # Stood still just now: somebody else has done it, and the server may live again.
            begun = await self._in_thread(lambda server=server: runner.recover([server]))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            await self._in_thread(lambda server=server: liveness.bury(server))  # type: ignore[misc]  # see above
            _log.warning("took over from a server that died", action="jobs.taken_over", jobs=begun)

    async def _live(self) -> None:
        """Go on giving signs of life while what runs here gets the time to end."""
        while self._liveness is not None:
            with contextlib.suppress(JobsUnreachable):
                await self._give_sign_of_life(self._liveness)
            await asyncio.sleep(RENEW_S)

    async def _give_sign_of_life(self, liveness: Liveness) -> None:
        asked_s = self._lease.now_s()
        if await self._in_thread(lambda: liveness.renew(self._server)):
            self._lease.extend(asked_s + liveness.lasts_s)
            return
        # Others begin again what runs here: two at the same time would be one too many. What was taken here since then
        # they do not know of; it is given back.
        _log.error("taken for dead", action="jobs.taken_for_dead")
        self._lease.lose()
        self._work.abandon()

    async def _forget_old(self) -> None:
        taker = self._taker
        moment_s = (self._clock.now_us() - MAX_AGE_US) / 1_000_000
        for _ in range(_TIDY_ROUNDS if taker is not None else 0):
            assert taker is not None
            if await self._in_thread(lambda: taker.forget_before(moment_s)) == 0:
                break


def _status(found: Attempt, verified: VerifiedJob) -> JobStatus:
    record = verified.record
    code = ""
    if found.status == "SUCCESS":
        try:
            outcome = msgspec.json.decode(found.outcome, type=Outcome)
        except msgspec.DecodeError:
            outcome = Outcome(JobState.REFUSED, JobRefused.code)
        code = outcome.code
        state = JobState.WAITING if outcome.next else outcome.state
    else:
        state = _STATES.get(found.status, JobState.REFUSED)
        if state is JobState.FAILED:
            code = JobInterrupted.code
        elif state is JobState.REFUSED:
            code = JobRefused.code
    return JobStatus(
        id=record.id,
        kind=record.kind,
        state=state,
        attempt=record.attempt,
        enqueued_at_us=record.enqueued_at_us,
        code=code,
    )
