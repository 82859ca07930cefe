"""Threads of LangGraph's own SqliteSaver, as its package writes them, become threads of a user's, whole."""

from __future__ import annotations

import json
import operator
import os
import sqlite3
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from nagaya import Nagaya
from nagaya.cli.main import run
from nagaya.context.items import Message
from nagaya.errors import ExportSealed, InvalidValue, RecordsDiffer
from nagaya.integrations.langgraph import NagayaSaver
from nagaya.integrations.langgraph.sqlite_import import ImportedThreads, import_checkpoints
from support.two_tenants import entered

KEY = b"0123456789abcdef0123456789abcdef"
CANARY = "zq-canary-in-a-thread-軒"


@dataclass
class Roof:
    """A type that only the graph's own program knows."""

    area: float
    at: datetime


class State(TypedDict):
    said: Annotated[list[str], operator.add]
    roof: Roof


def on(thread: str, **more: Any) -> Any:
    return {"configurable": {"thread_id": thread, **more}}


def talking(checkpointer: Any) -> Any:
    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"Heard: {state['messages'][-1].text}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=checkpointer)


def asking(checkpointer: Any) -> Any:
    def ask(state: State) -> dict[str, Any]:
        return {"said": [interrupt("Who?")], "roof": Roof(1.5, datetime(2026, 5, 1, tzinfo=UTC))}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile(checkpointer=checkpointer)


async def written(file: Path, *, serde: Any = None) -> None:
    """Three threads: one of four turns with a fork, one that waits for an answer, one of tool calls and pictures."""
    async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        saver.serde = serde or saver.serde
        chat = talking(saver)
        for word in ("one", CANARY, "three"):
            await chat.ainvoke({"messages": [HumanMessage(word)]}, on("roof"))
        after_one = [state async for state in chat.aget_state_history(on("roof"))][5]
        await chat.aupdate_state(after_one.config, {"messages": [HumanMessage("other")]})
        await asking(saver).ainvoke(
            {"said": ["hello"], "roof": Roof(2.5, datetime(2026, 4, 1, tzinfo=UTC))}, on("open")
        )
        call = AIMessage("", tool_calls=[{"name": "look", "args": {"at": 1}, "id": "c1"}])
        picture = HumanMessage([{"type": "text", "text": "this"}, {"type": "image_url", "image_url": {"url": "x:"}}])
        said = [SystemMessage("Be kind."), picture, call, ToolMessage("42", tool_call_id="c1")]
        await chat.ainvoke({"messages": said}, on("tools"))


async def bring(nagaya: Nagaya, file: Path, user: str = "mio", **options: Any) -> ImportedThreads:
    async with nagaya.session(await entered(nagaya, user=user)) as tenant:
        return await import_checkpoints(tenant, file, **options)


async def everything(saver: Any) -> dict[tuple[str, str, str], Any]:
    """What a checkpointer lists, comparable."""
    found = {}
    async for each in saver.alist(None):
        named = each.config["configurable"]
        parent = each.parent_config and each.parent_config["configurable"]["checkpoint_id"]
        pending = sorted((task, channel, repr(value)) for task, channel, value in each.pending_writes or ())
        place = named["thread_id"], named["checkpoint_ns"], named["checkpoint_id"]
        found[place] = each.checkpoint, dict(each.metadata), parent, pending
    return found


async def test_every_checkpoint_and_what_is_pending_is_what_langgraph_itself_reads(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db")
    done = await bring(nagaya, tmp_path / "file.db")
    allowed = [Roof]
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "file.db")) as theirs:
        theirs.serde = JsonPlusSerializer(allowed_msgpack_modules=allowed)
        expected = await everything(theirs)
    async with nagaya.session(await entered(nagaya)) as tenant:
        assert await everything(NagayaSaver(tenant, allow=allowed)) == expected
    with sqlite3.connect(tmp_path / "file.db") as database:
        (writes,) = database.execute("SELECT count(*) FROM writes").fetchone()
    assert (done.threads, done.checkpoints, done.writes) == (3, len(expected), writes)
    assert done.skipped == {}
    assert (done.conversations, done.items) == (0, 0)


