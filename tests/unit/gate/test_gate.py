"""The gate: every refusal, in its order, and what ends an entrance that was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from nagaya.errors import (
    Forbidden,
    MfaRequired,
    NagayaError,
    NoTenant,
    NotFound,
    RateLimited,
    RegistryUnreachable,
    SsoRequired,
    TenantExpired,
    TenantMismatch,
    TenantNotOpen,
    TenantSuspended,
    TokenRefused,
    Unauthenticated,
)
from nagaya.gate import enter
from nagaya.gate.enter import Gate, Named
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, Scope, mint_entrance
from nagaya.tenancy.tenant import TenantState
from nagaya.testing.identity import SetClock
from parts.directory import MemoryDirectory, tenant

NOW_US = 1_800_000_000_000_000
HOUR_US = 3_600_000_000


class Directory(MemoryDirectory):
    """A registry in memory that also knows whose a host is."""

    async def host_owner(self, host: str) -> str | None:
        self.asked.append(f"host {host}")
        return next((each.id for each in self.held.values() if host in each.hosts), None)


class House:
    """A gate whose every hook a test can bend; ``refusals`` is what it told of."""

    def __init__(self) -> None:
        self.clock = SetClock(NOW_US / 1_000_000)
        self.directory = Directory(tenant("acme", hosts=("acme.example",)), tenant("globex", hosts=("globex.example",)))
        self.principal = Principal(
            provider=Provider.LOCAL,
            issuer="local",
            user_id="mio",
            tenant_id="acme",
            role=Role.USER,
            issued_at_us=NOW_US,
            expires_at_us=NOW_US + HOUR_US,
            session_id="s-1",
            token_id="t-1",
        )
        self.refusals: list[tuple[Principal | None, NagayaError]] = []
        self.quota: Callable[[Entrance], None] = lambda _: None
        self.risk: Callable[[Entrance, object], None] = lambda *_: None
        self.authenticated: list[tuple[str, str]] = []
        self.gate = Gate(
            self,
            self.directory,
            self.clock,
            check_quota=lambda entrance: self.quota(entrance),
            check_risk=lambda entrance, ask: self.risk(entrance, ask),
            on_refusal=lambda principal, refused: self.refusals.append((principal, refused)),
        )

    async def authenticate(self, raw: str, *, purpose: str = "access") -> Principal:
        self.authenticated.append((raw, purpose))
        if raw == "bad":
            raise TokenRefused("bad")
        return self.principal

    def change(self, **fields) -> None:
        self.principal = msgspec.structs.replace(self.principal, **fields)

    async def refused(
        self, kind: type[NagayaError], raw: str = "token", ask: Named | None = None, **needed: Any
    ) -> NagayaError:
        with pytest.raises(kind) as refused:
            await self.gate.enter(raw, ask or Named(), **needed)
        assert type(refused.value) is kind
        assert self.refusals[-1][1] is refused.value
        return refused.value


@pytest.fixture
def house() -> House:
    return House()


async def test_a_verified_caller_of_an_open_tenant_enters(house: House):
    entrance = await house.gate.enter("token", Named("acme", "acme.example"), purpose="login")
    assert (entrance.tenant.id, entrance.principal, entrance.expires_at_us) == (
        "acme",
        house.principal,
        NOW_US + HOUR_US,
    )
    assert house.authenticated == [("token", "login")]
    assert house.refusals == []
    assert house.gate.is_current(entrance)


async def test_nobody_enters_without_a_token(house: House):
    await house.refused(Unauthenticated, "")
    assert house.authenticated == []
    assert house.refusals[-1][0] is None


async def test_nobody_enters_while_the_registry_is_out_of_reach(house: House):
    house.directory.fresh = False
    error = await house.refused(RegistryUnreachable)
    assert error.retry_after_s
    assert house.authenticated == []


async def test_a_refused_token_is_told_without_a_principal(house: House):
    await house.refused(TokenRefused, "bad")
    assert house.refusals[-1][0] is None
    assert house.directory.asked == []


async def test_an_operator_has_no_tenant_to_enter(house: House):
    house.change(tenant_id=None, role=Role.OPERATOR)
    await house.refused(Forbidden)
    assert house.directory.asked == []
    assert (await house.gate.operator("token", Scope.READ)).role is Role.OPERATOR


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"role": Role.TENANT_ADMIN},
        {"role": Role.OPERATOR},
        {"tenant_id": None},
    ],
)
async def test_nobody_else_is_an_operator(house: House, fields):
    house.change(**fields)
    with pytest.raises(Forbidden):
        await house.gate.operator("token", Scope.READ)
    assert house.refusals[-1][0] == house.principal


async def test_an_operator_does_what_its_scopes_say_and_no_more(house: House):
    house.change(tenant_id=None, role=Role.OPERATOR, scopes=frozenset({Scope.READ}))
    await house.gate.operator("token", Scope.READ)
    for scope in (Scope.WRITE, Scope.ADMIN):
        with pytest.raises(Forbidden) as refused:
            await house.gate.operator("token", scope)
        assert refused.value.facts == {"needs": f"scope {scope.value}"}
        assert house.refusals[-1] == (house.principal, refused.value)


async def test_an_operators_bad_token_is_refused_and_told(house: House):
    with pytest.raises(TokenRefused):
        await house.gate.operator("bad", Scope.READ)
    with pytest.raises(Unauthenticated):
        await house.gate.operator("", Scope.READ)
    assert [principal for principal, _ in house.refusals] == [None, None]


async def test_a_tenant_that_is_gone_answers_like_a_bad_token(house: House):
    del house.directory.held["acme"]
    await house.refused(TokenRefused)


@pytest.mark.parametrize(
    ("tenant_id", "host"),
    [("globex", None), ("ACME", None), ("", None), (None, "globex.example"), ("acme", "globex.example")],
)
async def test_a_request_that_names_another_tenant_is_refused(house: House, tenant_id, host):
    await house.refused(TenantMismatch, ask=Named(tenant_id, host))


@pytest.mark.parametrize("also", [("globex",), ("acme", "globex"), ("",), ("ACME",)])
async def test_a_query_or_body_that_names_another_tenant_is_refused_and_told(house: House, also):
    await house.refused(TenantMismatch, ask=Named(None, None, also))
    entrance = await house.gate.enter("token", Named("acme", None, ("acme",)))
    house.gate.confirm(entrance, ())
    house.gate.confirm(entrance, ("acme", "acme"))
    house.refusals.clear()
    with pytest.raises(TenantMismatch) as refused:
        house.gate.confirm(entrance, also)
    assert house.refusals == [(house.principal, refused.value)]


async def test_a_body_that_asks_for_more_than_the_scopes_allow_is_refused_and_told(house: House):
    house.principal = msgspec.structs.replace(house.principal, scopes=frozenset({Scope.READ}))
    entrance = await house.gate.enter("token", needs=Scope.READ)
    house.gate.demand(entrance, Scope.READ)
    with pytest.raises(Forbidden) as refused:
        house.gate.demand(entrance, Scope.WRITE)
    assert house.refusals == [(house.principal, refused.value)]


@pytest.mark.parametrize("host", [None, "acme.example", "127.0.0.1", "unknown.example"])
async def test_a_host_that_is_nobodys_confirms_nothing_and_refuses_nothing(house: House, host):
    assert (await house.gate.enter("token", Named(None, host))).tenant.id == "acme"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"state": TenantState.SUSPENDED}, TenantSuspended),
        ({"state": TenantState.ONBOARDING}, TenantNotOpen),
        ({"state": TenantState.OFFBOARDING}, TenantNotOpen),
        ({"state": TenantState.DELETED}, TenantNotOpen),
        ({"expires_at_us": NOW_US}, TenantExpired),
        ({"sso_required": True}, SsoRequired),
        ({"mfa_required": True}, MfaRequired),
        ({"tokens_valid_from_us": NOW_US + 1}, TokenRefused),
    ],
)
async def test_a_tenant_that_is_not_open_to_this_caller_refuses_it(house: House, fields, kind):
    house.directory.change("acme", **fields)
    await house.refused(kind)


@pytest.mark.parametrize("state", [TenantState.ACTIVE, TenantState.TRIAL, TenantState.MOVING])
async def test_an_open_tenant_lets_in(house: House, state):
    house.directory.change("acme", state=state, expires_at_us=NOW_US + 1)
    assert (await house.gate.enter("token")).tenant.state is state


async def test_sign_in_is_as_strong_as_the_tenant_wants_it(house: House):
    house.directory.change("acme", sso_required=True, mfa_required=True)
    for provider in (Provider.COGNITO, Provider.ENTRA, Provider.OIDC):
        house.change(provider=provider, mfa=False, is_application=False)
        await house.refused(MfaRequired)
        house.change(mfa=True)
        await house.gate.enter("token")
        house.change(mfa=False, is_application=True)
        await house.gate.enter("token")
    for provider in (Provider.LOCAL, Provider.API_KEY):
        house.change(provider=provider, mfa=True)
        await house.refused(SsoRequired)


@pytest.mark.parametrize(("kind", "subject"), [("user", "mio"), ("session", "s-1"), ("token", "t-1")])
async def test_what_was_revoked_neither_enters_nor_stays(house: House, kind, subject):
    entrance = await house.gate.enter("token")
    house.directory.refused["acme", kind, subject] = NOW_US + 1
    assert not house.gate.is_current(entrance)
    await house.refused(TokenRefused)
    house.change(issued_at_us=NOW_US + 1)
    assert house.gate.is_current(await house.gate.enter("token"))


@pytest.mark.parametrize("name", ["mio", "https://issuer.example#mio"])
async def test_a_federated_user_is_revoked_under_either_name(house: House, name):
    house.change(provider=Provider.OIDC, issuer="https://issuer.example")
    entrance = await house.gate.enter("token")
    house.directory.refused["acme", "user", name] = NOW_US + 1
    assert not house.gate.is_current(entrance)
    await house.refused(TokenRefused)


async def test_a_missing_scope_or_role_is_refused_before_the_quota_is_asked(house: House):
    counted: list[Entrance] = []
    house.quota = counted.append
    house.change(scopes=frozenset({Scope.READ}))
    await house.gate.enter("token", needs=Scope.READ)
    assert len(counted) == 1
    await house.refused(Forbidden, needs=Scope.WRITE)
    await house.refused(Forbidden, needs=Scope.READ, roles=(Role.TENANT_ADMIN,))
    assert len(counted) == 1
    house.directory.change("acme", state=TenantState.SUSPENDED)
    await house.refused(TenantSuspended, needs=Scope.WRITE)


async def test_quota_and_risk_refuse_last(house: House):
    def no(error: NagayaError):
        def refuse(*_):
            raise error

        return refuse

    house.quota, house.risk = no(RateLimited()), no(Forbidden(needs="less risk"))
    await house.refused(RateLimited)
    house.quota = lambda _: None
    await house.refused(Forbidden)
    # A caller that is refused anyway uses none of its tenant's quota.
    counted = []
    house.quota = counted.append
    house.directory.change("acme", state=TenantState.SUSPENDED)
    await house.refused(TenantSuspended)
    assert counted == []


async def test_refusals_come_in_their_order(house: House):
    house.directory.change("acme", state=TenantState.SUSPENDED, sso_required=True, mfa_required=True)
    ask = Named("globex", "globex.example")
    await house.refused(TenantMismatch, ask=ask)
    await house.refused(TenantSuspended)
    house.directory.change("acme", state=TenantState.ACTIVE)
    await house.refused(SsoRequired)
    house.change(provider=Provider.OIDC)
    await house.refused(MfaRequired)


async def test_an_entrance_ends_with_its_token(house: House):
    entrance = await house.gate.enter("token")
    house.clock.move_s(3599)
    assert house.gate.is_current(entrance)
    house.clock.move_s(1)
    assert not house.gate.is_current(entrance)


async def test_an_entrance_does_not_hold_while_the_registry_is_out_of_reach(house: House):
    entrance = await house.gate.enter("token")
    house.directory.fresh = False
    assert not house.gate.is_current(entrance)
    house.directory.fresh = True
    assert house.gate.is_current(entrance)


async def test_a_suspended_tenants_entrances_end_and_do_not_come_back_with_it(house: House):
    entrance = await house.gate.enter("token")
    house.clock.move_s(1)
    house.directory.change("acme", state=TenantState.SUSPENDED)
    await house.gate.look_again("acme")
    assert not house.gate.is_current(entrance)
    house.directory.change("acme", state=TenantState.ACTIVE)
    await house.gate.look_again("acme")
    assert not house.gate.is_current(entrance)
    house.clock.move_s(1)
    assert house.gate.is_current(await house.gate.enter("token"))


async def test_a_deleted_tenants_entrances_end(house: House):
    entrance = await house.gate.enter("token")
    del house.directory.held["acme"]
    await house.gate.look_again("acme")
    assert not house.gate.is_current(entrance)


async def test_everybodys_tokens_end_at_once(house: House):
    entrance = await house.gate.enter("token")
    house.directory.change("acme", tokens_valid_from_us=NOW_US + 1)
    await house.gate.look_again("acme")
    assert not house.gate.is_current(entrance)
    house.change(issued_at_us=NOW_US + 1)
    assert house.gate.is_current(await house.gate.enter("token"))


async def test_a_change_that_shuts_nobody_out_ends_nothing(house: House):
    entrance = await house.gate.enter("token")
    house.directory.change("acme", name="New name")
    await house.gate.look_again("acme")
    assert house.gate.is_current(entrance)


async def test_an_entrance_is_looked_at_again_after_any_change_and_its_end_is_never_overlooked(house: House):
    house.directory.pulse.still = True
    entrance = await house.gate.enter("token")
    assert house.gate.is_current(entrance)
    house.directory.fresh = False
    assert not house.gate.is_current(entrance)
    house.directory.fresh = True
    # The gate's own change is one too, though the registry has none.
    house.gate.void("globex")
    assert house.gate.is_current(entrance)
    house.gate.void("acme")
    assert not house.gate.is_current(entrance)
    house.clock.move_s(1)
    again = await house.gate.enter("token")
    assert house.gate.is_current(again)
    house.clock.move_s(3600)
    assert not house.gate.is_current(again)


async def test_a_voided_tenants_entrances_end_and_no_others(house: House):
    entrance = await house.gate.enter("token")
    house.change(tenant_id="globex")
    other = await house.gate.enter("token")
    house.gate.void("acme")
    assert not house.gate.is_current(entrance)
    assert house.gate.is_current(other)


async def test_what_the_gate_remembers_is_bounded(house: House, monkeypatch):
    monkeypatch.setattr(enter, "_REMEMBERED", 3)
    for number in range(10):
        house.gate.void(f"tenant-{number}")
    assert list(house.gate._void_until_s) == ["tenant-7", "tenant-8", "tenant-9"]


async def test_an_entrance_is_limited_to_scope_and_role(house: House):
    house.change(scopes=frozenset({Scope.READ}))
    entrance = await house.gate.enter("token")
    entrance.require(Scope.READ)
    entrance.require(Scope.READ, Role.USER, Role.MEMBER)
    for scope, roles in ((Scope.WRITE, ()), (Scope.READ, (Role.TENANT_ADMIN,))):
        with pytest.raises(Forbidden):
            entrance.require(scope, *roles)
    assert repr(entrance) == "Entrance(tenant='acme', role='user')"


def test_no_entrance_is_made_by_hand_or_for_another_tenant(house: House):
    with pytest.raises(NoTenant):
        Entrance(None, tenant=tenant("acme"), principal=house.principal, admitted_at_s=0.0)
    with pytest.raises(NoTenant):
        mint_entrance(tenant=tenant("globex"), principal=house.principal, admitted_at_s=0.0)


async def test_a_missing_tenant_is_asked_for_by_nobody_but_its_token(house: House):
    with pytest.raises(NotFound):
        await house.directory.tenant("nobody")
    house.directory.asked.clear()
    await house.gate.enter("token", Named("acme", None))
    assert house.directory.asked == ["tenant acme"]
