"""Tokens of any other OpenID Connect issuer.

What is checked: ``iss``, ``aud`` (and ``azp`` where several), ``sub``, the times, the header's ``typ``. What no rule
of OpenID Connect lets us check: whether a token without any mark of its kind is an access or an id token. Such a
token is taken as what it is shown for; use an audience of its own for the API, as OAuth 2.0 intends.
"""

from __future__ import annotations

from typing import Final

from nagaya.errors import TokenRefused
from nagaya.identity import claims as read
from nagaya.identity.claims import Claims, Purpose
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Principal, Provider

_ID_MARKS: Final = frozenset({"nonce", "at_hash", "c_hash", "s_hash"})
_ACCESS_MARKS: Final = frozenset({"scope", "scp", "client_id", "cnf"})


def matches_audience(claims: Claims, binding: IssuerBinding) -> bool:
    """Whether the token was made for one of the binding's audiences."""
    return not set(read.audiences(claims)).isdisjoint(binding.audiences)


def principal_of(
    claims: Claims,
    binding: IssuerBinding,
    *,
    now_us: int,
    skew_s: int,
    longest_s: int,
    purpose: Purpose,
    header_type: str | None = None,
) -> Principal:
    """Who the token speaks for. ``header_type`` is the header's ``typ``. Raises ``TokenRefused``."""
    read.check_issuer(claims, binding)
    meant_for = read.audiences(claims)
    if not matches_audience(claims, binding):
        raise TokenRefused("audience is another")
    party = read.optional_text(claims, "azp")
    # Several audiences: the token says which party it was issued to (OpenID Connect Core §3.1.3.7). An id token that
    # names one names us, however many audiences it has.
    names_a_party = len(meant_for) > 1 or (purpose == "login" and party is not None)
    if names_a_party and party not in binding.audiences:
        raise TokenRefused("azp is another")
    if purpose == "login" and not binding.accept_id_tokens:
        raise TokenRefused("id tokens are not accepted")
    if _kind(claims, header_type) not in (None, purpose):
        raise TokenRefused(f"not a token for {purpose}")
    lifetime = read.check_lifetime(claims, now_us=now_us, skew_s=skew_s, longest_s=longest_s)
    granted = (*read.words(claims, "scope"), *read.words(claims, "scp"))
    if purpose == "access":
        read.check_required_scope(binding, granted)
    groups = (*read.texts(claims, "groups"), *read.texts(claims, "roles"))
    return Principal(
        provider=Provider.OIDC,
        issuer=binding.issuer,
        user_id=read.an_id(claims, "sub"),
        tenant_id=binding.tenant_id,
        role=read.role_of(binding, groups),
        scopes=read.scopes_of(granted),
        issued_at_us=lifetime.issued_at_us,
        expires_at_us=lifetime.ends_at_us,
        session_id=read.optional_id(claims, "sid") or read.optional_id(claims, "session"),
        token_id=read.optional_id(claims, "jti"),
        username=read.optional_text(claims, "preferred_username"),
        email=read.optional_text(claims, "email"),
        groups=groups,
        mfa=read.has_second_factor(claims),
        is_application=claims.get("sub") == claims.get("client_id"),
    )


def _kind(claims: Claims, header_type: str | None) -> Purpose | None:
    """What the token shows itself to be: ``access``, ``login`` (an id token), or None where nothing tells."""
    if header_type == "at+jwt" or claims.get("token_use") == "access" or claims.get("typ") == "Bearer":
        return "access"
    if not _ID_MARKS.isdisjoint(claims) or claims.get("token_use") == "id" or claims.get("typ") == "ID":
        return "login"
    return "access" if not _ACCESS_MARKS.isdisjoint(claims) else None
