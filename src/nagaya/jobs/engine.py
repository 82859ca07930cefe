"""DBOS, kept in its own threads: what takes attempts of jobs, and what runs them in this process.

DBOS knows an attempt as a text, an id and the tenant's queue; it learns nothing of what a job is. Everything here is
called in a thread: DBOS waits for its database where it stands.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from dbos import DBOS, DBOSClient
from dbos._client import EnqueueOptions

from nagaya.errors import JobsElsewhere
from nagaya.jobs.database import SCHEMA, JobsDatabase, PlainJson

APPLICATION: Final = "nagaya"
VERSION: Final = "1"
"""Of the form of stored attempts, not of the program: servers of two releases run each other's jobs."""

QUEUE: Final = "nagaya.jobs"
WORKFLOW: Final = "nagaya.job"
_CLAIM_S: Final = 5.0
MAX_DEATHS: Final = 5
"""How often an attempt is begun again after a server died in the middle of it."""

Run = Callable[[object, str], Awaitable[str | None]]
"""Runs one attempt (its text, its id): what became of it, or None to leave it to another server."""


class Attempt(NamedTuple):
    """An attempt as it lies in the database. ``outcome`` is what ``Run`` gave, where it has."""

    place: str
    status: str
    text: object
    outcome: str


class Taker:
    """Takes, shows and cancels attempts; runs none. There may be several in a process."""

    def __init__(self, database: JobsDatabase) -> None:
        self._client = DBOSClient(
            system_database_engine=database.engine,
            dbos_system_schema=SCHEMA,
            serializer=PlainJson(),
            application_name=APPLICATION,
            retry_connection_errors=False,
        )

    def take(self, place: str, tenant_id: str, text: str, *, delay_s: float = 0.0) -> None:
        """Store an attempt durably. One that is there already stays as it is."""
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": place,
            "app_version": VERSION,
            "queue_partition_key": tenant_id,
        }
        if delay_s > 0:
            options["delay_seconds"] = delay_s
        self._client.enqueue(options, text)

    def find(self, places: Sequence[str]) -> list[Attempt]:
        """The attempts with these ids that there are, in the order of ``places``."""
        found = {each.workflow_id: each for each in self._client.list_workflows(workflow_ids=list(places))}
        return [_attempt(found[place]) for place in places if place in found]

    def cancel(self, place: str) -> None:
        """Mark an attempt as cancelled, unless it has ended."""
        self._client.cancel_workflow(place)

    def cancelled(self, places: Iterable[str]) -> list[str]:
        """Which of these attempts were cancelled."""
        found = self._client.list_workflows(
            workflow_ids=list(places), status="CANCELLED", load_input=False, load_output=False
        )
        return [each.workflow_id for each in found]

    def forget_before(self, moment_s: float, *, limit: int = 500) -> int:
        """Remove attempts that ended before a moment (Unix time); gives how many. Repeat while it gives ``limit``."""
        ended = self._client.list_workflows(
            completed_before=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(moment_s)),
            status=["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
            limit=limit,
            load_input=False,
            load_output=False,
        )
        if ended:
            self._client.delete_workflows([each.workflow_id for each in ended])
        return len(ended)

    def register_queue(self, *, per_tenant: int, per_process: int, poll_s: float) -> None:
        """Say how the queue is worked through, on every server alike. Before a runner is launched, which would
        otherwise find the queue a second later."""
        self._client.register_queue(
            QUEUE,
            partition_concurrency=per_tenant,
            worker_concurrency=per_process,
            polling_interval_sec=poll_s,
            on_conflict="always_update",
        )

    def close(self) -> None:
        self._client.destroy()


