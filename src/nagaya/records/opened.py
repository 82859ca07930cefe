"""Records opened lately, kept in this process so that a page read again is compared instead of decrypted.

A record is served from here only where the store has just returned the very same sealed bytes and revision, under a
key that may be used at this moment; so nothing altered, moved or revoked is ever served. What is kept goes with the
tenant's key.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from nagaya.records.sealer import Partition
from nagaya.stores.driver import PlainRow

LIMIT_BYTES: Final = 32 * 1024 * 1024
"""Sealed and opened bytes kept by one process, all tenants together."""
PARTITION_RECORDS: Final = 200
"""Records kept of one partition: the pages that a conversation's tail is read in."""
RECORD_BYTES: Final = 64 * 1024
"""A longer body is not kept; decrypting is then the smaller part of the work anyway."""


class Opened(NamedTuple):
    """A row as the store gave it, its body in clear, and the start of the envelopes of the key that opened it."""

    row: PlainRow
    body: bytes
    header: bytes


class OpenedRecords:
    """Opened records of a process by (room, partition) and place; the longest unused partition goes first."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._partitions: OrderedDict[tuple[str, Partition], dict[bytes, Opened]] = OrderedDict()
        self._sizes: dict[tuple[str, Partition], int] = {}
        self._rooms: dict[str, set[Partition]] = {}

    def of(self, room: str, partition: Partition) -> dict[bytes, Opened]:
        """What is kept of a partition, to be read only; empty where nothing is."""
        found = self._partitions.get((room, partition))
        if found is None:
            return {}
        self._partitions.move_to_end((room, partition))
        return found

    def keep(self, room: str, partition: Partition, sort: bytes, opened: Opened) -> None:
        """Keep a record that has just been opened."""
        size = len(opened.row[2]) + len(opened.body)
        if size > 2 * RECORD_BYTES:
            return
        place = room, partition
        records = self._partitions.get(place)
        if records is None:
            records = self._partitions[place] = {}
            self._sizes[place] = 0
            self._rooms.setdefault(room, set()).add(partition)
        before = records.pop(sort, None)
        if before is None and len(records) >= PARTITION_RECORDS:
            before = records.pop(next(iter(records)))
        records[sort] = opened
        grown = size - (len(before.row[2]) + len(before.body) if before is not None else 0)
        self._sizes[place] += grown
        self._bytes += grown
        while self._bytes > self._limit_bytes:
            oldest, _ = self._partitions.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)
            left = self._rooms[oldest[0]]
            left.remove(oldest[1])
            if not left:
                del self._rooms[oldest[0]]

    def drop(self, room: str) -> None:
        """Forget everything of one room."""
        for partition in self._rooms.pop(room, ()):
            del self._partitions[room, partition]
            self._bytes -= self._sizes.pop((room, partition))
