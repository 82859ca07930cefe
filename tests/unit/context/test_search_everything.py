"""Searching messages, memories and documents together: one order, what each result says, and who finds what."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from nagaya.context.items import Message
from nagaya.errors import IndexOutdated, NotFound
from nagaya.indexes import coverage as covering
from nagaya.indexes.coverage import coverage
from nagaya.indexes.open_index import OpenIndex
from nagaya.indexes.segment import Part, build_segment, entry_of, open_segment
from nagaya.indexes.terms import query_terms, term_counts
from nagaya.indexes.words import covering as chunks_covering
from support.inside import inside
from support.library import settled, store_with

ZEBRA = "# Animals\n\nThe zebra of the zoo has stripes, and the zebra eats grass.\n"
SHIMAUMA = "# 動物園\n\n動物園のシマウマは毎朝十時に草を食べる。\n"


@pytest.fixture
async def house(tmp_path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as opened:
        yield opened


async def kinds(tenant, query: str, **asked) -> list[str]:
    return [type(found).__name__ for found in (await tenant.search(query, **asked)).data]


async def test_messages_memories_and_documents_stand_in_one_order(house):
    async with house.as_user() as tenant:
        store, (file,) = await store_with(tenant, ("zoo.md", ZEBRA))
        (memory,) = await tenant.memories.add(["I like the zebra."])
        made = await tenant.conversations.create(title="Zoo", items=[Message.user("zebra zebra zebra stripes")])
        page = await tenant.search("zebra stripes")
        assert page.complete
        message, document, remembered = page.data
        assert (message.conversation_id, message.title) == (made.id, "Zoo")
        assert (document.vector_store_id, document.file_id, document.filename) == (store, file, "zoo.md")
        assert (remembered.memory_id, remembered.scope) == (memory.id, "user")
        assert message.score > document.score > remembered.score
        for found in page.data:
            marked = {found.snippet[span.start : span.end] for span in found.highlights}
            assert "zebra" in marked
            assert found.created_at > 1_700_000_000


async def test_types_choose_what_is_searched(house):
    async with house.as_user() as tenant:
        await store_with(tenant, ("zoo.md", ZEBRA))
        await tenant.memories.add(["I like the zebra."])
        await tenant.conversations.create(items=[Message.user("a zebra")])
        names = {"conversations": "FoundMessage", "memories": "FoundMemory", "documents": "FoundDocument"}
        for chosen, name in names.items():
            assert await kinds(tenant, "zebra", types=[chosen]) == [name]
        assert len(await kinds(tenant, "zebra", types=["memories", "documents"])) == 2
        assert not await kinds(tenant, "zebra", types=[])


async def test_pages_go_through_all_types_without_gaps_or_repeats(house):
    async with house.as_user() as tenant:
        await store_with(tenant, *((f"{number}.md", f"# {number}\n\nzebra {number}\n") for number in range(4)))
        await tenant.memories.add([f"zebra {number}" for number in range(4)])
        await tenant.conversations.create(items=[Message.user(f"zebra {number}") for number in range(4)])
        seen, after = [], None
        while True:
            page = await tenant.search("zebra", limit=5, after=after)
            seen += [found.snippet + type(found).__name__ for found in page.data]
            after = page.next_cursor
            if after is None:
                break
        assert len(seen) == len(set(seen)) == 12


async def test_a_cursor_is_for_its_types_alone(house):
    async with house.as_user() as tenant:
        await tenant.memories.add(["zebra one", "zebra two"])
        cursor = (await tenant.search("zebra", limit=1, types=["memories"])).next_cursor
        assert len((await tenant.search("zebra", limit=1, types=["memories"], after=cursor)).data) == 1
        with pytest.raises(NotFound):
            await tenant.search("zebra", limit=1, after=cursor)


async def test_japanese_documents_and_memories_are_found(house):
    async with house.as_user() as tenant:
        await store_with(tenant, ("動物園.md", SHIMAUMA))
        await tenant.memories.add(["シマウマが好きです。"])
        assert sorted(await kinds(tenant, "ｼﾏｳﾏ")) == ["FoundDocument", "FoundMemory"]


async def test_memories_of_the_tenant_are_everybodys_and_those_of_others_nobodys(house):
    async with house.as_user("aoi", "tenant_admin") as aoi, house.as_user("ren") as ren:
        await aoi.memories.add(["The zebra is our mascot."], scope="tenant")
        await aoi.memories.add(["zebra of my own"])
        assert [found.scope for found in (await ren.search("zebra")).data] == ["tenant"]
        assert sorted(found.scope for found in (await aoi.search("zebra")).data) == ["tenant", "user"]
        async with house.as_user() as mio:
            await mio.memories.add(["zebra of mio"])
            # An administrator may name a user to read that user's memories; a search names nobody.
            assert len((await aoi.search("zebra")).data) == 2


async def test_documents_are_found_by_whoever_may_read_their_store(house):
    async with AsyncExitStack() as entered:
        people = (("mio", "user"), ("yui", "member"), ("ren", "user"), ("aoi", "tenant_admin"))
        everybody = [await entered.enter_async_context(house.as_user(*who)) for who in people]
        mio = everybody[0]
        store, _ = await store_with(mio, ("zoo.md", ZEBRA))
        assert [len(await kinds(who, "zebra")) for who in everybody] == [1, 0, 0, 0]
        await mio.vector_stores.update(store, shared=True)
        assert [len(await kinds(who, "zebra")) for who in everybody] == [1, 1, 0, 1]
        await mio.vector_stores.update(store, shared=False)
        assert [len(await kinds(who, "zebra")) for who in everybody] == [1, 0, 0, 0]


async def test_many_memories_are_found_like_few(house):
    async with house.as_user() as tenant:
        for hundreds in range(3):
            await tenant.memories.add([f"zebra {hundreds} {number}" for number in range(100)])
        page = await tenant.search("zebra", limit=100, types=["memories"])
        assert (len(page.data), page.has_more) == (100, True)


async def test_what_was_deleted_is_not_found(house):
    async with house.as_user() as tenant:
        store, (first, _) = await store_with(tenant, ("zoo.md", ZEBRA), ("more.md", "# More\n\nzebra\n"))
        (memory,) = await tenant.memories.add(["zebra"])
        assert len(await kinds(tenant, "zebra")) == 3
        await tenant.memories.delete(memory.id)
        await tenant.files.delete(first)
        assert await kinds(tenant, "zebra") == ["FoundDocument"]
        await tenant.vector_stores.delete(store)
        assert not await kinds(tenant, "zebra")
        await settled(tenant)
        assert not await kinds(tenant, "zebra")


async def test_a_passage_that_goes_while_a_search_runs_is_not_shown(house, monkeypatch):
    async with house.as_user() as tenant:
        _, (file,) = await store_with(tenant, ("zoo.md", ZEBRA))
        found = OpenIndex.covering

        async def and_then_deleted(self, *given):
            chunks = await found(self, *given)
            await tenant.files.delete(file)
            return chunks

        monkeypatch.setattr(OpenIndex, "covering", and_then_deleted)
        assert not await kinds(tenant, "zebra")


async def test_an_index_that_cannot_be_read_leaves_the_rest_to_be_found(house, monkeypatch):
    async with house.as_user() as tenant:
        await store_with(tenant, ("zoo.md", ZEBRA))
        await tenant.memories.add(["zebra"])

        async def outdated(self, *given):
            raise IndexOutdated(found="0.1", known="1.1")

        monkeypatch.setattr(OpenIndex, "covering", outdated)
        page = await tenant.search("zebra")
        assert [found.snippet for found in page.data] == ["zebra"]
        assert not page.complete


@pytest.mark.parametrize(
    "query", ["zebra stripes", "the zebra", "動物園の草", "grass", "Zebra ZEBRA eats 十時", "nothing"]
)
def test_an_index_scores_chunks_as_their_texts_are_scored(query):
    texts = [ZEBRA, SHIMAUMA, "zebra " * 400, "grass eats zebra", "草", ZEBRA + SHIMAUMA]
    entries = [entry_of(f"{number}#0", f"file_{number}", text) for number, text in enumerate(texts)]
    part = Part(open_segment(build_segment(entries)), deleted=["file_3"])
    wanted = query_terms(query)
    expected = {
        (f"{number}#0", f"file_{number}", score)
        for number, text in enumerate(texts)
        if number != 3 and (score := coverage(term_counts(text), wanted))
    }
    assert set(chunks_covering([part], wanted)) == expected


def test_a_score_tells_no_more_occurrences_apart_than_an_index_keeps():
    wanted = {"zebra": 1.0}
    assert coverage({"zebra": covering.MOST}, wanted) == coverage({"zebra": 100_000}, wanted)
    assert coverage({"zebra": covering.MOST - 1}, wanted) < coverage({"zebra": covering.MOST}, wanted)
