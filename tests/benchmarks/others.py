"""Beside two stores that agents' frameworks bring along, both encrypted: the same messages appended and read.

OpenAI Agents: ``EncryptedSession(SQLiteSession)``. LangGraph: ``AsyncSqliteSaver`` with its encrypted serializer, messages
added to a graph's state by ``aupdate_state``. Both with their own settings of
SQLite. Needs the packages of the group ``bench``. Run: ``python -m benchmarks.others [--quick]``.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_least, main, ratio, ratios, row, us
from nagaya import Message, Nagaya

TEXT = "m" * 1024
KEPT = 50
Append = Callable[[], Awaitable[object]]


async def _median_s(work: Append, count: int) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def _agents(folder: Path) -> tuple[Append, Append]:
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    from agents import SQLiteSession
    from agents.extensions.memory import EncryptedSession

    session = EncryptedSession(
        session_id="bench",
        underlying_session=SQLiteSession("bench", str(folder / "agents.db")),
        encryption_key="a key of the benchmark's own, 32 b",
        ttl=24 * 3600,
    )
    message: Any = {"role": "user", "content": TEXT}

    async def append() -> None:
        await session.add_items([message])

    async def read() -> None:
        assert len(await session.get_items(limit=KEPT)) == KEPT

    return append, read


async def _langgraph(folder: Path) -> tuple[Append, Append, Append]:
    from langchain_core.messages import HumanMessage
    from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import START, MessagesState, StateGraph

    context = AsyncSqliteSaver.from_conn_string(str(folder / "langgraph.db"))
    saver = await context.__aenter__()
    saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=os.urandom(32))
    builder = StateGraph(MessagesState)
    builder.add_node("talk", lambda state: {"messages": []})
    builder.add_edge(START, "talk")
    graph = builder.compile(checkpointer=saver)
    turns = 0

    def config() -> Any:
        # Every checkpoint holds the whole conversation, so one that grew for ever would only get slower: after twenty
        # appends a new one begins, with fifty messages in it.
        return {"configurable": {"thread_id": f"bench-{turns // 20}"}}

    async def append() -> None:
        nonlocal turns
        await graph.aupdate_state(config(), {"messages": [HumanMessage(TEXT)]}, as_node="talk")
        turns += 1
        if turns % 20 == 0:
            await graph.aupdate_state(config(), {"messages": [HumanMessage(TEXT) for _ in range(KEPT)]}, as_node="talk")

    async def read() -> None:
        found = await saver.aget_tuple(config())
        assert found is not None
        assert len(found.checkpoint["channel_values"]["messages"]) >= KEPT

    async def close() -> None:
        await context.__aexit__(None, None, None)

    return append, read, close


async def measure(folder: Path, quick: bool) -> list[Row]:
    """Append and read beside both."""
    warnings.simplefilter("ignore")
    rounds, count = (3, 60) if quick else (9, 120)
    rows: list[Row] = []
    async with Nagaya.open(folder / "data") as nagaya:
        await nagaya.tenants.create("bench-others", name="Bench")
        entrance = await nagaya.enter(await nagaya.tenants.mint("bench-others", "mio"))
        async with nagaya.session(entrance) as tenant:
            chat = await tenant.conversations.create()

            async def append() -> None:
                await tenant.conversations.append(chat.id, Message.user(TEXT))

            async def read() -> None:
                assert len(await tenant.conversations.items(chat.id, limit=KEPT)) == KEPT

            agents_append, agents_read = await _agents(folder)
            graph_append, graph_read, close = await _langgraph(folder)
            for _ in range(KEPT):
                for one in (append, agents_append, graph_append):
                    await one()
            for name, theirs, limits in (
                ("OpenAI Agents `EncryptedSession(SQLiteSession)`", (agents_append, agents_read), (2.5, 7.0)),
                ("LangGraph `AsyncSqliteSaver` encrypted", (graph_append, graph_read), (5.0, 4.0)),
            ):
                for verb, ours, other, limit in zip(("append", "read"), (append, read), theirs, limits, strict=True):
                    mine, yours = [], []
                    for _ in range(rounds):
                        yours.append(await _median_s(other, count))
                        mine.append(await _median_s(ours, count))
                    rows.append(
                        row(
                            f"{verb} of the same messages" if verb == "append" else f"{verb} of the last {KEPT}",
                            name,
                            at_least(ratio(yours, mine), limit, "{:.1f}× faster"),
                            f"{us(statistics.median(mine))}; theirs {us(statistics.median(yours))}",
                            ratios(yours, mine),
                        )
                    )
            await close()
    return rows


if __name__ == "__main__":
    main(measure)
