"""From a raw token or API key to a :class:`Principal`: the one place where a stranger becomes somebody.

The order is the defence. What a token says is judged before anything is fetched for it, so that a token of another
client, pool or directory costs no network; the signature is then checked over the very bytes that were judged, and
nothing is returned before both have passed.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from nagaya.errors import NotFound, TokenRefused
from nagaya.identity import api_keys, cognito, entra, local, oidc
from nagaya.identity.claims import TEXT_LIMIT, Purpose, optional_text
from nagaya.identity.jws import (
    ALGORITHMS,
    TOKEN_LIMIT_BYTES,
    SignedToken,
    VerificationKey,
    check_signature,
    read_object,
    read_token,
)
from nagaya.identity.local import LocalIssuer
from nagaya.identity.verified import LIFE_S, SERVE_S, Verified, VerifiedTable, fingerprint
from nagaya.kernel.clock import Clock
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.directory import TenantDirectory
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.principal import Principal, Provider
from nagaya.tenancy.tenant import Tenant

_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_RS256_ONLY: Final = ("RS256",)
_AUDIENCE_OF: Final = {
    Provider.COGNITO: cognito.matches_audience,
    Provider.ENTRA: entra.matches_audience,
    Provider.OIDC: oidc.matches_audience,
}
_CHANGES: Final = frozenset({"tenant", "deleted", "issuers", "api_keys"})


class PublishedKeys(Protocol):
    """Where issuers' keys come from; :class:`~nagaya.identity.jwks.KeyCache` fetches them."""

    async def key(self, url: str, key_id: str) -> VerificationKey: ...


