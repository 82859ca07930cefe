"""A tenant's blobs behind its session: its own storage, the platform's, or a clear refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from nagaya.errors import NoBlobStore, NotFound, RegionRefused
from nagaya.settings import Settings
from nagaya.tenancy.principal import Entrance
from nagaya.wiring import Nagaya

SECRET = b"the roof of acme leaks at the north side"


async def person(nagaya: Nagaya, tenant: str) -> Entrance:
    return await nagaya.enter(await nagaya.tenants.mint(tenant, "mio", "user"))


async def parts(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_a_file_comes_back_and_lies_sealed_in_the_data_folder(tmp_path: Path) -> None:
    async with Nagaya.open(tmp_path) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        async with nagaya.session(await person(nagaya, "acme")) as tenant:
            blobs = await tenant.session.blobs()
            await blobs.put("file/1", parts(SECRET))
            async with aclosing(blobs.read("file/1")) as pieces:
                assert b"".join([piece async for piece in pieces]) == SECRET
    stored = [each for each in (tmp_path / "blobs" / "acme").rglob("*") if each.is_file()]
    assert any(each.stat().st_size > len(SECRET) for each in stored)
    assert not any(SECRET in each.read_bytes() for each in stored)


async def test_a_neighbour_does_not_see_the_file(tmp_path: Path) -> None:
    async with Nagaya.open(tmp_path) as nagaya:
        for each in ("acme", "globex"):
            await nagaya.tenants.create(each, name=each)
        async with nagaya.session(await person(nagaya, "acme")) as acme:
            await (await acme.session.blobs()).put("file/1", parts(SECRET))
        async with nagaya.session(await person(nagaya, "globex")) as globex:
            blobs = await globex.session.blobs()
            assert await blobs.list() == []
            with pytest.raises(NotFound):
                async with aclosing(blobs.read("file/1")) as pieces:
                    await anext(pieces)


async def test_a_deleted_tenants_files_are_gone_from_the_platforms_storage(tmp_path: Path) -> None:
    async with Nagaya.open(tmp_path) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        async with nagaya.session(await person(nagaya, "acme")) as tenant:
            await (await tenant.session.blobs()).put("file/1", parts(SECRET))
        assert (await nagaya.tenants.usage("acme"))["stored_bytes"] > len(SECRET)
        await nagaya.tenants.delete("acme")
        assert not (tmp_path / "blobs" / "acme").exists()


async def test_shared_servers_without_a_blob_storage_say_what_is_missing(tmp_path: Path) -> None:
    async with Nagaya.open(tmp_path) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        tenant = await nagaya.tenants.show("acme")
        nagaya.resources._settings = Settings(data=str(tmp_path), registry="postgresql://elsewhere/db")
        assert not nagaya.resources.has_blobs(tenant)
        with pytest.raises(NoBlobStore, match="default_blobs"):
            await nagaya.resources.open_blob_house(tenant)


async def test_a_tenant_pinned_elsewhere_does_not_get_the_platforms_storage(tmp_path: Path) -> None:
    async with Nagaya.open(settings=Settings(data=str(tmp_path), region="ap-northeast-1")) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        elsewhere = msgspec.structs.replace(await nagaya.tenants.show("acme"), regions=("eu-central-1",))
        assert not nagaya.resources.has_blobs(elsewhere)
        with pytest.raises(RegionRefused):
            await nagaya.resources.open_blob_house(elsewhere)
