"""API keys: ``nk_<key id>_<secret>``, shown once, stored as a SHA-256.

The secret has 256 random bits, so a plain hash keeps it: there is nothing to guess. Its last six characters are a
checksum, which tells a typing mistake without a look-up.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import zlib
from collections.abc import Callable, Collection
from typing import Final, Protocol

from nagaya.errors import InvalidValue, TokenRefused
from nagaya.tenancy.bindings import ApiKeyRecord
from nagaya.tenancy.principal import ALL_SCOPES, Principal, Provider, Role, Scope

PREFIX: Final = "nk_"
ISSUER: Final = "api-key"
"""The ``issuer`` of a principal that came with an API key."""
DEFAULT_LIFETIME_S: Final = 365 * 86_400
LONGEST_LIFETIME_S: Final = 10 * 365 * 86_400

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_BYTES: Final = 12
_ID_LENGTH: Final = 17
_SECRET_BYTES: Final = 32
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_FORM: Final = re.compile(
    rf"nk_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECK_LENGTH}}}", re.ASCII
)
_LENGTH: Final = len(PREFIX) + _ID_LENGTH + 1 + _SECRET_LENGTH + _CHECK_LENGTH


class ApiKeyDirectory(Protocol):
    """The part of the registry that this needs."""

    async def api_key(self, key_id: str) -> ApiKeyRecord | None: ...


def create(
    *,
    tenant_id: str | None,
    name: str,
    user_id: str,
    role: Role,
    now_us: int,
    scopes: Collection[Scope] = ALL_SCOPES,
    lifetime_s: int = DEFAULT_LIFETIME_S,
    entropy: Callable[[int], bytes] = os.urandom,
) -> tuple[str, ApiKeyRecord]:
    """A new key, to be shown once, and the record to be stored.

    An operator's key has no tenant and a tenant's key is not an operator's. Raises ``InvalidValue``.
    """
    if (role is Role.OPERATOR) != (tenant_id is None):
        raise _refuse("role", "an operator's key belongs to no tenant, and every other key to one")
    if not 0 < lifetime_s <= LONGEST_LIFETIME_S:
        raise _refuse("lifetime_s", f"it lies between 1 and {LONGEST_LIFETIME_S} seconds")
    for at, value in (("name", name), ("user_id", user_id)):
        if not 0 < len(value) <= 200 or not value.isprintable():
            raise _refuse(at, "it has 1 to 200 printable characters")
    if not scopes:
        raise _refuse("scopes", "a key has at least one scope")
    key_id = _base62(entropy(_ID_BYTES), _ID_LENGTH)
    body = f"{PREFIX}{key_id}_{_base62(entropy(_SECRET_BYTES), _SECRET_LENGTH)}"
    shown_once = body + _checksum(body)
    record = ApiKeyRecord(
        key_id=key_id,
        tenant_id=tenant_id,
        name=name,
        user_id=user_id,
        role=role,
        scopes=tuple(sorted(set(scopes))),
        sha256=hashlib.sha256(shown_once.encode("ascii")).digest(),
        created_at_us=now_us,
        expires_at_us=now_us + lifetime_s * 1_000_000,
    )
    return shown_once, record


def looks_like_key(raw: str) -> bool:
    """Whether this is meant to be an API key, well written or not."""
    return raw.startswith(PREFIX)


def key_id_of(text: str) -> str:
    """The public id in a well-written key. Raises ``TokenRefused`` for a typing mistake; looks nothing up."""
    match = _FORM.fullmatch(text) if len(text) == _LENGTH else None
    if match is None or not hmac.compare_digest(_checksum(text[:-_CHECK_LENGTH]), text[-_CHECK_LENGTH:]):
        raise TokenRefused("API key is not well formed")
    return match[1]


async def verify(text: str, directory: ApiKeyDirectory, now_us: int) -> Principal:
    """Who the key speaks for. Raises ``TokenRefused`` for one that is unknown, wrong, revoked or expired.

    All four take the same path, and the secret is compared in constant time.
    """
    record = await directory.api_key(key_id_of(text))
    digest = hashlib.sha256(text.encode("ascii")).digest()
    is_right = hmac.compare_digest(digest, bytes(len(digest)) if record is None else record.sha256)
    if record is None or not is_right:
        raise TokenRefused("API key is unknown")
    if record.revoked_at_us is not None:
        raise TokenRefused("API key is revoked")
    if now_us >= record.expires_at_us:
        raise TokenRefused("API key has expired")
    if (record.role is Role.OPERATOR) != (record.tenant_id is None):
        raise TokenRefused("API key's role does not go with its tenant")
    return Principal(
        provider=Provider.API_KEY,
        issuer=ISSUER,
        user_id=record.user_id,
        tenant_id=record.tenant_id,
        role=record.role,
        scopes=frozenset(record.scopes),
        issued_at_us=record.created_at_us,
        expires_at_us=record.expires_at_us,
        token_id=record.key_id,
        username=record.name,
        is_application=True,
    )


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")).to_bytes(4), _CHECK_LENGTH)


def _base62(data: bytes, length: int) -> str:
    number, digits = int.from_bytes(data), []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _refuse(at: str, detail: str) -> InvalidValue:
    return InvalidValue(param=at, at=at, detail=detail)
