"""Migrations of the registry on both databases: two phases, between which two releases run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, make_url, text

from nagaya.errors import RegistryDamaged, RegistryNewer, RegistryNotReady
from nagaya.kernel.clock import SystemClock
from nagaya.tenancy import migration, schema
from nagaya.tenancy.database import RegistryDatabase
from nagaya.tenancy.file_engine import FileEngine
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import Tenant, TenantState

pytest_plugins = ["parts.postgres_server"]

_PRE = """
from alembic import op
import sqlalchemy as sa
revision, down_revision = "0003_pre", "0002_post"
def upgrade():
    op.add_column("tenants", sa.Column("colour", sa.Text))
"""
_POST = """
from alembic import op
revision, down_revision = "0003_post", "0003_pre"
def upgrade():
    op.execute("UPDATE nagaya_registry SET version = 3")
"""
FIRST_TENANT = """
INSERT INTO tenants (id, skeleton, name, state, created_at_us, tier, isolation, store, models, key_service, regions,
  hosts, mfa_required, sso_required, max_token_lifetime_s, tokens_valid_from_us, epoch)
VALUES ('before', 'before', 'B', 'active', 1, 'free', 'shared_platform', 'sqlite:///t', '["builtin://"]', 'local://',
  '[]', '[]', false, false, 86400, 0, 0)
"""
_BROKEN = _PRE + "    raise ZeroDivisionError\n"


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    postgres = request.getfixturevalue("postgres")
    name = await postgres.new_database()
    yield postgres.url(name)
    await postgres.drop_database(name)


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A release after this one: entered with ``become(next_release)``."""
    folder = tmp_path / "later"
    folder.mkdir()
    (folder / "0003_pre_colour.py").write_text(_PRE)
    (folder / "0003_post_colour.py").write_text(_POST)
    monkeypatch.setattr(migration, "folders", [migration.FOLDER, folder])
    return monkeypatch


def become(release: pytest.MonkeyPatch) -> None:
    release.setattr(schema, "REVISIONS", (*schema.REVISIONS, "0003_pre", "0003_post"))
    release.setattr(schema, "VERSION", 3)


async def ask(url: str, sql: str) -> object:
    engine = RegistryDatabase(url)._server or FileEngine(Path(str(make_url(url).database)), 10.0)

    def work(connection: Connection) -> object:
        found = connection.execute(text(sql))
        return found.scalar() if found.returns_rows else None

    try:
        return await engine.run(work, write=True)
    finally:
        await engine.dispose()


async def use(url: str, tenant_id: str) -> None:
    """What a running server does: open, write, read."""
    registry = SqlRegistry(url, SystemClock())
    await registry.open()
    try:
        await registry.create_tenant(
            Tenant(id=tenant_id, name="T", state=TenantState.ACTIVE, created_at_us=1, store="sqlite:///t")
        )
        assert (await registry.tenant(tenant_id)).id == tenant_id
    finally:
        await registry.close()


async def be_of_the_first_release(url: str) -> None:
    """Make a registry as that release made it, with one tenant."""
    with pytest.MonkeyPatch.context() as first_release:
        first_release.setattr(schema, "REVISIONS", schema.REVISIONS[:2])
        first_release.setattr(schema, "VERSION", 1)
        await migration.migrate(url, "post")
    await ask(url, FIRST_TENANT)


async def test_the_migrations_make_exactly_the_tables_that_the_program_uses(url: str) -> None:
    assert await migration.migrate(url, "pre") == "0002_pre"
    assert await migration.migrate(url, "post") == "0002_post"
    assert await migration.migrate(url, "pre") == "0002_post"

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), schema.metadata))

    database = RegistryDatabase(url, create=False)
    await database.open()
    found = await database.finish(database.transaction(differences))
    await database.close()
    assert found == []
    await use(url, "acme")


async def test_between_the_phases_the_release_before_runs_and_after_them_it_is_refused(
    url: str, next_release: pytest.MonkeyPatch
) -> None:
    await use(url, "before")
    with next_release.context() as now:
        become(now)
        assert await migration.migrate(url, "pre") == "0003_pre"
        await use(url, "next-one")
        assert await ask(url, "SELECT count(*) FROM tenants WHERE colour IS NULL") == 2
        if url.startswith("sqlite"):
            return  # A file is brought up to date whole when it is opened.
    await use(url, "between")
    with next_release.context() as now:
        become(now)
        await use(url, "next-two")
        assert await migration.migrate(url, "post") == "0003_post"
        assert await migration.migrate(url, "post") == "0003_post"
        await use(url, "next-three")
    with pytest.raises(RegistryNewer, match="3"):
        await use(url, "too-late")


