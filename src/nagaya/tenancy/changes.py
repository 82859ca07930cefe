"""Which fields of a tenant may be changed, and what they may be changed to. Decides; writes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from nagaya.errors import InvalidValue, UnknownParameter
from nagaya.tenancy.tenant import Tenant, TenantState

STARTING_STATES: Final = frozenset({TenantState.ONBOARDING, TenantState.TRIAL, TenantState.ACTIVE})

_ELSEWHERE: Final = {
    "id": "an id is for life; export the tenant and import it under another",
    "state": "states change by suspend, resume and delete",
    "epoch": "it rises by itself",
    "created_at_us": "it is the past",
    "parent": "a workspace stays in its tenant",
    "workspace": "an address is for life",
    "store": "data lies there; `nagaya tenant move` takes it along",
    "blobs": "files lie there; `nagaya tenant move` takes them along",
    "isolation": "a level changes with the data; `nagaya tenant move` does both",
    "key_service": "what is stored is sealed under it; `nagaya key rotate` changes keys",
}
_LISTS: Final = frozenset({"models", "regions", "hosts"})
_YES_NO: Final = frozenset({"mfa_required", "sso_required"})
_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
LONGEST_TOKEN_S: Final = 365 * 86_400
"""No tenant accepts a token that lives longer."""
LONGEST_DAYS: Final = 36_500
"""A hundred years: longer than anything is promised."""
_AHEAD_US: Final = 300 * 1_000_000
_YEAR_9999_US: Final = 253_402_300_799_000_000


def _refuse(at: str, detail: str) -> InvalidValue:
    return InvalidValue(param=at, at=at, detail=detail)


def parse_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as typed changes: ``none`` clears, lists are separated by commas, ``expires_at`` is an ISO
    8601 time (without an offset: UTC). Raises ``InvalidValue`` or ``UnknownParameter``."""
    parsed: dict[str, Any] = {}
    for key, text in texts.items():
        if key == "expires_at":
            try:
                when = None if text.lower() == "none" else datetime.fromisoformat(text)
            except ValueError:
                raise _refuse(key, "it is an ISO 8601 time such as 2027-04-01T00:00:00Z, or none") from None
            if when is not None and when.tzinfo is None:
                when = when.replace(tzinfo=UTC)
            parsed["expires_at_us"] = None if when is None else int(when.timestamp() * 1_000_000)
        elif key not in Tenant.__struct_fields__:
            raise UnknownParameter(key)
        elif key in _LISTS:
            parsed[key] = [] if text.lower() == "none" else [part.strip() for part in text.split(",")]
        elif key in _YES_NO:
            if text.lower() not in _WORDS:
                raise _refuse(key, "it is true or false")
            parsed[key] = _WORDS[text.lower()]
        elif key != "name" and text.lower() == "none":
            parsed[key] = None
        elif key.endswith(("_us", "_s", "_minute", "_days")):
            if not re.fullmatch(r"-?[0-9]{1,18}", text):
                raise _refuse(key, "it is a whole number")
            parsed[key] = int(text)
        else:
            parsed[key] = text
    return parsed


def changed_tenant(tenant: Tenant, changes: Mapping[str, Any], *, now_us: int) -> Tenant:
    """The tenant after the changes, one epoch later.

    Raises ``UnknownParameter`` for a field that does not exist and ``InvalidValue`` for one that changes otherwise
    or not to this value. Nothing may follow from a refused change.
    """
    for key in changes:
        if key not in Tenant.__struct_fields__:
            raise UnknownParameter(key)
        if key in _ELSEWHERE:
            raise _refuse(key, f"it cannot be set here: {_ELSEWHERE[key]}")
    fields = msgspec.structs.asdict(tenant) | dict(changes)
    for key, value in changes.items():
        try:
            # One at a time, so that the error can name the field.
            msgspec.convert(msgspec.structs.asdict(tenant) | {key: value}, Tenant)
        except (msgspec.ValidationError, ValueError) as wrong:
            raise _refuse(key, str(wrong).split(" - at")[0]) from None
    wanted = msgspec.structs.replace(msgspec.convert(fields, Tenant), epoch=tenant.epoch + 1)
    check_fields(wanted)
    if wanted.tokens_valid_from_us < tenant.tokens_valid_from_us:
        raise _refuse("tokens_valid_from_us", "it only rises: tokens that were refused stay refused")
    if wanted.tokens_valid_from_us > max(now_us + _AHEAD_US, tenant.tokens_valid_from_us):
        raise _refuse("tokens_valid_from_us", "it lies in the future and would lock everybody out")
    return wanted


