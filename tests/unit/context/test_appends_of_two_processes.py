"""Two processes on one folder: what one deletes, the other can neither append to nor read, however lately it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nagaya import Message, Nagaya
from nagaya.context.conversations import Conversations
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NotFound
from nagaya.stores import sqlite


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[TenantContext, TenantContext]]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Nagaya.open(tmp_path / "data"))
        await one.tenants.create("acme-kk", name="Acme")
        token = await one.tenants.mint("acme-kk", "mio")
        two = await stack.enter_async_context(Nagaya.open(tmp_path / "data"))
        here = await stack.enter_async_context(one.session(await one.enter(token)))
        there = await stack.enter_async_context(two.session(await two.enter(token)))
        yield here, there


async def test_a_conversation_deleted_by_another_process_takes_no_more_items(
    both: tuple[TenantContext, TenantContext],
) -> None:
    here, there = both
    chat = await here.conversations.create()
    for _ in range(3):
        await here.conversations.append(chat.id, Message.user("one"))
    await there.conversations.append(chat.id, Message.user("two"))
    await there.conversations.delete(chat.id)
    with pytest.raises(NotFound):
        await here.conversations.append(chat.id, Message.user("three"))
    with pytest.raises(NotFound):
        await here.conversations.append(chat.id, Message.user("four"))


@pytest.mark.parametrize("permanent", [False, True])
async def test_a_conversation_deleted_by_another_process_is_read_no_more(
    both: tuple[TenantContext, TenantContext], permanent: bool
) -> None:
    here, there = both
    chat = await here.conversations.create()
    for number in range(3):
        await here.conversations.append(chat.id, Message.user("one"))
        assert len(await here.conversations.items(chat.id)) == number + 1
    await there.conversations.delete(chat.id, permanent=permanent)
    with pytest.raises(NotFound):
        await here.conversations.items(chat.id)


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("read_here", [1, 5, 40])
async def test_a_conversation_that_is_only_read_here_is_read_no_more_once_another_process_deleted_it(
    both: tuple[TenantContext, TenantContext], read_here: int, permanent: bool
) -> None:
    here, there = both
    chat = await there.conversations.create()
    await there.conversations.append(chat.id, Message.user("one"))
    for _ in range(read_here):
        assert len(await here.conversations.items(chat.id)) == 1
    await there.conversations.delete(chat.id, permanent=permanent)
    with pytest.raises(NotFound):
        await here.conversations.items(chat.id)


async def test_the_head_of_ones_own_conversation_is_read_for_the_first_page_and_not_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    head = Conversations._head

    async def counted(self: Conversations, conversation_id: str, *, writing: bool) -> object:
        looked.append(conversation_id)
        return await head(self, conversation_id, writing=writing)

    async with Nagaya.open(tmp_path / "data") as nagaya:
        await nagaya.tenants.create("acme-kk", name="Acme")
        token = await nagaya.tenants.mint("acme-kk", "mio")
        async with nagaya.session(await nagaya.enter(token)) as mine:
            chat = await mine.conversations.create()
            await mine.conversations.append(chat.id, *[Message.user(str(number)) for number in range(20)])
    monkeypatch.setattr(sqlite, "_PACE_S", 60.0)  # the loop reads by itself, however slow the disk
    async with Nagaya.open(tmp_path / "data") as nagaya, nagaya.session(await nagaya.enter(token)) as mine:
        for _ in range(100):
            await mine.conversations.items(chat.id)
            await asyncio.sleep(0.001)  # a thread gives the file its log meanwhile
        monkeypatch.setattr(Conversations, "_head", counted)
        for order in ("asc", "desc") * 10:
            assert len(await mine.conversations.items(chat.id, order=order)) == 20
        assert looked == []
        await mine.conversations.append(chat.id, Message.user("last"))
        await mine.conversations.update(chat.id, title="Changed")
        looked.clear()
        assert len(await mine.conversations.items(chat.id, limit=100)) == 21
        assert looked == [chat.id]
        await mine.conversations.items(chat.id)
        assert looked == [chat.id]


async def test_a_conversation_that_others_share_is_read_only_while_they_do(
    both: tuple[TenantContext, TenantContext], tmp_path: Path
) -> None:
    here, there = both
    chat = await here.conversations.create()
    await here.conversations.append(chat.id, Message.user("one"))
    async with Nagaya.open(tmp_path / "data") as nagaya:
        ken = await nagaya.enter(await nagaya.tenants.mint("acme-kk", "ken", role="member"))
        async with nagaya.session(ken) as theirs:
            for owner in (here, there):
                await owner.conversations.update(chat.id, shared=True)
                for _ in range(40):
                    assert len(await theirs.conversations.items(chat.id)) == 1
                await owner.conversations.update(chat.id, shared=False)
                with pytest.raises(NotFound):
                    await theirs.conversations.items(chat.id)


async def test_pages_that_another_process_makes_longer_are_whole(both: tuple[TenantContext, TenantContext]) -> None:
    here, there = both
    chat = await there.conversations.create()
    for number in range(30):
        await there.conversations.append(chat.id, Message.user(str(number)))
        for _ in range(3):
            assert len(await here.conversations.items(chat.id, limit=50)) == number + 1


async def test_a_conversation_deleted_here_takes_no_more_items(both: tuple[TenantContext, TenantContext]) -> None:
    here, _ = both
    chat = await here.conversations.create()
    for _ in range(3):
        await here.conversations.append(chat.id, Message.user("one"))
    await here.conversations.delete(chat.id)
    with pytest.raises(NotFound):
        await here.conversations.append(chat.id, Message.user("two"))


async def test_items_of_two_processes_lie_in_the_order_they_were_acknowledged(
    both: tuple[TenantContext, TenantContext],
) -> None:
    here, there = both
    chat = await here.conversations.create()
    said = []
    for number in range(12):
        await (here, there)[number // 2 % 2].conversations.append(chat.id, Message.user(str(number)))
        said.append(str(number))
    items = await here.conversations.items(chat.id, limit=50, order="asc")
    assert [item.text for item in items if isinstance(item, Message)] == said


async def test_what_one_user_appended_to_lets_no_other_user_in(tmp_path: Path) -> None:
    async with Nagaya.open(tmp_path / "data") as nagaya:
        await nagaya.tenants.create("acme-kk", name="Acme")
        mio = await nagaya.enter(await nagaya.tenants.mint("acme-kk", "mio"))
        ken = await nagaya.enter(await nagaya.tenants.mint("acme-kk", "ken"))
        async with nagaya.session(mio) as mine, nagaya.session(ken) as theirs:
            chat = await mine.conversations.create()
            for _ in range(3):
                await mine.conversations.append(chat.id, Message.user("mine"))
            for attempt in (
                theirs.conversations.append(chat.id, Message.user("not mine")),
                theirs.conversations.items(chat.id),
            ):
                with pytest.raises(NotFound):
                    await attempt
