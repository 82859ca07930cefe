"""What lies in the frames of a bundle: records, parts of blobs, and at the end what there must have been.

It knows no kind of record: whatever lies in a room is carried, also what a later release keeps there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from nagaya.errors import BundleBroken
from nagaya.keys.derivation import length_prefixed
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealed_store import Partition, SealedStore

BLOBS: Final = "blob"
LEFT_OUT: Final = (Partition("secret", "all"),)
"""What stays where it is: the keys of the tenant's accounts elsewhere."""

_ALL: Final = 1 << 256


class RecordEntry(msgspec.Struct, tag="r", array_like=True):
    """One record in clear."""

    collection: str
    name: str
    sort: bytes
    body: bytes


class BlobPart(msgspec.Struct, tag="b", array_like=True):
    """A piece of a blob, in order. ``seal`` names its writing, which the records that speak of the blob may hold."""

    name: str
    seal: str
    start: int
    data: bytes
    last: bool


class Tally(msgspec.Struct, array_like=True):
    """How many of a kind, and the sum of their SHA-256, which does not depend on their order."""

    count: int = 0
    digest: bytes = bytes(32)

    def add(self, *what: bytes | str) -> None:
        self.count += 1
        more = int.from_bytes(hashlib.sha256(length_prefixed(*what)).digest(), "big")
        self.digest = ((int.from_bytes(self.digest, "big") + more) % _ALL).to_bytes(32, "big")


class Trailer(msgspec.Struct, tag="t", array_like=True):
    """The last frame: everything that the bundle holds, by kind, and the ``settings`` by which it is kept."""

    kinds: dict[str, Tally]
    left_out: dict[str, int]
    settings: dict[str, int | None]


Entry = RecordEntry | BlobPart | Trailer


class Tallies:
    """Counts what passes by."""

    def __init__(self, kinds: Mapping[str, Tally] = MappingProxyType({})) -> None:
        self.kinds: dict[str, Tally] = dict(kinds)
        self._blob = hashlib.sha256()

    def add(self, entry: RecordEntry | BlobPart) -> None:
        """Count an entry; of a blob's parts the last counts. Raises ``BundleBroken`` for parts out of order."""
        if isinstance(entry, RecordEntry):
            self._of(entry.collection).add(entry.collection, entry.name, entry.sort, entry.body)
            return
        if entry.start == 0:
            self._blob = hashlib.sha256()
        self._blob.update(entry.data)
        if entry.last:
            self._of(BLOBS).add(entry.name, entry.seal, self._blob.digest())

    def _of(self, kind: str) -> Tally:
        return self.kinds.setdefault(kind, Tally())


class BundleRoom(Protocol):
    """The room that is exported or filled."""

    @property
    def records(self) -> SealedStore: ...

    async def blobs(self) -> SealedBlobs: ...


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def packed(entries: list[Entry]) -> bytes:
    """The body of a frame."""
    return _encode(entries)


def unpacked(body: bytes) -> list[Entry]:
    """The entries of a frame. Raises ``BundleBroken`` where a later release wrote what this one does not know."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        raise BundleBroken("newer") from None
