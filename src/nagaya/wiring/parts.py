"""A room's parts: the store and keyring opened now, models when first asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from nagaya.keys.driver import KeyDriver
from nagaya.keys.keyring import Keyring
from nagaya.models.address import ModelAddress, parse_model_address
from nagaya.models.builtin import BuiltinModel
from nagaya.models.embeddings import BuiltinEmbeddings
from nagaya.models.model import Embeddings, Model
from nagaya.models.openai_compatible import OpenAICompatibleEmbeddings, OpenAICompatibleModel, OpenAIConnection
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.records.values import PartitionValues
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.secrets.vault import LLM_CONNECTION, Vault
from nagaya.stores.driver import StoreHouse
from nagaya.stores.store import Store
from nagaya.tenancy.tenant import Tenant

if TYPE_CHECKING:
    from nagaya.wiring.platform import Nagaya


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
        self.records = SealedStore(store, Sealer(tenant.id, keyring), nagaya.opened)
        self.secrets = Vault(EmbeddedSecrets(PartitionValues(self.records, Partition("secret", "all"))))
        self._models: list[Model] | None = None
        self._embeddings: list[Embeddings] = []
        self._connections: list[OpenAIConnection] = []
        self._making = asyncio.Lock()

    @classmethod
    async def open(cls, nagaya: Nagaya, tenant: Tenant) -> TenantParts:
        """Open the tenant's key service and store. Raises their errors, with nothing left open."""
        resources = nagaya.resources
        keys = await resources.open_keys(tenant)
        try:
            house = await resources.open_store_house(tenant)
            try:
                store = await resources.open_store(house, tenant.id)
            except BaseException:
                if not resources.is_shared_house(house):
                    await house.close()
                raise
        except BaseException:
            if not resources.are_shared_keys(keys):
                await keys.close()
            raise
        keyring = Keyring(tenant.id, keys, nagaya.registry, nagaya.clock, nagaya.settings.key_cache_s)
        return cls(nagaya, tenant, house, store, keys, keyring)

    @property
    def needs_rotation(self) -> bool:
        return self._keyring.needs_rotation

    @property
    def reads_older(self) -> bool:
        return self._keyring.holds_older

    async def check_key(self) -> None:
        await self._keyring.active()

    async def models(self) -> list[Model]:
        if self._models is None:
            async with self._making:
                if self._models is None:
                    self._models = await self._make_models()
        return self._models

    async def embeddings(self) -> list[Embeddings]:
        await self.models()
        return self._embeddings

    async def _make_models(self) -> list[Model]:
        settings = self._nagaya.settings
        models: list[Model] = []
        for url in self._tenant.models:
            address = parse_model_address(url)
            if address.kind == "builtin":
                models.append(Model(BuiltinModel(), deadline_s=settings.model_deadline_s))
                continue
            connection = OpenAIConnection(
                address.base_url,
                await self._model_key(address),
                policy=self._nagaya.egress,
                read_s=settings.model_deadline_s,
            )
            self._connections.append(connection)
            if address.dimensions is None:
                models.append(
                    Model(OpenAICompatibleModel(connection, address.model), deadline_s=settings.model_deadline_s)
                )
            else:
                driver = OpenAICompatibleEmbeddings(connection, address.model, dimensions=address.dimensions)
                self._embeddings.append(Embeddings(driver, deadline_s=settings.model_deadline_s))
        if not models:
            models.append(Model(BuiltinModel(), deadline_s=settings.model_deadline_s))
        self._embeddings.append(Embeddings(BuiltinEmbeddings(), deadline_s=settings.model_deadline_s))
        return models

    async def _model_key(self, address: ModelAddress) -> str | None:
        secret = await self.secrets.get(LLM_CONNECTION)
        return None if secret is None else msgspec.json.decode(secret, type=dict[str, str]).get(account_of(address))

    async def close(self) -> None:
        """Close what was opened, in reverse. May be called again."""
        for model in self._models or ():
            await model.close()
        for connection in self._connections:
            await connection.close()
        await self._keyring.close()
        await self._store.close()
        if not self._nagaya.resources.is_shared_house(self._house):
            await self._house.close()
        if not self._nagaya.resources.are_shared_keys(self._keys):
            await self._keys.close()


def account_of(address: ModelAddress) -> str:
    """Where a model's key belongs: one vendor's key must never be sent to another."""
    return f"{address.host}:{address.port}"
