"""Background work inside the platform: the sweep after a key rotation, admitted by the gate and put on record."""

from __future__ import annotations

import asyncio

import pytest

from nagaya import Message, Nagaya
from nagaya.audit.entry import chain_of
from nagaya.errors import NotFound
from nagaya.jobs.driver import JobState
from nagaya.lifecycle.job_kinds import KEY_RESEAL

PATIENT_S = 60.0
"""A busy machine takes its time."""


@pytest.fixture
async def nagaya(tmp_path):
    async with Nagaya.open(tmp_path / "data") as opened:
        for name in ("acme", "globex"):
            await opened.tenants.create(name, name=name)
        yield opened


async def _wait(nagaya: Nagaya, tenant, job: str) -> JobState:
    return (await nagaya.jobs.wait(tenant, job, deadline_s=PATIENT_S)).state


async def test_a_rotated_key_is_swept_by_a_job_and_the_sweep_is_audited(nagaya: Nagaya):
    entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
    async with nagaya.session(entrance) as tenant:
        chat = await tenant.conversations.create(title="Roof")
        await tenant.conversations.append(chat.id, Message.user("Who mends the roof?"))
    await nagaya.tenants.rotate_key("acme")
    acme = await nagaya.registry.tenant("acme")
    await nagaya.jobs.start()
    assert await _wait(nagaya, acme, await nagaya.jobs.enqueue(acme, KEY_RESEAL)) is JobState.DONE
    await nagaya.audit.flush()
    found = [entry for entry in await nagaya.audit.read(chain_of(acme)) if entry.action == "job.run"]
    assert [(entry.actor, entry.role, entry.outcome) for entry in found] == [("platform", "job", "done")]
    assert found[0].target.startswith("key.reseal job_")
    swept = await nagaya.rooms.parts("acme").records.reseal(limit=100)
    assert swept.resealed == 0


async def test_a_suspended_tenants_job_is_refused_and_a_foreign_one_not_found(nagaya: Nagaya):
    acme, globex = await nagaya.registry.tenant("acme"), await nagaya.registry.tenant("globex")
    await nagaya.tenants.suspend("acme")
    job = await nagaya.jobs.enqueue(acme, KEY_RESEAL)
    await nagaya.jobs.start()
    assert await _wait(nagaya, acme, job) is JobState.REFUSED
    with pytest.raises(NotFound):
        await nagaya.jobs.status(globex, job)
    other = await nagaya.jobs.enqueue(globex, KEY_RESEAL)
    assert await _wait(nagaya, globex, other) is JobState.DONE


async def test_a_job_outlives_the_platform_that_took_it(tmp_path):
    async with Nagaya.open(tmp_path / "data") as first:
        acme = await first.tenants.create("acme", name="Acme")
        job = await first.jobs.enqueue(acme, KEY_RESEAL)
    async with Nagaya.open(tmp_path / "data") as second:
        await second.jobs.start()
        assert await _wait(second, acme, job) is JobState.DONE


async def test_closing_while_a_job_runs_leaves_it_for_the_next_start(tmp_path):
    began, let_go = asyncio.Event(), asyncio.Event()

    async def hang(job) -> None:
        began.set()
        await let_go.wait()

    async with Nagaya.open(tmp_path / "data") as first:
        acme = await first.tenants.create("acme", name="Acme")
        first.jobs.register("hang", hang)
        job = await first.jobs.enqueue(acme, "hang")
        await first.jobs.start()
        async with asyncio.timeout(PATIENT_S):
            await began.wait()
        await first.close(deadline_s=0.1)
    let_go.set()
    async with Nagaya.open(tmp_path / "data") as second:
        second.jobs.register("hang", hang)
        await second.jobs.start()
        assert await _wait(second, acme, job) is JobState.DONE
