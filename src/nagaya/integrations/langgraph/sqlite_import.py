"""Threads from a database of LangGraph's ``SqliteSaver`` as threads of the caller's, for :class:`NagayaSaver`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import CheckpointTuple

from nagaya.context.counting import Skips
from nagaya.context.items import Message
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue, RecordsDiffer
from nagaya.integrations.conversation_import import bring_conversation
from nagaya.integrations.langgraph.messages import MessageSerializer
from nagaya.integrations.langgraph.saver import NagayaSaver
from nagaya.integrations.langgraph.sqlite_file import Checkpointed, CheckpointFile, UntouchedSerializer, Written
from nagaya.integrations.langgraph.threads import TaskWrites, Write, place_of

_RUNS_CODE = "pickle"


class ImportedThreads(Skips, msgspec.Struct, kw_only=True):
    """How much came in, and how much of which kind did not."""

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    conversations: int = 0
    items: int = 0
    skipped: dict[str, int] = msgspec.field(default_factory=dict)


async def import_checkpoints(
    tenant: TenantContext, file: Path, *, key: bytes | None = None, conversations: bool = False
) -> ImportedThreads:
    """Bring every thread in as the caller's, under its id, with all its checkpoints, what is pending on them, and their
    order; each is read back and compared. ``key`` opens what ``EncryptedSerializer`` sealed with AES (16, 24 or 32
    bytes).

    ``conversations``: the texts in the ``messages`` of a thread's latest state become a conversation too, which the
    graph does not go on with. Tool calls and what is no text are counted under ``skipped``.

    May be repeated. What was pickled is not opened, since that would run what lies in it: it is counted. Raises
    ``InvalidValue`` for another file, ``ExportSealed`` without the right key, ``RecordsDiffer`` for a checkpoint that
    is here with another content.
    """
    done = ImportedThreads()
    opened = await asyncio.to_thread(CheckpointFile, file, key)
    with opened:
        await asyncio.to_thread(_look_at_one, opened)
        saver = _Bringing(tenant)
        rows = opened.checkpoints()
        thread: str | None = None
        latest: CheckpointTuple | None = None
        while (row := await asyncio.to_thread(next, rows, None)) is not None:
            if row.thread != thread:
                await _finish(tenant, thread, latest if conversations else None, done)
                thread, latest = row.thread, None
            writes = await asyncio.to_thread(opened.writes, row)
            if row.content[0] == _RUNS_CODE:
                done.skip("pickled_checkpoint")
                done.skip("writes_of_pickled_checkpoint", len(writes))
                continue
            held = await saver.bring(row, [write for write in writes if write.value[0] != _RUNS_CODE])
            done.skip("pickled_write", sum(write.value[0] == _RUNS_CODE for write in writes))
            done.checkpoints += 1
            done.writes += len(held.pending_writes or ())
            if not row.namespace:
                latest = held
        await _finish(tenant, thread, latest if conversations else None, done)
        done.skip("writes_without_checkpoint", await asyncio.to_thread(opened.lone_writes))
    return done


def _look_at_one(opened: CheckpointFile) -> None:
    """Open the first checkpoint, so that a wrong key is told before anything is written."""
    rows = opened.checkpoints()
    first = next(rows, None)
    rows.close()
    if first is not None:
        opened.writes(first)


class _Bringing(NagayaSaver):
    """A checkpointer whose values stay what they were in the file."""

    def __init__(self, tenant: TenantContext) -> None:
        super().__init__(tenant, serde=UntouchedSerializer())

    async def bring(self, row: Checkpointed, writes: Sequence[Written]) -> CheckpointTuple:
        """Keep a checkpoint and what is pending on it, and read them back. Raises ``RecordsDiffer``."""
        try:
            checkpoint: Any = self.serde.loads_typed(row.content)
            metadata: Any = json.loads(row.metadata)
            versions = checkpoint["channel_versions"]
            fits = checkpoint["id"] == row.id and isinstance(metadata, dict) and isinstance(versions, dict)
        except (ValueError, TypeError, LookupError, NotImplementedError):
            fits = False
        if not fits:
            raise InvalidValue(param="file", at="file", detail=f"the checkpoint {row.id} does not read")
        checkpoint.setdefault("channel_values", {})
        named = {"thread_id": row.thread, "checkpoint_ns": row.namespace}
        parent = {"configurable": {**named, **({"checkpoint_id": row.parent} if row.parent else {})}}
        there = await self.aget_tuple({"configurable": {**named, "checkpoint_id": row.id}})
        if there is None:
            await self.aput(parent, checkpoint, metadata, versions)  # type: ignore[arg-type]  # a config is a dictionary
        await self._bring_writes(row, writes)
        held = await self.aget_tuple({"configurable": {**named, "checkpoint_id": row.id}})
        parent_id = None if held is None or held.parent_config is None else held.parent_config["configurable"]
        if (
            held is None
            or (parent_id["checkpoint_id"] if parent_id else None) != (row.parent or None)
            or self._told(held.checkpoint) != self._told(checkpoint)
            or self._told(held.metadata) != self._told(_without_nul(metadata))
            or not self._has(held, writes)
        ):
            raise RecordsDiffer(what=f"{row.thread} {row.id}")
        return held

    async def _bring_writes(self, row: Checkpointed, writes: Sequence[Written]) -> None:
        thread = await self._threads.thread(row.thread)
        place = place_of(await self._threads.namespace(row.namespace), row.id)
        for (task, path), group in groupby(writes, lambda write: (write.task, write.path)):
            named = [Write(write.number, write.channel, write.value) for write in group]
            await thread.put_writes(place, TaskWrites(task, path, named), over=False)

    def _told(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint or metadata is, whatever the order of its fields, and without comparing floats."""
        return {
            name: self._told(each) if name == "channel_values" else self.serde.dumps_typed(each)
            for name, each in value.items()
        }

    def _has(self, held: CheckpointTuple, writes: Sequence[Written]) -> bool:
        mine = [(task, channel, self.serde.dumps_typed(value)) for task, channel, value in held.pending_writes or ()]
        theirs = [
            (write.task, write.channel, self.serde.dumps_typed(self.serde.loads_typed(write.value))) for write in writes
        ]
        return sorted(mine) == sorted(theirs)


