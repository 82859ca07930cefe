"""Files, vector stores and search of tenants whose store and storage lie elsewhere: PostgreSQL and S3, DynamoDB and S3,
Cosmos DB and Azure Blob Storage, each a stand-in. The same promises hold there, and a deletion leaves nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiobotocore.session
import pytest

from nagaya import Nagaya
from nagaya.blobs import azblob
from nagaya.blobs.azblob import AzureBlobHouse, azure_place
from nagaya.context.library.search import Wanted
from nagaya.context.library.shelf import catalog_of
from nagaya.context.library.stores import FileToAdd, StaticSizes, StaticStrategy
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NotFound
from nagaya.models.model import Embeddings
from nagaya.settings import Settings
from nagaya.stores import cosmos
from nagaya.stores.cosmos import CosmosHouse
from nagaya.wiring.resources import without_credentials
from parts.aws import REGION, new_table, point_at
from parts.azure_cloud import AzureCloud
from parts.azurite import Azurite, Principal
from parts.blob_places import S3_KEYS
from parts.ministack import Ministack
from parts.postgres import APP, Postgres, done
from support.documents import pieces
from support.library import every_record, everything_kept, indexed, keep, settled, store_with, texts

pytest_plugins = [
    "parts.postgres_server",
    "parts.ministack",
    "parts.azure_fixtures",
    "parts.azurite",
    "parts.blob_places",
]

CANARY = "zq-canary-in-the-clouds-40d1"
ROOF = f"# Roof\n\nThe roof of the warehouse was mended by Kato Roofing in spring. {CANARY}\n"
HEATING = "# 暖房\n\n事務所の暖房は毎年十月に山田設備が点検する。\n"


class Place(NamedTuple):
    """Where a tenant's things lie, and the platform that has it."""

    nagaya: Nagaya
    fields: dict[str, Any]

    async def make(self, tenant: str = "acme") -> None:
        await self.nagaya.tenants.create(tenant, name=tenant.title(), **self.fields)


@pytest.fixture(params=["postgresql and s3", "dynamodb and s3", "cosmos and azblob"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], dict[str, bytes]]:
    """What a tenant is made with, and the connection secrets that it needs before."""
    match request.param:
        case "postgresql and s3":
            store, secrets = _postgresql(request)
        case "dynamodb and s3":
            point_at(monkeypatch, request.getfixturevalue("ministack").url)
            store, secrets = f"dynamodb://{REGION}/{new_table()}", {}
        case _:
            return _azure(request, monkeypatch), {}
    secrets["s3-connection"] = json.dumps(S3_KEYS).encode()
    return {"store": store, "blobs": request.getfixturevalue("s3_url")}, secrets


@pytest.fixture
async def place(where: tuple[dict[str, str], dict[str, bytes]], tmp_path: Path) -> AsyncIterator[Place]:
    fields, secrets = where
    settings = Settings(data=str(tmp_path / "data"), allowed_hosts=("127.0.0.1",))
    async with Nagaya.open(settings=settings) as nagaya:
        for tenant in ("acme", "globex"):
            for name, secret in secrets.items():
                await nagaya.set_connection(tenant, name, secret)
        yield Place(nagaya, fields)


def _postgresql(request: pytest.FixtureRequest) -> tuple[str, dict[str, bytes]]:
    postgres: Postgres = request.getfixturevalue("postgres")
    database = done(postgres.new_database())
    request.addfinalizer(lambda: done(postgres.drop_database(database)))
    done(postgres.run(f'GRANT ALL ON DATABASE "{database}" TO {APP}'))
    url = postgres.url(database, user=APP)
    parts = urlsplit(url)
    secret = {"user": parts.username, "password": unquote(parts.password or "")}
    return without_credentials(url) + "?sslmode=disable", {"postgresql-connection": json.dumps(secret).encode()}


def _azure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    # The stand-ins' certificates are trusted by accounts of the tests' own alone.
    cloud: AzureCloud = request.getfixturevalue("azure")
    azurite: Azurite = request.getfixturevalue("azurite")
    database, url = cloud.new_database(), azurite.new_url()

    async def open_cosmos(address: str, surroundings: object) -> CosmosHouse:
        return CosmosHouse(cloud.open_account(cloud.key_secret()), name=cloud.account, database=database)

    async def open_blobs(address: str, surroundings: object) -> AzureBlobHouse:
        return AzureBlobHouse(azure_place(address), azurite.account(), Principal())

    monkeypatch.setattr(cosmos, "open_house", open_cosmos)
    monkeypatch.setattr(azblob, "open_house", open_blobs)
    return {"store": "cosmos://acme/nagaya", "blobs": url}


