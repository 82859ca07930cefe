"""Documents in a tenant's library, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from nagaya.context.library.files import Files
from nagaya.context.library.stores import FileToAdd
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NotFound
from nagaya.records.sealed_store import Partition, Record
from support.documents import pieces

INDEXED_S = 60.0
"""Longer than the indexing of a few small files takes on a busy machine, the loading of the model included."""


async def keep(tenant: TenantContext, name: str, text: str | bytes) -> str:
    """A file of the user's; its id."""
    body = text if isinstance(text, bytes) else text.encode()
    return (await Files(tenant.session).create(name, pieces(body), purpose="assistants")).id


async def store_with(tenant: TenantContext, *files: tuple[str, str | bytes], **fields) -> tuple[str, list[str]]:
    """A vector store of these files, indexed; its id and the files'."""
    ids = [await keep(tenant, *file) for file in files]
    made = await tenant.vector_stores.create(files=[FileToAdd(each) for each in ids], **fields)
    await indexed(tenant, made.id)
    return made.id, ids


async def indexed(tenant: TenantContext, store_id: str) -> None:
    """Wait until nothing of the store is being indexed."""
    async with asyncio.timeout(INDEXED_S):
        while (await tenant.vector_stores.retrieve(store_id)).status == "in_progress":
            await asyncio.sleep(0.05)


async def settled(tenant: TenantContext) -> None:
    """Wait until nothing is left to be indexed or cleared away in this room."""
    async with asyncio.timeout(INDEXED_S):
        while tenant.session.room.indexing:
            await asyncio.sleep(0.05)


async def every_record(tenant: TenantContext) -> list[tuple[Partition, Record]]:
    """Every record of the room, opened, with where it lies."""
    kept: list[tuple[Partition, Record]] = []
    after = None
    while rows := await tenant.session.records.scan(after=after, limit=500):
        kept += rows
        after = f"{rows[-1][0].collection}/{rows[-1][0].name}", rows[-1][1].sort
    return kept


async def everything_kept(tenant: TenantContext) -> bytes:
    """Every record and blob of the room, opened, but those that are removed meanwhile."""
    kept = [record.body for _, record in await every_record(tenant)]
    blobs = await tenant.session.blobs()
    names = [blob.name async for blob in blobs.list_all()]
    for name in names:
        with contextlib.suppress(NotFound):
            kept += [piece async for piece in blobs.read(name)]
    return b"\n".join(kept)


def texts(found: Sequence) -> str:
    return "\n".join(one.text for one in found)