def _without_nul(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as every checkpointer of LangGraph keeps it."""
    return {name: each.replace("\0", "") if isinstance(each, str) else each for name, each in metadata.items()}


async def _finish(
    tenant: TenantContext, thread: str | None, latest: CheckpointTuple | None, done: ImportedThreads
) -> None:
    if thread is None:
        return
    done.threads += 1
    if latest is None:
        return
    held = latest.checkpoint["channel_values"].get("messages")
    if not isinstance(held, list):
        done.skip("thread_without_messages")
        return
    untouched = UntouchedSerializer()
    safe = MessageSerializer(allowed_msgpack_modules=None)
    messages = [
        message
        for each in held
        if (message := _message(safe.loads_typed(untouched.dumps_typed(each)), done)) is not None
    ]
    await bring_conversation(tenant, "langgraph thread", thread, thread, messages)
    done.conversations += 1
    done.items += len(messages)


def _message(said: object, done: ImportedThreads) -> Message | None:
    if not isinstance(said, BaseMessage):
        done.skip("message_of_another_kind")
        return None
    calls = getattr(said, "tool_calls", None)
    done.skip("tool_call", len(calls) if isinstance(calls, list) else 0)
    text = str(said.text)
    if isinstance(said.content, list):
        done.skip(
            "part_without_text", sum(not isinstance(part, str) and part.get("type") != "text" for part in said.content)
        )
    if said.type not in ("human", "ai", "system"):
        done.skip(f"message_{said.type}")
    elif not text:
        done.skip("message_without_text")
    elif said.type == "human":
        return Message.user(text)
    elif said.type == "ai":
        return Message.assistant(text)
    else:
        return Message.system(text)
    return None
