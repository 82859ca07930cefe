"""Background work on PostgreSQL, as several servers share it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from nagaya.errors import SettingsInvalid
from nagaya.jobs.database import SCHEMA, JobsDatabase
from nagaya.jobs.driver import JobState
from nagaya.jobs.liveness import RenewedRows
from parts.postgres import APP, PASSWORD, Postgres
from support.jobs import Company

pytest_plugins = ["parts.postgres_server"]

TESTS = Path(__file__).parents[1]

PATIENT_S = 60.0
"""A busy machine takes its time."""


async def _until(true: Callable[[], object], deadline_s: float = PATIENT_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not true():
            await asyncio.sleep(0.02)


@pytest.fixture
def url(postgres: Postgres, database: str) -> str:
    return postgres.url(database, user=APP)


async def test_jobs_run_are_tried_again_and_cancelled_on_postgresql(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nagaya.jobs.running.plan_retry", lambda failure, attempt, attempts: 0.01)
    company = Company("acme", "globex")
    jobs = company.jobs(tmp_path, url=url)
    acme, globex = company.tenants["acme"], company.tenants["globex"]
    did = []

    async def work(job) -> None:
        did.append((job.tenant.id, job.attempt))
        if job.attempt == 1:
            raise RuntimeError

    async def hang(job) -> None:
        did.append(("hang", 1))
        await asyncio.sleep(3600)

    jobs.register("work", work)
    jobs.register("hang", hang)
    await jobs.start()
    try:
        one, two = await jobs.enqueue(acme, "work"), await jobs.enqueue(globex, "work", dedup="x")
        assert two == await jobs.enqueue(globex, "work", dedup="x")
        assert [(await jobs.wait(*each, deadline_s=PATIENT_S)).state for each in ((acme, one), (globex, two))] == [
            JobState.DONE
        ] * 2
        assert sorted(did) == [("acme", 1), ("acme", 2), ("globex", 1), ("globex", 2)]
        job = await jobs.enqueue(acme, "hang")
        await _until(lambda: ("hang", 1) in did)
        assert (await jobs.cancel(acme, job)).state is JobState.CANCELLED
        await _until(lambda: ("acme", JobState.CANCELLED, "") in company.ended)
    finally:
        await jobs.close(deadline_s=1.0)
    assert list(tmp_path.iterdir()) == [], "nothing of it may lie on this server's disk"


async def test_a_server_killed_in_the_middle_of_a_job_is_taken_over_by_another(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nagaya.jobs.durable.RENEW_S", 0.2)
    monkeypatch.setattr("nagaya.jobs.liveness.DEAD_AFTER_S", 2.5)
    company = Company("acme")
    acme = company.tenants["acme"]
    did = tmp_path / "did"
    other = subprocess.Popen(
        [sys.executable, "-m", "support.jobs_server", str(tmp_path), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS), "RENEW_S": "0.3"},
    )
    jobs = company.jobs(tmp_path, url=url)
    mine = []

    async def slow(job) -> None:
        mine.append(job.id)

    jobs.register("slow", slow)
    try:
        assert other.stdout is not None
        assert await asyncio.to_thread(other.stdout.readline) == b"ready\n"
        job = await jobs.enqueue(acme, "slow", {"ms": 60_000})
        await _until(lambda: did.exists() and "began" in did.read_text())
        await jobs.start()
        other.send_signal(signal.SIGKILL)
        await asyncio.to_thread(other.wait)
        assert (await jobs.wait(acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
        assert mine == [job]
    finally:
        other.kill()
        other.communicate()
        await jobs.close(deadline_s=1.0)


def test_a_server_on_another_machine_is_dead_after_a_silence_and_knows_it(postgres: Postgres, url: str, tmp_path: Path):
    database = JobsDatabase(url, tmp_path)
    database.open()

    def fall_silent(name: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE nagaya_jobs.nagaya_job_servers SET seen_at = seen_at - interval '2 minutes' WHERE name = :name"
                ),
                {"name": name},
            )

    try:
        one, two = (RenewedRows(database.engine, schema=SCHEMA, dead_after_s=60.0) for _ in range(2))
        for servers, name in ((one, "one"), (two, "two"), (one, "one")):
            servers.enter(name)
        assert one.renew("one")
        assert two.dead("two") == []
        fall_silent("one")
        assert two.dead("two") == ["one"]
        assert two.dead("two") == ["one"], "until it is buried, nobody may forget it"
        two.bury("one")
        assert not one.renew("one"), "it must learn that its jobs were begun again"
        assert one.renew("one")
        fall_silent("one")
        assert two.dead("two") == ["one"]
        assert not one.renew("one"), "it wakes up while its jobs are being begun again"
        two.bury("one")
        assert one.renew("one"), "it is not buried alive"
        two.leave("two", unfinished=True)
        assert one.dead("one") == ["two"]
        one.leave("one", unfinished=False)
    finally:
        database.close()


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u:p@db.example/x", "verify-full"),
        ("postgresql://u:p@db.example/x?sslmode=require", "require"),
        ("postgresql://u:p@10.0.0.1/x", "verify-full"),
        ("postgresql://u:p@127.0.0.1/x", None),
        ("postgresql://u:p@localhost/x", None),
        ("postgresql:///x", None),
    ],
)
def test_a_database_elsewhere_is_reached_encrypted_and_checked(tmp_path: Path, url: str, mode: str | None):
    assert JobsDatabase(url, tmp_path).url.query.get("sslmode") == mode


def test_a_database_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(SettingsInvalid):
        JobsDatabase("mysql://u:p@db/x", tmp_path)


async def test_a_role_that_may_make_nothing_is_enough_once_the_tables_are_there(
    postgres: Postgres, database: str, url: str, tmp_path: Path
):
    made = JobsDatabase(url, tmp_path)
    made.open()
    RenewedRows(made.engine, schema=SCHEMA).enter("first")
    made.close()
    role = f"runner_{database}"
    await postgres.run(
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {role}",
        database=database,
    )
    company = Company("acme")
    jobs = company.jobs(tmp_path, url=postgres.url(database, user=role))

    async def work(job) -> None: ...

    jobs.register("work", work)
    await jobs.start()
    try:
        acme = company.tenants["acme"]
        assert (await jobs.wait(acme, await jobs.enqueue(acme, "work"), deadline_s=PATIENT_S)).state is JobState.DONE
    finally:
        await jobs.close()
        await postgres.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}", database=database)


async def test_a_server_that_is_stopping_gives_signs_of_life_while_its_jobs_end(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nagaya.jobs.durable.RENEW_S", 0.1)
    company = Company("acme")
    acme = company.tenants["acme"]
    stopping, other = company.jobs(tmp_path, url=url), company.jobs(tmp_path, url=url)
    began, let_go = asyncio.Event(), asyncio.Event()

    async def work(job) -> None:
        began.set()
        await let_go.wait()

    stopping.register("work", work)
    await stopping.start()
    job = await stopping.enqueue(acme, "work")
    async with asyncio.timeout(PATIENT_S):
        await began.wait()
    await other._opened()
    assert other._database is not None
    engine = other._database.engine

    def seen_at() -> object:
        with engine.connect() as connection:
            return connection.execute(sa.text("SELECT seen_at FROM nagaya_jobs.nagaya_job_servers")).scalar_one()

    closing = asyncio.ensure_future(stopping.close(deadline_s=2 * PATIENT_S))
    for _ in range(3):
        before = seen_at()
        await _until(lambda before=before: seen_at() != before)
    let_go.set()
    await closing
    assert (await other.status(acme, job)).state is JobState.DONE
    await other.close(deadline_s=1.0)
