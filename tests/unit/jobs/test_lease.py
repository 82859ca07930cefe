"""A lease counts the time in which its server stood still, and what was begun before it was lost stays lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nagaya.context.conversations import Conversations
from nagaya.context.items import Message
from nagaya.errors import NotFound, SessionClosed
from nagaya.jobs.lease import Lease
from nagaya.kernel.clock import boottime_s
from nagaya.records.sealed_store import Delete, Partition, Put
from support.inside import inside

NOTES = Partition("pause", "notes")


class Moment:
    now_s = 100.0


@pytest.fixture
def lease() -> Lease:
    made = Lease(lambda: Moment.now_s)
    Moment.now_s = 100.0
    made.extend(110.0)
    return made


async def test_a_fence_holds_up_whoever_stood_still_until_somebody_says_how_it_is(lease: Lease):
    fence = lease.fence()
    await fence.hold()
    Moment.now_s = 110.0
    waiting = asyncio.ensure_future(fence.hold())
    await asyncio.sleep(0)
    assert (lease.is_held, fence.is_held, waiting.done()) == (False, False, False)
    fence.check()
    lease.extend(120.0)
    await waiting
    assert fence.is_held


async def test_what_was_begun_before_a_lease_was_lost_is_lost_for_good(lease: Lease):
    before = lease.fence()
    Moment.now_s = 110.0
    waiting = asyncio.ensure_future(before.hold())
    await asyncio.sleep(0)
    lease.lose()
    after = lease.fence()
    with pytest.raises(SessionClosed):
        await waiting
    lease.extend(130.0)
    with pytest.raises(SessionClosed):
        await before.hold()
    with pytest.raises(SessionClosed):
        before.check()
    assert (before.is_held, after.is_held) == (False, True)
    await after.hold()


def test_the_clock_of_leases_never_goes_backwards():
    first = boottime_s()
    assert boottime_s() >= first


async def _bytes():
    yield b"one"
    yield b"two"


async def test_a_fenced_session_reads_and_writes_nothing_behind_the_fence(tmp_path: Path, monkeypatch, lease: Lease):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        session = tenant.session.fenced(lease.fence())
        records, blobs = session.records, await session.blobs()
        assert await records.put(NOTES, b"a", b"1") == 1
        await blobs.put("notes/a", _bytes())
        revision = (await tenant.session.records.get(NOTES, b"a")).revision
        inner = session.lease()
        Moment.now_s = 110.0
        writes = [
            lambda: records.put(NOTES, b"b", b""),
            lambda: inner.records.put(NOTES, b"b", b""),
            lambda: records.write(NOTES, [Put(b"b", b"")]),
            lambda: records.write(NOTES, [Delete(b"a", revision)]),
            lambda: records.delete(NOTES, b"a", expect=revision),
            lambda: blobs.put("notes/b", _bytes()),
            lambda: blobs.delete("notes/a"),
        ]
        begun = [asyncio.ensure_future(write()) for write in writes]
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in begun)
        assert [row.sort for row in await records.query(NOTES, limit=10)] == [b"a"]
        lease.lose()
        refused = await asyncio.gather(*begun, return_exceptions=True)
        assert [type(each) for each in refused] == [SessionClosed] * len(writes)
        lease.extend(1_000.0)
        for closed in (lambda: session.records, lambda: session.room, lambda: inner.secrets):
            with pytest.raises(SessionClosed):
                closed()
        await inner.release()
        await session.release()
        assert [row.sort for row in await tenant.session.records.query(NOTES, limit=10)] == [b"a"]
        theirs = await tenant.session.blobs()
        assert b"".join([piece async for piece in theirs.read("notes/a")]) == b"onetwo"
        with pytest.raises(NotFound):
            [piece async for piece in theirs.read("notes/b")]


async def test_a_blob_whose_writer_stands_still_in_its_middle_is_not_there(tmp_path: Path, monkeypatch, lease: Lease):
    async def stands_still():
        yield b"one"
        Moment.now_s = 110.0

    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        session = tenant.session.fenced(lease.fence())
        writing = asyncio.ensure_future((await session.blobs()).put("notes/a", stands_still()))
        await asyncio.sleep(0.05)
        lease.lose()
        with pytest.raises(SessionClosed):
            await writing
        await session.release()
        assert await (await tenant.session.blobs()).info("notes/a") is None


async def test_behind_the_fence_nothing_is_appended_to_a_conversation(tmp_path: Path, monkeypatch, lease: Lease):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        session = tenant.session.fenced(lease.fence())
        mine = Conversations(session)
        chat = await tenant.conversations.create()
        for text in ("one", "two"):
            await mine.append(chat.id, Message.user(text))  # where it lies is known here by now
        Moment.now_s = 110.0
        begun = [
            asyncio.ensure_future(mine.append(chat.id, Message.user("three"))),
            asyncio.ensure_future(mine.append(chat.id, Message.user("four"), Message.user("five"))),
        ]
        await asyncio.sleep(0.05)
        lease.lose()
        refused = await asyncio.gather(*begun, return_exceptions=True)
        assert [type(each) for each in refused] == [SessionClosed] * 2
        await session.release()
        assert [item.text for item in await tenant.conversations.all_items(chat.id)] == ["one", "two"]


async def test_a_fenced_session_holds_its_room_open(tmp_path: Path, monkeypatch, lease: Lease):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        leases = tenant.session.room.leases
        session = tenant.session.fenced(lease.fence())
        inner = session.lease()
        assert tenant.session.room.leases == leases + 2
        for each in (inner, session, session):
            await each.release()
        assert tenant.session.room.leases == leases
