"""A server that stood still for longer than others wait for it, and goes on: as a stopped process, a suspended machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.audit.entry import chain_of
from nagaya.jobs.driver import JobState
from nagaya.settings import Settings
from nagaya.tenancy.tenant import Tenant
from nagaya.wiring import Nagaya
from parts.postgres import Postgres
from support.paused_server import KIND, notes_of

pytest_plugins = ["parts.postgres_server"]

TESTS = Path(__file__).parents[1]
DEAD_AFTER_S = 2.5
PATIENT_S = 90.0
"""A busy machine takes its time."""


class Other:
    """The other server, a process of its own over the same folder and registry."""

    def __init__(self, data: Path, url: str) -> None:
        self._go = data / "go"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.paused_server", str(data), url, str(DEAD_AFTER_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )

    async def says(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENT_S):
            return (await asyncio.to_thread(self._process.stdout.readline)).strip()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._go.touch()
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Two:
    def __init__(self, nagaya: Nagaya, acme: Tenant, other: Other) -> None:
        self.nagaya = nagaya
        self.acme = acme
        self.other = other

    async def notes(self, job: str) -> list[str]:
        """What the work noted, of the tenant's own records."""
        async with self.nagaya.session(await self.nagaya.enter(await self.nagaya.tenants.mint("acme", "mio"))) as mio:
            return [row.sort.decode() for row in await mio.session.records.query(notes_of(job), limit=10)]

    async def audited(self) -> list[str]:
        await self.nagaya.audit.flush()
        return [e.outcome for e in await self.nagaya.audit.read(chain_of(self.acme)) if e.action == "job.run"]


@pytest.fixture
async def two(postgres: Postgres, database: str, tmp_path: Path, monkeypatch) -> AsyncIterator[Two]:
    """The tests' own server, which runs no jobs yet, and the other one."""
    monkeypatch.setattr("nagaya.jobs.durable.RENEW_S", 0.3)
    monkeypatch.setattr("nagaya.jobs.liveness.DEAD_AFTER_S", DEAD_AFTER_S)
    data, url = tmp_path / "data", postgres.url(database)
    async with Nagaya.open(settings=Settings(data=str(data), registry=url)) as nagaya:
        acme = await nagaya.tenants.create("acme", name="Acme")
        other = Other(data, url)
        try:
            yield Two(nagaya, await nagaya.registry.tenant(acme.id), other)
        finally:
            other.kill()


async def test_a_server_that_stood_still_has_no_effect_once_another_has_taken_its_job(two: Two):
    nagaya, other, said = two.nagaya, two.other, []

    async def work(job) -> None:
        records = job.session.records
        await records.put(notes_of(job.id), b"second began", b"")
        other.go_on()
        said.append(await other.says())
        await records.put(notes_of(job.id), b"second ended", b"")

    nagaya.jobs.register(KIND, work)
    job = await nagaya.jobs.enqueue(two.acme, KIND)
    assert await other.says() == b"began"
    other.stop()
    await nagaya.jobs.start()
    assert (await nagaya.jobs.wait(two.acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
    assert said == [b"stopped"]
    assert await two.notes(job) == ["first began", "second began", "second ended"]
    assert await two.audited() == ["done"]


async def test_a_server_that_stood_still_goes_on_where_nobody_has_taken_its_job(two: Two):
    nagaya, other = two.nagaya, two.other
    nagaya.jobs.register(KIND, lambda job: asyncio.sleep(0))
    job = await nagaya.jobs.enqueue(two.acme, KIND)
    assert await other.says() == b"began"
    other.stop()
    ends_s = time.monotonic() + DEAD_AFTER_S + 0.5
    while time.monotonic() < ends_s:
        await asyncio.sleep(0.1)
    other.go_on()
    assert await other.says() == b"wrote"
    assert (await nagaya.jobs.wait(two.acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
    assert await two.notes(job) == ["first began", "first ended"]
