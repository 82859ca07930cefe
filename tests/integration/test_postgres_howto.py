"""The SQL in the how-to page gives the privileges that are needed, and no more."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.errors import StorePermissionMissing
from nagaya.kernel.clock import SystemClock
from nagaya.stores.postgres import open_house
from nagaya.stores.store import Store
from nagaya.tenancy.registry import SqlRegistry
from parts.postgres import Postgres
from support.postgres_house import set_up_shared, surroundings

pytest_plugins = ["parts.postgres_server"]

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "postgresql.md"
SECRET = b'{"user": "nagaya_app", "password": "choose one"}'


def sql(name: str) -> list[str]:
    found = re.search(rf"```sql {name}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return [statement.strip() for statement in found[1].split(";") if statement.strip()]


@pytest.fixture
async def followed(postgres: Postgres) -> AsyncIterator[str]:
    """The page's role and database; gives the address."""
    await postgres.run(*sql("schema"))
    yield f"postgresql://127.0.0.1:{postgres.port}/tenants"
    for name in ("nagaya_acme", "tenants"):
        await postgres.drop_database(name)
    await postgres.run("DROP ROLE nagaya_app")


async def _serves(url: str) -> None:
    house = await open_house(url, surroundings(secret=SECRET))
    try:
        await house.create("acme")
        store = Store(await house.open("acme"))
        await store.put("p", b"k", b"x")
        assert len(await store.query("p")) == 1
        assert await house.size_bytes("acme") > 0
        await house.destroy("acme")
    finally:
        await house.close()


async def test_the_role_of_the_page_serves_schemas_and_no_databases(followed: str) -> None:
    await _serves(followed)
    with pytest.raises(StorePermissionMissing):
        await _serves(f"{followed}?isolation=database")


async def test_the_role_of_the_page_serves_databases(postgres: Postgres, followed: str) -> None:
    await postgres.run(*sql("database"))
    await _serves(f"{followed}?isolation=database")


async def test_the_role_of_the_page_serves_a_share_without_the_right_to_create(
    postgres: Postgres, followed: str
) -> None:
    await postgres.run("REVOKE CREATE ON DATABASE tenants FROM nagaya_app")
    await set_up_shared(postgres, "tenants", "nagaya_app")
    await set_up_shared(postgres, "tenants", "nagaya_app")
    await _serves(f"{followed}?isolation=shared")
    with pytest.raises(StorePermissionMissing):
        await _serves(followed)


async def test_the_role_of_the_page_keeps_a_registry(postgres: Postgres) -> None:
    await postgres.run(*sql("registry"))
    registry = SqlRegistry(
        f"postgresql://nagaya_registry:choose%20another@127.0.0.1:{postgres.port}/registry", SystemClock()
    )
    try:
        await registry.start()
        await registry.add_usage({("acme", "2027-01", "api_calls"): 1}, source="s", at_us=1)
        assert await registry.usage("acme", "2027-01") == {"api_calls": 1}
    finally:
        await registry.close()
        await postgres.drop_database("registry")
        await postgres.run("DROP ROLE nagaya_registry")
