"""What every signed token must say, whoever issued it, and how what it says becomes a :class:`Principal`.

Pure functions over claims, a binding and a moment: no clock, no network, no registry. The forms of single issuers
are in ``cognito``, ``entra``, ``oidc`` and ``local``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from nagaya.errors import TokenRefused
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import ALL_SCOPES, Role, Scope

Claims = Mapping[str, Any]
Purpose = Literal["access", "login"]
"""What a token is shown for: ``access`` to call, with an access token; ``login`` to sign in, with an id token."""

TEXT_LIMIT: Final = 1024
ID_LIMIT: Final = 500
"""Characters in the id of a user, a session or a token: no more than the registry can keep, or whoever has a longer one
could not be refused."""
GROUPS_LIMIT: Final = 1000

_YEAR_9999_S: Final = 253_402_300_799
_RANK: Final = {Role.USER: 0, Role.MEMBER: 1, Role.TENANT_ADMIN: 2}
_OUR_SCOPES: Final = "nagaya."

# RFC 8176: what somebody knows, has, is. Two different kinds are two factors, whether or not "mfa" is said as well.
_FACTORS: Final = (
    frozenset({"pwd", "pin", "kba"}),
    frozenset({"otp", "hwk", "swk", "sms", "tel", "sc", "fido", "pop"}),
    frozenset({"face", "fpt", "iris", "retina", "vbm"}),
)
_MULTI_FACTOR: Final = frozenset({"mfa", "ngcmfa"})
_MULTI_FACTOR_CLASSES: Final = frozenset(
    {"http://schemas.openid.net/pape/policies/2007/06/multi-factor", "https://refeds.org/profile/mfa"}
)


class Lifetime(msgspec.Struct, frozen=True):
    """When a token was issued and from when on it is refused (its ``exp`` and the skew), in UTC microseconds."""

    issued_at_us: int
    ends_at_us: int


def text(claims: Claims, name: str) -> str:
    """A required claim that is a non-empty text without control characters. Raises ``TokenRefused``."""
    value = optional_text(claims, name)
    if value is None:
        raise TokenRefused(f"{name} is missing")
    return value


def optional_text(claims: Claims, name: str) -> str | None:
    """As :func:`text`, or None where the claim is absent."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_LIMIT or not value.isprintable():
        raise TokenRefused(f"{name} is not a plain text")
    return value


def an_id(claims: Claims, name: str) -> str:
    """A required claim by which its bearer can be refused: as :func:`text`, of at most ``ID_LIMIT`` characters."""
    value = optional_id(claims, name)
    if value is None:
        raise TokenRefused(f"{name} is missing")
    return value


def optional_id(claims: Claims, name: str) -> str | None:
    """As :func:`an_id`, or None where the claim is absent."""
    value = optional_text(claims, name)
    if value is not None and len(value) > ID_LIMIT:
        raise TokenRefused(f"{name} is too long to be an id")
    return value


def texts(claims: Claims, name: str) -> tuple[str, ...]:
    """A claim that is a list of plain texts, empty where it is absent. Raises ``TokenRefused`` for anything else."""
    value = claims.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > GROUPS_LIMIT or not all(map(_is_plain, value)):
        raise TokenRefused(f"{name} is not a list of texts")
    return tuple(value)


def words(claims: Claims, name: str) -> tuple[str, ...]:
    """A claim that is one text of words with spaces between (RFC 6749 §3.3) or a list of them."""
    value = claims.get(name)
    if isinstance(value, str):
        # Half a surrogate pair would come back to nobody: no answer that repeats it could be encoded.
        if not value.isprintable():
            raise TokenRefused(f"{name} is not a plain text")
        return tuple(value.split(" ")) if value else ()
    return texts(claims, name)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_LIMIT and value.isprintable()


def audiences(claims: Claims) -> tuple[str, ...]:
    """The ``aud`` claim, which may be one text or a list of them."""
    value = claims.get("aud")
    return (value,) if isinstance(value, str) else texts(claims, "aud")


def check_lifetime(claims: Claims, *, now_us: int, skew_s: int, longest_s: int) -> Lifetime:
    """Judge ``exp``, ``iat`` (both required) and ``nbf``. Raises ``TokenRefused``.

    The skew forgives clocks that differ, on either side; it does not lengthen what a token may ask for.
    """
    expires, issued = _seconds(claims, "exp"), _seconds(claims, "iat")
    now_s = now_us / 1_000_000
    if expires <= issued:
        raise TokenRefused("exp does not follow iat")
    if expires - issued > longest_s:
        raise TokenRefused("token lives longer than the tenant allows")
    if issued > now_s + skew_s:
        raise TokenRefused("iat is in the future")
    if "nbf" in claims and _seconds(claims, "nbf") > now_s + skew_s:
        raise TokenRefused("token is not valid yet")
    if now_s >= expires + skew_s:
        raise TokenRefused("token has expired")
    return Lifetime(int(issued * 1_000_000), int((expires + skew_s) * 1_000_000))


def _seconds(claims: Claims, name: str) -> float:
    value = claims.get(name)
    # A bool is an int to Python and to nobody else.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRefused(f"{name} is not a number")
    # Compared as it is: a number of hundreds of digits becomes no float. NaN and Infinity compare as no moment.
    if not 0 < value <= _YEAR_9999_S:
        raise TokenRefused(f"{name} is no moment")
    return value


def check_issuer(claims: Claims, binding: IssuerBinding) -> None:
    """Raise ``TokenRefused`` unless ``iss`` is the binding's, character by character."""
    if claims.get("iss") != binding.issuer:
        raise TokenRefused("issuer is another")


def check_required_scope(binding: IssuerBinding, granted: Iterable[str]) -> None:
    """Raise ``TokenRefused`` where the binding asks for a scope that was not granted."""
    if binding.required_scope is not None and binding.required_scope not in granted:
        raise TokenRefused("required scope is missing")


def scopes_of(granted: Iterable[str]) -> frozenset[Scope]:
    """Our scopes among those granted, bare or behind a resource server's name (``api/nagaya.read``).

    A token that names none of ours has them all; one that names ours, though unknown ones, has only what it names.
    """
    ours = {each.rpartition("/")[2] for each in granted}
    ours = {each for each in ours if each.startswith(_OUR_SCOPES)}
    return frozenset(scope for scope in Scope if scope.value in ours) if ours else ALL_SCOPES


def role_of(binding: IssuerBinding, groups: Iterable[str]) -> Role:
    """The highest role that the binding gives any of the groups, or its default.

    Raises ``TokenRefused`` where that would be ``operator``: operators are not made by a customer's directory.
    """
    roles = [binding.role_claims[group] for group in groups if group in binding.role_claims]
    for role in (*roles, binding.default_role):
        if role not in _RANK:
            raise TokenRefused("binding would make an operator")
    return max(roles, key=lambda role: _RANK[role], default=binding.default_role)


def has_second_factor(claims: Claims) -> bool:
    """Whether ``amr`` or ``acr`` says that more than one factor was used (RFC 8176). Anything unclear is no."""
    methods = claims.get("amr")
    if isinstance(methods, list):
        said = {method for method in methods if isinstance(method, str)}
        if said & _MULTI_FACTOR or sum(bool(said & kind) for kind in _FACTORS) > 1:
            return True
    context = claims.get("acr")
    return isinstance(context, str) and context in _MULTI_FACTOR_CLASSES
