"""One attempt of a job, from its record to its outcome: proved genuine, admitted by the gate, run, noted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.errors import ConditionFailed, JobKindUnknown, JobRefused, NagayaError, SessionClosed
from nagaya.jobs.driver import JobNotice, JobState, NoticeHook, OpenSession, Work, plan_retry
from nagaya.jobs.lease import Lease, LeaseFence
from nagaya.jobs.record import JobRecord, JobSigner, VerifiedJob
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended
from nagaya.records.sealed_store import ABSENT, Partition
from nagaya.tenancy.tenant import Tenant

_DONE: Final = Partition("job", "done")
_NOTICES: Final = 256

_log = structlog.get_logger(__name__)

EndHook = Callable[[JobRecord | None, JobState, str], None]
"""Told of every attempt that ended: its record where it was genuine, how it ended, and the error's code."""

TakeAgain = Callable[[JobRecord, float], Awaitable[None]]
"""Takes the next attempt durably, to begin after so many seconds. May be repeated."""


class Mark(msgspec.Struct, frozen=True):
    """In the tenant's own store: this job has ended. The jobs database cannot make it run again."""

    enqueued_at_us: int
    ended_at_us: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of an attempt, as the jobs database keeps it. ``next`` says that another follows."""

    state: JobState
    code: str = ""
    next: bool = False


class JobInRoom:
    """It implements :class:`nagaya.jobs.driver.RunningJob`."""

    def __init__(
        self, record: JobRecord, session: TenantSession, fence: LeaseFence, tell: Callable[[JobNotice], None]
    ) -> None:
        self._record = record
        self._fence = fence
        self._tell = tell
        self.session = session

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def tenant(self) -> Tenant:
        return self.session.tenant

    @property
    def arguments(self) -> Mapping[str, str | int | bool]:
        return self._record.arguments

    @property
    def attempt(self) -> int:
        return self._record.attempt

    async def hold(self) -> None:
        await self._fence.hold()

    def progress(self, done: int, total: int) -> None:
        if self._fence.is_held:
            self._tell(_notice(self._record, self.tenant, JobState.RUNNING, done=done, total=total))


class Attempts:
    """Runs attempts. To be used in one event loop; several run at the same time."""

    def __init__(
        self,
        signer: JobSigner,
        clock: Clock,
        open_session: OpenSession,
        take_again: TakeAgain,
        lease: Lease,
        *,
        on_end: EndHook,
        attempts: int,
        deadline_s: float,
    ) -> None:
        self._signer = signer
        self._clock = clock
        self._open_session = open_session
        self._take_again = take_again
        self._lease = lease
        self._on_end = on_end
        self._attempts = attempts
        self._deadline_s = deadline_s
        self._work: dict[str, Work] = {}
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._cancelled: set[str] = set()
        self._abandoned: set[str] = set()
        self.stopped: set[str] = set()
        """Attempts that were abandoned and have stopped, for whoever lets them be begun again to take out."""
        self._hooks: list[NoticeHook] = []
        self._notices: asyncio.Queue[JobNotice] = asyncio.Queue(_NOTICES)
        self._teller: asyncio.Task[None] | None = None

    def register(self, kind: str, work: Work) -> None:
        self._work[kind] = work

    def knows(self, kind: str) -> bool:
        return kind in self._work

    def on_notice(self, hook: NoticeHook) -> None:
        self._hooks.append(hook)

    def running(self) -> list[str]:
        """The ids of the attempts that run now."""
        return list(self._running)

    def cancel(self, place: str) -> None:
        """Stop an attempt that runs here because its job was cancelled. Another id is no error."""
        task = self._running.get(place)
        if task is not None:
            self._cancelled.add(place)
            task.cancel()

    def abandon(self) -> None:
        """Stop all that runs here and leave it to other servers. However long that takes: what has stopped, and had not
        come to its end, is then in ``stopped``."""
        self._abandoned.update(self._running)
        for task in self._running.values():
            task.cancel()

    async def settle(self, deadline_s: float) -> int:
        """Give what runs ``deadline_s`` seconds to end, then stop it; gives how many did not end."""
        tasks = list(self._running.values())
        unfinished = 0
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=deadline_s)
            unfinished = len(late)
            await ended(tasks)
        if self._teller is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._notices.join()
            await ended([self._teller])
            self._teller = None
        return unfinished

    async def run(self, text: object, place: str) -> str | None:
        """Run one attempt; gives its outcome as text, or None where this process stopped it before its end, or others
        have begun it again."""
        if place in self._running:
            return None
        task = asyncio.ensure_future(self._attempt(text, place))
        self._running[place] = task
        try:
            outcome = await task
        except (SessionClosed, asyncio.CancelledError):
            if not task.cancelled() or place not in self._cancelled:
                if place in self._abandoned:
                    self.stopped.add(place)
                return None
            outcome = Outcome(JobState.CANCELLED)
            verified = self._signer.reopen(text, place)
            self._on_end(verified.record if verified else None, outcome.state, "")
        finally:
            del self._running[place]
            self._cancelled.discard(place)
            self._abandoned.discard(place)
        return msgspec.json.encode(outcome).decode()

    async def _attempt(self, text: object, place: str) -> Outcome:
        """The outcome of one attempt. Raises ``SessionClosed`` where others took it over."""
        record: JobRecord | None = None
        tenant: Tenant | None = None
        fence = self._lease.fence()
        await fence.hold()
        try:
            verified = self._signer.open(text, place, self._clock.now_us())
            record = verified.record
            work = self._work.get(record.kind)
            if work is None:
                # A newer server took it; one of them will have it in a later attempt.
                raise JobKindUnknown
            async with self._open_session(verified) as session:
                tenant = session.tenant
                if not verified.is_of(tenant):
                    raise JobRefused(reason="its tenant is another one now")
                await self._once(verified, session, work, fence)
        except Exception as failure:
            await fence.hold()
            return await self._failed(record, tenant, failure, place)
        await fence.hold()
        self._ended(record, tenant, Outcome(JobState.DONE))
        return Outcome(JobState.DONE)

    async def _once(self, job: VerifiedJob, opened: TenantSession, work: Work, fence: LeaseFence) -> None:
        session = opened.fenced(fence)
        try:
            await self._worked(job.record, session, work, fence)
        finally:
            await session.release()

    async def _worked(self, record: JobRecord, session: TenantSession, work: Work, fence: LeaseFence) -> None:
        sort = record.id.encode()
        found = await session.records.get(_DONE, sort)
        revision = ABSENT
        if found is not None:
            if msgspec.json.decode(found.body, type=Mark).enqueued_at_us == record.enqueued_at_us:
                # Delivered again after its end, by a database restored or edited: it had its effect.
                return
            revision = found.revision  # of an earlier job with the same dedup text, long ended and forgotten
        self._tell(_notice(record, session.tenant, JobState.RUNNING))
        async with asyncio.timeout(self._deadline_s):
            await work(JobInRoom(record, session, fence, self._tell))
        mark = msgspec.json.encode(Mark(record.enqueued_at_us, self._clock.now_us()))
        with contextlib.suppress(ConditionFailed):  # another server ended the same job meanwhile
            await session.records.put(_DONE, sort, mark, expect=revision)

    async def _failed(self, record: JobRecord | None, tenant: Tenant | None, failure: Exception, place: str) -> Outcome:
        code = failure.code if isinstance(failure, NagayaError) else type(failure).__name__
        if record is None or isinstance(failure, JobRefused) or (tenant is None and _is_final(failure)):
            _log.warning("job refused", action="jobs.refused", place=place[:64], reason=str(failure)[:160])
            return self._ended(record, tenant, Outcome(JobState.REFUSED, code))
        pause_s = plan_retry(failure, record.attempt, attempts=self._attempts)
        if pause_s is None:
            _log.error("job failed", action="jobs.failed", job=record.id, kind=record.kind, code=code)
            return self._ended(record, tenant, Outcome(JobState.FAILED, code))
        following = msgspec.structs.replace(record, attempt=record.attempt + 1)
        # Before this attempt ends: a crash in between leaves an attempt too many, which is one, not none.
        await self._take_again(following, pause_s)
        _log.warning("job failed, to be tried again", action="jobs.retry", job=record.id, kind=record.kind, code=code)
        if tenant is not None:
            self._tell(_notice(record, tenant, JobState.WAITING, code=code))
        return Outcome(JobState.FAILED, code, next=True)

    def _ended(self, record: JobRecord | None, tenant: Tenant | None, outcome: Outcome) -> Outcome:
        self._on_end(record, outcome.state, outcome.code)
        if record is not None and tenant is not None:
            self._tell(_notice(record, tenant, outcome.state, code=outcome.code))
        return outcome

    def _tell(self, notice: JobNotice) -> None:
        if not self._hooks:
            return
        if self._teller is None:
            self._teller = asyncio.ensure_future(self._tell_always())
        if self._notices.full():
            # Somebody who listens slowly must not hold up the work; the newest notices say the most.
            self._notices.get_nowait()
            self._notices.task_done()
        self._notices.put_nowait(notice)

    async def _tell_always(self) -> None:
        while True:
            notice = await self._notices.get()
            for hook in self._hooks:
                try:
                    await hook(notice)
                except Exception as failed:
                    _log.warning("a listener failed", action="jobs.notice_failed", error=type(failed).__name__)
            self._notices.task_done()


def _is_final(failure: Exception) -> bool:
    """Whether the gate said no, rather than that it could not tell."""
    return isinstance(failure, NagayaError) and failure.status < 500 and failure.status != 429


def _notice(
    record: JobRecord, tenant: Tenant, state: JobState, *, done: int = 0, total: int = 0, code: str = ""
) -> JobNotice:
    return JobNotice(
        tenant=tenant,
        job_id=record.id,
        kind=record.kind,
        state=state,
        attempt=record.attempt,
        done=done,
        total=total,
        code=code,
    )
