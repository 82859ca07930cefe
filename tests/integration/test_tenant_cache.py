"""A tenant's own cache: sealed before it leaves the process, shared by the servers, seen by no other tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nagaya import Nagaya
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import KeyDisabled, NotFound, SessionClosed
from nagaya.settings import Settings
from nagaya.tenancy.tenant import OPEN_STATES
from parts.aws import REGION, new_table, point_at
from parts.ministack import Ministack
from parts.valkey import Valkey

pytest_plugins = ["parts.valkey_server", "parts.ministack"]

CANARY = b"canary-7f3a: the roof is mended by Ren"


class Servers:
    """Servers on one folder and one shared cache."""

    def __init__(self, folder: Path, url: str | None, closing: AsyncExitStack) -> None:
        self._settings = Settings(data=str(folder), redis=url, region=REGION)
        self._closing = closing

    async def one(self) -> Nagaya:
        return await self._closing.enter_async_context(Nagaya.open(settings=self._settings))

    async def inside(self, nagaya: Nagaya, tenant_id: str) -> TenantContext:
        entrance = await nagaya.enter(await nagaya.tenants.mint(tenant_id, "mio"))
        return await self._closing.enter_async_context(nagaya.session(entrance))


async def is_open(nagaya: Nagaya, tenant_id: str) -> bool:
    """Whether this server knows of the tenant, and that its creation has come to its end."""
    try:
        return (await nagaya.registry.tenant(tenant_id)).state in OPEN_STATES
    except NotFound:
        return False


@pytest.fixture(params=["redis", "dynamodb", "none"])
async def servers(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Servers]:
    url = None
    if request.param == "redis":
        url = request.getfixturevalue("valkey").url()
    elif request.param == "dynamodb":
        monkeypatch.setattr("nagaya.cache.dynamodb_line.DEADLINE_S", 30.0)
        point_at(monkeypatch, request.getfixturevalue("ministack").url)
        url = f"dynamodb://{REGION}/{new_table()}"
    async with AsyncExitStack() as closing:
        yield Servers(tmp_path, url, closing)


async def test_what_a_tenant_keeps_no_other_tenant_has_and_no_look_alike(servers: Servers) -> None:
    nagaya = await servers.one()
    for name in ("acme", "globex", "acme-corp"):
        await nagaya.tenants.create(name, name=name)
    inside = {name: await servers.inside(nagaya, name) for name in ("acme", "globex", "acme-corp")}
    await inside["acme"].cache.set("x", CANARY)
    for name in ("globex", "acme-corp"):
        assert await inside[name].cache.get("x") is None
        await inside[name].cache.set("x", name.encode())
    await inside["acme"].cache.clear()
    assert await inside["acme"].cache.get("x") is None
    assert await inside["acme-corp"].cache.get("x") == b"acme-corp"


async def test_a_disabled_key_opens_no_copy_and_a_deleted_tenant_has_none(servers: Servers) -> None:
    nagaya = await servers.one()
    await nagaya.tenants.create("acme", name="Acme")
    tenant = await servers.inside(nagaya, "acme")
    await tenant.cache.set("x", CANARY)
    driver = nagaya.shared.cache_of(tenant.tenant)
    assert CANARY not in (await driver.get("acme", "x") or b"")
    await nagaya.tenants.revoke_key("acme")
    with pytest.raises((KeyDisabled, SessionClosed)):
        await tenant.cache.get("x")
    await nagaya.tenants.restore_key("acme")
    await nagaya.tenants.delete("acme")
    assert await driver.get("acme", "x") is None


async def test_servers_share_a_tenants_copies_and_what_is_forgotten_on_one_is_on_both(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with AsyncExitStack() as closing:
        servers = Servers(tmp_path, valkey.url(), closing)
        one, other = await servers.one(), await servers.one()
        await one.tenants.create("acme", name="Acme")
        async with asyncio.timeout(30):
            while not await is_open(other, "acme"):
                await asyncio.sleep(0.05)
        here, there = await servers.inside(one, "acme"), await servers.inside(other, "acme")
        await here.cache.set("x", CANARY)
        assert await there.cache.get("x") == CANARY
        names = [name for name in valkey.ask("KEYS", "*").split(b"\r\n") if name.startswith(b"nagaya:")]
        whole = b"".join(name + valkey.ask("DUMP", name) for name in names)
        assert len(whole) > len(CANARY)
        assert not any(word in whole for word in (b"canary", b"by Ren", b"acme"))
        await there.cache.delete("x")
        assert await here.cache.get("x") is None


async def test_a_pinned_tenants_copies_do_not_leave_for_another_region(
    ministack: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers run where the tenant is pinned to; the table that they share lies elsewhere."""
    point_at(monkeypatch, ministack.url)
    monkeypatch.setattr("nagaya.cache.dynamodb_line.DEADLINE_S", 30.0)
    async with AsyncExitStack() as closing:
        servers = Servers(tmp_path, f"dynamodb://eu-west-1/{new_table()}", closing)
        nagaya = await servers.one()
        await nagaya.tenants.create("pinned", name="Pinned", regions=(REGION,))
        await nagaya.tenants.create("free", name="Free")
        kept = []
        for name in ("pinned", "free"):
            tenant = await servers.inside(nagaya, name)
            await tenant.cache.set("x", CANARY)
            assert await tenant.cache.get("x") == CANARY
            kept.append(await nagaya.shared._cache.get(name, "x"))
        assert kept[0] is None
        assert kept[1] is not None
