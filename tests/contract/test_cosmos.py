"""Cosmos DB keeps the store contract, with a container per room and with one for all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.stores.cosmos import CosmosHouse
from nagaya.stores.driver import StoreHouse
from nagaya.testing.stores import StoreContract
from parts.azure_cloud import AzureCloud

pytest_plugins = ["parts.azure_fixtures"]


class TestCosmos(StoreContract):
    """By account key, so that containers are made as rooms are."""

    shared = False

    @pytest.fixture
    async def house(self, azure: AzureCloud) -> AsyncIterator[CosmosHouse]:
        self.cloud, self.database = azure, azure.new_database()
        house = self.another()
        yield house
        await house.close()

    def another(self) -> CosmosHouse:
        account = self.cloud.open_account(self.cloud.key_secret())
        return CosmosHouse(account, name=self.cloud.account, database=self.database, shared=self.shared)

    async def reopened(self, house: StoreHouse) -> CosmosHouse:
        await house.close()
        return self.another()


class TestCosmosInOneContainer(TestCosmos):
    shared = True
