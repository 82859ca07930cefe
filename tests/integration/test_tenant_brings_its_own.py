"""Tenants that bring their own store, key service and connections: made, tried for real, used, and taken down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from nagaya import Message, Nagaya
from nagaya.errors import (
    ConnectionSecretInvalid,
    ExternalIdRefused,
    InvalidValue,
    NotFound,
    RegionRefused,
    SessionClosed,
    StoreUnreachable,
)
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.settings import Settings
from nagaya.wiring import platform
from nagaya.wiring.parts import TenantParts
from nagaya.wiring.resources import without_credentials
from parts.aws import point_at
from parts.postgres import APP, Postgres

pytest_plugins = ["parts.postgres_server", "parts.ministack"]

CANARY = "canary-of-acme-5b1f"


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    settings = Settings(data=str(tmp_path / "data"), allowed_hosts=("127.0.0.1",), region="ap-northeast-1")
    async with Nagaya.open(settings=settings) as opened:
        yield opened


async def talk(nagaya: Nagaya, tenant: str, text: str) -> list[str]:
    entrance = await nagaya.enter(await nagaya.tenants.mint(tenant, "mio"))
    async with nagaya.session(entrance) as inside:
        chat = await inside.conversations.create(title="Roof")
        await inside.conversations.append(chat.id, Message.user(text))
        await inside.responses.create("What did I say?", conversation=chat.id)
        return [item.text for item in await inside.conversations.items(chat.id, order="asc")]


async def connect(nagaya: Nagaya, tenant: str, url: str) -> None:
    parts = urlsplit(url)
    secret = {"user": parts.username, "password": unquote(parts.password or "")}
    await nagaya.set_connection(tenant, "postgresql-connection", json.dumps(secret).encode())


async def test_a_tenant_on_its_own_postgresql_talks_and_leaves_only_sealed_bytes_there(
    nagaya: Nagaya, postgres: Postgres, database: str
):
    await postgres.run(f'GRANT ALL ON DATABASE "{database}" TO {APP}')
    await connect(nagaya, "acme", postgres.url(database, user=APP))
    store = without_credentials(postgres.url(database, user=APP)) + "?sslmode=disable"
    await nagaya.tenants.create("acme", name="Acme", store=store)
    await nagaya.tenants.create("globex", name="Globex")
    texts = await talk(nagaya, "acme", CANARY)
    assert texts[0] == CANARY
    assert CANARY in texts[2]
    rows = await postgres.ask("SELECT body FROM nagaya_acme.records", database=database)
    assert rows
    assert not any(CANARY.encode() in bytes(body) for (body,) in rows)
    assert (await nagaya.tenants.usage("acme"))["stored_bytes"] > 0
    await nagaya.tenants.delete("acme")
    assert await postgres.ask("SELECT 1 FROM pg_namespace WHERE nspname = 'nagaya_acme'", database=database) == []


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await true():
            await asyncio.sleep(0.05)


async def test_suspending_a_tenant_closes_its_connections_also_those_in_use(
    nagaya: Nagaya, postgres: Postgres, database: str
):
    await postgres.run(f'GRANT ALL ON DATABASE "{database}" TO {APP}')
    await connect(nagaya, "acme", postgres.url(database, user=APP))
    store = without_credentials(postgres.url(database, user=APP)) + "?sslmode=disable"
    await nagaya.tenants.create("acme", name="Acme", store=store)
    entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
    inside = await nagaya.inside(entrance)
    await inside.conversations.create(title="Roof")

    async def lines() -> int:
        found = await postgres.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database)
        return int(found[0][0])

    async def none_left() -> bool:
        return await lines() == 0

    assert await lines() > 0
    await nagaya.tenants.suspend("acme")
    await until(none_left)
    with pytest.raises(SessionClosed):
        await inside.conversations.create(title="Roof")
    assert await none_left()
    await nagaya.tenants.resume("acme")
    await talk(nagaya, "acme", CANARY)
    await inside.close()


async def test_a_key_that_its_owner_disables_in_kms_ends_what_is_open(
    tmp_path: Path, ministack, monkeypatch: pytest.MonkeyPatch
):
    point_at(monkeypatch, ministack.url)
    monkeypatch.setattr(platform, "_KEY_WATCH_S", 0.1)
    key = await _kms_key(ministack.url)
    settings = Settings(data=str(tmp_path / "data"), key_cache_s=1.0)
    async with Nagaya.open(settings=settings) as nagaya:
        await nagaya.tenants.create("acme", name="Acme", key_service=f"awskms://{key}?region=ap-northeast-1")
        await nagaya.tenants.create("globex", name="Globex")
        mine, others = [await nagaya.enter(await nagaya.tenants.mint(tenant, "mio")) for tenant in ("acme", "globex")]
        # As while a stream is open: inside, and in need of no key before its end.
        async with nagaya.session(mine), nagaya.session(others):
            await asyncio.sleep(2.0)
            assert nagaya.gate.is_current(mine)
            await _kms(ministack.url, "DisableKey", KeyId=key)

            async def ended() -> bool:
                return not nagaya.gate.is_current(mine)

            await until(ended)
            assert nagaya.gate.is_current(others)


async def test_a_tenant_on_dynamodb_under_a_kms_key_talks(nagaya: Nagaya, ministack, monkeypatch: pytest.MonkeyPatch):
    point_at(monkeypatch, ministack.url)
    key = await _kms_key(ministack.url)
    await nagaya.tenants.create(
        "acme",
        name="Acme",
        store="dynamodb://ap-northeast-1/nagaya",
        key_service=f"awskms://{key}?region=ap-northeast-1",
        regions=("ap-northeast-1",),
    )
    texts = await talk(nagaya, "acme", CANARY)
    assert texts[0] == CANARY
    await nagaya.tenants.delete("acme")
    with pytest.raises(NotFound):
        await nagaya.tenants.show("acme")


async def test_a_tenant_with_blobs_gets_a_place_for_them_and_loses_it_with_its_end(nagaya: Nagaya, tmp_path: Path):
    await nagaya.tenants.create("acme", name="Acme", blobs=f"file://{tmp_path}/blobs")
    assert (tmp_path / "blobs" / "acme").is_dir()
    await nagaya.tenants.usage("acme")
    await nagaya.tenants.delete("acme")
    assert not (tmp_path / "blobs" / "acme").exists()


async def test_a_store_that_cannot_be_reached_is_refused_and_nothing_of_the_tenant_stays(nagaya: Nagaya):
    await connect(nagaya, "acme", "postgresql://nobody:none@127.0.0.1")
    with pytest.raises(StoreUnreachable):
        await nagaya.tenants.create("acme", name="Acme", store="postgresql://127.0.0.1:9/none?sslmode=disable")
    with pytest.raises(NotFound):
        await nagaya.tenants.show("acme")
    await nagaya.tenants.create("acme", name="Acme")


async def test_an_unknown_kind_of_store_is_refused_with_the_known_ones(nagaya: Nagaya):
    with pytest.raises(InvalidValue, match="postgresql://"):
        await nagaya.tenants.create("acme", name="Acme", store="oracle://x")


async def test_a_tenant_pinned_elsewhere_gets_nothing_that_lies_here(nagaya: Nagaya):
    with pytest.raises(RegionRefused):
        await nagaya.tenants.create("acme", name="Acme", regions=("eu-west-1",))
    await nagaya.tenants.create("acme", name="Acme", regions=("ap-northeast-1",))
    with pytest.raises(RegionRefused):
        await nagaya.tenants.change("acme", {"regions": ["eu-west-1"]})
    with pytest.raises(RegionRefused):
        await nagaya.tenants.change("acme", {"models": ["openai://gpt-5"]})
    changed = await nagaya.tenants.change("acme", {"regions": ["ap-northeast-1", "ap-northeast-3"]})
    assert changed.regions == ("ap-northeast-1", "ap-northeast-3")


async def test_row_27_the_external_id_is_ours_and_a_customers_own_is_refused(nagaya: Nagaya):
    issued = await nagaya.external_id("acme")
    assert issued == await nagaya.external_id("acme")
    assert issued != await nagaya.external_id("globex")
    secret = {"role_arn": "arn:aws:iam::123456789012:role/nagaya", "region": "ap-northeast-1"}
    with pytest.raises(ExternalIdRefused):
        await nagaya.set_connection(
            "acme", "aws-connection", json.dumps({**secret, "external_id": "of-my-own-choice"}).encode()
        )
    await nagaya.set_connection("acme", "aws-connection", json.dumps(secret).encode())
    assert await nagaya.connection_names("acme") == ["aws-connection"]
    assert await nagaya.connection_names("globex") == []
    with pytest.raises(ConnectionSecretInvalid):
        await nagaya.set_connection("acme", "aws-connection", b"[]")
    with pytest.raises(InvalidValue):
        await nagaya.set_connection("acme", "my-secret", b"{}")
    await nagaya.delete_connection("acme", "aws-connection")
    assert await nagaya.connection_names("acme") == []


@pytest.fixture
def looking_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two who read a secret both do so before either goes on."""
    get, both, looked = EmbeddedSecrets.get, asyncio.Event(), 0

    async def looks(secrets: EmbeddedSecrets, name: str) -> bytes | None:
        nonlocal looked
        found = await get(secrets, name)
        looked += 1
        if looked == 2:
            both.set()
        await both.wait()
        return found

    monkeypatch.setattr(EmbeddedSecrets, "get", looks)