def as_user(place: Place, tenant: str, user: str = "mio") -> Any:
    class Inside:
        async def __aenter__(self) -> TenantContext:
            token = await place.nagaya.tenants.mint(tenant, user)
            self._session = place.nagaya.session(await place.nagaya.enter(token))
            return await self._session.__aenter__()

        async def __aexit__(self, *ended: Any) -> None:
            await self._session.__aexit__(*ended)

    return Inside()


async def found(tenant: TenantContext, store: str, query: str, **wanted: Any) -> list[Any]:
    return await tenant.library_search.search([store], [query], Wanted(**wanted))


async def test_files_come_back_whole_and_are_deleted(place: Place):
    await place.make()
    body = bytes(range(256)) * 30_000
    async with as_user(place, "acme") as tenant:
        made = await tenant.files.create("large.bin", pieces(body), purpose="assistants")
        assert b"".join([piece async for piece in tenant.files.content(made.id)]) == body
        others = [await keep(tenant, f"{n}.txt", f"number {n}") for n in range(3)]
        listed = [file.id for file in (await tenant.files.list(limit=2)).data]
        assert listed == [others[2], others[1]]
        for file_id in (made.id, *others):
            await tenant.files.delete(file_id)
        assert (await tenant.files.list()).data == []
        blobs = await tenant.session.blobs()
        assert [blob.name async for blob in blobs.list_all()] == []


async def test_documents_are_indexed_found_and_leave_nothing(place: Place):
    await place.make()
    async with as_user(place, "acme") as tenant:
        store, (roof, heating) = await store_with(tenant, ("roof.md", ROOF), ("暖房.md", HEATING))
        assert (await found(tenant, store, "Who repaired the roof?"))[0].file_id == roof
        assert (await found(tenant, store, "暖房の点検はいつですか"))[0].file_id == heating
        await tenant.vector_stores.update_file(store, roof, {"year": 2024})
        assert (await found(tenant, store, "roof"))[0].attributes == {"year": 2024}
        await tenant.vector_stores.delete_file(store, roof)
        assert CANARY not in texts(await found(tenant, store, CANARY))
        await settled(tenant)
        _, catalog = await catalog_of(tenant.session, store)
        blobs = await tenant.session.blobs()
        segments = {blob.name async for blob in blobs.list_all(prefix="segments/")}
        assert segments == {f"segments/{piece.name}" for piece in catalog.pieces}
        await tenant.files.delete(roof)
        assert CANARY.encode() not in await everything_kept(tenant)
        await tenant.vector_stores.delete(store)
        await settled(tenant)
        await tenant.files.delete(heating)
        with pytest.raises(NotFound):
            await tenant.vector_stores.retrieve(store)
        assert [blob.name async for blob in blobs.list_all()] == []
        left = [place for place, _ in await every_record(tenant) if place.collection.startswith(("vector-", "file"))]
        # When a file ended is forgotten by the daily work.
        assert {place.collection for place in left} <= {"files-ending"}


async def test_chunks_and_attributes_of_the_largest_size_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch):
    """What is written together stays below what one item and one batch may be there: 400 KB, 2 MB."""

    async def at_once(self: Embeddings, given: Sequence[str]) -> tuple[list[list[float]], int]:
        return [[1.0] + [0.0] * (self.dimensions - 1)] * len(given), len(given)

    monkeypatch.setattr(Embeddings, "embed", at_once)
    await place.make()
    text = "".join(f"{n} 屋根の修理は加藤組が春に終えた。費用は三十万円であった。" * 6 + "\n\n" for n in range(1600))
    largest = StaticStrategy(StaticSizes(4096, 0))
    attributes = {f"{n:02d}" + "k" * 60: "値" * 500 for n in range(16)}
    async with as_user(place, "acme") as tenant:
        store = (await tenant.vector_stores.create()).id
        file_id = await keep(tenant, "long.txt", text)
        await tenant.vector_stores.add_file(store, FileToAdd(file_id, attributes, largest))
        await indexed(tenant, store)
        shown = await tenant.vector_stores.file(store, file_id)
        assert (shown.status, shown.last_error) == ("completed", None)
        assert shown.attributes == attributes
        kept = "".join(await tenant.vector_stores.content(store, file_id))
        assert all(f"{n} 屋根" in kept for n in range(1600))
        await tenant.vector_stores.delete(store)
        await settled(tenant)
        assert not [1 for place, _ in await every_record(tenant) if place.collection.startswith("vector-texts")]