async def test_an_older_registry_is_brought_up_to_date_as_far_as_is_safe(
    url: str, next_release: pytest.MonkeyPatch
) -> None:
    await use(url, "before")
    become(next_release)
    for tenant_id in ("once", "twice"):
        await use(url, tenant_id)
    expected = "0003_post" if url.startswith("sqlite") else "0003_pre"
    assert await ask(url, "SELECT version_num FROM nagaya_migration") == expected


async def test_a_migration_that_fails_leaves_everything_as_it_was(
    url: str, next_release: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await use(url, "before")
    (tmp_path / "later" / "0003_pre_colour.py").write_text(_BROKEN)
    with next_release.context() as now:
        become(now)
        with pytest.raises(ZeroDivisionError):
            await migration.migrate(url, "pre")
    assert await ask(url, "SELECT version_num FROM nagaya_migration") == "0002_post"
    await use(url, "after")


async def test_a_registry_from_before_migrations_were_counted_is_of_the_first_release(url: str) -> None:
    await be_of_the_first_release(url)
    await ask(url, "DROP TABLE nagaya_migration")
    await use(url, "after")
    expected = "0002_post" if url.startswith("sqlite") else "0002_pre"
    assert await ask(url, "SELECT version_num FROM nagaya_migration") == expected


async def test_a_registry_whose_migrations_are_not_known_is_refused(url: str) -> None:
    await use(url, "before")
    await ask(url, "DELETE FROM nagaya_migration")
    with pytest.raises(RegistryDamaged):
        await use(url, "after")


async def test_a_server_database_may_hold_other_things_but_not_half_a_registry(postgres, database: str) -> None:
    await postgres.run("CREATE TABLE theirs (id int)", database=database)
    await use(postgres.url(database), "acme")
    await postgres.run("DROP TABLE nagaya_registry", database=database)
    with pytest.raises(RegistryDamaged):
        await use(postgres.url(database), "globex")


async def test_servers_that_start_at_once_on_an_empty_database_make_one_registry(postgres, database: str) -> None:
    registries = [SqlRegistry(postgres.url(database), SystemClock()) for _ in range(4)]
    await asyncio.gather(*(registry.open() for registry in registries))
    for registry in registries:
        await registry.close()
    assert await postgres.ask("SELECT serial FROM nagaya_registry", database=database) == [(0,)]


def test_opening_a_current_registry_does_not_load_the_migration_library(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from nagaya.kernel.clock import SystemClock
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.registry import SqlRegistry
async def main():
    for _ in range(2):
        registry = SqlRegistry.in_file(Path({str(tmp_path / "r.db")!r}), SystemClock())
        await registry.open()
        await registry.close()
asyncio.run(main())
sys.exit("alembic" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


# --- workspaces came with the second release -------------------------------------------------------------------


def legal() -> Tenant:
    room = workspace_room("before", "legal")
    return Tenant(
        id=room, name="L", state=TenantState.ACTIVE, created_at_us=1, store="sqlite:///t", parent="before",
        workspace="legal",
    )  # fmt: skip


async def test_a_registry_of_the_first_release_gets_workspaces_and_keeps_its_tenants(url: str) -> None:
    await be_of_the_first_release(url)
    registry = SqlRegistry(url, SystemClock())
    await registry.open()
    try:
        assert (await registry.tenant("before")).parent is None
        if url.startswith("postgresql"):
            # Servers of the first release may still run, and would not ask for a workspace's tenant.
            with pytest.raises(RegistryNotReady):
                await registry.create_tenant(legal())
            assert await migration.migrate(url, "post") == "0002_post"
        await registry.create_tenant(legal())
        assert [each.address for each in await registry.workspaces("before")] == ["before/legal"]
    finally:
        await registry.close()
    with pytest.MonkeyPatch.context() as first_release:
        first_release.setattr(schema, "VERSION", 1)
        with pytest.raises(RegistryNewer, match="2"):
            await use(url, "too-late")
