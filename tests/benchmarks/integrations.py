"""Other people's libraries over Nagaya beside the encrypted stores that they bring along.

LangGraph: the checkpoints of a conversation that grows to fifty messages, put one after another, and the last one
got; ``AsyncSqliteSaver`` with its encrypted serializer does the same. OpenAI Agents: the same messages in a
``NagayaSession`` and in ``EncryptedSession(SQLiteSession)``. All with their own settings of SQLite. Needs the packages
of the group ``bench``. Run: ``python -m benchmarks.integrations [--quick]``.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_least, at_most, main, ratio, ratios, row, us
from nagaya import Nagaya

TEXT = "m" * 1024
MESSAGES = 50
Work = Callable[[], Awaitable[object]]


async def _median_s(work: Work, count: int) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _words(number: int) -> str:
    """A kilobyte that no other message has, and that no compression makes much smaller."""
    return f"{number} {os.urandom(510).hex()}"


class Threads:
    """A checkpointer's threads, each a conversation that grows to ``MESSAGES``; every checkpoint holds all of it."""

    def __init__(self, saver: Any, folder: Path) -> None:
        self.saver = saver
        self.folder = folder
        self.puts = 0
        self._numbers = itertools.count()
        self.config: Any = None

    async def thread(self) -> float:
        """One conversation, put by put; the median time of a put."""
        from langchain_core.messages import AIMessage, HumanMessage
        from langgraph.checkpoint.base import empty_checkpoint

        self.config = {"configurable": {"thread_id": f"thread-{next(self._numbers)}", "checkpoint_ns": ""}}
        version, said, took = None, [], []
        for turn in range(MESSAGES):
            said.append((AIMessage if turn % 2 else HumanMessage)(_words(turn), id=f"m-{turn}"))
            version = self.saver.get_next_version(version, None)
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"messages": list(said)}
            checkpoint["channel_versions"] = {"__start__": version, "messages": version}
            checkpoint["versions_seen"] = {"__input__": {}, "talk": {"branch:to:talk": version}}
            metadata: Any = {"source": "loop", "step": turn, "parents": {}}
            began = time.perf_counter()
            self.config = await self.saver.aput(self.config, checkpoint, metadata, {"messages": version})
            took.append(time.perf_counter() - began)
        self.puts += MESSAGES
        return statistics.median(took)

    async def get(self) -> None:
        """The last checkpoint of the last thread."""
        found = await self.saver.aget_tuple({"configurable": {**self.config["configurable"], "checkpoint_id": ""}})
        assert found is not None
        assert len(found.checkpoint["channel_values"]["messages"]) == MESSAGES

    def stored(self) -> float:
        """Bytes on disk for each message, once everything is closed."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) / self.puts


async def _langgraph(folder: Path) -> tuple[Threads, Callable[[], Awaitable[None]]]:
    from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    (folder / "theirs").mkdir()
    context = AsyncSqliteSaver.from_conn_string(str(folder / "theirs" / "langgraph.db"))
    saver = await context.__aenter__()
    saver.serde = EncryptedSerializer.from_pycryptodome_aes(key=os.urandom(32))

    async def close() -> None:
        await context.__aexit__(None, None, None)

    return Threads(saver, folder / "theirs"), close


def _agents(folder: Path) -> Any:
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    from agents import SQLiteSession
    from agents.extensions.memory import EncryptedSession

    return EncryptedSession(
        session_id="bench",
        underlying_session=SQLiteSession("bench", str(folder / "agents.db")),
        encryption_key="a key of the benchmark's own, 32 b",
        ttl=24 * 3600,
    )


async def measure(folder: Path, quick: bool) -> list[Row]:
    """Checkpoints, then sessions."""
    warnings.simplefilter("ignore")
    rounds, count = (3, 40) if quick else (9, 120)
    rows: list[Row] = []
    theirs, close = await _langgraph(folder)
    async with Nagaya.open(folder / "data") as nagaya:
        for tenant_id in ("bench-graphs", "bench-agents"):
            await nagaya.tenants.create(tenant_id, name="Bench")
        rows += await _checkpoints(nagaya, folder, theirs, rounds, count)
        rows += await _sessions(nagaya, folder, rounds, count)
    await close()
    ours_bytes = _stored(folder / "data" / "tenants" / "bench-graphs") / theirs.puts
    judged = at_most(ours_bytes / theirs.stored(), 0.2, "{:.2f} of its bytes")
    absolute = f"{ours_bytes:,.0f} bytes a message; theirs {theirs.stored():,.0f}"
    rows.insert(2, row(f"LangGraph: {MESSAGES} messages on disk", _SAVER, judged, absolute))
    return rows


_SAVER = "LangGraph `AsyncSqliteSaver` encrypted"
_SESSION = "OpenAI Agents `EncryptedSession(SQLiteSession)`"


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def _checkpoints(nagaya: Nagaya, folder: Path, theirs: Threads, rounds: int, count: int) -> list[Row]:
    from nagaya.integrations.langgraph import NagayaSaver

    entrance = await nagaya.enter(await nagaya.tenants.mint("bench-graphs", "mio"))
    async with NagayaSaver.open(nagaya, entrance) as saver:
        ours = Threads(saver, folder / "data" / "tenants" / "bench-graphs")
        put: tuple[list[float], list[float]] = ([], [])
        got: tuple[list[float], list[float]] = ([], [])
        for each in (ours, theirs):
            await each.thread()
        for _ in range(rounds):
            for place, each in enumerate((theirs, ours)):
                put[place].append(statistics.median([await each.thread() for _ in range(3)]))
                got[place].append(await _median_s(each.get, count))
    named = ((f"LangGraph: put, of {MESSAGES}", put), (f"LangGraph: get, {MESSAGES} messages", got))
    return [_row(job, _SAVER, yours, mine, 2.0) for job, (yours, mine) in named]


async def _sessions(nagaya: Nagaya, folder: Path, rounds: int, count: int) -> list[Row]:
    from nagaya.integrations.openai_agents import NagayaSession

    message: Any = {"role": "user", "content": TEXT}
    entrance = await nagaya.enter(await nagaya.tenants.mint("bench-agents", "mio"))
    async with nagaya.session(entrance) as tenant:
        sessions: tuple[Any, Any] = (_agents(folder), NagayaSession("bench", tenant))
        appended: tuple[list[float], list[float]] = ([], [])
        read: tuple[list[float], list[float]] = ([], [])
        for session in sessions:
            await session.add_items([message] * MESSAGES)
        for _ in range(rounds):
            for place, session in enumerate(sessions):
                append, get = _append(session, message), _read(session)
                appended[place].append(await _median_s(append, count))
                read[place].append(await _median_s(get, count))
    return [
        _row("OpenAI Agents: append", _SESSION, *appended, 2.0),
        _row(f"OpenAI Agents: read the last {MESSAGES}", _SESSION, *read, 5.0),
    ]


def _append(session: Any, message: Any) -> Work:
    async def append() -> None:
        await session.add_items([message])

    return append


def _read(session: Any) -> Work:
    async def read() -> None:
        assert len(await session.get_items(limit=MESSAGES)) == MESSAGES

    return read


def _row(job: str, yardstick: str, yours: list[float], mine: list[float], limit: float) -> Row:
    judged = at_least(ratio(yours, mine), limit, "{:.1f}× faster")
    absolute = f"{us(statistics.median(mine))}; theirs {us(statistics.median(yours))}"
    return row(job, yardstick, judged, absolute, ratios(yours, mine))


if __name__ == "__main__":
    main(measure)
