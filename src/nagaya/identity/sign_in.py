"""Signing in: an id token of the tenant's sign-in provider becomes a session with a token of our own; signing out.

The session's token says who vouched for the user, so the user is the same as with the provider's own access tokens:
the same things owned, the same revocations, and a tenant that demands its own sign-in is content. Where the provider
is no longer bound to the tenant, the token is refused.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple, Protocol

import structlog

from nagaya.errors import CacheUnreachable, InvalidValue, NagayaError, TokenRefused
from nagaya.identity.local import LocalIssuer
from nagaya.identity.sessions import SessionStore, SignInSession
from nagaya.identity.signing_keys import LONGEST_LIFETIME_S
from nagaya.kernel.clock import Clock
from nagaya.kernel.ids import is_id, new_id
from nagaya.tenancy.bindings import Revocation
from nagaya.tenancy.principal import Entrance, Principal, Provider

SESSION_PREFIX: Final = "sess"
LIFETIME_S: Final = 8 * 3600
"""A working day; a tenant's ``max_token_lifetime_s`` may allow less."""

SEEN_S: Final = 60
"""How coarsely it is noted when a session was last used."""

_MARGIN_US: Final = 3_600 * 1_000_000

_log = structlog.get_logger(__name__)


class Revokes(Protocol):
    """The part of the registry that this needs."""

    async def revoke(self, revocation: Revocation) -> None: ...
    async def is_ending(self, tenant_id: str) -> bool: ...


class Verifies(Protocol):
    """What signing out needs of the authenticator."""

    async def authenticate(self, raw: str) -> Principal: ...


class SignedIn(NamedTuple):
    """A new session, its token, and the text that a browser has to repeat in ``X-CSRF-Token``."""

    session: SignInSession
    token: str
    csrf_token: str


class SignIn:
    """Begins, shows and ends sessions. One per process; what it keeps lies in the store and the registry."""

    def __init__(
        self,
        store: SessionStore,
        registry: Revokes,
        issuer: LocalIssuer,
        authenticator: Verifies,
        clock: Clock,
        *,
        lifetime_s: int = LIFETIME_S,
    ) -> None:
        self._store = store
        self._registry = registry
        self._issuer = issuer
        self._authenticator = authenticator
        self._clock = clock
        self._lifetime_s = lifetime_s

    async def begin(self, entrance: Entrance) -> SignedIn:
        """A session for whom the gate let in with ``purpose="login"``. Each call begins another.

        Raises ``InvalidValue`` for somebody who came with an API key or with a session's token: a session that could
        beget another would outlive its own end. One begun with a local token ends with that token. ``TokenRefused``
        where the tenant is deleted meanwhile.
        """
        principal, tenant = entrance.principal, entrance.tenant
        if principal.provider is Provider.API_KEY or is_session(principal):
            detail = "an id token of the tenant's sign-in provider, or a local issuer's token, begins a session"
            raise InvalidValue(param="id_token", at="id_token", detail=detail)
        now_us = self._clock.now_us()
        lifetime_s = min(self._lifetime_s, tenant.max_token_lifetime_s, LONGEST_LIFETIME_S)
        if principal.provider is Provider.LOCAL:
            lifetime_s = min(lifetime_s, (principal.expires_at_us - now_us) // 1_000_000)
        session = SignInSession(
            id=new_id(SESSION_PREFIX),
            tenant_id=tenant.id,
            user=principal.user_key,
            created_at_us=now_us,
            seen_at_us=now_us,
            expires_at_us=now_us + lifetime_s * 1_000_000,
        )
        token = await self._issuer.mint_session(tenant, principal, session.id, lifetime_s=lifetime_s)
        try:
            await self._store.add(session)
        except CacheUnreachable:
            # The token stands by itself; that nobody can sign in would be the greater harm.
            _log.warning("a session was not kept", action="session.not_kept", session=session.id)
        if await self._registry.is_ending(tenant.id):
            # Its deletion may have removed its sessions before this one came.
            await self._store.forget(tenant.id)
            raise TokenRefused("the tenant is gone")
        return SignedIn(session, token, secrets.token_urlsafe(32))

    async def current(self, principal: Principal) -> SignInSession | None:
        """The session that the caller's token belongs to, noted as used now; None where it belongs to none, or the
        store has lost it or is a cache that is away."""
        if principal.tenant_id is None or principal.session_id is None or not is_session(principal):
            return None
        try:
            session = await self._store.get(principal.tenant_id, principal.session_id)
            now_us = self._clock.now_us()
            if session is not None and now_us - session.seen_at_us >= SEEN_S * 1_000_000:
                await self._store.seen(session.tenant_id, session.id, now_us)
        except CacheUnreachable:
            return None
        return session

    async def end(self, raw: str) -> Principal:
        """Sign out: the token's session is refused from now on, here at once and elsewhere as soon as the registry's
        change is seen. Gives who signed out. May be repeated, but a token that was signed out is refused.

        Works for a tenant that is suspended or at its limit too. Raises ``TokenRefused``, and ``InvalidValue`` for a
        token that belongs to no session.
        """
        principal = await self._authenticator.authenticate(raw)
        if principal.tenant_id is None or principal.session_id is None or not is_session(principal):
            raise InvalidValue(param="session", at="session", detail="the token belongs to no sign-in session")
        ends_us = principal.expires_at_us + _MARGIN_US
        await self._registry.revoke(
            Revocation(
                tenant_id=principal.tenant_id,
                kind="session",
                subject=principal.session_id,
                # Not "before now": the server that made the token may have a clock that is ahead of this one's.
                not_before_us=ends_us,
                expires_at_us=ends_us,
            )
        )
        try:
            await self._store.revoke(principal.tenant_id, principal.session_id, self._clock.now_us())
        except NagayaError as failed:
            # The registry decides who is refused, and it has it; the store only tells when.
            _log.warning("the end of a session was not kept", action="session.end_not_kept", code=failed.code)
        return principal


def is_session(principal: Principal) -> bool:
    """Whether the caller came with a session's token. No provider's own session id has this form."""
    return principal.session_id is not None and is_id(SESSION_PREFIX, principal.session_id)
