"""The local issuer: tokens for tenants without a sign-in provider of their own, for tests and for the console.

Each tenant has an issuer string of its own, ``{settings.local_issuer}/{tenant id}``, and the tenant comes from that
string alone; a token that is bound to a workspace of the tenant says so in a claim. Verification needs no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import structlog
from joserfc import jws as joserfc_jws
from joserfc.jwk import ECKey

from nagaya.errors import ConditionFailed, Forbidden, InvalidValue, IssuerUnreachable, NagayaError, TokenRefused
from nagaya.identity import claims as read
from nagaya.identity.claims import Claims
from nagaya.identity.jws import VerificationKey, read_key
from nagaya.identity.signing_keys import (
    LONGEST_LIFETIME_S,
    Ring,
    SigningKey,
    SigningKeyStore,
    new_signing_key,
    read_ring,
    ring_bytes,
    turned,
)
from nagaya.kernel.clock import Clock
from nagaya.kernel.ids import new_id
from nagaya.tenancy.principal import ALL_SCOPES, Origin, Principal, Provider, Role, Scope
from nagaya.tenancy.tenant import Tenant

AUDIENCE: Final = "nagaya"
WORKSPACE: Final = "workspace"
"""The claim of a token that opens one workspace of its issuer's tenant and nothing else: the workspace's name."""
ALGORITHM: Final = "ES256"
DEFAULT_LIFETIME_S: Final = 3600
SHORTEST_LIFETIME_S: Final = 10
RELOAD_S: Final = 300.0
"""How old the ring in memory may be; a published key signs a day later, so nobody misses one."""
UNKNOWN_WINDOW_S: Final = 5.0
"""An unknown key id makes the ring be read again, at most once in this time."""
STORE_DEADLINE_S: Final = 5.0

_SAVE_TRIES: Final = 5
_VOUCHING: Final[Mapping[str | None, Provider]] = {
    None: Provider.LOCAL,
    **{provider.value: provider for provider in (Provider.COGNITO, Provider.ENTRA, Provider.OIDC)},
}
_REGISTRY: Final = joserfc_jws.JWSRegistry(algorithms=[ALGORITHM])

log = structlog.get_logger(__name__)


class LocalIssuer:
    """Mints and verifies the platform's own tokens. One per process; all share one :class:`SigningKeyStore`."""

    def __init__(self, store: SigningKeyStore, clock: Clock, *, issuer: str) -> None:
        self._store = store
        self._clock = clock
        self._prefix = issuer.rstrip("/") + "/"
        self._ring = Ring()
        self._private: dict[str, ECKey] = {}
        self._public: dict[str, VerificationKey] = {}
        self._read_at_s: float | None = None
        self._lock = asyncio.Lock()

    def issuer_of(self, tenant_id: str) -> str:
        """The exact issuer string of a tenant's local tokens."""
        return self._prefix + tenant_id

    def tenant_of(self, issuer: str) -> str | None:
        """The tenant id inside one of our issuer strings, or None where it is not ours. The id may not exist."""
        tenant_id = issuer.removeprefix(self._prefix)
        return tenant_id if issuer.startswith(self._prefix) and tenant_id and "/" not in tenant_id else None

    async def mint(
        self,
        tenant: Tenant,
        user: str,
        role: Role = Role.USER,
        *,
        lifetime_s: int | None = None,
        scopes: Collection[Scope] = ALL_SCOPES,
        mfa: bool = False,
        session_id: str | None = None,
    ) -> str:
        """A signed token for ``user`` of ``tenant``, valid for ``lifetime_s`` seconds from now (None: an hour, or as
        long as the tenant allows where that is less). One for a workspace is bound to it: it opens nothing else.

        Raises ``InvalidValue`` for a lifetime that the tenant does not allow or a user that is no plain text, and
        ``Forbidden`` for the role ``operator``, which no token carries. Each call makes another token.
        """
        return await self._mint(
            tenant, user, role, {}, lifetime_s=lifetime_s, scopes=scopes, mfa=mfa, session_id=session_id
        )

    async def mint_session(self, tenant: Tenant, principal: Principal, session_id: str, *, lifetime_s: int) -> str:
        """A signed token for a session of ``principal``, whose tenant it is: the same user, vouched for by the same
        provider, and revoked with what it was begun with. Raises as :meth:`mint` does."""
        more: dict[str, str | int] = {"since_us": principal.issued_at_us}
        if principal.provider is not Provider.LOCAL:
            more |= {"idp": principal.provider.value, "idp_iss": principal.issuer}
        if principal.session_id is not None:
            more["begun_sid"] = principal.session_id
        if principal.token_id is not None:
            more["begun_jti"] = principal.token_id
        if principal.username is not None:
            more["preferred_username"] = principal.username
        return await self._mint(
            tenant,
            principal.user_id,
            principal.role,
            more,
            lifetime_s=lifetime_s,
            scopes=principal.scopes,
            mfa=principal.mfa,
            session_id=session_id,
        )

    async def _mint(
        self,
        tenant: Tenant,
        user: str,
        role: Role,
        more: Mapping[str, str | int],
        *,
        lifetime_s: int | None,
        scopes: Collection[Scope],
        mfa: bool,
        session_id: str | None,
    ) -> str:
        longest_s = min(tenant.max_token_lifetime_s, LONGEST_LIFETIME_S)
        lifetime_s = min(DEFAULT_LIFETIME_S, longest_s) if lifetime_s is None else lifetime_s
        if role is Role.OPERATOR:
            raise Forbidden(needs="an operator's API key")
        if not SHORTEST_LIFETIME_S <= lifetime_s <= longest_s:
            detail = f"it lies between {SHORTEST_LIFETIME_S} and {longest_s} seconds"
            raise InvalidValue(param="lifetime_s", at="lifetime_s", detail=detail)
        for at, value in (("user", user), ("session_id", session_id or "-")):
            if not 0 < len(value) <= read.ID_LIMIT or not value.isprintable():
                raise InvalidValue(param=at, at=at, detail=f"it has 1 to {read.ID_LIMIT} printable characters")
        if not scopes:
            raise InvalidValue(param="scopes", at="scopes", detail="a token has at least one scope")
        await self.refresh()
        now_us = self._clock.now_us()
        signing = self._signing(now_us)
        claims: dict[str, Any] = {
            "iss": self.issuer_of(tenant.parent or tenant.id),
            "aud": AUDIENCE,
            "sub": user,
            "role": role.value,
            "iat": now_us // 1_000_000,
            # Whole seconds cannot tell a token from a revocation in the same second.
            "iat_us": now_us,
            "exp": now_us // 1_000_000 + lifetime_s,
            "jti": new_id("tok"),
            **more,
        }
        if tenant.workspace is not None:
            claims[WORKSPACE] = tenant.workspace
        if frozenset(scopes) != ALL_SCOPES:
            claims["scope"] = " ".join(sorted(scopes))
        if mfa:
            claims["amr"] = ["mfa"]
        if session_id is not None:
            claims["sid"] = session_id
        header = {"alg": ALGORITHM, "kid": signing.key_id, "typ": "at+jwt"}
        return joserfc_jws.serialize_compact(
            header, msgspec.json.encode(claims), self._private[signing.key_id], registry=_REGISTRY
        )

    async def key(self, key_id: str) -> VerificationKey:
        """Our key of that id, or ``TokenRefused``. An unknown id makes the ring be read at most once a window."""
        found = self._public.get(key_id)
        if found is None:
            await self.refresh(older_than_s=UNKNOWN_WINDOW_S)
            found = self._public.get(key_id)
        if found is None:
            raise TokenRefused("key id is unknown")
        return found

    async def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The published key set (RFC 7517), the next key included."""
        await self.refresh()
        return {"keys": [key.public_jwk() for key in self._ring.keys]}

    async def refresh(self, *, older_than_s: float = RELOAD_S) -> None:
        """Read the ring where it is older than that, and turn it over where it is time. May be repeated.

        A store that fails is an error (``IssuerUnreachable``) only for a process that has no ring yet.
        """
        if not self._is_older(older_than_s):
            return
        async with self._lock:
            if not self._is_older(older_than_s):
                return
            try:
                async with asyncio.timeout(STORE_DEADLINE_S):
                    await self._reload()
            except (NagayaError, TimeoutError, OSError, msgspec.MsgspecError) as failed:
                if not self._ring.keys:
                    raise IssuerUnreachable(retry_after_s=1) from failed
                log.warning("signing keys not read", action="local_issuer.reload_failed", reason=type(failed).__name__)
            self._read_at_s = self._clock.monotonic_s()

    def _is_older(self, age_s: float) -> bool:
        return self._read_at_s is None or self._clock.monotonic_s() - self._read_at_s >= age_s

    async def _reload(self) -> None:
        for _ in range(_SAVE_TRIES):
            stored = await self._store.load()
            ring, revision = (Ring(), 0) if stored is None else (read_ring(stored[0]), stored[1])
            wanted = turned(ring, new_signing_key, now_us=self._clock.now_us())
            if wanted is not ring:
                try:
                    await self._store.save(ring_bytes(wanted), expect=revision)
                except ConditionFailed:
                    continue  # another process turned it over first; take what it wrote
                log.info("signing keys turned over", action="local_issuer.rotated", keys=len(wanted.keys))
            self._take(wanted)
            return
        raise ConditionFailed

    def _take(self, ring: Ring) -> None:
        self._ring = ring
        self._private = {key.key_id: ECKey.import_key(dict(key.jwk)) for key in ring.keys}
        public = (read_key(key.public_jwk()) for key in ring.keys)
        self._public = {key.key_id: key for key in public if key is not None}

    def _signing(self, now_us: int) -> SigningKey:
        # A clock that was set back may find that no key's turn has come yet; the earliest then signs.
        return self._ring.signing(now_us) or self._ring.keys[0]


def principal_of(claims: Claims, *, issuer: str, tenant: Tenant, now_us: int, skew_s: int) -> Principal:
    """Who a local token speaks for. ``tenant`` is the one in ``issuer``, or the workspace of it that the token is bound
    to. Raises ``TokenRefused``.

    A session's token gives its user as the sign-in provider vouched for it, ``provider`` and ``issuer`` included.
    """
    if claims.get("iss") != issuer:
        raise TokenRefused("issuer is another")
    if claims.get("aud") != AUDIENCE:
        raise TokenRefused("audience is another")
    longest_s = min(tenant.max_token_lifetime_s, LONGEST_LIFETIME_S)
    lifetime = read.check_lifetime(claims, now_us=now_us, skew_s=skew_s, longest_s=longest_s)
    issued_at_us = claims.get("iat_us", lifetime.issued_at_us)
    if type(issued_at_us) is not int or issued_at_us // 1_000_000 != claims["iat"]:
        raise TokenRefused("iat_us does not agree with iat")
    since_us = claims.get("since_us", issued_at_us)
    if type(since_us) is not int:
        raise TokenRefused("since_us is no moment")
    role = claims.get("role")
    if role not in (Role.USER, Role.MEMBER, Role.TENANT_ADMIN):
        raise TokenRefused("role is none that a token may carry")
    vouched_by, vouching_issuer = read.optional_text(claims, "idp"), read.optional_text(claims, "idp_iss")
    if (vouched_by is None) != (vouching_issuer is None) or vouched_by not in _VOUCHING:
        raise TokenRefused("idp is no sign-in provider")
    begun_with = Origin(read.optional_id(claims, "begun_sid"), read.optional_id(claims, "begun_jti"))
    return Principal(
        provider=_VOUCHING[vouched_by],
        issuer=vouching_issuer or issuer,
        user_id=read.an_id(claims, "sub"),
        tenant_id=tenant.id,
        role=Role(role),
        scopes=read.scopes_of(read.words(claims, "scope")),
        # Whoever was revoked before the session was begun, where that was not known yet, has no new token by it.
        issued_at_us=min(issued_at_us, since_us),
        expires_at_us=lifetime.ends_at_us,
        session_id=read.optional_id(claims, "sid"),
        token_id=read.an_id(claims, "jti"),
        begun_with=begun_with if any(begun_with) else None,
        username=read.optional_text(claims, "preferred_username"),
        mfa=read.has_second_factor(claims),
    )
