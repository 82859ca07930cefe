"""The PostgreSQL store keeps the store contract in each of its isolations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from nagaya.stores.driver import StoreHouse
from nagaya.stores.postgres import PostgresHouse, open_house
from nagaya.testing.stores import StoreContract
from parts.postgres import APP, Postgres, done
from support.postgres_house import set_up_shared, surroundings

pytest_plugins = ["parts.postgres_server"]


@pytest.fixture(scope="module")
def home(postgres: Postgres) -> Iterator[str]:
    """One database for the module; each test leaves it empty."""
    name = done(postgres.new_database())
    done(set_up_shared(postgres, name))
    done(postgres.run(f"ALTER ROLE {APP} CREATEDB"))
    yield name
    done(postgres.run(f"ALTER ROLE {APP} NOCREATEDB"))
    done(postgres.drop_database(name))


class TestSchemaForEach(StoreContract):
    isolation = "schema"

    @pytest.fixture
    async def house(self, postgres: Postgres, home: str) -> AsyncIterator[PostgresHouse]:
        self.url = f"{postgres.url(home, user=APP)}?isolation={self.isolation}"
        house = await open_house(self.url, surroundings())
        yield house
        await house.close()
        await self.empty(postgres, home)

    async def empty(self, postgres: Postgres, home: str) -> None:
        found = await postgres.ask("SELECT nspname FROM pg_namespace WHERE nspname ~ '^nagaya_'", database=home)
        await postgres.run(*(f'DROP SCHEMA "{name}" CASCADE' for (name,) in found), database=home)

    async def reopened(self, house: StoreHouse) -> PostgresHouse:
        await house.close()
        return await open_house(self.url, surroundings())


class TestOneSharedTable(TestSchemaForEach):
    isolation = "shared"

    async def empty(self, postgres: Postgres, home: str) -> None:
        await postgres.run("TRUNCATE nagaya.rooms, nagaya.records", database=home)


class TestDatabaseForEach(TestSchemaForEach):
    isolation = "database"

    async def empty(self, postgres: Postgres, home: str) -> None:
        for (name,) in await postgres.ask("SELECT datname FROM pg_database WHERE datname LIKE 'nagaya%'"):
            await postgres.drop_database(str(name))