def check_fields(tenant: Tenant) -> None:
    """Raise ``InvalidValue`` naming the field unless every field but the id holds something sensible."""
    if not 1 <= len(tenant.name) <= 200 or not tenant.name.isprintable() or not tenant.name.strip():
        raise _refuse("name", "it has 1 to 200 printable characters")
    if not 1 <= len(tenant.models) <= 16:
        raise _refuse("models", "a tenant has 1 to 16 models")
    for at, url in (
        ("store", tenant.store),
        ("key_service", tenant.key_service),
        *(("models", url) for url in tenant.models),
        *((("blobs", tenant.blobs),) if tenant.blobs is not None else ()),
    ):
        _check_url(at, url)
    if tenant.parent is not None and tenant.hosts:
        raise _refuse("hosts", "a workspace has none of its own; it is entered at its tenant's")
    if len(tenant.hosts) > 64 or len(set(tenant.hosts)) != len(tenant.hosts):
        raise _refuse("hosts", "at most 64 host names, each once")
    if not all(map(_HOST.fullmatch, tenant.hosts)):
        raise _refuse("hosts", "each is a lower-case host name without port, such as chat.example.com")
    if len(tenant.regions) > 64 or not all(map(_REGION.fullmatch, tenant.regions)):
        raise _refuse("regions", "at most 64 region names such as ap-northeast-1")
    if not 60 <= tenant.max_token_lifetime_s <= LONGEST_TOKEN_S:
        raise _refuse("max_token_lifetime_s", f"it lies between 60 and {LONGEST_TOKEN_S} seconds")
    if not 0 <= tenant.restore_days <= LONGEST_DAYS:
        raise _refuse("restore_days", f"it lies between 0 and {LONGEST_DAYS}")
    if tenant.retention_days is not None and not 1 <= tenant.retention_days <= LONGEST_DAYS:
        raise _refuse("retention_days", f"it lies between 1 and {LONGEST_DAYS}, or is none")
    if tenant.requests_per_minute is not None and not 1 <= tenant.requests_per_minute <= 10_000_000:
        raise _refuse("requests_per_minute", "it lies between 1 and 10000000, or is none")
    for at, moment_us in (
        ("expires_at_us", tenant.expires_at_us),
        ("tokens_valid_from_us", tenant.tokens_valid_from_us),
        ("created_at_us", tenant.created_at_us),
    ):
        if moment_us is not None and not 0 <= moment_us <= _YEAR_9999_US:
            raise _refuse(at, "it is a time in UTC microseconds before the year 10000")


def _check_url(at: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        inside = bool(parts.username or parts.password)
    except ValueError:
        raise _refuse(at, "it is not a URL") from None
    if not parts.scheme or "://" not in url or len(url) > 2000 or not url.isprintable():
        raise _refuse(at, "it is a URL with a scheme, such as builtin://, of at most 2000 characters")
    if inside:
        # The registry is read by operators and backups; a password belongs in the tenant's secrets.
        raise _refuse(at, "it must not hold a user name or password; put those into the tenant's secrets")


def check_within(outer: Sequence[str], inner: Sequence[str]) -> None:
    """Raise ``InvalidValue`` unless a workspace in the regions ``inner`` lies in those of its tenant, ``outer``."""
    if outer and not (inner and set(inner) <= set(outer)):
        raise _refuse("regions", "a workspace lies in its tenant's regions")
