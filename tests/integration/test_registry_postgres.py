"""The registry on PostgreSQL: all that it keeps and refuses on SQLite, and what a server's database adds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from integration import test_registry, test_registry_changes
from nagaya.errors import MissingExtra, RegistryDamaged, RegistryUnreachable, SettingsInvalid, StoreFull, StoreReadOnly
from nagaya.tenancy import rows, schema, server_engine, watch
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import TenantState
from parts.postgres import APP, Postgres, done
from support.tcp_proxy import Proxy

pytest_plugins = ["parts.postgres_server"]

HandClock, make = test_registry.HandClock, test_registry.make

# A promise that does not speak of a file is the same on both databases.
_OF_A_FILE = {"path", "tmp_path", "quick"}
for _module, _needed in ((test_registry, "registry"), (test_registry_changes, "here")):
    for _name, _test in vars(_module).items():
        _asked = set(inspect.signature(_test).parameters) if _name.startswith("test_") else set()
        if _needed in _asked and not _OF_A_FILE & _asked:
            globals()[_name] = _test
for _name in (
    "test_the_disk_being_full_or_read_only_is_told_apart",
    "test_a_file_that_is_gone_before_it_is_opened_is_an_error",
):
    globals().pop(_name, None)


@pytest.fixture(scope="module")
def module_database(postgres: Postgres) -> Iterator[str]:
    name = done(postgres.new_database())
    yield name
    done(postgres.drop_database(name))


@pytest.fixture
async def url(postgres: Postgres, module_database: str) -> AsyncIterator[str]:
    """A database that each test leaves as if it were new."""
    yield postgres.url(module_database)
    tables = {table.name for table in schema.metadata.tables.values()} - {schema.registry.name, schema.migration.name}
    found = await postgres.ask("SELECT relname::text FROM pg_class WHERE relkind = 'r'", database=module_database)
    if tables <= {name for (name,) in found}:
        await postgres.run(
            f"TRUNCATE {', '.join(sorted(tables))}", "UPDATE nagaya_registry SET serial = 0", database=module_database
        )


@pytest.fixture
def quick() -> None:
    """SQLite's tests poll quicker; here nothing is polled for."""


@pytest.fixture
def clock() -> Any:
    return HandClock()


async def _open(url: str, clock: Any, *, watching: bool) -> AsyncIterator[SqlRegistry]:
    registry = SqlRegistry(url, clock)
    await (registry.start() if watching else registry.open())
    yield registry
    await registry.close()


@pytest.fixture
async def registry(url: str, clock: Any) -> AsyncIterator[SqlRegistry]:
    async for opened in _open(url, clock, watching=False):
        yield opened


@pytest.fixture
async def other(registry: SqlRegistry, url: str, clock: Any) -> AsyncIterator[SqlRegistry]:
    async for opened in _open(url, clock, watching=True):
        yield opened


@pytest.fixture
async def here(url: str, clock: Any) -> AsyncIterator[SqlRegistry]:
    async for opened in _open(url, clock, watching=True):
        yield opened


@pytest.fixture
async def there(here: SqlRegistry, url: str, clock: Any) -> AsyncIterator[SqlRegistry]:
    async for opened in _open(url, clock, watching=True):
        yield opened


async def until(true: Callable[[], Awaitable[bool] | bool], *, within_s: float = 30.0) -> None:
    await test_registry_changes.until(true, within_s=within_s)


def bell(registry: SqlRegistry) -> Any:
    return registry._memory.watcher._bell


async def _suspended(registry: SqlRegistry) -> bool:
    return (await registry.tenant("acme")).state is TenantState.SUSPENDED


