"""Records of one room as some work decoded them, so that a list which is read whole again is compared, not decoded.

A value is served only in place of a record that the store has just returned, that was opened under a key which may be
used at this moment, and that is byte for byte what the value was made of. So whatever another process changed or
deleted, and whatever was revoked, is never served; and what is kept goes with the room's key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import Partition, Record

LIMIT_BYTES: Final = 64 * 1024 * 1024
"""What one process keeps, all rooms together."""
WEIGHT: Final = 8
"""What a decoded record is taken to weigh, by the bytes of its body: as much as the heaviest, which are short memories
and long ones in Chinese characters."""

_T = TypeVar("_T")


class DecodedLimit:
    """How many bytes of decoded records a process keeps; the longest unused list goes first, whose ever it is."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._sizes: OrderedDict[tuple[Decoded, Partition], int] = OrderedDict()

    def _keep(self, owner: Decoded, partition: Partition, size_bytes: int) -> None:
        self._sizes[owner, partition] = size_bytes
        self.held_bytes += size_bytes
        while self.held_bytes > self._limit_bytes:
            self._let_go(*next(iter(self._sizes)))

    def _let_go(self, owner: Decoded, partition: Partition) -> None:
        self.held_bytes -= self._sizes.pop((owner, partition))
        del owner._held[partition]


class _Held(NamedTuple, Generic[_T]):
    body: bytes
    value: _T


class Decoded:
    """One room's decoded records, by partition. Each partition is read by one kind of work, with one ``decode``.

    What is given out is shared by everybody who reads the same record, and is never to be changed. Nothing here waits.
    """

    def __init__(self, keyring: Keyring, limit: DecodedLimit) -> None:
        self.drops = 0
        """How often everything was forgotten; to be asked for before the records are read."""
        self._limit = limit
        self._held: dict[Partition, dict[bytes, _Held[object]]] = {}
        keyring.when_dropped(self.drop)

    def values(
        self, partition: Partition, records: Sequence[Record], decode: Callable[[bytes], _T], *, drops: int
    ) -> list[_T]:
        """A value per record, in their order. ``records`` are all that are read of the partition, just now: others that
        were held are let go. Where a key was dropped since ``drops`` was asked for, nothing is kept."""
        before = self._held.get(partition, {})
        held: dict[bytes, _Held[object]] = {}
        values: list[_T] = []
        for record in records:
            known = before.get(record.sort)
            if known is None or known.body != record.body:
                known = _Held(record.body, decode(record.body))
            held[record.sort] = known
            values.append(known.value)  # type: ignore[arg-type]  # one decode a partition
        if partition in self._held:
            self._limit._let_go(self, partition)
        if held and drops == self.drops:
            self._held[partition] = held
            self._limit._keep(self, partition, WEIGHT * sum(len(each.body) for each in held.values()))
        return values

    def drop(self) -> None:
        """Forget everything now; what is being read at this moment will not be kept either."""
        self.drops += 1
        for partition in list(self._held):
            self._limit._let_go(self, partition)
