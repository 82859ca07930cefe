"""What tests of blob storages need beside the storages: surroundings, buckets, and a look past the adapter."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.loaders import create_loader

from nagaya.adapters import Surroundings
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.keys.keyring import Keyring
from nagaya.records.sealer import Sealer
from nagaya.settings import Settings
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.ministack import Ministack

S3_KEYS = {"access_key_id": "test", "secret_access_key": "test"}
REGION = "us-east-1"


def surroundings(
    room: str = "acme", *, allowed: tuple[str, ...] = ("127.0.0.1",), regions: tuple[str, ...] = (), **secret: Any
) -> Surroundings:
    """A room's surroundings with ``secret`` as its connection secrets (``s3_connection={…}``)."""
    kept = {"s3_connection": S3_KEYS} | secret

    async def read(name: str) -> bytes | None:
        found = kept.get(name.replace("-", "_"))
        return None if found is None else json.dumps(found).encode()

    return Surroundings(Settings(), SystemClock(), EgressPolicy(allowed), room, regions, read)


@asynccontextmanager
async def bare_s3(endpoint: str) -> AsyncIterator[Any]:
    """The vendor's client, for whatever is to be done behind the adapter's back."""
    session = AioSession()
    session.register_component("data_loader", _loader())
    session.set_credentials(S3_KEYS["access_key_id"], S3_KEYS["secret_access_key"])
    config = AioConfig(s3={"addressing_style": "path"}, signature_version="s3v4")
    async with session.create_client("s3", region_name=REGION, endpoint_url=endpoint, config=config) as client:
        yield client


@cache
def _loader() -> Any:
    return create_loader()


@pytest.fixture(scope="session")
def bucket(ministack: Ministack) -> str:
    """A bucket for the whole session."""
    name = f"blobs-{secrets.token_hex(8)}"

    async def make() -> None:
        async with bare_s3(ministack.url) as client:
            await client.create_bucket(Bucket=name)

    asyncio.run(make())
    return name


@pytest.fixture
def s3_url(ministack: Ministack, bucket: str) -> str:
    """An address with a prefix that no other test uses."""
    return f"s3://{bucket}/test/{secrets.token_hex(8)}?endpoint={ministack.url}"


async def unfinished_uploads(url: str) -> list[str]:
    """The keys of multipart uploads that were begun there and neither completed nor aborted."""
    bucket, _, rest = url.removeprefix("s3://").partition("/")
    prefix, _, endpoint = rest.partition("?endpoint=")
    async with bare_s3(endpoint) as client:
        answer = await client.list_multipart_uploads(Bucket=bucket, Prefix=prefix)
    return [each["Key"] for each in answer.get("Uploads", ())]


@pytest.fixture
def make_sealer() -> Any:
    """Makes the sealer of a room, all over one key service."""
    keys, versions = MemoryKeys(), MemoryKeyVersions()

    async def make(room: str) -> Sealer:
        if room not in versions.rooms:
            await versions.rotate(keys, room)
        return Sealer(room, Keyring(room, keys, versions, SystemClock()))

    return make
