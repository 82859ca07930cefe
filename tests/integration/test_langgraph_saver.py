"""LangGraph's checkpointer over a tenant: its own conformance suite, what is stored, and whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from nagaya import Nagaya
from nagaya.context.drawers import Folder
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue, NagayaError, SessionClosed, StoreUnreachable
from nagaya.integrations.langgraph import NagayaSaver, threads
from nagaya.integrations.langgraph.threads import Thread, Threads
from support.two_tenants import entered

CANARY = "zq-canary-in-a-checkpoint-苔"


def on(thread: str, **more: Any) -> Any:
    return {"configurable": {"thread_id": thread, **more}}


def checkpoint(values: dict[str, Any], versions: dict[str, int]) -> Any:
    return {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}


async def put(saver: NagayaSaver, thread: str, values: dict[str, Any], version: int, parent: Any = None) -> Any:
    """A checkpoint in which every channel has changed."""
    config = on(thread, checkpoint_ns="") if parent is None else parent
    versions = dict.fromkeys(values, version)
    return await saver.aput(config, checkpoint(values, versions), {"source": "loop", "step": version}, versions)


async def values_of(saver: NagayaSaver, config: Any) -> dict[str, Any]:
    found = await saver.aget_tuple(config)
    assert found is not None
    return found.checkpoint["channel_values"]


def talking(checkpointer: NagayaSaver) -> Any:
    async def answer(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [AIMessage(f"Heard: {state['messages'][-1].text}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=checkpointer)


def raw_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def test_the_conformance_suite_of_langgraph_passes_with_every_capability(nagaya: Nagaya) -> None:
    entrance = await entered(nagaya)

    @checkpointer_test(name="NagayaSaver")
    async def factory() -> AsyncGenerator[NagayaSaver, None]:
        async with nagaya.session(entrance) as tenant:
            yield NagayaSaver(tenant)

    report = await validate(factory)
    assert report.passed_all(), report.to_dict()
    assert all(result.detected for result in report.results.values())


async def test_a_graph_goes_on_where_it_was_also_in_another_session(nagaya: Nagaya) -> None:
    entrance = await entered(nagaya)
    for turn in range(12):
        async with NagayaSaver.open(nagaya, entrance) as saver:
            state = await talking(saver).ainvoke({"messages": [HumanMessage(f"word {turn}")]}, on("roof"))
        assert [message.text for message in state["messages"][-2:]] == [f"word {turn}", f"Heard: word {turn}"]
    assert len(state["messages"]) == 24


async def test_every_earlier_state_can_be_read_forked_and_gone_on_from(tenant: TenantContext) -> None:
    graph = talking(NagayaSaver(tenant))
    for word in ("one", "two", "three"):
        await graph.ainvoke({"messages": [HumanMessage(word)]}, on("roof"))
    history = [state async for state in graph.aget_state_history(on("roof"))]
    assert [len(state.values.get("messages", ())) for state in history] == [6, 5, 4, 4, 3, 2, 2, 1, 0]
    after_one = history[5]
    await graph.aupdate_state(after_one.config, {"messages": [HumanMessage("other")]})
    state = await graph.aget_state(on("roof"))
    assert [message.text for message in state.values["messages"]] == ["one", "Heard: one", "other"]
    untouched = await graph.aget_state(history[0].config)
    assert [message.text for message in untouched.values["messages"]][::2] == ["one", "two", "three"]


async def test_an_interrupted_graph_is_resumed_in_another_session(nagaya: Nagaya) -> None:
    class State(TypedDict):
        said: Annotated[list[str], operator.add]

    def ask(state: State) -> dict[str, list[str]]:
        return {"said": [interrupt("Who?")]}

    def graph(saver: NagayaSaver) -> Any:
        builder = StateGraph(State)
        builder.add_node("ask", ask)
        builder.add_edge(START, "ask")
        builder.add_edge("ask", END)
        return builder.compile(checkpointer=saver)

    entrance = await entered(nagaya)
    async with NagayaSaver.open(nagaya, entrance) as saver:
        paused = await graph(saver).ainvoke({"said": ["hello"]}, on("t"))
        assert paused["__interrupt__"][0].value == "Who?"
    async with NagayaSaver.open(nagaya, entrance) as saver:
        assert await graph(saver).ainvoke(Command(resume="Sato"), on("t")) == {"said": ["hello", "Sato"]}


async def test_a_message_is_written_a_few_times_not_in_every_checkpoint(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    said: list[AnyMessage] = []
    parent = None
    for turn in range(100):
        said.append(HumanMessage(f"{turn} " + "m" * 1024, id=str(turn)))
        parent = await put(saver, "long", {"messages": list(said)}, turn + 1, parent)
    assert await values_of(saver, on("long")) == {"messages": said}
    rows = await (await tenant.drawer("langgraph").folder("thread", "long")).query(limit=1000)
    assert len(rows) == 100, "one record for each checkpoint"
    assert sum(len(row.body) for row in rows) < 5 * 100 * 1024 < sum(range(101)) * 1024 / 5


async def test_a_list_that_is_cut_edited_and_reordered_comes_back_as_it_was(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    said = [HumanMessage(f"{n}", id=str(n)) for n in range(40)]
    states = [
        said,
        said[10:],
        said[5:20] + said[30:],
        list(reversed(said)),
        [said[0], said[0], said[1]],
        [HumanMessage("other", id="3") if n == 3 else each for n, each in enumerate(said)],
        [],
        said[::2],
        [None, 1, "a", b"b", bytearray(b"c"), [said[1]]],
        [1.5, 2.5],
        None,
        {"a": said[0]},
    ]
    parent, configs = None, []
    for version, state in enumerate(states, 1):
        parent = await put(saver, "t", {"it": state, "kept": "same"}, version, parent)
        configs.append(parent)
    for config, state in zip(configs, states, strict=True):
        assert await values_of(saver, config) == {"it": state, "kept": "same"}
    # As another process would, which remembers nothing.
    for config, state in zip(configs, states, strict=True):
        parent = await put(
            NagayaSaver(tenant), "t", {"it": [*(state or [])] if isinstance(state, list) else state}, 99, config
        )
        assert (await values_of(NagayaSaver(tenant), parent))["it"] == state


async def test_a_value_of_several_megabytes_is_kept_in_parts_and_removed_whole(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    big = bytes(range(256)) * 4096 * 3
    first = await put(saver, "big", {"file": big, "words": ["a"]}, 1)
    second = await saver.aput(
        first, checkpoint({"file": big, "words": ["a", "b"]}, {"file": 1, "words": 2}), {"step": 2}, {"words": 2}
    )
    assert (await values_of(saver, second))["file"] == big
    await saver.aprune(["big"])
    assert (await values_of(NagayaSaver(tenant), on("big")))["file"] == big
    assert len([each async for each in saver.alist(on("big"))]) == 1
    await saver.adelete_thread("big")
    assert await saver.aget_tuple(on("big")) is None
    assert await (await tenant.drawer("langgraph").folder("thread", "big")).query() == []


async def test_what_deleted_checkpoints_held_is_kept_where_later_ones_need_it_and_nowhere_else(
    tenant: TenantContext,
) -> None:
    saver = NagayaSaver(tenant)
    words = [f"word {n}" for n in range(5)]
    config = None
    for n in range(1, 5):
        metadata: Any = {"source": "loop", "step": n, "run_id": f"run-{n}"}
        versions = {"words": n, "secret": n}
        config = await saver.aput(
            config or on("t", checkpoint_ns=""),
            checkpoint({"words": words[:n], "secret": f"{CANARY}-{n}"}, versions),
            metadata,
            versions,
        )
    await saver.adelete_for_runs(["run-1", "run-2", "run-none"])
    listed = [each async for each in saver.alist(on("t"))]
    assert [each.metadata["step"] for each in listed] == [4, 3]
    assert [each.checkpoint["channel_values"]["words"] for each in listed] == [words[:4], words[:3]]
    folder = await tenant.drawer("langgraph").folder("thread", "t")
    left = b"".join(row.body for row in await folder.query())
    assert CANARY.encode() + b"-3" in left
    assert CANARY.encode() + b"-1" not in left
    await saver.adelete_for_runs(["run-3", "run-4"])
    assert await folder.query() == []


async def test_a_checkpoint_put_again_with_other_content_takes_nothing_from_those_after_it(
    tenant: TenantContext,
) -> None:
    saver = NagayaSaver(tenant)
    first = checkpoint({"words": ["a", "b"]}, {"words": 1})
    config = await saver.aput(on("t", checkpoint_ns=""), first, {"step": 1}, {"words": 1})
    assert await saver.aput(on("t", checkpoint_ns=""), first, {"step": 1}, {"words": 1}) == config
    later = await put(saver, "t", {"words": ["a", "b", "c"]}, 2, config)
    await saver.aput(
        on("t", checkpoint_ns=""), {**first, "channel_values": {"words": ["z"]}}, {"step": 1}, {"words": 1}
    )
    for reader in (saver, NagayaSaver(tenant)):
        assert await values_of(reader, config) == {"words": ["z"]}
        assert await values_of(reader, later) == {"words": ["a", "b", "c"]}


async def test_a_delta_channel_is_rebuilt_from_its_nearest_value_and_the_writes_since(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    config: Any = on("t", checkpoint_ns="")
    for step in range(5):
        values = {"log": _DeltaSnapshot([0, 1])} if step == 1 else {}
        config = await saver.aput(
            config,
            checkpoint(values, dict.fromkeys(values, step)),
            {"step": step, "counters_since_delta_snapshot": {"log": (step, step)}},
            dict.fromkeys(values, step),
        )
        await saver.aput_writes(config, [("log", f"second {step}")], "task-a", "~2")
        await saver.aput_writes(config, [("log", f"first {step}"), ("other", 1)], "task-b", "~1")
    for prunes in (False, True):
        history = await saver.aget_delta_channel_history(config=config, channels=["log", "none"])
        assert history["log"]["seed"].value == [0, 1]
        assert [write[2] for write in history["log"]["writes"]] == [
            f"{which} {step}" for step in (1, 2, 3) for which in ("first", "second")
        ]
        assert history["none"] == {"writes": []}
        if not prunes:
            await saver.aprune(["t"])
    assert len([each async for each in saver.alist(on("t"))]) == 4
    assert await saver.aget_delta_channel_history(config=config, channels=[]) == {}


async def test_listing_without_a_thread_goes_over_the_users_threads_and_no_others(nagaya: Nagaya) -> None:
    async with nagaya.session(await entered(nagaya)) as mio, nagaya.session(await entered(nagaya, user="ren")) as ren:
        for thread in ("a", "b"):
            await put(NagayaSaver(mio), thread, {"x": thread}, 1)
        await put(NagayaSaver(ren), "c", {"x": "c"}, 1)
        seen = [each.config["configurable"]["thread_id"] async for each in NagayaSaver(mio).alist(None)]
        assert sorted(seen) == ["a", "b"]
        await NagayaSaver(mio).adelete_thread("a")
        assert len([each async for each in NagayaSaver(mio).alist(None)]) == 1


@pytest.mark.parametrize(("tenant_id", "user"), [("acme", "ren"), ("globex", "mio")])
async def test_a_thread_of_another_user_or_tenant_is_not_found_nor_changed(
    nagaya: Nagaya, tenant_id: str, user: str
) -> None:
    async with (
        nagaya.session(await entered(nagaya)) as mine,
        nagaya.session(await entered(nagaya, tenant_id, user)) as other,
    ):
        saver, theirs = NagayaSaver(mine), NagayaSaver(other)
        config = await put(saver, "secret-thread", {"x": CANARY}, 1)
        for asked in (on("secret-thread"), config):
            assert await theirs.aget_tuple(asked) is None
        assert [each async for each in theirs.alist(on("secret-thread"))] == []
        assert [each async for each in theirs.alist(None)] == []
        await theirs.acopy_thread("secret-thread", "stolen")
        assert await theirs.aget_tuple(on("stolen")) is None
        await theirs.adelete_thread("secret-thread")
        await theirs.aprune(["secret-thread"], strategy="delete")
        await put(theirs, "secret-thread", {"x": "theirs"}, 1)
        assert await values_of(saver, on("secret-thread")) == {"x": CANARY}


async def test_nothing_of_a_thread_can_be_read_in_the_store(nagaya: Nagaya, tmp_path: Path) -> None:
    thread = "zq-canary-thread-name"
    async with nagaya.session(await entered(nagaya)) as tenant:
        saver = NagayaSaver(tenant)
        config = await put(saver, thread, {f"channel-{CANARY}": [CANARY]}, 1)
        await saver.aput_writes(config, [("x", CANARY)], "task", "path")
        await put(saver, thread, {"x": 1}, 1, on(thread, checkpoint_ns=f"child:{CANARY}"))
    await nagaya.close()
    stored = raw_bytes(tmp_path / "data")
    assert CANARY.encode() not in stored
    assert thread.encode() not in stored


async def test_the_store_cannot_tell_that_two_checkpoints_are_equal(tenant: TenantContext) -> None:
    saver, names = NagayaSaver(tenant), []
    for thread in ("one", "two"):
        await put(saver, thread, {"file": CANARY * 20_000}, 1)
        rows = await (await tenant.drawer("langgraph").folder("thread", thread)).query()
        names += {row.sort[-10:-2] for row in rows if row.sort[-11:-10] == b"d"}
    assert len(set(names)) == len(names) == 2


async def test_types_that_are_not_known_to_be_safe_come_back_as_plain_data(tenant: TenantContext) -> None:
    config = await put(NagayaSaver(tenant), "t", {"roof": Roof("tiles")}, 1)
    assert await values_of(NagayaSaver(tenant), config) == {"roof": {"made_of": "tiles"}}
    assert await values_of(NagayaSaver(tenant, allow=[Roof]), config) == {"roof": Roof("tiles")}
    with pytest.raises(TypeError):
        await put(NagayaSaver(tenant), "t", {"roof": lambda: 1}, 2)


@dataclass
class Roof:
    made_of: str


async def test_a_graph_runs_in_a_thread_and_the_loop_refuses_to_wait_for_itself(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    config = await put(saver, "t", {"x": 1}, 1)

    def beside() -> None:
        assert saver.get_tuple(config) is not None
        later = saver.put(config, checkpoint({"x": 2}, {"x": 2}), {"step": 2, "run_id": "r"}, {"x": 2})
        saver.put_writes(later, [("x", 3)], "task")
        assert len(list(saver.list(on("t")))) == 2
        assert saver.get_delta_channel_history(config=later, channels=["x"])["x"]["seed"] == 1
        saver.copy_thread("t", "u")
        saver.prune(["u"])
        assert len(list(saver.list(on("u")))) == 1
        saver.delete_for_runs(["r"])
        saver.delete_thread("t")
        assert saver.get_tuple(on("t")) is None

    await asyncio.to_thread(beside)
    with pytest.raises(asyncio.InvalidStateError, match="asynchronous"):
        saver.get_tuple(config)


async def test_a_thread_of_another_checkpointer_keeps_the_form_of_its_versions(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    assert (saver.get_next_version(None, None), saver.get_next_version(4, None)) == (1, 5)
    text: Any = "00000000000000000000000000000007.0.123"
    following: Any = saver.get_next_version(text, None)
    assert following.startswith("0" * 31 + "8.")
    assert following > text


async def test_messages_are_removed_and_the_thread_reads_on(tenant: TenantContext) -> None:
    graph = talking(NagayaSaver(tenant))
    for word in range(10):
        await graph.ainvoke({"messages": [HumanMessage(f"{word}", id=f"m{word}")]}, on("t"))
    await graph.aupdate_state(on("t"), {"messages": [RemoveMessage(id="m0"), RemoveMessage(id="m5")]})
    state = await talking(NagayaSaver(tenant)).aget_state(on("t"))
    assert [message.text for message in state.values["messages"] if message.id in ("m0", "m4", "m5", "m6")] == [
        "4",
        "6",
    ]


async def test_two_writers_of_one_thread_lose_nothing(tenant: TenantContext) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    config = await put(first, "t", {"x": 0}, 1)
    await asyncio.gather(
        *(
            saver.aput_writes(config, [(f"{number}", number)], "task")
            for number in range(4)
            for saver in (first, second)
        )
    )
    await asyncio.gather(*(put(saver, "t", {"x": 1}, 2, config) for saver in (first, second)))
    assert len([each async for each in first.alist(on("t"))]) == 3
    found = await first.aget_tuple(config)
    assert found is not None
    assert len(found.pending_writes or ()) == 1, "one task, one index: the first writer's value stays"


async def test_a_thread_that_somebody_else_deleted_begins_anew_and_is_listed_again(tenant: TenantContext) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    former = await put(first, "t", {"said": ["a", "b"]}, 1)
    await second.adelete_thread("t")
    # What goes on from a deleted checkpoint would need pieces that are gone: as if it were not there.
    await put(first, "t", {"said": ["a", "b", "c"]}, 2, former)
    assert await second.aget_tuple(on("t")) is None
    assert [each async for each in second.alist(on("t"))] == []
    await put(first, "t", {"said": ["new"]}, 1)
    assert await values_of(second, on("t")) == {"said": ["new"]}
    assert [each.config["configurable"]["thread_id"] async for each in second.alist(None)] == ["t"]


def once(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, when: int, work: Any) -> None:
    """Have ``work`` done when a method has read or written for the time ``when``, before its caller goes on."""
    method, calls = getattr(kind, name), 0

    async def then(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        this, result = calls, await method(self, *args, **options)
        if this == when:
            await work()
        return result

    monkeypatch.setattr(kind, name, then)


async def put_by(saver: NagayaSaver, run: str, words: list[str], step: int, parent: Any = None) -> Any:
    """A checkpoint of a run."""
    metadata: Any = {"source": "loop", "step": step, "run_id": run}
    versions = {"words": step}
    return await saver.aput(
        parent or on("t", checkpoint_ns=""), checkpoint({"words": words}, versions), metadata, versions
    )


@pytest.mark.parametrize("moment", ["before it is marked", "before it is removed", "after it is removed"])
async def test_what_goes_on_from_a_checkpoint_that_is_being_deleted_is_whole(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    former = await put_by(first, "run-1", ["a", "b"], 1)

    async def goes_on() -> None:
        await put_by(first, "run-2", ["a", "b", "c"], 2, former)

    if moment == "before it is marked":
        once(monkeypatch, Thread, "everything", 1, goes_on)
    elif moment == "before it is removed":
        once(monkeypatch, Thread, "everything", 2, goes_on)
    await second.adelete_for_runs(["run-1"])
    if moment == "after it is removed":
        await goes_on()
    for reader in (first, NagayaSaver(tenant)):
        assert await values_of(reader, on("t")) == {"words": ["a", "b", "c"]}
        assert len([each async for each in reader.alist(on("t"))]) == 1
    await second.adelete_for_runs(["run-2"])
    assert await (await tenant.drawer("langgraph").folder("thread", "t")).query() == []


async def test_a_run_that_goes_on_while_it_is_deleted_is_deleted_by_the_next_call(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    former = await put_by(first, "run-1", ["a"], 1)

    async def goes_on() -> None:
        await put_by(first, "run-1", ["a", "b"], 2, former)

    once(monkeypatch, Thread, "remove", 1, goes_on)
    await second.adelete_for_runs(["run-1"])
    assert await values_of(second, on("t")) == {"words": ["a", "b"]}
    await second.adelete_for_runs(["run-1"])
    assert await second.aget_tuple(on("t")) is None


@pytest.mark.parametrize("step", ["after it was looked through", "after its list entry was removed"])
async def test_a_thread_that_begins_while_it_is_deleted_is_listed(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    await put(first, "t", {"said": ["old"]}, 1)

    async def deleted() -> None:
        await second.adelete_thread("t")

    async def begun() -> None:
        await put(first, "t", {"said": ["new"]}, 1)

    if step == "after it was looked through":
        once(monkeypatch, Folder, "clear", 1, begun)
        await deleted()
    else:
        once(monkeypatch, Threads, "listed", 1, deleted)
        await begun()
    assert await values_of(second, on("t")) == {"said": ["new"]}
    assert [each.config["configurable"]["thread_id"] async for each in second.alist(None)] == ["t"]


async def test_nothing_of_a_thread_comes_back_that_is_deleted_while_it_is_pruned(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = NagayaSaver(tenant), NagayaSaver(tenant)
    config = None
    for step in range(1, 4):
        config = await put_by(first, "run", [*"abc"[:step]], step, config)

    async def deleted() -> None:
        await second.adelete_thread("t")

    once(monkeypatch, Thread, "everything", 2, deleted)
    await first.aprune(["t"])
    assert await (await tenant.drawer("langgraph").folder("thread", "t")).query() == []


@pytest.mark.parametrize("writes", range(1, 9))
async def test_a_pruning_that_is_cut_off_anywhere_takes_nothing_that_is_needed_and_is_finished_by_the_next(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    saver = NagayaSaver(tenant)
    words = [letter * 150_000 for letter in "abcdefgh"]
    config = await put_by(saver, "run", words, 1)
    await put_by(saver, "run", ["i" * 600_000], 2, config)
    config = await put_by(saver, "run", words[:2] + words[4:], 2, config)
    config = await put_by(saver, "run", words[:2] + words[5:] + ["new"], 3, config)
    left = writes

    def dying(method: Any) -> Any:
        async def dies(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise StoreUnreachable
            return await method(*args, **options)

        return dies

    with monkeypatch.context() as cut:
        cut.setattr(threads, "MAX_CHANGES", 2)
        for name in ("put", "write", "clear"):
            cut.setattr(Folder, name, dying(getattr(Folder, name)))
        with contextlib.suppress(StoreUnreachable):
            await saver.aprune(["t"])
    for reader in (saver, NagayaSaver(tenant)):
        assert await values_of(reader, on("t")) == {"words": words[:2] + words[5:] + ["new"]}
        assert [each async for each in reader.alist(on("t"))]
    await saver.aprune(["t"])
    assert len([each async for each in saver.alist(on("t"))]) == 1
    folder = await tenant.drawer("langgraph").folder("thread", "t")
    kept = b"".join([row.body for row in await folder.query()])
    assert [letter for letter in "abcdefghi" if letter.encode() * 1000 in kept] == [*"abfgh"]


async def test_a_large_checkpoint_that_is_put_again_in_vain_is_what_it_was(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = NagayaSaver(tenant)
    first = checkpoint({"file": "a" * 900_000}, {"file": 1})
    config = await saver.aput(on("t", checkpoint_ns=""), first, {"step": 1}, {"file": 1})

    folder_put = Folder.put

    async def dies(self: Folder, sort: bytes, body: bytes, **options: Any) -> int:
        if len(body) > 100_000:
            raise StoreUnreachable
        return await folder_put(self, sort, body, **options)

    with monkeypatch.context() as cut:
        cut.setattr(Folder, "put", dies)
        with pytest.raises(StoreUnreachable):
            await saver.aput(
                on("t", checkpoint_ns=""), {**first, "channel_values": {"file": "b" * 900_000}}, {}, {"file": 1}
            )
    assert await values_of(NagayaSaver(tenant), config) == {"file": "a" * 900_000}


async def test_what_is_incomplete_hides_nothing_of_a_thread(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    first = await put(saver, "t", {"said": ["a"]}, 1)
    await put(saver, "t", {"said": ["other"]}, 2, first)
    late = await put(saver, "t", {"said": ["a", "b"]}, 2, first)
    # As where a server ends between writing what goes on from a checkpoint and seeing that this one was deleted.
    folder = await tenant.drawer("langgraph").folder("thread", "t")
    await folder.remove((await folder.query(limit=1))[0].sort)
    assert await saver.aget_tuple(late) is None
    assert await values_of(saver, on("t")) == {"said": ["other"]}


async def test_a_revoked_session_reads_and_writes_nothing(nagaya: Nagaya) -> None:
    async with nagaya.session(await entered(nagaya)) as tenant:
        saver = NagayaSaver(tenant)
        config = await put(saver, "t", {"x": 1}, 1)
        await nagaya.tenants.revoke_key("acme")
        for work in (saver.aget_tuple(config), put(saver, "t", {"x": 2}, 2, config)):
            with pytest.raises(NagayaError):
                await work
    await nagaya.tenants.restore_key("acme")
    with pytest.raises(SessionClosed):
        await saver.aget_tuple(config)


async def test_what_cannot_be_meant_is_refused(tenant: TenantContext) -> None:
    saver = NagayaSaver(tenant)
    for bad in ("", "x" * 200, "a\0b"):
        with pytest.raises(InvalidValue):
            await saver.aput(on("t"), {**checkpoint({}, {}), "id": bad}, {}, {})
    with pytest.raises(InvalidValue):
        await saver.aput_writes(on("t", checkpoint_ns=""), [("x", 1)], "task")
    with pytest.raises(InvalidValue):
        await saver.aprune(["t"], strategy="some")
