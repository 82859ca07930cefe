"""A fork begins as its source did, up to an item, and is nobody else's business from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.context import forks
from nagaya.context.ending import end_conversations
from nagaya.context.items import Message
from nagaya.errors import Forbidden, NotFound, StoreUnreachable
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.ids import new_id
from nagaya.testing.models import say
from support.inside import inside
from support.library import everything_kept


async def dies(*_, **__):
    raise StoreUnreachable


async def texts(tenant, conversation: str) -> list[str]:
    items = await tenant.conversations.items(conversation, order="asc", limit=100)
    return [item.text for item in items if isinstance(item, Message)]


async def filled(tenant, count: int):
    chat = await tenant.conversations.create(title="Roof", metadata={"a": "b"})
    items = []
    for start in range(0, count, 20):
        given = [Message.user(f"m{n}") for n in range(start, min(count, start + 20))]
        items += await tenant.conversations.append(chat.id, *given)
    return chat, items


async def test_a_fork_has_the_items_up_to_the_one_that_was_named(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, items = await filled(tenant, 5)
        fork = await tenant.conversations.fork(chat.id, item_id=items[2].id)
        assert await texts(tenant, fork.id) == ["m0", "m1", "m2"]
        assert (fork.forked_from.conversation_id, fork.forked_from.item_id) == (chat.id, items[2].id)
        assert fork.metadata == {"a": "b", "title": "Roof"}
        await tenant.conversations.append(fork.id, Message.user("on its own"))
        assert await texts(tenant, chat.id) == ["m0", "m1", "m2", "m3", "m4"]
        assert await texts(tenant, fork.id) == ["m0", "m1", "m2", "on its own"]
        copied = await tenant.conversations.items(fork.id, order="asc")
        assert not {item.id for item in copied} & {item.id for item in items}
        assert (await tenant.conversations.retrieve(fork.id)) == fork


async def test_a_fork_of_a_long_conversation_is_whole_and_leaves_deleted_items_out(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, items = await filled(tenant, 260)
        await tenant.conversations.delete_item(chat.id, items[100].id)
        fork = await tenant.conversations.fork(chat.id, title="Copy")
        copied = await tenant.conversations.all_items(fork.id)
        assert [item.text for item in copied] == [f"m{n}" for n in range(260) if n != 100]
        assert fork.title == "Copy"


async def test_a_fork_outlives_its_source(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant, 3)
        fork = await tenant.conversations.fork(chat.id)
        await tenant.conversations.delete(chat.id)
        assert await texts(tenant, fork.id) == ["m0", "m1", "m2"]


async def test_a_shared_conversation_is_forked_into_the_readers_own(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user() as tenant:
            chat, _ = await filled(tenant, 3)
            await tenant.conversations.update(chat.id, shared=True)
        async with house.as_user("yui", "member") as reader:
            fork = await reader.conversations.fork(chat.id)
            assert await texts(reader, fork.id) == ["m0", "m1", "m2"]
            assert not fork.shared
        async with house.as_user() as tenant:
            with pytest.raises(NotFound):
                await tenant.conversations.retrieve(fork.id)


@pytest.mark.parametrize("how", ["removed", "given up"])
async def test_the_end_of_a_fork_takes_no_response_of_its_source(tmp_path: Path, monkeypatch, how: str):
    async with (
        inside(tmp_path, monkeypatch, say("Yes.")) as house,
        house.as_user() as owner,
        house.as_user("yui", "member") as yui,
    ):
        chat = await owner.conversations.create()
        answer = await owner.responses.create("Well?", conversation=chat.id)
        await owner.conversations.update(chat.id, shared=True)
        if how == "removed":
            fork = await yui.conversations.fork(chat.id)
            await yui.conversations.delete(fork.id, permanent=True)
        else:
            with monkeypatch.context() as cut:
                cut.setattr(type(yui.conversations), "create", dies)
                with pytest.raises(StoreUnreachable):
                    await yui.conversations.fork(chat.id)
            owner.session.clock = Later()
            await end_conversations(owner.session)
        assert (await owner.responses.retrieve(answer.id)).output_text == "Yes."
        await owner.conversations.delete(chat.id, permanent=True)
        with pytest.raises(NotFound):
            await owner.responses.retrieve(answer.id)


async def test_what_may_not_be_read_is_not_forked(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user() as tenant:
            chat, items = await filled(tenant, 2)
            other, _ = await filled(tenant, 1)
            with pytest.raises(NotFound):
                await tenant.conversations.fork(other.id, item_id=items[0].id)
        async with house.as_user("ren") as stranger:
            with pytest.raises(NotFound):
                await stranger.conversations.fork(chat.id)
        async with house.as_user("mio", scopes=("nagaya.read",)) as reader:
            with pytest.raises(Forbidden):
                await reader.conversations.fork(chat.id)


class Later(SystemClock):
    def now_us(self) -> int:
        return super().now_us() + 3 * 86_400 * 1_000_000


async def test_a_fork_whose_maker_dies_leaves_nothing_for_long(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, _ = await filled(tenant, 3)
        await tenant.conversations.append(chat.id, Message.user("canary-4471"))
        whole = await tenant.conversations.fork(chat.id)

        with monkeypatch.context() as cut:
            cut.setattr(type(tenant.conversations), "create", dies)
            with pytest.raises(StoreUnreachable):
                await tenant.conversations.fork(chat.id)
        await end_conversations(tenant.session)
        tenant.session.clock = Later()
        await end_conversations(tenant.session)
        assert len(await texts(tenant, whole.id)) == 4
        for each in (chat.id, whole.id):
            await tenant.conversations.delete(each, permanent=True)
        assert b"canary-4471" not in await everything_kept(tenant)


async def test_a_fork_that_is_repeated_is_of_its_source_as_it_is_then_and_one_that_was_made_is_given(
    tmp_path: Path, monkeypatch
):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat, items = await filled(tenant, 200)
        pages, new = forks.item_places, new_id("conv")

        async def then_dies(*args, **options):
            cut.setattr(forks, "item_places", dies)
            return await pages(*args, **options)

        with monkeypatch.context() as cut:
            cut.setattr(forks, "item_places", then_dies)
            with pytest.raises(StoreUnreachable):
                await tenant.conversations.fork(chat.id, new=new)
        await tenant.conversations.delete_item(chat.id, items[0].id)
        made = await tenant.conversations.fork(chat.id, new=new)
        assert [item.text for item in await tenant.conversations.all_items(new)] == [f"m{n}" for n in range(1, 200)]
        await tenant.conversations.delete(chat.id, permanent=True)
        assert await tenant.conversations.fork(chat.id, new=new) == made


@pytest.mark.parametrize("what", ["removed", "unshared"])
async def test_what_is_gone_while_it_is_being_forked_is_not_forked(tmp_path: Path, monkeypatch, what: str):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as owner, house.as_user("yui", "member") as yui:
        chat, _ = await filled(owner, 100)
        await owner.conversations.update(chat.id, shared=True)
        pages = forks.item_places

        async def then_gone(*args, **options):
            page = await pages(*args, **options)
            monkeypatch.setattr(forks, "item_places", pages)
            if what == "removed":
                await owner.conversations.delete(chat.id, permanent=True)
            else:
                await owner.conversations.update(chat.id, shared=False)
            return page

        monkeypatch.setattr(forks, "item_places", then_gone)
        with pytest.raises(NotFound):
            await yui.conversations.fork(chat.id)
        assert (await yui.conversations.list()).data == []
