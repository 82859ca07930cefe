"""Deleted, expired and unused conversations: gone for who asks at once, restorable for a while, then gone for good."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nagaya.context import conversations, ending
from nagaya.context.ending import end_conversations
from nagaya.context.items import Message
from nagaya.context.memory_records import Parent
from nagaya.context.places import HEAD
from nagaya.context.response_shapes import ResponseIn
from nagaya.errors import InvalidValue, ModelUnreachable, NotFound, StoreUnreachable
from nagaya.kernel.clock import SystemClock
from nagaya.models.driver import TextDelta
from nagaya.records.sealed_store import SealedStore
from nagaya.testing.models import say
from support.inside import inside

DAY_S = 86_400
CANARY = "zq-canary-door-code-4471"


@asynccontextmanager
async def house_with(tmp_path: Path, monkeypatch, **settings):
    async with inside(tmp_path, monkeypatch, say(f"Yes, {CANARY}.")) as house:
        if settings:
            await house.nagaya.tenants.change("acme", settings)
        yield house


async def filled(tenant, **options):
    chat = await tenant.conversations.create(title="Roof", **options)
    await tenant.conversations.append(chat.id, Message.user(CANARY))
    answer = await tenant.responses.create("Well?", conversation=chat.id)
    return chat.id, answer.id


async def holds_canary(tenant) -> bool:
    after, found = None, False
    while True:
        rows = await tenant.session.records.scan(after=after, limit=200)
        found = found or any(CANARY.encode() in record.body for _, record in rows)
        if len(rows) < 200:
            return found
        partition, record = rows[-1]
        after = (f"{partition.collection}/{partition.name}", record.sort)


class Shifted:
    """The machine's clock, some days off."""

    def __init__(self, days: float) -> None:
        self._clock = SystemClock()
        self._shift_us = int(days * DAY_S * 1_000_000)

    def now_us(self) -> int:
        return self._clock.now_us() + self._shift_us

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()


def later(tenant, days: float) -> None:
    """For the tenant's records it is some days from now; its session holds."""
    tenant.session.clock = Shifted(days)