class Runner:
    """Runs attempts in this process: one at a time, because DBOS is one in a process."""

    def __init__(self, database: JobsDatabase, server: str, run: Run) -> None:
        self._database = database
        self._server = server
        self._run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dbos: DBOS | None = None
        self._stopping = False
        self._parked: set[str] = set()

    def launch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to run attempts in ``loop``. Raises ``JobsElsewhere``."""
        global _runner
        with _one:
            if _runner is not None:
                raise JobsElsewhere
            _runner = self
        self._loop = loop
        try:
            self._dbos = DBOS(
                config={
                    "name": APPLICATION,
                    "system_database_url": self._database.text,
                    "system_database_engine": self._database.engine,
                    "dbos_system_schema": SCHEMA,
                    "application_version": VERSION,
                    "executor_id": self._server,
                    "serializer": PlainJson(),
                    "run_migrations": False,
                    "log_level": "WARNING",
                    "use_listen_notify": False,
                    "max_executor_threads": 16,
                    "scheduler_polling_interval_sec": 3600.0,
                    # Nothing listens; this is only how long it takes to stop.
                    "notification_listener_polling_interval_sec": 0.1,
                }
            )
            DBOS.listen_queues([QUEUE])
            DBOS.launch()
        except BaseException:
            self.destroy()
            raise

    def recover(self, dead: Sequence[str]) -> int:
        """Let what dead servers had begun be begun again, by any server; gives how much it was."""
        return len(DBOS._recover_pending_workflows(list(dead)))

    def give_back(self, places: Iterable[str]) -> None:
        """Let these attempts, which were stopped here, be begun again by any server, unless they were already."""
        dbos = self._dbos
        assert dbos is not None
        for place in places:
            dbos._sys_db.reenqueue_for_recovery(place, [self._server], QUEUE)

    def stop_taking(self) -> None:
        """Begin no further attempts. May be repeated."""
        self._stopping = True
        if self._dbos is not None:
            for stop in self._dbos.background_thread_stop_events:
                stop.set()

    def drain(self, limit_s: float = 5.0) -> None:
        """Wait until the outcomes of attempts that ended here are written, at most ``limit_s`` seconds, and let what
        did not end be begun again by another server, at once."""
        ends_s = time.monotonic() + limit_s
        # It may just have claimed something, which must be known before it is given back.
        _await_claims(ends_s)
        while self._active() - self._parked and time.monotonic() < ends_s:
            time.sleep(0.01)
        if self._dbos is not None:
            self.recover([self._server])

    def _active(self) -> set[str]:
        dbos = self._dbos
        return set() if dbos is None else set(dbos._active_workflows_set.activeList())

    def destroy(self) -> None:
        """Stop. What has not ended stays as begun, for :meth:`recover` on another server. May be repeated."""
        global _runner
        self.stop_taking()
        if _runner is self:
            # What has claimed something would begin it in an event loop that is closed by then.
            _await_claims(time.monotonic() + _CLAIM_S)
            DBOS.destroy()
            _runner = None
        self._dbos = None

    async def hand_over(self, text: object, place: str) -> str:
        """Run an attempt in the platform's own event loop; called in DBOS's."""
        self._parked.discard(place)  # given back, and begun again here
        if not self._stopping and self._loop is not None:
            try:
                # A context of its own: the work is not part of DBOS's workflow and must not look like it.
                begun = contextvars.Context().run(
                    asyncio.run_coroutine_threadsafe, _awaited(self._run(text, place)), self._loop
                )
                outcome = await asyncio.wrap_future(begun)
            except Exception:
                outcome = None  # The loop has gone; nothing of the job is known.
            if outcome is not None:
                return outcome
        self._parked.add(place)
        # An attempt that never ends here is begun again by whoever finds this server gone.
        await asyncio.Event().wait()
        raise AssertionError


def _await_claims(ends_s: float) -> None:
    """Wait for the threads that claim attempts, which were told to stop, until that moment at most."""
    for thread in threading.enumerate():
        if thread.name == f"queue-worker-{QUEUE}":
            thread.join(max(0.0, ends_s - time.monotonic()))


async def _awaited(work: Awaitable[str | None]) -> str | None:
    return await work


_one = threading.Lock()
_runner: Runner | None = None


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_DEATHS)
async def _attempted(*arguments: object) -> str:
    runner = _runner
    place = DBOS.workflow_id
    if runner is None or place is None:
        await asyncio.Event().wait()
        raise AssertionError
    return await runner.hand_over(arguments[0] if len(arguments) == 1 else None, place)


def _attempt(found: Any) -> Attempt:
    given: Sequence[object] = found.input.get("args", ()) if isinstance(found.input, dict) else ()
    outcome = found.output if isinstance(found.output, str) else ""
    return Attempt(found.workflow_id, found.status, given[0] if len(given) == 1 else None, outcome)
