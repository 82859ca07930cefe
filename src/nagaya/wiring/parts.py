"""A room's parts: the store and keyring opened now, models when first asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from nagaya.adapters import Surroundings
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.driver import BlobHouse
from nagaya.connections.decoded import Decoded
from nagaya.errors import InvalidValue, KeyDestroyed, NagayaError, RegionRefused, TenantExists
from nagaya.extraction.extractor import Extractor
from nagaya.indexes.open_index import OpenIndex
from nagaya.keys.driver import KeyDriver
from nagaya.keys.keyring import Keyring, key_context
from nagaya.keys.linked import LinkedKeys
from nagaya.keys.versions import KeyVersionState
from nagaya.models.address import parse_model_address
from nagaya.models.driver import ModelDriver
from nagaya.models.model import Embeddings, Model
from nagaya.models.opening import OpenEmbeddings, open_embeddings, open_model
from nagaya.models.spans import Origin
from nagaya.models.tool_server import Address, ToolServer, check_address, open_tool_server
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.records.values import PartitionValues
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.secrets.vault import LLM_CONNECTION, Vault
from nagaya.stores.driver import StoreHouse
from nagaya.stores.store import Store
from nagaya.tenancy.tenant import Tenant
from nagaya.wiring.resources import LOCAL_KEYS
from nagaya.wiring.unfinished import UnfinishedRoom

if TYPE_CHECKING:
    from nagaya.wiring.platform import Nagaya


BUILTIN: Final = "builtin://"


class TenantParts:
    """It implements :class:`nagaya.connections.room.RoomParts` for one tenant; nothing in it names another."""

    def __init__(
        self, nagaya: Nagaya, tenant: Tenant, house: StoreHouse, store: Store, keys: KeyDriver, keyring: Keyring
    ) -> None:
        self._nagaya = nagaya
        self._tenant = tenant
        self._house = house
        self._store = store
        self._keys = keys
        self._keyring = keyring
        self._sealer = Sealer(tenant.id, keyring)
        self.records = SealedStore(store, self._sealer, nagaya.opened)
        self.decoded = Decoded(keyring, nagaya.decoded_limit)
        self.cache = SealedCache(nagaya.shared.cache_of(tenant), self._sealer, nagaya.clock)
        self.secrets = Vault(EmbeddedSecrets(PartitionValues(self.records, Partition("secret", "all"))))
        self._models: list[Model] | None = None
        self._embeddings: list[Embeddings] = []
        self._opened_models: list[ModelDriver | OpenEmbeddings] = []
        self._making = asyncio.Lock()
        self._blob_house: BlobHouse | None = None
        self._blobs: Blobs | None = None
        self._opening_blobs = asyncio.Lock()
        self._index: OpenIndex | None = None

    @classmethod
    async def open(cls, nagaya: Nagaya, tenant: Tenant) -> TenantParts:
        """Open the tenant's key service and store. Raises their errors, with nothing left open."""
        resources = nagaya.resources
        keys = await resources.open_keys(tenant)
        ring_keys = keys if tenant.parent is None else await _linked(nagaya, tenant.parent, tenant, keys)
        keyring = Keyring(tenant.id, ring_keys, nagaya.registry, nagaya.clock, nagaya.settings.key_cache_s)
        # The key is fetched while the store opens; why it cannot be had is said when it is first needed.
        fetching = asyncio.ensure_future(_fetch(keyring))
        try:
            house = await resources.open_store_house(tenant)
            try:
                store = await resources.open_store(house, tenant.id)
            except BaseException:
                if not resources.is_shared_house(house):
                    await house.close()
                raise
            await fetching
        except BaseException:
            fetching.cancel()
            await keyring.close()
            if not resources.are_shared_keys(keys):
                await keys.close()
            raise
        return cls(nagaya, tenant, house, store, keys, keyring)

    @property
    def needs_rotation(self) -> bool:
        return self._keyring.needs_rotation

    @property
    def reads_older(self) -> bool:
        return self._keyring.holds_older

    async def check_key(self) -> None:
        await self._keyring.active()

    async def blobs(self) -> SealedBlobs:
        if self._blobs is None:
            async with self._opening_blobs:
                if self._blobs is None:
                    self._blobs = await self._open_blobs()
        return SealedBlobs(self._blobs, self._sealer)

    async def _open_blobs(self) -> Blobs:
        tenant, resources = self._tenant, self._nagaya.resources
        self._blob_house = house = await resources.open_blob_house(tenant)
        if resources.is_shared_blob_house(house):
            # Made when it is first needed: most tenants of the platform's own storage never keep a file.
            with contextlib.suppress(TenantExists):
                await house.create(tenant.id)
        return Blobs(await house.open(tenant.id))

    async def index(self) -> OpenIndex:
        if self._index is None:
            await self.blobs()
            self._index = OpenIndex(self._read_segment, self._keyring, self._nagaya.index_memory)
        return self._index

    async def _read_segment(self, name: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing((await self.blobs()).read(f"segments/{name}")) as pieces:
            async for piece in pieces:
                yield piece

    @property
    def extractor(self) -> Extractor:
        return self._nagaya.extractor

    @property
    def unfinished(self) -> UnfinishedRoom:
        return self._nagaya.unfinished.of(self._tenant.id)

    async def models(self) -> list[Model]:
        if self._models is None:
            async with self._making:
                if self._models is None:
                    self._models = await self._make_models()
        return self._models

    async def embeddings(self) -> list[Embeddings]:
        await self.models()
        return self._embeddings

    def tool_server_address(self, url: str, headers: Mapping[str, str], at: str) -> Address:
        address = check_address(url, headers, self._nagaya.egress, at)
        regions = self._tenant.regions
        if regions and not self._nagaya.egress.allows(address.host, address.port):
            # Where it lies nobody knows, and it would be told what the model writes.
            raise RegionRefused(region="unknown", allowed=", ".join(regions))
        return address

    async def tool_server(self, address: Address) -> ToolServer:
        return await open_tool_server(address, self._nagaya.egress)

    async def _make_models(self) -> list[Model]:
        surroundings = self._nagaya.resources.surroundings_of(self._tenant)
        secret = await self.secrets.get(LLM_CONNECTION)
        keys = {} if secret is None else msgspec.json.decode(secret, type=dict[str, str])
        try:
            return await self._open_models(keys, surroundings)
        except BaseException:
            # The next call tries anew, and opens them anew.
            await self._close_models()
            raise

    async def _open_models(self, keys: dict[str, str], surroundings: Surroundings) -> list[Model]:
        nagaya, tenant = self._nagaya, self._tenant
        deadline_s = nagaya.settings.model_deadline_s
        models: list[Model] = []
        embeddings: list[Embeddings] = []
        for url in tenant.models or (BUILTIN,):
            address = parse_model_address(url)
            if address.kind == "builtin":
                nagaya.resources.check_here(tenant)
            api_key = keys.get(address.account)
            origin = Origin.of(url, address, content=nagaya.settings.telemetry_content)
            if address.dimensions is None:
                driver = await open_model(url, surroundings, api_key=api_key)
                context = address.context_tokens
                models.append(Model(driver, deadline_s=deadline_s, origin=origin, context_tokens=context))
                self._opened_models.append(driver)
            else:
                embedder = await open_embeddings(url, surroundings, api_key=api_key)
                embeddings.append(Embeddings(embedder, deadline_s=deadline_s, origin=origin))
                self._opened_models.append(embedder)
        if not models:
            raise InvalidValue(param="models", at="models", detail="the tenant has no model that answers")
        if not embeddings and (not tenant.regions or nagaya.settings.region in tenant.regions):
            embeddings.append(Embeddings(await open_embeddings(BUILTIN, surroundings, api_key=None)))
        self._embeddings = embeddings
        return models

    async def close(self) -> None:
        """Close what was opened, in reverse; all of it, also where some fails to close. May be called again."""
        resources = self._nagaya.resources
        async with contextlib.AsyncExitStack() as closing:
            if not resources.are_shared_keys(self._keys):
                closing.push_async_callback(self._keys.close)
            if not resources.is_shared_house(self._house):
                closing.push_async_callback(self._house.close)
            closing.push_async_callback(self._store.close)
            closing.push_async_callback(self._keyring.close)
            if self._blob_house is not None and not resources.is_shared_blob_house(self._blob_house):
                closing.push_async_callback(self._blob_house.close)
            if self._blobs is not None:
                closing.push_async_callback(self._blobs.close)
            closing.push_async_callback(self._close_models)
            if self._index is not None:
                closing.callback(self._index.drop)
            closing.callback(self.decoded.drop)

    async def _close_models(self) -> None:
        async with contextlib.AsyncExitStack() as closing:
            while self._opened_models:
                closing.push_async_callback(self._opened_models.pop(0).close)


async def _linked(nagaya: Nagaya, parent_id: str, workspace: Tenant, keys: KeyDriver) -> KeyDriver:
    """The workspace's keys, which open only while its tenant's key does."""
    parent = await nagaya.registry.tenant(parent_id)
    if parent.key_service == workspace.key_service != LOCAL_KEYS:
        # One key in the customer's own hands wraps both: there is no other to ask.
        return keys

    async def check() -> None:
        versions = nagaya.registry.remembered_key_versions(parent.id) or await nagaya.registry.key_versions(parent.id)
        active = next((each for each in versions if each.state is KeyVersionState.ACTIVE), None)
        if active is None:
            raise KeyDestroyed
        async with nagaya.resources.keys(parent) as above:
            await above.unwrap(active.wrapped, key_context(parent.id, active.version))

    return LinkedKeys(keys, check)


async def _fetch(keyring: Keyring) -> None:
    with contextlib.suppress(NagayaError):
        await keyring.active()
