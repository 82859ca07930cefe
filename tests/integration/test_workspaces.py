"""Workspaces over a real folder and a real registry: what their people may do, and what two processes see of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import (
    Forbidden,
    InvalidValue,
    KeyDisabled,
    NagayaError,
    NotFound,
    SessionClosed,
    TenantExists,
    TenantIdInvalid,
    TenantLookAlike,
    TenantNotOpen,
    TokenRefused,
    WorkspaceRefused,
)
from nagaya.gate.enter import Named
from nagaya.kernel.clock import SystemClock
from nagaya.settings import Settings
from nagaya.tenancy import rows
from nagaya.tenancy.bindings import IssuerBinding, Member
from nagaya.tenancy.names import room_of
from nagaya.tenancy.principal import Entrance, Provider, Role, Scope
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.testing.identity import IssuerKey, KeyServer
from nagaya.wiring import Nagaya
from support.killed import killed_after_a_change

pytest_plugins = ["parts.postgres_server"]

LEGAL = Named(workspace="legal")
WITHIN_S = 30.0


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"), allowed_hosts=("127.0.0.1",))) as opened:
        await opened.tenants.create("acme", name="Acme")
        await opened.tenants.create("acme/legal", name="Legal", admin="mio")
        yield opened


async def comes(nagaya: Nagaya, user: str, ask: Named | None = None, *, to: str = "acme", **more: Any) -> Entrance:
    token = await nagaya.tenants.mint(to, user, **more)
    return await nagaya.enter(token, ask or Named())


async def until(happens: Callable[[], Awaitable[bool]]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not await happens():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


# --- what the people of a tenant may do -----------------------------------------------------------------------


async def test_a_tenants_administrator_makes_a_workspace_and_is_let_in_only_as_a_member(nagaya: Nagaya) -> None:
    chief = await comes(nagaya, "chief", role="tenant_admin")
    made = await nagaya.workspaces.create(chief, "sales", title="Sales", admin="ren")
    assert (made.id, made.role, made.state) == ("acme/sales", None, TenantState.ACTIVE)
    assert [each.id for each in await nagaya.workspaces.mine(chief)] == []
    assert [each.id for each in await nagaya.workspaces.mine(chief, everyone=True)] == ["acme/legal", "acme/sales"]
    assert (await nagaya.workspaces.show(chief, "acme/sales")).role is None
    with pytest.raises(WorkspaceRefused):
        await comes(nagaya, "chief", Named(workspace="sales"), role="tenant_admin")
    for act in (
        nagaya.workspaces.members(chief, "sales"),
        nagaya.workspaces.add_member(chief, "sales", "chief", "user"),
        nagaya.workspaces.remove_member(chief, "sales", "ren"),
    ):
        with pytest.raises(Forbidden):
            await act
    own = await nagaya.workspaces.create(chief, "chiefs", title="Chiefs", admin="chief")
    assert own.role is Role.TENANT_ADMIN
    assert (await comes(nagaya, "chief", Named(workspace="chiefs"))).principal.role is Role.TENANT_ADMIN


async def test_a_tenant_has_no_more_workspaces_than_it_may_also_where_several_are_made_at_once(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_WORKSPACES", 3)
    wanted = [nagaya.tenants.create(f"acme/{name}", name="W", admin="mio") for name in ("sales", "roofs", "beams")]
    made = await asyncio.gather(*wanted, return_exceptions=True)
    assert sum(isinstance(each, InvalidValue) for each in made) == 1
    assert len(await nagaya.tenants.workspaces("acme")) == 3
    await nagaya.tenants.delete("acme/legal")
    await nagaya.tenants.create("acme/tiles", name="W", admin="mio")


@pytest.mark.parametrize("name", ["acme/other", "globex/x", "a/b"])
async def test_a_workspace_is_made_in_ones_own_tenant_alone(nagaya: Nagaya, name: str) -> None:
    chief = await comes(nagaya, "chief", role="tenant_admin")
    with pytest.raises(InvalidValue):
        await nagaya.workspaces.create(chief, name, title="X", admin="chief")


async def test_neither_users_nor_a_workspaces_administrator_nor_a_reading_key_make_workspaces(nagaya: Nagaya) -> None:
    mios = await comes(nagaya, "mio", LEGAL)
    bound = await comes(nagaya, "yui", to="acme/legal", role="tenant_admin")
    reading = await nagaya.tenants.create_api_key(
        "acme", name="r", user="chief", role="tenant_admin", scopes=[Scope.READ]
    )
    for entrance in (await comes(nagaya, "ren"), mios, bound, await nagaya.enter(reading.api_key)):
        with pytest.raises(Forbidden):
            await nagaya.workspaces.create(entrance, "sales", title="Sales", admin="mio")
    with pytest.raises(Forbidden):
        await nagaya.workspaces.mine(await comes(nagaya, "ren"), everyone=True)


async def test_a_workspaces_administrator_lets_people_in_and_out(nagaya: Nagaya) -> None:
    mio = await comes(nagaya, "mio")
    with pytest.raises(WorkspaceRefused):
        await comes(nagaya, "ren", LEGAL)
    added = await nagaya.workspaces.add_member(mio, "legal", "ren", "member")
    assert (added.user, added.role) == ("ren", Role.MEMBER)
    entrance = await comes(nagaya, "ren", LEGAL)
    assert entrance.principal.role is Role.MEMBER
    assert [each.user for each in await nagaya.workspaces.members(mio, "legal")] == ["mio", "ren"]
    # Also from inside, where the header or the token has led.
    inside = await comes(nagaya, "mio", LEGAL)
    assert [each.id for each in await nagaya.workspaces.mine(inside)] == ["acme/legal"]
    await nagaya.workspaces.add_member(inside, "legal", "ren", "user")
    assert not nagaya.gate.is_current(entrance)
    await nagaya.workspaces.remove_member(inside, "acme/legal", "ren")
    with pytest.raises(WorkspaceRefused):
        await comes(nagaya, "ren", LEGAL)
    with pytest.raises(NotFound):
        await nagaya.workspaces.remove_member(mio, "legal", "ren")
    with pytest.raises(NotFound):
        await nagaya.workspaces.members(inside, "sales")


async def test_a_member_who_is_no_administrator_changes_nothing(nagaya: Nagaya) -> None:
    await nagaya.workspaces.add_member_of("acme/legal", "ren", "member")
    ren = await comes(nagaya, "ren")
    assert (await nagaya.workspaces.show(ren, "legal")).role is Role.MEMBER
    for act in (
        nagaya.workspaces.add_member(ren, "legal", "yui", "user"),
        nagaya.workspaces.members(ren, "legal"),
        nagaya.workspaces.archive(ren, "legal"),
    ):
        with pytest.raises(Forbidden):
            await act
    stranger = await comes(nagaya, "yui")
    assert await nagaya.workspaces.mine(stranger) == []
    for act in (
        nagaya.workspaces.show(stranger, "legal"),
        nagaya.workspaces.show(stranger, "nothing"),
        nagaya.workspaces.archive(stranger, "legal"),
    ):
        with pytest.raises(NotFound):
            await act


async def test_a_workspace_keeps_its_last_administrator(nagaya: Nagaya) -> None:
    mio = await comes(nagaya, "mio")
    for act in (
        nagaya.workspaces.remove_member(mio, "legal", "mio"),
        nagaya.workspaces.add_member(mio, "legal", "mio", "user"),
        nagaya.workspaces.remove_member_of("acme/legal", "mio"),
    ):
        with pytest.raises(InvalidValue):
            await act
    await nagaya.workspaces.add_member(mio, "legal", "ren", "tenant_admin")
    await nagaya.workspaces.remove_member(mio, "legal", "mio")
    assert [each.user for each in await nagaya.workspaces.members_of("acme/legal")] == ["ren"]


@pytest.mark.parametrize(("user", "role"), [("", "user"), (" ", "user"), ("a\n", "user"), ("ren", "operator"),
                                            ("ren", "chief"), ("r" * 501, "user"), ("r\0", "user")])  # fmt: skip
async def test_what_is_no_user_or_no_role_is_refused(nagaya: Nagaya, user: str, role: str) -> None:
    with pytest.raises(InvalidValue):
        await nagaya.workspaces.add_member_of("acme/legal", user, role)
    with pytest.raises(NotFound):
        await nagaya.workspaces.members_of("acme")
    with pytest.raises(NotFound):
        await nagaya.workspaces.remove_member_of("acme/legal", "r" * 501)


async def test_an_archived_workspace_is_shut_and_comes_back_with_everything(nagaya: Nagaya) -> None:
    async with nagaya.session(await comes(nagaya, "mio", LEGAL)) as room:
        kept = await room.conversations.create(title="Contract")
        await nagaya.workspaces.archive(await comes(nagaya, "mio"), "legal")
        with pytest.raises(TenantNotOpen):
            await comes(nagaya, "mio", LEGAL)

        async def is_shut() -> bool:
            try:
                await room.conversations.list()
            except SessionClosed:
                return True
            return False

        await until(is_shut)
    chief = await comes(nagaya, "chief", role="tenant_admin")
    with pytest.raises(Forbidden):
        await nagaya.workspaces.reopen(await comes(nagaya, "mio"), "legal")
    with pytest.raises(TenantNotOpen):
        await nagaya.workspaces.add_member(await comes(nagaya, "mio"), "legal", "ren", "user")
    await nagaya.workspaces.reopen(chief, "legal")
    with pytest.raises(InvalidValue):
        await nagaya.workspaces.reopen(chief, "legal")
    async with nagaya.session(await comes(nagaya, "mio", LEGAL)) as room:
        assert (await room.conversations.retrieve(kept.id)).title == "Contract"


async def test_what_an_operator_suspends_while_it_is_being_reopened_stays_shut(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    chief = await comes(nagaya, "chief", role="tenant_admin")
    await nagaya.workspaces.archive(chief, "legal")
    look = nagaya.registry.tenant

    async def looked(tenant_id: str) -> Tenant:
        found = await look(tenant_id)
        if tenant_id == room_of("acme/legal") and found.state is TenantState.ARCHIVED:
            await nagaya.registry.set_state(tenant_id, TenantState.SUSPENDED)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(nagaya.registry, "tenant", looked)
        with pytest.raises(InvalidValue, match="archived"):
            await nagaya.workspaces.reopen(chief, "legal")
    assert (await nagaya.tenants.show("acme/legal")).state is TenantState.SUSPENDED


async def test_who_is_let_in_no_more_keeps_no_key_where_the_process_ends_in_the_middle(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    mio = await comes(nagaya, "mio", LEGAL)
    await nagaya.workspaces.add_member(mio, "legal", "ren", "member")
    theirs = await nagaya.tenants.create_api_key("acme/legal", name="k", user="ren")
    other = await nagaya.tenants.create_api_key("acme/legal", name="k", user="yui")
    bound = await nagaya.tenants.mint("acme/legal", "ren")
    with killed_after_a_change(nagaya, monkeypatch):
        await nagaya.workspaces.remove_member(mio, "legal", "ren")
    for raw in (theirs.api_key, bound):
        with pytest.raises(TokenRefused):
            await nagaya.enter(raw)
    await nagaya.enter(other.api_key)
    revoked = {key.key_id for key in await nagaya.tenants.api_keys("acme/legal") if key.revoked_at_us is not None}
    assert revoked == {theirs.key_id}


# --- who comes from where -------------------------------------------------------------------------------------


async def test_a_foreign_issuers_word_for_a_workspace_is_not_heard_and_its_users_are_members_by_name(
    nagaya: Nagaya,
) -> None:
    key, issuer = IssuerKey("k-1"), "https://login.example"
    async with KeyServer() as server:
        binding = IssuerBinding(
            issuer=issuer, tenant_id="acme", provider=Provider.OIDC, audiences=("api",), jwks_url=server.publish(key)
        )
        await nagaya.tenants.bind_issuer(binding)
        now = int(time.time())
        claims = {"iss": issuer, "aud": "api", "sub": "mio", "iat": now, "exp": now + 600, "jti": "j-1"}
        token = key.sign({**claims, "workspace": "legal", "tenant": "acme/legal"}, typ="at+jwt")
        assert (await nagaya.enter(token)).tenant.id == "acme"
        with pytest.raises(WorkspaceRefused):
            # The local user mio is a member; this is another.
            await nagaya.enter(token, LEGAL)
        entrance = await nagaya.enter(token)
        await nagaya.workspaces.add_member_of("acme/legal", entrance.principal.user_key, "user")
        assert (await nagaya.enter(token, LEGAL)).tenant.address == "acme/legal"


async def test_a_token_names_a_workspace_of_its_own_tenant_or_nothing(nagaya: Nagaya) -> None:
    await nagaya.tenants.create("globex", name="Globex")
    forged = Tenant(
        id="globex", name="G", state=TenantState.ACTIVE, created_at_us=1, store="", parent="globex", workspace="legal"
    )
    with pytest.raises(TokenRefused):
        await nagaya.enter(await nagaya.issuer.mint(forged, "mio"))
    entrance = await comes(nagaya, "mio", to="acme/legal")
    assert (entrance.tenant.address, entrance.principal.role) == ("acme/legal", Role.USER)
    await nagaya.tenants.change("acme", {"max_token_lifetime_s": 600})
    with pytest.raises(TokenRefused):
        await comes(nagaya, "mio", to="acme/legal", lifetime_s=3600)


async def test_a_session_of_a_bound_token_stays_bound(nagaya: Nagaya) -> None:
    entrance = await nagaya.gate.enter(await nagaya.tenants.mint("acme/legal", "yui"), purpose="login")
    session = await nagaya.sign_in.begin(entrance)
    again = await nagaya.enter(session.token)
    assert again.tenant.address == "acme/legal"
    assert await nagaya.sign_in.current(again.principal) is not None
    with pytest.raises(WorkspaceRefused):
        await nagaya.enter(session.token, Named(workspace="sales"))


# --- a room of its own ----------------------------------------------------------------------------------------


async def test_a_workspace_takes_after_its_tenant_and_may_differ(nagaya: Nagaya, tmp_path: Path) -> None:
    await nagaya.tenants.create("globex", name="G", tier="standard", blobs=f"file://{tmp_path}/blobs")
    legal = await nagaya.tenants.create("globex/legal", name="L")
    globex = await nagaya.tenants.show("globex")
    for field in ("tier", "isolation", "store", "blobs", "models", "key_service", "regions"):
        assert getattr(legal, field) == getattr(globex, field), field
    assert (await nagaya.tenants.create("globex/sales", name="S", tier="enterprise")).tier == "enterprise"
    assert [each.id for each in await nagaya.tenants.list()] == ["acme", "globex"]
    assert [each.address for each in await nagaya.tenants.workspaces("globex")] == ["globex/legal", "globex/sales"]
    with pytest.raises(NotFound):
        await nagaya.tenants.workspaces("globex/legal")
    usage = await nagaya.tenants.usage("globex")
    assert usage["stored_bytes"] > (await nagaya.tenants.usage("globex/legal"))["stored_bytes"] > 0


@pytest.mark.parametrize(("address", "fields", "error"), [
    ("acme/legal", {}, TenantExists), ("acme/1egal", {}, TenantLookAlike), ("acme/x", {}, TenantIdInvalid),
    ("acme/legal/inner", {}, TenantIdInvalid), ("hooli/legal", {}, NotFound),
    ("acme/sales", {"hosts": ["sales.example"]}, InvalidValue), ("acme/sales", {"admin": "a\0"}, InvalidValue),
    ("initech", {"admin": "mio"}, InvalidValue),
])  # fmt: skip
async def test_what_cannot_be_a_workspace_leaves_nothing_behind(
    nagaya: Nagaya, address: str, fields: dict[str, Any], error: type[NagayaError]
) -> None:
    folders = {path.name for path in (nagaya.settings.folder / "tenants").iterdir()}
    with pytest.raises(error):
        await nagaya.tenants.create(address, name="X", **fields)
    assert {path.name for path in (nagaya.settings.folder / "tenants").iterdir()} == folders
    assert [each.address for each in await nagaya.tenants.workspaces("acme")] == ["acme/legal"]


async def test_no_workspace_is_made_in_a_tenant_that_is_shut(nagaya: Nagaya) -> None:
    await nagaya.tenants.suspend("acme")
    with pytest.raises(TenantNotOpen):
        await nagaya.tenants.create("acme/sales", name="S")


@pytest.mark.parametrize("what", ["made", "moved"])
async def test_a_workspace_lies_in_its_tenants_regions_also_where_they_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with Nagaya.open(settings=Settings(data=str(tmp_path), region="ap-northeast-1")) as nagaya:
        await nagaya.tenants.create("acme", name="A")
        if what == "moved":
            await nagaya.tenants.create("acme/legal", name="L", regions=("ap-northeast-1",))
        step = "create_tenant" if what == "made" else "change_tenant"
        real = getattr(nagaya.registry, step)

        async def late(*arguments: Any, **more: Any) -> Any:
            monkeypatch.undo()
            await nagaya.tenants.change("acme", {"regions": ["ap-northeast-1"]})
            return await real(*arguments, **more)

        monkeypatch.setattr(nagaya.registry, step, late)
        with pytest.raises(InvalidValue, match="regions"):
            if what == "made":
                await nagaya.tenants.create("acme/legal", name="L")
            else:
                await nagaya.tenants.change("acme/legal", {"regions": []})
        if what == "moved":
            await nagaya.tenants.change("acme", {"regions": []})
            await nagaya.tenants.change("acme/legal", {"regions": []})


async def test_a_workspace_lies_in_its_tenants_regions(tmp_path: Path) -> None:
    async with Nagaya.open(settings=Settings(data=str(tmp_path), region="ap-northeast-1")) as nagaya:
        await nagaya.tenants.create("acme", name="A", regions=("ap-northeast-1", "eu-west-1"))
        await nagaya.tenants.create("acme/legal", name="L", regions=("ap-northeast-1",))
        await nagaya.tenants.change("acme", {"regions": ["ap-northeast-1"]})
        for change in (
            nagaya.tenants.create("acme/sales", name="S", regions=("eu-west-1",)),
            nagaya.tenants.change("acme/legal", {"regions": ["ap-northeast-1", "eu-west-1"]}),
            nagaya.tenants.change("acme/legal", {"regions": []}),
        ):
            with pytest.raises(InvalidValue):
                await change
        await nagaya.tenants.create("open", name="O")
        await nagaya.tenants.create("open/legal", name="L")
        with pytest.raises(InvalidValue):
            await nagaya.tenants.change("open", {"regions": ["ap-northeast-1"]})
        await nagaya.tenants.change("open/legal", {"regions": ["ap-northeast-1"]})
        await nagaya.tenants.change("open", {"regions": ["ap-northeast-1"]})


async def test_a_connection_of_the_tenant_serves_its_workspaces_until_they_have_one(nagaya: Nagaya) -> None:
    legal = await nagaya.tenants.show("acme/legal")
    secret = nagaya.resources.surroundings_of(legal).secret
    assert await secret("s3-connection") is None
    tenants = b'{"access_key_id": "tenants", "secret_access_key": "x"}'
    own = b'{"access_key_id": "own", "secret_access_key": "x"}'
    await nagaya.set_connection("acme", "s3-connection", tenants)
    assert await secret("s3-connection") == tenants
    assert (await nagaya.tenants.show("acme/legal")).epoch > legal.epoch
    await nagaya.set_connection("acme/legal", "s3-connection", own)
    assert await secret("s3-connection") == own
    assert await nagaya.connection_names("acme/legal") == ["s3-connection"]
    await nagaya.delete_connection("acme/legal", "s3-connection")
    assert await secret("s3-connection") == tenants


async def test_a_workspaces_key_opens_only_while_its_tenants_does(nagaya: Nagaya) -> None:
    async with nagaya.session(await comes(nagaya, "mio", LEGAL)) as room:
        chat = await room.conversations.create()
    for revoked in ("acme", "acme/legal"):
        await nagaya.tenants.revoke_key(revoked)

        async def opens() -> bool:
            try:
                async with nagaya.session(await comes(nagaya, "mio", LEGAL)) as room:
                    await room.conversations.retrieve(chat.id)
            except (KeyDisabled, SessionClosed):
                return False
            return True

        async def is_shut(opens: Callable[[], Awaitable[bool]] = opens) -> bool:
            return not await opens()

        await until(is_shut)
        await nagaya.tenants.restore_key(revoked)
        await until(opens)


# --- the registry, on both databases --------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
async def registries(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[SqlRegistry, SqlRegistry]]:
    """Two servers' registries on one database, with the tenants acme and globex and a workspace legal in each."""
    name = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/registry.db"
    else:
        postgres = request.getfixturevalue("postgres")
        name = await postgres.new_database()
        url = postgres.url(name)
    first, second = SqlRegistry(url, SystemClock()), SqlRegistry(url, SystemClock())
    await first.start()
    await second.start()
    for tenant_id in ("acme", "globex"):
        await first.create_tenant(row(tenant_id))
        await first.create_tenant(row(room_of(f"{tenant_id}/legal"), parent=tenant_id, workspace="legal"))
    yield first, second
    await first.close()
    await second.close()
    if name is not None:
        await postgres.drop_database(name)


