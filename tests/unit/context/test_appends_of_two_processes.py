"""Two processes on one folder: what one deletes, the other can neither append to nor read, however lately it did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nagaya import Message, Nagaya
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NotFound


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
