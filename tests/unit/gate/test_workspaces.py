"""The gate before a workspace: who is let in, as whom, and what ends the entrance."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nagaya.errors import (
    MfaRequired,
    NagayaError,
    NoTenant,
    SsoRequired,
    TenantMismatch,
    TenantNotOpen,
    TenantSuspended,
    TokenRefused,
    WorkspaceRefused,
)
from nagaya.gate.enter import Gate, Named
from nagaya.jobs.record import JobRecord, JobSigner
from nagaya.tenancy.bindings import Member
from nagaya.tenancy.names import room_of, workspace_room
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, mint_entrance
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.testing.identity import SetClock
from parts.directory import MemoryDirectory, tenant
from support.jobs import KEY

NOW_US = 1_800_000_000_000_000
LEGAL = room_of("acme/legal")


def workspace(tenant_id: str, name: str, **fields: Any) -> Tenant:
    return tenant(workspace_room(tenant_id, name), **{"parent": tenant_id, "workspace": name, **fields})


class Directory(MemoryDirectory):
    """A registry in memory that knows members."""

    def __init__(self, *tenants: Tenant) -> None:
        super().__init__(*tenants)
        self.members: dict[tuple[str, str], Member] = {}

    async def member(self, workspace_id: str, user: str) -> Member | None:
        return self.members.get((workspace_id, user))

    async def host_owner(self, host: str) -> str | None:
        return None


class House:
    """A gate over two tenants with a workspace ``legal`` each; ``mio`` of acme is a member of acme's."""

    def __init__(self) -> None:
        self.clock = SetClock(NOW_US / 1_000_000)
        self.directory = Directory(
            tenant("acme"), tenant("globex"), workspace("acme", "legal"), workspace("globex", "legal")
        )
        self.refusals: list[tuple[Principal | None, NagayaError]] = []
        self.principal = Principal(
            provider=Provider.LOCAL,
            issuer="local",
            user_id="mio",
            tenant_id="acme",
            role=Role.TENANT_ADMIN,
            issued_at_us=NOW_US - 10,
            expires_at_us=NOW_US + 3_600_000_000,
        )
        self.gate = Gate(
            self,
            self.directory,  # type: ignore[arg-type]  # as much of a registry as the gate asks
            self.clock,
            check_quota=lambda _: None,
            check_risk=lambda *_: None,
            on_refusal=lambda principal, refused: self.refusals.append((principal, refused)),
        )
        self.join()

    async def authenticate(self, raw: str, *, purpose: str = "access") -> Principal:
        return self.principal

    def join(self, since_us: int = 1, role: Role = Role.MEMBER, user: str = "mio") -> None:
        self.directory.members[LEGAL, user] = Member(workspace_id=LEGAL, user=user, role=role, since_us=since_us)

    def come_as(self, **fields: Any) -> None:
        self.principal = msgspec.structs.replace(self.principal, **fields)

    async def enter(self, workspace: str | None = "legal", **named: Any) -> Entrance:
        return await self.gate.enter("token", Named(workspace=workspace, **named))

    def job(self, tenant_id: str):
        signer = JobSigner(KEY)
        record = JobRecord(
            id="job_1", tenant_id=tenant_id, tenant_since_us=1, kind="k", arguments={}, attempt=1,
            enqueued_at_us=self.clock.now_us(),
        )  # fmt: skip
        return signer.open(signer.seal(record), "job_1", self.clock.now_us())


@pytest.fixture
def house() -> House:
    return House()


@pytest.mark.parametrize("named", ["legal", "acme/legal"])
async def test_a_member_enters_with_the_role_it_has_there(house: House, named: str) -> None:
    entrance = await house.enter(named)
    assert entrance.tenant.address == "acme/legal"
    assert (entrance.principal.role, entrance.principal.tenant_id) == (Role.MEMBER, LEGAL)
    assert (entrance.home.role, entrance.home.tenant_id) == (Role.TENANT_ADMIN, "acme")
    assert entrance.parent is not None
    assert entrance.parent.id == "acme"
    assert entrance.is_membership
    assert house.gate.is_current(entrance)
    assert "acme/legal" in repr(entrance)


@pytest.mark.parametrize("named", ["", "nothing", "globex/legal", "acme/", "acme/legal/x", LEGAL, "LEGAL", "/legal"])
async def test_nobody_enters_what_is_not_theirs(house: House, named: str) -> None:
    with pytest.raises(WorkspaceRefused):
        await house.enter(named)
    assert house.refusals[-1][0] == house.principal


async def test_who_is_no_member_is_refused_as_if_there_were_no_workspace(house: House) -> None:
    house.come_as(user_id="ren")
    with pytest.raises(WorkspaceRefused) as foreign:
        await house.enter()
    with pytest.raises(WorkspaceRefused) as absent:
        await house.enter("nothing")
    assert foreign.value.message("en") == absent.value.message("en")
    house.come_as(user_id="mio", provider=Provider.OIDC, issuer="https://login.example")
    with pytest.raises(WorkspaceRefused):
        await house.enter()
    house.join(user="https://login.example#mio")
    assert (await house.enter()).home.provider is Provider.OIDC


async def test_a_row_that_says_it_lies_in_another_tenant_opens_nothing(house: House) -> None:
    house.directory.change(LEGAL, parent="globex")
    with pytest.raises(WorkspaceRefused):
        await house.enter()