def row(tenant_id: str, **fields: Any) -> Tenant:
    return Tenant(
        id=tenant_id, name="T", state=TenantState.ACTIVE, created_at_us=1, store="sqlite:///t", **fields
    )  # fmt: skip


def member(address: str = "acme/legal", user: str = "mio", role: Role = Role.TENANT_ADMIN, since_us: int = 1) -> Member:
    return Member(workspace_id=room_of(address), user=user, role=role, since_us=since_us)


async def test_another_server_hears_of_members_and_forgets_what_it_knew(
    registries: tuple[SqlRegistry, SqlRegistry],
) -> None:
    first, second = registries
    heard: list[tuple[str, str]] = []
    second.on_member_change(lambda workspace_id, user: heard.append((workspace_id, user)))
    legal = room_of("acme/legal")

    async def sees(role: Role | None) -> None:
        async def now() -> bool:
            found = await second.member(legal, "mio")
            return (None if found is None else found.role) == role

        await until(now)

    await sees(None)
    await first.put_member(member(since_us=5))
    await sees(Role.TENANT_ADMIN)
    await first.put_member(member(user="ren", since_us=6))
    await first.put_member(member(role=Role.USER, since_us=7))
    await sees(Role.USER)
    found = await second.member(legal, "mio")
    assert found is not None
    assert found.since_us == 5
    await first.remove_member(legal, "mio")
    await sees(None)
    assert (legal, "mio") in heard
    assert await first.member(room_of("globex/legal"), "ren") is None
    assert [each.user for each in await second.members(legal)] == ["ren"]
    assert [each.workspace_id for each in await second.memberships("ren")] == [legal]


