"""Tokens of Microsoft Entra ID, v1 and v2, of users and of applications."""

from __future__ import annotations

from nagaya.errors import TokenRefused
from nagaya.identity import claims as read
from nagaya.identity.claims import Claims, Purpose
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Principal, Provider


def issuer_form(version: object, directory: str) -> str:
    """The issuer that a directory's tokens of this version (``ver``) carry. Raises ``TokenRefused``."""
    if version == "1.0":
        return f"https://sts.windows.net/{directory}/"
    if version == "2.0":
        return f"https://login.microsoftonline.com/{directory}/v2.0"
    raise TokenRefused("ver is neither 1.0 nor 2.0")


def matches_audience(claims: Claims, binding: IssuerBinding) -> bool:
    """Whether the token was made for one of the binding's applications in the binding's directory."""
    return claims.get("aud") in binding.audiences and claims.get("tid") == binding.directory


def check_key_issuer(key_issuer: str | None, claims: Claims) -> None:
    """Raise ``TokenRefused`` where the key says whose tokens it signs and the token is not one of them.

    One address publishes keys of several issuer forms; ``{tenantid}`` in the key's ``issuer`` stands for the token's
    own ``tid``. (Entra, "Validate the signing key issuer".)
    """
    if key_issuer is not None and key_issuer.replace("{tenantid}", str(claims.get("tid"))) != claims.get("iss"):
        raise TokenRefused("key signs for another issuer")


def principal_of(
    claims: Claims, binding: IssuerBinding, *, now_us: int, skew_s: int, longest_s: int, purpose: Purpose
) -> Principal:
    """Who a token speaks for: ``tid:oid``, never an e-mail or a name, which change hands. Raises ``TokenRefused``."""
    read.check_issuer(claims, binding)
    directory, identity = read.text(claims, "tid"), read.text(claims, "oid")
    if directory != binding.directory:
        raise TokenRefused("directory is another")
    if len(user_id := f"{directory}:{identity}") > read.ID_LIMIT:
        raise TokenRefused("tid and oid are too long to be an id")
    if issuer_form(claims.get("ver"), directory) != binding.issuer:
        raise TokenRefused("ver and issuer do not agree")
    if not matches_audience(claims, binding):
        raise TokenRefused("audience is another")
    lifetime = read.check_lifetime(claims, now_us=now_us, skew_s=skew_s, longest_s=longest_s)
    delegated, app_roles = read.words(claims, "scp"), read.texts(claims, "roles")
    if purpose == "login":
        _check_id_token(claims, binding, delegated)
        is_application = False
    else:
        is_application = _is_application(claims, delegated, app_roles)
        read.check_required_scope(binding, app_roles if is_application else delegated)
    groups = (*read.texts(claims, "groups"), *app_roles)
    return Principal(
        provider=Provider.ENTRA,
        issuer=binding.issuer,
        user_id=user_id,
        tenant_id=binding.tenant_id,
        role=read.role_of(binding, groups),
        scopes=read.scopes_of((*delegated, *app_roles)),
        issued_at_us=lifetime.issued_at_us,
        expires_at_us=lifetime.ends_at_us,
        session_id=read.optional_id(claims, "sid"),
        token_id=read.optional_id(claims, "uti") or read.optional_id(claims, "jti"),
        username=read.optional_text(claims, "preferred_username") or read.optional_text(claims, "upn"),
        email=read.optional_text(claims, "email"),
        groups=groups,
        mfa=read.has_second_factor(claims),
        is_application=is_application,
    )


def _is_application(claims: Claims, delegated: tuple[str, ...], app_roles: tuple[str, ...]) -> bool:
    """Tell a user's access token (``scp``) from an application's (``idtyp`` = ``app``, ``roles``).

    ``roles`` without either may be an id token, which carries them too, and is refused.
    """
    kind = claims.get("idtyp")
    if kind == "app":
        if delegated or not app_roles:
            raise TokenRefused("an application's token has roles and no scp")
        return True
    if kind not in (None, "user") or not delegated:
        raise TokenRefused("neither scp nor idtyp=app")
    return False


def _check_id_token(claims: Claims, binding: IssuerBinding, delegated: tuple[str, ...]) -> None:
    if not binding.accept_id_tokens:
        raise TokenRefused("id tokens are not accepted")
    if delegated or "idtyp" in claims or "appid" in claims:
        raise TokenRefused("not an id token")