class Authenticator:
    """Verifies tokens and API keys. One per process; holds nothing that its neighbour needs."""

    def __init__(
        self, directory: TenantDirectory, jwks: PublishedKeys, local: LocalIssuer, clock: Clock, settings: Settings
    ) -> None:
        self._directory = directory
        self._jwks = jwks
        self._local = local
        self._clock = clock
        self._skew_s = settings.clock_skew_s
        self._table = VerifiedTable()
        self._changes = 0

    async def authenticate(self, raw: str, *, purpose: Purpose = "access") -> Principal:
        """Who the token or API key speaks for.

        ``purpose`` is ``login`` where a sign-in provider's id token is exchanged for a session, else ``access``; our
        own tokens and keys serve for both. Raises ``TokenRefused`` (its ``reason`` is for the log alone),
        ``IssuerUnreachable`` where the issuer's keys cannot be had, or what the registry raises. May be repeated.
        """
        if len(raw) > TOKEN_LIMIT_BYTES:
            raise TokenRefused("token is larger than 16 KiB")
        if purpose == "login":
            return (await self._verify(raw, purpose))[0]
        key = fingerprint(raw)
        entry = self._table.get(key)
        if entry is not None:
            principal = self._serve(key, entry) or await self._renew(key, entry)
            if principal is not None:
                return principal
        changes = self._changes
        principal, epoch = await self._verify(raw, purpose)
        if changes == self._changes:
            # Otherwise the registry changed meanwhile, and what was read of it may be the state before.
            self._table.put(key, Verified(principal, epoch, self._clock.monotonic_s()))
        return principal

    def held(self, raw: str) -> Principal | None:
        """Who the token speaks for if it was verified within the last seconds and nothing has revoked it since; else
        None, and :meth:`authenticate` must be asked. No I/O, for the hottest path."""
        if len(raw) > TOKEN_LIMIT_BYTES:
            return None
        key = fingerprint(raw)
        entry = self._table.get(key)
        return None if entry is None else self._serve(key, entry)

    def on_registry_change(self, tenant_id: str | None, kind: str) -> None:
        """Forget what a change in the registry concerns; wiring hands this to ``SqlRegistry.on_change``.

        Without it revocation still holds, ``SERVE_S`` later. Revoked users and sessions are asked for at every call.
        """
        if kind == "all":
            self._changes += 1
            self._table.clear()
        elif kind in _CHANGES:
            self._changes += 1
            self._table.drop_tenant(tenant_id)

    # --- tokens verified lately ---------------------------------------------------------------------------------

    def _serve(self, key: bytes, entry: Verified) -> Principal | None:
        principal = entry.principal
        if self._clock.now_us() >= principal.expires_at_us or self._is_refused(principal):
            self._table.drop(key)
            return None
        if self._clock.monotonic_s() - entry.checked_at_s >= SERVE_S or not self._directory.is_fresh():
            return None
        return principal

    async def _renew(self, key: bytes, entry: Verified) -> Principal | None:
        """The entry's principal if its tenant is as it was, without checking the signature again."""
        now_s, tenant_id = self._clock.monotonic_s(), entry.principal.tenant_id
        if entry.epoch is None or tenant_id is None or now_s - entry.verified_at_s >= LIFE_S:
            return None
        if self._table.get(key) is not entry:
            return None
        changes = self._changes
        tenant = await self._tenant(tenant_id)
        if tenant.epoch != entry.epoch or changes != self._changes:
            self._table.drop(key)
            return None
        entry.checked_at_s = now_s
        return entry.principal

    # --- verification -------------------------------------------------------------------------------------------

    async def _verify(self, raw: str, purpose: Purpose) -> tuple[Principal, int | None]:
        """The principal and, for tokens, the epoch of the tenant that it was judged by."""
        if api_keys.looks_like_key(raw):
            principal = await api_keys.verify(raw, self._directory, self._clock.now_us())
            epoch = None
        else:
            token = read_token(raw)
            claims = read_object(token.payload, "payload")
            _check_type(token)
            principal, tenant = await self._token(token, claims, purpose)
            if principal.issued_at_us < tenant.tokens_valid_from_us:
                raise TokenRefused("tokens of the tenant were revoked")
            epoch = tenant.epoch
        if self._is_refused(principal):
            raise TokenRefused("user, session or token was revoked")
        return principal, epoch

    async def _token(self, token: SignedToken, claims: dict[str, Any], purpose: Purpose) -> tuple[Principal, Tenant]:
        # Nothing is verified yet: the issuer serves for exact look-ups only.
        issuer = claims.get("iss")
        if not isinstance(issuer, str) or not 0 < len(issuer) <= TEXT_LIMIT or not issuer.isprintable():
            raise TokenRefused("iss is missing or no plain text")
        own = self._local.tenant_of(issuer)
        if own is not None:
            return await self._local_token(token, claims, issuer, own)
        bindings = await self._directory.issuers(issuer)
        matching = [binding for binding in bindings if binding.issuer == issuer and _is_for(claims, binding)]
        if len(matching) != 1:
            raise TokenRefused("issuer is unknown" if not bindings else "not exactly one binding has this audience")
        binding = matching[0]
        tenant = await self._tenant(binding.tenant_id)
        principal = self._judge(token, claims, binding, tenant, purpose)
        allowed = binding.algorithms if binding.provider is Provider.OIDC else _RS256_ONLY
        if token.algorithm not in allowed or token.algorithm not in ALGORITHMS:
            raise TokenRefused("algorithm is not allowed")
        key = await self._jwks.key(binding.jwks_url, token.key_id)
        if binding.provider is Provider.ENTRA:
            entra.check_key_issuer(key.issuer, claims)
        check_signature(token, key, allowed)
        return principal, tenant

    async def _local_token(
        self, token: SignedToken, claims: dict[str, Any], issuer: str, tenant_id: str
    ) -> tuple[Principal, Tenant]:
        if token.algorithm != local.ALGORITHM:
            raise TokenRefused("algorithm is not allowed")
        tenant = await self._tenant(tenant_id)
        workspace = optional_text(claims, local.WORKSPACE)
        if workspace is not None:
            tenant = await self._workspace(tenant, workspace)
        now_us = self._clock.now_us()
        principal = local.principal_of(claims, issuer=issuer, tenant=tenant, now_us=now_us, skew_s=self._skew_s)
        check_signature(token, await self._local.key(token.key_id), (local.ALGORITHM,))
        if principal.provider is not Provider.LOCAL:
            # A session begun with another issuer's id token lasts only while the tenant accepts that issuer.
            bindings = await self._directory.issuers(principal.issuer)
            if not any(binding.tenant_id == tenant_id for binding in bindings):
                raise TokenRefused("the session's sign-in provider is not bound to the tenant any more")
        return principal, tenant

    def _judge(
        self, token: SignedToken, claims: dict[str, Any], binding: IssuerBinding, tenant: Tenant, purpose: Purpose
    ) -> Principal:
        now_us, skew_s, longest_s = self._clock.now_us(), self._skew_s, tenant.max_token_lifetime_s
        if binding.provider is Provider.COGNITO:
            return cognito.principal_of(
                claims, binding, now_us=now_us, skew_s=skew_s, longest_s=longest_s, purpose=purpose
            )
        if binding.provider is Provider.ENTRA:
            return entra.principal_of(
                claims, binding, now_us=now_us, skew_s=skew_s, longest_s=longest_s, purpose=purpose
            )
        return oidc.principal_of(
            claims,
            binding,
            now_us=now_us,
            skew_s=skew_s,
            longest_s=longest_s,
            purpose=purpose,
            header_type=_header_type(token),
        )

    async def _tenant(self, tenant_id: str) -> Tenant:
        try:
            return await self._directory.tenant(tenant_id)
        except NotFound:
            raise TokenRefused("tenant does not exist") from None

    async def _workspace(self, tenant: Tenant, name: str) -> Tenant:
        """The workspace that a token of the tenant's own issuer is bound to, with the shorter of both lifetimes."""
        workspace = await self._tenant(workspace_room(tenant.id, name))
        if workspace.parent != tenant.id:
            raise TokenRefused("tenant does not exist")
        longest_s = min(tenant.max_token_lifetime_s, workspace.max_token_lifetime_s)
        return msgspec.structs.replace(workspace, max_token_lifetime_s=longest_s)

    def _is_refused(self, principal: Principal) -> bool:
        if principal.tenant_id is None:
            return False
        return principal.issued_at_us < self._directory.refused_before_us(
            principal.tenant_id,
            user_id=principal.user_id,
            session_id=principal.session_id,
            token_id=principal.token_id,
        )


def _is_for(claims: dict[str, Any], binding: IssuerBinding) -> bool:
    matches = _AUDIENCE_OF.get(binding.provider)
    return matches is not None and matches(claims, binding)


def _header_type(token: SignedToken) -> str | None:
    said = token.header.get("typ")
    return said.lower().removeprefix("application/") if isinstance(said, str) else None


def _check_type(token: SignedToken) -> None:
    """Refuse what an issuer signs for other ends, such as logout tokens and proofs of possession (RFC 8725 §3.11)."""
    said = token.header.get("typ")
    if said is not None and (not isinstance(said, str) or said.lower() not in _TYPES):
        raise TokenRefused("typ is another")
