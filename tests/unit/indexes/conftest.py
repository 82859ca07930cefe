from __future__ import annotations

import pytest

from nagaya.blobs.blob_store import Blobs
from nagaya.indexes.open_index import IndexMemory, OpenIndex
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealer import Sealer
from nagaya.testing.blobs import MemoryBlobs, parts_of
from nagaya.testing.clock import ManualClock
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions


class Rooms:
    """Rooms of one process: one key service, one memory, a storage each."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.keys = MemoryKeys()
        self.versions = MemoryKeyVersions()
        self.memory = IndexMemory()
        self.bare: dict[str, MemoryBlobs] = {}
        self.keyrings: dict[str, Keyring] = {}
        self.reads: list[str] = []

    async def blobs(self, room: str) -> SealedBlobs:
        if room not in self.bare:
            await self.versions.rotate(self.keys, room)
            self.bare[room] = MemoryBlobs()
            self.keyrings[room] = Keyring(room, self.keys, self.versions, self.clock)
        return SealedBlobs(Blobs(self.bare[room]), Sealer(room, self.keyrings[room]))

    async def keep(self, room: str, name: str, content: bytes) -> None:
        await (await self.blobs(room)).put(name, parts_of(content))

    async def index(self, room: str) -> OpenIndex:
        blobs = await self.blobs(room)

        def read(name):
            self.reads.append(name)
            return blobs.read(name)

        return OpenIndex(read, self.keyrings[room], self.memory)


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()
