"""Job records: what an intruder in the jobs database can and cannot do."""

from __future__ import annotations

import json

import msgspec
import pytest

from nagaya.errors import InvalidValue, JobRefused, KeyUnreachable, ModelRateLimited, NotFound, TenantSuspended
from nagaya.jobs.driver import check_arguments, plan_retry
from nagaya.jobs.record import MAX_AGE_US, JobRecord, JobSigner, VerifiedJob, load_signer
from parts.directory import tenant
from support.jobs import KEY, Records

NOW = 1_800_000_000_000_000
SIGNER = JobSigner(KEY)


def record(**fields) -> JobRecord:
    made = JobRecord(
        id="job_1", tenant_id="acme", tenant_since_us=1, kind="x", arguments={"file": "file_1"}, attempt=1, enqueued_at_us=NOW
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def test_a_genuine_record_opens_where_it_was_put():
    assert SIGNER.open(SIGNER.seal(record()), "job_1", NOW).record == record()
    assert SIGNER.open(SIGNER.seal(record(attempt=3)), "job_1:3", NOW).record.attempt == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("tenant_id", "globex"), ("tenant_since_us", 2), ("kind", "y"), ("arguments", {"file": "file_2"}), ("attempt", 2)],
)
def test_an_edited_record_is_refused(field, value):
    text = SIGNER.seal(record())
    edited = json.loads(text[64:])
    edited[field] = value
    with pytest.raises(JobRefused, match="altered"):
        SIGNER.open(text[:64] + json.dumps(edited, separators=(",", ":")), "job_1", NOW)


def test_every_flipped_character_is_noticed():
    text = SIGNER.seal(record())
    for place in range(len(text)):
        for other in ("0", "z"):
            if text[place] != other:
                with pytest.raises(JobRefused):
                    SIGNER.open(text[:place] + other + text[place + 1 :], "job_1", NOW)


@pytest.mark.parametrize("text", [None, 7, b"x", "", "0" * 64, "0" * 20_000, "\ud800" * 100, {"text": "x"}])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(JobRefused):
        SIGNER.open(text, "job_1", NOW)
    assert SIGNER.reopen(text, "job_1") is None


def test_a_record_copied_under_another_id_is_refused():
    text = SIGNER.seal(record())
    for place in ("job_2", "job_1:2", ""):
        with pytest.raises(JobRefused, match="another job"):
            SIGNER.open(text, place, NOW)
        assert SIGNER.reopen(text, place) is None
    assert SIGNER.reopen(text, "job_1") is not None


def test_a_record_of_another_platform_is_refused():
    with pytest.raises(JobRefused, match="altered"):
        JobSigner(bytes(32)).open(SIGNER.seal(record()), "job_1", NOW)


def test_what_was_signed_for_another_purpose_is_no_record():
    with pytest.raises(JobRefused, match="altered"):
        SIGNER.open(SIGNER.seal_bytes(b"message", msgspec.json.encode(record())), "job_1", NOW)
    with pytest.raises(JobRefused, match="not understood"):
        SIGNER.open(SIGNER.seal_bytes(b"nagaya job v1", b"[]"), "job_1", NOW)


def test_a_record_older_than_its_marks_or_from_the_future_is_refused():
    text = SIGNER.seal(record())
    for now in (NOW + MAX_AGE_US, NOW - 400_000_000):
        with pytest.raises(JobRefused, match="old"):
            SIGNER.open(text, "job_1", now)
    assert SIGNER.reopen(text, "job_1") is not None


def test_a_verified_job_cannot_be_made_by_hand():
    with pytest.raises(JobRefused):
        VerifiedJob(object(), record())


def test_a_job_of_a_deleted_tenant_is_none_of_a_later_one_with_its_id():
    verified = SIGNER.open(SIGNER.seal(record()), "job_1", NOW)
    assert verified.is_of(tenant("acme"))
    assert not verified.is_of(tenant("acme", created_at_us=2))
    assert not verified.is_of(tenant("globex"))


def test_the_same_dedup_text_is_one_job_only_within_tenant_and_kind():
    acme, globex = tenant("acme"), tenant("globex")
    one = SIGNER.job_id(acme, "x", "a")
    assert one == SIGNER.job_id(acme, "x", "a")
    others = {
        SIGNER.job_id(globex, "x", "a"),
        SIGNER.job_id(acme, "y", "a"),
        SIGNER.job_id(acme, "x", "b"),
        SIGNER.job_id(tenant("acme", created_at_us=2), "x", "a"),
        SIGNER.job_id(acme, "x", None),
        SIGNER.job_id(acme, "x", None),
    }
    assert len(others | {one}) == 7


def test_a_producers_key_is_each_tenants_own():
    assert SIGNER.tenant_key(tenant("acme")) != SIGNER.tenant_key(tenant("globex"))
    assert SIGNER.tenant_key(tenant("acme")) != KEY


async def test_two_servers_that_start_together_have_one_key():
    records = Records()
    first = await load_signer(records)  # type: ignore[arg-type]  # records of the tests' own
    second = await load_signer(records)  # type: ignore[arg-type]  # records of the tests' own
    assert second.open(first.seal(record()), "job_1", NOW).record == record()

    class Late(Records):
        async def get(self, partition, sort):
            return None if not self.held else await super().get(partition, sort)

        async def put(self, partition, sort, body, *, expect=0):
            await super().put(partition, sort, KEY, expect=expect)
            return await super().put(partition, sort, body, expect=expect)

    third = await load_signer(Late())  # type: ignore[arg-type]  # records of the tests' own
    assert third.open(SIGNER.seal(record()), "job_1", NOW).record == record()


def test_a_damaged_key_is_not_used():
    with pytest.raises(JobRefused):
        JobSigner(b"short")


def test_arguments_are_ids_numbers_and_flags():
    assert check_arguments("x", None) == {}
    assert check_arguments("x", {"file": "file_1", "pages": 3, "all": True}) == {
        "file": "file_1",
        "pages": 3,
        "all": True,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "x" * 257},
        {"nested": {"a": 1}},
        {"share": 0.5},
        {"none": None},
        {1: "x"},
        {"large": 1 << 63},
        {f"id{number}": "x" * 200 for number in range(30)},
    ],
)
def test_content_is_not_taken_as_an_argument(arguments):
    with pytest.raises(InvalidValue):
        check_arguments("x", arguments)


def test_what_will_not_change_by_itself_is_not_tried_again():
    assert plan_retry(NotFound("file"), 1) is None
    assert plan_retry(TenantSuspended(), 1) is None
    assert plan_retry(RuntimeError(), 5) is None


def test_pauses_grow_fourfold_and_are_spread():
    for attempt, least in ((1, 1.0), (2, 4.0), (3, 16.0), (4, 64.0)):
        pauses = {plan_retry(RuntimeError(), attempt) for _ in range(20)}
        assert len(pauses) > 1
        assert all(pause is not None and least <= pause <= least * 1.5 for pause in pauses)
    late = plan_retry(KeyUnreachable(retry_after_s=30), 1)
    assert late is not None
    assert late >= 30
    assert plan_retry(ModelRateLimited(), 1) is not None