async def test_members_are_of_workspaces_that_are_there(registries: tuple[SqlRegistry, SqlRegistry]) -> None:
    first, _ = registries
    for workspace_id in ("acme", "nobody", room_of("acme/nothing"), "x" * 100):
        with pytest.raises(NotFound):
            await first.put_member(Member(workspace_id=workspace_id, user="mio", role=Role.USER, since_us=1))
        with pytest.raises(NotFound):
            await first.remove_member(workspace_id, "mio")
        assert await first.members(workspace_id) == [] or await first.members(workspace_id) == ()
    assert list(await first.memberships("x" * 501)) == []
    assert list(await first.workspaces("x" * 100)) == []
    await first.put_member(member())
    await first.put_member(member("globex/legal"))
    await first.set_state(room_of("acme/legal"), TenantState.OFFBOARDING)
    await first.set_state(room_of("acme/legal"), TenantState.DELETED)
    assert await first.member(room_of("acme/legal"), "mio") is None
    assert await first.member(room_of("globex/legal"), "mio") == member("globex/legal")
    assert [each.id for each in await first.workspaces("acme")] == []


async def test_a_workspace_has_the_id_of_its_address_and_lies_in_a_tenant(
    registries: tuple[SqlRegistry, SqlRegistry],
) -> None:
    first, _ = registries
    legal = room_of("acme/legal")
    for wrong, error in (
        (row("acme-sales", parent="acme", workspace="sales"), InvalidValue),
        (row(room_of("globex/sales"), parent="acme", workspace="sales"), InvalidValue),
        (row("acme-sales", workspace="sales"), InvalidValue),
        (row("acme-sales", parent="acme"), TenantIdInvalid),
        (row(room_of("nobody/sales"), parent="nobody", workspace="sales"), NotFound),
        (row(room_of(f"{legal}/sales"), parent=legal, workspace="sales"), NotFound),
        (row(legal, parent="acme", workspace="legal"), TenantExists),
        (row(room_of("acme/1egal"), parent="acme", workspace="1egal"), TenantLookAlike),
        (row(legal), TenantIdInvalid),
    ):
        with pytest.raises(error):
            await first.create_tenant(wrong)
    await first.create_tenant(row("acme-legal"))
    assert [each.id for each in await first.tenants()] == ["acme", "acme-legal", "globex"]
    for field in ("parent", "workspace"):
        with pytest.raises(InvalidValue):
            await first.change_tenant(legal, {field: "globex"})
