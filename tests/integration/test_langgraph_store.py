"""LangGraph's long-term store over a tenant: items, filters, meaning, expiry, and whose they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.base import BaseStore, GetOp, ListNamespacesOp, PutOp, SearchOp

from nagaya import Nagaya
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import SessionClosed
from nagaya.integrations.langgraph import NagayaSaver, NagayaStore, store_items
from support.two_tenants import entered

CANARY = "zq-canary-in-a-store-苔"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the store's time on by so many minutes."""
    moved = {"us": 0}
    now_us = NagayaStore._now_us
    monkeypatch.setattr(NagayaStore, "_now_us", lambda self: now_us(self) + moved["us"])

    def move(minutes: float) -> None:
        moved["us"] += int(minutes * 60_000_000)

    return move


def colours(texts: list[str]) -> list[list[float]]:
    """An embedding model for tests: how often each colour is named."""
    return [[float(text.count(name)) for name in ("red", "green", "blue")] for text in texts]


async def test_an_item_is_put_got_changed_and_deleted(tenant: TenantContext) -> None:
    store = NagayaStore(tenant)
    assert await store.aget(("a",), "k") is None
    await store.aput(("a",), "k", {"n": 1, "deep": {"list": [1, None, "京都"]}})
    first = await NagayaStore(tenant).aget(("a",), "k")
    assert first is not None
    assert (first.key, first.namespace, first.value) == ("k", ("a",), {"n": 1, "deep": {"list": [1, None, "京都"]}})
    await store.aput(("a",), "k", {"n": 2})
    second = await store.aget(("a",), "k")
    assert second is not None
    assert second.value == {"n": 2}
    assert second.created_at == first.created_at < second.updated_at
    await store.adelete(("a",), "k")
    await store.adelete(("a",), "never there")
    assert await store.aget(("a",), "k") is None
    with pytest.raises(TypeError):
        await store.aput(("a",), "k", {"n": object()})


async def test_search_goes_over_everything_below_a_prefix_newest_first_page_by_page(tenant: TenantContext) -> None:
    store = NagayaStore(tenant)
    for n in range(6):
        await store.aput(("docs", f"{n % 2}"), f"k{n}", {"n": n})
    await store.aput(("docsother",), "k", {"n": 9})
    found = await store.asearch(("docs",), limit=4)
    assert [item.value["n"] for item in found] == [5, 4, 3, 2]
    assert [item.value["n"] for item in await store.asearch(("docs",), limit=4, offset=4)] == [1, 0]
    assert [item.value["n"] for item in await store.asearch(("docs", "1"))] == [5, 3, 1]
    assert len(await store.asearch((), limit=100)) == 7
    assert [item.score for item in found] == [None] * 4


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"kind": "a"}, "12"),
        ({"kind": "a", "n": 2}, "2"),
        ({"n": {"$gt": 1}}, "23"),
        ({"n": {"$gte": 1, "$lt": 3}}, "12"),
        ({"n": {"$lte": 1}}, "1"),
        ({"n": {"$ne": 2}}, "134"),
        ({"n": {"$eq": 2}}, "2"),
        ({"deep": {"x": "y"}}, "3"),
        ({"deep": {"x": {"$eq": "z"}}}, ""),
        ({"tags": ["p", "q"]}, "1"),
        ({"tags": ["p"]}, ""),
        ({"kind": {"$gt": "a"}}, "3"),
        ({"none": None}, "1234"),
    ],
)
async def test_a_filter_finds_what_it_describes(tenant: TenantContext, wanted: dict[str, Any], found: str) -> None:
    store = NagayaStore(tenant)
    values: list[dict[str, Any]] = [
        {"kind": "a", "n": 1, "tags": ["p", "q"]},
        {"kind": "a", "n": 2},
        {"kind": "b", "n": 3, "deep": {"x": "y"}},
        {"other": 1},
    ]
    await store.abatch([PutOp(("f",), f"{n}", value) for n, value in enumerate(values, 1)])
    assert "".join(sorted(item.key for item in await store.asearch(("f",), filter=wanted))) == found


async def test_an_unknown_operator_is_refused(tenant: TenantContext) -> None:
    store = NagayaStore(tenant)
    await store.aput(("f",), "k", {"n": 1})
    with pytest.raises(ValueError, match=r"\$like"):
        await store.asearch(("f",), filter={"n": {"$like": 1}})


