"""The only place that seals and opens: a room's ciphers, each only as long as the key it comes from."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from nagaya.keys.keyring import Keyring
from nagaya.keys.tenant_key import TenantKey
from nagaya.records.envelope import NONCE_BYTES, PartitionCipher, key_version

MAX_CIPHERS: Final = 256
"""Ciphers kept per room, about 2 KB each: the partitions a busy tenant works on at one time."""

_COLLECTION: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Partition(NamedTuple):
    """A place that is read as one range: a conversation, a user's list, a file. The store sees
    ``collection/name``, so a collection has no slash: letters ``a-z``, digits, ``_`` and ``-``."""

    collection: str
    name: str


class Sealer:
    """Seals and opens records of one room. To be used in one event loop.

    The ``held`` methods never wait and give None where the key must be fetched first; the others fetch it. A cipher
    must be used before the next ``await``: after it, the key may have been withdrawn.
    """

    def __init__(self, room: str, keyring: Keyring, *, max_ciphers: int = MAX_CIPHERS) -> None:
        self.room = room
        self.keyring = keyring
        self._max_ciphers = max_ciphers
        self._ciphers: OrderedDict[tuple[str, int, Partition], tuple[TenantKey, PartitionCipher]] = OrderedDict()
        keyring.when_dropped(self._ciphers.clear)

    # --- records ----------------------------------------------------------------------------------------------

    def held_to_seal(self, partition: Partition, seals: int = 1) -> PartitionCipher | None:
        """The partition's cipher under the active key, and ``seals`` uses of it counted."""
        key = self.keyring.held()
        if key is None:
            return None
        self.keyring.count(key, seals)
        return self._cipher("record", key, partition)

    async def to_seal(self, partition: Partition, seals: int = 1) -> PartitionCipher:
        """As :meth:`held_to_seal`, fetching the key. Raises what :meth:`Keyring.active` raises, ``KeyExhausted``."""
        key = await self.keyring.active()
        self.keyring.count(key, seals)
        return self._cipher("record", key, partition)

    def held_to_open(self, partition: Partition, sealed: bytes) -> PartitionCipher | None:
        """The cipher under the key version that the envelope names. Raises ``SealBroken`` where it is no envelope."""
        key = self.keyring.held(key_version(sealed))
        return None if key is None else self._cipher("record", key, partition)

    async def to_open(self, partition: Partition, sealed: bytes) -> PartitionCipher:
        """As :meth:`held_to_open`, fetching the key."""
        return self._cipher("record", await self.keyring.version(key_version(sealed)), partition)

    def cipher_of(self, key: TenantKey, partition: Partition) -> PartitionCipher:
        """The partition's cipher under a key that the keyring has just given out."""
        return self._cipher("record", key, partition)

    async def seal(self, partition: Partition, sort: bytes, revision: int, body: bytes) -> bytes:
        """The envelope of one body. Repeating it gives another envelope of the same body."""
        cipher = self.held_to_seal(partition) or await self.to_seal(partition)
        return cipher.seal(sort, revision, body, os.urandom(NONCE_BYTES))

    async def open(self, partition: Partition, sort: bytes, revision: int, sealed: bytes) -> bytes:
        """The body of one envelope. Raises ``SealBroken`` for anything sealed elsewhere, or nowhere."""
        cipher = self.held_to_open(partition, sealed) or await self.to_open(partition, sealed)
        return cipher.open(sort, revision, sealed)

    # --- cursors ----------------------------------------------------------------------------------------------

    async def cursor_cipher(self, sealed: bytes | None) -> PartitionCipher:
        """The cipher of page cursors, whose key opens nothing else (``None``: to seal one)."""
        if sealed is None:
            key = self.keyring.held() or await self.keyring.active()
            self.keyring.count(key, 1)
        else:
            version = key_version(sealed)
            key = self.keyring.held(version) or await self.keyring.version(version)
        return self._cipher("cursor", key, _CURSORS)

    def drop_keys(self) -> None:
        """Forget every key and cipher now. The next use fetches the key again."""
        self.keyring.drop()
        self._ciphers.clear()

    # --- inside -----------------------------------------------------------------------------------------------

    def _cipher(self, purpose: str, key: TenantKey, partition: Partition) -> PartitionCipher:
        place = (purpose, key.version, partition)
        found = self._ciphers.get(place)
        # The same version may be fetched anew as another object; what came from the former has ended with it.
        if found is not None and found[0] is key:
            self._ciphers.move_to_end(place)
            return found[1]
        if not _COLLECTION.fullmatch(partition.collection):
            raise ValueError(f"not a collection: {partition.collection!r}")
        derived = key.derive(purpose, partition.collection, partition.name)
        cipher = PartitionCipher(derived, key.version, self.room, partition.collection, partition.name)
        self._ciphers[place] = (key, cipher)
        if len(self._ciphers) > self._max_ciphers:
            self._ciphers.popitem(last=False)
        return cipher


_CURSORS: Final = Partition("cursor", "")


_drawn: Final[list[bytes]] = []
"""Nonces that were drawn from the system and not used yet. Taking one off is atomic, so no two threads get the same."""
_DRAWN_AT_ONCE: Final = 256
# A child process must not use what its parent will use too.
os.register_at_fork(after_in_child=_drawn.clear)


def fresh_nonce() -> bytes:
    """A nonce that nobody else gets. Drawn from the system 256 at a time: a call to it hands the interpreter to other
    threads, and with many of them committing it takes long to come back."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            _drawn.extend(nonces(_DRAWN_AT_ONCE))


def nonces(count: int) -> Iterable[bytes]:
    """Fresh nonces for one batch, from one call to the system."""
    raw = os.urandom(NONCE_BYTES * count)
    return (raw[at : at + NONCE_BYTES] for at in range(0, len(raw), NONCE_BYTES))
