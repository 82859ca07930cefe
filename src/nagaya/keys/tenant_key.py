"""One version of one tenant's key, unwrapped, for as long as it may be used."""

from __future__ import annotations

from hmac import compare_digest
from math import inf
from typing import Final, NamedTuple

from nagaya.errors import KeyUnreachable, SealBroken
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.driver import KEY_BYTES

COMMITMENT_BYTES: Final = 28
"""224 bits: two keys with one commitment cost 2¹¹² work to find."""


class DerivedKey(NamedTuple):
    """A key for one purpose, and a value that commits to it: nobody finds another key with the same commitment."""

    key: bytes
    commitment: bytes

    def __repr__(self) -> str:
        return "DerivedKey(…)"


class TenantKey:
    """A key version in memory. Only a keyring makes one, extends its time and ends it.

    ``expires_s`` is on the monotonic clock; whoever keeps something derived from a key keeps the key beside it and
    asks the keyring, not the clock, whether it still holds. ``left`` is how many seals the keyring has granted and
    not yet counted.
    """

    __slots__ = ("_extracted", "expires_s", "granted", "left", "refresh_s", "room", "uses", "version")

    def __init__(self, room: str, version: int, plain: bytes) -> None:
        if len(plain) != KEY_BYTES:
            raise SealBroken
        self.room = room
        self.version = version
        self.refresh_s = -inf
        self.expires_s = -inf
        self.uses = 0
        self.granted = 0
        self.left = 0
        self._extracted = extract(plain)

    def derive(self, purpose: str, *parts: str) -> DerivedKey:
        """The key for ``purpose`` at a place such as (collection, partition). The same arguments give the same key.

        Raises ``KeyUnreachable`` once the key was forgotten.
        """
        if not self._extracted:
            raise KeyUnreachable
        info = length_prefixed("nagaya", purpose, self.room, *parts)
        derived = expand(self._extracted, info, KEY_BYTES + COMMITMENT_BYTES)
        return DerivedKey(derived[:KEY_BYTES], derived[KEY_BYTES:])

    def is_alive(self, now_s: float) -> bool:
        """Whether it may be used at this moment of the monotonic clock."""
        return now_s < self.expires_s

    def is_same(self, plain: bytes) -> bool:
        """Whether ``plain`` is this key, compared in constant time. Never true of a forgotten key."""
        return compare_digest(self._extracted, extract(plain))

    def forget(self) -> None:
        """Let go of the key. Everything that asks from now on is told that it is past its time."""
        self.refresh_s = self.expires_s = -inf
        self._extracted = b""

    def __repr__(self) -> str:
        return f"TenantKey(room={self.room!r}, version={self.version})"
