"""Notices: in order, to their user alone, readable again from any place, and not kept for ever."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nagaya.context import notices as module
from nagaya.context.notices import GAP, Notices
from nagaya.errors import NotFound, SessionClosed
from support.inside import inside


def told(notices) -> list[tuple[int, str, dict]]:
    return [(one.number, one.type, json.loads(one.data)) for one in notices]


async def test_notices_come_in_the_order_in_which_they_were_told(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        notices = Notices(tenant.session)
        for number in range(5):
            await notices.tell("library.indexing", done=number, of=5)
        read = told(await notices.read(0))
        assert [number for number, _, _ in read] == [1, 2, 3, 4, 5]
        assert [data["done"] for _, _, data in read] == [0, 1, 2, 3, 4]
        assert read[0][2]["type"] == "library.indexing"
        assert read[0][2]["created_at"] > 1_700_000_000
        assert [number for number, _, _ in told(await notices.read(3))] == [4, 5]


async def test_told_at_once_by_many_they_all_come_once(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        notices = Notices(tenant.session)
        await asyncio.gather(*(notices.tell("run.step", step=step) for step in range(12)))
        assert sorted(data["step"] for _, _, data in told(await notices.read(0))) == list(range(12))


async def test_another_user_and_an_administrator_read_none_of_them(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user() as tenant:
            await Notices(tenant.session).tell("run.started", response_id="resp_1")
            cursor = await Notices(tenant.session).cursor(1)
        for user, role in (("ren", "user"), ("aoi", "tenant_admin")):
            async with house.as_user(user, role) as other:
                assert await Notices(other.session).read(0) == []
                with pytest.raises(NotFound):
                    await Notices(other.session).place(cursor)


@pytest.mark.parametrize("wrong", ["", "1", "x" * 5000, "notices", "苔", "AAAA"])
async def test_a_made_up_event_id_answers_like_one_that_is_not_there(tmp_path: Path, monkeypatch, wrong):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(NotFound):
            await Notices(tenant.session).place(wrong)


async def test_a_follower_gets_what_is_told_later_and_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 3600.0)  # so that only being woken explains it
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        notices = Notices(tenant.session)
        following = notices.follow(0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.05)
        await notices.tell("run.started", response_id="resp_1")
        assert (await asyncio.wait_for(waiting, 30)).type == "run.started"
        await following.aclose()


async def test_a_follower_hears_another_process_by_looking(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.05)
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        notices = Notices(tenant.session)
        following = notices.follow(0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.02)
        monkeypatch.setattr(type(tenant.session.room), "wake", lambda self, user: None)
        await notices.tell("run.started", response_id="resp_1")
        assert (await asyncio.wait_for(waiting, 30)).type == "run.started"
        await following.aclose()


async def test_old_notices_go_and_a_reader_who_missed_some_is_told_how_many(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 10)
    monkeypatch.setattr(module, "_SWEEP_EVERY", 5)
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        notices = Notices(tenant.session)
        for number in range(40):
            await notices.tell("run.step", step=number)
        read = told(await notices.read(2))
        assert read[0][1] == GAP
        missed = read[0][2]["missed"]
        assert read[1][0] == 2 + missed + 1
        assert 10 <= len(read) - 1 < 20
        assert [number for number, _, _ in read[1:]] == list(range(read[1][0], 41))


async def test_a_follower_ends_with_its_session(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.05)
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        following = Notices(tenant.session).follow(0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.02)
        await tenant.close()
        with pytest.raises(SessionClosed):
            await asyncio.wait_for(waiting, 30)


async def test_a_follower_ends_when_it_is_told_to(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.05)
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        stop = False
        following = Notices(tenant.session).follow(0, until=lambda: stop)
        waiting = asyncio.ensure_future(anext(following, None))
        await asyncio.sleep(0.02)
        stop = True
        assert await asyncio.wait_for(waiting, 30) is None
