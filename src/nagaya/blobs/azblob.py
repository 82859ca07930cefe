"""Blobs in Azure Blob Storage.

A room's blobs are ``prefix/room/name`` in a container. What fits into one block is one PUT; anything larger is staged
in blocks, which nobody sees before the list of them is committed and which Azure drops after a week where it never is.
Conditions are Azure's own (etags), so they hold among all writers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Final

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobBlock, BlobSasPermissions, UserDelegationKey, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient, ContainerClient, ExponentialRetry

from nagaya.adapters import Surroundings
from nagaya.blobs.azblob_errors import code_of, mapped
from nagaya.blobs.azblob_place import AzurePlace, azure_place
from nagaya.blobs.driver import MAX_PAGE, BlobInfo
from nagaya.blobs.names import check_name, check_room
from nagaya.clouds.azure import AzureAccount
from nagaya.errors import ConditionFailed, NagayaError, NotFound, StoreDamaged, TenantExists

BLOCK_BYTES: Final = 4 * 1024 * 1024
"""What waits in memory before it is sent; 50,000 of them are more than a blob may have."""

ONE_PUT_BYTES: Final = 1024 * 1024
"""Above this even a small blob is staged: the vendor's client sends a blob of one PUT without a pause for the loop."""

GET_BYTES: Final = 2 * 1024 * 1024
PIECE_BYTES: Final = 256 * 1024
_KEY_LIFETIME: Final = timedelta(hours=6)
_SKEW: Final = timedelta(minutes=10)
_ROOM_MARK: Final = "!room"  # sorts before every name and is none
_OURS: Final = "nagayawrite"
_MARKERS: Final = 64
_GOODBYE_S: Final = 0.05
_REPEATS: Final = 4
_PAUSE_S: Final = 0.15
_PAUSE_MOST_S: Final = 2.0


async def open_house(url: str, surroundings: Surroundings) -> AzureBlobHouse:
    """The container that ``azblob://account/container[/prefix][?region=…]`` names; nothing is asked of it yet.

    Entered with the room's service principal (``azure-connection``), or with the machine's identity. ``region`` must
    be there, and among the tenant's, where the tenant is pinned. An address with a host instead of an account takes
    ``?account=`` for storages that carry it in their path. Raises ``InvalidValue``, ``AddressRefused``,
    ``RegionRefused``, ``ConnectionSecretInvalid``.
    """
    place = azure_place(url)
    account = await AzureAccount.open(surroundings)
    try:
        if surroundings.regions:
            account.check_region(place.region)
        return AzureBlobHouse(place, account, await account.credential())
    except BaseException:
        await account.close()
        raise


class AzureBlobHouse:
    """All rooms in one container, under one prefix."""

    def __init__(self, place: AzurePlace, account: AzureAccount, credential: Any) -> None:
        self._place = place
        self._account = account
        self._container = _Container(place, account, credential)

    async def create(self, room: str) -> None:
        mark = self._place.name(check_room(room), _ROOM_MARK)
        try:
            await self._container.write(mark, BytesIO(), "")
        except ConditionFailed:
            raise TenantExists(value=room) from None
        # Reading, listing and removing must be allowed too; better known now than at the first file.
        try:
            await self.size_bytes(room)
        except NagayaError:
            with contextlib.suppress(NagayaError):
                await self._container.remove(mark)
            raise

    async def open(self, room: str) -> AzureBlobs:
        if await self._container.properties(self._place.name(check_room(room), _ROOM_MARK)) is None:
            raise StoreDamaged(place=f"{self._place}/{room}")
        return AzureBlobs(self._container, self._place.name(room, ""))

    async def destroy(self, room: str) -> None:
        base = self._place.name(check_room(room), "")
        while True:
            names = [each.name async for each in self._container.some(base)]
            if not names:
                return
            for at in range(0, len(names), 16):
                await asyncio.gather(*(self._container.remove(name) for name in names[at : at + 16]))

    async def size_bytes(self, room: str) -> int:
        total = 0
        marker: str | None = None
        base = self._place.name(check_room(room), "")
        while True:
            page, marker = await self._container.page(base, MAX_PAGE, marker)
            total += sum(int(each.size) for each in page)
            if not marker:
                return total

    async def close(self) -> None:
        await self._container.close()
        await self._account.close()
        # Several connections at once were perhaps in use; each still says goodbye to its peer.
        await asyncio.sleep(_GOODBYE_S)


