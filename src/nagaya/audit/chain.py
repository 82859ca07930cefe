"""Chains as sealed records: appending in one atomic batch with the head, reading, verifying.

The head holds the count, the last entry's hash and the peaks of the Merkle tree. It is written with the entries it
counts, all or none, so an entry that is cut off, exchanged or put between is missed. What only an outside witness
can miss, the whole chain put back to an earlier state with its head, is what a kept :class:`Checkpoint` shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from nagaya.audit.entry import Chain, Entry
from nagaya.audit.merkle import EMPTY_ROOT, Frontier, consistency_proof, inclusion_proof, leaf_hash
from nagaya.errors import AuditBroken, ConditionFailed, NotFound, SealBroken
from nagaya.records.sealed_store import ABSENT, Delete, Partition, Put, Record

COLLECTION: Final = "audit"
BATCH: Final = 99
"""Entries in one batch: with the head the hundred that every store can write at once."""

_HEAD: Final = b"head"
_ENTRIES_END: Final = b"\x01"
_PAGE: Final = 1_000
_TRIES: Final = 50


class AuditStore(Protocol):
    """What the log needs of a :class:`~nagaya.records.sealed_store.SealedStore`."""

    async def get(self, partition: Partition, sort: bytes) -> Record | None: ...

    async def write(self, partition: Partition, changes: Sequence[Put | Delete]) -> None: ...

    async def query(
        self, partition: Partition, *, after: bytes = b"", before: bytes = b"", limit: int, descending: bool = False
    ) -> Sequence[Record]: ...


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log was at one moment. Kept elsewhere, it convicts a log that was put back or rewritten since."""

    count: int
    root: bytes


class Verified(msgspec.Struct, frozen=True):
    """A chain that holds: how many entries it has, and the Merkle root over them."""

    count: int
    root: bytes


class Batch:
    """Up to ``BATCH`` entries of one chain on their way into it, and where they were tried to be put."""

    __slots__ = ("chain", "entries", "tried")

    def __init__(self, chain: Chain, entries: Sequence[Entry]) -> None:
        self.chain = chain
        self.entries = tuple(entries)
        self.tried: dict[int, bytes] = {}


class _HeadBody(msgspec.Struct, frozen=True):
    count: int
    last: str
    peaks: tuple[bytes, ...]


class _Head(NamedTuple):
    revision: int
    last: str
    frontier: Frontier