async def test_a_deleted_conversation_is_not_found_and_can_be_restored_whole(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        before = await tenant.conversations.items(chat)
        await tenant.conversations.delete(chat)
        for attempt in (
            tenant.conversations.retrieve(chat),
            tenant.conversations.items(chat),
            tenant.conversations.append(chat, Message.user("x")),
            tenant.conversations.delete(chat),
            tenant.conversations.update(chat, title="x"),
            tenant.conversations.fork(chat),
        ):
            with pytest.raises(NotFound):
                await attempt
        assert (await tenant.conversations.list()).data == []
        gone = (await tenant.conversations.list(deleted=True)).data
        assert [(one.id, one.deleted_at > 0) for one in gone] == [(chat, True)]
        restored = await tenant.conversations.restore(chat)
        assert restored == await tenant.conversations.retrieve(chat)
        assert await tenant.conversations.items(chat) == before
        assert (await tenant.conversations.list(deleted=True)).data == []
        assert [one.id for one in (await tenant.conversations.list()).data] == [chat]
        await tenant.conversations.append(chat, Message.user("on it goes"))
        with pytest.raises(NotFound):
            await tenant.conversations.restore(chat)


async def test_after_the_days_of_the_tenant_it_is_gone_for_good(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch, restore_days=3) as house, house.as_user() as tenant:
        chat, answer = await filled(tenant)
        await tenant.conversations.delete(chat)
        assert await end_conversations(tenant.session) == 0
        assert await holds_canary(tenant)
        later(tenant, 3.01)
        with pytest.raises(NotFound):
            await tenant.conversations.restore(chat)
        assert await end_conversations(tenant.session) == 1
        assert not await holds_canary(tenant)
        assert await end_conversations(tenant.session) == 0
        with pytest.raises(NotFound):
            await tenant.responses.retrieve(answer)


@pytest.mark.parametrize("way", ["permanent", "no days", "permanent after deletion"])
async def test_it_is_gone_at_once_where_that_is_asked(tmp_path: Path, monkeypatch, way: str):
    days = 0 if way == "no days" else 7
    async with house_with(tmp_path, monkeypatch, restore_days=days) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        if way == "permanent after deletion":
            await tenant.conversations.delete(chat)
        await tenant.conversations.delete(chat, permanent=way != "no days")
        assert not await holds_canary(tenant)
        assert (await tenant.conversations.list(deleted=True)).data == []
        with pytest.raises(NotFound):
            await tenant.conversations.restore(chat)


async def test_a_term_ends_a_conversation_to_the_second_and_then_its_records(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        ends = tenant.session.clock.now_us() // 1_000_000 + 2 * DAY_S
        chat, _ = await filled(tenant, expires_at=ends)
        assert (await tenant.conversations.retrieve(chat)).expires_at == ends
        later(tenant, 2.01)
        for attempt in (tenant.conversations.retrieve(chat), tenant.conversations.append(chat, Message.user("x"))):
            with pytest.raises(NotFound):
                await attempt
        assert (await tenant.conversations.list()).data == []
        assert await end_conversations(tenant.session) == 1
        assert not await holds_canary(tenant)


async def test_a_term_that_is_set_after_items_were_appended_ends_reading_and_appending(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        for _ in range(3):
            await tenant.conversations.append(chat, Message.user(CANARY))
        ends = tenant.session.clock.now_us() // 1_000_000 + 2 * DAY_S
        await tenant.conversations.update(chat, expires_at=ends)
        await tenant.conversations.append(chat, Message.user(CANARY))
        assert len(await tenant.conversations.items(chat)) == 4
        later(tenant, 2.01)
        for attempt in (tenant.conversations.append(chat, Message.user("x")), tenant.conversations.items(chat)):
            with pytest.raises(NotFound):
                await attempt


async def test_a_term_can_be_moved_and_taken_away(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        now = tenant.session.clock.now_us() // 1_000_000
        chat, _ = await filled(tenant, expires_at=now + DAY_S)
        other, _ = await filled(tenant, expires_at=now + DAY_S)
        await tenant.conversations.update(chat, expires_at=0)
        await tenant.conversations.update(other, expires_at=now + 9 * DAY_S)
        later(tenant, 2)
        assert await end_conversations(tenant.session) == 0
        await tenant.conversations.retrieve(chat)
        await tenant.conversations.retrieve(other)


@pytest.mark.parametrize("term", [1, -5, 10**15])
async def test_a_term_in_the_past_or_beyond_all_calendars_is_refused(tmp_path: Path, monkeypatch, term):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(InvalidValue):
            await tenant.conversations.create(expires_at=term)


async def test_what_nobody_used_for_the_tenants_days_ends_and_what_was_used_stays(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch, retention_days=30) as house, house.as_user() as tenant:
        await filled(tenant)
        used = await tenant.conversations.create()
        later(tenant, 20)
        await tenant.conversations.append(used.id, Message.user("still here"))
        later(tenant, 35)
        assert await end_conversations(tenant.session) == 1
        assert not await holds_canary(tenant)
        assert [one.id for one in (await tenant.conversations.list()).data] == [used.id]


async def test_a_conversation_whose_last_messages_were_deleted_was_used_when_the_one_before_was_said(
    tmp_path: Path, monkeypatch
):
    async with house_with(tmp_path, monkeypatch, retention_days=30) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        later(tenant, 20)
        for _ in range(5):
            await tenant.conversations.append(chat, *[Message.user(CANARY) for _ in range(20)])
        for item in (await tenant.conversations.all_items(chat))[1:]:
            await tenant.conversations.delete_item(chat, item.id)
        later(tenant, 35)
        assert await end_conversations(tenant.session) == 0
        later(tenant, 51)
        assert await end_conversations(tenant.session) == 1


async def test_only_who_may_change_a_conversation_restores_it(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house:
        async with house.as_user() as tenant:
            chat, _ = await filled(tenant)
            await tenant.conversations.update(chat, shared=True)
            await tenant.conversations.delete(chat)
        async with house.as_user("yui", "member") as member:
            with pytest.raises(NotFound):
                await member.conversations.restore(chat)
            with pytest.raises(NotFound):
                await member.conversations.delete(chat, permanent=True)
            assert (await member.conversations.list(deleted=True)).data == []
        async with house.as_user("aoi", "tenant_admin") as admin:
            await admin.conversations.restore(chat)
        async with house.as_user("yui", "member") as member:
            assert (await member.conversations.list(shared=True)).data[0].id == chat


async def test_the_daily_sweep_ends_what_is_due_in_the_background(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch, restore_days=1) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        later(tenant, -2)
        await tenant.conversations.delete(chat)
        await house.nagaya.start_work()
        await house.nagaya.sweep_tenants()
        await house.nagaya.sweep_tenants()  # the same day once
        for _ in range(2000):
            if not await holds_canary(tenant):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the sweep did not come")


async def test_a_removal_that_was_cut_off_is_finished_by_the_daily_work(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)

        async def dies(*_: object, **__: object) -> None:
            raise StoreUnreachable

        with monkeypatch.context() as cut:
            cut.setattr(ending, "remove_all", dies)
            with pytest.raises(StoreUnreachable):
                await tenant.conversations.delete(chat, permanent=True)
        with pytest.raises(NotFound):
            await tenant.conversations.retrieve(chat)
        assert await holds_canary(tenant)
        await end_conversations(tenant.session)
        assert not await holds_canary(tenant)
        assert await tenant.session.records.query(ending.ENDING, limit=5) == []


async def test_an_answer_that_failed_ends_with_its_conversation(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [ModelUnreachable()]) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        failed = await tenant.responses.create(f"Is it {CANARY}?", conversation=chat)
        assert failed.status == "failed"
        assert await holds_canary(tenant)
        await tenant.conversations.delete(chat, permanent=True)
        assert not await holds_canary(tenant)


async def test_an_answer_still_being_made_leaves_nothing_when_its_conversation_was_removed(tmp_path: Path, monkeypatch):
    is_removed = asyncio.Event()
    script = [TextDelta(CANARY), is_removed, ModelUnreachable()]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        run = await tenant.responses.begin(ResponseIn(input=CANARY, conversation=chat))
        while await run.next() is not None:
            if house.model.running:
                await tenant.conversations.delete(chat, permanent=True)
                is_removed.set()
                break
        await run.finish()
        assert not await holds_canary(tenant)


async def test_a_replay_shows_its_context_and_ends_with_the_conversation_it_was_made_of(tmp_path: Path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, answer = await filled(tenant)
        again = await (await tenant.responses.replay(answer)).finish()
        once_more = await (await tenant.responses.replay(again.id)).finish()
        told = (await tenant.responses.context(answer)).turns
        for replayed in (again.id, once_more.id):
            assert (await tenant.responses.context(replayed)).turns == told
        await tenant.conversations.delete(chat, permanent=True)
        assert not await holds_canary(tenant)
        for replayed in (again.id, once_more.id):
            with pytest.raises(NotFound):
                await tenant.responses.retrieve(replayed)


# --- two at once ---------------------------------------------------------------------------------------------------


def before_purging(monkeypatch, do) -> None:
    """Have something done between the finding of a conversation at its end and its removal."""
    purge = ending.purge

    async def late(*args, **options):
        await do()
        return await purge(*args, **options)

    monkeypatch.setattr(ending, "purge", late)


def after_the_first_head(monkeypatch, do) -> None:
    """Have something done right after a conversation's head was written next."""
    written = {"put": SealedStore.put, "write": SealedStore.write}

    def then(name: str):
        async def through(self, partition, what, *args, **options):
            given = await written[name](self, partition, what, *args, **options)
            places = [what] if name == "put" else [change.sort for change in what]
            if partition.collection == "conversation" and HEAD in places:
                monkeypatch.setattr(SealedStore, "put", written["put"])
                monkeypatch.setattr(SealedStore, "write", written["write"])
                await do()
            return given

        return through

    for name in written:
        monkeypatch.setattr(SealedStore, name, then(name))


async def test_what_is_said_while_the_daily_work_looks_for_unused_conversations_is_not_lost(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch, retention_days=30) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        later(tenant, 35)

        async def say_something() -> None:
            await tenant.conversations.append(chat, Message.user("still here"))

        before_purging(monkeypatch, say_something)
        assert await end_conversations(tenant.session) == 0
        assert (await tenant.conversations.items(chat))[0].text == "still here"


@pytest.mark.parametrize("what", ["restored", "renewed"])
async def test_what_was_restored_or_renewed_just_in_time_is_not_ended(tmp_path, monkeypatch, what: str):
    async with (
        house_with(tmp_path, monkeypatch, restore_days=3) as house,
        house.as_user() as tenant,
        house.as_user() as in_time,
    ):
        ends = tenant.session.clock.now_us() // 1_000_000 + 2 * DAY_S
        chat, _ = await filled(tenant, **({"expires_at": ends} if what == "renewed" else {}))
        if what == "restored":
            await tenant.conversations.delete(chat)
        later(tenant, 3.01)

        async def keep_it() -> None:
            if what == "restored":
                await in_time.conversations.restore(chat)
            else:
                await in_time.conversations.update(chat, expires_at=0)

        before_purging(monkeypatch, keep_it)
        assert await end_conversations(tenant.session) == 0
        assert await tenant.conversations.items(chat)
        monkeypatch.undo()
        assert await end_conversations(tenant.session) == 0
        assert await tenant.conversations.items(chat)


async def test_the_daily_work_does_not_forget_a_removal_that_is_about_to_begin(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        note = ending.put_unless_there

        async def dies(*_: object, **__: object) -> None:
            raise StoreUnreachable

        with monkeypatch.context() as cut:

            async def looked_at(*args) -> None:
                await note(*args)
                cut.setattr(ending, "put_unless_there", note)
                await end_conversations(tenant.session)
                cut.setattr(ending, "remove_all", dies)

            cut.setattr(ending, "put_unless_there", looked_at)
            with pytest.raises(StoreUnreachable):
                await tenant.conversations.delete(chat, permanent=True)
        assert await holds_canary(tenant)
        later(tenant, 1)
        await end_conversations(tenant.session)
        assert not await holds_canary(tenant)
        assert await tenant.session.records.query(ending.ENDING, limit=5) == []


async def test_what_is_restored_while_its_deletion_is_under_way_is_listed(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user("mio", "member") as tenant:
        chat, _ = await filled(tenant)
        await tenant.conversations.update(chat, shared=True)

        async def restore() -> None:
            await tenant.conversations.restore(chat)

        after_the_first_head(monkeypatch, restore)
        await tenant.conversations.delete(chat)
        await tenant.conversations.retrieve(chat)
        for shared in (False, True):
            assert [one.id for one in (await tenant.conversations.list(shared=shared)).data] == [chat]


async def test_what_is_deleted_while_its_restoration_is_under_way_is_listed_as_deleted(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        await tenant.conversations.delete(chat)

        async def delete() -> None:
            await tenant.conversations.delete(chat)

        after_the_first_head(monkeypatch, delete)
        await tenant.conversations.restore(chat)
        assert (await tenant.conversations.list()).data == []
        assert [one.id for one in (await tenant.conversations.list(deleted=True)).data] == [chat]


async def test_what_is_shared_again_while_it_is_being_unshared_is_listed(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user("mio", "member") as tenant:
        chat, _ = await filled(tenant)
        await tenant.conversations.update(chat, shared=True)

        async def share() -> None:
            await tenant.conversations.update(chat, shared=True)

        after_the_first_head(monkeypatch, share)
        await tenant.conversations.update(chat, shared=False)
        assert [one.id for one in (await tenant.conversations.list(shared=True)).data] == [chat]


async def test_a_deletion_that_was_cut_off_leaves_no_memory_of_the_conversation(tmp_path, monkeypatch):
    async with house_with(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant)
        item = (await tenant.conversations.items(chat))[-1]
        await tenant.memories.add(["The door code is 4471."], parents=[Parent(chat, item.id)])

        async def dies(*_: object, **__: object) -> None:
            raise StoreUnreachable

        with monkeypatch.context() as cut:
            cut.setattr(conversations, "remove_all", dies)
            with pytest.raises(StoreUnreachable):
                await tenant.conversations.delete(chat)
        with pytest.raises(NotFound):
            await tenant.conversations.delete(chat)
        assert (await tenant.memories.list()).data == []
