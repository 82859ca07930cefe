"""Making a tenant: what was acknowledged outlives the process, what was not can be undone, one id is given once, and
whoever gives up leaves nothing lying about."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from integration import tenant_maker
from nagaya.audit.entry import PLATFORM
from nagaya.context.items import Message
from nagaya.errors import (
    NotFound,
    RegistryUnreachable,
    StoreFull,
    TenantExists,
    TenantNotOpen,
    TenantSuspended,
    TransitionRefused,
)
from nagaya.keys.keyring import key_context
from nagaya.lifecycle.tenants import TenantOffice
from nagaya.stores import sqlite_format
from nagaya.tenancy import rows
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.wiring import Nagaya
from support.faults import DIE_AFTER
from support.library import keep

TESTS = str(Path(__file__).parents[1])
REGISTRY = "nagaya.tenancy.registry:SqlRegistry"


def maker(folder: Path, *names: str, die_after: str | None = None) -> subprocess.Popen[str]:
    """A process that makes these tenants once it is told to."""
    environment = {**os.environ, "PYTHONPATH": TESTS} | ({DIE_AFTER: die_after} if die_after else {})
    child = subprocess.Popen(
        [sys.executable, tenant_maker.__file__, str(folder), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def begin(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.close()


def ended(child: subprocess.Popen[str]) -> dict[str, str]:
    """What it said of each tenant until its end."""
    assert child.stdout is not None
    said = dict(line.split() for line in child.stdout)
    child.wait()
    child.stdout.close()
    return said


async def use(nagaya: Nagaya, tenant_id: str) -> None:
    """Write and read in the tenant: it has its row, its key and its store."""
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint(tenant_id, "mio"))) as tenant:
        chat = await tenant.conversations.create()
        await tenant.conversations.append(chat.id, Message.user("Who mends the roof?"))
        assert len(await tenant.conversations.items(chat.id)) == 1


async def state_of(nagaya: Nagaya, tenant_id: str) -> TenantState | None:
    try:
        return (await nagaya.tenants.show(tenant_id)).state
    except NotFound:
        return None


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(tmp_path / "data") as opened:
        yield opened


# --- kill -9 ---


@pytest.mark.parametrize(
    ("after", "state"),
    [
        (f"{REGISTRY}.create_tenant:2", TenantState.ONBOARDING),
        ("nagaya.lifecycle.tenants:new_version:2", TenantState.ONBOARDING),
        ("nagaya.stores.sqlite:SqliteHouse.create:3", TenantState.ONBOARDING),
        (f"{REGISTRY}.end_onboarding:2", TenantState.ACTIVE),
    ],
    ids=["its id was taken", "its key was made", "its store was made", "it was opened"],
)
async def test_a_creation_that_was_killed_is_whole_or_shut_and_can_be_undone(
    tmp_path: Path, after: str, state: TenantState
) -> None:
    folder = tmp_path / "data"
    child = maker(folder, "before", "halfway", "after", die_after=after)
    begin(child)
    assert ended(child) == {"before": "made"}
    assert child.returncode == -9
    async with Nagaya.open(folder) as nagaya:
        await use(nagaya, "before")
        assert await state_of(nagaya, "halfway") is state
        assert await state_of(nagaya, "after") is None
        if state is TenantState.ACTIVE:
            await use(nagaya, "halfway")
            return
        with pytest.raises(TenantNotOpen):
            await nagaya.enter(await nagaya.tenants.mint("halfway", "mio"))
        await nagaya.tenants.delete("halfway")
        assert await state_of(nagaya, "halfway") is None
        assert not (folder / "tenants" / "halfway").exists()
        assert not (folder / "keys" / "keys" / "halfway.key").exists()
        assert not any(key.wrapped for key in await nagaya.registry.key_versions("halfway"))
        await use(nagaya, "before")


async def test_what_was_acknowledged_is_whole_whenever_the_process_was_killed(tmp_path: Path) -> None:
    folder, dice = tmp_path / "data", random.Random(23)
    made: list[str] = []
    for attempt in range(3):
        child = maker(folder, *(f"tenant-{attempt}-{number:03}" for number in range(200)))
        begin(child)
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(dice.randrange(1, 12))]
        time.sleep(dice.random() * 0.02)
        child.kill()
        made += [line.split()[0] for line in (*said, *child.stdout.readlines()) if line.endswith(" made\n")]
        child.wait()
        child.stdout.close()
    async with Nagaya.open(folder) as nagaya:
        found = {tenant.id: tenant.state for tenant in await nagaya.tenants.list(limit=1_000)}
        for name in made:
            assert found[name] is TenantState.ACTIVE
            await use(nagaya, name)
        # At most the one that was under way came on top, in each process.
        assert len(found) <= len(made) + 3
        for name in set(found) - set(made):
            if found[name] is TenantState.ONBOARDING:
                await nagaya.tenants.delete(name)
            else:
                await use(nagaya, name)


# --- several processes ---


async def test_of_two_processes_that_want_one_id_or_look_alikes_one_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with Nagaya.open(folder):
        pass
    wanted = [f"team-{letter}{letter}{letter}" for letter in "abcefghjk"]
    alike = [name if place % 2 else name.replace("-", "") for place, name in enumerate(wanted)]
    here, there = maker(folder, *wanted), maker(folder, *alike)
    begin(here)
    begin(there)
    ours, theirs = ended(here), ended(there)
    refusals = {"tenant_exists", "tenant_id_look_alike"}
    async with Nagaya.open(folder) as nagaya:
        for one, other in zip(wanted, alike, strict=True):
            outcomes = {ours[one], theirs[other]}
            assert "made" in outcomes
            assert outcomes & refusals
            await use(nagaya, one if ours[one] == "made" else other)
            if one != other:
                assert await state_of(nagaya, other if ours[one] == "made" else one) is None
    assert len(list((folder / "tenants").glob("team*"))) == len(wanted)


# --- whoever gives up ---


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", ["row", "store"])
async def test_a_creation_that_is_cancelled_while_it_makes_something_undoes_it(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch, step: str, times: int
) -> None:
    owner, name = {"row": (rows, "insert_tenant"), "store": (sqlite_format, "make")}[step]
    real = getattr(owner, name)
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(30)
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, slowly)
        creating = asyncio.create_task(nagaya.tenants.create("acme", name="Acme"))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(times):
            creating.cancel()
            await asyncio.sleep(0.05)
            assert not creating.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert await state_of(nagaya, "acme") is None
    assert not await nagaya.house.exists("acme")
    await nagaya.tenants.create("acme", name="Acme")
    await use(nagaya, "acme")


async def test_an_undoing_goes_on_where_whoever_waits_for_it_is_cancelled(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy = nagaya.house.destroy
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(room: str) -> None:
        begun.set()
        await go_on.wait()
        await destroy(room)

    monkeypatch.setattr(nagaya.house, "destroy", slowly)
    creating = asyncio.create_task(nagaya.tenants.create("acme", name="Acme", fill=fails))
    await asyncio.wait_for(begun.wait(), 30)
    for _ in range(2):
        creating.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not await nagaya.house.exists("acme")
    await nagaya.tenants.create("acme", name="Acme")
    await use(nagaya, "acme")


async def test_a_creation_that_is_cancelled_at_any_moment_is_whole_or_undone(nagaya: Nagaya) -> None:
    for number in range(24):
        name = f"tenant-{number:02}"
        creating = asyncio.create_task(nagaya.tenants.create(name, name="T"))
        await asyncio.sleep(number * 0.0005)
        creating.cancel()
        await asyncio.wait([creating])
        if await state_of(nagaya, name) is not TenantState.ACTIVE:
            assert await state_of(nagaya, name) is None
            assert not await nagaya.house.exists(name)
            await nagaya.tenants.create(name, name="T")
        await use(nagaya, name)


async def fails(tenant: Tenant) -> None:
    raise StoreFull


async def test_a_failed_creation_leaves_no_key_and_no_key_that_was_there_goes(nagaya: Nagaya, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "keys" / "keys"
    with pytest.raises(StoreFull):
        await nagaya.tenants.create("acme", name="Acme", fill=fails)
    assert not list(folder.glob("acme.*"))
    await nagaya.local_keys.generate(key_context("acme", 1))
    kept = (folder / "acme.key").read_bytes()
    with pytest.raises(StoreFull):
        await nagaya.tenants.create("acme", name="Acme", fill=fails)
    assert (folder / "acme.key").read_bytes() == kept
    await nagaya.tenants.create("acme", name="Acme")
    await use(nagaya, "acme")


async def test_what_is_undone_frees_its_id_last(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of the undoing somebody else makes a tenant of that id, and keeps a file in it."""
    destroy = nagaya.house.destroy

    async def destroyed(room: str) -> None:
        await destroy(room)
        monkeypatch.undo()
        await nagaya.tenants.create("acme", name="Another")
        async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as tenant:
            await keep(tenant, "roof.md", "Kato mends it.")

    monkeypatch.setattr(nagaya.house, "destroy", destroyed)
    with pytest.raises(TenantExists):
        await nagaya.tenants.create("acme", name="Acme", fill=fails)
    await nagaya.tenants.delete("acme")