async def test_a_graph_goes_on_in_an_imported_thread_also_one_that_waits(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db")
    await bring(nagaya, tmp_path / "file.db")
    async with nagaya.session(await entered(nagaya)) as tenant:
        saver = NagayaSaver(tenant, allow=[Roof])
        state = await talking(saver).ainvoke({"messages": [HumanMessage("more")]}, on("roof"))
        assert [message.text for message in state["messages"]] == ["one", "Heard: one", "other", "more", "Heard: more"]
        answered = await asking(saver).ainvoke(Command(resume="Sato"), on("open"))
        assert answered == {"said": ["hello", "Sato"], "roof": Roof(1.5, datetime(2026, 5, 1, tzinfo=UTC))}
    async with nagaya.session(await entered(nagaya, user="tom")) as tenant:
        assert [each async for each in NagayaSaver(tenant).alist(None)] == []


async def test_repeating_changes_nothing_and_another_content_is_told(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db")
    first = await bring(nagaya, tmp_path / "file.db")
    assert await bring(nagaya, tmp_path / "file.db") == first
    with sqlite3.connect(tmp_path / "file.db") as database:
        database.execute("UPDATE checkpoints SET metadata = ? WHERE thread_id = 'open'", (b'{"source": "other"}',))
    with pytest.raises(RecordsDiffer):
        await bring(nagaya, tmp_path / "file.db")


async def test_an_encrypted_file_needs_its_key(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db", serde=EncryptedSerializer.from_pycryptodome_aes(key=KEY))
    assert CANARY.encode() not in (tmp_path / "file.db").read_bytes()
    for key, reason in ((None, "needed"), (bytes(32), "other"), (b"short", "length")):
        with pytest.raises(ExportSealed) as refused:
            await bring(nagaya, tmp_path / "file.db", key=key)
        assert refused.value.reason == reason
        assert refused.value.message("ja") != refused.value.message("en")
    async with nagaya.session(await entered(nagaya)) as tenant:
        assert [each async for each in NagayaSaver(tenant).alist(None)] == []
    done = await bring(nagaya, tmp_path / "file.db", key=KEY)
    assert done.threads == 3
    async with nagaya.session(await entered(nagaya)) as tenant:
        found = await NagayaSaver(tenant).aget_tuple(on("roof"))
        assert found is not None
        assert found.checkpoint["channel_values"]["messages"][0].text == "one"


async def test_messages_of_threads_become_conversations_where_that_is_asked_for(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db")
    done = await bring(nagaya, tmp_path / "file.db", conversations=True)
    assert (done.conversations, done.items) == (2, 6)
    # "open" has no messages; the tool's answer, the call of it and a picture are no text of anybody's.
    assert done.skipped == {
        "thread_without_messages": 1, "message_tool": 1, "tool_call": 1, "message_without_text": 1, "part_without_text": 1,
    }  # fmt: skip
    async with nagaya.session(await entered(nagaya)) as tenant:
        said = {}
        for chat in (await tenant.conversations.list()).data:
            items = await tenant.conversations.items(chat.id, order="asc")
            said[chat.metadata["title"]] = [(item.role, item.text) for item in items if isinstance(item, Message)]
    assert said["roof"] == [("user", "one"), ("assistant", "Heard: one"), ("user", "other")]
    assert said["tools"] == [("system", "Be kind."), ("user", "this"), ("assistant", "Heard: 42")]


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/nagaya-was-here",)


async def test_what_was_pickled_is_counted_and_never_opened(nagaya: Nagaya, tmp_path: Path):
    file = tmp_path / "file.db"
    with SqliteSaver.from_conn_string(str(file)) as saver:
        saver.serde = JsonPlusSerializer(pickle_fallback=True)
        sealed = {"v": 4, "id": "1ef4f797-8335-6428-8001-8a1503f9b875", "ts": "", "channel_values": {"x": {1: Bomb()}},
                  "channel_versions": {"x": 1}, "versions_seen": {}}  # fmt: skip
        plain = {**sealed, "id": "1ef4f797-8335-6428-8002-8a1503f9b875", "channel_values": {"x": deque([1])}}
        for each in (sealed, plain):
            config = saver.put(on("t", checkpoint_ns=""), each, {"source": "loop", "step": 1}, {"x": 1})
            saver.put_writes(config, [("x", Bomb()), ("x", 5)], "task")
    done = await bring(nagaya, file)
    assert (done.checkpoints, done.writes) == (1, 1)
    assert done.skipped == {"pickled_checkpoint": 1, "writes_of_pickled_checkpoint": 2, "pickled_write": 1}
    assert not Path("/tmp/nagaya-was-here").exists()
    async with nagaya.session(await entered(nagaya)) as tenant:
        found = await NagayaSaver(tenant).aget_tuple(on("t"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"x": deque([1])}
        assert found.pending_writes == [("task", "x", 5)]


async def test_another_file_is_refused_and_is_not_changed(nagaya: Nagaya, tmp_path: Path):
    (tmp_path / "text").write_text("no database")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE checkpoints (a)")
    with sqlite3.connect(tmp_path / "view.db") as database:
        database.execute("CREATE TABLE writes (a)")
        database.execute("CREATE VIEW checkpoints AS SELECT 1")
    for name in ("text", "other.db", "view.db", "absent"):
        with pytest.raises(InvalidValue):
            await bring(nagaya, tmp_path / name)
    assert not (tmp_path / "absent").exists()


async def test_a_checkpoint_that_does_not_read_is_named(nagaya: Nagaya, tmp_path: Path):
    await written(tmp_path / "file.db")
    for column, bad in (("checkpoint", b"\xc1"), ("checkpoint", b"\x01"), ("metadata", b"[]"), ("metadata", b"{")):
        with sqlite3.connect(tmp_path / "file.db") as database:
            database.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM checkpoints")
            database.execute(f"UPDATE checkpoints SET {column} = ? WHERE thread_id = 'roof'", (bad,))
        with pytest.raises(InvalidValue, match="does not read"):
            await bring(nagaya, tmp_path / "file.db")
        with sqlite3.connect(tmp_path / "file.db") as database:
            database.execute("DELETE FROM checkpoints")
            database.execute("INSERT INTO checkpoints SELECT * FROM kept")
    assert (await bring(nagaya, tmp_path / "file.db")).threads == 3


async def test_the_command_brings_a_file_in_and_leaves_it_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    await written(tmp_path / "file.db", serde=EncryptedSerializer.from_pycryptodome_aes(key=KEY))
    before = (tmp_path / "file.db").read_bytes()
    monkeypatch.setenv("GRAPH_KEY", KEY.decode())
    import asyncio

    def commands() -> None:
        data = ["--data", str(tmp_path / "data"), "--json"]
        assert run(["tenant", "create", "acme", "--name", "Acme", *data]) == 0
        arguments = ["tenant", "import", str(tmp_path / "file.db"), "--from", "langgraph", "--tenant", "acme", *data]
        assert run(arguments) == 2
        assert run([*arguments, "--user", "mio"]) == 1
        capsys.readouterr()
        assert run([*arguments, "--user", "mio", "--aes-key", "env://GRAPH_KEY", "--conversations"]) == 0

    await asyncio.to_thread(commands)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["threads"], shown["conversations"]) == (3, 2)
    assert (tmp_path / "file.db").read_bytes() == before
