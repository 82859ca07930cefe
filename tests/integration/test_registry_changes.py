"""What one process changes, another forgets: within a second, or it serves nothing."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import NotFound, RegistryDamaged, RegistryUnreachable
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.tenancy import watch
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Revocation
from nagaya.tenancy.principal import Provider, Role
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import Tenant, TenantState

NOW_US = 1_800_000_000_000_000


class HandClock:
    def __init__(self) -> None:
        self.us = NOW_US
        self.s = 1_000.0

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return self.s


def make(tenant_id: str = "acme") -> Tenant:
    return Tenant(id=tenant_id, name="Acme", state=TenantState.ACTIVE, created_at_us=NOW_US, store="sqlite:///t")


async def until(true: Callable[[], Awaitable[bool] | bool], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.05)


@pytest.fixture
async def here(path: Path, clock: HandClock) -> AsyncIterator[SqlRegistry]:
    registry = SqlRegistry.in_file(path, clock)
    await registry.start()
    yield registry
    await registry.close()


@pytest.fixture
async def there(here: SqlRegistry, path: Path, clock: HandClock) -> AsyncIterator[SqlRegistry]:
    registry = SqlRegistry.in_file(path, clock)
    await registry.start()
    yield registry
    await registry.close()


@pytest.mark.usefixtures("quick")
async def test_every_change_here_is_heard_there(here: SqlRegistry, there: SqlRegistry) -> None:
    heard: list[tuple[str | None, str]] = []
    there.on_change(lambda *change: heard.append(change))
    await here.create_tenant(make())
    await here.bind_issuer(
        IssuerBinding(
            issuer="https://i", tenant_id="acme", provider=Provider.OIDC, audiences=("a",), jwks_url="https://k"
        )
    )
    await here.add_api_key(
        ApiKeyRecord(
            key_id="k",
            tenant_id=None,
            name="n",
            user_id="u",
            role=Role.OPERATOR,
            scopes=(),
            sha256=b"",
            created_at_us=1,
            expires_at_us=2,
        )
    )
    version = KeyVersion(version=1, state=KeyVersionState.ACTIVE, wrapped=b"w", created_at_us=1)
    await here.add_key_version("acme", version)
    await here.revoke(Revocation(tenant_id="acme", kind="user", subject="mio", not_before_us=9, expires_at_us=NOW_US))
    expected = [("acme", "tenant"), ("acme", "issuers"), (None, "api_keys"), ("acme", "keys"), ("acme", "revocations")]
    await until(lambda: heard == expected)
    assert there.refused_before_us("acme", user_id="mio", session_id=None, token_id=None) == 9


async def test_a_suspension_here_is_seen_there_within_about_a_second(
    here: SqlRegistry, there: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.create_tenant(make())
    await until(lambda: there.is_fresh())
    assert (await there.tenant("acme")).state is TenantState.ACTIVE
    await here.set_state("acme", TenantState.SUSPENDED)

    async def suspended() -> bool:
        return (await there.tenant("acme")).state is TenantState.SUSPENDED

    await until(suspended)


async def test_a_deletion_here_drops_keys_and_issuers_there(here: SqlRegistry, there: SqlRegistry) -> None:
    await here.create_tenant(make())
    await here.bind_issuer(
        IssuerBinding(
            issuer="https://i", tenant_id="acme", provider=Provider.OIDC, audiences=("a",), jwks_url="https://k"
        )
    )
    assert len(await there.issuers("https://i")) == 1
    await here.set_state("acme", TenantState.OFFBOARDING)
    await here.set_state("acme", TenantState.DELETED)

    async def gone() -> bool:
        return await there.issuers("https://i") == ()

    await until(gone)
    with pytest.raises(NotFound):
        await there.tenant("acme")


async def test_own_changes_are_heard_at_once_and_once(here: SqlRegistry) -> None:
    heard: list[tuple[str | None, str]] = []
    here.on_change(lambda *change: heard.append(change))
    await here.create_tenant(make())
    assert heard == [("acme", "tenant")]
    await asyncio.sleep(0.2)
    assert heard == [("acme", "tenant")]


async def test_a_listener_that_fails_keeps_nobody_from_hearing(here: SqlRegistry) -> None:
    heard: list[str] = []

    def deaf(*_: object) -> None:
        raise ZeroDivisionError

    here.on_change(deaf)
    here.on_change(lambda _, kind: heard.append(kind))
    await here.create_tenant(make())
    assert heard == ["tenant"]


async def test_a_registry_that_cannot_be_read_for_thirty_seconds_is_stale_and_serves_nothing(
    here: SqlRegistry, path: Path, clock: HandClock
) -> None:
    await here.create_tenant(make())
    assert (await here.tenant("acme")).id == "acme"
    away = path.with_suffix(".away")
    path.rename(away)
    clock.s += 29.9
    await asyncio.sleep(0.15)
    assert here.is_fresh()
    assert (await here.tenant("acme")).id == "acme"
    clock.s += 0.2
    assert not here.is_fresh()
    with pytest.raises(RegistryUnreachable, match="removed or replaced"):
        await here.tenant("acme")
    with pytest.raises(RegistryUnreachable):
        await here.touch("acme")
    away.rename(path)
    await until(here.is_fresh)
    assert (await here.tenant("acme")).epoch == 0


async def test_a_vanished_registry_never_comes_back_empty(here: SqlRegistry, path: Path) -> None:
    path.unlink()
    await asyncio.sleep(0.2)
    assert not path.exists()
    with pytest.raises(RegistryUnreachable):
        await here.create_tenant(make())


async def test_a_registry_put_back_from_a_backup_is_read_afresh_and_refusals_stay(
    here: SqlRegistry, path: Path, tmp_path: Path
) -> None:
    await here.create_tenant(make())
    backup = tmp_path / "backup.db"
    shutil.copy(path, backup)
    await here.change_tenant("acme", {"name": "Later"})
    await here.revoke(Revocation(tenant_id="acme", kind="user", subject="mio", not_before_us=9, expires_at_us=NOW_US))
    heard: list[tuple[str | None, str]] = []
    here.on_change(lambda *change: heard.append(change))
    shutil.copy(backup, tmp_path / "fresh.db")
    (tmp_path / "fresh.db").rename(path)
    await until(lambda: (None, "all") in heard)
    assert (await here.tenant("acme")).name == "Acme"
    assert here.refused_before_us("acme", user_id="mio", session_id=None, token_id=None) == 9


async def test_a_damaged_file_in_its_place_is_not_served_and_a_good_one_is(
    here: SqlRegistry, path: Path, tmp_path: Path
) -> None:
    await here.create_tenant(make())
    shutil.copy(path, tmp_path / "good.db")
    (tmp_path / "bad.db").write_bytes(b"rubbish" * 1_000)
    (tmp_path / "bad.db").rename(path)
    await asyncio.sleep(0.3)
    # Damaged where it is asked just while the watcher tries to open it.
    with pytest.raises((RegistryUnreachable, RegistryDamaged)):
        await here.touch("acme")
    (tmp_path / "good.db").rename(path)

    async def back() -> bool:
        try:
            await here.touch("acme")
        except (RegistryUnreachable, RegistryDamaged):
            return False
        return True

    await until(back)


async def test_a_process_that_slept_too_long_drops_everything(here: SqlRegistry, path: Path) -> None:
    await here.create_tenant(make())
    heard: list[tuple[str | None, str]] = []
    here.on_change(lambda *change: heard.append(change))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE nagaya_registry SET serial = serial + 500")
    connection.close()
    await until(lambda: (None, "all") in heard)


async def test_a_serial_that_went_back_drops_everything(here: SqlRegistry, path: Path) -> None:
    await here.create_tenant(make())
    heard: list[tuple[str | None, str]] = []
    here.on_change(lambda *change: heard.append(change))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE nagaya_registry SET serial = 0")
    connection.close()
    await until(lambda: (None, "all") in heard)


async def test_what_nobody_needs_is_forgotten_and_what_is_live_stays(
    here: SqlRegistry, path: Path, clock: HandClock
) -> None:
    async def revoke(subject: str, ends_us: int) -> None:
        await here.revoke(
            Revocation(tenant_id="acme", kind="token", subject=subject, not_before_us=5, expires_at_us=ends_us)
        )

    def refused(subject: str) -> int:
        return here.refused_before_us("acme", user_id="x", session_id=None, token_id=subject)

    def count(table: str) -> int:
        connection = sqlite3.connect(path)
        try:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        finally:
            connection.close()

    await revoke("ended", NOW_US)
    await revoke("live", NOW_US + watch.KEEP_REVOCATIONS_US * 2)
    clock.us = NOW_US + watch.KEEP_REVOCATIONS_US
    clock.s += watch.TIDY_S
    await until(lambda: count("changes") == 0)
    # Its tokens have ended a day ago at the earliest: not one microsecond sooner.
    assert (refused("ended"), count("revocations")) == (5, 2)
    clock.us += 1
    clock.s += watch.TIDY_S
    await until(lambda: count("revocations") == 1)
    assert (refused("ended"), refused("live")) == (0, 5)
    clock.s += watch.TIDY_S
    await asyncio.sleep(0.15)
    assert refused("live") == 5


async def test_starting_and_closing_twice_is_harmless(path: Path, clock: HandClock) -> None:
    registry = SqlRegistry.in_file(path, clock)
    await registry.start()
    registry._memory.watcher.start()
    await registry.close()
    await registry.close()
    assert not registry.is_fresh()
    await registry.start()
    assert registry.is_fresh()
    await registry.close()


async def test_the_watcher_survives_whatever_goes_wrong(
    here: SqlRegistry, there: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    def fail(*_: Any) -> None:
        nonlocal failures
        failures += 1
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(watch.rows, "changes_after", fail)
        await until(lambda: failures > 4)
    heard: list[str] = []
    there.on_change(lambda _, kind: heard.append(kind))
    await here.create_tenant(make())
    await until(lambda: heard == ["tenant"])


async def test_remembered_key_versions_are_dropped_by_every_change_of_them_and_count_with(
    here: SqlRegistry, there: SqlRegistry, clock: HandClock
) -> None:
    def version(number: int) -> KeyVersion:
        return KeyVersion(version=number, state=KeyVersionState.ACTIVE, wrapped=b"w%d" % number, created_at_us=NOW_US)

    before = there.pulse.changes
    await here.create_tenant(make())
    await here.add_key_version("acme", version(1))
    # Both changes must have been heard: one that is heard later rightly drops what was read.
    await until(lambda: there.pulse.changes >= before + 2)
    assert there.remembered_key_versions("acme") is None
    assert [each.version for each in await there.key_versions("acme")] == [1]
    remembered = there.remembered_key_versions("acme")
    assert remembered is not None
    await there.add_key_uses("acme", 1, 7)
    assert [each.uses for each in there.remembered_key_versions("acme") or ()] == [7]
    await here.add_key_version("acme", version(2))
    await until(lambda: there.remembered_key_versions("acme") is None)
    assert [each.version for each in await there.key_versions("acme")] == [1, 2]
    clock.s += 601
    assert there.remembered_key_versions("acme") is None
