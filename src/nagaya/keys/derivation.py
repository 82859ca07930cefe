"""HKDF-SHA256 (RFC 5869) and the one way in which names become bytes: every part preceded by its length."""

from __future__ import annotations

from struct import Struct
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

_LENGTH: Final = Struct(">I")
_SHA256: Final = SHA256()


def length_prefixed(*parts: bytes | str) -> bytes:
    """The parts joined so that no two different lists give the same bytes: ``("a", "bc")`` is not ``("ab", "c")``.

    Text is UTF-8; a lone surrogate is kept, not refused, because a stranger may send one as a name.
    """
    pieces: list[bytes] = []
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        pieces.append(_LENGTH.pack(len(raw)))
        pieces.append(raw)
    return b"".join(pieces)


def extract(key: bytes, salt: bytes | None = None) -> bytes:
    """HKDF's first step: 32 uniform bytes from key material. Done once for a key that many keys are derived from."""
    return HKDF.extract(_SHA256, salt, key)


def expand(extracted: bytes, info: bytes, length: int) -> bytes:
    """HKDF's second step: ``length`` bytes for one purpose. Raises ``ValueError`` above 8,160 bytes."""
    return HKDFExpand(_SHA256, length, info).derive(extracted)
