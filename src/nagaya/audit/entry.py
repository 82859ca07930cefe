"""One line of the audit log, and what must never stand in it."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, Literal, NewType

import msgspec

from nagaya.tenancy.tenant import Tenant

Chain = NewType("Chain", str)
"""A log of its own: one for each tenant, also after its deletion, and one for the platform."""

PLATFORM: Final = Chain("_platform")
"""What belongs to no tenant. No tenant id can begin with an underscore."""

Outcome = Literal["done", "refused", "failed"]

LONGEST: Final = 200

_TOKEN: Final = re.compile(r"eyJ[\w-]+(?:\.[\w-]*)+|\b(?:nk|sk|pk)[_-][\w-]{8,}|(?i:bearer)\s+\S+|[\w+/-]{64,}={0,2}")
# Words such as conversation.create and ids such as conv_0198…: what most fields hold, and nothing that hides anything.
_PLAIN: Final = re.compile(r"(?!.*\b(?:nk|sk|pk)_)(?:[a-z]{1,10}_[0-9a-f]{32}|[a-z_]+(?:\.[a-z_]+)*|)")
_EMAIL: Final = re.compile(r"[^\s@,;:<>()\[\]]+@[^\s@,;:<>()\[\]]+")
_ADDRESS: Final = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)|(?<![\w:])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did what to what, when, and how it ended.

    ``seq`` counts from 1 in its chain; ``previous`` is the SHA-256 (hex) of the entry before as it is stored, empty
    for the first. ``times`` above 1 stands for that many alike. ``address`` is only the network: /24 or /48.
    """

    seq: int
    at_us: int
    actor: str
    role: str
    action: str
    target: str = ""
    outcome: Outcome = "done"
    reason: str = ""
    request_id: str = ""
    address: str = ""
    times: int = 1
    previous: str = ""


def chain_of(tenant: Tenant | None) -> Chain:
    """The tenant's own log; the platform's for None."""
    return PLATFORM if tenant is None else Chain(tenant.id)


@lru_cache(1_024)
def network(address: str | None) -> str:
    """The network an address lies in: /24 of IPv4 (also where it is written as IPv6), /48 of IPv6. Empty for none
    and for what is no address."""
    try:
        found = ipaddress.ip_address((address or "").split("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))


def harmless(text: str) -> str:
    """The text without control characters, tokens, e-mail addresses and whole IP addresses, at most 200 characters.

    A net below careful callers, not instead of them: it knows forms, not meanings.
    """
    if len(text) <= 64 and _PLAIN.fullmatch(text):
        return text
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * LONGEST])
    text = _EMAIL.sub("[e-mail]", _TOKEN.sub("[token]", text))
    return _ADDRESS.sub(lambda found: network(found[0]) or found[0], text)[:LONGEST]
