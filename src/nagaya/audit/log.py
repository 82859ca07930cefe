"""The audit log as the rest of the code uses it: ``record`` never waits, a task writes, nothing is lost silently."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from nagaya.audit.chain import BATCH, AuditStore, Batch, ChainStore, Checkpoint, Verified
from nagaya.audit.entry import LONGEST, PLATFORM, Chain, Entry, Outcome, harmless, network
from nagaya.audit.flood import Flood
from nagaya.errors import AuditBroken
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended, going_on

WAITING: Final = 10_000
"""Entries that may wait for the store. At some 500 bytes each, 5 MB."""

GATHER_S: Final = 0.05
"""How long the writer gathers entries before it writes them together."""

AT_ONCE: Final = 16
"""Chains written at one time: they share the store's syncs."""

RETRY_S: Final = 1.0
CLOSE_S: Final = 5.0

_log = structlog.get_logger(__name__)


class _Kind(NamedTuple):
    chain: Chain
    actor: str
    role: str
    action: str


class AuditLog:
    """An append-only, verifiable log over the platform's own sealed store, shared with other processes.

    ``start()`` runs the writer; without it :meth:`flush` writes (a short command). ``close()`` writes what waits.
    To be used in one event loop.
    """

    def __init__(self, sealed: AuditStore, clock: Clock, *, waiting: int = WAITING) -> None:
        self._chains = ChainStore(sealed)
        self._clock = clock
        self._limit = waiting
        self._waiting: dict[Chain, deque[tuple[int, Entry]]] = {}
        self._trying: dict[Chain, Batch] = {}
        self._count = 0
        self._number = 0
        self._until = 0
        self._lost = 0
        self._broken: set[Chain] = set()
        self._flood: Flood[_Kind] = Flood()
        self._writing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def record(
        self,
        chain: Chain,
        *,
        actor: str,
        role: str,
        action: str,
        target: str = "",
        outcome: Outcome = "done",
        reason: str = "",
        request_id: str = "",
        address: str | None = None,
    ) -> None:
        """Note something. Returns at once, never raises; it is durable after the next ``flush()``.

        Texts are shortened and cleaned of tokens, e-mail and IP addresses; ``address`` keeps its network only. From
        the 21st refusal of one (actor, action) in a minute on they are counted and noted as one. Where too much waits
        for the store, the entry is dropped, that is logged, and the platform's chain gets the number of the dropped.
        """
        kind = _Kind(chain, harmless(actor), harmless(role), harmless(action))
        if outcome == "refused" and not self._flood.admit(kind, self._clock.monotonic_s()):
            return
        self._add(
            chain,
            Entry(
                seq=0,
                at_us=self._clock.now_us(),
                actor=kind.actor,
                role=kind.role,
                action=kind.action,
                target=harmless(target),
                outcome=outcome,
                reason=harmless(reason),
                request_id=harmless(request_id),
                address=network(address),
            ),
        )

    def start(self) -> None:
        """Write in a task of its own until ``close()``."""
        if self._task is None:
            self._stopping = False
            self._task = asyncio.create_task(self._write_always(), name="audit-writer")

    async def close(self) -> None:
        """Write what waits, for at most five seconds, and stop. What then still waits is logged as lost."""
        self._stopping = True
        self._wake.set()
        task, self._task = self._task, None
        try:
            if task is not None:
                await asyncio.wait({task}, timeout=CLOSE_S)
            await self.flush(timeout_s=CLOSE_S)
        except Exception as failure:
            # The process ends: the only place left to say it is its own log.
            _log.error("audit entries were lost", action="audit.lost", entries=self._count, error=repr(failure))
        finally:
            if task is not None and not task.done():
                await ended([task])

    async def flush(self, *, timeout_s: float = 10.0) -> None:
        """Write everything that was recorded before. Raises ``TimeoutError``, or what the store raises; then it
        still waits and may be flushed again."""
        for kind, times in self._flood.ended(self._clock.monotonic_s(), at_once=True):
            self._add_counted(kind, times)
        # The write itself is not cancelled: whether it was kept would then be in doubt.
        writing = going_on(self._write_all())
        done, _ = await asyncio.wait({writing}, timeout=timeout_s)
        if not done:
            raise TimeoutError
        writing.result()

    async def read(self, chain: Chain, *, after: int = 0, limit: int = 100) -> Sequence[Entry]:
        """Entries with ``seq > after``, oldest first, at most 1,000."""
        return await self._chains.read(chain, after=after, limit=limit)

    async def verify(self, chain: Chain, *, kept: Checkpoint | None = None) -> Verified:
        """Check every entry, link and the head. Raises ``AuditBroken(entry=…, problem=…)``."""
        return await self._chains.verify(chain, kept=kept)

    async def prove_entry(self, chain: Chain, seq: int) -> tuple[Checkpoint, bytes, tuple[bytes, ...]]:
        return await self._chains.prove_entry(chain, seq)

    async def prove_growth(self, chain: Chain, earlier: int) -> tuple[Checkpoint, tuple[bytes, ...]]:
        return await self._chains.prove_growth(chain, earlier)

    # --- inside -------------------------------------------------------------------------------------------------

    def _add(self, chain: Chain, entry: Entry) -> None:
        if self._count >= self._limit:
            if self._lost == 0:
                _log.error(
                    "the audit buffer is full: entries are dropped", action="audit.overflow", waiting=self._limit
                )
            self._lost += 1
            return
        self._put(chain, entry)
        self._wake.set()

    def _put(self, chain: Chain, entry: Entry) -> None:
        if chain in self._broken:
            entry = msgspec.structs.replace(entry, target=f"{chain}: {entry.target}"[:LONGEST])
            chain = PLATFORM
        self._number += 1
        self._count += 1
        self._waiting.setdefault(chain, deque()).append((self._number, entry))

    def _add_counted(self, kind: _Kind, times: int) -> None:
        self._add(
            kind.chain,
            Entry(
                seq=0,
                at_us=self._clock.now_us(),
                actor=kind.actor,
                role=kind.role,
                action=kind.action,
                outcome="refused",
                reason="more of the same",
                times=times,
            ),
        )

    async def _write_always(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                # Woken by an entry; looked after each second for floods that have ended.
                await asyncio.wait_for(self._wake.wait(), 1.0)
                await asyncio.sleep(GATHER_S)
            self._wake.clear()
            for kind, times in self._flood.ended(self._clock.monotonic_s()):
                self._add_counted(kind, times)
            try:
                await self._write_all()
            except Exception as failure:
                # Whatever it was, the entries still wait, and the writer must live to write them.
                _log.warning(
                    "the audit log cannot be written",
                    action="audit.write_failed",
                    waiting=self._count,
                    error=repr(failure),
                )
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _write_all(self) -> None:
        """Write what waits now, several chains at a time. A chain that fails keeps its batch and its place and holds
        up no other; its error is raised in the end."""
        async with self._writing:
            self._note_lost()
            self._until = self._number
            failed: dict[Chain, BaseException] = {}
            while chains := self._due(failed):
                outcomes = await asyncio.gather(*map(self._write_one, chains), return_exceptions=True)
                failed |= {
                    chain: outcome for chain, outcome in zip(chains, outcomes, strict=True) if outcome is not None
                }
            for failure in failed.values():
                raise failure

    def _due(self, failed: Mapping[Chain, BaseException]) -> list[Chain]:
        """Chains with something that was recorded before this writing began."""
        due = [chain for chain in self._trying if chain not in failed]
        for chain, entries in self._waiting.items():
            if entries[0][0] <= self._until and chain not in failed and chain not in self._trying:
                due.append(chain)
        return due[:AT_ONCE]

    async def _write_one(self, chain: Chain) -> None:
        batch = self._trying.get(chain)
        if batch is None:
            entries = self._waiting[chain]
            batch = Batch(chain, [entries.popleft()[1] for _ in range(min(BATCH, len(entries)))])
            if not entries:
                del self._waiting[chain]
            self._trying[chain] = batch
        try:
            await self._chains.append(batch)
        except AuditBroken as broken:
            self._divert(batch, broken)
        del self._trying[chain]
        self._count -= len(batch.entries)

    def _divert(self, batch: Batch, broken: AuditBroken) -> None:
        """A chain whose head was tampered with takes no more entries: what belongs to it goes to the platform's."""
        if batch.chain == PLATFORM:
            # Nowhere left to write to. The entries stay, and every try says so in the process's own log.
            raise broken
        _log.error("an audit chain is broken", action="audit.chain_broken", chain=batch.chain, error=str(broken))
        self._broken.add(batch.chain)
        waiting = [entry for _, entry in self._waiting.pop(batch.chain, ())]
        self._count -= len(waiting)
        for entry in (*batch.entries, *waiting):
            self._put(batch.chain, entry)
        self._until = self._number

    def _note_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._put(
                PLATFORM,
                Entry(
                    seq=0,
                    at_us=self._clock.now_us(),
                    actor="audit",
                    role="platform",
                    action="audit.overflow",
                    outcome="failed",
                    reason="entries were dropped",
                    times=lost,
                ),
            )
