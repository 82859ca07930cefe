"""The registry on SQLite: what it keeps, what it refuses, and two processes' worth of it on one file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from nagaya.errors import (
    Conflict,
    InvalidValue,
    KeyDestroyed,
    NotFound,
    RegistryDamaged,
    RegistryNewer,
    RegistryUnreachable,
    SettingsInvalid,
    StoreFull,
    StoreReadOnly,
    TenantExists,
    TenantIdInvalid,
    TenantLookAlike,
    TransitionRefused,
)
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.tenancy import memory, rows, schema
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member, Revocation
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.principal import Provider, Role, Scope
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import Tenant, TenantState, Tier

NOW_US = 1_800_000_000_000_000


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.us = NOW_US
        self.s = 1_000.0

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.s


def make(tenant_id: str = "acme", **fields: Any) -> Tenant:
    plain: dict[str, Any] = {
        "name": "Acme KK",
        "state": TenantState.ACTIVE,
        "created_at_us": NOW_US,
        "store": "sqlite:///t",
    }
    return Tenant(id=tenant_id, **(plain | fields))


def binding(tenant_id: str = "acme", **fields: Any) -> IssuerBinding:
    plain: dict[str, Any] = {
        "issuer": "https://idp.example.com", "provider": Provider.OIDC, "audiences": ("app-1",), "jwks_url": "https://idp.example.com/keys",
    }  # fmt: skip
    return IssuerBinding(tenant_id=tenant_id, **(plain | fields))


def api_key(key_id: str = "key_1", tenant_id: str | None = "acme", **fields: Any) -> ApiKeyRecord:
    plain: dict[str, Any] = {
        "name": "ci", "user_id": "mio", "role": Role.MEMBER, "scopes": (Scope.READ,), "sha256": b"\x01" * 32, "created_at_us": NOW_US,
        "expires_at_us": NOW_US + 10**12,
    }  # fmt: skip
    return ApiKeyRecord(key_id=key_id, tenant_id=tenant_id, **(plain | fields))


def refusal(
    subject: str = "mio", *, kind: Any = "user", not_before_us: int = NOW_US, expires_at_us: int = NOW_US + 10**11
) -> Revocation:
    return Revocation(
        tenant_id="acme", kind=kind, subject=subject, not_before_us=not_before_us, expires_at_us=expires_at_us
    )


def key_version(version: int, state: KeyVersionState = KeyVersionState.ACTIVE) -> KeyVersion:
    return KeyVersion(version=version, state=state, wrapped=b"wrapped" * 9, created_at_us=NOW_US)


async def until(true: Callable[[], Awaitable[bool]], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not await true():
            await asyncio.sleep(0.02)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry #1 100%?.db"


@pytest.fixture
async def registry(path: Path, clock: HandClock) -> AsyncIterator[SqlRegistry]:
    registry = SqlRegistry.in_file(path, clock)
    await registry.open()
    yield registry
    await registry.close()


@pytest.fixture
async def other(registry: SqlRegistry, path: Path, clock: HandClock) -> AsyncIterator[SqlRegistry]:
    """Another process's registry on the same file, as far as one process can be two."""
    other = SqlRegistry.in_file(path, clock, create=False)
    await other.start()
    yield other
    await other.close()


# --- tenants ---------------------------------------------------------------------------------------------------


async def test_a_tenant_comes_back_as_it_was_written(registry: SqlRegistry, other: SqlRegistry) -> None:
    tenant = make(
        tier=Tier.STANDARD, models=("builtin://", "openai://gpt-5"), blobs="file:///b", regions=("ap-northeast-1",), hosts=("a.example.com",),
        expires_at_us=NOW_US + 5, mfa_required=True, sso_required=True, requests_per_minute=60, tokens_valid_from_us=7, name="長屋 株式会社",
    )  # fmt: skip
    await registry.create_tenant(tenant)
    assert await registry.tenant("acme") == tenant
    assert await other.tenant("acme") == tenant
    assert await registry.tenant("acme") is await registry.tenant("acme")


@pytest.mark.parametrize("unknown", ["globex", "", "x" * 5000, "\ud800", "a\0b", "' OR 1=1 --"])
async def test_an_unknown_tenant_is_not_found_whatever_its_text(registry: SqlRegistry, unknown: str) -> None:
    for _ in range(2):
        with pytest.raises(NotFound):
            await registry.tenant(unknown)
    assert await registry.tenant_issuers(unknown) == ()
    assert await registry.api_keys(unknown) == []
    with pytest.raises(NotFound):
        await registry.change_tenant(unknown, {"name": "x"})
    assert not await registry.give_up_onboarding(unknown, b"token")
    assert not await registry.discard_onboarding(unknown, b"token")


