"""What the registry holds besides tenants: issuers, API keys, members of workspaces, key versions, revocations."""

from __future__ import annotations

from typing import Literal

import msgspec

from nagaya.tenancy.principal import Provider, Role, Scope


class IssuerBinding(msgspec.Struct, frozen=True, kw_only=True):
    """Which tenant an issuer's tokens belong to. An operator writes it; a token can only match it.

    ``issuer`` is compared as an exact string. ``audiences`` are the accepted ``aud`` (Cognito: client ids, matched to
    ``client_id`` of access tokens and ``aud`` of id tokens). (issuer, audience) belongs to one tenant only.
    ``jwks_url`` is where keys are fetched; a token never names it. ``directory`` is Entra's ``tid``.
    ``role_claims`` maps a group or app role to a Nagaya role; anybody else has ``default_role``.
    """

    issuer: str
    tenant_id: str
    provider: Provider
    audiences: tuple[str, ...]
    jwks_url: str
    algorithms: tuple[str, ...] = ("RS256",)
    directory: str | None = None
    accept_id_tokens: bool = False
    required_scope: str | None = None
    default_role: Role = Role.USER
    role_claims: dict[str, Role] = {}


class ApiKeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as stored: its public id and the SHA-256 of the whole key. The key itself is shown once."""

    key_id: str
    tenant_id: str | None
    name: str
    user_id: str
    role: Role
    scopes: tuple[Scope, ...]
    sha256: bytes
    created_at_us: int
    expires_at_us: int
    revoked_at_us: int | None = None


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of this subject issued before ``not_before_us`` are refused; the row is dropped after ``expires_at_us``,
    when every token it could concern has ended."""

    tenant_id: str
    kind: Literal["user", "session", "token"]
    subject: str
    not_before_us: int
    expires_at_us: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody of the tenant who may enter one of its workspaces, with a role that holds there alone.

    ``user`` is the :attr:`~nagaya.tenancy.principal.Principal.user_key`. ``since_us`` is when he last became one: what
    was revoked in the workspace before concerns him no more.
    """

    workspace_id: str
    user: str
    role: Role
    since_us: int
