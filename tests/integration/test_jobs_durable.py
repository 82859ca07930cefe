"""Background work on an SQLite file: durable, fair, and taken over from servers that died."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import pickle
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nagaya.errors import InvalidValue, JobsUnreachable, MissingExtra, NotFound, StoreUnreachable
from nagaya.jobs import durable, engine, running
from nagaya.jobs.driver import JobState
from nagaya.jobs.durable import DurableJobs
from nagaya.jobs.embedded import FILE, has_work
from support.jobs import Company, plant

TESTS = Path(__file__).parents[1]
PATIENT_S = 60.0
"""A busy machine takes its time."""


@pytest.fixture
def company() -> Company:
    return Company("acme", "globex")


@pytest.fixture
async def jobs(company: Company, tmp_path: Path) -> AsyncIterator[DurableJobs]:
    made = company.jobs(tmp_path)
    yield made
    await made.close(deadline_s=1.0)


async def _until(true: Callable[[], object], deadline_s: float = PATIENT_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not true():
            await asyncio.sleep(0.02)


async def test_a_job_is_taken_before_anything_runs_and_done_afterwards(company, jobs, tmp_path):
    did = []

    async def work(job) -> None:
        did.append((job.tenant.id, job.id, dict(job.arguments)))

    jobs.register("work", work)
    acme = company.tenants["acme"]
    job = await jobs.enqueue(acme, "work", {"file": "file_1"})
    assert (await jobs.status(acme, job)).state is JobState.WAITING
    assert has_work(tmp_path / FILE)
    await jobs.start()
    await jobs.start()
    status = await jobs.wait(acme, job, deadline_s=PATIENT_S)
    assert (status.state, status.attempt, did) == (JobState.DONE, 1, [("acme", job, {"file": "file_1"})])
    assert not has_work(tmp_path / FILE)
    assert stat.S_IMODE(os.stat(tmp_path / FILE).st_mode) == 0o600


async def test_a_platform_without_jobs_opens_no_jobs_database(jobs, tmp_path):
    await jobs.start()
    await asyncio.sleep(0.1)
    await jobs.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(JobsUnreachable):
        await jobs.status(Company("acme").tenants["acme"], "job_1")


async def test_the_same_dedup_text_is_one_job(company, jobs):
    did = []

    async def work(job) -> None:
        did.append(job.id)

    jobs.register("work", work)
    acme, globex = company.tenants["acme"], company.tenants["globex"]
    ids = await asyncio.gather(*(jobs.enqueue(acme, "work", dedup="m-1") for _ in range(5)))
    other = await jobs.enqueue(globex, "work", dedup="m-1")
    await jobs.start()
    await jobs.wait(acme, ids[0], deadline_s=PATIENT_S)
    await jobs.wait(globex, other, deadline_s=PATIENT_S)
    assert await jobs.enqueue(acme, "work", dedup="m-1") == ids[0]
    await asyncio.sleep(0.3)
    assert sorted(did) == sorted([ids[0], other])


async def test_a_foreign_job_is_not_found_just_as_an_absent_one(company, jobs):
    async def work(job) -> None: ...

    jobs.register("work", work)
    job = await jobs.enqueue(company.tenants["acme"], "work")
    said = set()
    for ask in (jobs.status, jobs.cancel):
        for job_id in (job, "job_" + "0" * 32, "x", f"{job}:2", "job_" + "x" * 100):
            with pytest.raises(NotFound) as refused:
                await ask(company.tenants["globex"], job_id)
            said.add(str(refused.value))
    assert len(said) == 1
    assert (await jobs.status(company.tenants["acme"], job)).state is JobState.WAITING


async def test_an_unknown_kind_or_content_is_not_taken(company, jobs):
    with pytest.raises(InvalidValue):
        await jobs.enqueue(company.tenants["acme"], "unknown")


async def test_work_that_fails_is_tried_again_and_then_a_dead_letter(company, jobs, monkeypatch):
    monkeypatch.setattr(running, "plan_retry", lambda failure, attempt, attempts: 0.01 if attempt < 3 else None)
    tries = []

    async def fail(job) -> None:
        tries.append((job.id, job.attempt))
        raise StoreUnreachable

    jobs.register("fail", fail)
    acme = company.tenants["acme"]
    job = await jobs.enqueue(acme, "fail")
    await jobs.start()
    status = await jobs.wait(acme, job, deadline_s=PATIENT_S)
    assert (status.state, status.attempt, status.code) == (JobState.FAILED, 3, "store_unreachable")
    assert tries == [(job, 1), (job, 2), (job, 3)]
    assert company.ended == [("acme", JobState.FAILED, "store_unreachable")]


async def test_a_cancelled_job_does_not_begin_and_a_running_one_is_stopped(company, jobs):
    began, stopped = [], []

    async def hang(job) -> None:
        began.append(job.id)
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.append(job.id)

    jobs.register("hang", hang)
    acme = company.tenants["acme"]
    waiting = await jobs.enqueue(acme, "hang")
    assert (await jobs.cancel(acme, waiting)).state is JobState.CANCELLED
    running_job = await jobs.enqueue(acme, "hang")
    await jobs.start()
    await _until(lambda: began)
    assert (await jobs.cancel(acme, running_job)).state is JobState.CANCELLED
    await _until(lambda: stopped)
    assert began == stopped == [running_job]
    assert (await jobs.cancel(acme, running_job)).state is JobState.CANCELLED


def _edit(folder: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(folder / FILE, timeout=30)) as connection:
        assert connection.execute(statement, values).rowcount
        connection.commit()


@pytest.mark.parametrize("edit", ["tenant", "copied", "pickle", "arguments", "none"])
async def test_a_row_edited_in_the_jobs_database_enters_no_tenant(company, jobs, tmp_path, edit):
    did = []

    async def work(job) -> None:
        did.append(job.tenant.id)

    jobs.register("work", work)
    acme = company.tenants["acme"]
    job = await jobs.enqueue(acme, "work")
    other = await jobs.enqueue(acme, "work")
    table, column = "workflow_input", "inputs"
    mine = f"WHERE workflow_uuid = '{job}'"
    if edit == "tenant":
        _edit(tmp_path, f"UPDATE {table} SET {column} = replace({column}, 'acme', 'globex') {mine}")
    elif edit == "copied":
        theirs = f"(SELECT {column} FROM {table} WHERE workflow_uuid = '{other}')"
        _edit(tmp_path, f"UPDATE {table} SET {column} = {theirs} {mine}")
    elif edit == "arguments":
        _edit(tmp_path, f"UPDATE {table} SET {column} = ? {mine}", '{"args":["x","y"],"kwargs":{}}')
    elif edit == "none":
        _edit(tmp_path, f"UPDATE {table} SET {column} = ? {mine}", '{"args":[],"kwargs":{"z":1}}')
    else:
        planted = base64.b64encode(pickle.dumps(_Bomb(tmp_path / "bomb"))).decode()
        _edit(tmp_path, f"UPDATE {table} SET {column} = ? {mine}", planted)
        _edit(tmp_path, f"UPDATE workflow_status SET serialization = 'py_pickle' {mine}")
    await jobs.start()
    assert (await jobs.wait(acme, other, deadline_s=PATIENT_S)).state is JobState.DONE
    await asyncio.sleep(0.3)
    assert did == ["acme"], "only the untouched one may run"
    assert company.entered == ["acme"]
    assert not (tmp_path / "bomb").exists()
    for name in ("acme", "globex"):
        with pytest.raises(NotFound):
            await jobs.status(company.tenants[name], job)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (Path.touch, (self._path,))


async def test_a_job_set_back_to_waiting_in_the_database_has_one_effect(company, jobs, tmp_path):
    did = []

    async def work(job) -> None:
        did.append(job.id)

    jobs.register("work", work)
    acme = company.tenants["acme"]
    job = await jobs.enqueue(acme, "work")
    await jobs.start()
    await jobs.wait(acme, job, deadline_s=PATIENT_S)
    ended = len(company.ended)
    _edit(tmp_path, "UPDATE workflow_status SET status = 'ENQUEUED', queue_name = 'nagaya.jobs', completed_at = NULL")
    await _until(lambda: len(company.ended) > ended)
    assert did == [job]


async def test_one_tenants_thousand_jobs_do_not_go_before_anothers_first(company, jobs, tmp_path):
    began: list[str] = []

    async def work(job) -> None:
        began.append(job.tenant.id)
        await asyncio.sleep(0.01)

    jobs.register("work", work)
    acme, globex = company.tenants["acme"], company.tenants["globex"]
    await plant(jobs, tmp_path, [acme] * 1_000, "work")
    await jobs.start()
    await _until(lambda: "acme" in began)
    job = await jobs.enqueue(globex, "work")
    before = len(began)
    await jobs.wait(globex, job, deadline_s=PATIENT_S)
    # How quick that is, the benchmarks measure: here a second's worth of jobs at the most, and far from all of them.
    assert began.index("globex") - before < 300
    assert len(company.ended) < 900


async def test_no_more_jobs_of_a_tenant_run_together_than_allowed(company, tmp_path):
    jobs = company.jobs(tmp_path, per_tenant=3, per_process=5)
    now: dict[str, int] = {"acme": 0, "globex": 0}
    most: dict[str, int] = {"acme": 0, "globex": 0, "all": 0}

    async def work(job) -> None:
        name = job.tenant.id
        now[name] += 1
        most[name] = max(most[name], now[name])
        most["all"] = max(most["all"], sum(now.values()))
        # However slowly they begin, those that may run together do; more than those would be seen then.
        while most[name] < 3 or most["all"] < 5:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        now[name] -= 1

    jobs.register("work", work)
    try:
        for name in ("acme", "globex"):
            await asyncio.gather(*(jobs.enqueue(company.tenants[name], "work") for _ in range(12)))
        await jobs.start()
        await _until(lambda: len(company.ended) == 24)
    finally:
        await jobs.close(deadline_s=1.0)
    assert most["acme"] == most["globex"] == 3
    assert most["all"] == 5


async def test_a_server_that_stops_finishes_what_runs_and_hands_on_the_rest(company, tmp_path):
    first = company.jobs(tmp_path)
    gate = asyncio.Event()
    did = []

    async def work(job) -> None:
        did.append(("began", job.arguments["n"]))
        await (asyncio.sleep(0.1) if job.arguments["n"] == 1 else gate.wait())
        did.append(("ended", job.arguments["n"]))

    first.register("work", work)
    acme = company.tenants["acme"]
    ids = [await first.enqueue(acme, "work", {"n": number}) for number in (1, 2)]
    await first.start()
    await _until(lambda: len(did) >= 2)
    async with asyncio.timeout(PATIENT_S):
        # The second would never end by itself.
        await first.close(deadline_s=3.0)
        await first.close()
    assert ("ended", 1) in did
    assert ("ended", 2) not in did
    gate.set()
    second = company.jobs(tmp_path)
    second.register("work", work)
    await second.start()
    try:
        assert [(await second.wait(acme, job, deadline_s=PATIENT_S)).state for job in ids] == [JobState.DONE] * 2
        assert did.count(("began", 1)) == 1
        assert did.count(("began", 2)) == 2
    finally:
        await second.close(deadline_s=1.0)


async def test_a_second_platform_in_one_process_takes_jobs_and_leaves_running_them_to_the_first(company, tmp_path):
    first, second = company.jobs(tmp_path), company.jobs(tmp_path)

    async def work(job) -> None: ...

    acme = company.tenants["acme"]
    try:
        for jobs in (first, second):
            jobs.register("work", work)
        await first.start()
        await first.wait(acme, await first.enqueue(acme, "work"), deadline_s=PATIENT_S)
        await second.start()
        assert (
            await second.wait(acme, await second.enqueue(acme, "work"), deadline_s=PATIENT_S)
        ).state is JobState.DONE
    finally:
        await second.close(deadline_s=1.0)
        await first.close(deadline_s=1.0)


@contextlib.contextmanager
def _server(folder: Path, *, drain_s: float = 5.0) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "DRAIN_S": str(drain_s)}
    process = subprocess.Popen(
        [sys.executable, "-m", "support.jobs_server", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_server_killed_in_the_middle_of_a_job_is_taken_over_by_another(company, tmp_path):
    did = tmp_path / "did"
    jobs = company.jobs(tmp_path)

    async def never(job) -> None:
        raise AssertionError("this process only takes jobs")

    jobs.register("slow", never)
    acme = company.tenants["acme"]
    try:
        with _server(tmp_path) as first, _server(tmp_path) as second:
            job = await jobs.enqueue(acme, "slow", {"ms": 60_000})
            await _until(lambda: did.exists() and "began" in did.read_text())
            victim = first if did.read_text().startswith(f"{first.pid} ") else second
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            await _until(lambda: did.read_text().count("began") == 2)
            (tmp_path / "enough").touch()
            assert (await jobs.wait(acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
    finally:
        await jobs.close()
    lines = [line.split() for line in did.read_text().splitlines()]
    assert [(what, which) for _, what, which in lines] == [("began", job), ("began", job), ("ended", job)]
    assert lines[0][0] != lines[1][0] == lines[2][0]


async def test_a_job_that_is_cancelled_while_its_next_attempt_is_taken_does_not_come_back(
    company, jobs, tmp_path, monkeypatch
):
    did = []

    async def fails(job) -> None:
        did.append(job.attempt)
        raise StoreUnreachable

    other = company.jobs(tmp_path)
    other.register("fails", fails)
    jobs.register("fails", fails)
    acme, take = company.tenants["acme"], jobs._take
    is_taken = asyncio.Event()

    async def taken(record, delay_s: float = 0.0) -> None:
        if record.attempt == 2:
            assert (await other.cancel(acme, record.id)).state is JobState.CANCELLED
        await take(record, delay_s)
        if record.attempt == 2:
            is_taken.set()

    monkeypatch.setattr(jobs, "_take", taken)
    try:
        job = await jobs.enqueue(acme, "fails")
        await jobs.start()
        async with asyncio.timeout(PATIENT_S):
            await is_taken.wait()
        await _until(lambda: not jobs._work.running())
        assert (await other.status(acme, job)).state is JobState.CANCELLED
        assert did == [1]
    finally:
        await other.close()


@pytest.mark.parametrize("patience_s", [PATIENT_S, 0.1])
async def test_a_server_that_is_closed_while_it_begins_takes_nothing_afterwards(
    company, tmp_path, monkeypatch, patience_s
):
    did = []

    async def work(job) -> None:
        did.append(job.id)

    launch = engine.Runner.launch
    has_begun, may_go_on = threading.Event(), threading.Event()

    def slowly(runner, loop) -> None:
        launch(runner, loop)
        has_begun.set()
        assert may_go_on.wait(PATIENT_S)

    first, second = company.jobs(tmp_path), company.jobs(tmp_path)
    for each in (first, second):
        each.register("work", work)
    acme = company.tenants["acme"]
    try:
        job = await first.enqueue(acme, "work")
        monkeypatch.setattr(engine.Runner, "launch", slowly)
        await first.start()
        assert await asyncio.to_thread(has_begun.wait, PATIENT_S)
        monkeypatch.setattr(durable, "CLOSE_S", patience_s)
        closing = asyncio.create_task(first.close(deadline_s=1.0))
        if patience_s == PATIENT_S:
            await asyncio.sleep(0.2)
        else:
            await closing
        may_go_on.set()
        await asyncio.wait([closing, first._beginning])
        await closing
        monkeypatch.undo()
        assert engine._runner is None
        await second.start()
        assert (await second.wait(acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
        assert did == [job]
    finally:
        await second.close(deadline_s=1.0)


@pytest.mark.parametrize("stops", ["at once", "late"])
async def test_what_a_server_that_was_taken_for_dead_had_just_taken_is_begun_again(company, jobs, monkeypatch, stops):
    """The others began again what it had before; of this they do not know."""
    begun, asked, may_stop = [], [], asyncio.Event()

    async def work(job) -> None:
        begun.append(job.id)
        if len(begun) > 1:
            return
        try:
            await asyncio.Event().wait()
        finally:
            if stops == "late":
                await may_stop.wait()

    jobs.register("work", work)
    acme = company.tenants["acme"]
    job = await jobs.enqueue(acme, "work")
    await jobs.start()
    await _until(lambda: begun and jobs._liveness)
    renew = jobs._liveness.renew

    def renewed(server: str) -> bool:
        asked.append(server)
        return len(asked) > 1 and renew(server)

    monkeypatch.setattr(jobs._liveness, "renew", renewed)
    await _until(lambda: len(asked) > 1)
    may_stop.set()
    assert (await jobs.wait(acme, job, deadline_s=PATIENT_S)).state is JobState.DONE
    assert begun == [job, job]


async def test_a_job_cancelled_over_another_server_is_stopped_where_it_runs(company, jobs, tmp_path):
    stopped = asyncio.Event()

    async def hang(job) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    acme = company.tenants["acme"]
    other = company.jobs(tmp_path)
    for each in (jobs, other):
        each.register("hang", hang)
    await jobs.start()
    job = await other.enqueue(acme, "hang")
    try:
        async with asyncio.timeout(PATIENT_S):
            while (await other.status(acme, job)).state is not JobState.RUNNING:
                await asyncio.sleep(0.05)
        await other.cancel(acme, job)
        async with asyncio.timeout(PATIENT_S):
            await stopped.wait()
    finally:
        await other.close()


async def test_ended_jobs_are_forgotten_after_seven_days_and_waiting_ones_never(company, tmp_path, monkeypatch):
    jobs = company.jobs(tmp_path)

    async def work(job) -> None: ...

    jobs.register("work", work)
    acme = company.tenants["acme"]
    try:
        old, young, waiting = [await jobs.enqueue(acme, "work") for _ in range(3)]
        for job, days in ((old, 8), (young, 6)):
            ended_ms = (time.time() - days * 86_400) * 1_000
            statement = "UPDATE workflow_status SET status = 'SUCCESS', completed_at = ? WHERE workflow_uuid = ?"
            _edit(tmp_path, statement, round(ended_ms), job)
        await jobs._forget_old()
        await jobs.status(acme, young)
        await jobs.status(acme, waiting)
        with pytest.raises(NotFound):
            await jobs.status(acme, old)
    finally:
        await jobs.close()


async def test_a_server_that_was_taken_for_dead_stops_what_others_have_begun_again(company, jobs):
    began = []

    async def hang(job) -> None:
        began.append(job.id)
        await asyncio.sleep(3600)

    jobs.register("hang", hang)
    await jobs.start()
    await jobs.enqueue(company.tenants["acme"], "hang")
    await _until(lambda: began)
    jobs._liveness.renew = lambda server: False
    await _until(lambda: not jobs._work.running())
    assert company.ended == [], "whoever has it now says how it ended"


async def test_a_jobs_database_that_cannot_be_reached_says_so_and_nothing_else(company, tmp_path, capsys):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        jobs = company.jobs(tmp_path, url=f"postgresql://mio:hush-hush@127.0.0.1:{taken.getsockname()[1]}/x")

        async def work(job) -> None: ...

        jobs.register("work", work)
        await jobs.start()
        with pytest.raises(JobsUnreachable) as refused:
            await jobs.enqueue(company.tenants["acme"], "work")
        await jobs.close()
    assert "hush" not in str(refused.value) + "".join(capsys.readouterr())


async def test_a_damaged_jobs_file_says_so(company, jobs, tmp_path):
    (tmp_path / FILE).write_bytes(b"x" * 4096)
    assert has_work(tmp_path / FILE)

    async def work(job) -> None: ...

    jobs.register("work", work)
    with pytest.raises(JobsUnreachable):
        await jobs.enqueue(company.tenants["acme"], "work")


async def test_without_the_extra_jobs_are_refused_by_its_name_and_the_server_goes_on(
    company, jobs, tmp_path, monkeypatch
):
    for name in [name for name in sys.modules if name.startswith(("nagaya.jobs.database", "nagaya.jobs.engine"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dbos", None)

    async def work(job) -> None: ...

    jobs.register("work", work)
    with pytest.raises(MissingExtra, match="jobs"):
        await jobs.enqueue(company.tenants["acme"], "work")
    (tmp_path / FILE).write_bytes(b"x")
    await jobs.start()
    await _until(lambda: not jobs.is_started)
