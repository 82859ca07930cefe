"""Notes of rooms in which work is left: none is lost while there is work, and all servers ask on the same occasion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.context.library import indexing
from nagaya.context.library.files import content_for
from nagaya.context.library.search import Wanted
from nagaya.context.library.stores import FileToAdd
from nagaya.errors import NotFound
from nagaya.wiring.unfinished import LONGEST_S, occasion_of
from support.documents import pieces
from support.inside import Inside, inside
from support.library import indexed, keep, settled, texts

S = 1_000_000
ROOF = "# Roof\n\nThe roof of the warehouse was mended by Kato Roofing in spring.\n"


@pytest.fixture
async def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    async with inside(tmp_path, monkeypatch) as made:
        yield made


async def noted(acme: Inside) -> int | None:
    return await acme.nagaya.unfinished.of("acme").noted()


def test_occasions_begin_after_a_while_and_grow_rarer():
    noted_us = 7 * S
    assert occasion_of(noted_us, noted_us + 19 * S) is None
    seen = {occasion_of(noted_us, noted_us + second * S) for second in range(20, 200)}
    assert len(seen) in (9, 10)
    assert seen.isdisjoint({occasion_of(noted_us + 1, noted_us + second * S) for second in range(20, 200)})
    year = 365 * 86_400
    last = [occasion_of(noted_us, noted_us + (year + second) * S) for second in range(0, 7200, 60)]
    assert len(set(last)) <= 7200 / (LONGEST_S / 2) + 1


async def test_a_note_that_was_written_anew_is_not_taken_away(acme: Inside):
    note = acme.nagaya.unfinished.of("acme")
    assert await note.noted() is None
    await note.done(None)
    await note.note()
    before = await note.noted()
    await asyncio.gather(*(note.note() for _ in range(5)))
    await note.done(before)
    now = await note.noted()
    assert now is not None
    await note.done(now)
    assert await note.noted() is None


async def test_a_note_written_after_another_took_the_one_before_away_stays(acme: Inside):
    note, other = acme.nagaya.unfinished.of("acme"), acme.nagaya.unfinished.of("acme")
    await note.note()
    before = await note.noted()
    await other.done(await other.noted())
    await other.note()
    await note.done(before)
    assert await note.noted() is not None


async def test_work_is_noted_while_there_is_some_and_no_longer(acme: Inside, monkeypatch: pytest.MonkeyPatch):
    store = await left_off(acme, monkeypatch, "mio")
    assert await noted(acme) is not None
    async with acme.as_user() as tenant:
        await indexed(tenant, store)
        await settled(tenant)
        assert await noted(acme) is None
        await tenant.vector_stores.delete(store)
        await settled(tenant)
        assert await noted(acme) is None


async def test_the_daily_work_notes_what_nobody_knows_of(acme: Inside, monkeypatch: pytest.MonkeyPatch):
    await left_off(acme, monkeypatch, "mio")
    note = acme.nagaya.unfinished.of("acme")
    await note.done(await note.noted())
    async with acme.as_user("ken") as tenant:
        await indexing.Indexing(tenant.session).clear_all()
    assert await note.noted() is not None


async def test_the_note_of_a_tenant_that_is_gone_goes_too(acme: Inside, monkeypatch: pytest.MonkeyPatch):
    await left_off(acme, monkeypatch, "mio")
    await acme.nagaya.tenants.delete("acme")
    monkeypatch.setattr("nagaya.wiring.unfinished.FIRST_S", 0.01)
    await asyncio.sleep(0.05)
    await acme.nagaya.take_up_work()
    assert await noted(acme) is None


async def left_off(acme: Inside, monkeypatch: pytest.MonkeyPatch, user: str) -> str:
    """A store whose only file nobody indexes: whoever began it is gone. Its id."""
    async with acme.as_user(user) as tenant:
        with monkeypatch.context() as patched:
            patched.setattr(indexing.Indexing, "begin", lambda self, store_id: None)
            file_id = await keep(tenant, "roof.md", ROOF)
            return (await tenant.vector_stores.create(files=[FileToAdd(file_id)])).id


async def test_what_was_left_off_is_taken_up_without_its_user(acme: Inside, monkeypatch: pytest.MonkeyPatch):
    nagaya = acme.nagaya
    store = await left_off(acme, monkeypatch, "mio")
    await nagaya.jobs.start()
    await nagaya.take_up_work()  # too early: whoever noted it may be at work
    assert await noted(acme) is not None
    monkeypatch.setattr("nagaya.wiring.unfinished.FIRST_S", 0.05)
    async with asyncio.timeout(60):
        while await noted(acme) is not None:
            await nagaya.take_up_work()
            await asyncio.sleep(0.1)
    async with acme.as_user("mio") as tenant:
        monkeypatch.setattr(indexing.Indexing, "begin", lambda self, store_id: None)
        assert (await tenant.vector_stores.retrieve(store)).file_counts.completed == 1
        assert "Kato" in texts(await tenant.library_search.search([store], ["roof"], Wanted()))
        assert "library.ready" in [notice.type for notice in await tenant.notices.read(0)]
    assert (await acme.usage()).get("embedding_tokens", 0) > 0


async def test_work_for_a_user_reads_what_that_user_may(acme: Inside):
    async with acme.as_user("mio") as mio:
        own = await keep(mio, "roof.md", ROOF)
        shared = (await mio.files.create("all.md", pieces(ROOF.encode()), purpose="assistants", shared=True)).id
        me = mio.session.entrance.principal.user_key
    async with acme.as_user("aoi", "tenant_admin") as admin:
        for file_id, user, may in ((own, me, True), (own, None, True), (own, "ken", False), (shared, "ken", True)):
            reading = content_for(admin.session, file_id, user)
            if may:
                assert b"".join([piece async for piece in reading]) == ROOF.encode()
            else:
                with pytest.raises(NotFound):
                    await anext(reading)
        await admin.files.delete(own)
        with pytest.raises(NotFound):
            await anext(content_for(admin.session, own, None))