async def test_an_existing_id_a_look_alike_and_a_bad_id_are_refused(registry: SqlRegistry) -> None:
    await registry.create_tenant(make("acme-corp"))
    await registry.create_tenant(make("acme"))
    with pytest.raises(TenantExists):
        await registry.create_tenant(make("acme", name="Thief"))
    with pytest.raises(TenantLookAlike, match="acme-corp"):
        await registry.create_tenant(make("acmecorp"))
    with pytest.raises(TenantLookAlike, match="'acme'"):
        await registry.create_tenant(make("acrne"))
    with pytest.raises(TenantIdInvalid):
        await registry.create_tenant(make("ACME"))
    with pytest.raises(InvalidValue, match="begins as"):
        await registry.create_tenant(make("globex", state=TenantState.DELETED))
    assert (await registry.tenant("acme")).name == "Acme KK"


async def test_of_many_who_want_one_id_at_once_one_gets_it(registry: SqlRegistry, other: SqlRegistry) -> None:
    wanted = ["acme", "acrne", "ac-me", "acme"] * 2
    outcomes = await asyncio.gather(
        *(home.create_tenant(make(tenant_id)) for tenant_id in wanted for home in (registry, other)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert all(isinstance(outcome, TenantExists | TenantLookAlike) for outcome in outcomes if outcome is not None)
    assert len(await registry.tenants()) == 1


async def test_who_loses_between_question_and_insertion_is_told_to_whom(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.create_tenant(make("acme"))
    ask, asked = rows.refuse_taken, 0

    def not_at_first(*args: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            ask(*args)

    monkeypatch.setattr(rows, "refuse_taken", not_at_first)
    with pytest.raises(TenantLookAlike):
        await registry.create_tenant(make("ac-me"))
    monkeypatch.setattr(rows, "refuse_taken", lambda *_: None)
    with pytest.raises(Conflict):
        await registry.create_tenant(make("ac-me"))


async def test_a_failed_onboarding_removes_only_its_own_tenant(registry: SqlRegistry) -> None:
    await registry.create_tenant(make("victim", state=TenantState.ONBOARDING), onboarding_token=b"theirs")
    await registry.add_key_version("victim", key_version(1))
    assert not await registry.discard_onboarding("victim", b"mine")
    assert not await registry.discard_onboarding("nobody1", b"mine")
    assert (await registry.tenant("victim")).state is TenantState.ONBOARDING
    assert await registry.discard_onboarding("victim", b"theirs")
    assert not await registry.discard_onboarding("victim", b"theirs")
    with pytest.raises(NotFound):
        await registry.tenant("victim")
    assert await registry.key_versions("victim") == []
    await registry.create_tenant(make("victim"))


async def test_a_tenant_that_left_onboarding_is_never_discarded(registry: SqlRegistry) -> None:
    await registry.create_tenant(make(state=TenantState.ONBOARDING), onboarding_token=b"mine")
    await registry.set_state("acme", TenantState.ACTIVE)
    assert not await registry.discard_onboarding("acme", b"mine")
    await registry.create_tenant(make("globex", state=TenantState.ONBOARDING))
    assert not await registry.discard_onboarding("globex", b"")
    assert len(await registry.tenants()) == 2


async def test_an_onboarding_ends_whole_or_not_at_all(registry: SqlRegistry, other: SqlRegistry) -> None:
    workspace = workspace_room("acme", "legal")
    await registry.create_tenant(make())
    await registry.create_tenant(make(workspace, parent="acme", workspace="legal", state=TenantState.ONBOARDING))
    mio = Member(workspace_id=workspace, user="mio", role=Role.TENANT_ADMIN, since_us=NOW_US)
    with pytest.raises(Conflict):
        await registry.end_onboarding(workspace, TenantState.ACTIVE, key=key_version(2), admin=mio)
    with pytest.raises(TransitionRefused):
        await registry.end_onboarding(workspace, TenantState.SUSPENDED, key=key_version(1), admin=mio)
    with pytest.raises(NotFound):
        stranger = msgspec.structs.replace(mio, workspace_id="acme")
        await registry.end_onboarding(workspace, TenantState.ACTIVE, key=key_version(1), admin=stranger)
    with pytest.raises(InvalidValue):
        nobody = msgspec.structs.replace(mio, user="a\0")
        await registry.end_onboarding(workspace, TenantState.ACTIVE, key=key_version(1), admin=nobody)
    assert (await registry.tenant(workspace)).state is TenantState.ONBOARDING
    assert not await registry.key_versions(workspace)
    assert not await registry.members(workspace)
    assert await other.member(workspace, "mio") is None
    opened = await registry.end_onboarding(workspace, TenantState.ACTIVE, key=key_version(1), admin=mio)
    assert await registry.tenant(workspace) == opened
    assert (opened.state, opened.epoch) == (TenantState.ACTIVE, 1)
    assert await registry.key_versions(workspace) == [key_version(1)]
    assert await registry.members(workspace) == [mio]

    async def seen() -> bool:
        return await other.tenant(workspace) == opened and await other.member(workspace, "mio") == mio

    await until(seen)
    with pytest.raises(TransitionRefused):
        await registry.end_onboarding(workspace, TenantState.ACTIVE, key=key_version(2))
    with pytest.raises(NotFound):
        await registry.end_onboarding("nobody1", TenantState.ACTIVE, key=key_version(1))


async def test_pages_of_tenants_have_an_order_and_leave_nobody_out(registry: SqlRegistry) -> None:
    for tenant_id in ("b-two", "a-one", "c33"):
        await registry.create_tenant(make(tenant_id))
    assert [tenant.id for tenant in await registry.tenants(limit=2)] == ["a-one", "b-two"]
    assert [tenant.id for tenant in await registry.tenants(after="b-two", limit=0)] == ["c33"]
    assert await registry.tenants(after="\ud800") == []


async def test_a_damaged_row_hides_one_tenant_and_no_other(registry: SqlRegistry, path: Path) -> None:
    await registry.create_tenant(make("acme"))
    await registry.create_tenant(make("globex"))
    await registry.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tenants SET models = '[' WHERE id = 'acme'")
    connection.close()
    await registry.open()
    assert [tenant.id for tenant in await registry.tenants()] == ["globex"]
    with pytest.raises(RegistryDamaged):
        await registry.tenant("acme")
    assert (await registry.tenant("globex")).id == "globex"


async def test_changes_raise_the_epoch_and_states_follow_the_table(registry: SqlRegistry) -> None:
    await registry.create_tenant(make())
    assert (await registry.change_tenant("acme", {"name": "New"})).epoch == 1
    await registry.touch("acme")
    suspended = await registry.set_state("acme", TenantState.SUSPENDED)
    assert (suspended.epoch, suspended.name) == (3, "New")
    assert await registry.tenant("acme") == suspended
    with pytest.raises(TransitionRefused):
        await registry.set_state("acme", TenantState.DELETED)
    assert (await registry.tenant("acme")).epoch == 3


async def test_a_deleted_tenant_leaves_no_way_in_and_its_id_taken(registry: SqlRegistry) -> None:
    await registry.create_tenant(make(hosts=("a.example.com",)))
    await registry.bind_issuer(binding())
    await registry.add_api_key(api_key())
    assert await registry.issuers("https://idp.example.com")
    assert await registry.api_key("key_1")
    await registry.set_state("acme", TenantState.OFFBOARDING)
    await registry.set_state("acme", TenantState.DELETED)
    with pytest.raises(NotFound):
        await registry.tenant("acme")
    assert await registry.tenants() == []
    assert await registry.issuers("https://idp.example.com") == ()
    dead = await registry.api_key("key_1")
    assert dead is not None
    assert dead.revoked_at_us == NOW_US
    with pytest.raises(TenantExists):
        await registry.create_tenant(make())
    await registry.create_tenant(make("globex", hosts=("a.example.com",)))


async def test_a_host_name_belongs_to_one_tenant(registry: SqlRegistry) -> None:
    await registry.create_tenant(make(hosts=("a.example.com",)))
    await registry.create_tenant(make("globex"))
    with pytest.raises(InvalidValue, match="belongs to another"):
        await registry.change_tenant("globex", {"hosts": ["b.example.com", "a.example.com"]})
    with pytest.raises(InvalidValue):
        await registry.create_tenant(make("initech", hosts=("a.example.com",)))
    await registry.change_tenant("acme", {"hosts": ["c.example.com"]})
    assert (await registry.change_tenant("globex", {"hosts": ["a.example.com"]})).hosts == ("a.example.com",)


async def test_two_processes_changes_of_one_tenant_are_both_kept(registry: SqlRegistry, other: SqlRegistry) -> None:
    await registry.create_tenant(make())
    for number in range(1, 11):
        await asyncio.gather(
            registry.change_tenant("acme", {"requests_per_minute": number}),
            other.change_tenant("acme", {"name": f"n{number}"}),
        )
    tenant = (await registry.tenants())[0]
    assert (tenant.requests_per_minute, tenant.name, tenant.epoch) == (10, "n10", 20)


async def test_a_tenant_that_changed_under_the_writer_is_a_conflict(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.create_tenant(make())
    read = rows.require_tenant

    def stale(*args: Any) -> Tenant:
        return msgspec.structs.replace(read(*args), epoch=99)

    monkeypatch.setattr(rows, "require_tenant", stale)
    with pytest.raises(Conflict):
        await registry.touch("acme")


# --- issuers ---------------------------------------------------------------------------------------------------


async def test_an_issuer_and_audience_belong_to_one_tenant(registry: SqlRegistry) -> None:
    await registry.create_tenant(make("acme"))
    await registry.create_tenant(make("globex"))
    mine = binding(role_claims={"admins": Role.TENANT_ADMIN}, directory="d", required_scope="s", accept_id_tokens=True)
    await registry.bind_issuer(mine)
    assert await registry.issuers(mine.issuer) == (mine,)
    with pytest.raises(Conflict):
        await registry.bind_issuer(binding("globex", audiences=("app-2", "app-1")))
    assert await registry.tenant_issuers("globex") == ()
    await registry.bind_issuer(binding("globex", audiences=("app-2",)))
    assert [found.tenant_id for found in await registry.issuers(mine.issuer)] == ["acme", "globex"]
    # Binding again replaces one's own.
    await registry.bind_issuer(binding(audiences=("app-1", "app-3")))
    assert [found.audiences for found in await registry.tenant_issuers("acme")] == [("app-1", "app-3")]
    assert (await registry.tenant("acme")).epoch == 2


async def test_an_issuer_is_compared_as_an_exact_string(registry: SqlRegistry) -> None:
    await registry.create_tenant(make())
    await registry.bind_issuer(binding())
    for near in (
        "https://idp.example.com/",
        "https://IDP.example.com",
        "https://idp.example.co",
        "%",
        "",
        "\ud800",
        "x" * 900,
    ):
        assert await registry.issuers(near) == ()
        assert await registry.issuers(near) == ()


async def test_unbinding_takes_the_issuer_away_at_once_and_may_be_repeated(registry: SqlRegistry) -> None:
    await registry.create_tenant(make())
    await registry.bind_issuer(binding())
    assert await registry.issuers("https://idp.example.com")
    await registry.unbind_issuer("acme", "https://idp.example.com")
    await registry.unbind_issuer("acme", "https://idp.example.com")
    await registry.unbind_issuer("acme", "\ud800")
    assert await registry.issuers("https://idp.example.com") == ()
    await registry.bind_issuer(binding())


@pytest.mark.parametrize(
    "fields",
    [
        {"audiences": ()},
        {"audiences": ("a", "a")},
        {"audiences": ("\ud800",)},
        {"issuer": ""},
        {"issuer": "x" * 501},
        {"jwks_url": ""},
    ],
)
async def test_a_binding_that_would_let_in_others_is_refused(registry: SqlRegistry, fields: dict[str, Any]) -> None:
    await registry.create_tenant(make())
    with pytest.raises(InvalidValue):
        await registry.bind_issuer(binding(**fields))
    with pytest.raises(NotFound):
        await registry.bind_issuer(binding("nobody1"))


# --- API keys --------------------------------------------------------------------------------------------------


async def test_an_api_key_is_revoked_by_its_own_tenant_only(registry: SqlRegistry) -> None:
    await registry.create_tenant(make("acme"))
    await registry.create_tenant(make("globex"))
    await registry.add_api_key(api_key())
    await registry.add_api_key(api_key("key_op", None, role=Role.OPERATOR))
    assert await registry.api_key("key_1") == api_key()
    for thief in ("globex", None):
        with pytest.raises(NotFound):
            await registry.revoke_api_key("key_1", tenant_id=thief, now_us=NOW_US)
    with pytest.raises(NotFound):
        await registry.revoke_api_key("\ud800", tenant_id="acme", now_us=NOW_US)
    assert await registry.api_key("key_1") == api_key()
    await registry.revoke_api_key("key_1", tenant_id="acme", now_us=NOW_US)
    await registry.revoke_api_key("key_1", tenant_id="acme", now_us=NOW_US + 9)
    assert await registry.api_key("key_1") == api_key(revoked_at_us=NOW_US)
    assert [record.key_id for record in await registry.api_keys("acme")] == ["key_1"]
    assert [record.key_id for record in await registry.api_keys(None)] == ["key_op"]
    await registry.revoke_api_key("key_op", tenant_id=None, now_us=NOW_US)


async def test_an_api_key_id_is_taken_once_and_for_existing_tenants(registry: SqlRegistry) -> None:
    await registry.create_tenant(make())
    await registry.add_api_key(api_key())
    with pytest.raises(Conflict):
        await registry.add_api_key(api_key(user_id="thief"))
    with pytest.raises(NotFound):
        await registry.add_api_key(api_key("key_2", "nobody1"))
    with pytest.raises(InvalidValue):
        await registry.add_api_key(api_key("key_3", name=""))
    assert await registry.api_key("key_3") is None


async def test_a_key_that_was_asked_for_too_early_is_found_once_it_is_there(
    registry: SqlRegistry, other: SqlRegistry
) -> None:
    await registry.create_tenant(make())
    assert await registry.api_key("key_1") is None
    assert await other.api_key("key_1") is None
    await registry.add_api_key(api_key())
    assert await registry.api_key("key_1") == api_key()

    async def seen() -> bool:
        return await other.api_key("key_1") == api_key()

    await until(seen)


# --- revocations -----------------------------------------------------------------------------------------------


async def test_a_revocation_holds_for_its_subject_and_only_rises(registry: SqlRegistry) -> None:
    def asked(user: str = "u", session: str | None = None, token: str | None = None, tenant: str = "acme") -> int:
        return registry.refused_before_us(tenant, user_id=user, session_id=session, token_id=token)

    assert asked("mio", "s", "t") == 0
    await registry.revoke(refusal("mio"))
    await registry.revoke(refusal("s", kind="session", not_before_us=NOW_US + 5))
    await registry.revoke(refusal("t", kind="token", not_before_us=NOW_US + 9))
    assert asked("mio") == NOW_US
    assert asked("mio", "s") == asked("x", "s") == NOW_US + 5
    assert asked("mio", "s", "t") == NOW_US + 9
    assert asked("s", "mio", "mio") == 0
    assert asked("mio", tenant="globex") == 0
    await registry.revoke(refusal("mio", not_before_us=NOW_US - 50))
    assert asked("mio") == NOW_US
    with pytest.raises(InvalidValue):
        await registry.revoke(refusal(""))
    await registry.close()
    await registry.open()
    assert asked("mio", "s", "t") == NOW_US + 9


# --- key versions ----------------------------------------------------------------------------------------------


async def test_a_new_key_version_retires_the_one_before(registry: SqlRegistry) -> None:
    await registry.create_tenant(make())
    await registry.add_key_version("acme", key_version(1))
    await registry.add_key_version("acme", key_version(2))
    await registry.add_key_uses("acme", 2, 1_000)
    await registry.add_key_uses("acme", 2, 24)
    found = await registry.key_versions("acme")
    assert [(each.version, each.state.value, each.uses) for each in found] == [
        (1, "decrypt_only", 0),
        (2, "active", 1_024),
    ]
    assert (await registry.tenant("acme")).epoch == 2
    for wrong in (1, 2, 4):
        with pytest.raises(Conflict):
            await registry.add_key_version("acme", key_version(wrong))
    await registry.add_key_version("acme", key_version(3, KeyVersionState.DECRYPT_ONLY))
    assert (await registry.key_versions("acme"))[1].state is KeyVersionState.ACTIVE
    await registry.add_key_version("_platform", key_version(1))
    assert len(await registry.key_versions("_platform")) == 1


async def test_of_two_rotations_at_once_one_wins(registry: SqlRegistry, other: SqlRegistry) -> None:
    outcomes = await asyncio.gather(
        registry.add_key_version("acme", key_version(1)),
        other.add_key_version("acme", key_version(1)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "NoneType"]


async def test_a_destroyed_key_leaves_no_trace_in_the_file(registry: SqlRegistry, path: Path) -> None:
    await registry.add_key_version("acme", key_version(1))
    assert b"wrappedwrapped" in path.read_bytes()
    await registry.destroy_key_versions("acme")
    await registry.destroy_key_versions("acme")
    found = await registry.key_versions("acme")
    assert [(each.state, each.wrapped) for each in found] == [(KeyVersionState.DESTROYED, b"")]
    assert b"wrappedwrapped" not in path.read_bytes()
    with pytest.raises(Conflict):
        await registry.add_key_version("acme", key_version(1))
    with pytest.raises(KeyDestroyed):
        await registry.add_key_version("acme", key_version(2))


async def test_a_tenant_ends_from_the_beginning_of_its_deletion_on(registry: SqlRegistry) -> None:
    assert await registry.is_ending("acme")
    await registry.create_tenant(make("acme"))
    assert not await registry.is_ending("acme")
    for end in (registry.begin_deletion("acme"), registry.set_state("acme", TenantState.DELETED)):
        await end
        assert await registry.is_ending("acme")


# --- usage -----------------------------------------------------------------------------------------------------


async def test_use_of_several_processes_adds_up(registry: SqlRegistry, other: SqlRegistry) -> None:
    await registry.add_usage({}, source="a", at_us=1)
    many = {(f"tenant-{number}", "2027-01", "api_calls"): number for number in range(250)}
    await asyncio.gather(
        registry.add_usage(many, source="a", at_us=1),
        other.add_usage(many, source="b", at_us=1),
        registry.add_usage({("acme", "2027-02", "api_calls"): 3}, source="a", at_us=2),
    )
    assert await registry.usage("tenant-249", "2027-01") == {"api_calls": 498}
    assert await other.usage("acme", "2027-02") == {"api_calls": 3}
    assert await registry.usage("acme", "2027-01") == {}


async def test_use_that_is_sent_again_is_added_once(registry: SqlRegistry, other: SqlRegistry, path: Path) -> None:
    january = {("acme", "2027-01", "api_calls"): 5}
    for at_us in (1, 1, 2, 2, 1):
        await registry.add_usage(january, source="a", at_us=at_us)
    await other.add_usage(january, source="b", at_us=1)
    assert await registry.usage("acme", "2027-01") == {"api_calls": 15}
    weeks_later_us = 15 * 86_400 * 1_000_000
    await other.add_usage(january, source="c", at_us=weeks_later_us)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        notes = connection.execute("SELECT metric, value FROM usage WHERE month = ''").fetchall()
    assert notes == [("c", weeks_later_us)]


# --- life ------------------------------------------------------------------------------------------------------


async def test_whoever_waits_for_a_turn_while_the_registry_is_closed_is_answered(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(connection: Connection) -> None:
        begun.set()
        assert go_on.wait(30)

    first = asyncio.create_task(registry._memory.read(slowly))
    await asyncio.to_thread(begun.wait, 30)
    closing = asyncio.create_task(registry.close())
    await asyncio.sleep(0)
    others = [asyncio.create_task(registry.usage("acme", "2027-01")) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([first, closing, *others])
    await closing
    for each in others:
        assert each.exception() is None or isinstance(each.exception(), RegistryUnreachable)


async def test_a_registry_of_a_newer_program_is_refused(registry: SqlRegistry, path: Path, clock: HandClock) -> None:
    await registry.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE nagaya_registry SET version = 99")
    connection.close()
    with pytest.raises(RegistryNewer, match="99"):
        await SqlRegistry.in_file(path, clock).open()


@pytest.mark.parametrize(
    "sql", ["DELETE FROM nagaya_registry", "UPDATE nagaya_registry SET version = 0", "DROP TABLE nagaya_registry"]
)
async def test_a_database_that_is_no_registry_is_refused(
    registry: SqlRegistry, path: Path, clock: HandClock, sql: str
) -> None:
    await registry.close()
    with sqlite3.connect(path) as connection:
        connection.execute(sql)
    connection.close()
    with pytest.raises(RegistryDamaged):
        await SqlRegistry.in_file(path, clock).open()


async def test_a_damaged_file_is_refused_and_not_replaced(registry: SqlRegistry, path: Path, clock: HandClock) -> None:
    await registry.close()
    whole = path.read_bytes()
    for damaged in (b"not a database at all" * 300, whole[:5000], whole[:4096] + os.urandom(4096) * 20):
        path.write_bytes(damaged)
        with pytest.raises(RegistryDamaged):
            await SqlRegistry.in_file(path, clock).open()
        assert path.read_bytes() == damaged
    path.write_bytes(b"")
    with pytest.raises(RegistryDamaged):
        await SqlRegistry.in_file(path, clock, create=False).open()


async def test_a_missing_file_is_made_only_where_that_is_asked(tmp_path: Path, clock: HandClock) -> None:
    with pytest.raises(RegistryUnreachable, match="no file"):
        await SqlRegistry.in_file(tmp_path / "r.db", clock, create=False).open()
    with pytest.raises(RegistryUnreachable, match="no file"):
        await SqlRegistry.in_file(tmp_path / "no" / "r.db", clock).open()
    with pytest.raises(RegistryUnreachable):
        await SqlRegistry.in_file(tmp_path, clock).open()
    for nowhere in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(SettingsInvalid):
            SqlRegistry(nowhere, clock)
    assert list(tmp_path.iterdir()) == []


async def test_the_file_is_readable_by_its_owner_only(registry: SqlRegistry, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_registry_that_is_not_open_says_so(path: Path, clock: HandClock) -> None:
    registry = SqlRegistry.in_file(path, clock)
    assert not registry.is_fresh()
    with pytest.raises(RegistryUnreachable, match="not open"):
        await registry.tenant("acme")
    await registry.close()


async def test_a_cancelled_change_is_carried_out_whole(registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    await registry.create_tenant(make())
    database, may_end = registry._memory.database, asyncio.Event()
    transaction = database.transaction

    async def ends_late(*args: Any, **named: Any) -> Any:
        done = await transaction(*args, **named)
        await may_end.wait()
        return done

    monkeypatch.setattr(database, "transaction", ends_late)
    heard: list[tuple[str | None, str]] = []
    registry.on_change(lambda *change: heard.append(change))
    for turns in range(12):
        may_end.clear()
        changing = asyncio.create_task(registry.change_tenant("acme", {"requests_per_minute": turns + 1}))
        for _ in range(turns):
            await asyncio.sleep(0)
        changing.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await changing
    await registry.close()
    carried_out = len(heard)
    await registry.open()
    tenant = await registry.tenant("acme")
    assert tenant.epoch == carried_out
    assert carried_out >= 10
    # Those that nobody waits for have no order among themselves on a server.
    assert tenant.requests_per_minute in range(2, 13)


async def test_a_change_that_takes_too_long_is_an_error_and_not_a_hang(
    path: Path, clock: HandClock, registry: SqlRegistry
) -> None:
    impatient = SqlRegistry(f"sqlite:///{path.with_name('other.db')}", clock)
    await impatient.open()
    impatient._memory.database._deadline_s = 0.3
    with sqlite3.connect(path.with_name("other.db"), isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnreachable, match=r"no answer within 0\.3 s"):
            await impatient.create_tenant(make())
        holder.execute("ROLLBACK")
    holder.close()
    await impatient.close()


async def test_the_disk_being_full_or_read_only_is_told_apart(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failure, error in (
        (sqlite3.OperationalError("database or disk is full"), StoreFull),
        (sqlite3.OperationalError("attempt to write a readonly database"), StoreReadOnly),
        (sqlite3.DatabaseError("database disk image is malformed"), RegistryDamaged),
        (sqlite3.OperationalError("database is locked"), RegistryUnreachable),
        (OSError(28, "No space left on device"), StoreFull),
        (OSError(30, "Read-only file system"), StoreReadOnly),
        (OSError(5, ""), RegistryUnreachable),
    ):

        def fail(*_: object, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(rows, "find_key_versions", fail)
        with pytest.raises(error):
            await registry.key_versions("acme")


async def test_a_busy_pool_is_an_error_that_can_be_repeated(path: Path, clock: HandClock) -> None:
    registry = SqlRegistry.in_file(path, clock)
    await registry.open()
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    def fail(_: object) -> None:
        raise PoolTimeout

    with pytest.raises(RegistryUnreachable, match="busy"):
        await registry._memory.database.transaction(fail)
    await registry.close()


async def test_memory_does_not_grow_with_the_number_of_tenants(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry._memory.tenants = memory.Recent(8, now_s=lambda: 0.0)
    for number in range(20):
        await registry.create_tenant(make(f"tenant-{number:02}"))
        await registry.tenant(f"tenant-{number:02}")
        await registry.api_key(f"key_{number}")
    assert len(registry._memory.tenants) == 8


async def test_what_was_read_before_a_change_is_not_kept_after_it(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.create_tenant(make())
    find = rows.find_tenant

    def slow(*args: Any) -> Tenant | None:
        found = find(*args)
        registry._memory.forget(rows.ChangeNote("acme", "tenant"))
        return found

    registry._memory.forget(rows.ChangeNote("acme", "tenant"))
    monkeypatch.setattr(rows, "find_tenant", slow)
    await registry.tenant("acme")
    assert registry._memory.tenants.get("acme") is None


async def test_a_change_during_onboarding_leaves_the_undo_to_its_maker(registry: SqlRegistry) -> None:
    await registry.create_tenant(make(state=TenantState.ONBOARDING), onboarding_token=b"mine")
    await registry.change_tenant("acme", {"name": "Step two"})
    assert not await registry.discard_onboarding("acme", b"other")
    assert await registry.discard_onboarding("acme", b"mine")


async def test_damage_inside_a_page_is_found_when_it_is_opened(
    registry: SqlRegistry, path: Path, clock: HandClock
) -> None:
    for number in range(50):
        await registry.create_tenant(make(f"tenant-{number:03}"))
    await registry.close()
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_changes_at_us'").fetchone()[0]
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    whole = bytearray(path.read_bytes())
    # A cell pointer of an index that no ordinary read would have missed.
    whole[(root - 1) * page + 8 : (root - 1) * page + 12] = b"\x00\x01\xff\xff"
    path.write_bytes(whole)
    with pytest.raises(RegistryDamaged):
        await SqlRegistry.in_file(path, clock).open()


async def test_a_file_that_is_gone_before_it_is_opened_is_an_error(
    path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = SqlRegistry.in_file(path, clock)
    monkeypatch.setattr(registry._memory.database, "_file_now", lambda: None)
    with pytest.raises(RegistryUnreachable, match="removed or replaced"):
        await registry.open()


async def test_a_transaction_that_the_loop_cancels_leaves_no_complaint(registry: SqlRegistry) -> None:
    # As at the end of a program that did not close: the task itself is cancelled.
    waiting = asyncio.create_task(registry._memory.database.finish(asyncio.sleep(60)))
    await asyncio.sleep(0)
    for task in set(registry._memory.database._running):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_registry_is_a_tenant_directory_and_a_source_of_keys(registry: SqlRegistry) -> None:
    from nagaya.tenancy import directory

    promised = {name for name in vars(directory.TenantDirectory) if not name.startswith("_")}
    assert promised <= set(dir(registry))


def test_a_postgresql_url_is_taken_as_it_is(clock: HandClock) -> None:
    # No connection is made: only that the same tables and statements are meant for both.
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    assert 'COLLATE "C"' in str(CreateTable(schema.tenants).compile(dialect=postgresql.dialect()))
    statement = schema.upsert(
        "postgresql", schema.usage, [{"tenant_id": "a", "month": "m", "metric": "x", "value": 1}], add="value"
    )
    assert "ON CONFLICT (tenant_id, month, metric) DO UPDATE" in str(statement.compile(dialect=postgresql.dialect()))


async def test_a_host_name_is_its_tenants_until_it_is_given_up(registry: SqlRegistry) -> None:
    assert await registry.host_owner("a.example.com") is None
    await registry.create_tenant(make(hosts=("a.example.com",)))
    await registry.create_tenant(make("globex"))
    for _ in range(2):
        assert await registry.host_owner("a.example.com") == "acme"
        assert await registry.host_owner("b.example.com") is None
    for nobodys in ("", "\ud800", "x" * 300, "A.example.com"):
        assert await registry.host_owner(nobodys) is None
    await registry.change_tenant("acme", {"hosts": []})
    await registry.change_tenant("globex", {"hosts": ["a.example.com"]})
    assert await registry.host_owner("a.example.com") == "globex"
    await registry.set_state("globex", TenantState.OFFBOARDING)
    await registry.set_state("globex", TenantState.DELETED)
    assert await registry.host_owner("a.example.com") is None