@pytest.mark.parametrize("named", [None, "legal", "acme/legal"])
async def test_what_is_bound_opens_its_workspace(house: House, named: str | None) -> None:
    house.come_as(tenant_id=LEGAL, user_id="key-user")
    for tenant_id in (None, "acme", "acme/legal"):
        entrance = await house.enter(named, tenant_id=tenant_id, also=("acme", "acme/legal"))
        assert entrance.tenant.id == LEGAL
        assert entrance.home is entrance.principal
        assert not entrance.is_membership
        assert house.gate.is_current(entrance)
        house.gate.confirm(entrance, ["acme", "acme/legal"])
        with pytest.raises(TenantMismatch):
            house.gate.confirm(entrance, ["acme/sales"])


async def test_what_is_bound_opens_nothing_else(house: House) -> None:
    house.come_as(tenant_id=LEGAL)
    for named in ("sales", "acme", "globex/legal", ""):
        with pytest.raises(WorkspaceRefused):
            await house.enter(named)
    for other in ("globex", "globex/legal", LEGAL, "acme-legal"):
        with pytest.raises(TenantMismatch):
            await house.enter(None, tenant_id=other)


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize(("at", "fields", "error"), [
    ("acme", {"state": TenantState.SUSPENDED}, TenantSuspended),
    (LEGAL, {"state": TenantState.SUSPENDED}, TenantSuspended),
    (LEGAL, {"state": TenantState.ARCHIVED}, TenantNotOpen),
    ("acme", {"mfa_required": True}, MfaRequired),
    (LEGAL, {"mfa_required": True}, MfaRequired),
    ("acme", {"sso_required": True}, SsoRequired),
    ("acme", {"tokens_valid_from_us": NOW_US}, TokenRefused),
    (LEGAL, {"tokens_valid_from_us": NOW_US}, TokenRefused),
])  # fmt: skip
async def test_both_the_tenant_and_the_workspace_must_let_the_caller_in(
    house: House, bound: bool, at: str, fields: dict[str, Any], error: type[NagayaError]
) -> None:
    if bound:
        house.come_as(tenant_id=LEGAL)
    await house.enter()
    house.directory.change(at, **fields)
    with pytest.raises(error):
        await house.enter()


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("at", ["acme", LEGAL])
async def test_a_change_of_either_ends_what_was_given(house: House, bound: bool, at: str) -> None:
    if bound:
        house.come_as(tenant_id=LEGAL)
    before = [await house.enter() for _ in range(3)]
    house.directory.refused[at, "user", "mio"] = NOW_US
    assert not house.gate.is_current(before[0])
    house.directory.refused.clear()
    assert house.gate.is_current(before[0])
    house.directory.change(at, tokens_valid_from_us=NOW_US)
    await house.gate.look_again(at)
    assert not house.gate.is_current(before[1])
    house.directory.change(at, tokens_valid_from_us=0, state=TenantState.SUSPENDED)
    await house.gate.look_again(at)
    assert not house.gate.is_current(before[2])


async def test_a_change_of_membership_ends_the_members_entrances_and_nobody_elses(house: House) -> None:
    mine = await house.enter()
    house.come_as(user_id="ren")
    house.join(user="ren")
    others = await house.enter()
    house.come_as(tenant_id=LEGAL, user_id="mio")
    bound = await house.enter()
    house.gate.member_changed(LEGAL, "mio")
    assert [house.gate.is_current(each) for each in (mine, others, bound)] == [False, True, True]
    house.gate.members_changed()
    assert [house.gate.is_current(each) for each in (mine, others, bound)] == [False, False, True]


async def test_what_was_revoked_before_somebody_became_a_member_concerns_him_no_more(house: House) -> None:
    house.directory.refused[LEGAL, "user", "mio"] = NOW_US - 5
    with pytest.raises(TokenRefused):
        await house.enter()
    house.join(since_us=NOW_US - 4)
    entrance = await house.enter()
    assert house.gate.is_current(entrance)
    house.directory.refused["acme", "user", "mio"] = NOW_US - 5
    assert not house.gate.is_current(entrance)
    with pytest.raises(TokenRefused):
        await house.enter()


async def test_a_job_of_a_workspace_runs_while_its_tenant_is_open(house: House) -> None:
    entrance = await house.gate.enter_for_job(house.job(LEGAL))
    assert (entrance.tenant.id, entrance.principal.role) == (LEGAL, Role.USER)
    assert entrance.parent is not None
    house.directory.change("acme", state=TenantState.SUSPENDED)
    with pytest.raises(TenantSuspended):
        await house.gate.enter_for_job(house.job(LEGAL))


def test_an_entrance_is_minted_only_where_workspace_tenant_and_caller_belong_together(house: House) -> None:
    acme, globex = house.directory.held["acme"], house.directory.held["globex"]
    legal = house.directory.held[LEGAL]
    home = house.principal
    inside = msgspec.structs.replace(home, tenant_id=LEGAL)
    for fields in (
        {"tenant": legal, "principal": inside},
        {"tenant": legal, "principal": inside, "parent": globex},
        {"tenant": legal, "principal": home, "parent": acme},
        {"tenant": acme, "principal": home, "parent": acme},
        {"tenant": acme, "principal": home, "home": home},
        {"tenant": legal, "principal": inside, "parent": acme, "home": inside},
        {
            "tenant": legal, "principal": inside, "parent": acme,
            "home": msgspec.structs.replace(home, tenant_id="globex"),
        },
    ):  # fmt: skip
        with pytest.raises(NoTenant):
            mint_entrance(admitted_at_s=0.0, **fields)
    assert mint_entrance(tenant=legal, principal=inside, parent=acme, home=home, admitted_at_s=0.0).is_membership
