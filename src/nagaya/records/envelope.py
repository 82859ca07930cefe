"""The envelope of a sealed record, and the cipher of one partition that makes and opens it.

::

    magic  suite  key version  nonce  commitment  ciphertext     tag
    2      1      4            12     28          as the body    16     = 63 bytes over the body

Suite 1 is AES-256-GCM with a random 96-bit nonce under a key derived by HKDF-SHA256; it is the only one.
"""

from __future__ import annotations

from hmac import compare_digest
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.errors import CommitmentBroken, SealBroken
from nagaya.keys.derivation import length_prefixed
from nagaya.keys.driver import KEY_BYTES
from nagaya.keys.tenant_key import COMMITMENT_BYTES, DerivedKey

MAGIC: Final = b"Ng"
SUITE: Final = 1
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SCHEMA_VERSION: Final = 1
"""The version of what lies inside an envelope; part of what is authenticated."""

_HEADER: Final = Struct(">2sBI")
_NONCE_AT: Final = _HEADER.size
_COMMITMENT_AT: Final = _NONCE_AT + NONCE_BYTES
HEAD_BYTES: Final = _COMMITMENT_AT + COMMITMENT_BYTES
"""What stands before the ciphertext."""
OVERHEAD_BYTES: Final = HEAD_BYTES + TAG_BYTES

# Revision and length of the sort key; the sort key itself follows, so that the whole stays unambiguous.
_PLACE: Final = Struct(">QI").pack


def aes_256_gcm(key: bytes) -> AESGCM:
    """The cipher of suite 1. Any other key length is refused with ``SealBroken``: AES-128 would be a downgrade."""
    if len(key) != KEY_BYTES:
        raise SealBroken
    return AESGCM(key)


def key_version(sealed: bytes) -> int:
    """The key version an envelope names. Raises ``SealBroken`` for whatever is no envelope of an allowed suite."""
    if len(sealed) < OVERHEAD_BYTES:
        raise SealBroken
    magic, suite, version = _HEADER.unpack_from(sealed)
    if magic != MAGIC or suite != SUITE:
        raise SealBroken
    return int(version)


class PartitionCipher:
    """Seals and opens the records of one place under one key version. Stateless after it is made."""

    __slots__ = ("_commitment", "_context", "_decrypt", "_encrypt", "header")

    def __init__(self, derived: DerivedKey, version: int, *place: str, schema: int = SCHEMA_VERSION) -> None:
        cipher = aes_256_gcm(derived.key)
        self.header = _HEADER.pack(MAGIC, SUITE, version)
        self._commitment = derived.commitment
        # What is the same for every record of the place is put together once.
        self._context = length_prefixed(self.header, *place, schema.to_bytes(4, "big"))
        self._encrypt = cipher.encrypt
        self._decrypt = cipher.decrypt

    def seal(self, sort: bytes, revision: int, body: bytes, nonce: bytes) -> bytes:
        """The envelope of ``body`` at its place. ``nonce``: 12 fresh random bytes, never used twice."""
        return (
            self.header
            + nonce
            + self._commitment
            + self._encrypt(nonce, body, self._context + _PLACE(revision, len(sort)) + sort)
        )

    def seal_parts(self, sort: bytes, revision: int, body: bytes, nonce: bytes) -> tuple[bytes, bytes]:
        """As :meth:`seal`, in two parts that follow each other: so a large ciphertext is not copied once more."""
        sealed = self._encrypt(nonce, body, self._context + _PLACE(revision, len(sort)) + sort)
        return self.header + nonce + self._commitment, sealed

    def open(self, sort: bytes, revision: int, sealed: bytes) -> bytes:
        """The body, or ``SealBroken`` for anything but an envelope that this cipher made for this place."""
        return self.open_parts(sort, revision, sealed[:HEAD_BYTES], sealed[HEAD_BYTES:])

    def open_parts(self, sort: bytes, revision: int, head: bytes, ciphertext: bytes) -> bytes:
        """As :meth:`open`, of an envelope in two parts: its first ``HEAD_BYTES``, and what follows them."""
        if len(head) != HEAD_BYTES or len(ciphertext) < TAG_BYTES or head[:_NONCE_AT] != self.header:
            raise SealBroken
        # Before decrypting: a ciphertext can be made to open under two keys, a commitment cannot.
        if not compare_digest(head[_COMMITMENT_AT:], self._commitment):
            raise CommitmentBroken
        try:
            return self._decrypt(
                head[_NONCE_AT:_COMMITMENT_AT], ciphertext, self._context + _PLACE(revision, len(sort)) + sort
            )
        except InvalidTag:
            raise SealBroken from None
