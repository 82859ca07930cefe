"""The gate admits a job: only a genuine one, to the tenant it belongs to, with the least rights."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.errors import (
    Forbidden,
    JobRefused,
    NagayaError,
    NoTenant,
    RegistryUnreachable,
    TenantExpired,
    TenantSuspended,
)
from nagaya.gate.enter import Gate
from nagaya.jobs.record import JOB_S, JobRecord, JobSigner, VerifiedJob
from nagaya.tenancy.principal import Principal, Provider, Role, Scope
from nagaya.tenancy.tenant import TenantState
from nagaya.testing.clock import ManualClock
from parts.directory import MemoryDirectory, tenant
from support.jobs import KEY


class House:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.directory = MemoryDirectory(tenant("acme"), tenant("globex"))
        self.refusals: list[tuple[Principal | None, NagayaError]] = []
        unused: Any = None
        self.gate = Gate(
            unused,
            self.directory,  # type: ignore[arg-type]  # as much of a registry as the gate asks
            self.clock,
            check_quota=lambda _: None,
            check_risk=lambda *_: None,
            on_refusal=lambda principal, refused: self.refusals.append((principal, refused)),
        )

    def job(self, tenant_id: str = "acme", *, since_us: int = 1) -> VerifiedJob:
        signer = JobSigner(KEY)
        record = JobRecord(
            id="job_1",
            tenant_id=tenant_id,
            tenant_since_us=since_us,
            kind="key.reseal",
            arguments={},
            attempt=1,
            enqueued_at_us=self.clock.now_us(),
        )
        return signer.open(signer.seal(record), "job_1", self.clock.now_us())


@pytest.fixture
def house() -> House:
    return House()


async def test_a_job_enters_its_own_tenant_as_the_platform_with_the_least_rights(house: House):
    entrance = await house.gate.enter_for_job(house.job("globex"))
    principal = entrance.principal
    assert entrance.tenant.id == "globex"
    assert (principal.provider, principal.role, principal.is_application) == (Provider.PLATFORM, Role.USER, True)
    entrance.require(Scope.READ)
    entrance.require(Scope.WRITE)
    for ask in ((Scope.ADMIN,), (Scope.READ, Role.TENANT_ADMIN)):
        with pytest.raises(Forbidden):
            entrance.require(*ask)
    assert principal.user_key not in ("key.reseal", "platform"), "no person may share its name"


async def test_a_jobs_entrance_ends_with_the_longest_a_job_may_take(house: House):
    entrance = await house.gate.enter_for_job(house.job())
    assert house.gate.is_current(entrance)
    house.clock.advance(JOB_S)
    assert not house.gate.is_current(entrance)


async def test_a_jobs_entrance_ends_when_the_tenants_door_is_shut(house: House):
    entrance = await house.gate.enter_for_job(house.job())
    house.directory.change("acme", state=TenantState.SUSPENDED)
    await house.gate.look_again("acme")
    assert not house.gate.is_current(entrance)


@pytest.mark.parametrize("job", [None, "acme", tenant("acme"), {"tenant_id": "acme"}])
async def test_nothing_but_a_verified_job_enters_without_a_token(house: House, job):
    with pytest.raises(NoTenant):
        await house.gate.enter_for_job(job)


async def test_a_job_of_a_tenant_that_is_gone_or_another_one_now_is_refused(house: House):
    for job in (house.job("nobody"), house.job("acme", since_us=2)):
        with pytest.raises(JobRefused):
            await house.gate.enter_for_job(job)
    assert [refused.code for _, refused in house.refusals] == ["job_refused"] * 2
    assert house.refusals[1][0] is not None


async def test_the_tenants_state_counts_when_the_job_runs_not_when_it_was_asked_for(house: House):
    job = house.job()
    house.directory.change("acme", state=TenantState.SUSPENDED)
    with pytest.raises(TenantSuspended):
        await house.gate.enter_for_job(job)
    house.directory.change("acme", state=TenantState.ACTIVE, expires_at_us=1)
    with pytest.raises(TenantExpired):
        await house.gate.enter_for_job(job)


async def test_a_registry_that_has_not_been_heard_of_admits_no_job(house: House):
    house.directory.fresh = False
    with pytest.raises(RegistryUnreachable):
        await house.gate.enter_for_job(house.job())
