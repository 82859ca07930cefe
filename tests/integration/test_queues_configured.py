"""Queues of the configuration file: heard by a server from its start, for as long as their tenants are open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nagaya import Nagaya
from nagaya.errors import RegionRefused, SettingsInvalid
from nagaya.jobs.driver import RunningJob
from nagaya.jobs.message import SignedOrder, sign_order
from nagaya.settings import Queue, Settings, export, load_settings
from nagaya.tenancy.names import room_of
from nagaya.tenancy.tenant import TenantState
from nagaya.wiring.queues import QueueWatch
from parts.aws import REGION, point_at
from parts.ministack import Ministack
from support.queues import ACCOUNT, Queues
from support.server import RunningServer
from support.two_servers import AT_WORST_S, until

pytest_plugins = ["parts.ministack"]


def configuration(folder: Path, *queues: tuple[Queues, str | None], kind: str = "key.reseal") -> Path:
    """A configuration file with these queues and whose they are."""
    lines = []
    for queue, tenant in queues:
        lines += ["[[queues]]", f'url = "{queue.url}"', f'kinds = ["{kind}"]']
        lines += [] if tenant is None else [f'tenant = "{tenant}"']
    path = folder / "nagaya.toml"
    path.write_text(f'data = "{folder / "data"}"\n' + "\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def server(ministack: Ministack, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that listens to a queue of acme's own and to one that several share."""
    own, shared = Queues(ministack), Queues(ministack)
    environment = {
        "NAGAYA_CONFIG": str(configuration(tmp_path, (own, "acme"), (shared, None))), "AWS_ENDPOINT_URL": ministack.url,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    running = RunningServer(tmp_path, environment)
    running.own, running.shared = own, shared  # type: ignore[attr-defined]  # what this module's tests send to
    try:
        yield running.start()
    finally:
        running.close()
        assert "Traceback" not in running.log()


def jobs_of(server: RunningServer, tenant: str) -> Callable[[], list[str]]:
    """Asks the tenant's audit log how its jobs ended."""
    admin = server.client(server.key(tenant, "admin", "tenant_admin"))

    def ended() -> list[str]:
        entries = admin.get("/v1/audit", params={"limit": "1000"}).json()["data"]
        return [entry.get("outcome", "done") for entry in entries if entry["action"] == "job.run"]

    return ended


async def signed(server: RunningServer, tenant: str, *, by: str, number: int = 1) -> str:
    """A message that speaks for ``tenant``, signed with the key of ``by``."""
    async with Nagaya.open(server.data) as nagaya:
        key = nagaya.jobs.signer.tenant_key(await nagaya.registry.tenant(room_of(by)))
    now_us = time.time_ns() // 1_000
    return sign_order(key, SignedOrder(tenant=tenant, id=f"order-{number}", sent_at_us=now_us, kind="key.reseal"))


def test_row_18_a_message_is_one_job_of_the_tenant_it_is_proved_to_be_from_or_a_dead_letter(
    server: RunningServer,
) -> None:
    for name in ("acme", "globex"):
        server.tenant(name)
    own, shared = server.own, server.shared  # type: ignore[attr-defined]  # see the fixture
    acmes, globexs = jobs_of(server, "acme"), jobs_of(server, "globex")
    own.send({"kind": "key.reseal"})
    until(lambda: len(acmes()) == 1, within_s=AT_WORST_S)
    once = asyncio.run(signed(server, "globex", by="globex"))
    # Delivered twice, and once more by whoever listened in.
    for _ in range(3):
        shared.send(once)
    until(lambda: len(globexs()) == 1 and shared.left() == 0, within_s=AT_WORST_S)
    forged = [
        asyncio.run(signed(server, "acme", by="globex", number=2)),
        json.dumps({"kind": "key.reseal"}),
        once.replace("globex", "acme"),
    ]
    for text in forged:
        shared.send(text)
    own.send({"kind": "key.reseal", "tenant": "globex"})
    own.send({"kind": "tenant.delete"})
    until(lambda: shared.left(shared.dead_url) == len(forged) and own.left(own.dead_url) == 2, within_s=AT_WORST_S)
    assert acmes() == globexs() == ["done"]


def test_row_18_a_workspace_takes_messages_signed_under_its_own_key_while_its_tenant_is_open(
    server: RunningServer,
) -> None:
    for name in ("acme", "globex", "globex/legal", "acme/legal"):
        server.tenant(name)
    shared = server.shared  # type: ignore[attr-defined]  # see the fixture
    legals = jobs_of(server, "globex/legal")
    shared.send(asyncio.run(signed(server, "globex/legal", by="globex/legal")))
    until(lambda: legals() == ["done"], within_s=AT_WORST_S)
    for number, (tenant, by) in enumerate(
        [("globex/legal", "globex"), ("globex/legal", "acme/legal"), ("globex", "globex/legal"),
         (room_of("globex/legal"), "globex/legal")], 2,
    ):  # fmt: skip
        shared.send(asyncio.run(signed(server, tenant, by=by, number=number)))
    until(lambda: shared.left(shared.dead_url) == 4, within_s=AT_WORST_S)
    assert legals() == ["done"]


@pytest.fixture
async def open_platform(tmp_path: Path) -> AsyncIterator[Any]:
    async with AsyncExitStack() as closing:

        async def opened(**settings: Any) -> Nagaya:
            made = Settings(data=str(tmp_path), region=REGION, **settings)
            return await closing.enter_async_context(Nagaya.open(settings=made))

        yield opened


async def test_a_suspended_tenants_queue_is_not_heard_until_it_is_open_again(
    open_platform: Any, ministack: Ministack, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, ministack.url)
    monkeypatch.setattr("nagaya.jobs.sqs.LONG_POLL_S", 1)
    own, took = Queues(ministack), []
    nagaya = await open_platform(queues=(Queue(url=own.url, kinds=("note",), tenant="acme"),))

    async def note(job: RunningJob) -> None:
        took.append(job.tenant.state)

    nagaya.jobs.register("note", note)
    await nagaya.tenants.create("acme", name="Acme")
    await nagaya.start_work()
    own.send({"kind": "note"})
    await own.until(lambda: took)
    await nagaya.tenants.suspend("acme")
    # The poll that is given up has ended at the queue too, and takes nothing.
    await asyncio.sleep(3)
    own.send({"kind": "note"})
    await asyncio.sleep(1)
    assert len(took) == own.left() == 1
    await nagaya.tenants.resume("acme")
    await own.until(lambda: len(took) == 2)
    assert took == [TenantState.ACTIVE] * 2


async def test_a_pin_that_leaves_the_tenants_queue_outside_is_refused(open_platform: Any) -> None:
    url = f"sqs://eu-west-1/{ACCOUNT}/jobs"
    nagaya = await open_platform(queues=(Queue(url=url, kinds=("key.reseal",), tenant="acme"),))
    with pytest.raises(RegionRefused, match="eu-west-1"):
        await nagaya.tenants.create("acme", name="Acme", regions=(REGION,))
    assert await nagaya.tenants.list() == []
    await nagaya.tenants.create("acme", name="Acme")
    with pytest.raises(RegionRefused, match="eu-west-1"):
        await nagaya.tenants.change("acme", {"regions": [REGION]})
    assert (await nagaya.tenants.show("acme")).regions == ()
    await nagaya.tenants.change("acme", {"regions": [REGION, "eu-west-1"]})
    await nagaya.tenants.create("globex", name="Globex", regions=(REGION,))


async def test_a_kind_of_work_that_is_not_known_stops_the_start_by_name(open_platform: Any) -> None:
    nagaya = await open_platform(queues=(Queue(url=f"sqs://{REGION}/{ACCOUNT}/jobs", kinds=("key.forge",)),))
    with pytest.raises(SettingsInvalid, match=r"queues.*key\.forge"):
        await nagaya.start_work()


@pytest.mark.parametrize(
    "queue",
    [
        {"url": "sqs://ap-northeast-1/1/x"}, {"url": "sqs://ap-northeast-1/1/x", "kinds": []},
        {"url": "https://sqs.example.com/1/x", "kinds": ["key.reseal"]},
        {"url": "sqs://ap-northeast-1/acme/x", "kinds": ["key.reseal"]},
        {"url": "sqs://ap-northeast-1/1/x?y=z", "kinds": ["key.reseal"]},
        {"url": "sqs://ap-northeast-1/1/x", "kinds": ["key.reseal"], "tenants": "acme"},
    ],
)  # fmt: skip
def test_a_queue_that_is_not_fully_said_is_refused_by_name(queue: dict[str, Any]) -> None:
    with pytest.raises(SettingsInvalid, match="queues"):
        load_settings(environment={"NAGAYA_QUEUES": json.dumps([queue])})
    with pytest.raises(SettingsInvalid, match="queues"):
        load_settings(environment={"NAGAYA_QUEUES": "sqs://ap-northeast-1/1/x"})


def test_worker_processes_are_given_the_same_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAGAYA_QUEUES", "")
    queues = (
        Queue(url="sqs://ap-northeast-1/1/own", kinds=("a", "b"), tenant="acme"),
        Queue(url="sqs://ap-northeast-1/1/shared.fifo", kinds=("a",)),
    )
    export(Settings(queues=queues, allowed_hosts=("a", "b")))
    again = load_settings()
    assert (again.queues, again.allowed_hosts) == (queues, ("a", "b"))


class Heard:
    """A queue that is listened to."""

    def __init__(self) -> None:
        self.open = 0

    def start(self) -> None:
        self.open += 1

    async def close(self) -> None:
        self.open -= 1


async def test_a_queue_that_cannot_be_opened_is_tried_again_and_with_a_change_of_its_tenant_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nagaya.wiring.queues.REST_S", 3600.0)
    heard, tries, away = Heard(), [], True

    async def opens(queue: Queue) -> Heard:
        tries.append(queue.tenant)
        if away:
            raise RuntimeError("unforeseen")
        return heard

    queues = tuple(Queue(url=f"sqs://{REGION}/1/{name}", kinds=("a",), tenant=name) for name in ("acme", "globex"))
    watch = QueueWatch(queues, opens, lambda kind: True)
    watch.start()
    watch.start()

    async def reach(count: int) -> None:
        async with asyncio.timeout(10):
            while len(tries) < count:
                await asyncio.sleep(0.01)

    await reach(2)
    away = False
    watch.tenant_changed("acme")
    await reach(3)
    await asyncio.sleep(0.05)
    assert (tries[2:], heard.open) == (["acme"], 1)
    watch.tenant_changed(None)
    await reach(5)
    await asyncio.sleep(0.05)
    assert heard.open == 2
    await watch.close()
    await watch.close()
    assert heard.open == 0
