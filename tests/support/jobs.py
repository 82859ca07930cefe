"""Background work without a platform around it: sessions over records in memory, and a gate that lets all in."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from nagaya.errors import ConditionFailed, NagayaError
from nagaya.jobs.driver import JobState
from nagaya.jobs.durable import DurableJobs
from nagaya.jobs.embedded import FILE
from nagaya.jobs.record import JobRecord, JobSigner, VerifiedJob
from nagaya.kernel.clock import SystemClock
from nagaya.records.sealed_store import Record
from nagaya.tenancy.tenant import Tenant
from parts.directory import tenant

KEY = bytes(range(32))


class Records:
    """As much of a sealed store as jobs use; without seals."""

    def __init__(self) -> None:
        self.held: dict[tuple[object, bytes], Record] = {}

    async def get(self, partition, sort):
        return self.held.get((partition, sort))

    async def put(self, partition, sort, body, *, expect=0):
        before = self.held.get((partition, sort))
        if (before.revision if before else 0) != expect:
            raise ConditionFailed
        self.held[partition, sort] = Record(sort, expect + 1, body)
        return expect + 1


class Session:
    def __init__(self, tenant: Tenant, records: Records) -> None:
        self.tenant = tenant
        self.records = records

    def fenced(self, fence):
        return self

    async def release(self) -> None: ...


class Company:
    """Tenants with their records, and what jobs did; ``refuse`` lets the gate say no."""

    def __init__(self, *names: str) -> None:
        self.tenants = {name: tenant(name) for name in names}
        self.records = {name: Records() for name in names}
        self.entered: list[str] = []
        self.ended: list[tuple[str, JobState, str]] = []
        self.refuse: NagayaError | None = None
        self.signer = JobSigner(KEY)

    @contextlib.asynccontextmanager
    async def session(self, job: VerifiedJob) -> AsyncIterator[Session]:
        if self.refuse is not None:
            raise self.refuse
        name = job.record.tenant_id
        self.entered.append(name)
        yield Session(self.tenants[name], self.records[name])

    def on_end(self, record: JobRecord | None, state: JobState, code: str) -> None:
        self.ended.append((record.tenant_id if record else "", state, code))

    def jobs(self, folder: Path, *, url: str | None = None, **options) -> DurableJobs:
        return DurableJobs(
            url,
            folder,
            self.signer,
            SystemClock(),
            self.session,  # type: ignore[arg-type]  # a session of the tests' own
            on_end=self.on_end,
            **options,
        )


async def plant(jobs: DurableJobs, folder: Path, tenants: Sequence[Tenant], kind: str) -> None:
    """A job for each of ``tenants``, in this order, as if enqueued one after another: their rows in one transaction,
    for a thousand commits would only measure the disk."""
    first = await jobs.enqueue(tenants[0], kind)
    with contextlib.closing(sqlite3.connect(folder / FILE, timeout=30)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(workflow_status)")]
        chosen = {
            **{each: each for each in columns},
            "workflow_uuid": "?", "queue_partition_key": "?", "created_at": "created_at + ?",
        }  # fmt: skip
        copy = f"INSERT INTO workflow_status ({', '.join(columns)}) SELECT {', '.join(chosen.values())} FROM workflow_status WHERE workflow_uuid = ?"
        # The parameters come in the order of the columns.
        order = [each for each in columns if each in ("workflow_uuid", "queue_partition_key", "created_at")]
        for number, tenant in enumerate(tenants[1:], 1):
            record = JobRecord(
                id=jobs._signer.job_id(tenant, kind, None),
                tenant_id=tenant.id,
                tenant_since_us=tenant.created_at_us,
                kind=kind,
                arguments={},
                attempt=1,
                enqueued_at_us=time.time_ns() // 1_000,
            )
            values = {"workflow_uuid": record.id, "queue_partition_key": tenant.id, "created_at": number}
            connection.execute(copy, (*(values[each] for each in order), first))
            body = json.dumps({"args": [jobs._signer.seal(record)], "kwargs": {}})
            connection.execute("INSERT INTO workflow_input (workflow_uuid, inputs) VALUES (?, ?)", (record.id, body))
        connection.commit()
