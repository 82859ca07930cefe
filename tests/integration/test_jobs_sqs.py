"""An SQS queue as a way in: one job a message, in the tenant it is proved to be from, or the dead-letter queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest

from nagaya.errors import InvalidValue, JobRefused, JobsUnreachable, NotFound, RegionRefused
from nagaya.jobs.message import SignedOrder, claimed_tenant, read_signed_order, sign_order
from nagaya.jobs.sqs import SqsIngress, open_ingress
from nagaya.tenancy.tenant import Tenant, TenantState
from parts.aws import REGION, point_at, surroundings
from support.jobs import Company
from support.queues import Queues

pytest_plugins = ["parts.ministack"]


class Taken:
    """Jobs that are only taken; ``away`` makes the jobs database unreachable."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, str, dict[str, object]]] = {}
        self.asked: list[str] = []
        self.away = False
        self.slow_s = 0.0

    async def enqueue(self, tenant: Tenant, kind: str, arguments: Mapping[str, object] | None = None, *, dedup=None):
        self.asked.append(dedup)
        await asyncio.sleep(self.slow_s)
        if self.away:
            raise JobsUnreachable
        self.jobs.setdefault(f"{tenant.id} {kind} {dedup}", (tenant.id, kind, dict(arguments or {})))
        return "job_1"


@pytest.fixture
def queues(ministack, monkeypatch: pytest.MonkeyPatch) -> Queues:
    point_at(monkeypatch, ministack.url)
    return Queues(ministack)


@pytest.fixture
def company() -> Company:
    return Company("acme", "globex")


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
async def listening(queues: Queues, company: Company, taken: Taken) -> AsyncIterator:
    opened: list[SqsIngress] = []

    async def listen(owner: str | None, **options) -> SqsIngress:
        ingress = await _open(queues.url, company, taken, owner, **options)
        opened.append(ingress)
        ingress.start()
        ingress.start()
        return ingress

    yield listen
    for ingress in opened:
        await ingress.close()
        await ingress.close()


async def _open(url: str, company: Company, taken: Taken, owner: str | None, regions=(), **options) -> SqsIngress:
    async def find(tenant_id: str) -> Tenant:
        if tenant_id not in company.tenants:
            raise NotFound("tenant")
        return company.tenants[tenant_id]

    return await open_ingress(
        url,
        surroundings(owner or "_platform", regions=regions),
        taken,  # type: ignore[arg-type]  # jobs of the tests' own
        find,
        company.signer,
        owner=owner,
        kinds=frozenset({"work"}),
        **{"poll_s": 1, **options},
    )


def _signed(company: Company, tenant: str, number: int = 1, *, signer: str | None = None, **fields) -> str:
    key = company.signer.tenant_key(company.tenants[signer or tenant])
    order = {"tenant": tenant, "id": f"m-{number}", "sent_at_us": time.time_ns() // 1_000, "kind": "work", **fields}
    return sign_order(key, SignedOrder(**order))


async def test_a_message_on_a_tenants_queue_is_a_job_of_that_tenant(queues, taken, listening):
    await listening("acme")
    message = queues.send({"kind": "work", "arguments": {"file": "file_1"}})
    await queues.until(lambda: taken.jobs and queues.left() == 0)
    assert taken.jobs == {f"acme work sqs {message}": ("acme", "work", {"file": "file_1"})}


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "work", "tenant": "globex"},
        {"kind": "tenant.delete"},
        {"kind": "work", "arguments": {"nested": {"a": 1}}},
        "no json",
        "x" * 20_000,
    ],
)
async def test_a_message_that_asks_for_more_is_a_dead_letter(queues, taken, listening, body):
    await listening("acme")
    queues.send(body)
    await queues.until(lambda: queues.left(queues.dead_url) == 1)
    assert taken.jobs == {}


async def test_a_signed_message_over_a_shared_queue_is_a_job_of_its_tenant(queues, company, taken, listening):
    await listening(None)
    for tenant in ("acme", "globex"):
        queues.send(_signed(company, tenant))
    await queues.until(lambda: queues.left() == 0)
    assert {job[0] for job in taken.jobs.values()} == {"acme", "globex"}


async def test_a_signed_message_that_is_sent_again_is_the_same_job(queues, company, taken, listening):
    text = _signed(company, "acme")
    for _ in range(3):
        queues.send(text)
    await listening(None)
    await queues.until(lambda: queues.left() == 0)
    assert len(taken.asked) == 3
    assert len(taken.jobs) == 1


async def test_a_forged_tenant_in_a_message_is_a_dead_letter(queues, company, taken, listening):
    await listening(None)
    good = _signed(company, "acme")
    forged = [
        _signed(company, "globex", signer="acme"),
        good.replace('"acme"', '"globex"'),
        good.replace('"work"', '"wipe"'),
        "0" * 64 + good[64:],
        good[64:],
        _signed(company, "acme", sent_at_us=1),
        good.replace('"acme"', '"nobody"'),
        good.replace('"acme"', '"../acme"'),
    ]
    for text in forged:
        queues.send(text)
    await queues.until(lambda: queues.left(queues.dead_url) == len(forged))
    assert taken.jobs == {}


