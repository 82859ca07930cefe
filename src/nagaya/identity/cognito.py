"""Tokens of Amazon Cognito user pools.

Access tokens carry ``client_id`` and ``token_use``, not ``aud``. Attributes that users can set themselves, such as
``custom:tenant_id``, are not read at all: the tenant is the binding's.
"""

from __future__ import annotations

from nagaya.errors import TokenRefused
from nagaya.identity import claims as read
from nagaya.identity.claims import Claims, Purpose
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Principal, Provider


def matches_audience(claims: Claims, binding: IssuerBinding) -> bool:
    """Whether the token was made for one of the binding's app clients."""
    if claims.get("token_use") == "id":
        return claims.get("aud") in binding.audiences
    return claims.get("client_id") in binding.audiences


def principal_of(
    claims: Claims, binding: IssuerBinding, *, now_us: int, skew_s: int, longest_s: int, purpose: Purpose
) -> Principal:
    """Who an access token (``access``) or id token (``login``) speaks for. Raises ``TokenRefused``."""
    read.check_issuer(claims, binding)
    wanted = "access" if purpose == "access" else "id"
    if claims.get("token_use") != wanted:
        raise TokenRefused(f"token_use is not {wanted}")
    if purpose == "login" and not binding.accept_id_tokens:
        raise TokenRefused("id tokens are not accepted")
    if not matches_audience(claims, binding):
        raise TokenRefused("audience is another")
    lifetime = read.check_lifetime(claims, now_us=now_us, skew_s=skew_s, longest_s=longest_s)
    granted = read.words(claims, "scope")
    if purpose == "access":
        read.check_required_scope(binding, granted)
    groups = read.texts(claims, "cognito:groups")
    return Principal(
        provider=Provider.COGNITO,
        issuer=binding.issuer,
        user_id=read.an_id(claims, "sub"),
        tenant_id=binding.tenant_id,
        role=read.role_of(binding, groups),
        scopes=read.scopes_of(granted),
        issued_at_us=lifetime.issued_at_us,
        expires_at_us=lifetime.ends_at_us,
        session_id=read.optional_id(claims, "origin_jti"),
        token_id=read.optional_id(claims, "jti"),
        username=read.optional_text(claims, "username") or read.optional_text(claims, "cognito:username"),
        email=read.optional_text(claims, "email"),
        groups=groups,
        mfa=read.has_second_factor(claims),
        # Client credentials have no user: the subject is the client itself.
        is_application=purpose == "access" and claims.get("sub") == claims.get("client_id"),
    )
