"""Stores in DynamoDB keep the store contract: on two stand-ins that know nothing of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.stores.driver import StoreHouse
from nagaya.stores.dynamodb import DynamoHouse, open_house
from nagaya.testing.stores import StoreContract, StoreTraits
from parts.aws import REGION, new_table, point_at, surroundings

pytest_plugins = ["parts.ministack", "parts.dynalite"]


class TestTablePerRoom(StoreContract):
    options = ""

    @pytest.fixture(autouse=True)
    def stand_in(self, ministack, monkeypatch: pytest.MonkeyPatch) -> None:
        point_at(monkeypatch, ministack.url)

    @pytest.fixture
    async def house(self, stand_in: None) -> AsyncIterator[DynamoHouse]:
        self.url = f"dynamodb://{REGION}/{new_table()}{self.options}"
        house = await open_house(self.url, surroundings())
        yield house
        await house.close()

    async def reopened(self, house: StoreHouse) -> DynamoHouse:
        await house.close()
        return await open_house(self.url, surroundings())


class TestSharedTable(TestTablePerRoom):
    options = "?shared=true"


class TestSharedTableWithoutTransactions(TestTablePerRoom):
    """On a database of the same protocol that lacks TransactWriteItems."""

    options = "?shared=true"
    traits = StoreTraits(batches=False)

    @pytest.fixture(autouse=True)
    def stand_in(self, dynalite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        point_at(monkeypatch, dynalite_url)