async def test_items_are_found_by_their_meaning_with_any_embedding(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NagayaStore(tenant, index={"fields": ["text", "parts[*].text"], "embed": colours})
    await store.aput(("d",), "red", {"text": "red red", "parts": [{"text": "blue blue blue"}]})
    await store.aput(("d",), "green", {"text": "green", "note": "red"})
    await store.aput(("d",), "none", {"text": "red"}, index=False)
    await store.aput(("d",), "note", {"text": "blue", "note": "green"}, index=["note"])
    for _ in range(2):
        found = await store.asearch(("d",), query="green")
        assert [(item.key, item.score) for item in found][:2] == [("note", 1.0), ("green", 1.0)]
        assert found[2].key == "red"
        assert found[2].score == pytest.approx(0.0)
        assert (found[3].key, found[3].score) == ("none", None)
        blue = await store.asearch(("d",), query="blue", limit=1)
        assert (blue[0].key, blue[0].score) == ("red", pytest.approx(1.0))
        # And without numpy, which is an extra.
        monkeypatch.setattr(store_items, "_numpy", lambda: None)
    without = NagayaStore(tenant)
    assert [item.score for item in await without.asearch(("d",), query="green")] == [None] * 4


async def test_items_are_found_by_their_meaning_with_the_tenants_own_model(
    nagaya: Nagaya, tenant: TenantContext
) -> None:
    store = NagayaStore(tenant, index={"fields": ["text"]})
    await store.aput(("m",), "cat", {"text": "猫は一日中寝ています。"})
    await store.aput(("m",), "tax", {"text": "The tax return is due in March."})
    await store.aput(("m",), "empty", {"text": " "})
    assert [item.key for item in await store.asearch(("m",), query="sleeping cats", limit=1)] == ["cat"]
    assert [item.key for item in await store.asearch(("m",), query="確定申告の期限", limit=1)] == ["tax"]
    assert (await nagaya.tenants.usage("acme"))["embedding_tokens"] > 0


async def test_namespaces_are_listed_by_prefix_suffix_and_depth(tenant: TenantContext) -> None:
    store = NagayaStore(tenant)
    for namespace in (("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("z",)):
        await store.aput(namespace, "k", {})
    await store.aput(("gone",), "k", {})
    await store.adelete(("gone",), "k")
    listed = NagayaStore(tenant).alist_namespaces
    assert await listed() == [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("z",)]
    assert await listed(prefix=("a", "b")) == [("a", "b", "c"), ("a", "b", "d")]
    assert await listed(prefix=("a", "*"), suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c")]
    assert await listed(max_depth=2) == [("a", "b"), ("a", "x"), ("z",)]
    assert await listed(limit=1, offset=1) == [("a", "b", "d")]
    assert await listed(suffix=("x", "y", "z", "w")) == []


async def test_what_has_expired_is_gone_and_what_is_read_lives_on(tenant: TenantContext, later: Any) -> None:
    store = NagayaStore(tenant, ttl={"default_ttl": 10, "refresh_on_read": True})
    for key in ("got", "searched", "left", "peeked"):
        await store.aput(("t",), key, {"key": key})
    await store.aput(("t",), "kept", {"key": "kept"}, ttl=None)
    later(8)
    assert await store.aget(("t",), "got") is not None
    assert len(await store.asearch(("t",), filter={"key": "searched"})) == 1
    assert await store.aget(("t",), "peeked", refresh_ttl=False) is not None
    later(8)
    assert sorted(item.key for item in await store.asearch(("t",), refresh_ttl=False)) == ["got", "kept", "searched"]
    assert await store.aget(("t",), "left") is None
    assert await store.asearch(("t",), filter={"key": "left"}) == []
    later(8)
    assert await store.sweep_ttl() == 2
    assert await store.sweep_ttl() == 0
    assert [item.key for item in await store.asearch(("t",))] == ["kept"]
    await store.aput(("u",), "k", {}, ttl=1)
    later(2)
    assert await store.alist_namespaces() == [("t",)]
    assert await store.aget(("u",), "k") is None


@pytest.mark.parametrize("who", ["sweep", "search"])
async def test_what_is_put_anew_while_expired_items_are_removed_stays(
    tenant: TenantContext, later: Any, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    store, other = NagayaStore(tenant), NagayaStore(tenant)
    await store.aput(("a",), "k", {"n": 1}, ttl=1)
    later(2)
    items = NagayaStore._items

    async def then_put_anew(self: NagayaStore, folder: Any) -> Any:
        found = await items(self, folder)
        monkeypatch.setattr(NagayaStore, "_items", items)
        assert await other.aget(("a",), "k") is None
        await other.aput(("a",), "k", {"n": 2})
        return found

    monkeypatch.setattr(NagayaStore, "_items", then_put_anew)
    if who == "sweep":
        assert await store.sweep_ttl() == 0
    else:
        assert await store.asearch(("a",)) == []
    found = await store.aget(("a",), "k")
    assert found is not None
    assert found.value == {"n": 2}


async def test_a_batch_reads_what_was_there_before_its_writes_and_the_last_write_holds(tenant: TenantContext) -> None:
    store = NagayaStore(tenant)
    await store.aput(("b",), "k", {"n": 1})
    got, listed, found, *written = await store.abatch(
        [
            GetOp(("b",), "k"),
            ListNamespacesOp(),
            SearchOp(("b",)),
            PutOp(("b",), "k", {"n": 2}),
            PutOp(("b",), "k", {"n": 3}),
        ]
    )
    assert got.value == {"n": 1}  # type: ignore[union-attr]  # an item
    assert listed == [("b",)]
    assert len(found) == 1  # type: ignore[arg-type]  # a list
    assert written == [None, None]
    changed = await store.aget(("b",), "k")
    assert changed is not None
    assert changed.value == {"n": 3}
    with pytest.raises(ValueError, match="str"):
        await store.abatch(["get"])  # type: ignore[list-item]  # not an operation


@pytest.mark.parametrize(("tenant_id", "user"), [("acme", "ren"), ("globex", "mio")])
async def test_items_of_another_user_or_tenant_are_not_found_nor_changed(
    nagaya: Nagaya, tenant_id: str, user: str
) -> None:
    async with (
        nagaya.session(await entered(nagaya)) as mine,
        nagaya.session(await entered(nagaya, tenant_id, user)) as other,
    ):
        store, theirs = NagayaStore(mine), NagayaStore(other, index={"embed": colours})
        await store.aput(("secret",), "k", {"text": f"{CANARY} red"})
        assert await theirs.aget(("secret",), "k") is None
        assert await theirs.asearch((), query="red") == []
        assert await theirs.alist_namespaces() == []
        await theirs.aput(("secret",), "k", {"text": "theirs"})
        await theirs.adelete(("secret",), "k")
        item = await store.aget(("secret",), "k")
        assert item is not None
        assert item.value == {"text": f"{CANARY} red"}


async def test_nothing_of_an_item_can_be_read_in_the_store(nagaya: Nagaya, tmp_path: Path) -> None:
    async with nagaya.session(await entered(nagaya)) as tenant:
        store = NagayaStore(tenant, index={"embed": colours})
        await store.aput((f"ns-{CANARY}",), f"key-{CANARY}", {"text": CANARY})
    with pytest.raises(SessionClosed):
        await store.aget((f"ns-{CANARY}",), f"key-{CANARY}")
    await nagaya.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert CANARY.encode() not in stored


async def test_a_graph_remembers_over_threads_and_in_a_thread_beside_the_loop(tenant: TenantContext) -> None:
    def remember(state: MessagesState, *, store: BaseStore) -> dict[str, Any]:
        said = state["messages"][-1].text
        before = [item.value["said"] for item in store.search(("said",))]
        store.put(("said",), said, {"said": said})
        return {"messages": [HumanMessage(f"before: {before}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("remember", remember)
    builder.add_edge(START, "remember")
    graph = builder.compile(checkpointer=NagayaSaver(tenant), store=NagayaStore(tenant))
    for thread, before in (("a", "[]"), ("b", "['from a']")):
        config: Any = {"configurable": {"thread_id": thread}}
        state = await asyncio.to_thread(graph.invoke, {"messages": [HumanMessage(f"from {thread}")]}, config)
        assert state["messages"][-1].text == f"before: {before}"
    with pytest.raises(asyncio.InvalidStateError):
        NagayaStore(tenant).get(("said",), "from a")
