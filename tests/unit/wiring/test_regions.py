"""A pinned tenant gets nothing that lies elsewhere, or of which nobody says where it lies; docs/howto/regions.md."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nagaya.errors import InvalidValue, RegionRefused
from nagaya.settings import Settings
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.wiring import Nagaya

HERE, ELSEWHERE = "ap-northeast-1", "eu-west-1"


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    settings = Settings(data=str(tmp_path), region=HERE, allowed_hosts=("127.0.0.1",))
    async with Nagaya.open(settings=settings) as opened:
        yield opened


def pinned(region: str, **brought: Any) -> Tenant:
    tenant = Tenant(
        id="acme", name="Acme", state=TenantState.ACTIVE, created_at_us=1, store="sqlite:///tenants", regions=(region,)
    )
    return msgspec.structs.replace(tenant, **brought)


@pytest.mark.parametrize(
    "store",
    [
        "sqlite:///tenants",
        f"dynamodb://{HERE}/table",
        "postgresql://127.0.0.1/db",
        f"postgresql://127.0.0.1/db?region={HERE}",
    ],
)
async def test_a_store_that_lies_elsewhere_is_not_opened(nagaya: Nagaya, store: str) -> None:
    with pytest.raises((RegionRefused, InvalidValue), match=ELSEWHERE):
        await nagaya.resources.open_store_house(pinned(ELSEWHERE, store=store))


@pytest.mark.parametrize(
    "keys", ["local://", f"awskms://alias/x?region={HERE}", f"awskms://arn:aws:kms:{HERE}:123456789012:key/1"]
)
async def test_a_key_service_that_lies_elsewhere_is_not_opened(nagaya: Nagaya, keys: str) -> None:
    with pytest.raises(RegionRefused, match=ELSEWHERE):
        await nagaya.resources.open_keys(pinned(ELSEWHERE, key_service=keys))


@pytest.mark.parametrize(
    "blobs",
    [
        "file:///srv/blobs",
        f"s3://bucket/x?region={HERE}",
        "s3://bucket/x?endpoint=https://127.0.0.1",
        "azblob://account/container",
        f"azblob://account/container?region={HERE}",
    ],
)
async def test_blobs_that_lie_elsewhere_are_not_opened(nagaya: Nagaya, blobs: str) -> None:
    await nagaya.set_connection("acme", "s3-connection", b'{"access_key_id": "a", "secret_access_key": "b"}')
    await nagaya.set_connection("acme", "aws-connection", b'{"role_arn": "arn:aws:iam::123456789012:role/r"}')
    with pytest.raises(RegionRefused, match=ELSEWHERE):
        async with nagaya.resources.blob_house(pinned(ELSEWHERE, blobs=blobs)):
            pass


@pytest.mark.parametrize(
    "model",
    [
        "builtin://",
        f"bedrock://{HERE}/amazon.nova-lite-v1:0",
        f"bedrock://{ELSEWHERE}/eu.amazon.nova-lite-v1:0",
        "openai://gpt-5-mini",
        "azure-openai://resource/deployment",
        "azure-openai://resource/deployment?region=japaneast",
    ],
)
async def test_a_model_that_may_answer_elsewhere_is_refused_before_the_tenant_is_made(
    nagaya: Nagaya, model: str
) -> None:
    with pytest.raises(RegionRefused, match=ELSEWHERE):
        await nagaya.tenants.create("acme", name="Acme", regions=(ELSEWHERE,), models=[model])
    assert await nagaya.tenants.list() == []


async def test_a_pin_and_a_model_that_are_set_at_the_same_time_do_not_both_hold(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nagaya.tenants.create("acme", name="Acme")
    change = nagaya.registry.change_tenant

    async def late(*arguments: Any, **more: Any) -> Tenant:
        monkeypatch.undo()
        await nagaya.tenants.change("acme", {"regions": [HERE]})
        return await change(*arguments, **more)

    monkeypatch.setattr(nagaya.registry, "change_tenant", late)
    with pytest.raises(RegionRefused, match=HERE):
        await nagaya.tenants.change("acme", {"models": ["openai://gpt-5-mini"]})
    assert (await nagaya.tenants.show("acme")).models == ("builtin://",)


async def test_a_tenant_whose_pin_was_changed_by_hand_is_refused_when_it_is_opened_next(nagaya: Nagaya) -> None:
    await nagaya.tenants.create("acme", name="Acme", regions=(HERE,))
    entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
    await nagaya.registry.change_tenant("acme", {"regions": [ELSEWHERE]})
    entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
    with pytest.raises(RegionRefused):
        async with nagaya.session(entrance) as tenant:
            await tenant.conversations.create(title="Roof")
