"""Which texts may be a tenant's id, and which two ids a person could mistake for each other.

A workspace of a tenant is addressed as ``tenant/workspace``; its name follows the rule of tenant ids.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from nagaya.errors import TenantIdInvalid
from nagaya.keys.derivation import length_prefixed

SHORTEST: Final = 3
LONGEST: Final = 63
"""A tenant id can be a DNS label (RFC 1035 §2.3.4), a file name and a database schema."""

_SHAPE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")

_RESERVED_WORDS: Final = (
    "about account accounts admin administrator api app apps assets audit auth authorize aws azure backup backups "
    "billing blog cache cdn config console dashboard data default dev docs download events everyone export files "
    "ftp global graphql health healthz help host hostmaster images import info internal invoice issuer jwks key "
    "keys local localhost login logout mail me media metrics moderator nagaya nagaya-platform nobody null none "
    "oauth openapi operator operators owner pages password platform postmaster private prod production public "
    "readyz register registry root saml secret secrets security self server service settings shared signin signup "
    "smtp sso staging static status store stores support sys system tenant tenants token tokens "
    "undefined upload usage user users v1 v2 v3 webhook webhooks webmaster well-known wiki www"
)
RESERVED: Final = frozenset(_RESERVED_WORDS.split(" "))
"""Words that a host name, a path or a person could take for the platform itself."""

# Every confusion is spelt out into the longer or the fewer form (m into rn, not rn into m), because only that
# direction has one result: vvv is both wv and vw.
_ALIKE: Final = str.maketrans(
    {"0": "o", "1": "l", "i": "l", "2": "z", "5": "s", "8": "b", "9": "g", "q": "g"}
    | {"m": "rn", "w": "vv", "d": "cl", "-": ""}
)


def skeleton(tenant_id: str) -> str:
    """What an id looks like at a glance: two ids with one skeleton cannot both exist.

    Hyphens count for nothing, and these are alike: ``0 o``, ``1 l i``, ``2 z``, ``5 s``, ``8 b``, ``9 g q``,
    ``rn m``, ``vv w``, ``cl d``.
    """
    return tenant_id.translate(_ALIKE)


_RESERVED_SKELETONS: Final = frozenset(map(skeleton, RESERVED))


def check_tenant_id(value: str) -> None:
    """Raise ``TenantIdInvalid``, with the rule in its message, unless the text may be a tenant's id.

    Says nothing about whether it is taken.
    """
    if not SHORTEST <= len(value) <= LONGEST:
        raise TenantIdInvalid(
            value=value[: LONGEST + 1],
            rule=f"it must have {SHORTEST} to {LONGEST} characters",
            rule_ja=f"{SHORTEST} 文字以上 {LONGEST} 文字以下にしてください",
        )
    if not _SHAPE.fullmatch(value):
        raise TenantIdInvalid(
            value=value,
            rule="only lower-case letters a-z, digits and hyphens inside are allowed",
            rule_ja="使えるのは英小文字 a-z、数字、途中のハイフンだけです",
        )
    if value.startswith("xn--") or skeleton(value) in _RESERVED_SKELETONS:
        raise TenantIdInvalid(
            value=value,
            rule="it is a reserved word or looks like one",
            rule_ja="予約語か、予約語と紛らわしい文字列です",
        )


def check_address(value: str) -> None:
    """Raise ``TenantIdInvalid`` unless the text may be a tenant's id or the address of a workspace."""
    for part in value.split("/", 1):
        check_tenant_id(part)


def room_of(address: str) -> str:
    """The id under which the registry and every store know what is addressed: a tenant's id is its own, a workspace
    has one that is made from its address. No check: an address that is nobody's gives an id that is nobody's."""
    tenant_id, slash, workspace = address.partition("/")
    return workspace_room(tenant_id, workspace) if slash else address


def workspace_room(tenant_id: str, workspace: str) -> str:
    """The id of a tenant's workspace. It begins with an underscore, which no tenant's id does, and ends in a digest of
    both names, so ``acme/legal`` shares it with no other address however much is alike."""
    digest = hashlib.sha256(length_prefixed("workspace", tenant_id, workspace)).hexdigest()[:32]
    return f"_{tenant_id[:14]}-{workspace[:14]}-{digest}"
