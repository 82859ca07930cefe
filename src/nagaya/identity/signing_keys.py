"""The local issuer's signing keys: a small ring that all processes share and that turns over by itself.

A key is published before it signs, so that nobody meets a signature whose key they cannot know yet, and stays
published after it has signed its last token, until that token has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import msgspec
from joserfc.jwk import ECKey

ROTATION_S: Final = 30 * 86_400
"""How long a key signs."""
AHEAD_S: Final = 86_400
"""How long before it signs a key is published: more than the hour for which others may cache key sets."""
LONGEST_LIFETIME_S: Final = 31 * 86_400
"""No local token lives longer, so a key is kept for this long after it has signed its last one."""
_GRACE_S: Final = 3600
_US: Final = 1_000_000


class SigningKeyStore(Protocol):
    """Where the ring is kept, sealed. Wiring gives it a record of the platform's own room."""

    async def load(self) -> tuple[bytes, int] | None:
        """The ring and its revision (from 1), or None where there is none yet."""
        ...

    async def save(self, content: bytes, *, expect: int) -> None:
        """Replace the ring if its revision is ``expect`` (0: there is none). Raises ``ConditionFailed``."""
        ...


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """One ES256 key with its private half, and from when it signs. Times are UTC microseconds."""

    key_id: str
    jwk: dict[str, str]
    created_at_us: int
    signs_from_us: int

    def public_jwk(self) -> dict[str, str]:
        """The key as it is published (RFC 7517): without its private half."""
        return {name: value for name, value in self.jwk.items() if name != "d"}


class Ring(msgspec.Struct, frozen=True):
    """All keys by the moment from which they sign, earliest first."""

    keys: tuple[SigningKey, ...] = ()

    def signing(self, now_us: int) -> SigningKey | None:
        """The key that signs now: the latest whose turn has come."""
        due = [key for key in self.keys if key.signs_from_us <= now_us]
        return due[-1] if due else None


def turned(ring: Ring, fresh: Callable[[], SigningKey], *, now_us: int) -> Ring:
    """The ring as it should be now. Gives back ``ring`` itself where nothing is to be done.

    ``fresh`` makes an unused key, whose times are set here. A key's last token has ended ``LONGEST_LIFETIME_S`` after
    the next one began to sign.
    """
    keys = ring.keys
    last = keys[-1] if keys else None
    if last is None:
        keys = (_at(fresh(), now_us, now_us),)
    elif now_us >= last.signs_from_us + (ROTATION_S - AHEAD_S) * _US:
        keys = (*keys, _at(fresh(), now_us, now_us + AHEAD_S * _US))
    ended_us = now_us - (LONGEST_LIFETIME_S + _GRACE_S) * _US
    follows = (*(key.signs_from_us for key in keys[1:]), now_us)
    kept = tuple(key for key, next_us in zip(keys, follows, strict=True) if next_us > ended_us)
    return ring if kept == ring.keys else Ring(kept)


def _at(key: SigningKey, created_at_us: int, signs_from_us: int) -> SigningKey:
    return msgspec.structs.replace(key, created_at_us=created_at_us, signs_from_us=signs_from_us)


def new_signing_key() -> SigningKey:
    """A fresh ES256 key (P-256), its id the thumbprint of RFC 7638. Its times are still to be set."""
    key = ECKey.generate_key("P-256")
    key_id = key.thumbprint()
    jwk = cast(dict[str, str], dict[str, Any](key.as_dict(private=True)))
    jwk |= {"kid": key_id, "use": "sig", "alg": "ES256"}
    return SigningKey(key_id=key_id, jwk=jwk, created_at_us=0, signs_from_us=0)


def ring_bytes(ring: Ring) -> bytes:
    """The ring as it is stored (sealed by whoever stores it)."""
    return msgspec.json.encode(ring)


def read_ring(content: bytes) -> Ring:
    """The ring back. Raises ``msgspec.ValidationError`` or ``DecodeError`` where it is none."""
    return msgspec.json.decode(content, type=Ring)
