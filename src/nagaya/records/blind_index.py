"""Blind indexes: equality look-ups over values that the store must not read."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from nagaya.errors import ConditionFailed, Conflict
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.driver import KEY_BYTES
from nagaya.keys.tenant_key import TenantKey
from nagaya.records.envelope import NONCE_BYTES, key_version
from nagaya.records.sealer import Partition, Sealer
from nagaya.stores.driver import ABSENT
from nagaya.stores.store import Store

PARTITION: Final = Partition("index-key", "blind")
_STORED: Final = f"{PARTITION.collection}/{PARTITION.name}"
_SORT: Final = b"1"
_TRIES: Final = 3
_SHA256: Final = SHA256()


class BlindIndex:
    """HMACs keyed per tenant and field.

    The index key must not change when the tenant's key is rotated, or every look-up would miss. So it is neither
    derived from the active version (it changes) nor from the first (which could then never be destroyed): it is 256
    random bits of its own, kept as an ordinary sealed record of the room. The sweep re-seals it like any other
    record, a move or backup carries it along, and who cannot open the room's records cannot compute an index value.
    In memory it lives no longer than the tenant key that opened it.

    A room that was filled from a bundle goes on with the key of the room it came from, whose name lies behind the key
    in the record: so every blind value in what came along stays what it was.
    """

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer
        self._extracted = b""
        self._origin = sealer.room
        self._opener: TenantKey | None = None
        self._fields: dict[str, HMAC] = {}
        sealer.keyring.when_dropped(self.forget)

    async def blind(self, field: str, value: str) -> str:
        """64 hex digits: always the same for this tenant, field and value, and telling nothing of the value."""
        # The version that opened the key may not be asked for by anything else; asking keeps its age in check.
        opener = self._opener
        if opener is None or self._sealer.keyring.held(opener.version) is not opener:
            await self._fetch()
        keyed = self._fields.get(field)
        if keyed is None:
            info = length_prefixed("nagaya", "blind", self._origin, field)
            keyed = self._fields[field] = HMAC(expand(self._extracted, info, KEY_BYTES), _SHA256)
        sum_ = keyed.copy()
        sum_.update(value.encode("utf-8", "surrogatepass"))
        return sum_.finalize().hex()

    async def _fetch(self) -> None:
        for _ in range(_TRIES):
            row = await self._store.get(_STORED, _SORT)
            if row is not None:
                keyring = self._sealer.keyring
                version = key_version(row.body)
                opener = keyring.held(version) or await keyring.version(version)
                secret = self._sealer.cipher_of(opener, PARTITION).open(_SORT, row.revision, row.body)
                self._fields.clear()
                self._origin = secret[KEY_BYTES:].decode() or self._sealer.room
                self._extracted = extract(secret[:KEY_BYTES])
                self._opener = opener
                return
            cipher = self._sealer.held_to_seal(PARTITION) or await self._sealer.to_seal(PARTITION)
            fresh = cipher.seal(_SORT, 1, os.urandom(KEY_BYTES), os.urandom(NONCE_BYTES))
            with suppress(ConditionFailed):
                # Where somebody else was first, theirs is the index key; either way it is read back from the store.
                await self._store.put(_STORED, _SORT, fresh, ABSENT)
        raise Conflict

    def forget(self) -> None:
        """Let go of the index key and of everything derived from it."""
        self._opener = None
        self._extracted = b""
        self._fields.clear()


def carried(partition: Partition, body: bytes, room: str) -> bytes:
    """A record's body as it goes into another room: the index key together with the name of the room it was made in.
    May be repeated."""
    if partition != PARTITION or len(body) != KEY_BYTES:
        return body
    return body + room.encode()
