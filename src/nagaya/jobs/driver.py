"""The port of background work: what a job is, who may ask for one, and what is promised of it.

A job is taken durably, runs inside a session of its own tenant on any of the servers, is repeated when a server dies
or the work fails, and ends in exactly one state. Work is begun at least once: whoever dies between an effect and its
being noted begins it again, so a kind of work must bear to be repeated. A job that is done is never done again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.errors import InvalidValue, NagayaError
from nagaya.jobs.record import VerifiedJob
from nagaya.tenancy.tenant import Tenant

MAX_ARGUMENTS_BYTES: Final = 4 * 1024
MAX_ATTEMPTS: Final = 5
PER_TENANT: Final = 10
"""Jobs of one tenant that run at the same time, on all servers together: the guide's figure."""

PER_PROCESS: Final = 64
_TEXT: Final = 256


class JobState(StrEnum):
    """Where a job stands. The last four are ends; ``failed`` is the dead letter: it gave up after its attempts."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self not in (JobState.WAITING, JobState.RUNNING)


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its tenant sees it. ``code`` is the code of the error that ended or last failed it."""

    id: str
    kind: str
    state: JobState
    attempt: int
    enqueued_at_us: int
    code: str = ""


class JobNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What is told while jobs run: every change of state, and the progress that a job itself reports."""

    tenant: Tenant
    job_id: str
    kind: str
    state: JobState
    attempt: int
    done: int = 0
    total: int = 0
    code: str = ""


class RunningJob(Protocol):
    """A job as the work sees it."""

    @property
    def id(self) -> str:
        """The same in every attempt: what the work writes under it, it writes once."""
        ...

    @property
    def tenant(self) -> Tenant: ...

    @property
    def arguments(self) -> Mapping[str, str | int | bool]: ...

    @property
    def attempt(self) -> int:
        """1 for the first. A server that died in the middle does not count here."""
        ...

    @property
    def session(self) -> TenantSession:
        """The tenant's session that was opened for this job; it ends with the job. It writes no record and no file
        once another server may have taken the job over: what it is to write waits until that is known."""
        ...

    async def hold(self) -> None:
        """Return while the job is surely this server's; to be awaited right before an effect elsewhere than in the
        session. Raises ``SessionClosed`` where another server took it over."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Tell whoever listens how far the work is. Never waits."""
        ...


Work = Callable[[RunningJob], Awaitable[None]]
NoticeHook = Callable[[JobNotice], Awaitable[None]]
OpenSession = Callable[[VerifiedJob], AbstractAsyncContextManager[TenantSession]]
"""Opens a tenant's session for a job whose record proved genuine. Only the gate can; it checks the tenant's state."""


class Jobs(Protocol):
    """Background work. ``register`` before ``start``; every method may be repeated."""

    def register(self, kind: str, work: Work) -> None:
        """Say what a kind of job does, such as ``key.reseal``. Every server registers the same kinds."""
        ...

    async def enqueue(
        self,
        tenant: Tenant,
        kind: str,
        arguments: Mapping[str, str | int | bool] | None = None,
        *,
        dedup: str | None = None,
    ) -> str:
        """Take a job durably; gives its id. With ``dedup``, jobs of this tenant and kind with the same text are one
        job, also after it has ended (for seven days).

        ``arguments`` are ids, numbers and flags, at most 4 KiB of JSON: never content or secrets, for they lie in the
        jobs database in clear. Raises ``InvalidValue`` or ``JobsUnreachable``.
        """
        ...

    async def status(self, tenant: Tenant, job_id: str) -> JobStatus:
        """Where a job of this tenant stands. Raises ``NotFound``, the same for a foreign job as for an absent one."""
        ...

    async def cancel(self, tenant: Tenant, job_id: str) -> JobStatus:
        """End a job that has not ended; one that runs is stopped within about 2 s. Raises ``NotFound``."""
        ...

    async def wait(self, tenant: Tenant, job_id: str, *, deadline_s: float) -> JobStatus:
        """The status once the job has ended. Raises ``NotFound``, or ``TimeoutError`` after ``deadline_s``."""
        ...

    def on_notice(self, hook: NoticeHook) -> None:
        """Be told of the jobs that run in this process. What the hook raises is logged and changes nothing."""
        ...

    async def start(self) -> None:
        """Begin to run jobs here. Without it, jobs are only taken."""
        ...

    async def close(self, *, deadline_s: float = 30.0) -> None:
        """Take no more jobs, give the running ones ``deadline_s`` seconds, and hand the rest to other servers."""
        ...


def check_arguments(kind: str, arguments: Mapping[str, object] | None) -> dict[str, str | int | bool]:
    """The arguments, if they are what a job may carry. Raises ``InvalidValue``."""
    given = dict(arguments or {})
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str | int | bool):
            raise InvalidValue(param="arguments", at="arguments", detail="a job takes ids, numbers and flags only")
        if isinstance(value, str) and len(value) > _TEXT:
            raise InvalidValue(param="arguments", at=name, detail=f"at most {_TEXT} characters; pass an id instead")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise InvalidValue(param="arguments", at=name, detail="a whole number of 64 bits at most")
    if len(msgspec.json.encode(given)) > MAX_ARGUMENTS_BYTES:
        raise InvalidValue(param="arguments", at="arguments", detail=f"at most {MAX_ARGUMENTS_BYTES} bytes of JSON")
    return {name: value for name, value in given.items() if isinstance(value, str | int | bool)}


def plan_retry(failure: BaseException, attempt: int, *, attempts: int = MAX_ATTEMPTS) -> float | None:
    """How many seconds to wait before the next attempt; None where there is none.

    What the caller would have to change (a 4xx other than 429) is not tried again. Pauses grow fourfold from about
    1 s to 256 s, spread by a half so that a thousand jobs that failed together do not come back together.
    """
    if attempt >= attempts:
        return None
    if isinstance(failure, NagayaError) and failure.status < 500 and failure.status != 429:
        return None
    pause_s = min(256.0, 4.0 ** (attempt - 1))
    if isinstance(failure, NagayaError) and failure.retry_after_s:
        pause_s = max(pause_s, float(failure.retry_after_s))
    return pause_s * random.uniform(1.0, 1.5)  # noqa: S311 - spreads retries, guards nothing
