import pytest

from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import SealedStore
from nagaya.records.sealer import Sealer
from nagaya.stores.driver import Delete as StoredDelete
from nagaya.stores.driver import Put as StoredPut
from nagaya.stores.driver import Row
from nagaya.stores.memory import MemoryStore
from nagaya.stores.store import Store
from nagaya.testing.clock import ManualClock
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions


class House:
    """Rooms over one key service, each with its records and with the bare store beneath them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.keys = MemoryKeys()
        self.versions = MemoryKeyVersions()
        self.stores: dict[str, MemoryStore] = {}

    async def room(self, room: str, *, max_ciphers: int = 256) -> SealedStore:
        """A session on a room; each has its own keyring, as in another process."""
        if room not in self.versions.rooms:
            await self.versions.rotate(self.keys, room)
        bare = self.stores.setdefault(room, MemoryStore())
        return SealedStore(Store(bare), self.sealer(room, max_ciphers=max_ciphers))

    def sealer(self, room: str, *, max_ciphers: int = 256) -> Sealer:
        keyring = Keyring(room, self.keys, self.versions, self.clock)
        return Sealer(room, keyring, max_ciphers=max_ciphers)

    async def row(self, room: str, partition: str, sort: bytes) -> Row:
        """What really lies in the store."""
        row = await self.stores[room].get(partition, sort)
        assert row is not None
        return row

    async def plant(self, room: str, partition: str, sort: bytes, body: bytes) -> None:
        """Put bytes into the store behind our back, keeping the revision."""
        found = await self.stores[room].get(partition, sort)
        if found is not None:
            await self.stores[room].write(partition, [StoredDelete(sort, found.revision)])
        await self.stores[room].write(partition, [StoredPut(sort, body)])
        for revision in range(1, 1 if found is None else found.revision):
            await self.stores[room].write(partition, [StoredPut(sort, body, revision)])


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture(scope="session")
def make_house() -> type[House]:
    """For tests that make a house per example."""
    return House
