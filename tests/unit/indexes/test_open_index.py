"""A room's segments in memory: only while its key may be used, within a budget, and never another room's."""

from __future__ import annotations

import asyncio
import importlib.util
import threading

import pytest

pytest.importorskip("numpy", reason="needs nagaya[library]")

from nagaya.errors import IndexDamaged, KeyDisabled, MissingExtra, NotFound, SealBroken
from nagaya.indexes import open_index as module
from nagaya.indexes.catalog import Catalog
from nagaya.indexes.open_index import IndexMemory
from nagaya.indexes.query import Query
from nagaya.indexes.segment import build_segment, entry_of

MODEL = "model-a"


def segment(*texts: str, document: str = "d") -> bytes:
    rows = [entry_of(f"{document}/{n}", document, text, [1.0, n, 0.5, 2.0]) for n, text in enumerate(texts)]
    return build_segment(rows, embedding=MODEL, dimensions=4)


async def planted(rooms, room: str, *texts: str, name: str = "s1", document: str = "d") -> Catalog:
    content = segment(*texts, document=document)
    await rooms.keep(room, name, content)
    return Catalog().with_segment(name, len(texts), len(content))


def ids(hits) -> list[str]:
    return [hit.chunk_id for hit in hits]


async def test_what_was_sealed_is_found(rooms) -> None:
    catalog = await planted(rooms, "acme", "The roof was mended.", "屋根の修理")
    index = await rooms.index("acme")
    assert ids(await index.search(catalog, Query("roofs"))) == ["d/0"]
    assert ids(await index.search(catalog, Query("修理"))) == ["d/1"]
    assert ids(await index.search(Catalog(), Query("roofs"))) == []
    assert rooms.reads == ["s1"]