async def test_a_message_stays_hidden_while_its_job_is_being_taken(queues, company, taken, listening):
    taken.slow_s = 6.0
    await listening("acme", visible_s=4)
    await listening("acme", visible_s=4)
    queues.send({"kind": "work"})
    await queues.until(lambda: queues.left() == 0)
    assert len(taken.asked) == 1


async def test_a_message_outlasts_a_jobs_database_that_is_away(queues, taken, listening):
    taken.away = True
    await listening("acme", visible_s=1)
    queues.send({"kind": "work"})
    await queues.until(lambda: taken.asked)
    taken.away = False
    await queues.until(lambda: taken.jobs and queues.left() == 0)
    assert len(set(taken.asked)) == 1
    assert queues.left(queues.dead_url) == 0


async def test_a_queue_without_dead_letters_or_none_at_all_is_not_listened_to(queues, company, taken):
    for url in (
        f"{queues.url}-dead",
        f"{queues.url}-absent",
        "sqs://region/x",
        f"sqs://{REGION}/name/0",
        f"{queues.url}?a=b",
    ):
        with pytest.raises(InvalidValue):
            await _open(url, company, taken, "acme")


async def test_a_tenants_queue_outside_its_regions_is_refused(queues, company, taken):
    with pytest.raises(RegionRefused):
        await _open(queues.url, company, taken, "acme", regions=("eu-central-1",))


async def test_a_queue_that_is_away_is_listened_to_again(queues, taken, listening, monkeypatch):
    ingress = await listening("acme")
    await ingress.close()
    calls = []

    async def call(operation: str, **_):
        calls.append(operation)
        if len(calls) < 3:
            raise JobsUnreachable
        await asyncio.sleep(30)

    monkeypatch.setattr(ingress, "_call", call)
    monkeypatch.setattr("nagaya.jobs.sqs._PAUSE_S", 0.01)
    ingress.start()
    await queues.until(lambda: len(calls) == 3)


def test_a_signed_message_keeps_its_word_only_under_its_tenants_key(company):
    text = _signed(company, "acme")
    assert claimed_tenant(text) == "acme"
    key = company.signer.tenant_key(company.tenants["acme"])
    assert read_signed_order(key, text, time.time_ns() // 1_000).tenant == "acme"
    with pytest.raises(JobRefused):
        read_signed_order(bytes(32), text, time.time_ns() // 1_000)


async def test_a_message_of_a_tenant_that_is_pinned_elsewhere_makes_no_job(queues, company, taken, listening):
    """Over a queue that several share, and over its own after the pin was changed."""
    acme, globex = company.tenants["acme"], company.tenants["globex"]
    company.tenants["acme"] = msgspec.structs.replace(acme, regions=("eu-central-1",))
    company.tenants["globex"] = msgspec.structs.replace(globex, regions=("eu-central-1", REGION))
    await listening(None)
    queues.send(_signed(company, "acme"))
    queues.send(_signed(company, "globex"))
    await queues.until(lambda: queues.left(queues.dead_url) == 1 and queues.left() == 0)
    assert [name for name, _, _ in taken.jobs.values()] == ["globex"]
    own = Queues(queues._ministack)
    ingress = await _open(own.url, company, taken, "acme")
    ingress.start()
    own.send({"kind": "work"})
    await own.until(lambda: own.left(own.dead_url) == 1)
    await ingress.close()
    assert len(taken.jobs) == 1


async def test_a_tenant_that_is_not_open_takes_no_message(queues, company, taken, listening):
    acme = company.tenants["acme"]
    company.tenants["acme"] = msgspec.structs.replace(acme, state=TenantState.SUSPENDED)
    await listening(None)
    queues.send(_signed(company, "acme"))
    await queues.until(lambda: queues.left(queues.dead_url) == 1)
    assert taken.jobs == {}


async def test_a_failure_that_nobody_foresaw_does_not_make_the_queue_deaf(queues, company, taken, listening):
    enqueue, failed = taken.enqueue, []

    async def fails_once(*args, **options):
        if not failed:
            failed.append(True)
            raise RuntimeError("unforeseen")
        return await enqueue(*args, **options)

    taken.enqueue = fails_once
    ingress = await listening("acme", visible_s=1)
    queues.send({"kind": "work"})
    await queues.until(lambda: failed)
    await queues.until(lambda: taken.jobs and queues.left() == 0)
    assert queues.left(queues.dead_url) == 0
    receive = ingress._receive

    async def fails_too():
        ingress._receive = receive
        raise RuntimeError("unforeseen")

    ingress._receive = fails_too
    queues.send({"kind": "work"})
    await queues.until(lambda: len(taken.jobs) == 2 and queues.left() == 0)
