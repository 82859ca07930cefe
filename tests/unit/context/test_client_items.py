"""What a client's library removes from its session is gone with what was derived from it, and what comes in meanwhile
stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.context import client_items
from nagaya.context.items import Message
from nagaya.context.memory_records import Parent
from nagaya.context.places import HEAD, partition_of
from nagaya.context.summaries import Summaries
from nagaya.kernel.ids import new_unplaced_id
from support.inside import inside

TOMORROW = {"type": "of tomorrow", "text": "hidden"}


async def test_what_another_process_appends_while_a_session_is_cleared_stays(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant, house.as_user() as other:
        chat = (await tenant.conversations.create()).id
        await tenant.client_items.add(chat, [TOMORROW, {"role": "user", "content": "Hello"}])
        answer = Message.assistant("Answer")
        answer.id = new_unplaced_id("item")
        forget = client_items.forget_words

        async def late(*args) -> None:
            monkeypatch.setattr(client_items, "forget_words", forget)
            await forget(*args)
            await other.client_items.add(chat, [TOMORROW])
            await other.conversations.append_bodies(chat, [answer], keep_ids=True)

        monkeypatch.setattr(client_items, "forget_words", late)
        await tenant.client_items.clear(chat)
        left = await tenant.client_items.last(chat)
        assert left[0] == TOMORROW
        assert [one.get("role") for one in left[1:]] == ["assistant"]
        assert (await tenant.conversations.item(chat, answer.id)).text == "Answer"
        await tenant.client_items.clear(chat)
        assert await tenant.client_items.last(chat) == []


async def test_what_is_remembered_of_an_item_that_comes_while_a_session_is_cleared_stays(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant, house.as_user() as other:
        chat = (await tenant.conversations.create()).id
        (first,) = await tenant.conversations.append(chat, Message.user("I like tea"))
        await tenant.memories.add(["I like tea"], parents=[Parent(chat, first.id)])
        forget = client_items.forget_words

        async def late(*args) -> None:
            monkeypatch.setattr(client_items, "forget_words", forget)
            await forget(*args)
            (item,) = await other.conversations.append(chat, Message.user("I live in Nara"))
            await other.memories.add(["I live in Nara"], parents=[Parent(chat, item.id)])

        monkeypatch.setattr(client_items, "forget_words", late)
        await tenant.client_items.clear(chat)
        assert [one.text for one in (await tenant.memories.list()).data] == ["I live in Nara"]


async def test_what_comes_while_the_last_item_is_popped_is_not_popped_in_its_place(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant, house.as_user() as other:
        chat = (await tenant.conversations.create()).id
        (first,) = await tenant.conversations.append(chat, Message.user("I like tea"))
        await tenant.memories.add(["I like tea"], parents=[Parent(chat, first.id)])
        forget = client_items.forget_derived

        async def late(*args) -> None:
            monkeypatch.setattr(client_items, "forget_derived", forget)
            await forget(*args)
            await other.conversations.update(chat, title="Tea")
            await other.client_items.add(chat, [{"role": "user", "content": "I live in Nara"}])

        monkeypatch.setattr(client_items, "forget_derived", late)
        assert await tenant.client_items.pop(chat) is not None
        assert [one["content"] for one in await tenant.client_items.last(chat)] == ["I live in Nara"]
        assert (await tenant.memories.list()).data == []


@pytest.mark.parametrize("how", ["cleared", "popped"])
async def test_what_is_removed_from_a_session_is_in_no_summary_and_no_memory(tmp_path: Path, monkeypatch, how: str):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        await tenant.client_items.add(chat, [{"role": "user", "content": "The door code is 4471."}])
        (item,) = await tenant.conversations.items(chat)
        await tenant.memories.add(["The door code is 4471."], parents=[Parent(chat, item.id)])
        head = await tenant.session.records.get(partition_of(chat), HEAD)
        summaries = Summaries(tenant.session, None)
        assert await summaries.by_rule(chat, head, None, [item], 1, limit_tokens=200) is not None
        if how == "cleared":
            await tenant.client_items.clear(chat)
        else:
            assert await tenant.client_items.pop(chat) is not None
        assert await summaries.newest(chat) is None
        assert (await tenant.memories.list()).data == []