async def test_what_is_being_made_while_it_is_deleted_leaves_nothing(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = TenantOffice._make_store

    async def late(office: TenantOffice, *arguments: Any) -> None:
        await nagaya.tenants.delete("acme")
        await make(office, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TenantOffice, "_make_store", late)
        with pytest.raises(NotFound):
            await nagaya.tenants.create("acme", name="Acme")
    assert await state_of(nagaya, "acme") is None
    assert not await nagaya.house.exists("acme")
    with pytest.raises(TenantExists):
        await nagaya.tenants.create("acme", name="Acme")


async def test_a_deletion_keeps_a_tenant_from_opening_before_it_removes_anything(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion has begun; the creation ends; the deletion goes on."""
    may_end, is_ready = asyncio.Event(), asyncio.Event()
    end, destroy = nagaya.registry.end_onboarding, nagaya.registry.destroy_key_versions

    async def late(*arguments: Any, **more: Any) -> Tenant:
        is_ready.set()
        await may_end.wait()
        return await end(*arguments, **more)

    async def destroyed(room: str) -> None:
        may_end.set()
        await asyncio.wait([creating])
        await destroy(room)

    monkeypatch.setattr(nagaya.registry, "end_onboarding", late)
    monkeypatch.setattr(nagaya.registry, "destroy_key_versions", destroyed)
    creating = asyncio.create_task(nagaya.tenants.create("acme", name="Acme"))
    await asyncio.wait_for(is_ready.wait(), 30)
    await nagaya.tenants.delete("acme")
    with pytest.raises(TransitionRefused):
        await creating
    assert await state_of(nagaya, "acme") is None
    assert not await nagaya.house.exists("acme")


async def test_a_tenant_is_deleted_whole_where_a_workspace_of_it_is_undone_meanwhile(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nagaya.tenants.create("acme", name="Acme")
    is_filling, may_fail = asyncio.Event(), asyncio.Event()

    async def fails_late(tenant: Tenant) -> None:
        is_filling.set()
        await may_fail.wait()
        raise StoreFull

    creating = asyncio.create_task(nagaya.tenants.create("acme/legal", name="Legal", fill=fails_late))
    await asyncio.wait_for(is_filling.wait(), 30)
    workspaces = nagaya.registry.workspaces

    async def listed(tenant_id: str) -> Any:
        found = await workspaces(tenant_id)
        may_fail.set()
        await asyncio.wait([creating])
        return found

    monkeypatch.setattr(nagaya.registry, "workspaces", listed)
    await nagaya.tenants.delete("acme")
    assert isinstance(creating.exception(), StoreFull)
    assert await state_of(nagaya, "acme") is None


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_creation_of_which_the_registry_does_not_tell_whether_it_was_kept_is_undone(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    create = nagaya.registry.create_tenant

    async def without_an_answer(*arguments: Any, **more: Any) -> None:
        if is_kept:
            await create(*arguments, **more)
        raise RegistryUnreachable(detail="no answer within 10 s")

    with monkeypatch.context() as patched:
        patched.setattr(nagaya.registry, "create_tenant", without_an_answer)
        with pytest.raises(RegistryUnreachable):
            await nagaya.tenants.create("acme", name="Acme")
    await nagaya.audit.flush()
    noted = [entry for entry in await nagaya.audit.read(PLATFORM) if entry.action == "tenant.create"]
    assert [entry.outcome for entry in noted] == ["failed"]
    await nagaya.tenants.create("acme", name="Acme")
    await use(nagaya, "acme")


@pytest.mark.parametrize("who", ["its maker", "an operator"])
async def test_an_undoing_that_was_interrupted_is_brought_to_its_end(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    class Killed(BaseException):
        pass

    async def killed(room: str) -> None:
        raise Killed

    token = b"t" * 32
    with monkeypatch.context() as patched:
        patched.setattr(nagaya.house, "destroy", killed)
        with pytest.raises(Killed):
            await nagaya.tenants.create("acme", name="Acme", fill=fails, token=token)
    assert await nagaya.house.exists("acme")
    if who == "its maker":
        assert await nagaya.tenants.finish("acme", fails, token) is None
        await nagaya.tenants.create("acme", name="Acme")
        await use(nagaya, "acme")
    else:
        await nagaya.registry.begin_deletion("acme")
        assert not await nagaya.registry.discard_onboarding("acme", token)
        await nagaya.tenants.delete("acme")
        assert not await nagaya.house.exists("acme")


async def test_a_failed_creation_removes_no_blobs_that_were_there_before(nagaya: Nagaya, tmp_path: Path) -> None:
    (tmp_path / "blobs" / "acme").mkdir(parents=True)
    (tmp_path / "blobs" / "acme" / "theirs").write_bytes(b"words")
    with pytest.raises(TenantExists):
        await nagaya.tenants.create("acme", name="Acme", blobs=(tmp_path / "blobs").as_uri())
    assert (tmp_path / "blobs" / "acme" / "theirs").read_bytes() == b"words"
    assert await state_of(nagaya, "acme") is None
    await nagaya.tenants.create("acme", name="Acme")


# --- what follows from memory ---


async def test_a_tenant_that_was_just_changed_is_known_as_it_is_now(nagaya: Nagaya) -> None:
    made = await nagaya.tenants.create("acme", name="Acme")
    assert await nagaya.tenants.show("acme") == made
    async with Nagaya.open(nagaya.settings.data) as other:
        assert await other.tenants.show("acme") == made
    changed = await nagaya.tenants.change("acme", {"name": "Acme KK"})
    assert await nagaya.tenants.show("acme") == changed
    assert changed.epoch == made.epoch + 1
    entrance_token = await nagaya.tenants.mint("acme", "mio")
    await nagaya.tenants.suspend("acme")
    with pytest.raises(TenantSuspended):
        await nagaya.enter(entrance_token)
