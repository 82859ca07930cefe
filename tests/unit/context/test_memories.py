"""Memories: whose they are, what becomes of them, and how they are found."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from nagaya.context import memories
from nagaya.context.items import Message
from nagaya.context.memory_extraction import UserSaid, remember
from nagaya.context.memory_records import Parent, end_memories
from nagaya.context.memory_search import rank
from nagaya.context.memory_shapes import Labels
from nagaya.errors import Forbidden, InvalidValue, NotFound, TooManyMemories
from nagaya.settings import Settings
from nagaya.wiring import Nagaya
from support.inside import inside


async def test_a_memory_is_added_found_changed_and_deleted_with_its_former_texts(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        (made,) = await mio.memories.add(["Mio drinks green tea in the morning"], metadata={"from": "form"})
        await mio.memories.add(["The printer is on the third floor", "朝は電車で通勤しています"])
        found = await mio.memories.search("what tea is drunk?")
        assert found.data[0].id == made.id
        assert (await mio.memories.search("電車の通勤")).data[0].text == "朝は電車で通勤しています"
        changed = await mio.memories.update(made.id, text="Mio drinks coffee in the morning")
        assert changed.metadata == {"from": "form"}
        assert [(one.event, one.before, one.after) for one in await mio.memories.history(made.id)] == [
            ("ADD", None, "Mio drinks green tea in the morning"),
            ("UPDATE", "Mio drinks green tea in the morning", "Mio drinks coffee in the morning"),
        ]
        await mio.memories.delete(made.id)
        with pytest.raises(NotFound):
            await mio.memories.retrieve(made.id)
        assert [(one.event, one.before, one.after) for one in await mio.memories.history(made.id)] == [
            ("DELETE", None, None)
        ]
        assert made.id not in [one.id for one in (await mio.memories.list()).data]


async def test_many_memories_are_ranked_off_the_loop_and_alike(tmp_path: Path, monkeypatch):
    ranked_in: list[int] = []

    def watched(*given):
        ranked_in.append(threading.get_ident())
        return rank(*given)

    monkeypatch.setattr(memories, "rank", watched)
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        await mio.memories.add(["I like tea", "I like coffee", "The printer is on the third floor"])
        few = await mio.memories.search("which tea?")
        monkeypatch.setattr(memories, "IN_A_THREAD_FROM", 3)
        assert await mio.memories.search("which tea?") == few
        assert few.data[0].text == "I like tea"
    assert ranked_in[0] == threading.get_ident() != ranked_in[1]


async def test_the_same_text_is_not_kept_twice_unless_its_labels_differ(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        assert len(await mio.memories.add(["I like tea", "I like tea"])) == 1
        assert await mio.memories.add(["I like tea"]) == []
        assert len(await mio.memories.add(["I like tea"], labels=Labels(agent_id="barista"))) == 1


async def test_another_users_memory_answers_as_one_that_does_not_exist(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio, here.as_user("ken") as ken:
        (made,) = await mio.memories.add(["The safe opens with canary-4711"])
        absent = "mem_" + "0" * 32
        for memory_id in (made.id, absent):
            for work in (ken.memories.retrieve, ken.memories.history, ken.memories.delete):
                with pytest.raises(NotFound):
                    await work(memory_id)
            with pytest.raises(NotFound):
                await ken.memories.update(memory_id, text="mine now")
        assert (await ken.memories.search("canary-4711", user="mio")).data == []
        assert (await ken.memories.list(user="mio")).data == []
        with pytest.raises(NotFound):
            await ken.memories.add(["planted"], user="mio")
        with pytest.raises(NotFound):
            await ken.memories.delete_all(user="mio")
        async with here.as_user("ada", "tenant_admin") as ada:
            assert (await ada.memories.list(user="mio")).data[0].id == made.id


async def test_a_memory_of_the_tenant_is_read_by_all_and_written_by_its_administrators(tmp_path: Path, monkeypatch):
    async with (
        inside(tmp_path, monkeypatch) as here,
        here.as_user() as mio,
        here.as_user("ada", "tenant_admin") as ada,
    ):
        (made,) = await ada.memories.add(["The office closes at six"], scope="tenant")
        assert (await mio.memories.search("when does the office close?")).data[0].id == made.id
        with pytest.raises(Forbidden):
            await mio.memories.add(["The office closes at noon"], scope="tenant")
        with pytest.raises(Forbidden):
            await mio.memories.update(made.id, text="The office closes at noon")
        with pytest.raises(Forbidden):
            await mio.memories.delete(made.id)


async def test_a_memory_past_its_term_is_never_given_back_and_is_swept_away(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        now_us = mio.session.clock.now_us()
        (made,) = await mio.memories.add(["The visitor pass is 8812"], expires_at=now_us // 1_000_000 + 60)
        with pytest.raises(InvalidValue):
            await mio.memories.add(["too late"], expires_at=now_us // 1_000_000 - 1)
        monkeypatch.setattr(mio.session.clock, "now_us", lambda: now_us + 120 * 1_000_000, raising=False)
        assert (await mio.memories.list()).data == []
        assert (await mio.memories.search("visitor pass")).data == []
        for work in (mio.memories.retrieve, mio.memories.history):
            with pytest.raises(NotFound):
                await work(made.id)
        assert await end_memories(mio.session) == 1
        assert await end_memories(mio.session) == 0
        assert [one.event for one in await mio.memories.history(made.id)] == ["DELETE"]


async def test_what_is_said_again_after_its_term_is_kept(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        now_us = mio.session.clock.now_us()
        await mio.memories.add(["The visitor pass is 8812"], expires_at=now_us // 1_000_000 + 60)
        monkeypatch.setattr(mio.session.clock, "now_us", lambda: now_us + 120 * 1_000_000, raising=False)
        (again,) = await mio.memories.add(["The visitor pass is 8812"])
        await end_memories(mio.session)
        assert [one.id for one in (await mio.memories.list()).data] == [again.id]


async def test_what_was_derived_from_an_item_goes_with_it_and_what_others_say_too_stays(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        conversation = await mio.conversations.create(
            items=[Message.user("I live in Nara."), Message.user("I live in Nara. I work as a baker.")]
        )
        items = list(await mio.conversations.all_items(conversation.id))
        said = [UserSaid(one.text, Parent(conversation.id, one.id)) for one in items]
        assert {one.text for one in (await remember(mio.session, mio.meter, said, None)).added} == {
            "I live in Nara.",
            "I work as a baker.",
        }
        await mio.conversations.delete_item(conversation.id, items[1].id)
        assert [one.text for one in (await mio.memories.list()).data] == ["I live in Nara."]
        await mio.conversations.delete(conversation.id)
        assert (await mio.memories.list()).data == []


async def test_deleting_all_deletes_only_what_is_chosen(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        await mio.memories.add(["one"], labels=Labels(agent_id="a"))
        await mio.memories.add(["two"])
        assert await mio.memories.delete_all(where=lambda one: one.agent_id == "a") == 1
        assert [one.text for one in (await mio.memories.list()).data] == ["two"]
        assert await mio.memories.delete_all() == 1


async def test_what_another_process_does_to_the_memories_is_seen_at_once(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, Nagaya.open(settings=Settings(data=str(tmp_path))) as elsewhere:
        token = await here.nagaya.tenants.mint("acme", "mio")
        async with (
            here.nagaya.session(await here.nagaya.enter(token)) as mio,
            elsewhere.session(await elsewhere.enter(token)) as other,
        ):
            tea, coffee = await mio.memories.add(["I drink green tea", "I drink coffee at work"])

            async def told(tenant) -> set[str]:
                listed = {one.text for one in (await tenant.memories.list()).data}
                found = {one.text for one in (await tenant.memories.search("what do I drink?")).data}
                assert found == listed
                return listed

            assert await told(mio) == await told(other) == {tea.text, coffee.text}
            await other.memories.update(tea.id, text="I drink water")
            assert await told(mio) == {"I drink water", coffee.text}
            await other.memories.delete(coffee.id)
            assert await told(mio) == {"I drink water"}
            assert (await other.memories.add(["I drink coffee at work"]))[0].id != coffee.id
            assert await mio.memories.add(["I drink coffee at work"]) == []
            assert await told(mio) == await told(other) == {"I drink water", coffee.text}


async def test_what_a_caller_does_with_a_memory_changes_no_other_callers(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        await mio.memories.add(["I drink tea"], metadata={"from": {"form": [1]}}, categories=["drinks"])
        before = await mio.memories.list()
        shown = (await mio.memories.list()).data[0]
        shown.metadata["from"]["form"].append(2)
        shown.metadata["more"] = True
        shown.categories.append("others")
        shown.derived_from.append(Parent(response_id="resp_1"))
        assert await mio.memories.list() == before


async def test_memories_in_memory_go_with_the_key_and_with_the_room(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here:
        limit = here.nagaya.decoded_limit
        async with here.as_user() as mio:
            await mio.memories.add(["I drink tea"])
            assert len((await mio.memories.list()).data) == 1
            assert limit.held_bytes > 0
            here.nagaya.rooms.drop_keys("acme")
            assert limit.held_bytes == 0
            assert len((await mio.memories.list()).data) == 1
            assert limit.held_bytes > 0
        await here.nagaya.tenants.suspend("acme")
        for _ in range(600):
            if not limit.held_bytes:
                break
            await asyncio.sleep(0.05)
        assert limit.held_bytes == 0


@pytest.mark.parametrize("how", ["one before the other", "both at once"])
async def test_the_same_text_is_not_kept_twice_by_two_at_once(tmp_path: Path, monkeypatch, how: str):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio, here.as_user() as again:
        chat = await mio.conversations.create()
        (first, second) = await mio.conversations.append(chat.id, Message.user("I like tea"), Message.user("Tea!"))
        given = [Parent(chat.id, item.id) for item in (first, second)]
        vectors, writing = memories.vectors_of, asyncio.Barrier(2)

        async def late(*args):
            if how == "both at once":
                await writing.wait()
            else:
                monkeypatch.setattr(memories, "vectors_of", vectors)
                made.append(await again.memories.add(["I like tea"], parents=given[1:]))
            return await vectors(*args)

        made: list[list] = []
        monkeypatch.setattr(memories, "vectors_of", late)
        if how == "both at once":
            both = [
                one.memories.add(["I like tea"], parents=[told]) for one, told in zip((mio, again), given, strict=True)
            ]
            made += await asyncio.wait_for(asyncio.gather(*both), 30)
        else:
            made.append(await mio.memories.add(["I like tea"], parents=given[:1]))
        (kept,) = (await mio.memories.list()).data
        assert [one.id for some in made for one in some] == [kept.id]
        assert {one.item_id for one in kept.derived_from} == {first.id, second.id}
        await mio.conversations.delete_item(chat.id, first.id)
        assert [one.id for one in (await mio.memories.list()).data] == [kept.id]
        await mio.conversations.delete_item(chat.id, second.id)
        assert (await mio.memories.list()).data == []


async def test_two_at_once_may_pass_the_limit_by_what_they_add_and_nothing_of_it_is_lost(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(memories, "MAX_MEMORIES", 3)
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio, here.as_user() as other:
        every = memories.Memories._all

        async def late(self, *args, **more):
            found = await every(self, *args, **more)
            monkeypatch.setattr(memories.Memories, "_all", every)
            await other.memories.add(["The cat is called Kuro", "The roof leaks"])
            return found

        monkeypatch.setattr(memories.Memories, "_all", late)
        await mio.memories.add(["I like tea", "I live in Nara"])
        assert len((await mio.memories.list()).data) == 4
        assert (await mio.memories.search("who is called Kuro?")).data[0].text == "The cat is called Kuro"
        with pytest.raises(TooManyMemories):
            await mio.memories.add(["I like coffee"])
        for one in (await mio.memories.list()).data[:2]:
            await mio.memories.delete(one.id)
        await mio.memories.add(["I like coffee"])


async def test_what_is_kept_while_many_others_are_is_given_back(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio, here.as_user() as other:
        is_alone = memories.Memories._is_alone

        async def late(self, *args):
            monkeypatch.setattr(memories.Memories, "_is_alone", is_alone)
            for some in range(2):
                await other.memories.add([f"I know {some} and {number}" for number in range(60)])
            return await is_alone(self, *args)

        monkeypatch.setattr(memories.Memories, "_is_alone", late)
        (made,) = await mio.memories.add(["I like tea"])
        assert (await mio.memories.retrieve(made.id)).text == "I like tea"


@pytest.mark.parametrize("what", ["deleted", "changed"])
async def test_what_is_said_again_while_its_memory_goes_is_kept(tmp_path: Path, monkeypatch, what: str):
    async with inside(tmp_path, monkeypatch) as here, here.as_user() as mio:
        chat = await mio.conversations.create()
        (first, second) = await mio.conversations.append(chat.id, Message.user("I like tea"), Message.user("Tea!"))
        (former,) = await mio.memories.add(["I like tea"], parents=[Parent(chat.id, first.id)])
        also_from = memories.Memories._also_from

        async def late(self, *args):
            if what == "deleted":
                await mio.memories.delete(former.id)
            else:
                await mio.memories.update(former.id, text="I like coffee")
            return await also_from(self, *args)

        monkeypatch.setattr(memories.Memories, "_also_from", late)
        (made,) = await mio.memories.add(["I like tea"], parents=[Parent(chat.id, second.id)])
        assert [one.text for one in (await mio.memories.list()).data if one.id == made.id] == ["I like tea"]
