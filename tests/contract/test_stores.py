"""Both store adapters keep the store contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.stores.driver import StoreHouse
from nagaya.stores.memory import MemoryHouse
from nagaya.stores.sqlite import SqliteHouse
from nagaya.testing.stores import StoreContract, StoreTraits


class TestMemory(StoreContract):
    traits = StoreTraits(durable=False)

    @pytest.fixture
    async def house(self) -> AsyncIterator[MemoryHouse]:
        house = MemoryHouse()
        yield house
        await house.close()


class TestSqlite(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "rooms"

    @pytest.fixture
    async def house(self, folder: Path) -> AsyncIterator[SqliteHouse]:
        house = SqliteHouse(folder)
        self.folder_of = folder
        yield house
        await house.close()

    async def reopened(self, house: StoreHouse) -> SqliteHouse:
        await house.close()
        return SqliteHouse(self.folder_of)


class TestSqliteOnASlowDisk(TestSqlite):
    """The same with every commit and read in a thread."""

    @pytest.fixture(autouse=True)
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nagaya.stores.sqlite._PACE_S", 0.0)


class TestSqliteWithOneFileOpen(TestSqlite):
    """The same where every other room must first be closed."""

    @pytest.fixture
    async def house(self, folder: Path) -> AsyncIterator[SqliteHouse]:
        house = SqliteHouse(folder, max_open=1)
        self.folder_of = folder
        yield house
        await house.close()
