import pytest

from nagaya.kernel.clock import SystemClock
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.records.values import PartitionValues
from nagaya.secrets.driver import SecretDriver
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.stores.memory import MemoryStore
from nagaya.stores.store import Store
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from nagaya.testing.secrets import SecretContract


async def _embedded(room: str) -> SecretDriver:
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, room)
    store = SealedStore(Store(MemoryStore()), Sealer(room, Keyring(room, keys, versions, SystemClock())))
    return EmbeddedSecrets(PartitionValues(store, Partition("secrets", "all")))


class TestEmbeddedSecrets(SecretContract):
    @pytest.fixture
    async def secrets(self) -> SecretDriver:
        return await _embedded("acme")

    @pytest.fixture
    async def other_secrets(self) -> SecretDriver:
        return await _embedded("other")