async def test_segments_of_one_index_are_ranked_as_one(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof tiles and other things", document="a")
    second = segment("roof roof roof", "gutter", document="b")
    await rooms.keep("acme", "s2", second)
    catalog = catalog.with_segment("s2", 2, len(second))
    hits = await (await rooms.index("acme")).search(catalog, Query("roof"))
    assert ids(hits) == ["b/0", "a/0"]


async def test_deleted_and_changed_documents_hold_at_the_next_search(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof", document="a")
    index = await rooms.index("acme")
    assert (await index.search(catalog, Query("roof")))[0].attributes == {}
    changed = catalog.with_attributes("a", {"lang": "en"})
    assert (await index.search(changed, Query("roof")))[0].attributes == {"lang": "en"}
    assert await index.search(catalog.without_documents(["a"]), Query("roof")) == []
    assert rooms.reads == ["s1"]


async def test_a_merge_gives_the_bytes_of_what_is_left(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof one", document="a")
    second = segment("roof two", "roof three", document="b")
    await rooms.keep("acme", "s2", second)
    catalog = catalog.with_segment("s2", 2, len(second)).without_documents(["a"])
    index = await rooms.index("acme")
    content, chunks = await index.merge(catalog, catalog.pieces)
    assert chunks == 2
    assert rooms.memory.held_bytes == 0
    await rooms.keep("acme", "s3", content)
    merged = catalog.with_merged(catalog.pieces, ("s3", chunks, len(content)), since=catalog)
    assert ids(await index.search(merged, Query("roof"))) == ids(await index.search(catalog, Query("roof")))


# --- rooms --------------------------------------------------------------------------------------------------------


async def test_the_nearest_neighbours_are_a_rooms_own_whatever_another_holds(rooms) -> None:
    mine = await planted(rooms, "acme", "quite another matter")
    theirs = await planted(rooms, "globex", "canary-globex roof", name="s1")
    query = Query("canary-globex roof", [1.0, 0.0, 0.5, 2.0], MODEL, 1000)
    acme, globex = await rooms.index("acme"), await rooms.index("globex")
    for _ in range(3):
        found, others = await asyncio.gather(acme.search(mine, query), globex.search(theirs, query))
        assert [hit.words for hit in found] == [0.0]
        assert len(others) == 1
        assert others[0].words > 0.3


async def test_a_segment_of_another_room_put_in_place_does_not_open(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    await planted(rooms, "globex", "canary")
    rooms.bare["acme"].plant("s1", rooms.bare["globex"].contents["s1"])
    with pytest.raises(SealBroken):
        await (await rooms.index("acme")).search(catalog, Query("roof"))


async def test_a_catalog_of_another_room_finds_nothing_here(rooms) -> None:
    await planted(rooms, "acme", "roof")
    theirs = await planted(rooms, "globex", "canary", name="only-globex-has-this")
    with pytest.raises(NotFound):
        await (await rooms.index("acme")).search(theirs, Query("canary"))


async def test_twenty_rooms_at_once_do_not_meet(rooms) -> None:
    # A budget for about two of them, so that each goes on pushing the others out.
    rooms.memory = IndexMemory(3 * len(segment("roof canary-0")))
    catalogs = [await planted(rooms, f"room-{n}", f"roof canary-{n}", document=f"doc-{n}") for n in range(20)]
    indexes = [await rooms.index(f"room-{n}") for n in range(20)]

    async def many(number: int) -> None:
        for _ in range(15):
            hits = await indexes[number].search(catalogs[number], Query("roof canary", [1, 1, 1, 1], MODEL))
            assert ids(hits) == [f"doc-{number}/0"]
            await asyncio.sleep(0)

    await asyncio.gather(*(many(number) for number in range(20)))


# --- the lease ----------------------------------------------------------------------------------------------------


async def test_nothing_is_found_once_the_key_is_disabled(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    await index.search(catalog, Query("roof"))
    await rooms.keys.disable("acme")
    rooms.keyrings["acme"].drop()
    assert rooms.memory.held_bytes == 0
    with pytest.raises(KeyDisabled):
        await index.search(catalog, Query("roof"))


async def test_what_is_in_memory_is_not_served_longer_than_the_key(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    await index.search(catalog, Query("roof"))
    await rooms.keys.disable("acme")
    rooms.clock.advance(31)
    with pytest.raises(KeyDisabled):
        await index.search(catalog, Query("roof"))
    assert rooms.memory.held_bytes == 0


async def test_a_search_under_way_when_the_key_is_withdrawn_gives_nothing(rooms, monkeypatch) -> None:
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    await index.search(catalog, Query("roof"))
    monkeypatch.setattr(module, "IN_A_THREAD_FROM", 0)
    begun, go_on = threading.Event(), threading.Event()
    from nagaya.indexes import hybrid

    search = hybrid.search

    def held_up(*arguments):
        begun.set()
        go_on.wait(30)
        return search(*arguments)

    monkeypatch.setattr(hybrid, "search", held_up)
    asked = asyncio.ensure_future(index.search(catalog, Query("roof")))
    await asyncio.to_thread(begun.wait, 30)
    await rooms.keys.disable("acme")
    rooms.keyrings["acme"].drop()
    go_on.set()
    with pytest.raises(KeyDisabled):
        await asked


async def test_what_is_being_opened_when_keys_are_dropped_is_not_kept(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    rooms.bare["acme"].gate.clear()
    asked = asyncio.ensure_future(index.search(catalog, Query("roof")))
    for _ in range(5):
        await asyncio.sleep(0)
    index.drop()
    rooms.bare["acme"].gate.set()
    assert ids(await asked) == ["d/0"]
    assert rooms.memory.held_bytes == 0


# --- opening ------------------------------------------------------------------------------------------------------


async def test_one_opening_serves_all_who_wait_and_outlives_one_who_leaves(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    rooms.bare["acme"].gate.clear()
    asked = [asyncio.ensure_future(index.search(catalog, Query("roof"))) for _ in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    asked[0].cancel()
    rooms.bare["acme"].gate.set()
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
    assert [ids(await each) for each in asked[1:]] == [["d/0"]] * 4
    assert rooms.reads == ["s1"]


async def test_the_budget_holds_and_the_longest_unused_goes_first(rooms) -> None:
    catalogs = {}
    for name in ("s1", "s2", "s3"):
        catalogs[name] = await planted(rooms, "acme", "roof", name=name)
    index = await rooms.index("acme")
    await index.search(catalogs["s1"], Query("roof"))
    rooms.memory._limit_bytes = 2 * rooms.memory.held_bytes
    for name in ("s2", "s1", "s3"):
        await index.search(catalogs[name], Query("roof"))
        assert rooms.memory.held_bytes <= rooms.memory._limit_bytes
    rooms.reads.clear()
    await index.search(catalogs["s1"], Query("roof"))
    assert rooms.reads == []
    await index.search(catalogs["s2"], Query("roof"))
    assert rooms.reads == ["s2"]


async def test_a_segment_larger_than_the_budget_is_searched_and_not_kept(rooms) -> None:
    rooms.memory = IndexMemory(10)
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    assert ids(await index.search(catalog, Query("roof"))) == ["d/0"]
    assert rooms.memory.held_bytes == 0


async def test_sealed_bytes_that_are_no_segment_are_said_to_be_damaged_and_asked_for_again_later(rooms) -> None:
    catalog = await planted(rooms, "acme", "roof")
    await rooms.keep("acme", "s1", b"something else")
    index = await rooms.index("acme")
    with pytest.raises(IndexDamaged):
        await index.search(catalog, Query("roof"))
    await rooms.keep("acme", "s1", segment("roof"))
    assert ids(await index.search(catalog, Query("roof"))) == ["d/0"]


async def test_a_long_search_leaves_the_loop_to_others(rooms, monkeypatch) -> None:
    from nagaya.indexes import hybrid

    where = []
    search = hybrid.search
    monkeypatch.setattr(hybrid, "search", lambda *given: where.append(threading.current_thread()) or search(*given))
    catalog = await planted(rooms, "acme", "roof")
    index = await rooms.index("acme")
    await index.search(catalog, Query("roof"))
    monkeypatch.setattr(module, "IN_A_THREAD_FROM", 1)
    await index.search(catalog, Query("roof"))
    assert where[0] is threading.main_thread()
    assert where[1] is not threading.main_thread()


async def test_a_large_segment_is_opened_in_a_thread(rooms, monkeypatch) -> None:
    from nagaya.indexes import segment as segments

    where = []
    open_segment = segments.open_segment
    monkeypatch.setattr(
        segments, "open_segment", lambda content: where.append(threading.current_thread()) or open_segment(content)
    )
    monkeypatch.setattr(module, "_IN_A_THREAD_FROM_BYTES", 0)
    catalog = await planted(rooms, "acme", "roof")
    assert ids(await (await rooms.index("acme")).search(catalog, Query("roof"))) == ["d/0"]
    assert where[0] is not threading.main_thread()


async def test_without_numpy_the_error_names_what_to_install(rooms, monkeypatch) -> None:
    catalog = await planted(rooms, "acme", "roof")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"nagaya\[library\]"):
        await (await rooms.index("acme")).search(catalog, Query("roof"))
