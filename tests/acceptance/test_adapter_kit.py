"""The adapter of docs/howto/write-a-store-adapter.md, as somebody else's package: found, tried, used; and adapters with
the mistakes that the page warns of, found out by the contract suite."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs_support.pages import ROOT, blocks
from nagaya import Message, Nagaya
from nagaya.adapters import find
from nagaya.cli.main import run
from nagaya.errors import ConditionFailed, InvalidValue, NotFound, RegionRefused, StoreDamaged
from nagaya.settings import Settings
from nagaya.stores.driver import Delete, Put
from nagaya.stores.store import Store
from nagaya.wiring.resources import STORES

PAGE = ROOT / "docs" / "howto" / "write-a-store-adapter.md"
PACKAGE = "nagaya_logfile"
CANARY = "canary-of-acme-77c1"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package as its reader wrote it."""
    home = tmp_path_factory.mktemp("kit")
    for block in blocks(PAGE.read_text("utf-8")):
        if block.file is not None:
            place = home / block.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.body, "utf-8")
    return home / "nagaya-logfile"


@pytest.fixture(scope="module")
def plugins(project: Path) -> Path:
    """Where the package is installed."""
    target = project.parent / "plugins"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, project], check=True, timeout=120)
    return target


@pytest.fixture
def logfile(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The installed package, as this process finds it too; forgotten afterwards."""
    monkeypatch.syspath_prepend(plugins)
    yield importlib.import_module(f"{PACKAGE}.house")
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def contract(project: Path, package: Path) -> subprocess.CompletedProcess[str]:
    """The project's own tests against the package in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(project / "tests")]
    return subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# --- the contract suite ---


def test_the_pages_adapter_keeps_the_whole_contract_and_nothing_is_skipped(project: Path, plugins: Path) -> None:
    done = contract(project, plugins)
    assert done.returncode == 0, done.stdout[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "passed" in last
    assert "skipped" not in last


MISTAKES: dict[str, tuple[str, str, str]] = {
    "conditions are not looked at": ("log.py", "raise ConditionFailed", "pass"),
    "a batch is done one by one": (
        "store.py",
        "await self._do(self._log.write, partition, changes)",
        "[await self._do(self._log.write, partition, [change]) for change in changes]",
    ),
    "keys are ordered as text": ("log.py", "insort(held.order, sort)", "insort(held.order, sort, key=bytes.lower)"),
    "a room's name becomes a path": ("house.py", "check_room(room)", "room"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_adapter_with_a_common_mistake_does_not_pass(
    project: Path, plugins: Path, tmp_path: Path, mistake: str
) -> None:
    file, right, wrong = MISTAKES[mistake]
    shutil.copytree(plugins / PACKAGE, tmp_path / PACKAGE)
    source = tmp_path / PACKAGE / file
    text = source.read_text("utf-8")
    assert right in text
    source.write_text(text.replace(right, wrong), "utf-8")
    done = contract(project, tmp_path)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "1 failed" in done.stdout


# --- the page's adapter itself ---


async def test_a_batch_that_a_crash_cut_off_is_no_batch(logfile: ModuleType, tmp_path: Path) -> None:
    house = logfile.LogFileHouse(tmp_path)
    await house.create("acme")
    store = Store(await house.open("acme"))
    await store.put("p", b"first", b"1")
    file = tmp_path / "acme.log"
    before = file.stat().st_size
    await store.batch("p", [Put(b"a", b"2"), Put(b"b", b"3"), Delete(b"first", 1)])
    await house.close()
    whole = file.read_bytes()
    for end in range(before, len(whole)):
        file.write_bytes(whole[:end])
        house = logfile.LogFileHouse(tmp_path)
        cut = Store(await house.open("acme"))
        assert [row.sort for row in await cut.query("p")] == [b"first"]
        await cut.put("p", b"next", b"4")
        assert [row.sort for row in await cut.query("p")] == [b"first", b"next"]
        await house.close()


async def test_nobody_writes_to_a_room_that_another_process_destroyed(logfile: ModuleType, tmp_path: Path) -> None:
    here, there = logfile.LogFileHouse(tmp_path), logfile.LogFileHouse(tmp_path)
    await here.create("acme")
    store = Store(await here.open("acme"))
    await there.destroy("acme")
    with pytest.raises(StoreDamaged):
        await store.put("p", b"k", b"x")
    await here.close()


RAISES = """
import asyncio, sys
from pathlib import Path
from nagaya.errors import ConditionFailed
from nagaya.stores.store import Store
from nagaya_logfile.house import LogFileHouse

async def main():
    house = LogFileHouse(Path(sys.argv[1]))
    store = Store(await house.open("acme"))
    done = 0
    while done < 100:
        row = await store.get("p", b"n")
        try:
            await store.put("p", b"n", b"%d" % (int(row.body) + 1), expect=row.revision)
        except ConditionFailed:
            continue
        done += 1
    await house.close()

asyncio.run(main())
"""


async def test_a_counter_raised_by_two_processes_loses_no_raise(
    logfile: ModuleType, plugins: Path, tmp_path: Path
) -> None:
    house = logfile.LogFileHouse(tmp_path)
    await house.create("acme")
    store = Store(await house.open("acme"))
    await store.put("p", b"n", b"0")
    environment = {**os.environ, "PYTHONPATH": str(plugins)}
    others = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", RAISES, str(tmp_path), env=environment)
        for _ in range(2)
    ]
    assert [await other.wait() for other in others] == [0, 0]
    row = await store.get("p", b"n")
    assert row is not None
    assert (row.body, row.revision) == (b"200", 201)
    with pytest.raises(ConditionFailed):
        await store.put("p", b"n", b"x", expect=1)
    await house.close()


# --- in the platform ---


async def test_a_tenant_on_somebody_elses_adapter_talks_and_leaves_only_sealed_bytes(
    logfile: ModuleType, tmp_path: Path
) -> None:
    records = tmp_path / "records"
    records.mkdir()
    settings = Settings(data=str(tmp_path / "data"), region="ap-northeast-1")
    async with Nagaya.open(settings=settings) as nagaya:
        await nagaya.tenants.create("acme", name="Acme", store=f"logfile://{records}", regions=("ap-northeast-1",))
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            chat = await tenant.conversations.create(title=CANARY)
            await tenant.conversations.append(chat.id, Message.user(CANARY))
            assert [item.text for item in await tenant.conversations.items(chat.id)] == [CANARY]
        assert (await nagaya.tenants.usage("acme"))["stored_bytes"] == (records / "acme.log").stat().st_size
    assert CANARY.encode() not in (records / "acme.log").read_bytes()
    async with Nagaya.open(settings=settings) as nagaya:
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            assert [item.text for item in await tenant.conversations.items(chat.id)] == [CANARY]
        await nagaya.tenants.delete("acme")
    assert list(records.iterdir()) == []


async def test_a_pinned_tenant_gets_no_folder_that_lies_elsewhere(logfile: ModuleType, tmp_path: Path) -> None:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"), region="eu-west-1")) as nagaya:
        with pytest.raises(RegionRefused):
            await nagaya.tenants.create("acme", name="Acme", store=f"logfile://{tmp_path}", regions=("ap-northeast-1",))
        with pytest.raises(NotFound):
            await nagaya.tenants.show("acme")
    assert not (tmp_path / "acme.log").exists()


Said = Callable[..., dict[str, Any]]


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    def command(*arguments: str, code: int = 0) -> dict[str, Any]:
        ended = run([*arguments, "--json", "--data", str(tmp_path / "data")])
        said = capsys.readouterr()
        assert ended == code, said
        assert "Traceback" not in said.err
        shown: dict[str, Any] = json.loads(said.out)
        return shown

    return command


def test_the_command_line_makes_and_deletes_a_tenant_on_it(logfile: ModuleType, tmp_path: Path, say: Said) -> None:
    records = tmp_path / "records"
    records.mkdir()
    made = say("tenant", "create", "acme", "--name", "Acme", "--store", f"logfile://{records}")
    assert (made["store"], made["state"]) == (f"logfile://{records}", "active")
    say("tenant", "delete", "acme", "--yes")
    assert list(records.iterdir()) == []


def test_an_unknown_scheme_is_answered_with_every_known_one_the_installed_ones_too(
    logfile: ModuleType, say: Said
) -> None:
    error = say("tenant", "create", "acme", "--name", "Acme", "--store", "oracle://x", code=1)["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "store")
    assert "cosmos://, dynamodb://, logfile://, postgresql://, sqlite://" in error["message"]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Declares an entry point of the stores' group, as an installed package would."""

    def declare(scheme: str, value: str) -> None:
        described = tmp_path / "site" / "planted-1.dist-info"
        described.mkdir(parents=True)
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
        (described / "entry_points.txt").write_text(f"[nagaya.stores]\n{scheme} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return declare


@pytest.mark.parametrize("value", ["no_such_package:open_house", "nagaya.errors:no_such_function"])
def test_an_adapter_that_does_not_load_is_named(plant: Callable[[str, str], None], say: Said, value: str) -> None:
    plant("planted", value)
    error = say("tenant", "create", "acme", "--name", "Acme", "--store", "planted://x", code=1)["error"]
    assert value in error["message"]
    assert say("tenant", "show", "acme", code=1)["error"]["code"] == "not_found"


def test_a_package_cannot_take_a_scheme_of_nagayas_own(plant: Callable[[str, str], None]) -> None:
    plant("postgresql", "nagaya.errors:NagayaError")
    assert find("stores", "postgresql://x", STORES).__module__ == "nagaya.stores.postgres"
    with pytest.raises(InvalidValue):
        find("keys", "planted://x", {})
