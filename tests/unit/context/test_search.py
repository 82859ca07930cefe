"""Searching conversations: what is found, who finds it, what is shown of it, and when it is gone."""

from __future__ import annotations

import pytest

from nagaya.context import search as searching
from nagaya.context.found import SNIPPET_CHARACTERS
from nagaya.context.items import Message
from nagaya.errors import InvalidValue, MissingParameter, NotFound
from support.inside import inside


@pytest.fixture
async def house(tmp_path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as opened:
        yield opened


def marked(found) -> list[str]:
    return [found.snippet[span.start : span.end] for span in found.highlights]


async def texts(tenant, query: str, **asked) -> list[str]:
    return [found.snippet for found in (await tenant.search(query, **asked)).data]


async def test_english_and_japanese_are_found_with_what_matches_marked(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(title="屋根", items=[Message.user("Who mends the roof in Kyoto?")])
        await tenant.conversations.append(made.id, Message.assistant("京都の屋根の修理は田中工務店です。"))
        await tenant.conversations.create(items=[Message.user("What is for lunch?"), Message.user("昼食は何ですか。")])

        english = (await tenant.search("roofs mended")).data
        assert [(found.role, found.title, marked(found)) for found in english] == [("user", "屋根", ["mends", "roof"])]
        assert english[0].conversation_id == made.id
        assert (await tenant.conversations.item(made.id, english[0].item_id)).text == english[0].snippet

        japanese = (await tenant.search("屋根の修理")).data
        assert [found.role for found in japanese] == ["assistant"]
        assert "修理" in "".join(marked(japanese[0]))
        assert not (await tenant.search("warranty")).data


async def test_what_is_appended_is_found_at_once_and_what_is_deleted_is_not(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("the zebra")])
        _kept, removed = await tenant.conversations.append(made.id, Message.user("a zebra"), Message.user("zebra, too"))
        assert len(await texts(tenant, "zebra")) == 3
        await tenant.conversations.delete_item(made.id, removed.id)
        assert sorted(await texts(tenant, "zebra")) == ["a zebra", "the zebra"]
        await tenant.conversations.delete(made.id)
        assert not await texts(tenant, "zebra")
        await tenant.conversations.restore(made.id)
        assert len(await texts(tenant, "zebra")) == 2


async def test_a_message_deleted_while_a_search_runs_is_not_shown(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create()
        (gone,) = await tenant.conversations.append(made.id, Message.user("the zebra"))
        messages = searching.messages

        async def and_then_deleted(*given):
            async for place in messages(*given):
                yield place
            await tenant.conversations.delete_item(made.id, gone.id)

        monkeypatch.setattr(searching, "messages", and_then_deleted)
        assert not await texts(tenant, "zebra")


async def test_others_find_only_what_is_shared_and_only_members_do(house):
    async with house.as_user() as mio:
        await mio.conversations.create(items=[Message.user("zebra, my own")])
        shared = await mio.conversations.create(items=[Message.user("zebra for all")])
        await mio.conversations.update(shared.id, shared=True)
        assert len(await texts(mio, "zebra")) == 2
        async with house.as_user("yui", "member") as yui, house.as_user("ren") as ren:
            async with house.as_user("aoi", "tenant_admin") as aoi:
                assert await texts(aoi, "zebra") == ["zebra for all"]
            assert await texts(yui, "zebra") == ["zebra for all"]
            assert not await texts(ren, "zebra")
            await mio.conversations.update(shared.id, shared=False)
            assert not await texts(yui, "zebra")


async def test_own_conversations_that_are_shared_are_found_once(house):
    async with house.as_user("yui", "member") as yui:
        made = await yui.conversations.create(items=[Message.user("one zebra")])
        await yui.conversations.update(made.id, shared=True)
        assert await texts(yui, "zebra") == ["one zebra"]


async def test_pages_follow_each_other_without_gaps_or_repeats(house):
    async with house.as_user() as tenant:
        for number in range(3):
            items = [Message.user(f"zebra number {number} {place}") for place in range(5)]
            await tenant.conversations.create(items=items)
        found, after = [], None
        while True:
            page = await tenant.search("zebra", limit=4, after=after)
            found += [result.item_id for result in page.data]
            assert page.has_more == (page.next_cursor is not None)
            if page.next_cursor is None:
                break
            # What comes meanwhile is newer than what was shown, and moves nothing.
            await tenant.conversations.create(items=[Message.user("zebra, just now")])
            after = page.next_cursor
        assert len(found) == len(set(found)) == 15


async def test_a_cursor_is_for_its_query_and_its_caller_alone(house):
    async with house.as_user() as mio, house.as_user("ren") as ren:
        await mio.conversations.create(items=[Message.user("zebra one"), Message.user("zebra two")])
        cursor = (await mio.search("zebra", limit=1)).next_cursor
        assert len((await mio.search("zebra", limit=1, after=cursor)).data) == 1
        listed = (await mio.conversations.create()).id
        for who, query, after in (
            (ren, "zebra", cursor),
            (mio, "two", cursor),
            (mio, "zebra", cursor[:-4] + "AAAA"),
            (mio, "zebra", listed),
        ):
            with pytest.raises(NotFound):
                await who.search(query, after=after)


@pytest.mark.parametrize("bound", ["MAX_CONVERSATIONS", "MAX_ITEMS", "MAX_CHARACTERS"])
async def test_a_search_that_stops_at_a_bound_says_so(house, monkeypatch, bound):
    async with house.as_user() as tenant:
        for _ in range(3):
            await tenant.conversations.create(items=[Message.user("zebra")])
        assert (await tenant.search("zebra")).complete
        monkeypatch.setattr(searching, bound, 2)
        page = await tenant.search("zebra")
        assert not page.complete
        assert 1 <= len(page.data) < 3


async def test_a_word_deep_inside_a_long_message_is_shown_with_its_surroundings(house):
    async with house.as_user() as tenant:
        await tenant.conversations.create(items=[Message.user("grass " * 10_000 + "a zebra " + "and grass " * 1_000)])
        (found,) = (await tenant.search("zebra")).data
        assert len(found.snippet) <= SNIPPET_CHARACTERS
        assert marked(found) == ["zebra"]


async def test_more_of_the_words_come_before_fewer(house):
    async with house.as_user() as tenant:
        await tenant.conversations.create(
            items=[Message.user("zebra stripes"), Message.user("zebra"), Message.user("x")]
        )
        assert await texts(tenant, "zebra stripes") == ["zebra stripes", "zebra"]


async def test_bad_questions_are_refused_with_the_parameter_named(house):
    async with house.as_user() as tenant:
        for error, param, query, asked in (
            (MissingParameter, "q", " \t\n", {}),
            (InvalidValue, "q", "x" * 1001, {}),
            (InvalidValue, "types", "zebra", {"types": ["dreams"]}),
            (InvalidValue, "types", "zebra", {"types": [""]}),
            (InvalidValue, "limit", "zebra", {"limit": 101}),
        ):
            with pytest.raises(error) as refused:
                await tenant.search(query, **asked)
            assert refused.value.param == param
        assert not await texts(tenant, "!?… 🙂")