async def test_a_batch_of_many_files_is_indexed_and_emptied(place: Place):
    await place.make()
    async with as_user(place, "acme") as tenant:
        store = (await tenant.vector_stores.create()).id
        ids = [await keep(tenant, f"{n}.md", f"Report number {n} on the roof.\n") for n in range(24)]
        batch = await tenant.vector_stores.add_batch(store, [FileToAdd(each, {"n": 1}) for each in ids])
        await indexed(tenant, store)
        ended = await tenant.vector_stores.batch(store, batch.id)
        assert (ended.status, ended.file_counts.completed) == ("completed", 24)
        assert len({hit.file_id for hit in await found(tenant, store, "roof", limit=50)}) == 24
        await settled(tenant)
        await tenant.vector_stores.delete(store)
        await settled(tenant)
        blobs = await tenant.session.blobs()
        assert [blob.name async for blob in blobs.list_all(prefix="segments/")] == []


async def test_row_22_two_tenants_of_one_place_find_their_own(place: Place):
    await place.make("acme")
    await place.make("globex")
    async with as_user(place, "acme") as acme, as_user(place, "globex") as globex:
        mine, _ = await store_with(acme, ("roof.md", ROOF))
        theirs, _ = await store_with(globex, ("heating.md", HEATING))
        assert CANARY in texts(await found(acme, mine, "roof"))
        assert CANARY not in texts(await found(globex, theirs, CANARY, limit=50))
        with pytest.raises(NotFound):
            await found(globex, mine, CANARY)
        assert CANARY.encode() not in await everything_kept(globex)


async def test_a_workspace_has_a_key_a_store_and_files_of_its_own_in_aws(
    ministack: Ministack, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    point_at(monkeypatch, ministack.url)
    async with aiobotocore.session.get_session().create_client("kms", region_name=REGION) as kms:
        keys = [(await kms.create_key())["KeyMetadata"]["Arn"] for _ in range(2)]
    settings = Settings(data=str(tmp_path / "data"), allowed_hosts=("127.0.0.1",))
    async with Nagaya.open(settings=settings) as nagaya:
        await nagaya.set_connection("acme", "s3-connection", json.dumps(S3_KEYS).encode())
        for (address, more), key in zip((("acme", {}), ("acme/legal", {"admin": "mio"})), keys, strict=True):
            where, _, endpoint = s3_url.partition("?")
            await nagaya.tenants.create(
                address, name="A", store=f"dynamodb://{REGION}/{new_table()}",
                key_service=f"awskms://{key}?region={REGION}", blobs=f"{where}/{key[-8:]}?{endpoint}", **more,
            )  # fmt: skip
        place = Place(nagaya, {})
        async with as_user(place, "acme") as acme, as_user(place, "acme/legal") as legal:
            store, (file_id, *_) = await store_with(legal, ("roof.md", ROOF))
            own, _ = await store_with(acme, ("heating.md", HEATING))
            assert CANARY in texts(await found(legal, store, "Who mended the roof?"))
            assert CANARY not in texts(await found(acme, own, CANARY, limit=50))
            for refused in (found(acme, store, CANARY), acme.files.retrieve(file_id)):
                with pytest.raises(NotFound):
                    await refused
            assert CANARY.encode() not in await everything_kept(acme)
            await legal.vector_stores.delete(store)
            await settled(legal)
            await legal.files.delete(file_id)
            blobs = await legal.session.blobs()
            assert [blob.name async for blob in blobs.list_all()] == []
            assert CANARY.encode() not in await everything_kept(legal)
            assert "山田設備" in texts(await found(acme, own, "暖房の点検"))
