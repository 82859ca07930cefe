"""Which issuer bindings can let anybody in. One that cannot is refused when it is made, not at the first sign-in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from nagaya.errors import InvalidValue
from nagaya.identity.entra import issuer_form
from nagaya.identity.jwks import check_key_url
from nagaya.identity.jws import ALGORITHMS
from nagaya.kernel.egress import EgressPolicy
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider, Role

_FOREIGN: Final = (Provider.COGNITO, Provider.ENTRA, Provider.OIDC)
_DIRECTORY: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FORMS: Final = ("1.0", "2.0")
_TEXT_LIMIT: Final = 500


def check_binding(binding: IssuerBinding, *, is_ours: Callable[[str], bool], egress: EgressPolicy) -> None:
    """Raise ``InvalidValue`` or ``AddressRefused``, with the rule in its message, unless tokens can match the binding.

    ``is_ours`` tells the issuers that the platform itself is: a binding of one would never be asked.
    """
    if binding.provider not in _FOREIGN:
        raise _refuse("provider", "it is cognito, entra or oidc; tokens and keys of this platform need no binding")
    _check_text("issuer", binding.issuer)
    if "#" in binding.issuer:
        # A user is known as issuer#user: with the mark inside an issuer, two of them could make one name.
        raise _refuse("issuer", "no issuer has a fragment (#)")
    if is_ours(binding.issuer):
        raise _refuse("issuer", "it is this platform's own; its tokens need no binding")
    if not binding.audiences:
        raise _refuse("audiences", "at least one is needed: the client id (Cognito) or the `aud` that tokens carry")
    for audience in binding.audiences:
        _check_text("audiences", audience)
    _check_algorithms(binding)
    _check_directory(binding)
    if binding.required_scope is not None:
        _check_text("required_scope", binding.required_scope)
        if " " in binding.required_scope:
            raise _refuse("required_scope", "it is one scope; a token's scopes are told apart by spaces")
    if binding.default_role is Role.OPERATOR:
        raise _refuse("default_role", "operators are not made by a customer's directory")
    for group, role in binding.role_claims.items():
        _check_text("role_claims", group)
        if role is Role.OPERATOR:
            raise _refuse("role_claims", "operators are not made by a customer's directory")
    check_key_url(binding.jwks_url, egress)


def _check_algorithms(binding: IssuerBinding) -> None:
    known = tuple(ALGORITHMS) if binding.provider is Provider.OIDC else ("RS256",)
    if not binding.algorithms or not set(binding.algorithms) <= set(known):
        whose = "an OpenID Connect issuer" if binding.provider is Provider.OIDC else binding.provider.value.title()
        raise _refuse(
            "algorithms", f"of {whose} at least one of these and nothing else is accepted: {', '.join(known)}"
        )


def _check_directory(binding: IssuerBinding) -> None:
    directory = binding.directory
    if binding.provider is not Provider.ENTRA:
        if directory is not None:
            raise _refuse("directory", "only Entra's tokens name one; elsewhere it would restrict nobody")
        return
    if directory is None or not _DIRECTORY.fullmatch(directory):
        raise _refuse("directory", "Entra needs the directory's id (`tid`), a UUID in lower case")
    forms = [issuer_form(version, directory) for version in _FORMS]
    if binding.issuer not in forms:
        raise _refuse("issuer", f"tokens of this directory carry {' (v1) or '.join(forms)} (v2), and no other")


def _check_text(at: str, text: str) -> None:
    if not 0 < len(text) <= _TEXT_LIMIT or not text.isprintable():
        raise _refuse(at, f"it has 1 to {_TEXT_LIMIT} printable characters")


def _refuse(at: str, detail: str) -> InvalidValue:
    return InvalidValue(param=at, at=at, detail=detail)
