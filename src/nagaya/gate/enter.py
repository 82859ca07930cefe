"""The gate: from a token to an entrance.

In this order, each step cheaper to refuse than the next: authenticate, resolve the tenant from the token's binding,
compare what the request says of its tenant, state and expiry, sign-in strength, revocation, membership of the
workspace, scope and role, quota, risk. Nothing of the tenant is opened here. A warm call does no I/O.

A workspace is entered in two ways: with a token or key that is bound to it, or as a member, with what is one's own in
the tenant and the workspace's name. Either way the tenant around it must be open too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from nagaya.errors import (
    Forbidden,
    JobRefused,
    MfaRequired,
    NagayaError,
    NoTenant,
    NotFound,
    RegistryUnreachable,
    SsoRequired,
    TenantMismatch,
    TokenRefused,
    Unauthenticated,
    WorkspaceRefused,
)
from nagaya.jobs.record import JOB_S, VerifiedJob
from nagaya.kernel.clock import Clock
from nagaya.tenancy.directory import TenantDirectory
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, Scope, mint_entrance
from nagaya.tenancy.tenant import Tenant

K = TypeVar("K")
T = TypeVar("T")

JOBS_ISSUER: Final = "nagaya:jobs"
_REMEMBERED = 100_000
_OWN_SIGN_IN = frozenset({Provider.COGNITO, Provider.ENTRA, Provider.OIDC})


class Authenticates(Protocol):
    """What the gate needs of identity."""

    async def authenticate(self, raw: str, *, purpose: Literal["access", "login"] = "access") -> Principal: ...


class Ask(Protocol):
    """A request's hints about its tenant and its place. Hints confirm; they never decide. ``workspace`` chooses among
    those that the caller is a member of, and is a name or an address."""

    tenant_id: str | None
    host: str | None
    also: Collection[str]
    workspace: str | None


class Named:
    """Hints of a request: the ``X-Tenant-Id`` header, the host name, where the tenant has one of its own, the
    ``X-Workspace-Id`` header, and ``also`` the tenants that the query names."""

    __slots__ = ("also", "host", "tenant_id", "workspace")

    def __init__(
        self,
        tenant_id: str | None = None,
        host: str | None = None,
        also: Collection[str] = (),
        workspace: str | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.host = host
        self.also = also
        self.workspace = workspace


NOTHING_NAMED = Named()

QuotaHook = Callable[[Entrance], None]
RiskHook = Callable[[Entrance, Ask], None]
RefusalHook = Callable[[Principal | None, NagayaError], None]


class Gate:
    """Admits verified callers. ``check_quota`` and ``check_risk`` refuse by raising; ``on_refusal`` is told of every
    refusal, with the principal where there is one."""

    def __init__(
        self,
        authenticator: Authenticates,
        directory: TenantDirectory,
        clock: Clock,
        *,
        check_quota: QuotaHook,
        check_risk: RiskHook,
        on_refusal: RefusalHook,
    ) -> None:
        self._authenticator = authenticator
        self._directory = directory
        self._clock = clock
        self._check_quota = check_quota
        self._check_risk = check_risk
        self._on_refusal = on_refusal
        self._void_until_s: dict[str, float] = {}
        self._valid_from_us: dict[str, int] = {}
        self._no_member_until_s: dict[tuple[str, str], float] = {}
        self._no_members_until_s = -1.0
        self._pulse = directory.pulse

    async def enter(
        self,
        raw: str,
        ask: Ask = NOTHING_NAMED,
        *,
        purpose: Literal["access", "login"] = "access",
        needs: Scope | None = None,
        roles: tuple[Role, ...] = (),
    ) -> Entrance:
        """An entrance to the tenant that the token belongs to, or to the workspace of it that the token is bound to or
        the request names; for somebody with the scope ``needs`` and, where given, one of ``roles``.

        Raises ``Unauthenticated`` (401), ``TenantMismatch``, ``TenantNotOpen``, ``MfaRequired``, ``SsoRequired``,
        ``WorkspaceRefused``, ``Forbidden`` (403), ``RateLimited`` (429), ``RegistryUnreachable`` (503). May be
        repeated.
        """
        principal: Principal | None = None
        # Before anything is looked at, so that whatever changes meanwhile makes the entrance be looked at again.
        changes, began_s = self._pulse.changes, self._clock.monotonic_s()
        try:
            principal = await self._authenticate(raw, purpose)
            if principal.tenant_id is None:
                # An operator sees every tenant's metadata and nobody's content.
                raise Forbidden(needs="a token of a tenant; operators use /admin")
            room = await self._tenant(principal.tenant_id)
            tenant = room if room.parent is None else await self._tenant(room.parent)
            await self._check_named(tenant, room, ask)
            self._check_admitted(tenant, principal)
            if room is tenant and ask.workspace is None:
                entrance = mint_entrance(tenant=tenant, principal=principal, admitted_at_s=began_s)
            else:
                home = None
                if room is not tenant:
                    _check_bound(room, ask.workspace)
                else:
                    room, home = await self._workspace(tenant, ask.workspace or ""), principal
                    principal = await self._as_member(room, principal)
                self._check_admitted(room, principal)
                entrance = mint_entrance(
                    tenant=room, principal=principal, admitted_at_s=began_s, parent=tenant, home=home
                )
            if needs is not None:
                entrance.require(needs, *roles)
            self._check_quota(entrance)
            self._check_risk(entrance, ask)
        except NagayaError as refused:
            self._on_refusal(principal, refused)
            raise
        entrance.vouched = changes
        return entrance

    async def enter_for_job(self, job: VerifiedJob) -> Entrance:
        """An entrance for one attempt of a job, to the tenant it belongs to and for as long as it may take.

        The job's record proved genuine before; what changed since is decided now: whether the tenant is still that
        tenant, and open. The principal is the platform as an application without a person behind it, with the least
        role, so it owns nothing of anybody. Raises ``JobRefused``, ``TenantNotOpen`` (403), ``RegistryUnreachable``
        (503). May be repeated.
        """
        if not isinstance(job, VerifiedJob):
            # Nothing else enters without a token.
            raise NoTenant
        record, now_us = job.record, self._clock.now_us()
        principal = Principal(
            provider=Provider.PLATFORM,
            issuer=JOBS_ISSUER,
            user_id=record.kind,
            tenant_id=record.tenant_id,
            role=Role.USER,
            scopes=frozenset({Scope.READ, Scope.WRITE}),
            issued_at_us=now_us,
            expires_at_us=now_us + round(JOB_S * 1_000_000),
            session_id=record.id,
            is_application=True,
        )
        try:
            if not self._directory.is_fresh():
                raise RegistryUnreachable(retry_after_s=5, detail="no contact for 30 s")
            try:
                tenant = await self._directory.tenant(record.tenant_id)
            except NotFound:
                raise JobRefused(reason="its tenant is gone") from None
            if not job.is_of(tenant):
                raise JobRefused(reason="its tenant is another one now")
            parent = None
            if tenant.parent is not None:
                parent = await self._tenant(tenant.parent)
                parent.check_open(now_us)
            tenant.check_open(now_us)
        except NagayaError as refused:
            self._on_refusal(principal, refused)
            raise
        return mint_entrance(tenant=tenant, principal=principal, admitted_at_s=self._clock.monotonic_s(), parent=parent)

    async def operator(self, raw: str, needs: Scope) -> Principal:
        """The principal, if it is an operator with the scope; else ``Forbidden``. Opens no tenant."""
        principal: Principal | None = None
        try:
            principal = await self._authenticate(raw, "access")
            if principal.role is not Role.OPERATOR or principal.tenant_id is not None:
                raise Forbidden(needs="role operator")
            principal.require(needs)
        except NagayaError as refused:
            self._on_refusal(principal, refused)
            raise
        return principal

    def confirm(self, entrance: Entrance, named: Collection[str]) -> None:
        """Raise ``TenantMismatch`` where a body that was read since names another tenant than the entrance's."""
        own = (entrance.tenant.address, (entrance.parent or entrance.tenant).id)
        if any(each not in own for each in named):
            refused = TenantMismatch()
            self._on_refusal(entrance.principal, refused)
            raise refused

    def demand(self, entrance: Entrance, needs: Scope) -> None:
        """Raise ``Forbidden`` where a body that was read since asks for more than the entrance's scopes allow."""
        try:
            entrance.require(needs)
        except Forbidden as refused:
            self._on_refusal(entrance.principal, refused)
            raise

    def is_current(self, entrance: Entrance) -> bool:
        """Whether an entrance given earlier still holds: not ended, not revoked, tenant unchanged. No I/O.

        Asked at every use of a session and while a stream is open; so what is revoked ends within a second or so.
        """
        clock, pulse = self._clock, self._pulse
        if entrance.expires_at_us <= clock.now_us() or clock.monotonic_s() >= pulse.fresh_until_s:
            return False
        changes = pulse.changes
        if entrance.vouched == changes:
            # Nothing at all has changed since it was looked at.
            return True
        if not self._still_holds(entrance.tenant.id, entrance.principal, entrance.admitted_at_s):
            return False
        if entrance.parent is not None:
            if not self._still_holds(entrance.parent.id, entrance.home, entrance.admitted_at_s):
                return False
            if entrance.is_membership and not self._is_still_member(entrance):
                return False
        entrance.vouched = changes
        return True

    def _still_holds(self, tenant_id: str, principal: Principal, admitted_at_s: float) -> bool:
        if admitted_at_s <= self._void_until_s.get(tenant_id, -1.0):
            return False
        if self._valid_from_us and principal.issued_at_us < self._valid_from_us.get(tenant_id, 0):
            return False
        return principal.issued_at_us >= self._refused_before_us(principal, tenant_id)

    def _is_still_member(self, entrance: Entrance) -> bool:
        changed_at_s = self._no_member_until_s.get((entrance.tenant.id, entrance.home.user_key), -1.0)
        return entrance.admitted_at_s > max(changed_at_s, self._no_members_until_s)

    def void(self, tenant_id: str) -> None:
        """End every entrance to the tenant that was given before, as when its key was disabled."""
        self._pulse.changes += 1
        _remember(self._void_until_s, tenant_id, self._clock.monotonic_s())

    def member_changed(self, workspace_id: str, user: str) -> None:
        """End the entrances that were given to a member of a workspace: the role may be another, or none."""
        self._pulse.changes += 1
        _remember(self._no_member_until_s, (workspace_id, user), self._clock.monotonic_s())

    def members_changed(self) -> None:
        """End every entrance that was given to a member of a workspace: changes may have been missed."""
        self._pulse.changes += 1
        self._no_members_until_s = self._clock.monotonic_s()

    async def look_again(self, tenant_id: str) -> None:
        """After a change of a tenant: end the entrances given before, where it can no longer be entered."""
        try:
            tenant = await self._directory.tenant(tenant_id)
            tenant.check_open(self._clock.now_us())
        except NagayaError:
            self.void(tenant_id)
            return
        if tenant.tokens_valid_from_us:
            self._pulse.changes += 1
            _remember(self._valid_from_us, tenant_id, tenant.tokens_valid_from_us)

    def _refused_before_us(self, principal: Principal, tenant_id: str) -> int:
        """From memory. Whoever revokes a user may name it as its issuer does or as Nagaya shows it."""
        session_id, token_id = principal.session_id, principal.token_id
        refused_before_us = self._directory.refused_before_us
        before_us = refused_before_us(tenant_id, user_id=principal.user_id, session_id=session_id, token_id=token_id)
        if principal.user_key != principal.user_id:
            shown = refused_before_us(tenant_id, user_id=principal.user_key, session_id=None, token_id=None)
            before_us = max(before_us, shown)
        if principal.begun_with is not None:
            session_id, token_id = principal.begun_with
            begun = refused_before_us(tenant_id, user_id=principal.user_id, session_id=session_id, token_id=token_id)
            before_us = max(before_us, begun)
        return before_us

    async def _authenticate(self, raw: str, purpose: Literal["access", "login"]) -> Principal:
        if not raw:
            raise Unauthenticated
        if not self._directory.is_fresh():
            # What is cached may have been revoked since: refuse rather than serve.
            raise RegistryUnreachable(retry_after_s=5, detail="no contact for 30 s")
        return await self._authenticator.authenticate(raw, purpose=purpose)

    def _check_admitted(self, tenant: Tenant, principal: Principal) -> None:
        """Raise unless the tenant is open, and open to the principal as it signed in."""
        tenant.check_open(self._clock.now_us())
        check_sign_in(tenant, principal)
        if principal.issued_at_us < max(tenant.tokens_valid_from_us, self._refused_before_us(principal, tenant.id)):
            # API keys too: "everybody's" and "this user's" leave none out, whatever the caller came with.
            raise TokenRefused("the caller's tokens were revoked")

    async def _workspace(self, tenant: Tenant, named: str) -> Tenant:
        """The workspace of that very tenant which the request names. Raises ``WorkspaceRefused``."""
        tenant_id, slash, name = named.rpartition("/")
        if slash and tenant_id != tenant.id:
            raise WorkspaceRefused
        try:
            return await self._directory.tenant(workspace_room(tenant.id, name))
        except NotFound:
            raise WorkspaceRefused from None

    async def _as_member(self, workspace: Tenant, principal: Principal) -> Principal:
        """The principal with the role it has in the workspace. Raises ``WorkspaceRefused`` for who is no member, in the
        same words as for a workspace that is not there."""
        member = await self._directory.member(workspace.id, principal.user_key)
        if member is None or workspace.parent != principal.tenant_id:
            raise WorkspaceRefused
        return msgspec.structs.replace(
            principal,
            tenant_id=workspace.id,
            role=member.role,
            # What was revoked in the workspace before concerns a later member no more.
            issued_at_us=max(principal.issued_at_us, member.since_us),
        )

    async def _check_named(self, tenant: Tenant, room: Tenant, ask: Ask) -> None:
        """Raise ``TenantMismatch`` where header, query or host name speak of another tenant than the token's."""
        own = (tenant.id, room.address)
        if ask.tenant_id is not None and ask.tenant_id not in own:
            raise TenantMismatch
        if any(named not in own for named in ask.also):
            raise TenantMismatch
        if ask.host is not None and ask.host not in tenant.hosts:
            owner = await self._directory.host_owner(ask.host)
            if owner is not None and owner != tenant.id:
                raise TenantMismatch

    async def _tenant(self, tenant_id: str) -> Tenant:
        try:
            return await self._directory.tenant(tenant_id)
        except NotFound:
            raise TokenRefused("the tenant is gone") from None


def _check_bound(workspace: Tenant, named: str | None) -> None:
    """Raise ``WorkspaceRefused`` where what is bound to one workspace names another."""
    if named is not None and named not in (workspace.workspace, workspace.address):
        raise WorkspaceRefused


def _remember(table: dict[K, T], key: K, value: T) -> None:
    """Keep it, and let the oldest go where there are too many: sessions that old have ended."""
    table.pop(key, None)
    table[key] = value
    if len(table) > _REMEMBERED:
        del table[next(iter(table))]


def check_sign_in(tenant: Tenant, principal: Principal) -> None:
    """Raise unless the sign-in is as strong as the tenant wants it."""
    if tenant.sso_required and principal.provider not in _OWN_SIGN_IN:
        raise SsoRequired
    if tenant.mfa_required and not principal.mfa and not principal.is_application:
        raise MfaRequired
