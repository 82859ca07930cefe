"""LangGraph's checkpointer over a tenant's sealed records."""

from __future__ import annotations

import hashlib
import os
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, cast

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from nagaya.context.tenant_context import TenantContext
from nagaya.errors import ConditionFailed, Conflict, InvalidValue
from nagaya.integrations.langgraph.bridge import Bridge
from nagaya.integrations.langgraph.messages import MessageSerializer, print_of
from nagaya.integrations.langgraph.pieces import Piece, Recalled, Stored, Telling, put_together, recall, take_apart
from nagaya.integrations.langgraph.threads import Found, Kept, TaskWrites, Thread, Threads, Write, id_at, place_of

RECALLED: Final = 256
"""Checkpoints of which is remembered where their pieces are."""

_ATTEMPTS: Final = 16

_log = structlog.get_logger(__name__)


class NagayaSaver(BaseCheckpointSaver[int]):
    """Keeps a graph's checkpoints in the tenant's own store, sealed under its key. To be made in the event loop.

    Threads belong to the user whose session this is: another user's or tenant's thread of the same id is another
    thread. What did not change since the checkpoint before is not written again.

    What comes back is rebuilt from types that are known to be safe: LangGraph's, LangChain's messages, and those in
    ``allow``. Any other comes back as the plain data it was made of. ``serde`` takes the place of that serialiser.

    Raises what the session raises: ``SessionClosed`` after its end or a revocation, the ``Key…`` and ``Store…`` errors.
    The methods without ``a`` may be called from other threads only.
    """

    def __init__(
        self,
        tenant: TenantContext,
        *,
        serde: SerializerProtocol | None = None,
        allow: Iterable[type | tuple[str, str]] = (),
    ) -> None:
        super().__init__(serde=serde or MessageSerializer(allowed_msgpack_modules=tuple(allow) or None))
        self._threads = Threads(tenant.drawer("langgraph"))
        self._bridge = Bridge()
        # Marks tell equal pieces; keyed, so that nothing remembered here could be compared with guesses elsewhere.
        self._mark_key = os.urandom(32)
        self._recalled: OrderedDict[tuple[str, bytes], dict[str, Recalled]] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(cls, nagaya: Any, entrance: Any, **options: Any) -> AsyncGenerator[NagayaSaver, None]:
        """``async with NagayaSaver.open(nagaya, entrance) as saver``: with a session of its own."""
        async with nagaya.session(entrance) as tenant:
            yield cls(tenant, **options)

    # --- reading ---

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that ``config`` names, or the latest of its thread and namespace; None where there is none."""
        thread_id, namespace = _named(config)
        thread = await self._threads.thread(thread_id)
        found = await self._find(thread, config)
        whole = None if found is None else await self._tuple(thread, thread_id, namespace, found)
        if whole is not None or found is None or get_checkpoint_id(config):
            return whole
        mark = await self._threads.namespace(namespace)
        async with aclosing(thread.downwards(mark, before=found.place)) as others:
            async for found in others:
                if (whole := await self._tuple(thread, thread_id, namespace, found)) is not None:
                    return whole
        return None

    async def _find(self, thread: Thread, config: RunnableConfig) -> Found | None:
        _, namespace = _named(config)
        mark = await self._threads.namespace(namespace)
        checkpoint_id = get_checkpoint_id(config)
        return await thread.at(place_of(mark, checkpoint_id)) if checkpoint_id else await thread.newest(mark)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, the latest first: of a thread (and namespace, and id) or, without ``config``, of the user's
        threads one after another. ``filter`` is compared with their metadata."""
        left = limit
        if config is not None and "thread_id" in config["configurable"]:
            threads = [str(config["configurable"]["thread_id"])]
        else:
            threads = [thread_id async for thread_id in self._threads.all()]
        named = {} if config is None else config["configurable"]
        namespace = named.get("checkpoint_ns")
        mark = b"" if namespace is None else await self._threads.namespace(namespace)
        before_id = None if before is None else get_checkpoint_id(before)
        for thread_id in threads:
            thread = await self._threads.thread(thread_id)
            upper = place_of(mark, before_id) if before_id and mark else b""
            async for found in thread.downwards(mark, before=upper):
                if left is not None and left <= 0:
                    return
                id_ = id_at(found.place)
                if named.get("checkpoint_id") not in (None, id_) or (before_id and id_ >= before_id):
                    continue
                _, metadata = self._head(found.stored)
                if any(metadata.get(name, _ABSENT) != value for name, value in (filter or {}).items()):
                    continue
                listed = await self._tuple(thread, thread_id, found.stored.namespace, found)
                if listed is not None:
                    yield listed
                    left = None if left is None else left - 1

    def _head(self, stored: Stored) -> tuple[dict[str, Any], CheckpointMetadata]:
        checkpoint, metadata = self.serde.loads_typed(stored.head)
        return checkpoint, metadata

    async def _tuple(
        self, thread: Thread, thread_id: str, namespace: str, found: Found, channels: Sequence[str] | None = None
    ) -> CheckpointTuple | None:
        stored = found.stored
        pieces = await thread.sources(stored)
        if pieces is None:
            _log.warning("a checkpoint is incomplete", action="langgraph.incomplete")
            return None
        checkpoint, metadata = self._head(stored)
        checkpoint["channel_values"] = put_together(
            stored, channels, pieces.__getitem__, self.serde.loads_typed, self._load_list
        )
        return CheckpointTuple(
            _config(thread_id, namespace, found.place),
            cast(Checkpoint, checkpoint),
            metadata,
            _config(thread_id, namespace, stored.parent) if stored.parent else None,
            self._pending(found),
        )

    def _load_list(self, pieces: Sequence[Piece]) -> list[Any]:
        if isinstance(self.serde, MessageSerializer) and all(form == "msgpack" for form, _ in pieces):
            # The elements of a MessagePack array are simply one after another: all of them in one call.
            head = b"\xdd" + len(pieces).to_bytes(4, "big")
            loaded: list[Any] = self.serde.loads_typed(("msgpack", head + b"".join([body for _, body in pieces])))
            return loaded
        return [self.serde.loads_typed(piece) for piece in pieces]

    def _pending(self, found: Found, channel: str | None = None) -> list[PendingWrite]:
        writes = [
            (writes_sort_key(task.path, task.task_id, write.index), task.task_id, write)
            for task in found.pending
            for write in task.writes
            if channel is None or write.channel == channel
        ]
        writes.sort(key=lambda each: each[0])
        return [(task_id, write.channel, self.serde.loads_typed(write.value)) for _, task_id, write in writes]

    # --- writing ---

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint, durably when this returns: one record, with what its parent does not have. Repeatable."""
        thread_id, namespace = _named(config)
        thread = await self._threads.thread(thread_id)
        mark = await self._threads.namespace(namespace)
        parent_id = get_checkpoint_id(config)
        parent = place_of(mark, parent_id) if parent_id else b""
        place = place_of(mark, checkpoint["id"])
        all_metadata = get_checkpoint_metadata(config, metadata)
        run_id = all_metadata.get("run_id")
        looked = await self._threads.listed(thread_id, run_id, begins=not parent)
        head = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        stored = Stored(namespace=namespace, parent=parent, head=self.serde.dumps_typed((head, all_metadata)))
        before = await self._recall(thread, parent) if parent and checkpoint["channel_values"] else {}
        over: Kept | None = None
        for _ in range(_ATTEMPTS):
            # The same checkpoint with another content: others may need the pieces of the former one.
            kept = over.stored.pieces if over is not None else []
            taken = take_apart(
                place,
                checkpoint["channel_values"],
                checkpoint["channel_versions"],
                new_versions,
                before,
                Telling(self.serde.dumps_typed, self._mark, print_of),
                offset=len(kept),
            )
            stored.channels, stored.sources, stored.pieces = taken.channels, taken.sources, [*kept, *taken.pieces]
            try:
                await thread.put(place, stored, over=over)
            except ConditionFailed:
                there = await thread.get(place)
                if there is None or there.stored != stored:
                    over = there
                    continue
            if not taken.sources or not await self._is_parent_lost(thread, thread_id, parent):
                break
            # What it needs of the others may be gone too: now all of it is written.
            before, over, looked = {}, await thread.get(place), True
        else:
            raise Conflict
        if looked:
            # Whoever deletes the thread, or the run, may have taken it off the list since.
            await self._threads.listed(thread_id, run_id, begins=True)
        self._remember(thread, place, taken.recalled)
        return _config(thread_id, namespace, place)

    async def _is_parent_lost(self, thread: Thread, thread_id: str, parent: bytes) -> bool:
        """Whether somebody deletes or has deleted the checkpoint that this one goes on from, and not the whole thread:
        what goes on from a deleted thread is as if it were not there."""
        holds = await thread.holds(parent)
        return not holds and (holds is False or await self._threads.is_listed(thread_id))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep what a task wrote after a checkpoint, durably when this returns: one record. Repeatable."""
        thread_id, namespace = _named(config)
        checkpoint_id = get_checkpoint_id(config)
        if not checkpoint_id:
            raise InvalidValue(param="checkpoint_id", at="checkpoint_id", detail="writes belong to a checkpoint")
        thread = await self._threads.thread(thread_id)
        place = place_of(await self._threads.namespace(namespace), checkpoint_id)
        await self._threads.listed(thread_id, None)
        named = [
            Write(WRITES_IDX_MAP.get(channel, index), channel, self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        ]
        over = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        await thread.put_writes(place, TaskWrites(task_id, task_path, named), over=over)

    def _mark(self, piece: Piece) -> bytes:
        form, body = piece
        return hashlib.blake2b(body, digest_size=16, key=self._mark_key, person=form.encode()[:16]).digest()

    async def _recall(self, thread: Thread, place: bytes) -> Mapping[str, Recalled]:
        key = thread.folder.name, place
        known = self._recalled.get(key)
        if known is not None:
            self._recalled.move_to_end(key)
            return known
        kept = await thread.get(place)
        if kept is None or kept.stored.gone:
            return {}
        stored = kept.stored
        pieces = await thread.sources(stored)
        if pieces is None:
            return {}
        checkpoint, _ = self._head(stored)
        return recall(place, stored, checkpoint["channel_versions"], pieces.__getitem__, self._mark)

    def _remember(self, thread: Thread, place: bytes, recalled: dict[str, Recalled]) -> None:
        self._recalled[thread.folder.name, place] = recalled
        if len(self._recalled) > RECALLED:
            self._recalled.popitem(last=False)

    def _forget(self, thread: Thread) -> None:
        for key in [key for key in self._recalled if key[0] == thread.folder.name]:
            del self._recalled[key]

    # --- deleting and copying ---

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread. One that is not there is no error."""
        self._forget(await self._threads.thread(str(thread_id)))
        await self._threads.delete(str(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that these runs made, in whichever threads. What later checkpoints hold they keep."""
        for run_id in run_ids:
            for thread_id in await self._threads.of_run(run_id):
                thread = await self._threads.thread(thread_id)
                doomed = await self._made_by(run_id, thread)
                self._forget(thread)
                await thread.remove(doomed)
                await self._threads.forget_run(thread_id, run_id)
                if await self._made_by(run_id, thread):
                    await self._threads.listed(thread_id, run_id)  # it goes on

    async def _made_by(self, run_id: str, thread: Thread) -> set[bytes]:
        """The places of the checkpoints that a run has in a thread."""
        return {
            place
            for place, (each, *_) in (await thread.everything())[0].items()
            if not each.gone and self._head(each)[1].get("run_id") == run_id
        }

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy every checkpoint and all that is pending. Into a thread that has some already, they are added."""
        await self._threads.copy(str(source_thread_id), str(target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """``keep_latest``: delete all but the latest checkpoint of each namespace, and those before it that a delta
        channel is rebuilt from. ``delete``: delete the threads."""
        if strategy not in ("keep_latest", "delete"):
            raise InvalidValue(param="strategy", at="strategy", detail="expected 'keep_latest' or 'delete'")
        for thread_id in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread_id)
                continue
            thread = await self._threads.thread(thread_id)
            there, _ = await thread.everything()
            live = {place: each.stored for place, each in there.items() if not each.stored.gone}
            latest: dict[str, bytes] = {}
            for place in sorted(live):
                latest[live[place].namespace] = place
            kept = {place for newest in latest.values() for place in self._rebuilt_from(live, newest)}
            self._forget(thread)
            await thread.remove(set(live) - kept)

    def _rebuilt_from(self, live: Mapping[bytes, Stored], newest: bytes) -> Iterator[bytes]:
        """A checkpoint, and its ancestors as far as its delta channels need them."""
        yield newest
        _, metadata = self._head(live[newest])
        missing = set(metadata.get("counters_since_delta_snapshot") or ()) - live[newest].channels.keys()
        place = live[newest].parent
        while missing and place in live:
            yield place
            missing -= live[place].channels.keys()
            place = live[place].parent

    # --- delta channels ---

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What each channel is rebuilt from: the value at its nearest ancestor that has one, and the writes since."""
        if not channels:
            return {}
        thread = await self._threads.thread(_named(config)[0])
        found = await self._find(thread, config)
        writes: dict[str, list[list[PendingWrite]]] = {name: [] for name in channels}
        seeds: dict[str, Any] = {}
        while found is not None and found.stored.parent and len(seeds) < len(writes):
            found = await thread.at(found.stored.parent)
            if found is None:
                break
            missing = [name for name in writes if name not in seeds]
            for name in missing:
                writes[name].append(self._pending(found, name))
            there = [name for name in missing if name in found.stored.channels]
            if there:
                pieces = await thread.sources(found.stored)
                if pieces is None:
                    break
                seeds |= put_together(found.stored, there, pieces.__getitem__, self.serde.loads_typed, self._load_list)
        histories: dict[str, DeltaChannelHistory] = {}
        for name, steps in writes.items():
            history: DeltaChannelHistory = {"writes": [write for step in reversed(steps) for write in step]}
            if name in seeds:
                history["seed"] = seeds[name]
            histories[name] = history
        return histories

    def get_next_version(self, current: int | None, channel: None) -> int:
        """Numbers, one after another. A thread that came from another checkpointer keeps that one's form."""
        former = cast(object, current)
        if isinstance(former, str):
            following = int(former.partition(".")[0]) + 1
            return cast(int, f"{following:032}.{random.random():016}")  # noqa: S311  # tells forks apart, no secret
        return 1 if current is None else current + 1

    # --- from other threads ---

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As :meth:`aget_tuple`, from another thread."""
        return self._bridge.wait(self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As :meth:`alist`, from another thread."""

        async def all_of_them() -> Sequence[CheckpointTuple]:
            return [each async for each in self.alist(config, filter=filter, before=before, limit=limit)]

        return iter(self._bridge.wait(all_of_them()))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As :meth:`aput`, from another thread."""
        return self._bridge.wait(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As :meth:`aput_writes`, from another thread."""
        self._bridge.wait(self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """As :meth:`adelete_thread`, from another thread."""
        self._bridge.wait(self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As :meth:`adelete_for_runs`, from another thread."""
        self._bridge.wait(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As :meth:`acopy_thread`, from another thread."""
        self._bridge.wait(self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As :meth:`aprune`, from another thread."""
        self._bridge.wait(self.aprune(thread_ids, strategy=strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As :meth:`aget_delta_channel_history`, from another thread."""
        return self._bridge.wait(self.aget_delta_channel_history(config=config, channels=channels))


_ABSENT: Final = object()


def _named(config: RunnableConfig) -> tuple[str, str]:
    """The thread and the namespace that a config names."""
    named = config["configurable"]
    return str(named["thread_id"]), named.get("checkpoint_ns") or ""


def _config(thread_id: str, namespace: str, place: bytes) -> RunnableConfig:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": id_at(place)}
    return {"configurable": named}
