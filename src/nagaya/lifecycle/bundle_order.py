"""Which entries a bundle may hold, and in which order: those that an export writes, as it writes them.

Whoever can open a bundle can make one like it and sign it, so nothing in it is taken for granted.
"""

from __future__ import annotations

import re
from typing import Final

from nagaya.blobs.names import check_name
from nagaya.errors import BundleBroken, InvalidValue
from nagaya.keys.driver import KEY_BYTES
from nagaya.lifecycle.bundle_entries import LEFT_OUT, BlobPart, Entry, RecordEntry, Trailer
from nagaya.records.blind_index import PARTITION as INDEX_KEY
from nagaya.stores.store import MAX_PARTITION, MAX_SORT

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SEAL: Final = re.compile(r"[0-9a-f]{32}")
_ROOM: Final = re.compile(rb"[a-z0-9_-]{1,64}")


class EntryOrder:
    """Watches the entries of one bundle pass: records by place, then blobs part by part, then the trailer."""

    def __init__(self) -> None:
        self._after: tuple[str, bytes] | None = None
        self._part: BlobPart | None = None
        self._is_over = False

    def check(self, entry: Entry, *, in_last: bool) -> None:
        """Raise ``BundleBroken`` unless the entry may follow those before it; ``in_last``: in the last frame."""
        if self._is_over:
            raise BundleBroken("order")
        if isinstance(entry, RecordEntry):
            _check_record(entry)
            place = f"{entry.collection}/{entry.name}", entry.sort
            if self._part is not None or (self._after is not None and place <= self._after):
                raise BundleBroken("order")
            self._after = place
        elif isinstance(entry, BlobPart):
            _check_part(entry)
            if not self._follows(entry):
                raise BundleBroken("order")
            self._part = entry
        else:
            _check_kinds(entry)
            if not in_last or (self._part is not None and not self._part.last):
                raise BundleBroken("order")
            self._is_over = True

    def _follows(self, part: BlobPart) -> bool:
        """Whether a part goes on where the one before it ended, or begins another blob."""
        before = self._part
        if before is None or before.last:
            return part.start == 0
        return (part.name, part.seal, part.start) == (before.name, before.seal, before.start + len(before.data))


def _check_record(entry: RecordEntry) -> None:
    partition = f"{entry.collection}/{entry.name}"
    if (
        _KIND.fullmatch(entry.collection) is None
        or not (entry.name and partition.isascii() and len(partition) <= MAX_PARTITION)
        or not 0 < len(entry.sort) <= MAX_SORT
    ):
        raise BundleBroken("newer")
    if (entry.collection, entry.name) in LEFT_OUT:
        raise BundleBroken("altered")
    if (entry.collection, entry.name) == INDEX_KEY and _ROOM.fullmatch(entry.body[KEY_BYTES:]) is None:
        # A room with half an index key would open and then find nothing.
        raise BundleBroken("altered")


def _check_part(part: BlobPart) -> None:
    try:
        check_name(part.name)
    except InvalidValue:
        raise BundleBroken("newer") from None
    if _SEAL.fullmatch(part.seal) is None:
        raise BundleBroken("newer")


def _check_kinds(trailer: Trailer) -> None:
    """What a trailer counts is shown to whoever imports it: names of kinds and nothing else."""
    if not all(_KIND.fullmatch(kind) for kind in (*trailer.kinds, *trailer.left_out)):
        raise BundleBroken("newer")
