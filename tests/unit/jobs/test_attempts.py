"""One attempt of a job: admitted, run once, noted, and told of."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest

from nagaya.errors import JobRefused, NotFound, StoreUnreachable, TenantSuspended
from nagaya.jobs.driver import JobNotice, JobState
from nagaya.jobs.lease import Lease
from nagaya.jobs.record import JobRecord
from nagaya.jobs.running import Attempts
from nagaya.testing.clock import ManualClock
from parts.directory import tenant
from support.jobs import Company
from support.loop_time import LoopTime


class House(Company):
    """Attempts over two tenants; ``again`` is what was to be tried again."""

    def __init__(self, *, deadline_s: float = 5.0) -> None:
        super().__init__("acme", "globex")
        self.clock = ManualClock()
        self.again: list[JobRecord] = []
        self.did: list[str] = []
        self.lease = Lease()
        self.lease.extend(math.inf)
        self.attempts = Attempts(
            self.signer,
            self.clock,
            self.session,  # type: ignore[arg-type]  # a session of the tests' own
            self.take_again,
            self.lease,
            on_end=self.on_end,
            attempts=3,
            deadline_s=deadline_s,
        )
        self.attempts.register("note", self.note)

    async def take_again(self, record: JobRecord, delay_s: float) -> None:
        self.again.append(record)

    async def note(self, job) -> None:
        self.did.append(f"{job.tenant.id} {job.id} {job.attempt} {job.arguments.get('n', '')}".strip())

    def record(self, **fields) -> JobRecord:
        return JobRecord(
            **{
                "id": "job_1",
                "tenant_id": "acme",
                "tenant_since_us": 1,
                "kind": "note",
                "arguments": {},
                "attempt": 1,
                "enqueued_at_us": self.clock.now_us(),
                **fields,
            }
        )

    async def run(self, record: JobRecord, place: str | None = None):
        found = await self.attempts.run(self.signer.seal(record), place or record.place)
        return None if found is None else msgspec.json.decode(found)


@pytest.fixture
def house() -> House:
    return House()


async def test_a_job_runs_in_a_session_of_its_own_tenant(house: House):
    assert (await house.run(house.record(tenant_id="globex", arguments={"n": 7})))["state"] == "done"
    assert (house.entered, house.did) == (["globex"], ["globex job_1 1 7"])
    assert house.ended == [("globex", JobState.DONE, "")]


async def test_a_job_delivered_again_after_its_end_has_one_effect(house: House):
    for _ in range(3):
        assert (await house.run(house.record()))["state"] == "done"
    assert house.did == ["acme job_1 1"]


async def test_a_second_attempt_delivered_after_the_end_has_no_effect(house: House):
    await house.run(house.record())
    await house.run(house.record(attempt=2))
    assert len(house.did) == 1


async def test_a_dedup_text_counts_again_when_it_was_forgotten(house: House):
    await house.run(house.record())
    house.clock.advance(8 * 86_400)
    await house.run(house.record())
    assert len(house.did) == 2


async def test_a_forged_tenant_enters_nothing(house: House):
    text = house.signer.seal(house.record()).replace('"acme"', '"globex"')
    outcome = msgspec.json.decode(await house.attempts.run(text, "job_1") or "")
    assert (outcome["state"], outcome["code"]) == ("refused", JobRefused.code)
    assert (house.entered, house.did) == ([], [])
    assert house.ended == [("", JobState.REFUSED, JobRefused.code)]


async def test_a_job_of_an_earlier_tenant_with_the_id_is_refused(house: House):
    house.tenants["acme"] = tenant("acme", created_at_us=2)
    assert (await house.run(house.record()))["state"] == "refused"
    assert house.did == []


async def test_a_job_of_a_suspended_tenant_is_refused_and_not_tried_again(house: House):
    house.refuse = TenantSuspended()
    assert (await house.run(house.record()))["code"] == "tenant_suspended"
    assert house.ended == [("acme", JobState.REFUSED, "tenant_suspended")]
    assert house.again == []


async def test_a_gate_that_cannot_tell_is_asked_again(house: House):
    house.refuse = StoreUnreachable()
    assert (await house.run(house.record()))["next"]
    assert [record.attempt for record in house.again] == [2]
    assert house.ended == []


async def test_work_that_fails_is_tried_again_until_it_is_a_dead_letter(house: House):
    async def fail(job) -> None:
        raise RuntimeError("with a tenant's words")

    house.attempts.register("fail", fail)
    record = house.record(kind="fail")
    states = []
    for attempt in range(1, 4):
        outcome = await house.run(msgspec.structs.replace(record, attempt=attempt))
        assert "words" not in str(outcome)
        states.append((outcome["state"], outcome.get("next", False)))
    assert states == [("failed", True), ("failed", True), ("failed", False)]
    assert [each.attempt for each in house.again] == [2, 3]
    assert {each.id for each in house.again} == {"job_1"}
    assert house.ended == [("acme", JobState.FAILED, "RuntimeError")]


async def test_what_the_work_itself_refuses_is_not_tried_again(house: House):
    async def missing(job) -> None:
        raise NotFound("file")

    house.attempts.register("missing", missing)
    outcome = await house.run(house.record(kind="missing"))
    assert (outcome["state"], outcome["code"], house.again) == ("failed", NotFound.code, [])


async def test_a_kind_of_work_that_only_a_newer_server_knows_waits_for_it(house: House):
    outcome = await house.run(house.record(kind="new"))
    assert (outcome["next"], outcome["code"]) == (True, "job_kind_unknown")
    assert house.again


async def test_work_past_its_time_is_stopped_and_tried_again():
    house = House(deadline_s=0.02)

    async def hang(job) -> None:
        await asyncio.sleep(30)

    house.attempts.register("hang", hang)
    outcome = await house.run(house.record(kind="hang"))
    assert (outcome["next"], outcome["code"]) == (True, "TimeoutError")


async def test_a_cancelled_job_ends_cancelled_and_an_abandoned_one_does_not_end(house: House):
    async def hang(job) -> None:
        await asyncio.sleep(30)

    house.attempts.register("hang", hang)
    running = asyncio.ensure_future(house.run(house.record(kind="hang")))
    await asyncio.sleep(0.01)
    assert house.attempts.running() == ["job_1"]
    assert await house.run(house.record(kind="hang")) is None, "it must not run twice at the same time"
    house.attempts.cancel("job_2")
    house.attempts.cancel("job_1")
    assert (await running)["state"] == "cancelled"
    assert house.ended == [("acme", JobState.CANCELLED, "")]
    running = asyncio.ensure_future(house.run(house.record(kind="hang")))
    await asyncio.sleep(0.01)
    house.attempts.abandon()
    assert await running is None
    assert house.attempts.running() == []
    assert house.attempts.stopped == {"job_1"}


async def test_what_is_abandoned_has_stopped_only_where_it_did_not_come_to_its_end(house: House):
    told, may_stop = asyncio.Event(), asyncio.Event()

    async def slow_to_stop(job) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            await may_stop.wait()
            if job.arguments["n"] == 1:
                raise

    house.attempts.register("slow", slow_to_stop)
    stops = asyncio.ensure_future(house.run(house.record(kind="slow", arguments={"n": 1})))
    ends = asyncio.ensure_future(house.run(house.record(id="job_2", kind="slow", arguments={"n": 2})))
    await asyncio.sleep(0.01)
    house.attempts.abandon()
    await asyncio.wait_for(told.wait(), 30)
    # It still runs: begun again elsewhere it would run twice.
    assert house.attempts.stopped == set()
    may_stop.set()
    assert await stops is None
    assert (await ends)["state"] == "done"
    assert house.attempts.stopped == {"job_1"}


async def test_a_server_that_stops_gives_running_jobs_their_time_and_leaves_the_rest(house: House, monkeypatch):
    time = LoopTime(monkeypatch)

    async def work(job) -> None:
        await asyncio.sleep(job.arguments["ms"] / 1000)

    house.attempts.register("work", work)
    quick = asyncio.ensure_future(house.run(house.record(kind="work", arguments={"ms": 50})))
    slow = asyncio.ensure_future(house.run(house.record(id="job_2", kind="work", arguments={"ms": 30_000})))
    await time.passes(0.01)
    settling = asyncio.ensure_future(house.attempts.settle(0.3))
    await time.passes(0.1)
    assert (await quick)["state"] == "done"
    assert not slow.done()
    await time.passes(0.3)
    assert await settling == 1
    assert await slow is None


async def test_progress_and_every_change_of_state_are_told(house: House):
    told: list[JobNotice] = []

    async def listen(notice: JobNotice) -> None:
        told.append(notice)

    async def broken(notice: JobNotice) -> None:
        raise RuntimeError

    async def steps(job) -> None:
        job.progress(1, 2)
        if job.attempt == 1:
            raise StoreUnreachable

    house.attempts.register("steps", steps)
    house.attempts.on_notice(broken)
    house.attempts.on_notice(listen)
    await house.run(house.record(kind="steps"))
    await house.run(house.record(kind="steps", attempt=2))
    await house.attempts.settle(0.1)
    assert [(each.state.value, each.done) for each in told] == [
        ("running", 0), ("running", 1), ("waiting", 0), ("running", 0), ("running", 1), ("done", 0),
    ]  # fmt: skip
    assert {each.tenant.id for each in told} == {"acme"}


async def test_a_slow_listener_holds_up_no_work(house: House):
    async def never(notice: JobNotice) -> None:
        await asyncio.sleep(30)

    async def many(job) -> None:
        for step in range(1_000):
            job.progress(step, 1_000)

    house.attempts.on_notice(never)
    house.attempts.register("many", many)
    assert (await house.run(house.record(kind="many")))["state"] == "done"
    await house.attempts.settle(0.0)


async def test_a_crash_between_effect_and_mark_repeats_the_work_under_the_same_id(house: House):
    put, house.records["acme"].put = house.records["acme"].put, None  # type: ignore[method-assign,assignment]  # no mark can be written

    async def no_mark(*_, **__) -> int:
        raise StoreUnreachable

    house.records["acme"].put = no_mark  # type: ignore[method-assign]  # as above
    assert (await house.run(house.record()))["next"]
    house.records["acme"].put = put  # type: ignore[method-assign]  # as above
    await house.run(house.again[0])
    assert house.did == ["acme job_1 1", "acme job_1 2"]


async def test_an_attempt_that_may_have_been_taken_over_waits_until_that_is_known(house: House):
    house.lease.extend(house.lease.now_s())
    running = asyncio.ensure_future(house.run(house.record()))
    await asyncio.sleep(0.01)
    assert house.did == []
    house.lease.extend(math.inf)
    assert (await running)["state"] == "done"
    assert house.did == ["acme job_1 1"]


@pytest.mark.parametrize("ending", ["done", "failed", "held"])
async def test_of_an_attempt_that_was_taken_over_nothing_is_noted_told_or_tried_again(house: House, ending: str):
    begun, let_go, told = asyncio.Event(), asyncio.Event(), []

    async def listen(notice: JobNotice) -> None:
        told.append((notice.state.value, notice.done))

    async def work(job) -> None:
        await job.hold()
        begun.set()
        await let_go.wait()
        job.progress(1, 1)
        if ending == "held":
            await job.hold()
            told.append(("effect", 1))
        if ending == "failed":
            raise RuntimeError

    house.attempts.on_notice(listen)
    house.attempts.register("work", work)
    running = asyncio.ensure_future(house.run(house.record(kind="work")))
    await begun.wait()
    house.lease.extend(house.lease.now_s())
    let_go.set()
    await asyncio.sleep(0.01)
    assert not running.done()
    house.lease.lose()
    house.attempts.abandon()
    house.lease.extend(math.inf)
    assert await running is None
    assert house.attempts.stopped == {"job_1"}, "or nobody would begin it again, where the others did not know of it"
    await house.attempts.settle(0.1)
    assert (house.ended, house.again, told) == ([], [], [("running", 0)])
    house.attempts.register("work", house.note)
    assert (await house.run(house.record(kind="work")))["state"] == "done", "what is begun afterwards is its own"
