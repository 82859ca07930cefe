"""The strict gate in front of every signed token (JWS, RFC 7515, compact form only).

A token is read once, strictly, into a :class:`SignedToken`; a published key is read once, strictly, into a
:class:`VerificationKey`; :func:`check_signature` brings the two together. Whatever is doubtful is refused: the RFCs
allow much that no honest issuer sends and that forgers have used.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec
from joserfc import jws as joserfc_jws
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

from nagaya.errors import TokenRefused

TOKEN_LIMIT_BYTES: Final = 16 * 1024
"""No token is read past this length."""

RSA_LEAST_BITS: Final = 2048
RSA_MOST_BITS: Final = 8192
"""A larger modulus only costs time, which is what whoever publishes one would be after."""

KEY_SET_LIMIT: Final = 100
"""No honest issuer publishes more keys at once."""

_SEGMENT: Final = re.compile(rb"[A-Za-z0-9_-]+")
_KEYS_BY_ADDRESS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64"})
_KEY_ID_LIMIT: Final = 256
# Characters that may end a segment whose length is 2 or 3 modulo 4: the unused low bits must be zero.
_LAST_OF_TWO: Final = frozenset(b"AQgw")
_LAST_OF_THREE: Final = frozenset(b"AEIMQUYcgkosw048")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


class Algorithm(msgspec.Struct, frozen=True):
    """A signature algorithm and the only key it goes with. ``curve`` is None for RSA."""

    name: str
    key_type: str
    curve: str | None = None


ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    known.name: known
    for known in (
        Algorithm("RS256", "RSA"),
        Algorithm("PS256", "RSA"),
        Algorithm("ES256", "EC", "P-256"),
        Algorithm("EdDSA", "OKP", "Ed25519"),
        Algorithm("Ed25519", "OKP", "Ed25519"),
    )
}
"""What a binding may allow (RFC 7518, 8037, 9864). All asymmetric: no key that verifies here can sign."""


class SignedToken(msgspec.Struct, frozen=True):
    """A token that is well formed. Nothing in it is true yet: no signature has been checked."""

    header: dict[str, Any]
    payload: bytes
    signing_input: bytes
    signature: bytes
    algorithm: str
    key_id: str


class VerificationKey(msgspec.Struct, frozen=True):
    """A published key that may check signatures. ``issuer`` is Entra's property of a key: whose tokens it signs."""

    key_id: str
    key: Key
    algorithm: str | None
    issuer: str | None


def read_object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate names, NaN or Infinity, at any depth. Raises ``TokenRefused``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            # Two readers that each take another one of the two is how a duplicate becomes a forgery.
            raise TokenRefused(f"{what}: a name occurs twice")
        return found

    def no_constant(name: str) -> None:
        raise TokenRefused(f"{what}: {name} is no JSON number")

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise TokenRefused(f"{what}: not JSON") from None
    if not isinstance(found, dict):
        raise TokenRefused(f"{what}: not a JSON object")
    return found


def _canonical(segment: bytes) -> bytes:
    """The bytes behind a base64url segment that is written in the only canonical way."""
    remainder = len(segment) % 4
    if not _SEGMENT.fullmatch(segment) or remainder == 1:
        raise TokenRefused("segment is not base64url")
    if (remainder == 2 and segment[-1] not in _LAST_OF_TWO) or (remainder == 3 and segment[-1] not in _LAST_OF_THREE):
        raise TokenRefused("segment is not canonical base64url")
    return binascii.a2b_base64(segment.translate(_URL_SAFE) + b"=" * (-remainder % 4))


def read_token(raw: str) -> SignedToken:
    """Take a compact token apart, strictly. Checks form only. Raises ``TokenRefused``; may be repeated."""
    if len(raw) > TOKEN_LIMIT_BYTES:
        raise TokenRefused("token is larger than 16 KiB")
    try:
        text = raw.encode("ascii")
    except UnicodeEncodeError:
        raise TokenRefused("token is not ASCII") from None
    segments = text.split(b".")
    if len(segments) != 3:
        raise TokenRefused("token does not have three segments")
    header_text, payload, signature = map(_canonical, segments)
    header = read_object(header_text, "header")
    if not _KEYS_BY_ADDRESS.isdisjoint(header):
        # A header that brings or points to its own key, or that changes how the token is read.
        raise TokenRefused(f"header names {sorted(_KEYS_BY_ADDRESS & header.keys())[0]}")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        raise TokenRefused("header has no alg")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= _KEY_ID_LIMIT:
        raise TokenRefused("header has no kid")
    return SignedToken(header, payload, text[: -len(segments[2]) - 1], signature, algorithm, key_id)