class AzureBlobs:
    """One room's blobs. See :class:`nagaya.blobs.driver.BlobDriver`; also gives pre-signed addresses."""

    def __init__(self, container: _Container, base: str) -> None:
        self._container = container
        self._base = base
        # Azure goes on listing from a marker of its own, not from a name: where each page ended, by the name there.
        self._markers: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        full = self._base + check_name(name)
        waiting = BytesIO()
        blocks: list[str] = []
        # Of the same length for all writers, as Azure wants, and of this writing alone.
        writing = secrets.token_hex(8)
        size = 0
        async for part in parts:
            if waiting.tell() >= BLOCK_BYTES:
                blocks.append(await self._container.stage(full, f"{writing}{len(blocks):08d}", waiting))
                waiting = BytesIO()
            waiting.write(part)
            size += len(part)
            del part  # held no longer than it takes to copy it
        if blocks or waiting.tell() > ONE_PUT_BYTES:
            blocks.append(await self._container.stage(full, f"{writing}{len(blocks):08d}", waiting))
            version = await self._container.commit(full, blocks, expect)
        else:
            version = await self._container.write(full, waiting, expect)
        return BlobInfo(name, size, version)

    async def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        full = self._base + check_name(name)
        begun = False
        try:
            stream = await self._container.download(full, start, None if end is None else end - start)
            async for got in stream.chunks():
                begun = True
                for at in range(0, len(got), PIECE_BYTES):
                    yield got[at : at + PIECE_BYTES]
        except AzureError as error:
            if code_of(error) == "InvalidRange" and not begun:
                return
            if isinstance(error, ResourceNotFoundError) and code_of(error) != "ContainerNotFound":
                raise (ConditionFailed() if begun else NotFound("file")) from None
            raise self._container.mapped(error, "read") from error

    async def info(self, name: str) -> BlobInfo | None:
        found = await self._container.properties(self._base + check_name(name))
        return None if found is None else BlobInfo(name, found.size, _version(found.etag))

    async def delete(self, name: str) -> None:
        await self._container.remove(self._base + check_name(name))

    async def list(self, *, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> Sequence[BlobInfo]:
        marker = self._markers.pop((prefix, after), None)
        found: list[BlobInfo] = []
        while True:
            # Without a marker the listing begins at the prefix, and what comes before ``after`` is passed over.
            page, marker = await self._container.page(self._base + prefix, limit - len(found), marker)
            for each in page:
                name = each.name.removeprefix(self._base)
                if name > after and name != _ROOM_MARK:
                    found.append(BlobInfo(name, each.size, _version(each.etag)))
            if len(found) == limit and marker:
                self._markers[(prefix, found[-1].name)] = marker
                if len(self._markers) > _MARKERS:
                    self._markers.popitem(last=False)
            if len(found) == limit or not marker:
                return found

    async def presigned_get(self, name: str, *, lifetime_s: int) -> str:
        permission = BlobSasPermissions(read=True)
        return await self._container.presigned(self._base + check_name(name), permission, lifetime_s)

    async def presigned_put(self, name: str, *, lifetime_s: int, size: int) -> str:
        """As the port says, but Azure cannot be told the size beforehand: compare it when the blob is there."""
        permission = BlobSasPermissions(create=True, write=True)
        return await self._container.presigned(self._base + check_name(name), permission, lifetime_s)

    async def close(self) -> None:
        """Nothing is held open: the connections are the house's."""


class _Patience(ExponentialRetry):
    """Pauses that a request of a person can wait for: about 0.1, 0.3, 0.9 and 2 seconds, never two alike."""

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        return random.uniform(0.5, 1) * float(min(_PAUSE_MOST_S, _PAUSE_S * 3 ** settings["count"]))  # noqa: S311 - jitter


class _Container:
    """Calls to one container. The vendor's client repeats what failed on the way, with short pauses."""

    def __init__(self, place: AzurePlace, account: AzureAccount, credential: Any) -> None:
        self._place = place
        self._account = account
        endpoint = account.endpoint(place.host, ".blob.core.windows.net") + place.path
        self._service = BlobServiceClient(
            endpoint.rstrip("/"),
            credential=credential,
            transport=account.transport,
            retry_policy=_Patience(retry_total=_REPEATS),
            max_single_get_size=GET_BYTES,
            max_chunk_get_size=GET_BYTES,
            max_single_put_size=2 * BLOCK_BYTES,
            permit_redirects=False,
            user_agent="nagaya",
        )
        self._client: ContainerClient = self._service.get_container_client(place.container)
        self._key: UserDelegationKey | None = None
        self._key_until = datetime.min.replace(tzinfo=UTC)

    async def write(self, name: str, content: BytesIO, expect: str | None) -> str:
        """Write a blob in one call; gives its version."""
        length = content.tell()
        content.seek(0)
        mark = secrets.token_hex(16)
        try:
            written = await self._client.get_blob_client(name).upload_blob(
                content, length=length, overwrite=True, metadata={_OURS: mark}, **_condition(expect)
            )
        except AzureError as error:
            return await self._written(name, mark, error)
        return _version(written["etag"])

    async def stage(self, name: str, block: str, content: BytesIO) -> str:
        """Send one block; gives its id."""
        length = content.tell()
        content.seek(0)
        block_id = base64.b64encode(block.encode()).decode()
        try:
            await self._client.get_blob_client(name).stage_block(block_id, content, length=length)
        except AzureError as error:
            raise self.mapped(error, "write") from error
        return block_id

    async def commit(self, name: str, blocks: list[str], expect: str | None) -> str:
        """Make the blob appear from its blocks; gives its version."""
        mark = secrets.token_hex(16)
        try:
            written = await self._client.get_blob_client(name).commit_block_list(
                [BlobBlock(block_id=each) for each in blocks], metadata={_OURS: mark}, **_condition(expect)
            )
        except AzureError as error:
            return await self._written(name, mark, error)
        return _version(written["etag"])

    async def _written(self, name: str, mark: str, error: AzureError) -> str:
        """The version of a write that was refused, where it was refused only for its own first try."""
        refused = self.mapped(error, "write")
        if isinstance(refused, ConditionFailed):
            found = await self.properties(name)
            if found is not None and (found.metadata or {}).get(_OURS) == mark:
                return _version(found.etag)
        raise refused from error

    async def download(self, name: str, start: int, length: int | None) -> Any:
        whole = start == 0 and length is None
        return await self._client.get_blob_client(name).download_blob(
            offset=None if whole else start, length=length, max_concurrency=1
        )

    async def properties(self, name: str) -> Any:
        """Size, etag and metadata of a blob, or None."""
        try:
            return await self._client.get_blob_client(name).get_blob_properties()
        except ResourceNotFoundError:
            return None
        except AzureError as error:
            raise self.mapped(error, "read") from error

    async def remove(self, name: str) -> None:
        try:
            await self._client.delete_blob(name, delete_snapshots="include")
        except AzureError as error:
            if not isinstance(error, ResourceNotFoundError):
                raise self.mapped(error, "delete") from error

    async def page(self, prefix: str, limit: int, marker: str | None) -> tuple[list[Any], str | None]:
        """Blobs in the order of their names, and where the next page begins."""
        pages = self._client.list_blobs(name_starts_with=prefix, results_per_page=limit).by_page(marker)
        try:
            page = [each async for each in await anext(pages)]
        except AzureError as error:
            raise self.mapped(error, "read") from error
        except StopAsyncIteration:
            return [], None
        return page, getattr(pages, "continuation_token", None)

    async def some(self, prefix: str) -> AsyncIterator[Any]:
        """The first page of what is there."""
        for each in (await self.page(prefix, MAX_PAGE, None))[0]:
            yield each

    async def presigned(self, name: str, permission: BlobSasPermissions, lifetime_s: int) -> str:
        now = datetime.fromtimestamp(self._account.clock.now_us() / 1_000_000, UTC)
        expiry = now + timedelta(seconds=lifetime_s)
        key, until = self._key, self._key_until
        if key is None or until < expiry:
            until = now + _KEY_LIFETIME
            try:
                key = await self._service.get_user_delegation_key(now - _SKEW, until)
            except AzureError as error:
                raise self.mapped(error, "generateUserDelegationKey") from error
            self._key, self._key_until = key, until
        client = self._client.get_blob_client(name)
        signature = generate_blob_sas(
            self._place.account,
            self._place.container,
            name,
            user_delegation_key=key,
            permission=permission,
            start=now - _SKEW,
            expiry=expiry,
            protocol="https",
        )
        return f"{client.url}?{signature}"

    def mapped(self, error: AzureError, action: str) -> NagayaError:
        return mapped(error, action, self._account.room, self._place.container)

    async def close(self) -> None:
        self._key = None
        with contextlib.suppress(HttpResponseError):
            await self._service.close()


def _condition(expect: str | None) -> dict[str, Any]:
    if expect is None:
        return {}
    if not expect:
        return {"match_condition": MatchConditions.IfMissing}
    return {"etag": f'"{expect}"', "match_condition": MatchConditions.IfNotModified}


def _version(etag: Any) -> str:
    return str(etag).strip('"')