@pytest.mark.usefixtures("looking_at_once")
async def test_two_who_ask_for_an_external_id_at_once_are_told_the_same(nagaya: Nagaya):
    one, other = await asyncio.gather(nagaya.external_id("acme"), nagaya.external_id("acme"))
    assert one == other == await nagaya.external_id("acme")


async def test_of_two_model_keys_that_are_set_at_once_neither_is_lost(nagaya: Nagaya, request: pytest.FixtureRequest):
    models = ["openai://gpt-5", "azure-openai://resource/deployment"]
    await nagaya.tenants.create("acme", name="Acme", models=models)
    request.getfixturevalue("looking_at_once")
    hosts = ("api.openai.com", "resource.openai.azure.com")
    await asyncio.gather(*(nagaya.set_model_key("acme", f"key of {host}", host=host) for host in hosts))
    parts = await TenantParts.open(nagaya, await nagaya.tenants.show("acme"))
    kept = await parts.secrets.get("llm-connection") or b""
    await parts.close()
    assert all(f"key of {host}".encode() in kept for host in hosts)


async def test_the_whole_platform_on_postgresql_is_seen_alike_by_two_servers(
    tmp_path: Path, postgres: Postgres, database: str
):
    await postgres.run(f'GRANT ALL ON DATABASE "{database}" TO {APP}')
    url = postgres.url(database, user=APP)
    await postgres.run(f"GRANT CREATE ON SCHEMA public TO {APP}", database=database)
    shared = {"registry": url, "platform_store": url, "default_store": url, "allowed_hosts": ("127.0.0.1",)}
    one, other = (Settings(data=str(tmp_path / "keys"), **shared) for _ in range(2))
    async with Nagaya.open(settings=one) as first, Nagaya.open(settings=other) as second:
        made = await first.tenants.create("acme", name="Acme")
        assert "@" not in made.store
        token = await first.tenants.mint("acme", "mio")
        async with first.session(await first.enter(token)) as inside:
            chat = await inside.conversations.create(title="Roof")
        async with second.session(await second.enter(token)) as inside:
            await inside.conversations.append(chat.id, Message.user(CANARY))
        async with first.session(await first.enter(token)) as inside:
            assert [item.text for item in await inside.conversations.items(chat.id)] == [CANARY]
        await first.audit.flush()
        assert (await second.audit.verify("acme")).count >= 1


async def _kms_key(url: str) -> str:
    return str((await _kms(url, "CreateKey"))["KeyMetadata"]["Arn"])


async def _kms(url: str, operation: str, **request: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        reply = await client.post(
            url,
            json=request,
            headers={
                "x-amz-target": f"TrentService.{operation}",
                "content-type": "application/x-amz-json-1.1",
                "authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/ap-northeast-1/kms/aws4_request, "
                "SignedHeaders=host, Signature=0",
            },
        )
        assert reply.status_code == 200, reply.text
        return dict(reply.json() or {}) if reply.content else {}