def read_key(jwk: object) -> VerificationKey | None:
    """A published key (RFC 7517) that may check signatures, or None where it may not: wrong use, weak, broken,
    without id, or with its private half in the open."""
    if not isinstance(jwk, dict) or not all(isinstance(name, str) for name in jwk):
        return None
    key_id, algorithm, issuer = jwk.get("kid"), jwk.get("alg"), jwk.get("issuer")
    operations = jwk.get("key_ops")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= _KEY_ID_LIMIT:
        return None
    if "use" in jwk and jwk["use"] != "sig":
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    if not isinstance(algorithm, str | None) or not isinstance(issuer, str | None) or "d" in jwk:
        return None
    if jwk.get("kty") == "RSA" and not _is_sound_rsa(jwk):
        return None
    plain = {name: value for name, value in jwk.items() if not name.startswith("x5")}
    try:
        key = JWKRegistry.import_key(plain)
        key.check_use("sig")
        key.check_key_op("verify")
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return VerificationKey(key_id, key, algorithm, issuer)


def read_keys(jwks: Mapping[str, Any]) -> dict[str, VerificationKey]:
    """The usable keys of a published set (RFC 7517 §5) by id. Unusable ones are left out, as the RFC asks.

    An id that two different keys claim belongs to neither; a set that mixes secret keys with public ones is used
    not at all, since a published secret is none. Raises ``TokenRefused`` where it is no key set.
    """
    listed = jwks.get("keys")
    if not isinstance(listed, list) or len(listed) > KEY_SET_LIMIT:
        raise TokenRefused("key set: no list of keys, or too long a one")
    entries = [entry for entry in listed if isinstance(entry, dict)]
    types = {entry.get("kty") if isinstance(entry.get("kty"), str) else None for entry in entries}
    if "oct" in types and len(types) > 1:
        return {}
    first: dict[object, dict[str, Any]] = {}
    disputed: set[str] = set()
    for entry in entries:
        key_id = entry.get("kid")
        if isinstance(key_id, str) and first.setdefault(key_id, entry) != entry:
            disputed.add(key_id)
    keys = map(read_key, entries)
    return {key.key_id: key for key in keys if key is not None and key.key_id not in disputed}


def check_signature(
    token: SignedToken,
    key: VerificationKey,
    allowed: Collection[str],
    known: Mapping[str, Algorithm] = ALGORITHMS,
) -> None:
    """Raise ``TokenRefused`` unless ``key`` signed the token with an algorithm of ``allowed`` that suits the key."""
    algorithm = known.get(token.algorithm)
    if algorithm is None or token.algorithm not in allowed:
        raise TokenRefused("algorithm is not allowed")
    if key.algorithm is not None and key.algorithm != token.algorithm:
        raise TokenRefused("key is for another algorithm")
    if key.key.key_type != algorithm.key_type or key.key.get("crv") != algorithm.curve:
        raise TokenRefused("key does not suit the algorithm")
    model = joserfc_jws.JWSRegistry.algorithms[algorithm.name]
    try:
        model.check_key(key.key)
        good = model.verify(token.signing_input, token.signature, key.key)
    except (JoseError, ValueError, TypeError):
        good = False
    if not good:
        raise TokenRefused("signature does not verify")


# --- RSA keys ----------------------------------------------------------------------------------------------------


def _is_sound_rsa(jwk: Mapping[str, Any]) -> bool:
    try:
        modulus, exponent = (int.from_bytes(_canonical(jwk[part].encode("ascii"))) for part in ("n", "e"))
    except (KeyError, AttributeError, ValueError, TokenRefused):
        return False
    if not RSA_LEAST_BITS <= modulus.bit_length() <= RSA_MOST_BITS:
        return False
    return modulus % 2 == 1 and exponent % 2 == 1 and 3 <= exponent < 1 << 33 and not _has_roca_marks(modulus)


def _subgroup_of_65537(prime: int) -> frozenset[int]:
    found, power = set(), 1
    while power not in found:
        found.add(power)
        power = power * 65537 % prime
    return frozenset(found)


def _odd_primes(limit: int) -> Iterable[int]:
    return (n for n in range(3, limit, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2)))


_ROCA: Final = tuple((prime, _subgroup_of_65537(prime)) for prime in _odd_primes(168))


def _has_roca_marks(modulus: int) -> bool:
    """Whether the modulus came from the generator whose keys can be factored (CVE-2017-15361): modulo every small
    prime it is then a power of 65537. A sound modulus shows that by chance once in about 2^154."""
    return all(modulus % prime in powers for prime, powers in _ROCA)
