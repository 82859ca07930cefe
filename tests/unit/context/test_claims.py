"""A claim that is kept keeps repeats out for as long as the work takes, and its answer is the one that is repeated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nagaya.context import idempotency
from nagaya.context.idempotency import KEEP_US, Answer, Claim, claim, end_claims
from nagaya.errors import IdempotencyInProgress
from nagaya.kernel.clock import SystemClock
from nagaya.records.sealed_store import SealedStore
from support.inside import inside
from support.library import every_record


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "LEASE_US", 2_000_000)
    monkeypatch.setattr(idempotency, "RENEW_S", 0.02)


async def test_repeats_of_work_that_takes_longer_than_a_lease_are_kept_out(tmp_path: Path, monkeypatch, short):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        held = await claim(tenant.session, "key", b"POST /v1/responses")
        assert isinstance(held, Claim)
        async with held.kept():
            for _ in range(10):
                await asyncio.sleep(0.3)
                with pytest.raises(IdempotencyInProgress):
                    await claim(tenant.session, "key", b"POST /v1/responses")
        await held.finish(200, b"done")
        again = await claim(tenant.session, "key", b"POST /v1/responses")
        assert again == Answer(200, b"done")


async def test_work_that_fails_gives_its_key_back_also_after_a_renewal(tmp_path: Path, monkeypatch, short):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        held = await claim(tenant.session, "key", b"x")
        assert isinstance(held, Claim)
        with pytest.raises(ValueError, match="failed"):
            async with held.kept():
                await asyncio.sleep(0.1)
                raise ValueError("failed")
        await held.abandon()
        assert isinstance(await claim(tenant.session, "key", b"x"), Claim)


async def test_a_claim_that_was_taken_over_is_not_renewed(tmp_path: Path, monkeypatch, short):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        held = await claim(tenant.session, "key", b"x")
        assert isinstance(held, Claim)
        monkeypatch.setattr(idempotency, "LEASE_US", -1)
        other = await claim(tenant.session, "key", b"x")
        assert isinstance(other, Claim)
        async with held.kept():
            await asyncio.sleep(0.1)
        await held.finish(200, b"late")
        await other.finish(200, b"first")
        assert await claim(tenant.session, "key", b"x") == Answer(200, b"first")


class Later(SystemClock):
    """A clock that is ahead by as long as an answer is repeated, and a second."""

    def now_us(self) -> int:
        return super().now_us() + KEEP_US + 1_000_000


async def test_an_answer_that_is_repeated_no_more_is_removed(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        held = await claim(tenant.session, "key", b"x")
        assert isinstance(held, Claim)
        await held.finish(200, b"canary")
        await claim(tenant.session, "cut off", b"x")
        assert await end_claims(tenant.session) == 0
        assert await claim(tenant.session, "key", b"x") == Answer(200, b"canary")
        tenant.session.clock = Later()
        assert await end_claims(tenant.session) == 2
        assert not [place for place, _ in await every_record(tenant) if place.collection.startswith("idempotency")]


async def test_a_key_that_is_used_anew_while_its_answer_is_removed_keeps_its_claim(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        held = await claim(tenant.session, "key", b"x")
        assert isinstance(held, Claim)
        await held.finish(200, b"old")
        tenant.session.clock = Later()
        delete = SealedStore.delete

        async def late(self, *args, **options):
            monkeypatch.setattr(SealedStore, "delete", delete)
            anew = await claim(tenant.session, "key", b"x")
            assert isinstance(anew, Claim)
            await anew.finish(200, b"new")
            await delete(self, *args, **options)

        monkeypatch.setattr(SealedStore, "delete", late)
        assert await end_claims(tenant.session) == 0
        assert await claim(tenant.session, "key", b"x") == Answer(200, b"new")
        assert await end_claims(tenant.session) == 0