class ChainStore:
    """The chains in the platform's own room. Every method may raise the ``Store…`` and ``Key…`` errors."""

    def __init__(self, store: AuditStore) -> None:
        self._store = store

    async def append(self, batch: Batch) -> None:
        """Append a batch's entries in order, also beside other processes; ``seq`` and ``previous`` are given here.

        May be repeated with the same batch after any error: entries that were kept although an error was reported
        are not written again. Raises ``ConditionFailed`` where others were quicker fifty times, ``AuditBroken``
        where the head was tampered with.
        """
        for _ in range(_TRIES):
            head = await self._head(batch.chain)
            if await self._was_kept(batch):
                return
            puts, body = _linked(head, batch.entries)
            seq = head.frontier.count + 1
            batch.tried[seq] = puts[0].body
            try:
                await self._store.write(
                    _place(batch.chain), [*puts, Put(_HEAD, msgspec.json.encode(body), head.revision)]
                )
            except ConditionFailed:
                continue
            return
        raise ConditionFailed

    async def count(self, chain: Chain) -> int:
        """How many entries the chain has, as its head says."""
        return (await self._head(chain)).frontier.count

    async def read(self, chain: Chain, *, after: int = 0, limit: int = 100) -> Sequence[Entry]:
        """Entries with ``seq > after``, oldest first, at most 1,000. Verifies nothing but their seals."""
        return [
            _decoded(record.body, after + place + 1)
            for place, record in enumerate(await self._page(chain, after, min(limit, _PAGE)))
        ]

    async def verify(self, chain: Chain, *, kept: Checkpoint | None = None) -> Verified:
        """Read the whole chain and check every link, the head, and a checkpoint that was kept.

        Raises ``AuditBroken`` naming the first entry that does not hold. Entries that are appended meanwhile are
        left for the next time.
        """
        head = await self._head(chain)
        frontier, previous = Frontier(), ""
        reached = Checkpoint(0, EMPTY_ROOT)
        if head.revision == ABSENT and await self._page(chain, 0, 1):
            head = await self._head(chain)  # The first append may have come between the two questions.
            if head.revision == ABSENT:
                raise AuditBroken(entry=1, problem="the chain's head is missing")
        while frontier.count < head.frontier.count:
            limit = min(_PAGE, head.frontier.count - frontier.count)
            for body in await self._bodies(chain, frontier.count, limit):
                seq = frontier.count + 1
                entry = _decoded(body, seq)
                if entry.seq != seq:
                    raise AuditBroken(entry=seq, problem=f"entry {entry.seq} stands in its place")
                if entry.previous != previous:
                    raise AuditBroken(entry=seq, problem="it does not continue the entry before")
                previous = hashlib.sha256(body).hexdigest()
                frontier.append(leaf_hash(body))
                if kept is not None and frontier.count == kept.count:
                    reached = Checkpoint(frontier.count, frontier.root())
        if previous != head.last or frontier.root() != head.frontier.root():
            raise AuditBroken(entry=frontier.count, problem="the chain's head does not belong to it")
        if kept is not None and reached != kept:
            raise AuditBroken(
                entry=min(kept.count, frontier.count), problem="it is not the log of which the checkpoint was taken"
            )
        return Verified(frontier.count, frontier.root())

    async def prove_entry(self, chain: Chain, seq: int) -> tuple[Checkpoint, bytes, tuple[bytes, ...]]:
        """(checkpoint, the entry's leaf hash, inclusion proof) for :func:`nagaya.audit.merkle.includes` with
        ``index = seq - 1``. Raises ``NotFound``."""
        leaves = await self._leaves(chain)
        if not 0 < seq <= len(leaves):
            raise NotFound("page")
        return _checkpoint(leaves), leaves[seq - 1], inclusion_proof(leaves, seq - 1)

    async def prove_growth(self, chain: Chain, earlier: int) -> tuple[Checkpoint, tuple[bytes, ...]]:
        """(checkpoint, consistency proof) for :func:`nagaya.audit.merkle.continues` from a log of ``earlier``
        entries. Raises ``NotFound`` where the log was never that long."""
        leaves = await self._leaves(chain)
        if not 0 < earlier <= len(leaves):
            raise NotFound("page")
        return _checkpoint(leaves), consistency_proof(leaves, earlier)

    # --- inside -------------------------------------------------------------------------------------------------

    async def _head(self, chain: Chain) -> _Head:
        try:
            record = await self._store.get(_place(chain), _HEAD)
            if record is None:
                return _Head(ABSENT, "", Frontier())
            body = msgspec.json.decode(record.body, type=_HeadBody)
            return _Head(record.revision, body.last, Frontier(body.count, body.peaks))
        except (SealBroken, msgspec.MsgspecError, ValueError) as broken:
            # Also while appending: to go on from a head that was forged would lend it the next entries' weight.
            raise AuditBroken(entry=0, problem="the chain's head does not open") from broken

    async def _was_kept(self, batch: Batch) -> bool:
        """Whether an earlier try got through: its first entry then lies where it was put, link and all."""
        for seq, body in batch.tried.items():
            record = await self._store.get(_place(batch.chain), _sort(seq))
            if record is not None and record.body == body:
                return True
        return False

    async def _page(self, chain: Chain, after: int, limit: int) -> Sequence[Record]:
        return await self._store.query(
            _place(chain), after=_sort(after), before=_ENTRIES_END, limit=max(1, limit), descending=False
        )

    async def _bodies(self, chain: Chain, after: int, limit: int) -> list[bytes]:
        """The stored bytes of entries ``after + 1 …``, all ``limit`` of them, or ``AuditBroken``."""
        try:
            page = await self._page(chain, after, limit)
        except SealBroken:
            # One of them does not open: ask one by one, to say which.
            for seq in range(after + 1, after + limit + 1):
                try:
                    await self._store.get(_place(chain), _sort(seq))
                except SealBroken as broken:
                    raise AuditBroken(entry=seq, problem="it does not open") from broken
            raise
        bodies = []
        for place, record in enumerate(page):
            if record.sort != _sort(after + place + 1):
                raise AuditBroken(entry=after + place + 1, problem="it is missing")
            bodies.append(record.body)
        if len(bodies) < limit:
            raise AuditBroken(entry=after + len(bodies) + 1, problem="it is missing")
        return bodies

    async def _leaves(self, chain: Chain) -> list[bytes]:
        count = await self.count(chain)
        leaves: list[bytes] = []
        while len(leaves) < count:
            limit = min(_PAGE, count - len(leaves))
            leaves += [leaf_hash(body) for body in await self._bodies(chain, len(leaves), limit)]
        return leaves


def _place(chain: Chain) -> Partition:
    return Partition(COLLECTION, chain)


def _sort(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def _linked(head: _Head, entries: Sequence[Entry]) -> tuple[list[Put], _HeadBody]:
    """The entries as they follow this head, and the head that follows them."""
    frontier, last = head.frontier.copy(), head.last
    puts = []
    for entry in entries:
        body = msgspec.json.encode(msgspec.structs.replace(entry, seq=frontier.count + 1, previous=last))
        puts.append(Put(_sort(frontier.count + 1), body))
        last = hashlib.sha256(body).hexdigest()
        frontier.append(leaf_hash(body))
    return puts, _HeadBody(frontier.count, last, frontier.peaks)


def _decoded(body: bytes, seq: int) -> Entry:
    try:
        return msgspec.json.decode(body, type=Entry)
    except msgspec.MsgspecError as broken:
        raise AuditBroken(entry=seq, problem="it is no entry") from broken


def _checkpoint(leaves: Sequence[bytes]) -> Checkpoint:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return Checkpoint(frontier.count, frontier.root())