async def test_a_change_on_one_server_is_seen_on_another_without_polling(
    here: SqlRegistry, there: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    monkeypatch.setattr(watch, "HEARD_POLL_S", 3600.0)
    await here.create_tenant(make())
    await until(lambda: bell(here).hangs and bell(there).hangs)
    await until(lambda: there._memory.watcher._serial == here._memory.watcher._serial)
    polls = 0
    read = rows.changes_after

    def counted(*arguments: Any) -> Any:
        nonlocal polls
        polls += 1
        return read(*arguments)

    monkeypatch.setattr(rows, "changes_after", counted)
    await asyncio.sleep(1.2)
    assert polls <= 4, "one is for what was heard of last, one follows the hanging of a bell"
    assert (await there.tenant("acme")).state is TenantState.ACTIVE
    polls = 0
    await here.set_state("acme", TenantState.SUSPENDED)
    await until(lambda: _suspended(there))
    assert polls <= 2


async def test_a_change_is_seen_though_its_notice_was_lost(
    here: SqlRegistry, there: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.create_tenant(make())
    await until(lambda: bell(there).hangs)
    assert not await _suspended(there)
    watcher, polls = there._memory.watcher, 0
    poll = watcher.poll

    async def counted() -> None:
        nonlocal polls
        await poll()
        polls += 1

    monkeypatch.setattr(watcher, "poll", counted)
    monkeypatch.setattr(watch, "HEARD_POLL_S", 0.3)
    monkeypatch.setattr(bell(there), "_ring", lambda _: None)
    watcher._woken.set()  # so that it waits for the shorter time from now on
    # From the third on it polls because of the time alone.
    await until(lambda: polls >= 3)
    before = bell(there)._engine
    await here.set_state("acme", TenantState.SUSPENDED)
    await until(lambda: _suspended(there))
    # And a bell that was deaf is hung up anew.
    await until(lambda: bell(there).hangs and bell(there)._engine is not before)


async def test_a_listener_whose_line_is_cut_polls_until_it_listens_again(
    here: SqlRegistry, postgres: Postgres, url: str, module_database: str, clock: Any
) -> None:
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        far = SqlRegistry(url.replace(str(postgres.port), str(proxy.port)), clock)
        await far.start()
        try:
            await here.create_tenant(make())
            await until(lambda: bell(far).hangs)
            assert not await _suspended(far)
            before = bell(far)._engine
            proxy.cut()
            await here.set_state("acme", TenantState.SUSPENDED)
            await until(lambda: _suspended(far))
            await until(lambda: bell(far).hangs and bell(far)._engine is not before)
        finally:
            await far.close()


async def test_a_server_that_may_not_listen_polls_and_listens_as_soon_as_it_can(
    here: SqlRegistry, postgres: Postgres, url: str, clock: Any
) -> None:
    await here.create_tenant(make())
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        far = SqlRegistry(url.replace(str(postgres.port), str(proxy.port)), clock)
        await far.open()
        proxy.refuse = True  # for new lines: those that are open stay
        far._memory.watcher.start()
        try:
            assert not await _suspended(far)
            await until(lambda: far._memory.watcher._deaf)
            await here.set_state("acme", TenantState.SUSPENDED)
            await until(lambda: _suspended(far))
            assert not bell(far).hangs
            proxy.refuse = False
            await until(lambda: bell(far).hangs)
        finally:
            await far.close()


async def test_a_database_that_is_gone_makes_the_registry_stale_and_back_makes_it_fresh(
    postgres: Postgres, url: str, clock: Any
) -> None:
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        far = SqlRegistry(url.replace(str(postgres.port), str(proxy.port)), clock)
        await far.start()
        try:
            await far.create_tenant(make())
            assert (await far.tenant("acme")).id == "acme"
            proxy.refuse = True
            proxy.cut()
            clock.s += 30.1
            assert not far.is_fresh()
            with pytest.raises(RegistryUnreachable):
                await far.tenant("acme")
            proxy.refuse = False
            await until(far.is_fresh)
            assert (await far.tenant("acme")).id == "acme"
        finally:
            await far.close()


async def test_a_change_whose_server_vanishes_is_an_error_within_its_deadline(
    postgres: Postgres, url: str, clock: Any
) -> None:
    async with Proxy("127.0.0.1", postgres.port) as proxy:
        far = SqlRegistry(url.replace(str(postgres.port), str(proxy.port)), clock)
        await far.open()
        far._memory.database._deadline_s = 0.5
        proxy.swallow = True
        with pytest.raises(RegistryUnreachable):
            await far.create_tenant(make())
        proxy.swallow = False
        proxy.cut()
        await far.close()


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", StoreFull), ("25006", StoreReadOnly), ("42P01", RegistryDamaged), ("XX001", RegistryDamaged),
        ("28P01", RegistryUnreachable), ("57P03", RegistryUnreachable),
    ],
)  # fmt: skip
async def test_what_the_server_answers_is_told_apart(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch, state: str, error: type[Exception]
) -> None:
    def fail(connection: Any, *_: object) -> None:
        connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")

    monkeypatch.setattr(rows, "find_key_versions", fail)
    with pytest.raises(error):
        await registry.key_versions("acme")


async def test_a_registry_that_may_not_be_written_says_so(
    registry: SqlRegistry, postgres: Postgres, url: str, module_database: str, clock: Any
) -> None:
    await postgres.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {APP}", database=module_database)
    reader = SqlRegistry(postgres.url(module_database, user=APP), clock)
    await reader.open()
    with pytest.raises(RegistryUnreachable, match="lacks a permission"):
        await reader.create_tenant(make())
    await reader.close()
    await postgres.run(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {APP}", database=module_database)


async def test_a_wrong_password_or_database_is_named(postgres: Postgres, clock: Any) -> None:
    for url, said in (
        (postgres.url().replace("correct", "wrong"), "user or password"),
        (postgres.url("nowhere"), "no database nowhere"),
    ):
        with pytest.raises(RegistryUnreachable, match=said) as refused:
            await SqlRegistry(url, clock).open()
        assert "horse" not in str(refused.value)


async def test_an_address_of_a_registry_is_checked(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="sslmode"):
        SqlRegistry("postgresql://u@db.example.com/r?sslmode=prefer", clock)
    for mode, checks in (("verify-full", True), ("require", False)):
        made = SqlRegistry(f"postgresql://u@127.0.0.1/r?sslmode={mode}", clock)._memory.database._server
        assert made is not None
        assert made.connect_args["ssl"].check_hostname is checks
    far = SqlRegistry("postgresql://u@db.example.com/r", clock)._memory.database._server
    assert far is not None
    assert far.connect_args["ssl"].check_hostname
    monkeypatch.setattr(server_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="postgres"):
        SqlRegistry("postgresql://u@127.0.0.1/r", clock)
